"""The scripts in examples/ run as they are, and the lines for scenario files in their docstrings are right."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from blossom_ray import Scenario, simulate
from blossom_ray.reading.yaml_tree import parse_yaml

REPOSITORY = Path(__file__).parent.parent
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
PRINTED = {
    "own_algorithm": "scaffold: accuracy ",
    "own_data": "accuracy ",
    "own_encoder": "'encoder/acc': ",
    "own_fusion": "acc+gyro: accuracy ",
    "own_loss": "train_loss",
    "own_metric": "calibration_error",
    "own_server_optimizer": "update_norm",
    "own_sharing": "%",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the examples in it."""
    for example in EXAMPLES:
        (tmp_path / example.name).write_bytes(example.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def yaml_lines(example: Path) -> str:
    """The lines of a scenario file that the docstring gives, without those of a command."""
    docstring = ast.get_docstring(ast.parse(example.read_text(encoding="utf-8")))
    assert docstring is not None
    after = docstring.partition("n a scenario file")[2]
    return "\n".join(line.removeprefix("    ") for line in after.splitlines() if line.startswith("    "))


def test_there_is_one_for_each_kind_of_own_code() -> None:
    assert {example.stem for example in EXAMPLES} == set(PRINTED)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_the_script_runs_and_learns(example: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runpy.run_path(str(folder / example.name), run_name="__main__")["run"]
    assert PRINTED[example.stem] in capsys.readouterr().out
    assert run.final["accuracy"] > 1 / run.manifest["data"]["num_classes"] + 0.1


def test_the_page_shows_the_code_of_the_examples() -> None:
    pages = [(REPOSITORY / "docs" / f"own-{kind}.md").read_text(encoding="utf-8") for kind in ("code", "algorithm")]
    page = "".join(pages)
    of_code, of_algorithms = (re.findall(r"```python\n(.*?)```", each, re.DOTALL) for each in pages)
    blocks = [*of_code, of_algorithms[0]]
    shown = [block[block.index("\n\n\n") :] for block in blocks]
    sources = "".join(example.read_text(encoding="utf-8") for example in EXAMPLES)
    assert len(shown) == 7
    assert [code for code in shown if code not in sources] == []
    assert [example.stem for example in EXAMPLES if f"../examples/{example.name})" not in page] == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_the_lines_for_a_scenario_file_do_the_same(example: Path, folder: Path) -> None:
    document = parse_yaml(yaml_lines(example))
    assert document.root is not None
    assert not document.problems
    lines: Any = document.root.plain()
    assert isinstance(lines, dict)
    scenario: Scenario = runpy.run_path(str(folder / example.name))["SCENARIO"]
    own = simulate(scenario.override({**_dotted(lines), "rounds": 1}))
    assert own.rounds.height == 2
    if example.stem == "own_metric":
        direct = simulate(scenario.override({"rounds": 1}))
        assert own.final["calibration_error"] == direct.final["calibration_error"]


def _dotted(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Overrides two levels deep, so that what the lines do not name stays as it is."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict) and key in ("model", "server", "training", "evaluation", "encoders", "metrics")
        found |= _dotted(value, f"{path}{key}.") if nested else {f"{path}{key}": value}
    return found


def test_the_page_of_algorithms_has_the_lines_that_its_command_counts() -> None:
    tool = runpy.run_path(str(REPOSITORY / "docs" / "tools" / "algorithm_lines.py"))
    lines: dict[str, int] = tool["lines_by_algorithm"]()
    assert tool["count_lines"]('"""A."""\n\nimport a\n# b\ndef f():\n    """C.\n\n    D."""\n    return 1  # e\n') == 3
    page = (REPOSITORY / "docs" / "own-algorithm.md").read_text(encoding="utf-8").replace("\n", " ")
    names = {"scaffold": "SCAFFOLD", "moon": "MOON", "fedproto": "FedProto", "ditto": "Ditto", "feddyn": "FedDyn",
             "mixed": "APFL", "pfedme": "pFedMe"}  # fmt: skip
    shown = {name: f"| {names[name]} | {number} |" for name, number in lines.items() if name in names}
    shown |= {name: f"`{name.replace('_', '-')}` {number}" for name, number in lines.items() if name not in names}
    shown["class_means"] = f"share {lines['class_means']} lines of class means"
    assert [text for text in shown.values() if text not in page] == []
