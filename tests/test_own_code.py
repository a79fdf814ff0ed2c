"""What own code consists of, and what a sweep and a resumed run say when it has changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blossom_ray import Run, Scenario, simulate, sweep
from blossom_ray.errors import RunFolderError
from blossom_ray.reading.own_code import changed_own_code, own_code_checksums
from blossom_ray.runs.session import resume_run

pytestmark = pytest.mark.usefixtures("warm_processes")

HEAD = """\
from pathlib import Path
import numpy as np
import torch
from torch import nn
from mine.parts import scaled

HERE = Path(__file__).parent / "inside.npy"

def head(input_dim, num_outputs, weights=None):
    module = nn.Linear(input_dim, num_outputs)
    named = np.load("named.npy")
    return scaled(module)
"""


@pytest.fixture
def own(small_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "heads.py").write_text(HEAD)
    (package / "parts.py").write_text("from . import deep\nfrom .deep import FACTOR\n\ndef scaled(m):\n    return m\n")
    (package / "deep.py").write_text("FACTOR = 1\n")
    for name in ("named.npy", "option.bin", "mine/inside.npy"):
        np.save(name, np.zeros(2)) if name.endswith("npy") else Path(name).write_bytes(b"0")
    for module in ("mine", "mine.heads", "mine.parts", "mine.deep"):
        monkeypatch.delitem(__import__("sys").modules, module, raising=False)
    head = {"kind": "custom", "factory": "mine.heads:head", "options": {"weights": ["option.bin"]}}
    return small_scenario.override({"model.head": head, "execution.runtime": "local"})


def line(file: str, text: str) -> Callable[[], None]:
    def change() -> None:
        with Path(file).open("a") as handle:
            handle.write(text)

    return change


CHANGES: dict[str, Callable[[], None]] = {
    "mine.heads": line("mine/heads.py", "\nX = 1\n"),
    "mine.parts": line("mine/parts.py", "\nX = 1\n"),
    "mine.deep": line("mine/deep.py", "\nFACTOR = 2\n"),
    "named.npy": line("named.npy", "x"),
    "option.bin": line("option.bin", "x"),
    "inside.npy": line("mine/inside.npy", "x"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_what_a_cell_uses_is_refused_and_named(own: Scenario, name: str) -> None:
    (first,) = sweep(own, out="s")
    assert first.error is None
    (again,) = sweep(own, out="s")
    assert again.error is None
    CHANGES[name]()
    with pytest.raises(RunFolderError, match=rf"s: the cell small has finished with other own code: \S*{name} changed"):
        list(sweep(own, out="s"))
    assert Run.open(next(Path("s").glob("*/manifest.json")).parent).status == "finished"


def test_comments_change_nothing(own: Scenario) -> None:
    before = own_code_checksums(own)
    assert {"mine.heads", "mine.parts", "mine.deep", "named.npy", "option.bin"} < before.keys()
    line("mine/heads.py", "\n# a comment\n\n")()
    assert own_code_checksums(own) == before


def test_a_run_that_goes_on_with_changed_code_says_so(own: Scenario) -> None:
    records = simulate(own, out="runs", stream=True)
    next(records)
    next(records)
    records.close()
    (folder,) = Path("runs/small").iterdir()
    CHANGES["mine.deep"]()
    assert len(list(resume_run(own, folder))) > 0
    (note,) = (note for note in Run.open(folder).manifest["notes"] if "own code" in note)
    assert note == "own code has changed since round 1: mine.deep"


def test_callables_count_by_their_own_source(small_scenario: Scenario) -> None:
    def metric(labels: Any, outputs: Any) -> float:
        return 1.0

    found = own_code_checksums(small_scenario.override({"evaluation.metrics": {"one": {"function": metric}}}))
    assert len(found) == 1
    assert own_code_checksums(small_scenario) == {}
    assert changed_own_code(None, found) == []
    assert changed_own_code({"a": "1", "b": "2"}, {"a": "1", "c": "2"}) == ["b", "c"]
