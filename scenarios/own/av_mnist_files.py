"""Writes the pairs of the data set `av-mnist` as files: digits as PNG, recordings as they are, a table that names them.

    python scenarios/own/av_mnist_files.py AV-MNIST av-mnist-files

`scenarios/own/av-mnist.yaml` reads them.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from blossom_ray.data.sets.av_mnist import AvMnistData
from blossom_ray.data.sets.av_mnist_files import list_recordings, mnist_folder, open_spoken_digits, read_mnist
from blossom_ray.data.sets.base import Opened


def write(source: Path, folder: Path, **options: Any) -> None:
    """Write `pairs.csv`, and beside it the files that it names, in the order in which the data set has its pairs.

    Args:
        source: The official files, as `data.path` of the data set.
        folder: Where to write; it is made.
        options: Those of the data set that say which pairs there are, such as `pairs`.
    """
    spec = AvMnistData(dataset="av-mnist", path=str(source), **options)
    opened = Opened(spec, source, ("audio", "image"), seed=0)
    for name in ("images/train", "images/test", "sounds"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    table = [("image", "audio", "label", "subject", "split")]
    with open_spoken_digits(mnist_folder(source)) as archive:
        recordings, _ = list_recordings(archive)
        for part in ("train", "test"):
            mnist = read_mnist(mnist_folder(source), part)
            for row, number in zip(*spec.paired(opened, part, mnist.labels, recordings), strict=True):
                recording = recordings[number]
                image, sound = f"images/{part}/{row}.png", f"sounds/{Path(recording.member).name}"
                Image.fromarray(mnist.pixels[row]).save(folder / image)
                (folder / sound).write_bytes(archive.read(recording.member))
                table.append((image, sound, str(recording.digit), recording.speaker, part))
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(table)


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:]))
