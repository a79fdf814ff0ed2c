"""Models taken out of runs: scores are those of the run, folders need no blossom-ray, refusals are one line."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Command

from blossom_ray import Run, Scenario, simulate
from blossom_ray.errors import InputError, RunFolderError
from blossom_ray.models.predict import read_samples
from blossom_ray.models.standalone import StandaloneModel
from blossom_ray.runs.exporting import write_export
from blossom_ray.runtime.preparation import prepare
from blossom_ray.tasks import task_rules

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
    "ifca": {"algorithm": {"kind": "ifca"}, "sharing": "full-model"},
    "low-rank": {"algorithm": {"kind": "low-rank"}, "sharing": "full-model"},
    "fedmsplit": {"algorithm": {"kind": "fedmsplit"}, "sharing": "full-model"},
    "central": {"sharing": "central"},
    "bfloat16": {"training.precision": "bfloat16"},
    "small batches": {"evaluation.batch_size": 3},
}


def run_of(scenario: Scenario, tmp_path: Path, **changes: Any) -> Run:
    return simulate(scenario.override(changes), out=tmp_path / "runs")


def scored(model: StandaloneModel, run: Run, client: int, folder: Path) -> dict[str, float | None]:
    """Scores and loss of a client's model on its test split, computed here."""
    folder.mkdir()
    scenario = run.scenario
    rules, batch = task_rules(scenario.task), scenario.evaluation.batch_size
    with prepare(scenario, folder).open_shards() as shards, torch.no_grad():
        inputs, labels, _ = shards.shard(client).test()
        values = {name: torch.from_numpy(np.array(given)) for name, given in inputs.items()}
        targets, loss, found = torch.from_numpy(np.array(labels)), torch.zeros((), dtype=torch.float64), []
        for start in range(0, len(targets), batch):
            rows = slice(start, start + batch)
            found.append(model({name: given[rows] for name, given in values.items()}))
            loss += rules.loss(found[-1], targets[rows], reduction="sum")
        tally = rules.tally(labels, rules.predict(torch.cat(found)).numpy(), len(model.description["outputs"]))
    return {"loss": float(loss) / len(labels), **rules.scores(tally)}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("changes", SEQUENTIAL.values(), ids=SEQUENTIAL)
def test_scores_are_those_of_the_run_to_the_bit(small_scenario: Scenario, tmp_path: Path, changes: Any) -> None:
    run = run_of(small_scenario, tmp_path, **changes)
    last = run.clients.filter(round=2)
    for client in range(0, 5, 2):  # one of each modality set
        model = run.model(client)
        (recorded,) = last.filter(client=client).to_dicts()
        found = scored(model, run, client, tmp_path / str(client))
        assert found == {name: recorded[name] for name in found}
        assert model.description["run"]["engine"] == "sequential"
        assert model.description["run"]["rounds_trained"] == recorded["rounds_trained"]


@pytest.mark.usefixtures("one_thread")
def test_stacked_runs_agree_within_rounding(small_scenario: Scenario, tmp_path: Path) -> None:
    run = run_of(small_scenario, tmp_path, **{"training.engine": "vectorized", "execution.chunk_size": 32})
    model = run.model(1)
    assert model.description["run"]["engine"] == "vectorized"
    found = scored(model, run, 1, tmp_path / "1")
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
    assert scored(run.model(), run, 4, tmp_path / "all")["loss"] == plain
    torch.set_num_threads(with_one_thread)


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
    with pytest.raises(RunFolderError, match=r"has no checkpoint of round 1 \(checkpoint.every is 0\)"):
        run_of(small_scenario, tmp_path, rounds=1, **{"checkpoint.every": 0}).model(0)
    with pytest.raises(InputError, match=r"the run has no folder, and so no checkpoints; expected simulate\("):
        simulate(small_scenario.override({"rounds": 1})).model(0)


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
    assert scored(model, run, 4, tmp_path / "4")["loss"] == run.clients.filter(round=best, client=4)["loss"][0]
    assert run.model(4, round_index="last").description["run"]["round"] == run.stopped.round


def table(path: Path) -> dict[str, Any]:
    """A table with two modalities, one of two plain columns, classes by name and a null; and the scenario's `data`."""
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 2, 60)
    accel = labels[:, None, None] * 40.0 + draw.normal(100, 30, (60, 6, 2))
    columns = {
        "accel": pa.array(accel.tolist(), pa.list_(pa.list_(pa.float64()))),
        "age": pa.array(draw.normal(50, 10, 60)),
        "bmi": pa.array(draw.normal(25, 3, 60)),
        "label": pa.array([("sit", "walk")[label] for label in labels]),
    }
    pq.write_table(pa.table(columns), path)
    sections = {"acc": {"column": "accel"}, "body": {"column": ["age", "bmi"]}}
    return {"dataset": "table", "path": str(path), "modalities": sections, "standardize": True}


SCENARIO: dict[str, Any] = {
    "rounds": 2,
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
    data = table(tmp_path / "own.parquet")
    run = simulate(Scenario.model_validate({**SCENARIO, "data": data}), out=tmp_path / "runs")
    assert run.path is not None
    given = command("export", str(run.path), "--client", "1", "--to", "given")
    assert given.exit_code == 0, given.err
    folder = tmp_path / "given"
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "model.json", "model.py", "model.safetensors", "predict.py",
    }  # fmt: skip
    rows = pq.read_table(tmp_path / "own.parquet").drop(["label"]).to_pydict()
    rows["accel"][1], rows["bmi"][2] = None, None
    other = pa.table({**rows, "accel": pa.array(rows["accel"], pa.list_(pa.list_(pa.float64())))})
    pq.write_table(other, tmp_path / "other.parquet")
    (folder.parent / "elsewhere").mkdir()
    words = [sys.executable, "-c", PREDICT, str(folder / "predict.py"), str(tmp_path / "other.parquet")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    header, *found = csv.reader(done.stdout.splitlines())
    assert header == ["row", "prediction", "sit", "walk"]

    # By hand: mean and deviation of the training rows of all clients that own it, and no `predict.py`.
    with prepare(run.scenario, _new(tmp_path / "shards")).open_shards() as shards:
        own, raw = shards.shard(1).test()[0], {"acc": np.array(rows["accel"][:1]), "body": None}
    model = run.model(1)
    samples = read_samples(tmp_path / "other.parquet", model.description)
    assert samples["acc"][0].tolist() == [row != 1 for row in range(60)]
    assert samples["body"][0].tolist() == [row != 2 for row in range(60)]
    prepared = {name: torch.from_numpy(model.prepared(name, values)) for name, (_, values) in samples.items()}
    assert any(torch.equal(prepared["acc"][row], torch.from_numpy(own["acc"][0].copy())) for row in range(60)), raw
    with torch.no_grad():
        whole = [row for row in range(60) if row not in (1, 2)]
        expected = dict(zip(whole, model({n: v[whole] for n, v in prepared.items()}), strict=True))
        expected[1] = model({"body": prepared["body"][1:2]})[0]
        expected[2] = model({"acc": prepared["acc"][2:3]})[0]
    for row, (number, name, *probabilities) in enumerate(found):
        assert int(number) == row
        own_row = expected[row].softmax(dim=0)
        np.testing.assert_allclose([float(each) for each in probabilities], own_row.numpy(), rtol=1e-6)
        assert name == ("sit", "walk")[int(own_row.argmax())]


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder
