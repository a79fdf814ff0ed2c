"""Modalities in one scale, beside scikit-learn's scalers."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from blossom_ray import Dataset, Scenario, from_arrays, simulate, write_table
from blossom_ray.core.blocks import ClientProfile
from blossom_ray.data.division.federation import Federation
from blossom_ray.data.division.scaling import scaled, scales_of
from blossom_ray.data.division.split import Split
from blossom_ray.data.modalities.audio import AudioModality
from blossom_ray.data.modalities.base import Scaling
from blossom_ray.data.modalities.text import TextModality
from blossom_ray.data.shard_writing import write_held_out, write_shards
from blossom_ray.data.shards import ShardReader
from blossom_ray.data.stored import StoredRows
from blossom_ray.errors import InputError, ScenarioError
from blossom_ray.runs.session import check_runnable
from blossom_ray.runtime.preparation import prepare
from blossom_ray.scenario.identity import identity, numbers_tree

PROFILES = (ClientProfile(0, ("a",)), ClientProfile(1, ("a", "b")))
CHANNELS = {(5,): -1, (7, 3): -1, (2, 6, 4): 1, (2, 2, 2, 2): None}
"""The axis of channels, samples counted, by the shape of a sample."""


def federation_of(*splits: tuple[list[int], list[int], list[int]]) -> Federation:
    return Federation.of([Split(*(np.array(rows, np.int64) for rows in split)) for split in splits])


def standardized(dataset: Dataset, federation: Federation) -> Dataset:
    scaling = Scaling(scale="standard", over="all")
    return scaled(dataset, scales_of(dataset, federation, PROFILES, lambda _: scaling).pooled)


def by_channel(values: np.ndarray, axis: int | None) -> np.ndarray:
    """(rows times places, channels)."""
    return values.reshape(-1, 1) if axis is None else np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])


@pytest.mark.parametrize("shape", CHANNELS)
def test_it_is_the_standard_scaler_of_what_owners_train_on(shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    scale = np.geomspace(0.001, 10_000, int(np.prod(shape))).reshape(shape)
    inputs = {name: (scale * (3 + draw.normal(size=(40, *shape)))).astype(np.float32) for name in ("a", "b")}
    before = {name: values.copy() for name, values in inputs.items()}
    labels = np.zeros(40, np.int64)
    held_out = Dataset({name: values[:5] * 2 for name, values in inputs.items()}, labels[:5], ("x",))
    federation = federation_of(([*range(10)], [], [10, 11]), ([*range(12, 30)], [30], [*range(31, 40)]))
    found = standardized(Dataset(inputs, labels, ("x",), held_out=held_out), federation)
    for name, train in {"a": [*range(10), *range(12, 30)], "b": [*range(12, 30)]}.items():
        judge = StandardScaler().fit(by_channel(before[name][train].astype(np.float64), CHANNELS[shape]))
        for mine, raw in ((found, before[name]), (found.held_out, before[name][:5] * 2)):
            assert mine is not None
            expected = judge.transform(by_channel(raw.astype(np.float64), CHANNELS[shape]))
            np.testing.assert_allclose(
                by_channel(mine.inputs[name][:], CHANNELS[shape]), expected, rtol=1e-5, atol=1e-5
            )
        np.testing.assert_array_equal(inputs[name], before[name])


def test_a_constant_channel_becomes_zero_and_a_missing_row_stays_missing() -> None:
    values = np.full((6, 2), 0.1, np.float32)
    values[:, 1] = [1, 2, 3, 4, 5, 6]
    values[3:] = np.nan
    dataset = Dataset(
        {"a": np.ones((6, 1), np.float32), "b": values},
        np.zeros(6, np.int64),
        ("x",),
        clients=np.array([1, 1, 1, 0, 0, 0]),
    )
    found = standardized(dataset, federation_of(([3, 4], [], [5]), ([0, 1], [], [2]))).inputs["b"][:]
    assert found[:3, 0].tolist() == [0, 0, 0]
    np.testing.assert_allclose(found[:3, 1], [-1, 1, 3])  # mean 1.5, deviation 0.5
    assert np.isnan(found[3:]).all()


def by_loop(values: np.ndarray, train: np.ndarray, scale: str) -> np.ndarray:
    """Vectors, sequences or images in a scale, channel by channel, with plain sums."""
    moved = np.moveaxis(values.astype(np.float64), 1 if values.ndim == 4 else -1, 0)
    found = np.empty_like(moved)
    for channel, numbers in enumerate(moved):
        known = numbers[train].ravel().tolist()
        if scale == "minmax":
            offset, divisor = min(known), max(known) - min(known)
        else:
            offset = sum(known) / len(known)
            divisor = (sum((value - offset) ** 2 for value in known) / len(known)) ** 0.5
        found[channel] = (numbers - offset) / (divisor if max(known) > min(known) else 1)
    return np.moveaxis(found, 0, 1 if values.ndim == 4 else -1)


def test_each_client_by_its_own_rows_by_hand() -> None:
    values = np.array([[1, 7], [3, 7], [5, 0], [10, 1], [30, 3], [50, 1]], np.float32)
    dataset = Dataset({"a": values}, np.zeros(6, np.int64), ("x",))
    federation = federation_of(([0, 1], [], [2]), ([3, 4], [], [5]))
    profiles = [ClientProfile(0, ("a",)), ClientProfile(1, ("a",))]

    def shards(scale: Literal["standard", "minmax"], folder: Path) -> list[list[list[float]]]:
        found = scales_of(dataset, federation, profiles, lambda _: Scaling(scale=scale))
        assert found.pooled == {}
        index = write_shards(dataset, federation, profiles, folder, scales=found.by_client)
        with ShardReader(index) as reader:
            return [reader.shard(client).inputs["a"].tolist() for client in (0, 1)]

    with tempfile.TemporaryDirectory() as folder:
        # Mean 2 and 20, deviation 1 and 10; the second channel is constant in the training rows of the first client.
        assert shards("standard", Path(folder)) == [[[-1, 0], [1, 0], [3, -7]], [[-1, -1], [1, 1], [3, -1]]]
        assert shards("minmax", Path(folder)) == [[[0, 0], [1, 0], [2, -7]], [[0, 0], [1, 1], [2, 0]]]


def test_a_client_of_the_held_out_part_has_a_scale_of_its_own_and_counts_in_no_other() -> None:
    values = np.array([[1], [3], [9], [100], [140], [180]], np.float32)
    held_out = Dataset({"a": values[3:]}, np.zeros(3, np.int64), ("x",))
    dataset = Dataset({"a": values[:3]}, np.zeros(3, np.int64), ("x",), held_out=held_out)
    # Rows of the held-out part are counted on from those of the data set.
    federation = replace(federation_of(([0, 1], [], [2]), ([3, 4], [], [5])), num_unseen=1, num_held_out=1)
    profiles = [ClientProfile(0, ("a",)), ClientProfile(1, ("a",), is_unseen=True)]
    own, pooled = (
        scales_of(dataset, federation, profiles, lambda _, over=over: Scaling(scale="standard", over=over))
        for over in ("client", "all")
    )
    assert [[float(number[0]) for number in own.by_client["a"][client]] for client in (0, 1)] == [[2, 1], [120, 20]]
    assert [float(number[0]) for number in pooled.pooled["a"]] == [2, 1]
    with tempfile.TemporaryDirectory() as folder:
        index = write_shards(dataset, federation, profiles, Path(folder), scales=own.by_client)
        write_held_out([held_out], Path(folder))
        with ShardReader(index) as reader:
            assert reader.shard(1).inputs["a"].ravel().tolist() == [-1, 1, 3]
            seen = [reader.held_out(client) for client in (0, 1)]
    assert [each.inputs["a"].ravel().tolist() for each in seen if each is not None] == [[98, 138, 178], [-1, 1, 3]]


KINDS = [("standard", "client"), ("minmax", "client"), ("standard", "all"), ("minmax", "all")]
GAPS = [4, 8, 35]
"""Rows of `table` without a value of `a`; the last is held out."""


def table(path: Path) -> dict[str, np.ndarray]:
    """Rows of four clients, who have ten each, and five that are held out; `a` sequences with gaps, `b` vectors."""
    draw = np.random.default_rng(3)
    owners = np.repeat(np.arange(4), 10)
    inputs = {
        "a": (draw.normal(size=(45, 3, 2)) * [1, 50] + np.append(owners, [0] * 5)[:, None, None]).astype(np.float32),
        "b": draw.exponential(9, (45, 4)).astype(np.float32),
    }
    splits = [*(["train"] * 6 + ["validation"] * 2 + ["test"] * 2) * 4, *["held-out"] * 5]
    has = np.ones(45, bool)
    has[[*GAPS[:2], 40 + GAPS[2] - 35]] = False
    dataset = from_arrays(
        inputs, np.arange(45) % 3, clients=[*owners.tolist(), *[None] * 5], splits=splits, observed={"a": has}
    )
    write_table(dataset, path)
    return {"has": has, **inputs}


def scenario_of(path: Path, **modalities: dict[str, str]) -> Scenario:
    return Scenario.model_validate(
        {
            "rounds": 2,
            "data": {
                "dataset": "table",
                "path": str(path),
                "modalities": modalities,
                "partition": {"kind": "given", "unseen": ["3"], "shots": 4},
            },
            "clients": "from-data",
            "model": {
                "encoders": {"a": {"kind": "gru", "dim": 4}, "b": {"kind": "mlp", "dim": 4}},
                "missing": "zero-input",
            },
            "sharing": "full-model",
            "evaluation": {"held_out": "every", "fine_tune": {"epochs": 1}},
            "training": {"batch_size": 4},
            "execution": {"runtime": "local"},
        }
    )


@pytest.mark.parametrize(("scale", "over"), KINDS)
def test_a_run_has_shards_in_these_scales(tmp_path: Path, scale: str, over: str) -> None:
    """Of all splits, of a client that never trains, and of the held-out set as each client sees it."""
    raw = table(tmp_path / "own.arrow")
    scenario = check_runnable(
        scenario_of(tmp_path / "own.arrow", a={"scale": scale, "over": over}, b={"scale": scale, "over": over})
    )
    prepared = prepare(scenario, tmp_path)
    rows = {client: np.arange(10 * client, 10 * client + 10) for client in range(4)}
    train = {client: own[:6] for client, own in rows.items()}
    whole = ShardReader(prepared.shards)
    with whole, ShardReader(prepared.shards, prepared.pack_shards([1, 3])) as packed:
        # Of the client that never trains there are the shots that were drawn.
        plain = prepare(check_runnable(scenario_of(tmp_path / "own.arrow")), _new(tmp_path / "plain"))
        with ShardReader(plain.shards) as reader:
            shots = reader.shard(3).inputs["b"]
        rows[3] = np.array([int(np.flatnonzero((raw["b"] == shot).all(axis=1))[0]) for shot in shots])
        train[3] = rows[3][:4]
        for name in ("a", "b"):
            has = raw["has"] if name == "a" else np.ones(45, bool)
            for client, own in rows.items():
                members = [client] if over == "client" else [0, 1, 2]
                known = np.concatenate([train[each] for each in members])
                expected = by_loop(raw[name], known[has[known]], scale).astype(np.float32)
                expected[~has] = 0
                found = whole.shard(client).inputs[name]
                np.testing.assert_allclose(found, expected[own], rtol=1e-5, atol=1e-6)
                held_out = whole.held_out(client)
                assert held_out is not None
                np.testing.assert_allclose(held_out.inputs[name], expected[40:], rtol=1e-5, atol=1e-6)
                if client in (1, 3):
                    again = packed.held_out(client)
                    assert again is not None
                    np.testing.assert_array_equal(packed.shard(client).inputs[name], found)
                    np.testing.assert_array_equal(again.inputs[name], held_out.inputs[name])


@pytest.mark.parametrize(
    ("engine", "scale"), [("sequential", "standard"), ("vectorized", "standard"), ("sequential", "minmax")]
)
def test_held_out_scores_and_exports_are_in_each_clients_own_scale(tmp_path: Path, engine: str, scale: str) -> None:
    raw = table(tmp_path / "own.arrow")
    changes = {"training.engine": engine, "evaluation.fine_tune": None}
    runs = {}
    for over in ("all", "client"):
        own = {"scale": scale, "over": over}
        runs[over] = simulate(scenario_of(tmp_path / "own.arrow", a=own, b=own).override(changes), out=tmp_path / over)
    has, labels = raw["has"][40:], torch.arange(40, 45) % 3
    for over, run in runs.items():
        losses = []
        for client in (0, 1, 2):
            model = run.model(client)
            inputs = {name: torch.from_numpy(model.prepared(name, raw[name][40:])) for name in ("a", "b")}
            outputs = model(inputs, {"a": torch.from_numpy(has)}).detach()
            losses.append(float(torch.nn.functional.cross_entropy(outputs, labels)))
        last = run.rounds.filter(round=2)
        assert last["held_out/loss/a+b"][0] == pytest.approx(np.mean(losses), rel=1e-5)
        # One model and one view of the set, or one model and three views.
        assert len(set(losses)) == last["held_out/num_examples@b/a+b"][0] == (1 if over == "all" else 3)
    # What is found in all training rows is told; of what stays with clients there is a digest.
    told, apart = (run.manifest["data"]["scales"]["a"] for run in runs.values())
    names = {"mean", "deviation"} if scale == "standard" else {"low", "range"}
    assert told.keys() == {"scale", "over", "digest", *names}
    assert {np.shape(told[name]) for name in names} == {(1, 2)}
    assert apart.keys() == {"scale", "over", "digest"}
    assert (apart["scale"], apart["over"]) == (scale, "client")
    assert runs["all"].manifest["data"]["fingerprint"] == runs["client"].manifest["data"]["fingerprint"]
    runs["all"].model()
    with pytest.raises(
        InputError,
        match="no model of all clients, each of whom scales a, b by its own",
    ):
        runs["client"].model()


def test_a_scale_may_be_known_before_the_data(tmp_path: Path) -> None:
    """Of each channel, or one for all; a model of all clients leaves with it."""
    raw = table(tmp_path / "own.arrow")
    known = {"a": {"mean": [1.5, -2], "deviation": [4]}, "b": {"mean": [0.1307], "deviation": [0.3081]}}
    scenario = scenario_of(tmp_path / "own.arrow", **{name: {"scale": scale} for name, scale in known.items()})
    run = simulate(scenario, out=tmp_path / "run")
    model = run.model()
    with ShardReader(prepare(check_runnable(scenario), _new(tmp_path / "shards")).shards) as reader:
        for name, scale in known.items():
            expected = (raw[name].astype(np.float64) - scale["mean"]) / scale["deviation"]
            has = raw["has"][:10] if name == "a" else np.ones(10, bool)
            for found in (reader.shard(0).inputs[name][has], model.prepared(name, raw[name][:10])[has]):
                np.testing.assert_allclose(found, expected[:10][has], rtol=1e-5, atol=1e-6)
    told = run.manifest["data"]["scales"]["a"]
    assert told == {"scale": "known", "digest": told["digest"], "mean": [[1.5, -2]], "deviation": [[4, 4]]}
    wrong = scenario.override({"data.modalities.a.scale": {"mean": [1, 2, 3], "deviation": [1]}})
    found = "modality 'a' has a scale of 3 in mean; expected 2, one for each channel of (3, 2), or 1"
    with pytest.raises(InputError, match=re.escape(found)):
        simulate(wrong)


def test_standardize_is_the_standard_scale_over_all(tmp_path: Path) -> None:
    table(tmp_path / "own.arrow")
    scale = {"scale": "standard", "over": "all"}
    runs = [
        simulate(scenario_of(tmp_path / "own.arrow", a=scale, b=scale)),
        simulate(scenario_of(tmp_path / "own.arrow").override({"data.standardize": True})),
    ]
    assert runs[0].manifest["digest"] == runs[1].manifest["digest"]


@pytest.mark.ray
def test_placement_never_changes_a_bit_of_it(tmp_path: Path, ray_session: None) -> None:
    table(tmp_path / "own.arrow")
    scenario = scenario_of(tmp_path / "own.arrow", a={"scale": "standard"}, b={"scale": "minmax", "over": "all"})
    placed = {"execution.runtime": "ray", "execution.clients_per_actor": 2, "execution.shards": "object-store"}
    local, elsewhere = simulate(scenario), simulate(scenario.override(placed))
    assert local.manifest["digest"] == elsewhere.manifest["digest"]
    names = [name for name in local.rounds.columns if "seconds" not in name]
    assert local.rounds.select(names).equals(elsewhere.rounds.select(names))


def test_data_from_a_program_are_scaled_too(tmp_path: Path) -> None:
    raw = table(tmp_path / "own.arrow")
    splits = [*(["train"] * 6 + ["test"] * 4) * 4, *["held-out"] * 5]
    owners = [*np.repeat(np.arange(4), 10).tolist(), *[None] * 5]
    dataset = from_arrays({"b": raw["b"]}, np.arange(45) % 3, clients=owners, splits=splits)
    changes: dict[str, Any] = {
        "data": {"dataset": "custom", "partition": {"kind": "given"}, "modalities": {"b": {"scale": "minmax"}}},
        "model": {"encoders": {"b": {"kind": "mlp", "dim": 4}}},
        "evaluation.fine_tune": None,
    }
    scenario = scenario_of(tmp_path / "own.arrow").override(changes)
    kept, passing = simulate(scenario, data=dataset, out=tmp_path / "runs"), simulate(scenario, data=dataset)
    assert kept.manifest["digest"] == passing.manifest["digest"]
    assert kept.manifest["data"]["scales"] == passing.manifest["data"]["scales"]
    without = simulate(scenario.override({"data.modalities": None}), data=dataset)
    assert without.manifest["digest"] != passing.manifest["digest"]
    assert identity(scenario.override({"data.modalities": {"b": {}}})) != identity(scenario)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"data.modalities.a": {"scale": "minmax"}, "data.standardize": True},
            "data.modalities.a.scale is 'minmax', while standardize is true, which scales all modalities",
        ),
        ({"data.modalities.a": {"over": "all"}}, "data.modalities.a.over is 'all', while scale is 'none'"),
        (
            {"data.modalities.a": {"over": "all", "scale": {"mean": [1], "deviation": [1]}}},
            "data.modalities.a.over is 'all', while scale is known",
        ),
        ({"data.modalities.a": {"scale": {"mean": [1], "deviation": [0]}}}, "deviation.0 is 0; expected"),
    ],
    ids=["both", "over-nothing", "over-known", "no-deviation"],
)
def test_what_cannot_stand_together_is_refused(tmp_path: Path, changes: dict[str, Any], found: str) -> None:
    with pytest.raises(ScenarioError, match=found):
        scenario_of(tmp_path / "own.arrow").override(changes)


def test_a_kind_with_rules_of_its_own_has_these_too() -> None:
    for section in (AudioModality(kind="audio", over="all"), TextModality(kind="text", over="all")):
        assert ("over", "is 'all', while scale is 'none'", "no over, or a scale") in [*section.conflicts()]


def test_numbers_of_words_are_not_scaled() -> None:
    section = TextModality(kind="text", scale="minmax")
    (found,) = section.conflicts()
    assert found == ("scale", "is 'minmax', while the numbers of words are no amounts", "'none'")


def test_a_scenario_from_before_is_the_same_simulation(tmp_path: Path) -> None:
    before = scenario_of(tmp_path / "own.arrow", a={})
    assert identity(scenario_of(tmp_path / "own.arrow", a={"scale": "none", "over": "client"})) == identity(before)
    assert identity(scenario_of(tmp_path / "own.arrow", a={"scale": "standard"})) != identity(before)
    custom = before.override(
        {"data": {"dataset": "custom", "factory": "a:b"}, "clients": [{"count": 2, "modalities": ["a", "b"]}]}
    )
    assert "modalities" not in numbers_tree(custom)["data"]


def test_stored_rows_have_the_scale_of_the_equal_array() -> None:
    kept = np.random.default_rng(0).integers(0, 256, (3000, 2, 3, 2), np.uint8)
    rows = StoredRows([kept[:1000], kept[1000:]], np.random.default_rng(1).permutation(3000), 1 / 255)
    federation = federation_of(([*range(2500)], [], [2500]), ([*range(2600, 2900)], [], [2900]))
    labels, profiles = np.zeros(3000, np.int64), [ClientProfile(0, ("a",)), ClientProfile(1, ("a",))]
    for scale, over in KINDS:
        section = Scaling.model_validate({"scale": scale, "over": over})
        mine, other = (
            scales_of(Dataset({"a": values}, labels, ("x",)), federation, profiles, lambda _, own=section: own)
            for values in (rows, rows[:])
        )
        for client in (0, 1):
            for own, equal in zip(mine.of("a", client) or (), other.of("a", client) or (), strict=True):
                np.testing.assert_array_equal(own, equal)
                assert own.shape == (2, 1, 1)


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_each_of_several_data_sets_has_scales_of_its_own(tmp_path: Path) -> None:
    draw, rows = np.random.default_rng(5), {}
    for name, unit in (("near", 1), ("far", 1000)):
        rows[name] = (unit * draw.exponential(1, (24, 3))).astype(np.float32)
        dataset = from_arrays({"b": rows[name]}, np.arange(24) % 2, splits=["train"] * 20 + ["test"] * 4)
        write_table(dataset, tmp_path / f"{name}.arrow")
    scenario = Scenario.model_validate(
        {
            "rounds": 1,
            "datasets": {
                name: {"dataset": "table", "path": str(tmp_path / f"{name}.arrow"), "modalities": {"b": scale}}
                for name, scale in (("near", {"scale": "minmax"}), ("far", {"scale": "standard", "over": "all"}))
            },
            "tasks": {"first": {"data": "near"}, "second": {"data": "far"}},
            "clients": [{"count": 2, "task": task, "modalities": ["b"]} for task in ("first", "second")],
            "model": {"encoders": {"b": {"kind": "mlp", "dim": 4}}},
            "execution": {"runtime": "local"},
        }
    )
    prepared = prepare(check_runnable(scenario), _new(tmp_path / "shards"))
    assert {name: own["over"] for name, own in prepared.scales.items()} == {"near/b": "client", "far/b": "all"}
    ranges = []
    with ShardReader(prepared.shards) as reader:
        for client in (0, 1):
            train = reader.shard(client).train().inputs["b"]
            assert (train.min(axis=0).tolist(), train.max(axis=0).tolist()) == ([0] * 3, [1] * 3)
            seen = reader.held_out(client)
            assert seen is not None
            # Differences of the scaled rows are those of the rows, by one number for each channel and client.
            ratio = np.diff(rows["near"][20:], axis=0) / np.diff(seen.inputs["b"], axis=0)
            np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1], ratio.shape), rtol=1e-3)
            ranges.append(ratio[0])
        assert (ranges[0] != ranges[1]).any()
        pooled = np.concatenate([reader.shard(client).train().inputs["b"] for client in (2, 3)])
        np.testing.assert_allclose([pooled.mean(axis=0), pooled.std(axis=0)], [[0] * 3, [1] * 3], atol=1e-5)
    assert not [note for note in prepared.notes if "other units" in note]
