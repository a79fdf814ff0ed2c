"""The README and the pages under docs/ say what the code does: examples run, links lead somewhere, names exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.core
from typer.testing import CliRunner

from blossom_ray import Scenario, simulate
from blossom_ray.blocks import SCHEME_NAMES, Scope
from blossom_ray.cli import app
from blossom_ray.scenario.yaml_tree import parse_yaml
from blossom_ray.scores import SCORES, TASKS, Task
from blossom_ray.tables import TABLES

REPOSITORY = Path(__file__).parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
DOCS = REPOSITORY / "docs"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def page_name(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def fenced_blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page_name(page), line, match[1], match[2]))
    return found


BLOCKS = fenced_blocks()


def in_language(language: str) -> list[Any]:
    slow = {("README.md", "python")}
    return [
        pytest.param(block, id=str(block), marks=[pytest.mark.slow] if (block.page, language) in slow else [])
        for block in BLOCKS
        if block.language == language
    ]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the scenarios, as a reader of the docs has it."""
    (tmp_path / "scenarios").symlink_to(REPOSITORY / "scenarios")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_language_has_its_test() -> None:
    assert {block.language for block in BLOCKS} == {"bash", "python", "yaml", "text"}
    assert {block.page for block in BLOCKS if block.language == "python"} >= {"README.md", "docs/semantics.md"}


@pytest.mark.parametrize("block", in_language("python"))
def test_python_blocks_run(block: Block, workplace: Path) -> None:
    exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})


def test_the_ceilings_are_those_that_the_page_prints(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (b for b in BLOCKS if b.page == "docs/semantics.md" and b.language == "python")
    exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    page = (DOCS / "semantics.md").read_text(encoding="utf-8")
    assert [line for line in printed if f"`{line}`" not in page] == []


def write_own_data() -> None:
    """Run the page's code that writes its example table into the working directory."""
    block = next(b for b in BLOCKS if b.page == "docs/own-data.md" and b.language == "python")
    exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})


def test_a_table_runs_without_code_as_the_page_says(workplace: Path) -> None:
    write_own_data()
    (scenario,) = (b for b in BLOCKS if b.page == "docs/own-data.md" and b.language == "yaml")
    Path("scenario.yaml").write_text(scenario.text, encoding="utf-8")
    (commands,) = (b for b in BLOCKS if b.page == "docs/own-data.md" and b.language == "bash")
    for command in commands.text.split("&&"):
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output
    assert "5/5" in result.output
    assert "held-out" in result.output


@pytest.mark.parametrize("block", in_language("yaml"))
def test_yaml_blocks_are_scenarios_or_parts_of_one(block: Block, workplace: Path) -> None:
    """A part is loaded in the place of the same sections of the quickstart."""
    if block.page == "docs/own-data.md":
        write_own_data()
    document = parse_yaml(block.text)
    assert document.root is not None
    assert not document.problems
    tree = document.root.plain()
    assert isinstance(tree, dict)
    if "rounds" in tree:
        Path("scenario.yaml").write_text(block.text, encoding="utf-8")
        Scenario.load("scenario.yaml")
    else:
        Scenario.load("scenarios/quickstart.yaml").override(tree)


def command_lines() -> list[Any]:
    """The arguments of every `blossom-ray ...` command in a bash block."""
    found = []
    for block in BLOCKS:
        text = re.sub(r" > \S+$", "", block.text, flags=re.MULTILINE) if block.language == "bash" else ""
        for command in re.split(r"&&|\||\n", text):
            words = shlex.split(command, comments=True)
            if words and Path(words[0]).name == "blossom-ray":
                found.append(pytest.param(words[1:], id=f"{block}-{' '.join(words[1:3])}"))
    return found


@pytest.mark.parametrize("arguments", command_lines())
def test_commands_have_these_options(arguments: list[str], workplace: Path) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    with group.make_context("blossom-ray", [*arguments]) as context:
        name, command, rest = group.resolve_command(context, [*arguments])
        assert name is not None
        assert command is not None
        command.make_context(name, rest, parent=context).close()
    # `scenario.yaml` is one that the page has its reader write.
    if name == "validate" and arguments[-1] != "scenario.yaml":
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output


def test_the_commands_of_the_docs_include_a_run_and_a_check() -> None:
    names = {param.values[0][0] for param in command_lines()}
    assert {"simulate", "validate"} <= names


def test_make_targets_of_the_readme_exist() -> None:
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = [name for block in BLOCKS if block.language == "bash" for name in re.findall(r"\bmake (\w+)", block.text)]
    assert named == ["check"]
    assert set(named) <= set(targets)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and most renderers make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), [REPOSITORY / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        waiting += [(page.parent / link).resolve() for link in links if ":" not in link]
    own = {page.resolve() for page in PAGES if (DOCS / "results") not in page.parents}
    assert own - {page.resolve() for page in reached} == set()


def test_the_architecture_names_every_module() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    package = REPOSITORY / "blossom_ray"
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    expected = {name for name in modules if not name.endswith("/__init__.py")}
    named = set(re.findall(r"`([\w/]+\.py)`", page))
    assert expected - named == set()
    assert {name for name in named - modules if not (REPOSITORY / name).exists()} == set()


def test_the_layers_are_those_of_the_import_contract() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (c for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    layers = "\n".join(contract["layers"]).replace("blossom_ray.", "")
    assert f"```text\n{layers}\n```" in page


def test_semantics_explains_every_column_scope_and_scheme() -> None:
    page = (DOCS / "semantics.md").read_text(encoding="utf-8")
    for table, columns in TABLES.items():
        section = page.split(f"### `{table}`")[1].split("\n### ")[0]
        assert [column for column in columns if f"`{column}`" not in section] == [], table
    names = [*(str(scope) for scope in Scope), *SCHEME_NAMES]
    assert [name for name in names if f"`{name}`" not in page] == []


@pytest.mark.parametrize("task", TASKS)
def test_semantics_explains_every_summary_column(small_scenario: Scenario, task: Task) -> None:
    run = simulate(small_scenario.override({"rounds": 1, "task": task}))
    page = (DOCS / "semantics.md").read_text(encoding="utf-8")
    scores = ["loss", *(score.name for score in SCORES[task])]
    assert [name for name in scores if f"`{name}`" not in page.split("### Scores")[1].split("\n## ")[0]] == []
    sets = {group.modalities for group in small_scenario.clients}
    for column in set(run.rounds.columns) - set(TABLES["rounds"]):
        pattern = column
        for name in sorted(scores, key=len, reverse=True):
            pattern = re.sub(rf"(^|/){name}(?=$|/|_p)", r"\1<score>", pattern)
        for owned in sorted(sets, key=len, reverse=True):
            pattern = re.sub(rf"/{re.escape('+'.join(sorted(owned)))}$", "/<modality set>", pattern)
        assert f"`{pattern}`" in page, column
