"""AV-MNIST's pairs as files, read as own data: what the data set's own loader makes of the official files."""

from __future__ import annotations

import runpy
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from official_files import write_av_mnist

from blossom_ray import Run, Scenario, simulate
from blossom_ray.data.dataset import Dataset

OFFICIAL = REPOSITORY.parent / "shared" / "data" / "AV-MNIST"
SCENARIOS = REPOSITORY / "scenarios"
FEW: dict[str, Any] = {"rounds": 2, "execution.runtime": "local", "data.partition": {"kind": "iid"}}


def both(files: Path, folder: Path, fewer: dict[str, Any], smaller: dict[str, Any]) -> tuple[Scenario, Scenario]:
    """The scenario on the official files, and that on the pairs that the script writes of them."""
    runpy.run_path(str(SCENARIOS / "own" / "av_mnist_files.py"))["write"](files, folder)
    own = {"data.path": str(folder / "pairs.csv"), **smaller}
    return (
        Scenario.load(SCENARIOS / "av-mnist.yaml", FEW | {"data.path": str(files)} | fewer),
        Scenario.load(SCENARIOS / "own" / "av-mnist.yaml", FEW | own),
    )


def loaded(scenario: Scenario) -> Dataset:
    return scenario.federated[0].open().load()


def scores(run: Run) -> dict[str, list[Any]]:
    return run.rounds.select([name for name in run.rounds.columns if "seconds" not in name]).to_dict(as_series=False)


def assert_the_same(official: Scenario, files: Scenario) -> None:
    mine, other = loaded(files), loaded(official)
    assert mine.held_out is not None
    assert other.held_out is not None
    for own, expected in ((mine, other), (mine.held_out, other.held_out)):
        np.testing.assert_array_equal(own.labels, expected.labels)
        np.testing.assert_array_equal(own.inputs["audio"][:], expected.inputs["audio"])
        pixels = (own.inputs["image"][:] - np.float32(0.1307)) / np.float32(0.3081)
        np.testing.assert_array_equal(pixels, expected.inputs["image"])
    assert scores(simulate(files)) == scores(simulate(official))


def test_scores_are_those_of_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOSSOM_RAY_CACHE", str(tmp_path / "cache"))
    spectrogram = {"rate_hz": 8000, "duration_ms": 400, "window": 256, "hop": 200, "mels": 8}
    audio = {"rate": 8000, "seconds": 0.4, "window": 256, "hop": 200, "bands": 8}
    smaller = {f"data.modalities.audio.{key}": value for key, value in audio.items()}
    fewer = {f"data.spectrogram.{key}": value for key, value in spectrogram.items()}
    small = {"model.encoders.audio": {"kind": "conv2d", "channels": [4], "dim": 8}}
    files = write_av_mnist(tmp_path / "official")
    assert_the_same(*both(files, tmp_path / "own", fewer | small, smaller | small))


@pytest.mark.long
@pytest.mark.data
def test_scores_are_those_of_the_data_set_on_real_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three recordings of each digit by each speaker, in the paper's spectrogram."""
    if not OFFICIAL.is_dir():
        pytest.skip(f"the official files are not at {OFFICIAL}")
    monkeypatch.setenv("BLOSSOM_RAY_CACHE", str(tmp_path / "cache"))
    files = tmp_path / "official"
    files.mkdir()
    for packed in OFFICIAL.glob("*.gz"):
        shutil.copy(packed, files)
    with zipfile.ZipFile(OFFICIAL / "free-spoken-digit-dataset.zip") as archive:
        members = [name for name in archive.namelist() if name.endswith(("_0.wav", "_5.wav", "_6.wav"))]
        archive.extractall(files, members)
    assert_the_same(*both(files, tmp_path / "own", {}, {}))
