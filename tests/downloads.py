"""Small files in the official formats of data sets that are not at hand, for tests of whole scenarios."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from official_files import write_iemocap, write_meld, write_mnist, write_spoken_digits

from blossom_ray.data.sets.ku_har import CLASS_NAMES, PAPER_CLASS_NAMES, SUBSAMPLES, WINDOW_STEPS
from blossom_ray.data.sets.ptb_xl import LEADS, NUM_STEPS, SUPERCLASSES


def uci_har(folder: Path) -> Path:
    """Both parts of six windows of each activity, of two subjects."""
    draw, labels = np.random.default_rng(0), np.arange(36) % 6 + 1
    for part in ("train", "test"):
        signals = folder / part / "Inertial Signals"
        signals.mkdir(parents=True)
        np.savetxt(folder / part / f"y_{part}.txt", labels, fmt="%d")
        np.savetxt(folder / part / f"subject_{part}.txt", 1 + np.arange(36) // 18, fmt="%d")
        for signal in ("body_acc", "body_gyro", "total_acc"):
            for axis in "xyz":
                np.savetxt(signals / f"{signal}_{axis}_{part}.txt", draw.normal(size=(36, 128)), fmt="%.4g")
    return folder


def ku_har(folder: Path) -> Path:
    """A table of windows of the paper's classes, 30 of each."""
    labels = np.repeat([CLASS_NAMES.index(name) for name in PAPER_CLASS_NAMES], 30)
    values = np.random.default_rng(0).normal(size=(len(labels), 6 * WINDOW_STEPS))
    columns = [values, labels[:, None], np.full((len(labels), 1), WINDOW_STEPS), np.arange(1, len(labels) + 1)[:, None]]
    np.savetxt(folder / SUBSAMPLES, np.concatenate(columns, axis=1), fmt="%.4g", delimiter=",")
    return folder


def ptb_xl(folder: Path) -> Path:
    """A prepared file of 240 records, 6 in 8 to train on, each with one superclass."""
    num_records = 240
    label = np.eye(len(SUPERCLASSES), dtype=np.uint8)[np.arange(num_records) % len(SUPERCLASSES)]
    np.savez(
        folder / "own.npz",
        signal=np.random.default_rng(0).integers(-2000, 2000, (num_records, NUM_STEPS, len(LEADS)), dtype=np.int16),
        scale=np.float32(0.001),
        leads=np.array(LEADS),
        label=label,
        classes=np.array(SUPERCLASSES),
        split=np.array(["train", "train", "train", "val", "train", "train", "train", "test"] * (num_records // 8)),
    )
    return folder / "own.npz"


def av_mnist(folder: Path) -> Path:
    """30 images of each digit in both parts; 24 recordings of each to train on, 2 to test on."""
    write_mnist(folder, per_digit=30)
    write_spoken_digits(folder / "free-spoken-digit-dataset", indices=(0, *range(5, 17)))
    return folder


DOWNLOADS: Mapping[str, Callable[[Path], Path]] = {
    "ku-har": ku_har,
    "ptb-xl": ptb_xl,
    "av-mnist": av_mnist,
    "meld": write_meld,
    "iemocap": write_iemocap,
}
"""By data set, what writes one into a folder and gives the path that `data.path` names."""
