"""Whatever stands in a scenario file: a scenario, or an error that says where and what is accepted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import REPOSITORY, SMALL
from hypothesis import given
from hypothesis import strategies as st
from mutations import (
    LONGEST_CASE_S,
    ByteEdit,
    TreeEdit,
    byte_edits,
    changed,
    damaged,
    few,
    keys,
    outcome,
    scalars,
    tree_edits,
)

from blossom_ray.cli.options import load_scenario
from blossom_ray.errors import BlossomError, ScenarioError
from blossom_ray.reading.yaml_tree import parse_yaml

pytestmark = pytest.mark.slow

FILES = tuple(path.read_bytes() for path in sorted((REPOSITORY / "scenarios").glob("*.yaml")))
TREES = (SMALL, *(document.root.plain() for text in FILES if (document := parse_yaml(text.decode())).root is not None))
INSERTS = (
    b"a: &a [*a]\n", b"<<: {rounds: 1}\n", b"rounds: !!python/object/apply:os.system [exit]\n", b"%YAML 1.1\n---\n",
    b"--- {}\n--- {}\n", b"? [a, b]\n: c\n", b"rounds: 1\nrounds: 2\n", b"\xef\xbb\xbf", b"\t",
    b"# " + b"x" * 9999 + b"\n",
    b"x: " + b"[" * 40 + b"]" * 40 + b"\n", b"b: &b [1,1,1,1,1,1,1]\nc: &c [*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c]\n",
)  # fmt: skip


@dataclass(frozen=True)
class ScenarioCase:
    """A scenario file and the options beside it."""

    content: bytes
    settings: tuple[str, ...] = ()
    seed: int | None = None


def _with_insert(content: bytes, insert: bytes, line: int) -> bytes:
    lines = content.splitlines(keepends=True)
    place = line % (len(lines) + 1)
    return b"".join([*lines[:place], insert, *lines[place:]])


def _as_json(tree: object) -> bytes:
    return json.dumps(tree).encode()


def _as_raw_json(tree: object) -> bytes:
    return json.dumps(tree, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _edited_tree(tree: object, edits: list[TreeEdit], write: Callable[[object], bytes]) -> bytes:
    return write(changed(tree, edits))


def _edited_file(content: bytes, edits: list[ByteEdit]) -> bytes:
    return damaged(content, edits)


contents = (
    st.builds(_edited_tree, st.sampled_from(TREES), tree_edits, st.sampled_from((_as_json, _as_raw_json)))
    | st.builds(_edited_file, st.sampled_from(FILES), byte_edits)
    | st.builds(_with_insert, st.sampled_from(FILES), st.sampled_from(INSERTS), st.integers(0, 99))
    | st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
paths = st.sampled_from(
    ("rounds", "seed", "data.samples", "data.classes", "data.dataset", "data.path", "data.partition.kind",
     "data.partition.alpha", "data.modalities.acc.shape", "clients.0.count", "clients.9.count", "clients", "model",
     "model.encoders.acc.kind", "sharing", "sharing.head", "training.optimizer.kind", "execution")
)  # fmt: skip
assignments = st.builds("{}={}".format, paths | keys, scalars | keys) | keys
cases = st.builds(
    ScenarioCase,
    contents | st.just(_as_json(SMALL)),
    st.lists(assignments, max_size=2).map(tuple),
    st.none() | st.integers(-1, 2**64),
)


def check_scenario(case: ScenarioCase, folder: Path) -> None:
    """Validate one file; raises what no user may see, or AssertionError."""
    path = folder / "fuzzed.yaml"
    path.write_bytes(case.content)
    started = time.process_time()
    found = outcome(lambda: load_scenario(path, list(case.settings), case.seed))
    if isinstance(found, BlossomError):
        assert isinstance(found, ScenarioError)
        assert found.exit_code == 2
        assert found.problems
        for problem in found.problems:
            assert str(problem).startswith((f"{path}: ", f"{path}:", "--set ", "--seed: "))
            assert problem.found
            assert problem.expected
            if problem.source is None:
                shown = str(problem)
                assert shown.isprintable(), f"{shown!r} would reach the terminal as it is"
                assert len(shown) < 2000, f"a message of {len(shown)} characters"
    assert time.process_time() - started < LONGEST_CASE_S


@given(case=cases)
@few(250)
def test_any_file_is_a_scenario_or_a_scenario_error(
    case: ScenarioCase, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_scenario(case, tmp_path_factory.getbasetemp())


SMALL_FILE = _as_json(SMALL)


@pytest.mark.parametrize(
    "content",
    [
        b"a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 10)) for c in range(97, 120)),
        b"- a\n" * 110_000,
        b"a: [" * 200_000,
        b"? " * 400_000,
        b'a: "' + b"\\n" * 500_000 + b'"',
        b"x" * 10_000_000,
        b"\0" * 10_000_000,
        b"rounds: " + b"9" * 1_000_000,
        b"".join(b"k%d: 1\n" % number for number in range(20_000)),
    ],
    ids=["bomb", "list", "deep", "question marks", "escapes", "10 MB", "zeros", "digits", "keys"],
)
def test_large_and_hostile_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "fuzzed.yaml").write_bytes(content)
    started = time.process_time()
    with pytest.raises(ScenarioError, match=r"fuzzed\.yaml"):
        load_scenario(tmp_path / "fuzzed.yaml", [], None)
    assert time.process_time() - started < LONGEST_CASE_S


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("data.samples=1000000000",), "data.samples is 1000000000; expected at most 10,000,000"),
        (("data.held_out_samples=1000000000",), "data.held_out_samples is 1000000000; expected at most 10,"),
        (("data.classes=1000000000",), "data.classes is 1000000000; expected at most 150, the number of samples"),
        (
            ("data.subjects=99999999999999999999",),
            "data.subjects is 99999999999999999999; expected .* at most 1,000,000,000",
        ),
        (("clients.0.count=1000000000",), "data.samples is 150; expected at least 2000000006"),
        (("data.modalities.acc.shape=[99999999, 99999999]",), r"shape is \[99999999, 99999999\]; expected at most"),
        (("\ud800=1",), "is not UTF-8 text"),
    ],
)
def test_absurd_numbers_are_refused_before_memory_is_asked_for(
    settings: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_bytes(SMALL_FILE)
    with pytest.raises(ScenarioError, match=message):
        load_scenario(tmp_path / "small.yaml", list(settings), None)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"rounds: 0", "rounds is 0"),
        (b"\xff\xfe", ":1: is not UTF-8"),
        (b"a: !!x 1", "has the tag"),
        (b"[" * 99999, "nested"),
    ],
)
def test_the_command_says_it_in_words(content: bytes, place: str, tmp_path: Path) -> None:
    (tmp_path / "fuzzed.yaml").write_bytes(content)
    command = [sys.executable, "-m", "blossom_ray", "validate", "fuzzed.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stdout == ""
    assert place in done.stderr
    assert "Traceback" not in done.stderr
    assert all(line.startswith("fuzzed.yaml") for line in done.stderr.splitlines())
