"""What a whole run reports, checked against what must be true of it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from data_sets import open_source

from blossom_ray import Dataset, Run, Scenario, simulate
from blossom_ray.data.targets import Pieces


def run(scenario: Scenario, **changes: Any) -> Run:
    return simulate(scenario.override({name.replace("__", "."): value for name, value in changes.items()}))


def test_round_zero_is_the_untrained_model(small_scenario: Scenario) -> None:
    rounds = run(small_scenario).rounds
    assert rounds["round"].to_list() == [0, 1, 2]
    assert rounds["num_clients"].to_list() == [0, 5, 5]
    assert rounds["learning_rate"].to_list() == [None, 0.05, 0.05]
    assert rounds["train_loss"].is_null().to_list() == [True, False, False]


def test_summaries_follow_from_the_clients_table(small_scenario: Scenario) -> None:
    result = run(small_scenario)
    last = result.clients.filter(pl.col("round") == 2)
    weights = last["num_test_examples"].to_numpy()
    row = result.rounds.row(2, named=True)
    assert row["accuracy"] == pytest.approx(np.average(last["accuracy"].to_numpy(), weights=weights))
    assert row["accuracy_pooled"] == pytest.approx(row["accuracy"])
    assert row["macro_f1_all_p50"] == pytest.approx(np.percentile(last["macro_f1_all"].to_numpy(), 50))
    both = last.filter(pl.col("modalities") == "acc+gyro")
    expected = np.average(both["loss"].to_numpy(), weights=both["num_test_examples"].to_numpy())
    assert row["loss/acc+gyro"] == pytest.approx(expected)
    examples = last["num_train_examples"].to_numpy()
    assert row["train_loss"] == pytest.approx(np.average(last["train_loss"].to_numpy(), weights=examples))


def test_bytes_add_up_and_private_blocks_cost_nothing(small_scenario: Scenario) -> None:
    result = run(small_scenario, sharing="private-head-fusion")
    parameters = result.manifest["parameters"]
    blocks = result.blocks.filter(pl.col("round") == 1)
    # acc is owned by four of five clients, gyro by three; each float32 value is four bytes.
    for name, owners in (("encoder/acc", 4), ("encoder/gyro", 3)):
        row = blocks.row(by_predicate=pl.col("block") == name, named=True)
        assert row["bytes_up"] == row["bytes_down"] == 4 * owners * parameters[name]
        assert row["contributors"] == owners
    private = blocks.filter(pl.col("scope") == "private")
    assert private["block"].to_list() == ["fusion", "head"]
    assert private["bytes_up"].sum() == private["bytes_down"].sum() == 0
    assert private["contributors"].to_list() == [5, 5]
    assert (private["client_drift"] > 0).all()
    rounds = result.rounds.row(1, named=True)
    assert (
        rounds["bytes_up"] == blocks["bytes_up"].sum() == result.clients.filter(pl.col("round") == 1)["bytes_up"].sum()
    )


def test_one_client_that_shares_everything_trains_as_one_that_shares_nothing(small_scenario: Scenario) -> None:
    alone: dict[str, Any] = {"clients": [{"count": 1, "modalities": ["acc", "gyro"]}]}
    shared = run(small_scenario, sharing="full-model", **alone)
    local = run(small_scenario, sharing="local", **alone)
    # n x / n may differ from x in the last bit of a float64, which float32 does not see.
    for metric in ("loss", "accuracy", "train_loss"):
        assert shared.rounds[metric].to_list()[1:] == pytest.approx(local.rounds[metric].to_list()[1:], rel=1e-5)


def test_a_block_that_nobody_trained_keeps_its_value_and_says_so(small_scenario: Scenario) -> None:
    # One client a round: in some round nobody of the gyroscope's owners trains.
    result = run(small_scenario, rounds=8, server__clients_per_round=1, sharing="full-model")
    gyro = result.blocks.filter((pl.col("block") == "encoder/gyro") & (pl.col("round") > 0))
    idle = gyro.filter(pl.col("contributors") == 0)
    assert 0 < idle.height < gyro.height
    assert idle["update_norm"].to_list() == [0.0] * idle.height
    assert idle["client_drift"].is_null().all()
    assert idle["bytes_up"].sum() == 0
    assert (gyro.filter(pl.col("contributors") > 0)["update_norm"] > 0).all()


def test_all_schemes_of_one_seed_meet_the_same_federation(small_scenario: Scenario) -> None:
    runs = [run(small_scenario, sharing=scheme) for scheme in ("full-model", "private-head-fusion", "local")]
    columns = ["client", "modalities", "num_test_examples", "loss", "accuracy"]
    first, *others = [result.clients.filter(pl.col("round") == 0)[columns] for result in runs]
    for other in others:
        assert other.equals(first)
    assert len({result.manifest["data"]["fingerprint"] for result in runs}) == 1


def test_scopes_decide_how_many_copies_there_are(small_scenario: Scenario) -> None:
    scheme = {"encoder/*": "shared", "fusion": "same-modalities", "head": "group"}
    groups = {"clients__0__group": "a", "clients__1__group": "a", "clients__2__group": "b"}
    result = run(small_scenario, sharing=scheme, **groups)
    keys = result.blocks.filter(pl.col("round") == 1).select("block", "key", "contributors").rows()
    assert keys == [
        ("encoder/acc", "", 4),
        ("encoder/gyro", "", 3),
        ("fusion", "acc", 2),
        ("fusion", "acc+gyro", 2),
        ("fusion", "gyro", 1),
        ("head", "a", 3),
        ("head", "b", 2),
    ]


def test_evaluation_follows_its_section(small_scenario: Scenario) -> None:
    result = run(small_scenario, rounds=5, evaluation__every=2, evaluation__clients=0.4)
    assert result.rounds["num_evaluated"].to_list() == [2, 0, 2, 0, 2, 2]
    assert result.rounds["held_out/accuracy/acc"].is_not_null().to_list() == [False] * 5 + [True]
    never = run(small_scenario, evaluation__held_out="never")
    assert not [name for name in never.rounds.columns if name.startswith("held_out")]


@pytest.mark.parametrize("kind", ["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_every_server_optimizer_runs(small_scenario: Scenario, kind: str) -> None:
    result = run(small_scenario, server__optimizer={"kind": kind})
    assert result.rounds["loss"].is_finite().all()
    assert (result.blocks.filter(pl.col("contributors") > 0)["update_norm"][:2] > 0).all()


def test_learning_is_possible(small_scenario: Scenario) -> None:
    result = run(small_scenario, rounds=15, data__samples=600)
    assert result.final["accuracy"] > 0.8 > result.rounds["accuracy"][0]


BATCH_NORM: dict[str, Any] = {"model.head": {"kind": "mlp", "hidden": [8], "norm": "batch"}}
ONE_SET = [{"count": 2, "modalities": ["acc", "gyro"]}]


@pytest.mark.parametrize(
    ("changes", "blocks"),
    [
        (BATCH_NORM | {"sharing": "full-model"}, ["head"]),
        (BATCH_NORM | {"sharing": "full-model", "model.norm_statistics": "local"}, []),
        (BATCH_NORM | {"sharing": "full-model", "model.norm_statistics": "same-modalities"}, []),
        ({"sharing": "private-head", "model.fusion": {"kind": "mean", "dim": 8, "norm": "batch"}}, ["fusion"]),
        ({"sharing": "full-model", "model.fusion": {"kind": "mean", "dim": 8, "norm": "layer"}}, []),
        (BATCH_NORM | {"sharing": "private-head"}, []),
        (BATCH_NORM | {"sharing": {"encoder/*": "shared", "fusion": "shared", "head": "same-modalities"}}, []),
        (BATCH_NORM | {"sharing": "full-model", "clients": ONE_SET}, []),
        (BATCH_NORM | {"sharing": "central"}, []),
        ({"sharing": "full-model"}, []),
    ],
)
def test_a_run_notes_where_statistics_of_different_modality_sets_are_averaged(
    small_scenario: Scenario, changes: dict[str, Any], blocks: list[str]
) -> None:
    notes = simulate(small_scenario.override(changes)).manifest["notes"]
    assert [note.partition(":")[0] for note in notes] == blocks
    assert all("model.norm_statistics: same-modalities averages them within each modality set" in n for n in notes)


def test_a_run_notes_how_many_test_windows_overlap_training_windows() -> None:
    """One recording of eight windows, of which two are tested with; and four recordings of two, split by recording."""
    values = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    tree = {
        "rounds": 1,
        "data": {"dataset": "custom"},
        "clients": [{"count": 1, "modalities": ["acc"]}],
        "model": {"encoders": {"acc": {"kind": "mlp"}}},
        "execution": {"runtime": "local"},
    }
    scenario = Scenario.model_validate(tree)
    labels, names = np.arange(8) % 2, ("no", "yes")
    one = Dataset({"acc": values}, labels, names, pieces=Pieces(np.zeros(8, np.int64), 0.5))
    (note,) = simulate(scenario, data=one).manifest["notes"]
    assert note.startswith("100 % of test windows have half of their steps in common with a training window")
    several = Dataset({"acc": values}, labels, names, pieces=Pieces(np.arange(8) // 2, 0.5))
    assert simulate(scenario.override({"data.split": "recording"}), data=several).manifest["notes"] == []


def test_a_data_set_that_is_given_keeps_its_pieces_in_the_run_folder(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    tree = {
        "rounds": 1,
        "data": {"dataset": "custom", "split": "recording"},
        "clients": [{"count": 1, "modalities": ["acc"]}],
        "model": {"encoders": {"acc": {"kind": "mlp"}}},
        "execution": {"runtime": "local"},
    }
    scenario, labels, rows = Scenario.model_validate(tree), np.arange(12) % 2, np.arange(12)
    for pieces in (Pieces(rows // 3, 0.5), Pieces(rows // 2, 0.5), Pieces(rows // 2)):
        part = Dataset({"acc": values}, labels, ("no", "yes"), pieces=Pieces(rows, 0.5))
        data = Dataset({"acc": values}, labels, ("no", "yes"), held_out=part, pieces=pieces)
        run = simulate(scenario, data=data, out=tmp_path)
        assert run.manifest["data"] == simulate(scenario, data=data).manifest["data"]
        read = open_source(run.scenario.data, ("acc",), 0, "classification").load()
        for found, expected in ((read, data), (read.held_out, part)):
            assert found is not None
            assert found.pieces is not None
            assert expected.pieces is not None
            assert found.pieces.recordings.tolist() == expected.pieces.recordings.tolist()
            # One file has one overlap.
            assert found.pieces.overlap == pieces.overlap


@pytest.mark.parametrize("runtime", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_own_data_are_built_once_for_a_run(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data_of_a_run.py").write_text(
        "import numpy as np\n"
        "from blossom_ray import from_arrays\n"
        "def build(log):\n"
        "    with open(log, 'a') as file:\n"
        "        file.write('built ')\n"
        "    return from_arrays({'acc': np.eye(12)}, [0, 1] * 6)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    log = tmp_path / "log"
    tree = {
        "rounds": 1,
        "data": {"dataset": "custom", "factory": "data_of_a_run:build", "options": {"log": str(log)}},
        "clients": [{"count": 2, "modalities": ["acc"]}],
        "model": {"encoders": {"acc": {"kind": "mlp"}}},
        "execution": {"runtime": runtime},
    }
    scenario = Scenario.model_validate(tree)
    fingerprints = [run.manifest["data"]["fingerprint"] for run in (simulate(scenario), simulate(scenario))]
    assert log.read_text() == "built built "
    assert fingerprints[0] == fingerprints[1]
