"""Every command and every snippet of the README and of the pages under docs/ runs, or stands there with a reason."""

from __future__ import annotations

import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.core
from doc_pages import CLI_REFERENCE, DOCS, PAGES, REPOSITORY, Block, Command, fenced_blocks, page_name, prose
from typer.testing import CliRunner
from warm import Server

from blossom_ray import Scenario, simulate, sweep
from blossom_ray.cli import app
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.reading.yaml_tree import parse_yaml

BLOCKS = fenced_blocks()
LONG_PAGES = ("docs/cli-reference.md", "docs/sweeps.md", "docs/tutorial.md")
"""Their commands take ten to thirty seconds; `make long` runs them."""
# Of the examples in help, which have no comments: those that need a cluster, a run that goes on, or downloaded data.
NOT_RUN_OF_HELP = {"submit", "jobs", "attach", "stop", "--address", "--detach", "--path", "--start"}


def blocks_in(language: str) -> list[Any]:
    return [pytest.param(block, id=str(block)) for block in BLOCKS if block.language == language]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, warm_server: Server) -> Path:
    """What a reader has: the scenarios, of which the quickstart is a small one here, and a run and a sweep of it."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "scenarios").mkdir()
    for entry in (REPOSITORY / "scenarios").iterdir():
        (folder / "scenarios" / entry.name).symlink_to(entry)
    quickstart = folder / "scenarios" / "quickstart.yaml"
    small = Scenario.load(quickstart).override({"rounds": 2, "data.samples": 400, "execution.runtime": "local"})
    quickstart.unlink()
    quickstart.write_text(scenario_yaml(small), encoding="utf-8")
    simulate(small, out=folder / "runs")
    schemes, out = ["full-model", "private-head"], folder / "sweeps" / "quickstart"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(warm_server.launcher))
        for _ in sweep(quickstart, vary={"sharing": schemes}, out=out, jobs=1):
            pass
    return folder


@pytest.fixture
def workplace(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_processes: None) -> Path:
    """A working directory as a reader of the docs has it."""
    shutil.copytree(prepared, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_every_language_has_its_test() -> None:
    assert {block.language for block in BLOCKS} == {"bash", "python", "yaml", "text"}


def test_every_mention_of_the_program_in_a_bash_block_is_a_command() -> None:
    for block in BLOCKS:
        if block.language == "bash":
            assert len(block.commands()) == len(re.findall(r"(?<![\w\[-])blossom-ray(?= +\S)", block.text)), str(block)


def pages_with_code() -> list[Any]:
    pages = dict.fromkeys(b.page for b in BLOCKS if b.commands() or b.language == "python")
    return [pytest.param(page, marks=marks_of(page)) for page in pages]


def marks_of(page: str) -> list[pytest.MarkDecorator]:
    found = [pytest.mark.ray] if needs_ray(page) else []
    return [*found, pytest.mark.long] if page in LONG_PAGES else found


def needs_ray(page: str) -> bool:
    return any("execution.runtime=ray" in block.text for block in BLOCKS if block.page == page)


@pytest.mark.parametrize("page", pages_with_code())
def test_a_page_runs_from_top_to_bottom(page: str, workplace: Path, request: pytest.FixtureRequest) -> None:
    """Python as a script each, a whole scenario as the file scenario.yaml, commands with smaller numbers."""
    if needs_ray(page):
        request.getfixturevalue("ray_session")
    for block in (block for block in BLOCKS if block.page == page and not block.not_run):
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
        elif block.language == "yaml" and "\nrounds:" in f"\n{block.text}":
            Path("scenario.yaml").write_text(block.text, encoding="utf-8")
        for command in block.commands():
            if not is_left_out(block, command):
                run_command(block, command)


def run_command(block: Block, command: Command) -> None:
    result = CliRunner().invoke(app, adapted(command))
    exit_code = getattr(result.exception, "exit_code", result.exit_code)  # the console script turns our errors into it
    assert exit_code == block.exit_code, f"{block}: {command}\n{result.output}{result.exception or ''}"
    if command.output is not None:
        Path(command.output).write_text(result.stdout, encoding="utf-8")


def test_a_refusal_is_what_the_page_shows(workplace: Path) -> None:
    """The text block behind a command that is meant to be refused holds its message."""
    refused = [(block, shown) for block, shown in pairwise(BLOCKS) if block.exit_code]
    assert refused
    for block, shown in refused:
        (command,) = block.commands()
        shutil.copy("scenarios/quickstart.yaml", command.arguments[1])
        assert f"{CliRunner().invoke(app, command.arguments).exception}\n" == shown.text, str(block)


def is_left_out(block: Block, command: Command) -> bool:
    """Whether a command stands in the reference of the command line and needs more than is here."""
    return block.page == CLI_REFERENCE and bool(NOT_RUN_OF_HELP & {word.split("=")[0] for word in command.arguments})


def adapted(command: Command) -> list[str]:
    """The arguments with fewer seeds, rounds and processes; none of this changes what they mean."""
    arguments = [adapted_word(word) for word in command.arguments]
    if command.arguments[0] in ("simulate", "sweep") and "execution.runtime" not in str(command):
        arguments += ["--set", "execution.runtime=local"]
    return [*arguments, "--jobs", "1"] if command.arguments[0] == "sweep" else arguments


def adapted_word(word: str) -> str:
    """A smaller number, or for the run folder of a page, whose name is its time, the newest one here."""
    named = re.search(r"runs/([\w.-]+)/\d{8}T\d{6}Z-\w+", word)
    if named is not None:
        return word.replace(named[0], str(max(Path("runs", named[1]).iterdir())))
    return {"3": "2", "5": "2", "8": "2", "20": "2", "0,1,7": "0,7", "rounds=10": "rounds=2"}.get(word, word)


@pytest.mark.parametrize("block", blocks_in("yaml"))
def test_yaml_blocks_are_scenarios_or_parts_of_one(block: Block, workplace: Path) -> None:
    """A part is loaded in the place of the same sections of the quickstart."""
    for earlier in BLOCKS:  # code that writes the data which the scenario names
        if earlier.page == block.page and earlier.language == "python" and ".write_parquet(" in earlier.text:
            exec(compile(earlier.text, str(earlier), "exec"), {"__name__": "__main__"})
    document = parse_yaml(block.text)
    assert document.root is not None
    assert not document.problems
    tree = document.root.plain()
    assert isinstance(tree, dict)
    if "rounds" in tree:
        Path("scenario.yaml").write_text(block.text, encoding="utf-8")
        Scenario.load("scenario.yaml")
        return
    if "data" in tree and "dataset" not in tree["data"]:  # a page about tables says so once
        tree["data"] |= {"dataset": "table", "path": "people.parquet"}
    Scenario.load("scenarios/quickstart.yaml").override(tree)


def all_commands() -> list[Any]:
    return [
        pytest.param(command, id=f"{block}-{' '.join(command.arguments[:2])}")
        for block in BLOCKS
        for command in block.commands()
    ]


@pytest.mark.parametrize("command", all_commands())
def test_commands_have_these_options(command: Command, workplace: Path) -> None:
    """Also those that are not run: everything is parsed, and nothing is done."""
    parser, context = typer.main.get_command(app), None
    name, rest = "blossom-ray", [*command.arguments]
    while isinstance(parser, typer.core.TyperGroup):
        context = parser.make_context(name, rest, parent=context)
        name, parser, rest = parser.resolve_command(context, [*context._protected_args, *context.args])
    parser.make_context(name, rest, parent=context).close()


def options() -> dict[str, set[str]]:
    """The options of every command, by its name; of a group, those of its commands."""
    found: dict[str, set[str]] = {}

    def collect(command: Any, names: tuple[str, ...]) -> None:
        own = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name in names:
            found.setdefault(name, {"--help", "-h"}).update(own)
        for name, inner in getattr(command, "commands", {}).items():
            collect(inner, (*names[:1], name) if names else (name,))

    collect(typer.main.get_command(app), ())
    return found


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_in_the_text_have_these_options(page: Path) -> None:
    """Code in a sentence, such as `simulate --resume`."""
    known, wrong = options(), []
    for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page)):
        words = code.removeprefix("blossom-ray ").split()
        is_command = code.startswith("blossom-ray ") or any(word.startswith("--") for word in words[1:])
        if not is_command or not words[0].islower():
            continue
        if code.startswith("blossom-ray ") and not words[0].startswith("-") and words[0] not in known:
            wrong.append(code)
        flags = {word.split("=")[0].rstrip(".,;") for word in words if word.startswith("--")}
        if words[0] in known and not flags <= known[words[0]]:
            wrong.append(code)
    assert wrong == []


def test_the_ceilings_are_those_that_the_page_prints(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (b for b in BLOCKS if b.page == "docs/semantics.md" and b.language == "python")
    exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    page = (DOCS / "semantics.md").read_text(encoding="utf-8")
    assert [line for line in printed if f"`{line}`" not in page] == []


def test_scripts_that_are_run_exist() -> None:
    """The examples have tests of their own, and so have the benchmarks."""
    named = {name for b in BLOCKS if b.language == "bash" for name in re.findall(r"\bpython3? (\S+\.py)", b.text)}
    assert "examples/own_encoder.py" in named
    assert [name for name in named if not (REPOSITORY / name).is_file()] == []


def test_make_targets_of_the_readme_exist() -> None:
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = [name for block in BLOCKS if block.language == "bash" for name in re.findall(r"\bmake (\w+)", block.text)]
    assert "check" in named
    assert set(named) <= set(targets)
