"""A federation of tones and what people say of them, from files to scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from blossom_ray.data.modalities.audio import AudioModality
from blossom_ray.data.modalities.text import TextModality
from blossom_ray.data.sets.table import Table, TableData
from blossom_ray.errors import DataError, ScenarioError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runs.session import simulate

TONE: dict[str, Any] = {"kind": "audio", "rate": 8000, "seconds": 0.1, "bands": 8, "window": 128, "hop": 64}
WORDS: dict[str, Any] = {"kind": "text", "max_length": 4, "buckets": 50}
SUFFIXES = ("wav", "flac", "ogg", "mp3")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BLOSSOM_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_tones(folder: Path, number: int = 32) -> Path:
    """High and low tones as files of four formats, with captions; the table has their paths."""
    draw = np.random.default_rng(0)
    rows = []
    for row in range(number):
        name, is_high = f"{row}.{SUFFIXES[row % 4]}", row % 2
        time = np.arange(draw.integers(400, 1200)) / 8000
        soundfile.write(folder / name, 0.3 * np.sin(2 * np.pi * [300, 1500][is_high] * time), 8000)
        caption = (
            None if row == 5 else f"{['a low', 'such a high'][is_high]} tone, {'long' if len(time) > 800 else 'short'}"
        )
        rows.append({"tone": name, "said": caption, "label": ["low", "high"][is_high]})
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def scenario_of(path: Path, engine: str, modalities: dict[str, Any], vocabulary: int | None = None) -> Scenario:
    tree = {
        "rounds": 2,
        "data": {"dataset": "table", "path": str(path), "modalities": modalities},
        "clients": [{"count": 2, "modalities": ["tone"]}, {"count": 2, "modalities": ["said", "tone"]}],
        "sharing": "full-model",
        "model": {
            "encoders": {
                "tone": {"kind": "gru", "dim": 8},
                "said": {"kind": "embedding", "width": 8, "vocabulary": vocabulary},
            }
        },
        "training": {"engine": engine},
        "execution": {"runtime": "local"},
    }
    return Scenario.model_validate(tree)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_a_run_on_files_is_one_on_their_numbers(engine: str, tmp_path: Path) -> None:
    path = write_tones(tmp_path)
    run = simulate(scenario_of(path, engine, {"tone": TONE, "said": WORDS}))
    tone, words = (kind.model_validate(own).decoder() for kind, own in ((AudioModality, TONE), (TextModality, WORDS)))
    rows = pq.read_table(path).to_pylist()
    numbers = {
        "tone": [tone((tmp_path / row["tone"]).read_bytes()).tolist() for row in rows],
        "said": [None if row["said"] is None else words(row["said"]).tolist() for row in rows],
        "label": [row["label"] for row in rows],
    }
    pq.write_table(pa.table(numbers), tmp_path / "numbers.parquet")
    other = simulate(scenario_of(tmp_path / "numbers.parquet", engine, {}, 51))
    assert run.final == other.final
    assert run.scenario.model.encoders["said"].vocabulary == 51  # type: ignore[union-attr]


def test_a_sound_that_is_none_is_named_or_dropped(tmp_path: Path) -> None:
    path = write_tones(tmp_path)
    (tmp_path / "7.mp3").write_text("#!/bin/sh\n")
    found = r"rows.parquet, column 'tone', row 7 \(7.mp3\) is no sound, or a damaged one \(begins with b'#!/bin'\)"
    with pytest.raises(DataError, match=f"{found}; expected a WAV, FLAC, OGG or MP3 file"):
        simulate(scenario_of(path, "sequential", {"tone": TONE, "said": WORDS}))
    spec = TableData.model_validate(
        {"dataset": "table", "path": str(path), "modalities": {"tone": {**TONE, "on_error": "drop"}}}
    )
    dataset = Table(spec, ("tone",), "classification").load()
    assert [(left.what, left.count) for left in dataset.left_out] == [("rows whose tone cannot be decoded", 1)]
    assert dataset.inputs["tone"].shape == (31, 13, 8)


def test_an_encoder_that_does_not_fit_is_told_before_anything_is_decoded(tmp_path: Path) -> None:
    path = write_tones(tmp_path, 8)
    (tmp_path / "0.wav").write_bytes(b"")
    scenario = scenario_of(path, "sequential", {"tone": TONE, "said": WORDS})
    found = r"model\.encoders\.tone\.kind is 'gru', while tone is an image of shape \[1, 8, 13\]"
    with pytest.raises(ScenarioError, match=found):
        scenario.override({"data.modalities.tone.channels": 1})
    words = {**WORDS, "tokenizer": str(tmp_path / "none.json")}
    data = scenario_of(path, "sequential", {"tone": TONE, "said": words}).data_sets[""]
    assert data.input_shapes(["tone", "said", "other"]) == {"tone": (13, 8)}
