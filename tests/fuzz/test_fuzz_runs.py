"""Damaged run folders and checkpoints: what is read is a value or an error of ours; what goes on, goes on right."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from conftest import SMALL
from hypothesis import given
from hypothesis import strategies as st
from mutations import LONGEST_CASE_S, ByteEdit, TreeEdit, byte_edits, changed, damaged, few, outcome, tree_edits

from blossom_ray.checkpoint import _index_checksum
from blossom_ray.errors import BlossomError, InputError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runs.folder import MANIFEST_FILE, SCENARIO_FILE, Run
from blossom_ray.runs.session import record_run, resume_run

pytestmark = pytest.mark.slow

NUM_ROUNDS = 4
STOP_AFTER = 3
FRAMES = ("rounds", "clients", "blocks", "failures")


@dataclass(frozen=True)
class RunCase:
    """Damage to one file of a run folder.

    Attributes:
        file: Any number; the file is this modulo their number.
        edits: What happens to its bytes; none: the file is gone.
        tree: What happens to it as JSON instead, where it is JSON.
        is_signed: Whether the checksum of a checkpoint's index is made right again, as someone who means harm would.
        is_swapped: Whether another file of the folder takes its place.
        was_killed: Whether the run was killed; otherwise it came to an end.
    """

    file: int
    edits: tuple[ByteEdit, ...]
    tree: tuple[TreeEdit, ...]
    is_signed: bool
    is_swapped: bool
    was_killed: bool


cases = st.builds(
    RunCase,
    st.integers(0, 999),
    byte_edits.map(tuple) | st.just(()),
    st.just(()) | tree_edits.map(tuple),
    st.booleans(),
    st.sampled_from((False, False, False, False, True)),
    st.booleans(),
)


def small_scenario() -> Scenario:
    model = {**SMALL["model"], "head": {"kind": "mlp", "hidden": [4], "norm": "batch"}}
    data = {**SMALL["data"], "samples": 60, "held_out_samples": 10}
    return Scenario.model_validate(
        {**SMALL, "rounds": NUM_ROUNDS, "model": model, "data": data, "checkpoint": {"every": 1}}
    )


@dataclass(frozen=True)
class Originals:
    """Runs of one scenario: finished, interrupted after `STOP_AFTER` rounds, and as a kill would have left it then."""

    finished: Path
    interrupted: Path
    killed: Path
    digest: Any


@cache
def originals() -> Originals:
    """Made once in a process; they are copied before they are damaged."""
    folder = Path(mkdtemp(prefix="blossom-ray-fuzz-"))
    for _ in record_run(small_scenario(), folder / "finished"):
        pass
    records = record_run(small_scenario(), folder / "interrupted")
    for record in records:
        if record.round_index == STOP_AFTER:
            shutil.copytree(folder / "interrupted", folder / "killed")
            break
    records.close()
    digest = Run.open(folder / "finished").manifest["digest"]
    return Originals(folder / "finished", folder / "interrupted", folder / "killed", digest)


def remove_originals() -> None:
    """Remove what `originals` made."""
    shutil.rmtree(originals().finished.parent)
    originals.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def _originals_removed() -> Iterator[None]:
    yield
    remove_originals()


def damaged_copy(original: Path, case: RunCase, target: Path, chosen: Callable[[Path], bool]) -> Path:
    """A copy of a run folder with one file damaged; `chosen` says which files may be."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(original, target)
    files = sorted(path for path in target.rglob("*") if path.is_file() and chosen(path.relative_to(target)))
    path = files[case.file % len(files)]
    if case.is_swapped:
        shutil.copyfile(files[(case.file + 1) % len(files)], path)
    elif case.tree and path.suffix == ".json":
        tree = changed(json.loads(path.read_text(encoding="utf-8")), case.tree)
        if case.is_signed and isinstance(tree, dict):
            tree["checksum"] = _index_checksum(tree)
        path.write_text(json.dumps(tree), encoding="utf-8")
    elif case.edits:
        path.write_bytes(damaged(path.read_bytes(), case.edits))
    else:
        path.unlink()
    return target


def check_reading(case: RunCase, folder: Path) -> None:
    """Read everything of a damaged run; raises what no user may see, or AssertionError."""
    started = time.process_time()
    original = originals().killed if case.was_killed else originals().finished
    path = damaged_copy(original, case, folder / "read", lambda path: len(path.parts) == 1)
    run = outcome(lambda: Run.open(path))
    if isinstance(run, BlossomError):
        assert str(run).startswith(str(path))
        return
    for name in (*FRAMES, "final", "scenario"):
        found = outcome(partial(getattr, run, name))
        if isinstance(found, BlossomError):
            assert isinstance(found, InputError)
            assert str(path) in str(found)
    assert isinstance(run.status, str)
    assert time.process_time() - started < LONGEST_CASE_S


def check_resuming(case: RunCase, folder: Path) -> None:
    """Go on with a damaged run: the result of the undisturbed one, or an error of ours."""
    started = time.process_time()
    original = originals().killed if case.was_killed else originals().interrupted
    path = damaged_copy(original, case, folder / "resumed", lambda path: path.name != SCENARIO_FILE)
    ended = outcome(lambda: list(resume_run(small_scenario(), path)))
    if isinstance(ended, BlossomError):
        assert str(path) in str(ended)
    else:
        run = Run.open(path)
        assert run.status == "finished"
        assert run.manifest["digest"] == originals().digest
        assert run.rounds["round"].to_list() == list(range(NUM_ROUNDS + 1))
    assert time.process_time() - started < LONGEST_CASE_S


@given(case=cases)
@few(80)
def test_what_a_damaged_run_gives(case: RunCase, tmp_path_factory: pytest.TempPathFactory) -> None:
    check_reading(case, tmp_path_factory.getbasetemp())


@given(case=cases)
@few(30)
def test_a_damaged_run_goes_on_right_or_not_at_all(case: RunCase, tmp_path_factory: pytest.TempPathFactory) -> None:
    check_resuming(case, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("state", ["interrupted", "killed"])
def test_the_undamaged_run_goes_on(state: str, tmp_path: Path) -> None:
    shutil.copytree(getattr(originals(), state), tmp_path / "run")
    assert Run.open(tmp_path / "run").rounds["round"].to_list() == list(range(STOP_AFTER + 1))
    for _ in resume_run(small_scenario(), tmp_path / "run"):
        pass
    assert Run.open(tmp_path / "run").manifest["digest"] == originals().digest


@pytest.mark.parametrize("damage", ["nested", "list", "number"])
def test_a_manifest_that_is_json_and_no_manifest(damage: str, tmp_path: Path) -> None:
    shutil.copytree(originals().finished, tmp_path / "run")
    text = {"nested": "[" * 100_000, "list": "[1]", "number": "9" * 10_000}[damage]
    (tmp_path / "run" / MANIFEST_FILE).write_text(text)
    with pytest.raises(BlossomError, match=r"manifest\.json: (cannot be read|is .*; expected a mapping)"):
        Run.open(tmp_path / "run")
