"""Samples that are kept as bytes and stay so in shards give the same runs as float32 numbers in shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blossom_ray import Dataset, Run, Scenario, simulate
from blossom_ray.core.blocks import ClientProfile
from blossom_ray.data.division.federation import Federation
from blossom_ray.data.division.split import Split
from blossom_ray.data.shard_writing import write_held_out, write_shards
from blossom_ray.data.shards import ShardReader, pack, pack_held_out
from blossom_ray.data.stored import Scale, StoredRows

DRAW = np.random.default_rng(0)
PICTURES = DRAW.integers(0, 256, (70, 1, 6, 6), np.uint8)
HAS = DRAW.random(60) < 0.8


def data() -> Dataset:
    """60 samples, of which some have no picture, and ten that are held out."""
    rows, numbers = np.where(HAS, np.arange(60), -1), DRAW.normal(size=(70, 3)).astype(np.float32)
    labels, parts = np.arange(70) % 3, [PICTURES[:25], PICTURES[25:]]
    others = {"labels": labels[60:], "class_names": (*"abc",)}
    held_out = Dataset({"image": StoredRows(parts, np.arange(60, 70), 1 / 255), "b": numbers[60:]}, **others)
    return Dataset(
        {"image": StoredRows(parts, rows, 1 / 255), "b": numbers[:60]},
        labels[:60],
        (*"abc",),
        observed={"image": HAS},
        held_out=held_out,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"data.modalities": {"image": {"scale": "standard"}}},
        {"data.modalities": {"image": {"scale": "minmax", "over": "all"}}, "training.engine": "vectorized"},
        {"data.modalities": {"image": {"scale": "standard"}}, "training.engine": "vectorized"},
        {"sharing": "central", "data.validation_fraction": 0.2},
        {"sharing": "full-model", "model.missing": "prototype"},
    ],
    ids=["sequential", "vectorized", "vectorized-own-scales", "central", "prototypes"],
)
def test_runs_are_the_same_bits(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    scenario = Scenario.model_validate(
        {
            "rounds": 2,
            "data": {"dataset": "custom"},
            "clients": [{"count": 2, "modalities": ["image", "b"]}, {"count": 1, "modalities": ["b"]}],
            "model": {
                "encoders": {
                    "image": {"kind": "conv2d", "channels": [2], "dim": 4},
                    "b": {"kind": "mlp", "dim": 4},
                },
                "missing": "zero-input",
            },
            "sharing": "private-head",
            "training": {"batch_size": 4, "engine": "sequential"},
            "evaluation": {"held_out": "every"},
            "execution": {"runtime": "local"},
        }
    ).override(changes)
    dataset = data()
    floats = simulate(scenario, data=dataset)
    opened: list[Any] = []
    plain = ShardReader.shard
    monkeypatch.setattr("blossom_ray.data.shard_writing._MOST_FLOATS", 0)
    monkeypatch.setattr(ShardReader, "shard", lambda self, client: opened.append(plain(self, client)) or opened[-1])
    stayed = simulate(scenario, data=dataset)
    assert any(isinstance(shard.inputs.get("image"), StoredRows) for shard in opened)
    assert numbers_of(floats) == numbers_of(stayed)


def numbers_of(run: Run) -> Any:
    frames = (run.rounds, run.clients, run.blocks)
    timeless = [frame.drop([name for name in frame.columns if "seconds" in name]).to_dicts() for frame in frames]
    return run.manifest["digest"], repr(timeless)


def test_files_hold_the_bytes_and_what_they_stand_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = data()
    federation = Federation.of([Split(np.arange(20), np.arange(0), np.arange(20, 30)), _split(30, 60)])
    federation = Federation(federation.train, federation.validation, federation.test, observed={"image": HAS})
    profiles = [ClientProfile(0, ("image",)), ClientProfile(1, ("image",))]
    own = {client: Scale(np.full((1, 1, 1), 0.5 + client), np.full((1, 1, 1), 0.25)) for client in (0, 1)}
    expected = []
    for most in (2**30, 0):
        monkeypatch.setattr("blossom_ray.data.shard_writing._MOST_FLOATS", most)
        folder = tmp_path / str(most)
        index = write_shards(dataset, federation, profiles, folder, scales={"image": own})
        assert dataset.held_out is not None
        write_held_out([dataset.held_out], folder)
        packed = pack(index, [1]) | pack_held_out(index, [1])
        for reader in (ShardReader(index), ShardReader(index, packed)):
            with reader:
                held_out = reader.held_out(1)
                assert held_out is not None
                expected.append([reader.shard(1).train().inputs["image"][:], held_out.inputs["image"][:]])
        sizes = [(folder / name).stat().st_size for name in ("input-image.rows", "held-out/0/input-image.rows")]
        if most == 0:
            assert sizes[0] < 60 * 36 + 2000
            assert sizes[1] < 10 * 36 + 2000
    for others in expected[1:]:
        for values, equal in zip(others, expected[0], strict=True):
            np.testing.assert_array_equal(values, equal)
    by_hand = (np.float32(PICTURES[30:50] / 255) - 1.5) / 0.25
    by_hand[~HAS[30:50]] = 0
    np.testing.assert_array_equal(expected[0][0], by_hand.astype(np.float32))


def _split(start: int, end: int) -> Split:
    return Split(np.arange(start, end - 10), np.arange(0), np.arange(end - 10, end))
