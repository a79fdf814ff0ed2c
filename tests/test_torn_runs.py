"""Rows of a run's tables that are lost or changed are noticed: by a run that goes on, and where runs are read."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from blossom_ray import Run, Scenario, compare, report, simulate
from blossom_ray.errors import RunFolderError
from blossom_ray.runs.folder import MANIFEST_FILE, SCENARIO_FILE
from blossom_ray.runs.following import follow
from blossom_ray.runs.session import record_run, resume_run
from blossom_ray.runs.table_files import read_table
from blossom_ray.runs.tables import TABLES

pytestmark = [pytest.mark.usefixtures("warm_processes"), pytest.mark.slow]

ROUNDS = 8
KILLED_AFTER = 7
NAMES = tuple(TABLES)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """All that can be lost: private heads, kept optimizer state, part of the clients, rows of failures and classes."""
    return Scenario.model_validate(
        {
            "name": "torn",
            "rounds": ROUNDS,
            "data": {"dataset": "synthetic", "samples": 90, "modalities": {"acc": {"shape": [3, 8]}}},
            "clients": [{"count": 6, "modalities": ["acc"]}],
            "model": {"encoders": {"acc": {"kind": "mlp", "hidden": [4]}}},
            "sharing": "private-head",
            "server": {"clients_per_round": 4},
            "training": {"keep_optimizer_state": True, "optimizer": {"kind": "adam", "lr": 0.01}},
            "evaluation": {"per_class": "every"},
            "checkpoint": {"every": 2},
            "execution": {"runtime": "local"},
        }
    )


@pytest.fixture(scope="module")
def originals(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that finished, one as a kill after round 7 leaves it, and another run."""
    folder = tmp_path_factory.mktemp("originals")
    for _ in record_run(scenario, folder / "finished"):
        pass
    records = record_run(scenario, folder / "interrupted")
    for record in records:
        if record.round_index == KILLED_AFTER:
            shutil.copytree(folder / "interrupted", folder / "killed")
            break
    records.close()
    for _ in record_run(scenario.override({"seed": 1}), folder / "other"):
        pass
    return folder


@pytest.fixture
def killed(originals: Path, tmp_path: Path) -> Path:
    return shutil.copytree(originals / "killed", tmp_path / "run")


@pytest.fixture
def finished(originals: Path, tmp_path: Path) -> Path:
    return shutil.copytree(originals / "finished", tmp_path / "run")


def write(table: pa.Table, folder: Path, name: str) -> None:
    """A table in the form that the folder has it in."""
    if (folder / f"{name}.parquet").exists():
        pq.write_table(table, folder / "new")
        (folder / "new").replace(folder / f"{name}.parquet")
        return
    new = folder / "new"  # what has been read is mapped
    with pa.OSFile(str(new), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    new.replace(folder / f"{name}.arrows")


def first_third(table: pa.Table) -> pa.Table:
    return table.slice(0, table.num_rows // 3)


def emptied(table: pa.Table) -> pa.Table:
    return table.slice(0, 0)


def without_a_round(table: pa.Table) -> pa.Table:
    return table.filter(pc.field("round") != 1)


def without_a_row(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 1), table.slice(2)])


def doubled(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 2), table.slice(1)])


def edited(table: pa.Table) -> pa.Table:
    (place, column) = next(
        (place, column)
        for place, column in enumerate(table.column_names)
        if (column == "count" or pa.types.is_floating(table[column].type))
        and table[column].null_count < table.num_rows
    )  # fmt: skip
    return table.set_column(place, column, pc.add(table[column], pa.scalar(1, table[column].type)))


DAMAGES: tuple[Callable[[pa.Table], pa.Table], ...] = (
    first_third, emptied, without_a_round, without_a_row, doubled, edited,
)  # fmt: skip


def assert_as_undisturbed(folder: Path, original: Path) -> None:
    run, expected = Run.open(folder), Run.open(original)
    assert run.status == "finished"
    assert run.manifest["digest"] == expected.manifest["digest"]
    for name in NAMES:
        frame, other = getattr(run, name), getattr(expected, name)
        timed = [column for column in other.columns if "seconds" in column]
        assert frame.drop(timed).equals(other.drop(timed)), name


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def go_on(scenario: Scenario, folder: Path) -> None:
    for _ in resume_run(scenario, folder):
        pass


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["rounds", "clients", "blocks"])
def test_lost_or_changed_rows_are_refused_before_anything_is_written(
    scenario: Scenario, killed: Path, name: str, damage: Callable[[pa.Table], pa.Table]
) -> None:
    write(damage(read_table(killed, name)), killed, name)
    before = contents(killed)
    with pytest.raises(RunFolderError, match=name):
        go_on(scenario, killed)
    assert contents(killed) == before


@pytest.mark.parametrize("name", NAMES)
def test_another_runs_table_is_refused(scenario: Scenario, originals: Path, killed: Path, name: str) -> None:
    other = read_table(originals / "other", name)
    if not other.num_rows:
        other = failures_of(0)
    write(other, killed, name)
    with pytest.raises(RunFolderError, match=name):
        go_on(scenario, killed)


def failures_of(*rounds: int) -> pa.Table:
    schema = pa.schema(list(TABLES["failures"].items()))
    row = {"event": 0, "phase": "train", "client": 1, "actor": 0, "cause": "lost", "action": "dropped"}
    return pa.Table.from_pylist([{"round": number, **row} for number in rounds], schema)


def test_what_is_lost_is_said(scenario: Scenario, killed: Path) -> None:
    table = read_table(killed, "clients")
    write(table.filter(pc.field("round").isin([0, 3, 4, 5, 6, 7])), killed, "clients")
    with pytest.raises(RunFolderError, match="after round 4, 6") as caught:
        go_on(scenario, killed)
    assert "clients has" in str(caught.value) or "clients: num_e" in str(caught.value)
    assert "round 1" in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kept", [6, 5, 4])
def test_rows_after_a_checkpoint_are_made_anew(
    scenario: Scenario, originals: Path, killed: Path, name: str, kept: int
) -> None:
    """What a killed process had not yet written of the rounds after the checkpoint of round 4 or 6."""
    write(read_table(killed, name).filter(pc.field("round") <= kept), killed, name)
    go_on(scenario, killed)
    assert_as_undisturbed(killed, originals / "finished")


@pytest.mark.parametrize("name", ["rounds", "clients", "blocks"])
def test_an_older_checkpoint_is_gone_on_from_where_its_rows_are_whole(
    scenario: Scenario, originals: Path, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(originals / "interrupted", tmp_path / "run")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["000004", "000006"]
    write(read_table(folder, name).filter(pc.field("round") <= 5), folder, name)
    go_on(scenario, folder)
    assert_as_undisturbed(folder, originals / "finished")


def test_without_checkpoints_a_torn_run_begins_anew(scenario: Scenario, originals: Path, killed: Path) -> None:
    shutil.rmtree(killed / "checkpoints")
    write(first_third(read_table(killed, "clients")), killed, "clients")
    go_on(scenario, killed)
    assert_as_undisturbed(killed, originals / "finished")


def as_earlier_versions(folder: Path) -> None:
    """Take out of a run folder what tells of its tables and its scenario."""
    for path in folder.glob("checkpoints/*/checkpoint.json"):
        index = json.loads(path.read_text())
        del index["tables"], index["checksum"]
        index["checksum"] = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(index))
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    for entry in ("tables", "scenario_sha256"):
        manifest.pop(entry, None)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def test_runs_of_earlier_versions_go_on(scenario: Scenario, originals: Path, killed: Path) -> None:
    as_earlier_versions(killed)
    go_on(scenario, killed)
    assert_as_undisturbed(killed, originals / "finished")
    newest = json.loads((killed / "checkpoints" / f"{ROUNDS:06}" / "checkpoint.json").read_text())
    assert newest["tables"] == Run.open(killed).manifest["tables"]


@pytest.mark.parametrize("damage", [first_third, emptied, without_a_round, without_a_row])
@pytest.mark.parametrize("name", ["clients", "blocks"])
def test_a_torn_run_of_an_earlier_version_is_noticed_by_its_own_sums(
    scenario: Scenario, originals: Path, killed: Path, name: str, damage: Callable[[pa.Table], pa.Table]
) -> None:
    as_earlier_versions(killed)
    write(damage(read_table(killed, name)), killed, name)
    with pytest.raises(RunFolderError, match=f"{name}: .* of round [0-3] adds up to"):
        go_on(scenario, killed)


@pytest.mark.parametrize("damage", [*DAMAGES, None])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "use", [compare, report, lambda folder: list(follow(folder)), lambda folder: Run.open(folder).check()]
)  # fmt: skip
def test_a_finished_run_that_is_not_whole_is_refused(
    finished: Path, name: str, damage: Callable[[pa.Table], pa.Table] | None, use: Callable[[Path], object]
) -> None:
    table = read_table(finished, name)
    if name == "failures":
        table = failures_of(3)
    elif damage is not None:
        table = damage(table)
    else:
        table = pa.concat_tables([table, table.slice(table.num_rows - 1)])
    write(table, finished, name)
    with pytest.raises(RunFolderError, match=f"{finished.name}: .*{name}"):
        use(finished)
    with pytest.raises(RunFolderError, match=name):
        getattr(Run.open(finished), name)


@pytest.mark.parametrize("damage", [first_third, emptied, without_a_round, without_a_row])
@pytest.mark.parametrize("name", ["rounds", "clients", "blocks"])
def test_a_finished_run_of_an_earlier_version_is_read_and_checked_by_its_own_sums(
    finished: Path, name: str, damage: Callable[[pa.Table], pa.Table]
) -> None:
    as_earlier_versions(finished)
    Run.open(finished).check()
    write(damage(read_table(finished, name)), finished, name)
    with pytest.raises(RunFolderError, match=name):
        compare(finished)


@pytest.mark.parametrize("status", ["finished", "running", "failed", "interrupted"])
def test_a_status_is_not_believed_against_the_tables(
    scenario: Scenario, originals: Path, killed: Path, status: str
) -> None:
    manifest = json.loads((killed / MANIFEST_FILE).read_text())
    (killed / MANIFEST_FILE).write_text(json.dumps({**manifest, "status": status}))
    if status == "finished":
        with pytest.raises(RunFolderError, match=f"says that it has finished.*ends with round 7; expected {ROUNDS}"):
            Run.open(killed).check()
    go_on(scenario, killed)
    assert_as_undisturbed(killed, originals / "finished")


@pytest.mark.parametrize("state", ["killed", "finished"])
def test_another_scenario_in_the_folder_is_noticed(
    scenario: Scenario, originals: Path, tmp_path: Path, state: str
) -> None:
    folder = shutil.copytree(originals / state, tmp_path / "run")
    shutil.copyfile(originals / "other" / SCENARIO_FILE, folder / SCENARIO_FILE)
    for use in (Run.check, lambda run: go_on(Scenario.load(run.path / SCENARIO_FILE), run.path), compare):
        with pytest.raises(RunFolderError, match=r"scenario\.yaml: is not the scenario that the run was written with"):
            use(Run.open(folder))


def test_a_damaged_cell_is_named_and_not_averaged(scenario: Scenario, tmp_path: Path) -> None:
    from blossom_ray import sweep

    for _ in sweep(scenario.override({"rounds": 2}), seeds=[0, 1], out=tmp_path / "sweep"):
        pass
    (torn, _) = sorted(path.parent for path in (tmp_path / "sweep").glob("*/manifest.json"))
    write(first_third(read_table(torn, "rounds")), torn, "rounds")
    comparison = compare(tmp_path / "sweep")
    ((place, why),) = comparison.unused
    assert place == str(torn)
    assert "its table 'rounds' ends with round 0; expected 2" in why
    assert set(comparison.table["num_seeds"]) == {1}
    (page,) = report(tmp_path / "sweep")
    assert f"not used: {torn}: its manifest says that it has finished" in page.read_text(encoding="utf-8")
    (torn / "manifest.json").unlink()
    (page,) = report(tmp_path / "sweep")
    assert f"not used: {torn.name}: not begun" in page.read_text(encoding="utf-8")


def test_sums_do_not_depend_on_how_rows_lie_in_files(scenario: Scenario, tmp_path: Path) -> None:
    """Fine-tuning adds columns in the last round, which rewrites the stream; the loop knows of neither."""
    tuned = scenario.override({"rounds": 3, "evaluation.fine_tune": {"epochs": 1}, "checkpoint.every": 1})
    run = simulate(tuned, out=tmp_path)
    assert isinstance(run, Run)
    assert run.path is not None
    assert any(column.startswith("fine_tuned/") for column in run.clients.columns)
    assert run.clients.filter(pl.col("round") == 0)["fine_tuned/accuracy"].null_count() == 6
    index = json.loads((run.path / "checkpoints" / "000003" / "checkpoint.json").read_text())
    assert index["tables"] == run.manifest["tables"]
    run.check()
