"""Clients that never train: whose rows they have, what they change of a run (nothing), how they are told apart."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import Command

from blossom_ray import Run, Scenario, compare, report, simulate
from blossom_ray.core.blocks import BlockInstance
from blossom_ray.core.seeding import Purpose, generator, stable_number
from blossom_ray.data.division.federation import Federation, build_federation
from blossom_ray.data.division.observation import observe
from blossom_ray.data.division.options import ClientGroup
from blossom_ray.data.shard_writing import write_shards
from blossom_ray.data.shards import ShardReader
from blossom_ray.errors import ScenarioError
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.session import check_runnable, record_run, resume_run
from blossom_ray.runtime.preparation import prepare
from blossom_ray.scenario.identity import identity
from blossom_ray.studies.reports.federation import federation_section

pytestmark = pytest.mark.slow

Changes = dict[str, Any]
TRAINED: list[Changes] = [
    {"count": 2, "modalities": ["acc"]},
    {"count": 1, "modalities": ["gyro"]},
    {"count": 2, "modalities": ["acc", "gyro"]},
]
HELD_OUT: Changes = {"count": 2, "modalities": ["acc"], "role": "unseen", "rows": "held-out", "shots": 4}
FEW: Changes = {
    "data.subjects": 3,
    "data.held_out_samples": 60,
    "clients": [*TRAINED, HELD_OUT],
    "evaluation.fine_tune": {"epochs": 1, "every": 2},
    "rounds": 3,
}


def comparable(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.drop([name for name in frame.columns if "seconds" in name])


def assert_same_bits(run: Run, other: Run) -> None:
    assert run.manifest["digest"] == other.manifest["digest"]
    for name in ("rounds", "clients", "blocks", "classes", "confusion"):
        assert comparable(getattr(run, name)).equals(comparable(getattr(other, name))), name


@pytest.mark.parametrize(
    ("engine", "changes"),
    [
        ("vectorized", {"sharing": "full-model", "server.clients_per_round": 0.6, "evaluation.clients": 0.5}),
        (
            "sequential",
            {"sharing": "private-head-fusion", "model.norm_statistics": "local",
             "model.head": {"kind": "mlp", "hidden": [8], "norm": "batch"}},
        ),
        ("sequential", {"sharing": "central"}),
        ("vectorized", {"algorithm": {"kind": "ditto"}, "server.weighting": "entropy"}),
    ],
    ids=["shared", "private", "central", "personal"],
)  # fmt: skip
def test_they_change_no_bit_of_others(small_scenario: Scenario, engine: str, changes: Changes) -> None:
    with_them = simulate(small_scenario.override({**FEW, **changes, "training.engine": engine}))
    alone = simulate(with_them.scenario.override({"clients": TRAINED}))
    assert with_them.manifest["digest"] == alone.manifest["digest"]
    sent = ("bytes_down",)  # theirs is traffic
    for name in ("rounds", "blocks"):
        own, other = comparable(getattr(with_them, name)), comparable(getattr(alone, name))
        assert own.select(other.columns).drop(sent).equals(other.drop(sent)), name
    clients = comparable(with_them.clients)
    of_others = clients.filter(pl.col("role") == "train").select(comparable(alone.clients).columns)
    assert of_others.equals(comparable(alone.clients))
    assert alone.clients.columns == [name for name in with_them.clients.columns if name in alone.clients.columns]
    for name in ("classes", "confusion"):
        plain = getattr(with_them, name).filter(~pl.col("scoring").str.starts_with("unseen"))
        assert plain.equals(getattr(alone, name)), name
    told = {name: value for name, value in with_them.manifest["data"].items() if name not in ("partition", "unseen")}
    assert told == {name: value for name, value in alone.manifest["data"].items() if name != "partition"}


def test_summaries_follow_from_the_rows_of_single_clients(small_scenario: Scenario) -> None:
    groups = [*TRAINED, {"count": 1, "modalities": ["gyro"], "role": "unseen"}, HELD_OUT]
    run = simulate(small_scenario.override({**FEW, "clients": groups, "evaluation.per_class": "every"}))
    for row in run.rounds.to_dicts():
        own = run.clients.filter(pl.col("round") == row["round"], pl.col("role") == "unseen")
        assert own["client"].to_list() == [5, 6, 7]
        assert own["num_test_examples"].null_count() == own["loss"].null_count() == own["accuracy"].null_count() == 3
        assert own["rounds_trained"].to_list() == [0, 0, 0]
        scorings = ("unseen/", "unseen/fine_tuned/") if row["round"] in (2, 3) else ("unseen/",)
        for prefix in scorings:
            weights = own["num_unseen_examples"].to_numpy()
            for name in ("loss", "accuracy", "macro_f1_all"):
                values = own[f"{prefix}{name}"].to_numpy()
                assert row[f"{prefix}{name}"] == pytest.approx(np.average(values, weights=weights), abs=1e-12)
                assert row[f"{prefix}{name}_p50"] == pytest.approx(np.median(values), abs=1e-12)
                expected = np.average(values[1:], weights=weights[1:])
                assert row[f"{prefix}{name}/acc"] == pytest.approx(expected, abs=1e-12)
            counts = run.classes.filter(round=row["round"], scoring=prefix.rstrip("/"), modalities="")
            assert counts["num_true"].sum() == weights.sum()
            correct = counts["num_correct"].sum() / counts["num_true"].sum()
            assert row[f"{prefix}accuracy_pooled"] == pytest.approx(correct, abs=1e-12)
        assert row.get("unseen/fine_tuned/accuracy") is None or len(scorings) == 2
    assert "unseen/accuracy_trained" not in run.rounds.columns
    # A version of each shared block is sent once, fine-tuning costs nothing.
    last = run.clients.filter(round=3, role="unseen")
    sizes = {block: 4 * number for block, number in run.manifest["parameters"].items()}
    encoders = [sizes["encoder/gyro"], sizes["encoder/acc"], sizes["encoder/acc"]]
    assert last["evaluate_bytes_down"].to_list() == encoders


def test_rows_of_the_held_out_part_are_whole_people_and_shots_are_nested(small_scenario: Scenario) -> None:
    def samples(shots: int | None, count: int = 2) -> list[tuple[set[bytes], set[bytes]]]:
        scenario = small_scenario.override({**FEW, "clients": [*TRAINED, {**HELD_OUT, "shots": shots, "count": count}]})
        held_out = scenario.data.open(scenario.modalities, scenario.seed, scenario.task).load().held_out
        assert held_out is not None
        assert held_out.subjects is not None
        people = {row.tobytes(): who for row, who in zip(held_out.inputs["acc"], held_out.subjects, strict=True)}
        found = []
        with tempfile.TemporaryDirectory() as folder:
            preparation = prepare(scenario, Path(folder))
            reader = preparation.open_shards()
            for client in range(5, 5 + count):
                parts = (reader.shard(client).train(), reader.shard(client).test())
                found.append(tuple({row.tobytes() for row in each.inputs["acc"]} for each in parts))
            reader.close()
        owners = [{people[row] for row in train | test} for train, test in found]
        assert not owners[0] & owners[1]
        if count == 3:
            assert [len(each) for each in owners] == [1, 1, 1]
        return found

    few, more, every = samples(4), samples(9), samples(None)
    for (train4, test4), (train9, test9), (train, test) in zip(few, more, every, strict=True):
        assert (len(train4), len(train9)) == (4, 9)
        assert train4 < train9 < train
        assert test4 == test9 == test
        assert not train & test
        assert len(train) == len(train | test) - int(0.3 * len(train | test))
    samples(4, count=3)


def test_what_a_run_says_of_them(small_scenario: Scenario) -> None:
    groups = [
        *TRAINED,
        {"count": 1, "modalities": ["gyro"], "role": "unseen", "shots": 5},
        {**HELD_OUT, "shots": 50, "count": 3},
    ]
    run = simulate(small_scenario.override({**FEW, "clients": groups, "sharing": "private-head"}))
    data = run.manifest["data"]
    assert data["clients"] == {"acc": 2, "gyro": 1, "acc+gyro": 2}
    assert data["unseen"]["clients"] == {"gyro": 1, "acc": 3}
    counts = run.clients.filter(round=3, role="unseen")["num_unseen_examples"]
    assert data["unseen"]["num_test"] == counts.sum()
    beyond = 25 - 7 - 5  # a sixth of 150 samples, 7 to test on
    assert [(each["what"], each["count"]) for each in data["left_out"]] == [
        ("samples of unseen clients beyond their shots", beyond)
    ]
    notes = run.manifest["notes"]
    begin = "unseen clients: before fine-tuning their own head have initial values"
    assert f"{begin}, and unseen/accuracy is with these" in notes
    # Three people of 20 samples each, 6 of them to test on.
    assert "3 of 4 unseen clients have fewer samples than shots, the fewest 14" in notes


def test_with_local_statistics_they_are_scored_after_fine_tuning_alone(small_scenario: Scenario) -> None:
    changes = {"model.norm_statistics": "local", "model.head": {"kind": "mlp", "hidden": [8], "norm": "batch"}}
    run = simulate(small_scenario.override({**FEW, **changes, "sharing": "full-model"}))
    assert not [name for name in run.rounds.columns if name.startswith("unseen/") and "fine_tuned" not in name]
    assert run.rounds["unseen/fine_tuned/accuracy"].is_null().to_list() == [True, True, False, False]
    assert run.clients.filter(round=1, role="unseen").is_empty()
    note = "unseen clients: before fine-tuning their own normalisation statistics have initial values"
    assert f"{note}, so they are scored after it alone" in run.manifest["notes"]


@pytest.mark.ray
@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_the_same_bits_on_actors(small_scenario: Scenario, engine: str, ray_session: None) -> None:
    """Sums of private blocks too, whether a host has a whole chunk or some of its clients."""
    changes = {"sharing": "private-head", "rounds": 2, "evaluation.unseen": {"start": "group-average"}}
    scenario = small_scenario.override({**FEW, **changes, "training.engine": engine, "clients.0.count": 3})
    per_actor = 7 if engine == "vectorized" else 2
    placed = {"execution.runtime": "ray", "execution.clients_per_actor": per_actor, "execution.shards": "object-store"}
    assert_same_bits(simulate(scenario), simulate(scenario.override(placed)))


@pytest.mark.parametrize("changes", [{}, {"data.validation_fraction": 0.2, "stop": {"patience": 1}}])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(
    small_scenario: Scenario, tmp_path: Path, changes: Changes
) -> None:
    scenario = small_scenario.override({**FEW, "checkpoint.every": 1, "checkpoint.keep": 5, **changes})
    if changes:
        scenario = scenario.override({"evaluation.split": "validation", "evaluation.fine_tune.every": None})
    whole = simulate(scenario, out=tmp_path / "whole")
    cut = tmp_path / "cut" / "run"
    cut.mkdir(parents=True)
    records = record_run(scenario, cut, lambda: True)
    for _ in records:
        pass
    assert Run.open(cut).rounds.height < whole.rounds.height
    for _ in resume_run(Run.open(cut).scenario, cut):
        pass
    Run.open(cut).check()
    assert_same_bits(whole, Run.open(cut))


def test_gains_are_over_the_same_scoring_and_never_of_a_random_head(small_scenario: Scenario, tmp_path: Path) -> None:
    base = small_scenario.override({**FEW, "name": "unseen", "rounds": 2})
    runs = [
        simulate(base.override({"sharing": sharing}), out=tmp_path)
        for sharing in ("local", "full-model", "private-head")
    ]
    found = compare(runs, metric="unseen/accuracy", baseline={"sharing": "local"})
    rows = {(row["sharing"], row["scoring"]): row for row in found.table.filter(modalities="all clients").to_dicts()}
    last = {run.scenario.sharing: run.final for run in runs}
    for sharing in ("full-model", "private-head"):
        assert rows[sharing, "plain"]["points_final"] is None
        tuned = "unseen/fine_tuned/accuracy"
        expected = last[sharing][tuned] - last["local"][tuned]
        assert rows[sharing, "fine-tuned"]["points_final"] == pytest.approx(expected * 100)
        assert rows[sharing, "plain"]["final"] == last[sharing]["unseen/accuracy"]
    assert any("have initial values, so there is no gain" in note for note in found.notes)
    page = report(runs[:2], out=tmp_path / "page.html")[0].read_text()
    assert "Comparison of unseen clients" in page
    assert "unseen clients, after fine-tuning" in page
    assert "that never train" in page
    plain = compare(runs, baseline={"sharing": "local"})
    assert plain.table.filter(modalities="all clients", scoring="plain")["final"].to_list() == [
        run.final["accuracy"] for run in runs
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": [HELD_OUT, *TRAINED]}, "clients.1 stands behind a group with role: unseen; expected groups that"),
        (
            {"clients": [*TRAINED, HELD_OUT, {**HELD_OUT, "rows": "shared"}]},
            "clients.4 stands behind a group with rows: held-out",
        ),
        ({"clients": [HELD_OUT]}, "clients has no group that trains; expected one with role: train"),
        ({"clients.0.shots": 3}, "clients.0.shots is 3, while role is 'train'; expected null, or role: unseen"),
        ({"clients.0.rows": "held-out"}, "clients.0.rows is 'held-out', while role is 'train'"),
        ({"server.clients_per_round": 6}, "server.clients_per_round is 6; expected at most 5, the number of clients"),
        (
            {"clients": [TRAINED[0], {**HELD_OUT, "modalities": ["acc", "gyro"]}]},
            "model.encoders.gyro is an encoder that no client can train; expected a modality that clients own: acc",
        ),
        (
            {
                "clients": [TRAINED[0], TRAINED[2], {**HELD_OUT, "modalities": ["gyro"]}],
                "sharing": {"encoder/*": "shared", "fusion": "same-modalities", "head": "shared"},
            },
            "clients.2 is of unseen clients that share fusion with no client that trains; expected modalities, group",
        ),
        (
            {"model.norm_statistics": "same-modalities", "clients.1.modalities": ["acc", "gyro"]}
            | {"clients.3.modalities": ["gyro"], "sharing": "full-model"},
            "clients.3 is of unseen clients that share running statistics with no client that trains",
        ),
        ({"clients.3.count": 4}, "ask for people of the held-out part for 4 clients (rows: held-out), and it has 3"),
        (
            {"evaluation.unseen.start": "group-average", "sharing": "full-model"},
            "evaluation.unseen.start is 'group-average', while sharing makes no block private; expected 'initial', or",
        ),
        (
            {"evaluation.unseen.start": "group-average", "clients.3.group": "ward"},
            "while no client that trains is as unseen clients (acc, ward); expected 'initial', or such clients",
        ),
        ({"data.subjects": None}, "(rows: held-out), and it tells none; expected at most as many clients as people"),
        ({"data.held_out_samples": 0}, "(rows: held-out), and there is none"),
    ],
)
def test_what_is_refused(small_scenario: Scenario, changes: Changes, message: str) -> None:
    with pytest.raises(ScenarioError) as error:
        simulate(small_scenario.override(FEW).override(changes))
    assert message in str(error.value)


def test_groups_that_train_have_the_identity_that_they_had(small_scenario: Scenario) -> None:
    spelled_out = small_scenario.override({"clients.0.role": "train", "clients.0.shots": None})
    assert identity(spelled_out) == identity(small_scenario)
    assert identity(small_scenario.override({"clients": [*TRAINED, {**TRAINED[0], "role": "unseen"}]})) != identity(
        small_scenario.override({"clients": [*TRAINED, TRAINED[0]]})
    )


def given(path: Path, **partition: Any) -> Scenario:
    """Own data of six clients as they are given, four of which have acceleration and angular velocity."""
    from natural_tables import ACTIONS, actions

    actions(path, shapes={name: ((6, 2), size) for name, (_, size) in ACTIONS.items()}, num_trials=5)
    encoder = {"kind": "mlp", "hidden": [6], "dim": 5}
    return Scenario.model_validate(
        {
            "rounds": 2,
            "data": {
                "dataset": "table",
                "path": str(path),
                "modalities": {name: {} for name in ("acc", "gyro", "skeleton")},
                "label_column": "label",
                "client_column": "client",
                "partition": {"kind": "given", **partition},
                "standardize": True,
            },
            "clients": "from-data",
            "model": {
                "encoders": dict.fromkeys(("acc", "gyro", "skeleton"), encoder),
                "fusion": {"kind": "mean", "dim": 6},
                "head": {"kind": "linear"},
            },
            "sharing": "full-model",
            "evaluation": {"fine_tune": {"epochs": 1}},
            "execution": {"runtime": "local"},
        }
    )


def test_clients_of_own_data_that_never_train_are_named(tmp_path: Path) -> None:
    run = simulate(given(tmp_path / "own.parquet", unseen=["s4", "s3"], shots=3))
    found = run.clients.filter(round=2).select("client", "name", "role", "modalities").rows()
    assert found == [
        (0, "s1", "train", "acc+gyro"),
        (1, "s2", "train", "acc+gyro+skeleton"),
        (2, "s5", "train", "acc+gyro+skeleton"),
        (3, "s6", "train", "skeleton"),
        (4, "s4", "unseen", "acc+gyro"),
        (5, "s3", "unseen", "skeleton"),
    ]
    assert [group.shots for group in run.scenario.groups] == [None, None, None, 3, 3]
    assert "Partition: given (unseen s4, s3, shots 3); split by sample." in federation_section([run]).text[0]
    assert run.manifest["data"]["unseen"]["num_train"] == 6


def test_a_fraction_of_them_is_drawn_and_nested(tmp_path: Path) -> None:
    def unseen(fraction: float, seed: int) -> set[str]:
        scenario = check_runnable(given(tmp_path / "own.parquet", unseen=fraction).override({"seed": seed}))
        with tempfile.TemporaryDirectory() as folder:
            names = prepare(scenario, Path(folder)).client_names
        return {*names[-scenario.num_unseen :]}

    drawn = [[unseen(fraction, seed) for fraction in (0.17, 0.5)] for seed in (0, 1)]
    for one, three in drawn:
        assert (len(one), len(three)) == (1, 3)
        assert one < three
    assert drawn[0] != drawn[1]


def test_rows_of_clients_that_never_train_move_no_scale_and_no_bit(tmp_path: Path) -> None:
    """A table with other values of an unseen client, and one without it, give the same model."""
    path = tmp_path / "own.parquet"
    run = simulate(given(path, unseen=["s1"]))
    table = pl.read_parquet(path)
    others, own = table.filter(pl.col("client") != "s1"), table.filter(pl.col("client") == "s1")
    louder = own.with_columns(pl.col("acc").list.eval(pl.element().list.eval(pl.element() * 7.0)))
    pl.concat([others, louder]).write_parquet(tmp_path / "louder.parquet")
    others.write_parquet(tmp_path / "others.parquet")
    digests = [
        simulate(run.scenario.override({"data.path": str(tmp_path / name), "clients": "from-data", **changes})).manifest
        for name, changes in (
            ("louder.parquet", {}),
            ("others.parquet", {"data.partition": {"kind": "given"}}),
        )
    ]
    assert [each["digest"] for each in digests] == [run.manifest["digest"]] * 2


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        ({"unseen": ["s9"]}, "data.partition.unseen names 's9'; expected clients of"),
        ({"unseen": ["s1", "s2", "s3", "s4", "s5", "s6"]}, "data.partition.unseen leaves none of 6 clients to train"),
        ({"unseen": 1.5}, "data.partition.unseen is 1.5"),
        ({"shots": 3}, "data.partition.shots is 3, while unseen is empty; expected null, or clients in unseen"),
        ({"unseen": ["s2", "s3", "s5", "s6"]}, "model.encoders.skeleton is an encoder that no client can train"),
    ],
)
def test_what_is_refused_of_own_data(tmp_path: Path, partition: Changes, message: str) -> None:
    with pytest.raises(ScenarioError) as error:
        simulate(given(tmp_path / "own.parquet").override({"data.partition": {"kind": "given", **partition}}))
    assert message in str(error.value)


def test_shots_of_given_clients_are_not_lost_where_groups_are_written_out(tmp_path: Path) -> None:
    run = simulate(given(tmp_path / "own.parquet", unseen=["s4", "s3"], shots=3))
    assert run.scenario.override({"rounds": 3}).groups == run.scenario.groups
    with pytest.raises(
        ScenarioError, match=r"clients.3.shots is null, while data.partition.shots is 3; expected 3, or"
    ):
        run.scenario.override({"clients.3.shots": None})


def test_what_is_observed_of_the_held_out_part_is_drawn_there(small_scenario: Scenario) -> None:
    """By its own draws, one number for each of its rows: others keep theirs, and zeros stand where nothing is."""
    both = {**HELD_OUT, "modalities": ["acc", "gyro"], "shots": None, "observed": {"gyro": 0.5}}
    scenario = small_scenario.override(
        {**FEW, "clients": [*TRAINED[:2], {**TRAINED[2], "observed": {"gyro": 0.5}}, both]}
    )
    dataset = scenario.data.open(scenario.modalities, scenario.seed, scenario.task).load()
    sets = [profile.modalities for profile in scenario.profiles()]

    def federation(groups: tuple[ClientGroup, ...]) -> Federation:
        num_clients = sum(group.count for group in groups)
        unseen = [group for group in groups if group.role == "unseen"]
        divided = build_federation(scenario.data, dataset.targets, num_clients, 0, sets[:num_clients], unseen)
        return observe(divided, scenario.data, dataset.targets, groups, 0)

    found, alone = federation(scenario.groups), federation(scenario.groups[:3])
    numbers = generator(0, Purpose.OBSERVATION, 1, stable_number("gyro")).random(60)
    num_rows = dataset.num_samples
    assert found.observed.keys() == alone.observed.keys() == {"gyro"}
    for client in range(7):
        part, rows = found.located(dataset, client)
        has = found.observed["gyro"][found.rows(client)]
        if client < 5:
            assert part is dataset
            assert has.tolist() == alone.observed["gyro"][alone.rows(client)].tolist()
        else:
            assert part is dataset.held_out
            assert (found.rows(client) - num_rows).tolist() == rows.tolist()
            assert has.tolist() == (numbers[rows] < 0.5).tolist()
            assert 0 < has.sum() < len(has)
    with tempfile.TemporaryDirectory() as folder:
        index = write_shards(dataset, found, tuple(scenario.profiles()), Path(folder))
        with ShardReader(index) as reader:
            shard = reader.shard(6)
            held_out, rows = found.located(dataset, 6)
            has = found.observed["gyro"][found.rows(6)]
            assert shard.observed["gyro"].tolist() == has.tolist()
            assert (shard.inputs["gyro"][~has] == 0).all()
            assert (shard.inputs["gyro"][has] == held_out.inputs["gyro"][rows[has]]).all()
            assert (shard.labels == held_out.labels[rows]).all()


@pytest.mark.parametrize(("engine", "missing"), [("sequential", "prototype"), ("vectorized", "mask")])
def test_what_they_alone_do_not_observe_is_no_others_business(
    small_scenario: Scenario, engine: str, missing: str
) -> None:
    both = {**HELD_OUT, "modalities": ["acc", "gyro"], "shots": None, "observed": {"gyro": 0.5}}
    changes = {
        "clients": [*TRAINED, both],
        "training.engine": engine,
        "model.missing": missing,
        "sharing": "full-model",
    }
    run = simulate(small_scenario.override({**FEW, **changes}))
    alone = simulate(run.scenario.override({"clients": TRAINED}))
    assert run.manifest["digest"]["private"] == alone.manifest["digest"]["private"]
    plain = [name for name in alone.rounds.columns if "seconds" not in name and not name.startswith("bytes_")]
    assert run.rounds.select(plain).equals(alone.rounds.select(plain))
    assert "unseen/accuracy@acc" in run.rounds.columns
    assert not [name for name in alone.rounds.columns if "@" in name]


def test_commands_tell_them_apart(small_scenario: Scenario, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "few.yaml"
    path.write_text(scenario_yaml(small_scenario.override({**FEW, "evaluation.unseen": {"start": "group-average"}})))
    assert "valid; 7 clients (2 unseen), 3 rounds" in command("validate", str(path)).out
    assert json.loads(command("validate", str(path), "--json").out)["unseen"] == 2

    shares = json.loads(command("data", "inspect", str(path), "--json").out)["clients"]
    assert [share.get("role") for share in shares] == [*[None] * 5, "unseen", "unseen"]
    assert [share["train"] for share in shares[5:]] == [4, 4]
    assert "role" in command("data", "inspect", str(path)).out

    plan = json.loads(command("plan", str(path), "--json").out)
    num_test = sum(share["test"] for share in shares[5:])
    assert f"2 unseen clients besides, with 8 samples to fine-tune on and {num_test} to test on" in plan["notes"]
    assert plan["clients_per_round"] == 5
    assert {name: own["clients"] for name, own in plan["sets"].items()} == {"acc": 2, "gyro": 1, "acc+gyro": 2}
    run = simulate(Scenario.load(path))
    measured = {
        str(BlockInstance.of_column(*key)): rows
        for key, rows in run.blocks.filter(round=2).group_by("block", "scope", "key")
    }
    for name, planned in plan["blocks"].items():
        (row,) = measured[name].to_dicts()
        assert (planned["bytes_down"], planned["bytes_up"]) == (row["bytes_down"], row["bytes_up"]), name

    out = command("simulate", str(path), "--out", str(tmp_path / "runs"), "--set", "rounds=1").out
    assert "7 clients (2 unseen)" in out
    assert "unseen, fine-tuned" in out
