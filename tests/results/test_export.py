"""Models taken out of runs: scores are those of the run, folders need no blossom-ray, refusals are one line."""

from __future__ import annotations

import ast
import csv
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import Command
from pyarrow import feather
from pyarrow import parquet as pq

from blossom_ray import Run, Scenario, from_arrays, simulate
from blossom_ray.data.sets.table import TableData
from blossom_ray.errors import InputError, RunFolderError
from blossom_ray.models.options import MissingRule
from blossom_ray.models.predict import all_predictions, outputs, predictions, read_samples
from blossom_ray.models.standalone import StandaloneModel, load
from blossom_ray.runs.exporting import write_export
from blossom_ray.runtime.preparation import prepare
from blossom_ray.tasks import task_rules

pytestmark = pytest.mark.slow

BATCH_NORM = {"kind": "mlp", "hidden": [8], "norm": "batch"}
SEQUENTIAL: dict[str, dict[str, Any]] = {
    "mask": {"server.clients_per_round": 2},  # some never train
    "zero-embedding, multilabel": {"model.missing": "zero-embedding", "task": "multilabel"},
    "zero-input, regression": {"model.missing": "zero-input", "task": "regression", "sharing": "full-model"},
    "prototype": {"model.missing": "prototype", "sharing": "private-head"},
    "own statistics": {"model.head": BATCH_NORM, "model.norm_statistics": "local", "sharing": "full-model"},
    "statistics by set": {
        "model.head": BATCH_NORM,
        "model.norm_statistics": "same-modalities",
        "sharing": "full-model",
    },
    "averaged statistics": {"model.head": BATCH_NORM, "model.fusion.norm": "batch", "model.missing": "zero-input"},
    "ditto": {"algorithm": {"kind": "ditto"}, "sharing": "full-model", "model.head": BATCH_NORM},
    "mixed": {"algorithm": {"kind": "mixed"}, "sharing": "full-model"},
    "ifca": {"algorithm": {"kind": "ifca"}, "sharing": "full-model", "model.head": BATCH_NORM},
    "low-rank": {"algorithm": {"kind": "low-rank"}, "sharing": "full-model", "model.head": BATCH_NORM},
    "fedmsplit": {"algorithm": {"kind": "fedmsplit"}, "sharing": "full-model", "model.head": BATCH_NORM},
    "central": {"sharing": "central"},
    "bfloat16": {"training.precision": "bfloat16"},
    "small batches": {"evaluation.batch_size": 3},
}
GAPS = {"data.observed": {"acc": 0.7, "gyro": {"train": 0.8, "test": 0.5}}, "data.without_modality": "leave-out"}
SEQUENTIAL |= {
    f"gaps, {rule}": {**GAPS, "model.missing": rule, "evaluation.batch_size": 7, "sharing": "private-head"}
    for rule in get_args(MissingRule)
}


def run_of(scenario: Scenario, tmp_path: Path, **changes: Any) -> Run:
    return simulate(scenario.override(changes), out=tmp_path / "runs")


def scored(run: Run, folder: Path, models: dict[int, StandaloneModel]) -> dict[int, dict[str, float | None]]:
    """Scores and loss of models by client, each on the test split of its client, computed here."""
    folder.mkdir()
    with prepare(run.scenario, folder).open_shards() as shards, torch.no_grad():
        return {
            client: scores(model, *shards.shard(client).test(), run.scenario.evaluation.batch_size)
            for client, model in models.items()
        }


def scores(model: StandaloneModel, inputs: Any, labels: Any, observed: Any, batch: int) -> dict[str, float | None]:
    rules = task_rules(model.description["task"])
    values, has = (
        {name: torch.from_numpy(np.array(given)) for name, given in each.items()} for each in (inputs, observed)
    )
    targets, loss, found = torch.from_numpy(np.array(labels)), torch.zeros((), dtype=torch.float64), []
    for start in range(0, len(targets), batch):
        rows = slice(start, start + batch)
        found.append(model(*({name: given[rows] for name, given in each.items()} for each in (values, has))))
        loss += rules.loss(found[-1], targets[rows], reduction="sum")
    tally = rules.tally(labels, rules.predict(torch.cat(found)).numpy(), len(model.description["outputs"]))
    return {"loss": float(loss) / len(labels), **rules.scores(tally)}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("changes", SEQUENTIAL.values(), ids=SEQUENTIAL)
def test_scores_are_those_of_the_run_to_the_bit(small_scenario: Scenario, tmp_path: Path, changes: Any) -> None:
    run = run_of(small_scenario, tmp_path, **changes)
    last = run.clients.filter(round=2)
    models = {client: run.model(client) for client in (0, 2, 4)}  # one of each modality set
    for client, found in scored(run, tmp_path / "shards", models).items():
        (recorded,) = last.filter(client=client).to_dicts()
        assert found == {name: recorded[name] for name in found}
        told = models[client].description["run"]
        assert (told["engine"], told["rounds_trained"]) == ("sequential", recorded["rounds_trained"])


@pytest.mark.usefixtures("one_thread")
def test_a_client_of_the_second_data_set_has_its_shapes_and_scales(small_scenario: Scenario, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    hearts = from_arrays({"acc": draw.normal(5, 2, (40, 6, 2))}, draw.normal(size=40), task="regression")
    changes = {
        "data": None,
        "datasets": {"main": small_scenario.data, "heart": {"dataset": "custom", "standardize": True}},
        "tasks": {"shape": {"data": "main"}, "pulse": {"data": "heart", "kind": "regression"}},
        "clients": [
            {"count": 2, "task": "shape", "modalities": ["acc", "gyro"]},
            {"count": 2, "task": "pulse", "modalities": ["acc"]},
        ],
        "model.encoders.acc": {"kind": "gru", "dim": 4},
        "sharing": {"encoder/*": "shared", "fusion": "same-task", "head": "private"},
    }
    run = simulate(small_scenario.override(changes), data={"heart": hearts}, out=tmp_path / "runs")
    first, second = run.model(0), run.model(3)
    assert (first.description["input_shapes"]["acc"], second.description["input_shapes"]) == ([8, 2], {"acc": [6, 2]})
    assert first.description["modalities"]["acc"]["normalisation"] is None
    scale = second.description["modalities"]["acc"]["normalisation"]
    assert np.ravel(scale["mean"]) == pytest.approx([5, 5], abs=0.5)
    assert second.description["run"]["data"]["dataset"] == "table"
    found = scored(run, tmp_path / "shards", {3: second})[3]
    (recorded,) = run.clients.filter(round=2, client=3).to_dicts()
    assert found == {name: recorded["loss" if name == "loss" else f"pulse/{name}"] for name in found}


@pytest.mark.usefixtures("one_thread")
def test_stacked_runs_agree_within_rounding(small_scenario: Scenario, tmp_path: Path) -> None:
    run = run_of(small_scenario, tmp_path, **{"training.engine": "vectorized", "execution.chunk_size": 32})
    model = run.model(1)
    assert model.description["run"]["engine"] == "vectorized"
    found = scored(run, tmp_path / "shards", {1: model})[1]
    assert found["loss"] == pytest.approx(run.clients.filter(round=2, client=1)["loss"][0], rel=1e-5)
    write_export(model, tmp_path / "given")
    assert "within rounding" in (tmp_path / "given" / "README.md").read_text()


def test_the_model_of_all_clients_is_that_of_each(small_scenario: Scenario, tmp_path: Path) -> None:
    run = run_of(small_scenario, tmp_path, **{"sharing": "full-model", "model.missing": "prototype"})
    everybodys, own, of_acc = run.model(), run.model(4), run.model(0)
    assert everybodys.modalities == own.modalities == ("acc", "gyro")
    assert everybodys.description["run"]["client"] is None
    for name, values in of_acc.weights().items():
        assert torch.equal(everybodys.weights()[name], values), name
    # Its prototypes stand for what a row lacks, as they do for the clients that do not own it.
    acc = {"acc": torch.randn(3, 8, 2)}
    with torch.no_grad():
        assert torch.equal(everybodys(acc), of_acc(acc))


def test_the_model_of_all_clients_has_statistics_that_stand_apart(small_scenario: Scenario, tmp_path: Path) -> None:
    changes = {"algorithm": {"kind": "scaffold"}, "training.optimizer": {"kind": "sgd", "lr": 0.05}}
    run = run_of(small_scenario, tmp_path, **changes, **{"sharing": "full-model", "model.head": BATCH_NORM})
    assert "statistics/head" in run.blocks["block"].to_list()
    everybodys, own = run.model().weights(), run.model(4).weights()
    assert everybodys.keys() == own.keys()
    assert [name for name, values in everybodys.items() if not torch.equal(values, own[name])] == [
        "head/layers.1.num_batches_tracked"  # a client's own counter
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sharing": "private-head-fusion"}, r"who have fusion \(private\), head \(private\); expected a client"),
        (
            {"sharing": {"encoder/*": "shared", "fusion": "same-modalities", "head": "shared"}},
            r"who have fusion \(same",
        ),
        (
            {"sharing": "full-model", "model.head": BATCH_NORM, "model.norm_statistics": "local"},
            r"who have statistics of normalisation \(model.norm_statistics: local\)",
        ),
    ],
)
def test_without_a_common_model_there_is_none(
    small_scenario: Scenario, tmp_path: Path, changes: Any, message: str
) -> None:
    run = run_of(small_scenario, tmp_path, rounds=1, **changes)
    with pytest.raises(InputError, match=f"there is no model of all clients, {message}"):
        run.model()
    with pytest.raises(InputError, match=r"the client is 5; expected one of 0 to 4"):
        run.model(5)


def test_with_personal_models_the_common_one_is_the_averaged_one(small_scenario: Scenario, tmp_path: Path) -> None:
    run = run_of(small_scenario, tmp_path, algorithm={"kind": "ditto"}, sharing="full-model")
    plain = run.clients.filter(round=2, client=4)["plain/loss"][0]
    with_one_thread = torch.get_num_threads()
    torch.set_num_threads(1)
    assert scored(run, tmp_path / "shards", {4: run.model()})[4]["loss"] == plain
    torch.set_num_threads(with_one_thread)


@pytest.mark.usefixtures("one_thread")
def test_what_an_algorithm_keeps_is_read_by_client(small_scenario: Scenario, tmp_path: Path) -> None:
    """A client of `mixed` was scored with the mixture of its own copy and the shared model by its own weights."""
    changes = {"algorithm": {"kind": "mixed", "rate": 5.0}, "sharing": "full-model", "rounds": 2}
    run = simulate(small_scenario.override(changes), out=tmp_path)
    shared, leans = run.model().weights(), {}
    for client in range(small_scenario.num_clients):
        kept = run.extras(client)
        leans[client] = {block: 1 / (1 + np.exp(-lean)) for block, lean in kept["lean"].items()}
        scored = run.model(client).weights()
        assert kept["v"].keys() == leans[client].keys()
        for block, share in leans[client].items():
            of_block = [[name, values] for name, values in scored.items() if name.startswith(f"{block}/")]
            mixed, averaged = (
                np.concatenate([np.ravel(source[name]) for name, _ in of_block]) for source in (scored, shared)
            )
            expected = share * kept["v"][block][: mixed.size] + (1 - share) * averaged
            np.testing.assert_allclose(mixed, expected, atol=1e-6)
    assert len({float(lean["head"]) for lean in leans.values()}) == small_scenario.num_clients, "each its own"
    assert simulate(small_scenario, out=tmp_path / "fedavg").extras(0) == {}
    with pytest.raises(InputError, match="the client is 99; expected one of 0 to"):
        run.extras(99)
    with pytest.raises(RunFolderError, match="has no checkpoint of round 1"):
        run.extras(0, round_index=1)


def test_clients_that_never_train(small_scenario: Scenario, tmp_path: Path) -> None:
    """With the shared blocks, and with initial private ones; means of others' private blocks are nowhere kept."""
    groups = [{"count": 2, "modalities": ["acc"]}, {"count": 2, "modalities": ["acc", "gyro"]}]
    unseen = {"count": 1, "modalities": ["acc", "gyro"], "role": "unseen", "shots": 5}
    scenario = small_scenario.override({"clients": [*groups, unseen], "sharing": "private-head"})
    run = run_of(scenario, tmp_path)
    recorded = run.clients.filter(round=2, client=4)["unseen/loss"][0]
    assert scored(run, tmp_path / "shards", {4: run.model(4)})[4]["loss"] == recorded
    run = run_of(scenario, tmp_path, **{"evaluation.unseen.start": "group-average"})
    with pytest.raises(
        InputError, match="client 4 never trains, and begins with means of others' head, which no check"
    ):
        run.model(4)
    assert run.model(3).modalities == ("acc", "gyro")


@pytest.mark.usefixtures("one_thread")
def test_a_client_of_one_of_several_tasks(small_scenario: Scenario, tmp_path: Path) -> None:
    groups = [
        {"count": 2, "task": "shape", "modalities": ["acc"]},
        {"count": 2, "task": "size", "modalities": ["gyro"]},
    ]
    tasks = {"shape": {"labels": "class"}, "size": {"kind": "regression", "labels": "amplitude"}}
    run = run_of(small_scenario, tmp_path, clients=groups, tasks=tasks, sharing="full-model")
    for client, names in ((0, ["class 0", "class 1", "class 2"]), (2, ["acc", "gyro"])):
        model = run.model(client)
        assert model.description["outputs"] == names
        recorded = run.clients.filter(round=2, client=client)["loss"][0]
        assert scored(run, tmp_path / str(client), {client: model})[client]["loss"] == recorded
    with pytest.raises(InputError, match="no model of all clients, who have the tasks shape, size; expected a client"):
        run.model()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("fusion", ["shared", "same-task"])
def test_a_client_with_several_tasks(small_scenario: Scenario, tmp_path: Path, fusion: str) -> None:
    tasks = {"shape": {"labels": "class"}, "size": {"kind": "regression", "labels": "amplitude"}}
    groups = [{"count": 2, "task": ["shape", "size"], "modalities": ["acc", "gyro"]}]
    sharing = {"encoder/*": "shared", "fusion": fusion, "head": "private"}
    run = run_of(small_scenario, tmp_path, clients=groups, tasks=tasks, sharing=sharing)
    write_export(run.model(1), tmp_path / "out")
    model = load(tmp_path / "out")
    (tmp_path / "shards").mkdir()
    preparation, batch = prepare(run.scenario, tmp_path / "shards"), run.scenario.evaluation.batch_size
    with preparation.open_shards() as shards, torch.no_grad():
        inputs, labels, _ = shards.shard(1).test()
        values = {name: torch.from_numpy(np.array(given)) for name, given in inputs.items()}
        targets = torch.from_numpy(np.array(labels))
        assert len(targets) <= batch
        found = model(values)
        for part in preparation.plan.learned(preparation.population.profiles[1]).parts:
            loss = part.rules.loss(found[part.name], part.targets_of(targets), reduction="sum").double()
            scored = run.clients.filter(round=2, client=1)[f"{part.name}/loss"][0]
            assert float(loss) / len(labels) == pytest.approx(scored, rel=1e-6)
    samples = {name: (np.ones(len(labels), bool), each.numpy()) for name, each in values.items()}
    header, first, *_ = all_predictions(model.description, outputs(model, samples, batch))
    assert header == [
        "row", "shape/prediction", "shape/class 0", "shape/class 1", "shape/class 2", "size/acc", "size/gyro",
    ]  # fmt: skip
    assert first[5:] == found["size"][0].tolist()
    assert len(first) == len(header)


def test_rounds_are_those_that_the_run_has_kept(small_scenario: Scenario, tmp_path: Path) -> None:
    changes = {"rounds": 3, "checkpoint.every": 1, "checkpoint.keep": 2, "data.validation_fraction": 0.2}
    run = run_of(small_scenario, tmp_path, **changes)
    assert [run.model(0, round_index=number).description["run"]["round"] for number in (2, 3, "last", None)] == [
        2,
        3,
        3,
        3,
    ]
    with pytest.raises(
        RunFolderError, match=r"has no checkpoint of round 1 \(it has those of 2, 3\); expected one: ch"
    ):
        run.model(0, round_index=1)
    with pytest.raises(InputError, match="has no best round, which stop would have found"):
        run.model(0, round_index="best")
    with pytest.raises(RunFolderError, match=r"has no checkpoint of round newest \(it has those of 2, 3\)"):
        run.model(0, round_index="newest")  # type: ignore[arg-type]  # as it is meant
    with pytest.raises(InputError, match="the client is '0'; expected one of 0 to 4"):
        run.model("0")  # type: ignore[arg-type]  # as it is meant
    with pytest.raises(RunFolderError, match=r"has no checkpoint of round 1 \(checkpoint.every is 0\)"):
        run_of(small_scenario, tmp_path, rounds=1, **{"checkpoint.every": 0}).model(0)
    with pytest.raises(InputError, match=r"the run has no folder, and so no checkpoints; expected simulate\("):
        simulate(small_scenario.override({"rounds": 1})).model(0)
    begun = Run.from_records((), small_scenario, tuple(small_scenario.profiles()), {})
    begun.path = tmp_path
    with pytest.raises(RunFolderError, match="has no complete round yet; expected one, with a checkpoint"):
        begun.model(0)


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_stops_gives_its_best_round(small_scenario: Scenario, tmp_path: Path) -> None:
    changes = {"rounds": 6, "stop": {"patience": 1}, "data.validation_fraction": 0.2, "checkpoint.every": 1}
    run = run_of(small_scenario, tmp_path, **changes)
    assert run.stopped is not None
    best = run.stopped.best_round
    assert best is not None
    assert best < run.stopped.round
    model = run.model(4)
    assert model.description["run"]["round"] == best
    assert (
        scored(run, tmp_path / "shards", {4: model})[4]["loss"] == run.clients.filter(round=best, client=4)["loss"][0]
    )
    assert run.model(4, round_index="last").description["run"]["round"] == run.stopped.round


SCENARIO: dict[str, Any] = {
    "rounds": 1,
    "data": {"dataset": "table", "path": "own.parquet", "standardize": True},
    "clients": [{"count": 2, "modalities": ["acc", "body"]}, {"count": 1, "modalities": ["acc"]}],
    "model": {"encoders": {"acc": {"kind": "gru", "dim": 4}, "body": {"kind": "mlp", "dim": 4}}},
    "execution": {"runtime": "local"},
}
# As on a machine without this package.
PREDICT = """
import runpy, sys
sys.modules["blossom_ray"] = None
del sys.argv[0]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_from_a_table_to_predictions_elsewhere(command: Command, tmp_path: Path, warm_processes: None) -> None:
    """Two modalities, one in two plain columns; mean and deviation, classes by name, nulls."""
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 2, 60)
    accel = (labels[:, None, None] * 40 + draw.normal(100, 30, (60, 6, 2))).tolist()
    age, bmi = draw.normal(50, 10, 60).tolist(), draw.normal(25, 3, 60).tolist()
    columns = {"accel": [*accel], "age": [*age], "bmi": [*bmi]}
    pq.write_table(pa.table({**columns, "label": [("sit", "walk")[label] for label in labels]}), "own.parquet")
    sections = {"acc": {"column": "accel"}, "body": {"column": ["age", "bmi"]}}
    run = simulate(Scenario.model_validate(SCENARIO).override({"data.modalities": sections}), out="runs")
    assert run.path is not None
    given = command("export", str(run.path), "--client", "1", "--to", "given")
    assert (given.exit_code, given.err) == (0, "")
    names = {"README.md", "model.json", "model.py", "model.safetensors", "predict.py"}
    assert {path.name for path in Path("given").iterdir()} == names
    columns["accel"][1] = columns["bmi"][2] = columns["accel"][3] = columns["age"][3] = None
    pq.write_table(pa.table(columns), "other.parquet")
    words = [sys.executable, "-c", PREDICT, str(tmp_path / "given" / "predict.py"), "other.parquet"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    header, *found = csv.reader(done.stdout.splitlines())
    assert header == ["row", "prediction", "sit", "walk"]

    Path("own.parquet").rename("moved.parquet")
    refused = command("export", str(run.path), "--client", "1", "--to", "again")
    assert refused.exit_code == 2
    assert refused.err.endswith(
        "\ndata.standardize makes means and deviations of the training rows, which leave with a model\n"
    )
    Path("moved.parquet").rename("own.parquet")

    # What the run's shards hold, brought back to the units of the table, is rows of the table; predictions of these are
    # those of the run's model for the shards.
    model, raw = run.model(1), {"acc": np.array(accel), "body": np.stack([age, bmi], axis=1)}
    with prepare(run.scenario, _new(tmp_path / "shards")).open_shards() as shards:
        inputs = {name: np.array(values) for name, values in shards.shard(1).inputs.items()}
    scales = {name: model.description["modalities"][name]["normalisation"] for name in raw}
    back = {name: inputs[name] * np.array(how["deviation"]) + np.array(how["mean"]) for name, how in scales.items()}
    expected = probabilities(model, inputs)
    for position in range(len(expected)):
        distances = sum(np.abs(raw[name] - back[name][position]).reshape(60, -1).max(axis=1) for name in raw)
        row = int(distances.argmin())
        assert distances[row] < 1e-4
        if row not in (1, 2, 3):
            check(found[row], row, expected[position])
    # Rows that lack one of them, and one that lacks both.
    assert found[3] == ["3", "", "", ""]
    scaled = {name: model.prepared(name, raw[name].astype(np.float32)) for name in raw}
    check(found[1], 1, probabilities(model, {"body": scaled["body"][1:2]})[0])
    check(found[2], 2, probabilities(model, {"acc": scaled["acc"][2:3]})[0])


def probabilities(model: StandaloneModel, inputs: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return model({name: torch.from_numpy(values) for name, values in inputs.items()}).softmax(dim=1).numpy()


def check(found: list[str], row: int, expected: np.ndarray) -> None:
    assert found[:2] == [str(row), ("sit", "walk")[int(expected.argmax())]]
    np.testing.assert_allclose([float(each) for each in found[2:]], expected, rtol=1e-5)


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_table_is_read_as_the_runs_read_it(tmp_path: Path) -> None:
    """Lists in lists, tensors in another order of dimensions, whole numbers, truth values, decimals, an archive."""
    draw = np.random.default_rng(2)
    cubes = draw.normal(size=(5, 4, 3, 2))
    tensor = pa.fixed_shape_tensor(pa.float64(), [2, 3, 4], permutation=[2, 1, 0])
    stored = pa.array(cubes.transpose(0, 3, 2, 1).reshape(5, 24).tolist(), pa.list_(pa.float64(), 24))
    columns = {
        "cube": pa.ExtensionArray.from_storage(tensor, stored),
        "lists": pa.array(cubes.tolist()),
        "fixed": pa.array(cubes[:, 0, 0].tolist(), pa.list_(pa.float64(), 2)),
        "flat": pa.array(cubes.reshape(5, 24).tolist(), pa.large_list(pa.float32())),
        "number": pa.array([3, 1, 4, 1, 5], pa.int8()),
        "truth": pa.array([True, False, True, True, False]),
        "decimal": pa.array([Decimal("1.25"), Decimal("-2.5"), Decimal(0), Decimal(7), Decimal("0.1")]),
    }
    sections = {"flat": {"shape": [4, 3, 2]}, "plain": {"column": ["number", "decimal"]}}
    names = ("cube", "lists", "fixed", "flat", "truth", "plain")
    pq.write_table(pa.table({**columns, "label": ["a", "b"] * 2 + ["a"]}), tmp_path / "own.parquet")
    section = TableData(dataset="table", path=str(tmp_path / "own.parquet"), modalities=sections)
    inputs = section.open(names, 0, "classification").load().inputs
    told = {
        "modalities": {
            name: {"columns": sections.get(name, {}).get("column", [name]), "nan": "refuse"} for name in names
        },
        "input_shapes": {name: list(values.shape[1:]) for name, values in inputs.items()},
    }
    feather.write_feather(pa.table(columns), tmp_path / "arrow.parquet")  # told by its content
    np.savez(tmp_path / "own.npz", **inputs)
    for path in ("own.parquet", "arrow.parquet", "own.npz"):
        for name, (present, values) in read_samples(tmp_path / path, told).items():
            assert present.all()
            assert values.tobytes() == inputs[name].tobytes(), (path, name)


def test_numbers_of_tokens_are_read_from_a_table(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 9, (20, 4))
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"said": [*tokens.tolist()[:-1], None], "label": ["a", "b"] * 10}), path)
    scenario = Scenario.model_validate(
        {
            "rounds": 1,
            "data": {"dataset": "table", "path": str(path), "without_modality": "leave-out"},
            "clients": [{"count": 2, "modalities": ["said"]}],
            "model": {"encoders": {"said": {"kind": "embedding", "vocabulary": 9}}},
            "execution": {"runtime": "local"},
        }
    )
    model = simulate(scenario, out=tmp_path / "runs").model(0)
    write_export(model, tmp_path / "given")
    found = outputs(load(tmp_path / "given"), read_samples(path, model.description), 8)[""]
    with torch.no_grad():
        expected = model({"said": torch.from_numpy(tokens[:-1]).float()})
        np.testing.assert_allclose(found[:-1], expected, rtol=1e-5, atol=1e-6)
    assert np.isnan(found[-1]).all()
    pq.write_table(pa.table({"said": (tokens + 1).tolist()}), path)
    with pytest.raises(ValueError, match="said has the token 9, while vocabulary is 9; expected at least 10"):
        outputs(model, read_samples(path, model.description), 8)


def test_what_cannot_be_predicted_is_said(tmp_path: Path) -> None:
    told: dict[str, Any] = {"modalities": {"acc": {"columns": ["acc"], "nan": "refuse"}}, "input_shapes": {"acc": [2]}}
    for values, message in (
        ({"gyro": [[1.0, 2.0]]}, "has none of the modalities acc"),
        ({"acc": [[1.0, 2.0, 3.0]]}, "acc has 3 values in a row; expected 2, of shape"),
        ({"acc": [[1.0, 2.0], [1.0, float("inf")]]}, "acc, row 1: a value is not finite"),
    ):
        pq.write_table(pa.table(values), tmp_path / "own.parquet")
        with pytest.raises(ValueError, match=message):
            read_samples(tmp_path / "own.parquet", told)
    torn = {"acc": [[1.0, 2.0], [1.0, None], [float("nan"), 2.0], None]}
    pq.write_table(pa.table(torn), tmp_path / "own.parquet")
    with pytest.raises(ValueError, match="acc, row 1: a value is not finite"):
        read_samples(tmp_path / "own.parquet", told)
    told["modalities"]["acc"]["nan"] = "unobserved"
    present, values = read_samples(tmp_path / "own.parquet", told)["acc"]
    assert present.tolist() == [True, False, False, False]
    assert values.tolist() == [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    np.savez(tmp_path / "own.npz", acc=np.array([[1.0, 2.0], [np.nan, np.nan]], np.float32))
    samples = read_samples(tmp_path / "own.npz", told)
    assert samples["acc"][0].tolist() == [True, False]
    model = StandaloneModel({"modalities": ["acc"], "blocks": {}, "outputs": []})
    with pytest.raises(ValueError, match="no row has any of acc"):
        outputs(model, {"acc": (np.zeros(2, np.bool_), samples["acc"][1])}, 2)


def test_predictions_of_each_task() -> None:
    values = np.array([[1.0, 3.0, -1.0]], np.float32)
    names = ["a", "b", "c"]
    both = np.concatenate([values, np.full((1, 3), np.nan, np.float32)])
    found = [*predictions({"task": "regression", "outputs": names}, both)]
    assert found == [["row", *names], [0, 1.0, 3.0, -1.0], [1, "", "", ""]]
    header, row = predictions({"task": "multilabel", "outputs": names}, values)
    assert header == ["row", "prediction", *names]
    assert row[:2] == [0, "a b"]
    np.testing.assert_allclose(row[2:], 1 / (1 + np.exp(-values[0])), rtol=1e-6)
    _, row = predictions({"task": "classification", "outputs": names}, values)
    assert row[:2] == [0, "b"]
    np.testing.assert_allclose(row[2:], np.exp(values[0]) / np.exp(values[0]).sum(), rtol=1e-6)


def test_what_was_decoded_is_given_as_arrays(tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    labels = draw.integers(0, 2, 40)
    captions = [" ".join(["a", ("cat", "dog")[label], *["very"] * (row % 3)]) for row, label in enumerate(labels)]
    columns = {"caption": captions, "age": draw.normal(40, 9, 40), "label": labels}
    pq.write_table(pa.table(columns), tmp_path / "own.parquet")
    scenario = Scenario.model_validate(SCENARIO).override(
        {
            "data": {
                "dataset": "table",
                "path": str(tmp_path / "own.parquet"),
                "modalities": {"caption": {"kind": "text", "max_length": 4}, "age": {"scale": "minmax"}},
            },
            "clients": [{"count": 2, "modalities": ["caption", "age"]}],
            "model.encoders": {"caption": {"kind": "embedding", "dim": 4}, "age": {"kind": "mlp", "dim": 4}},
        }
    )
    run = simulate(scenario.override({"data.standardize": False}), out=tmp_path / "runs")
    model = run.model(1)
    told = model.description
    assert told["modalities"]["caption"]["decoding"]["max_length"] == 4
    with pytest.raises(ValueError, match="caption is decoded as text, which this code does not do"):
        read_samples(tmp_path / "own.parquet", told)
    with prepare(run.scenario, _new(tmp_path / "shards")).open_shards() as shards:
        inputs = {name: np.array(values) for name, values in shards.shard(1).inputs.items()}
    raw = {**inputs, "age": inputs["age"] * told["modalities"]["age"]["normalisation"]["range"][0]}
    raw["age"] += told["modalities"]["age"]["normalisation"]["low"][0]
    np.savez(tmp_path / "own.npz", **raw)
    found = outputs(model, read_samples(tmp_path / "own.npz", told), batch_size=8)[""]
    expected = model({name: torch.from_numpy(values) for name, values in inputs.items()}).detach()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_commands_that_cannot_be_obeyed(command: Command, small_scenario: Scenario, tmp_path: Path) -> None:
    run = str(run_of(small_scenario, tmp_path, rounds=1, sharing="full-model").path)
    for words, message in (
        ([], "--client and --global are not given; expected one of the two"),
        (["--client", "1", "--global"], "--client and --global are both given; expected one of the two"),
        (["--global", "--round", "first"], "--round is 'first'; expected best, last or a round"),
        (["--global", "--to", "runs"], "runs: exists, and is no empty folder; expected a new one"),
    ):
        refused = command("export", run, "--to", "given", *words)
        assert (refused.exit_code, refused.err) == (2, f"error: {message}\n")
    taken = command("export", run, "--to", "deep/given", "--global", "--round", "1", "--json")
    assert taken.exit_code == 0
    assert json.loads(taken.out)["files"][0] == "deep/given/README.md"
    assert load("deep/given").description["run"]["round"] == 1


def test_own_code_is_named(small_scenario: Scenario, tmp_path: Path) -> None:
    head = {"kind": "custom", "factory": "torch.nn:Linear"}
    run = run_of(small_scenario, tmp_path, rounds=1, **{"model.head": head})
    model = run.model(0)
    assert model.description["blocks"]["head"] == {"factory": "torch.nn:Linear", "arguments": [8, 3], "options": {}}
    write_export(model, tmp_path / "given")
    assert (
        "own code, which is not here and must be importable: torch.nn:Linear"
        in (tmp_path / "given" / "README.md").read_text()
    )
    assert torch.equal(load(tmp_path / "given").blocks["head"].weight, model.blocks["head"].weight)
    told = (tmp_path / "given" / "model.json").read_text().replace("torch.nn:Linear", "own_module:Head")
    (tmp_path / "given" / "model.json").write_text(told)
    with pytest.raises(ImportError, match="own_module:Head is own code of the model, and not at hand: No module named"):
        load(tmp_path / "given")


def test_what_is_given_away_imports_nothing_of_this_package(small_scenario: Scenario, tmp_path: Path) -> None:
    write_export(run_of(small_scenario, tmp_path, rounds=1).model(0), tmp_path / "given")
    for name in ("model.py", "predict.py"):
        tree = ast.parse((tmp_path / "given" / name).read_text(encoding="utf-8"))
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        tops = {str(module).partition(".")[0] for module in modules}
        assert tops - set(sys.stdlib_module_names) <= {"torch", "numpy", "safetensors", "pyarrow", "model"}
