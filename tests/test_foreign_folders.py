"""Folders of runs that come from elsewhere: nothing is written outside, and nothing without an end is read."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from blossom_ray import Run, Scenario, compare, report, sweep
from blossom_ray.checkpoint import CheckpointStore
from blossom_ray.errors import BlossomError, InputError, RunFolderError
from blossom_ray.runs.background import stop
from blossom_ray.runs.session import record_run, resume_run
from blossom_ray.runs.tables import TABLES
from blossom_ray.runs.tracking.following import open_tracker, parse_target
from blossom_ray.storage import MOST_JSON_BYTES, appending, new_temporary, read_file, remove, replacing
from blossom_ray.studies.sweeps.folder import Sweep

pytestmark = [pytest.mark.usefixtures("warm_processes"), pytest.mark.slow]

PARTIALS = (
    ".manifest.json.partial", ".scenario.yaml.partial", ".report.html.partial", ".process.json.partial",
    *(f".{name}.{form}.partial" for name in TABLES for form in ("arrows", "parquet")),
)  # fmt: skip


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return Scenario.model_validate(
        {
            "name": "foreign",
            "rounds": 4,
            "data": {"dataset": "synthetic", "samples": 60, "modalities": {"acc": {"shape": [3, 8]}}},
            "clients": [{"count": 3, "modalities": ["acc"]}],
            "model": {"encoders": {"acc": {"kind": "mlp", "hidden": [4]}}},
            "checkpoint": {"every": 1},
            "execution": {"runtime": "local"},
        }
    )


@pytest.fixture(scope="module")
def originals(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    records = record_run(scenario, folder / "killed")
    for record in records:
        if record.round_index == 3:
            shutil.copytree(folder / "killed", folder / "run")
            break
    records.close()
    return folder


@pytest.fixture
def run(originals: Path, tmp_path: Path) -> Path:
    return shutil.copytree(originals / "run", tmp_path / "run")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of someone else, with a file."""
    (tmp_path / "outside" / "000001").mkdir(parents=True)
    (tmp_path / "outside" / "precious").write_text("precious")
    (tmp_path / "outside" / "000001" / "precious").write_text("precious")
    (tmp_path / "outside" / ".000009.partial").mkdir()
    return tmp_path / "outside"


def contents(folder: Path) -> list[tuple[str, bytes]]:
    return [(str(path), path.read_bytes() if path.is_file() else b"") for path in sorted(folder.rglob("*"))]


def outcome(use: Callable[[], object]) -> object:
    """What comes of it, or the error of ours."""
    try:
        return use()
    except BlossomError as error:
        return error


def go_on(scenario: Scenario, folder: Path) -> None:
    for _ in resume_run(scenario, folder):
        pass


@pytest.mark.parametrize("hard", [False, True])
def test_a_planted_temporary_file_leads_nowhere(scenario: Scenario, run: Path, outside: Path, hard: bool) -> None:
    for name in PARTIALS:
        (outside / name).write_text("precious")
        if hard:
            (run / name).hardlink_to(outside / name)
        else:
            (run / name).symlink_to(outside / name)
    before = contents(outside)
    go_on(scenario, run)
    report(run)
    assert contents(outside) == before
    assert Run.open(run).status == "finished"


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl hard", "log.jsonl pipe"])
def test_a_log_that_leads_elsewhere_is_refused(scenario: Scenario, run: Path, outside: Path, name: str) -> None:
    before = contents(outside)
    log, _, kind = name.partition(" ")
    (run / log).unlink()
    if kind == "hard":
        (run / log).hardlink_to(outside / "precious")
    elif kind == "pipe":
        os.mkfifo(run / log)
    else:
        (run / log).symlink_to(outside / "precious")
    with pytest.raises(RunFolderError, match=r"log\.jsonl: is a (link|file that has other names|pipe)"):
        go_on(scenario, run)
    assert contents(outside) == before


@pytest.mark.parametrize("name", ["manifest.json", "scenario.yaml", "report.html", "rounds.parquet"])
def test_what_is_replaced_is_the_link(scenario: Scenario, run: Path, outside: Path, name: str) -> None:
    target = outside / "linked"
    if (run / name).exists():
        (run / name).rename(target)
    else:
        target.write_bytes(b"precious")
    (run / name).symlink_to(target)
    before = target.read_bytes()
    try:
        go_on(scenario, run)
        report(run)
    except RunFolderError:
        assert name == "rounds.parquet"  # it is no table
    assert target.read_bytes() == before


@pytest.mark.parametrize("is_empty", [False, True])
def test_nothing_is_removed_or_written_behind_a_folder_of_checkpoints_that_is_a_link(
    scenario: Scenario, run: Path, outside: Path, is_empty: bool
) -> None:
    if is_empty:
        shutil.rmtree(outside / "000001")
    before = contents(outside)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").symlink_to(outside)
    before_of_run = contents(run)
    with pytest.raises(RunFolderError, match="checkpoints: is a link"):
        go_on(scenario, run)
    assert contents(outside) == before
    assert contents(run) == before_of_run
    with pytest.raises(RunFolderError, match="checkpoints: is a link"):
        CheckpointStore(run / "checkpoints", keep=1).begin(5)
    CheckpointStore(run / "checkpoints", keep=1).abandon()
    assert contents(outside) == before


@pytest.mark.parametrize("name", ["000001", "000004", ".000004.partial", ".000003.partial"])
def test_a_checkpoint_that_is_a_link_is_replaced(scenario: Scenario, run: Path, outside: Path, name: str) -> None:
    before = contents(outside)
    remove(run / "checkpoints" / name)
    (run / "checkpoints" / name).symlink_to(outside)
    go_on(scenario, run)
    assert contents(outside) == before
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["000003", "000004"]


def test_a_cell_that_is_a_link_is_refused(scenario: Scenario, tmp_path: Path, outside: Path) -> None:
    before = contents(outside)
    for _ in sweep(scenario.override({"rounds": 1}), seeds=[0], out=tmp_path / "sweep"):
        pass
    (cell,) = Sweep.open(tmp_path / "sweep").cells
    shutil.rmtree(tmp_path / "sweep" / cell.folder)
    (tmp_path / "sweep" / cell.folder).symlink_to(outside)
    with pytest.raises(RunFolderError, match="is a link"):
        for _ in sweep(scenario.override({"rounds": 1}), seeds=[0], out=tmp_path / "sweep"):
            pass
    assert contents(outside) == before


def test_event_files_do_not_go_behind_a_link(scenario: Scenario, run: Path, outside: Path) -> None:
    before = contents(outside)
    (run / "tensorboard").symlink_to(outside)
    with pytest.raises(RunFolderError, match="tensorboard: is a link"):
        open_tracker(parse_target("tensorboard"), scenario, run)
    assert contents(outside) == before


def test_a_run_folder_is_reached_through_links(scenario: Scenario, run: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(run.parent)
    (tmp_path / "named").symlink_to(tmp_path / "runs" / "run")
    go_on(scenario, tmp_path / "named")
    report(tmp_path / "runs" / "run")
    assert Run.open(run).status == "finished"
    assert (run / "report.html").exists()


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder_instead(path: Path) -> None:
    path.mkdir()


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize("plant", [os.mkfifo, endless, folder_instead, huge])
@pytest.mark.parametrize(
    "name",
    ["manifest.json", "scenario.yaml", *(f"{name}.arrows" for name in TABLES), "rounds.parquet", "process.json",
     "checkpoints/000002/checkpoint.json", "checkpoints/000002/server.safetensors"],
)  # fmt: skip
@pytest.mark.timeout(60)
def test_only_files_with_an_end_are_read(
    scenario: Scenario, run: Path, name: str, plant: Callable[[Path], None]
) -> None:
    remove(run / name)
    plant(run / name)
    uses: list[Callable[[], object]] = [
        lambda: compare(run),
        lambda: Run.open(run).check(),
        lambda: stop(run),
        lambda: go_on(scenario, run),
    ]
    for use in uses:
        ended = outcome(use)
        if isinstance(ended, BlossomError):
            assert isinstance(ended, InputError)
            assert str(run) in str(ended)


@pytest.mark.parametrize("plant", [os.mkfifo, endless, folder_instead, huge])
def test_a_sweep_and_a_scenario_are_files_with_an_end(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    plant(tmp_path / "sweep.json")
    with pytest.raises(RunFolderError, match=r"sweep\.json"):
        Sweep.open(tmp_path)
    plant(tmp_path / "scenario.yaml")
    with pytest.raises(
        InputError, match=r"scenario\.yaml: is (a folder|larger than 1 MiB|a pipe, .* into a file first)"
    ):
        Scenario.load(tmp_path / "scenario.yaml")


def test_files_up_to_the_bound_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "file", 100) == read_file(tmp_path / "link") == b"x" * 100
    with pytest.raises(OSError, match="is larger than") as caught:
        read_file(tmp_path / "file", 99)
    assert caught.value.errno == errno.EOVERFLOW
    assert MOST_JSON_BYTES > 2**23
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none")


def test_what_a_killed_process_left_of_a_temporary_file_goes(tmp_path: Path) -> None:
    new_temporary(tmp_path / "file").write_text("half")
    with replacing(tmp_path / "file") as temporary:
        assert temporary.read_bytes() == b""
        temporary.write_text("whole")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "whole")]


def test_appending_goes_behind_what_is_there(tmp_path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        with appending(tmp_path / "file") as descriptor:
            os.write(descriptor, text)
    assert (tmp_path / "file").read_bytes() == b"one\ntwo\n"
