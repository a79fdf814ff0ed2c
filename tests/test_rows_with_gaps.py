"""Runs on data whose rows lack modalities: what stands there counts for nothing; what is observed is counted."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import REPOSITORY, Command
from downloads import DOWNLOADS

from blossom_ray import Run, Scenario, simulate
from blossom_ray.core.records import RoundRecord
from blossom_ray.data.shard_files import read_rows
from blossom_ray.reading.inspection import Inspector
from blossom_ray.runtime.local import LocalRuntime
from blossom_ray.runtime.preparation import Preparation, prepare
from blossom_ray.server import initial_server
from blossom_ray.simulation import run_rounds
from blossom_ray.studies.reports.federation import federation_section

pytestmark = pytest.mark.usefixtures("one_thread")

ENGINES = ["sequential", "vectorized"]


@pytest.fixture
def scenario(small_scenario: Scenario) -> Scenario:
    """Two clients with acc, one with gyro, two with both; everything that reads samples, in two rounds."""
    return small_scenario.override(
        {
            "data.validation_fraction": 0.2,
            "data.without_modality": "leave-out",
            "sharing": "full-model",
            "model.head": {"kind": "mlp", "hidden": [8], "norm": "batch"},
            "training.optimizer": {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1},
            "evaluation": {"held_out": "every", "fine_tune": {"every": 1}},
        }
    )


def tables(run: Run) -> dict[str, pl.DataFrame]:
    frames = {"rounds": run.rounds, "clients": run.clients, "blocks": run.blocks}
    return {name: frame.select(pl.exclude("^.*seconds.*$")) for name, frame in frames.items()}


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_observed_in_all_rows_is_the_run_without_the_key(scenario: Scenario, engine: str) -> None:
    plain = simulate(scenario.override({"training.engine": engine}))
    whole = {"train": 1.0, "validation": 1.0, "test": 1, "held_out": 1.0}
    changes: dict[str, Any] = {"data.observed": {"acc": 1.0, "gyro": whole}, "clients.2.observed": {"gyro": 1.0}}
    same = simulate(scenario.override({"training.engine": engine, **changes}))
    assert same.manifest["digest"] == plain.manifest["digest"]
    assert same.manifest["data"] == plain.manifest["data"]
    assert "observation" not in plain.manifest["data"]
    for name, frame in tables(plain).items():
        assert frame.equals(tables(same)[name]), name


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "scenarios" / "sparse").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_scenarios_that_ship_say_what_is_observed(path: Path, uci_har_zip: Path, tmp_path: Path) -> None:
    modality, *expected, tolerance = {
        "uci-har": ("gyro", 80, 80, 3),
        "uci-har-fails-later": ("gyro", 90, 50, 3),  # of some thousand rows
        "ptb-xl": ("v1_to_v6", 46, 46, 8),  # of 180: 3 clients of 0.9, 3 of 0.5, 4 of 0.1
    }[path.stem]
    changes: dict[str, Any] = {"data.path": str(uci_har_zip)}
    if path.stem == "ptb-xl":
        changes = {"data.path": str(DOWNLOADS["ptb-xl"](tmp_path)), "data.partition": {"kind": "iid"}}
    inspector = Inspector()
    checked = inspector.read(path, changes, {})
    (told,) = [note for note in inspector.notes(checked) if note.startswith(f"{modality} is observed in")]
    train, test = (float(share) for share in re.findall(r"(\d+\.\d) %", told))
    assert (train, test) == pytest.approx(expected, abs=tolerance)


def poison(preparation: Preparation, value: float) -> int:
    """Fill what clients do not observe, behind all readers; how many rows were filled."""
    index, number = preparation.shards, 0
    for client in range(len(index.num_train)):
        with preparation.open_shards() as shards:
            held_out = shards.held_out(client)
            assert held_out is not None
            for name, has in shards.shard(client).observed.items():
                number += _fill(index.folder / f"input-{name}.rows", int(index.inputs[name][client]), ~has, value)
            for name, has in held_out.observed.items():
                number += _fill(index.folder / f"held-out/{index.views[client]}/input-{name}.rows", 0, ~has, value)
    return number


def _fill(path: Path, first: int, rows: np.ndarray, value: float) -> int:
    content = path.read_bytes()
    path.unlink()  # the old one is mapped still
    path.write_bytes(content)
    values, _ = read_rows(np.memmap(path, np.uint8, "r+"), path.name)
    values[first : first + len(rows)][rows] = value
    return int(rows.sum())


def results(preparation: Preparation) -> tuple[str, list[RoundRecord]]:
    runtime = LocalRuntime(preparation)
    try:
        server = initial_server(
            preparation.plan, preparation.profiles_on_server(), preparation.scenario.server.optimizer
        )
        records = []
        for record, after in run_rounds(preparation, runtime, server):
            records.append(record)
            server = after
        return server.digest() + str(sorted(runtime.describe().private_digests.items())), records
    finally:
        runtime.close()


COMPUTED = [
    *({"training.engine": engine, "model.missing": rule} for engine, rule in
      product(ENGINES, ("mask", "zero-embedding", "zero-input"))),
    {"model.missing": "prototype", "server.weighting": "entropy"},
    {"sharing": "central"},
]  # fmt: skip


@pytest.mark.parametrize("changes", COMPUTED, ids=lambda changes: " ".join(changes.values()))
def test_what_stands_in_unobserved_rows_counts_for_nothing(
    scenario: Scenario, changes: dict[str, Any], tmp_path: Path
) -> None:
    changes = {**changes, "data.observed": {"acc": {"train": 0.7, "test": 0.5, "held_out": 0.5}, "gyro": 0.6}}
    preparation = prepare(scenario.override(changes), tmp_path / "shards")
    digest, records = results(preparation)
    for value in (np.nan, 1e30):
        assert poison(preparation, value) == 44
        again, others = results(preparation)
        assert again == digest
        for record, other in zip(records, others, strict=True):
            assert other.metrics == pytest.approx(record.metrics, rel=0, abs=0, nan_ok=True)
            assert [each.scores for each in other.evaluation] == [each.scores for each in record.evaluation]


def test_what_is_observed_and_left_out_is_counted_in_manifest_and_notes(scenario: Scenario) -> None:
    shares = {"gyro": {"train": 0.8, "test": 0.5, "held_out": 0.5}}
    half = simulate(scenario.override({"data.observed": shares}))
    data = half.manifest["data"]
    train, test, held_out = (data["observed"]["gyro"][split] for split in ("train", "test", "held_out"))
    last = half.clients.filter(pl.col("round") == 2).sort("client")
    owners = last.filter(pl.col("modalities") == "acc+gyro")
    # The one client that owns gyro alone has fewer rows and no gaps.
    alone = last.filter(pl.col("modalities") == "gyro")
    assert train["rows"] == owners["num_train_examples"].sum() + alone["num_train_examples"].sum()
    assert train["by_client"][2] == alone["num_train_examples"][0]
    assert train["observed"] == sum(train["by_client"]) < train["rows"]
    assert list(test["by_client"][:2]) == [0, 0]
    assert 0 < test["observed"] < test["rows"]
    assert held_out["by_client"][3] == held_out["by_client"][4] < 30
    (paragraph,) = federation_section([half]).text
    assert f". gyro is observed in {100 * train['observed'] / train['rows']:.1f} % of train rows, " in paragraph
    left = {entry["what"]: entry["count"] for entry in data["left_out"]}
    assert set(left) == {f"{split} rows in which their client observes no modality (data.without_modality)"
                         for split in ("train", "validation", "test")}  # fmt: skip
    assert any("test rows in which their client observes no modality" in note for note in half.manifest["notes"])
    more = simulate(scenario.override({"data.observed": {"gyro": {**shares["gyro"], "test": 0.9}}}))
    assert more.manifest["data"]["partition"] == data["partition"]
    assert more.manifest["data"]["observation"] != data["observation"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_table_with_nulls_trains_and_shows_its_gaps(command: Command, tmp_path: Path, engine: str) -> None:
    draw = np.random.default_rng(0)
    rows = [
        {"client": f"p{row % 4}", "label": row // 4 % 2, "acc": (draw.normal(size=3) + row // 4 % 2).tolist(),
         "gyro": None if row % 3 == 0 or row % 4 == 3 else (draw.normal(size=2) - row // 4 % 2).tolist()}
        for row in range(120)
    ]  # fmt: skip
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(tmp_path / "rows.parquet")
    told = command("init", "--dataset", "table", "--path", "rows.parquet")
    assert "client: 4 clients, 1 with acc, 3 with acc+gyro" in told.out
    changes = [f"--set={change}" for change in (
        f"training.engine={engine}", "rounds=1", "execution.runtime=local", "data.standardize=true",
    )]  # fmt: skip
    assert "without_modality: leave-out" in (tmp_path / "scenario.yaml").read_text(encoding="utf-8")
    checked = command("validate", "scenario.yaml", *changes)
    assert re.search(r"note: gyro is observed in \d+\.\d % of \d+ train rows, ", checked.out + checked.err)
    shown = command("data", "inspect", "scenario.yaml", *changes).out
    assert "gyro train" in shown
    told = json.loads(command("data", "inspect", "scenario.yaml", *changes, "--json").out)
    assert told["modalities"]["gyro"]["num_observed"] == 60
    finished = command("simulate", "scenario.yaml", *changes, "--out", "runs")
    assert (finished.exit_code, finished.err) == (0, "")
    assert re.search(r"gyro is observed in \d+\.\d % of \d+ train rows, \d+\.\d % of \d+ test rows\n", finished.out)
    gaps = next((tmp_path / "runs" / "scenario").iterdir())
    counts = Run.open(gaps).manifest["data"]["observed"]["gyro"]
    assert sum(one["rows"] for one in counts.values()) == 90
    assert sum(one["observed"] for one in counts.values()) == 60
