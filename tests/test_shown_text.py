"""Text that comes from elsewhere: what of it reaches people, from every command."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Command
from hypothesis import given
from hypothesis import strategies as st

from blossom_ray import BlossomError, Run, RunError, ScenarioError, simulate
from blossom_ray.cli import commands
from blossom_ray.cli.console.terminal import terminal
from blossom_ray.core.locations import local_path
from blossom_ray.errors import InputError, Problem
from blossom_ray.reading.scenario import Scenario
from blossom_ray.studies.comparison import formats
from blossom_ray.studies.comparison.comparing import compare
from blossom_ray.studies.reports.charts import Curve, bars, curves, distributions, figure_style, heat_map, stacked_areas
from blossom_ray.studies.reports.page import inline_svg
from blossom_ray.studies.tables import line, plain_table
from blossom_ray.text import brief, printable, quoted

pytestmark = pytest.mark.slow

HOSTILE = (
    "\x1b[31mred\x1b[0m \x9b1m \x07\b\r\x7f \u202eoerc\u2066 \u200b [bold]no[/bold] [link=http://x]l[/link] :smile:"
)
SCENARIO = """\
name: q
rounds: 2
data: {dataset: synthetic, samples: 90, classes: 3, modalities: {acc: {shape: [8, 2]}}}
clients: [{count: 3, modalities: [acc]}]
model: {encoders: {acc: {kind: mlp, hidden: [8], dim: 6}}}
execution: {runtime: local}
"""


def blossom(*arguments: str, folder: Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "blossom_ray", *arguments]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command, cwd=folder, text=True, timeout=300, errors="surrogateescape", **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scenario, q.yaml, and a run of it, `run`."""
    made = tmp_path_factory.mktemp("text")
    (made / "q.yaml").write_text(SCENARIO, encoding="utf-8")
    run = simulate(Scenario.load(made / "q.yaml"), out=made / "runs")
    assert isinstance(run, Run)
    assert run.path is not None
    run.path.rename(made / "run")
    return made


@given(st.text(st.characters(codec=None, categories=None, exclude_categories=())))
def test_what_is_shown_can_be_seen_and_stays(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert printable(text, keep="\n").replace("\n", "").isprintable()
    assert len(brief(text * 50)) <= 10 * 200


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\x1b[1m", r"a\x1b[1m"), ("\x9b1m", r"\x9b1m"), ("\u202ea", r"\u202ea"), ("a\nb", r"a\nb"), ("é 漢字", "é 漢字"),
     ("\udcff", r"\udcff")],
)  # fmt: skip
def test_escapes_are_those_of_python(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_errors_are_lines_whatever_is_in_them() -> None:
    assert str(InputError("a\nb\x1b", "second")) == "a\\nb\\x1b\nsecond"
    assert str(RunError("a\rb", "try\nthis")) == "a\\rb\nhint: try\nthis"
    assert str(Problem("a\x07", "is\x1b", "b", file="f\n")) == r"f\n: a\x07 is\x1b; expected b"
    assert len(str(Problem("k" * 9000, "is 1", "b", source="--set " + "v" * 9000))) < 500
    assert quoted("a" * 9000) == repr("a" * 197 + "...")
    problems = ScenarioError(tuple(Problem("a", f"is {n}", "b") for n in range(1000)))
    assert str(problems).splitlines()[-1] == "and 949 more"


def test_a_console_shows_names_as_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = plain_table("first", "second")
    table.add_row(f"one\ntwo {HOSTILE}", HOSTILE)
    console = terminal(width=400)
    for shown in (table, HOSTILE, line(f"{HOSTILE}\nx", "bold")):
        console.print(shown)
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert out.replace("\n", "").isprintable()
    assert out.count("[bold]no[/bold] [link=http://x]l[/link] :smile:") == 4
    assert len([text for text in out.splitlines() if "red" in text]) == 3


@pytest.mark.parametrize("value", ["0", "-1", "x", "²", "", "99999999999999999999", "1"])
def test_a_width_of_no_sense_is_80(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Given back at once: pytest's own lines are as wide as these say, and beyond what it can count.
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("COLUMNS", value)
        environment.setenv("LINES", value)
        console = terminal()
        assert (console.width, console.height) == (80, 25)
        console.print(line("x" * 300))
    assert capsys.readouterr().out == "x" * 300 + "\n"


def hostile_run(folder: Path, target: Path) -> Path:
    """A run that somebody made whose names are not harmless."""
    made = target.parent / "made"
    shutil.copytree(folder / "run", made)
    manifest = json.loads((made / "manifest.json").read_text(encoding="utf-8"))
    del manifest["tables"]  # as of an earlier version: what the tables should hold
    manifest["notes"] = [f"note {HOSTILE}\nfake"]
    manifest["versions"]["blossom-ray"] = HOSTILE
    (made / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    blocks = pq.read_table(made / "blocks.parquet")
    place = blocks.schema.get_field_index("block")
    name = pa.array([f"$\\frac{HOSTILE}$ ^ {{\nfake"] * blocks.num_rows).cast(blocks.schema.field(place).type)
    pq.write_table(blocks.set_column(place, blocks.schema.field(place), name), made / "blocks.parquet")
    made.rename(target)
    return target


COMMANDS = [
    ["attach", "RUN"], ["compare", "RUN", "RUN"], ["compare", "RUN", "--format", "csv"], ["compare", "RUN", "--json"],
    ["compare", "RUN", "--format", "latex"], ["compare", "RUN", "--format", "markdown"], ["report", "RUN"],
    ["resume", "RUN"], ["stop", "RUN"], ["compare", "RUN", "--metric", HOSTILE], ["report", "RUN", "--title", HOSTILE],
    ["validate", HOSTILE], ["validate", "q.yaml", "--set", f"name={HOSTILE}"], ["validate", "q.yaml", f"--{HOSTILE}"],
    ["validate", "q.yaml", "--set", f"{HOSTILE}=1"], ["validate", "q.yaml", "--json", "--set", f"{HOSTILE}=1"],
    [HOSTILE], ["simulate", "q.yaml", "--out", HOSTILE.replace("/", "")], ["simulate", "q.yaml", "--track", HOSTILE],
    ["simulate", "q.yaml", "--address", HOSTILE], ["sweep", "q.yaml", "--seeds", HOSTILE], ["scenarios", HOSTILE],
    ["sweep", "q.yaml", "--vary", f"seed=1,{HOSTILE}"], ["data", "inspect", HOSTILE],
    ["data", "list", "--path", HOSTILE], ["init", "--yes", "--dataset", HOSTILE], ["plan", HOSTILE],
    ["init", "--yes", "--clients", HOSTILE],
    ["jobs", "list", "--address", HOSTILE], ["submit", "q.yaml", "--address", HOSTILE],
]  # fmt: skip


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda words: printable(" ".join(words))[:40])
def test_no_command_passes_control_characters_on(
    arguments: list[str], folder: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "q.yaml").write_text(SCENARIO, encoding="utf-8")
    run = hostile_run(folder, tmp_path / "a \x1b[31m\nb\u202e")
    ended = command(*(str(run) if word == "RUN" else word for word in arguments))
    printed = ended.out + ended.err
    assert "Traceback" not in printed
    assert ended.exit_code in (0, 2)
    assert printed
    assert printed.replace("\n", "").isprintable()
    if arguments[0] == "report":
        page = (run / "report.html").read_text(encoding="utf-8")
        assert page.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", ["$x$", "$\\frac{", "a_b^{c", "\\", "_hidden", "$$", "a\x1bb\nc", "<b>&"])
def test_labels_of_figures_are_text(name: str) -> None:
    with figure_style():
        drawn = [
            curves({name: [Curve(name, [0, 1], [1, 2]), Curve("b", [0, 1], [2, 1])]}, x_label=name, y_label=name),
            distributions({name: {name: [1.0, 2.0], "b": [1.0]}}, x_label=name),
            bars({name: {name: 1.0, "b": 2.0}}, x_label=name),
            stacked_areas([0, 1], {name: [1, 2], "b": [1, 2]}, x_label=name, y_label=name),
            heat_map([name], [name], [[1.0]], name),
        ]
        for figure in drawn:
            svg = inline_svg(figure, name="f", description=name)
            assert svg.replace("\n", "").isprintable()
            shown = printable(name).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            assert shown in svg.partition("aria-label")[2].partition(">")[2]


def test_a_long_label_leaves_room_for_its_figure() -> None:
    names = [f"{letter}{'W' * 1000}{letter}" for letter in "ab"]
    with figure_style():
        svg = inline_svg(
            bars({name: dict.fromkeys(names, 1.0) for name in names}, x_label=names[0]), name="f", description=""
        )
    assert all(f"{letter}WWW" in svg and f"WWW{letter}" in svg for letter in "ab")


def test_names_are_text_in_tables_for_papers_and_spreadsheets(folder: Path) -> None:
    found = compare(folder / "run")
    names = ["=cmd()", "@x", "+a", "-1", "a|b\\", "[x](http://y)", "<b>", "a\nb", "$x$", "a\x1bb"]
    table = pl.concat([found.table[:1]] * len(names)).with_columns(pl.Series("modalities", names))
    hostile = found.__class__(**{**vars(found), "table": table})
    rows = formats.csv(hostile).splitlines()[1:]
    assert len(rows) == len(names)
    assert ["'=cmd()" in rows[0], "'@x" in rows[1], "'+a" in rows[2], ",-1," in rows[3] or "-1" in rows[3]] == [
        True
    ] * 4
    assert "'-1" not in rows[3]
    lines = [text for text in formats.markdown(hostile, "final").splitlines() if text.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", text.replace("\\\\", ""))) for text in lines} == {len(lines[0].split("|")) - 1}
    assert any(r"\<b\>" in text for text in lines)
    assert any(r"[x\](" in text for text in lines)
    latex = formats.latex(hostile, "final")
    assert r"\$x\$" in latex
    for text in (formats.csv(hostile), "\n".join(lines), latex):
        assert text.replace("\n", "").isprintable()


ROOMS = [["validate", "q.yaml"], ["validate", "q.yaml", "--json"], ["simulate", "q.yaml"], ["scenarios"], ["--help"],
         ["simulate", "q.yaml", "--json"], ["compare", "run"], ["schema"], ["simulate", "--help"]]  # fmt: skip
REASONS = {"full": "No space left on device", "gone": "Broken pipe", "closed": "Bad file descriptor"}


def broken_output(way: str) -> int:
    """A descriptor that cannot be written."""
    if way == "full":
        return os.open("/dev/full", os.O_WRONLY)
    read, write = os.pipe()
    os.close(read)
    return write


def check_room(way: str, arguments: list[str], exit_code: int, err: str, folder: Path) -> None:
    assert exit_code == 1
    (message,) = err.splitlines()
    assert message.startswith(f"error: standard output: {REASONS[way]}")
    if arguments == ["simulate", "q.yaml"] and way != "gone":
        (kept,) = (folder / "runs" / "q").iterdir()
        assert Run.open(kept).status == "finished"
    elif arguments[0] == "simulate" and way == "gone":
        assert all((kept / "manifest.json").exists() for kept in folder.glob("runs/q/*"))


@pytest.mark.parametrize("arguments", ROOMS, ids=" ".join)
@pytest.mark.parametrize("way", REASONS)
def test_standard_output_that_cannot_be_written(
    arguments: list[str], way: str, folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(folder / "q.yaml", tmp_path)
    (tmp_path / "run").symlink_to(folder / "run")
    out = None if way == "closed" else open(broken_output(way), "w", encoding="utf-8")  # noqa: SIM115 # closed below
    monkeypatch.setattr(sys, "stdout", out)
    ended = command(*arguments)
    if out is not None:
        out.close()
    check_room(way, arguments, ended.exit_code, ended.err, tmp_path)


@pytest.mark.parametrize(("way", "arguments"), [("full", ROOMS[4]), ("gone", ROOMS[3]), ("closed", ROOMS[2])])
def test_a_process_whose_standard_output_cannot_be_written(
    arguments: list[str], way: str, folder: Path, tmp_path: Path
) -> None:
    """What Python itself writes at its end, and which file gets the number of a closed descriptor."""
    shutil.copy(folder / "q.yaml", tmp_path)
    if way == "closed":
        ended = blossom(*arguments, folder=tmp_path, stdout=None, preexec_fn=lambda: os.close(1))
    else:
        ended = blossom(*arguments, folder=tmp_path, stdout=broken_output(way))
    check_room(way, arguments, ended.returncode, ended.stderr, tmp_path)


def test_the_last_line_of_a_run_is_its_folder(folder: Path, tmp_path: Path, command: Command) -> None:
    long = tmp_path / ("x" * 100) / ("y" * 100)
    printed = command("simulate", str(folder / "q.yaml"), "--out", str(long)).out.splitlines()
    assert Path(printed[-1]).is_dir()
    written = command("report", printed[-1]).out
    assert Path(written.rstrip("\n")).is_file()


HOMES = [["simulate", "q.yaml", "--out=P"], ["sweep", "q.yaml", "--seeds=1", "--out=P"], ["report", "run", "--out=P"],
         ["report", "run", "--figures=P"], ["init", "--yes", "--out=P"]]  # fmt: skip


@pytest.mark.parametrize("arguments", HOMES, ids=" ".join)
def test_home_is_expanded_and_what_is_no_path_is_refused(
    arguments: list[str],
    folder: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    warm_processes: None,
) -> None:
    shutil.copy(folder / "q.yaml", tmp_path)
    (tmp_path / "run").symlink_to(folder / "run")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    before = sorted(tmp_path.rglob("*"))
    for path in ("file:///tmp/x", "s3://b/x", "~nobody-of-this-name/x", "b\udcff", "n" * 300, "d/" * 3000):
        ended = command(*(word.replace("P", path) for word in arguments))
        assert ended.exit_code == 2, path
        assert re.fullmatch(r"error: (--)?\w+ is '.*expected a path on this machine\n", ended.err)
        assert len(ended.err) < 400
    assert sorted(tmp_path.rglob("*")) == before
    ended = command(*(word.replace("P", "~/x") for word in arguments))
    assert ended.exit_code == 0, ended.err
    assert (home / "x").exists()
    assert not (tmp_path / "~").exists()


def test_python_takes_paths_as_the_command_line_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run = simulate(Scenario.load(folder / "q.yaml"), out="~/runs")
    assert isinstance(run, Run)
    assert run.path is not None
    assert run.path.is_relative_to(tmp_path)
    assert Run.open(f"~/{run.path.relative_to(tmp_path)}").final == run.final
    with pytest.raises(InputError, match="out is 's3://b/x', which is a URI"):
        simulate(Scenario.load(folder / "q.yaml"), out="s3://b/x")
    with pytest.raises(InputError, match="it is 's3://b/x', which is a URI"):
        local_path(Path("s3://b/x"), "it")
    with pytest.raises(InputError, match="holds a NUL"):
        local_path("a\0b", "it")
    (tmp_path / "c:").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="URI"):
        local_path("cc:/x", "it")
    (tmp_path / "cc:").mkdir()
    assert local_path("cc:/x", "it") == Path("cc:/x")


# Ctrl-C as a shell with job control has it, and the signal while a module is imported.
INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from blossom_ray.cli import main

module, number = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Interrupting())
main()
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("blossom_ray.cli.commands", ["doctor"]), ("typer", ["validate", "q.yaml"]), ("pydantic", ["scenarios"]),
     ("numpy", ["validate", "q.yaml"]), ("polars", ["compare", "run"]), ("torch", ["simulate", "q.yaml"])],
)  # fmt: skip
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_early_interrupt_is_a_word(
    module: str, arguments: list[str], number: signal.Signals, folder: Path, tmp_path: Path
) -> None:
    shutil.copy(folder / "q.yaml", tmp_path)
    (tmp_path / "run").symlink_to(folder / "run")
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, str(int(number)), *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 128 + number
    if module == "torch":  # imported by what computes, when the run has begun
        assert ended.stdout == "q, private-head-fusion, 3 clients, 2 rounds\n"
        assert ended.stderr.startswith("interrupted; complete rounds are kept in runs/q/")
        assert "Traceback" not in ended.stderr
    else:
        assert (ended.stdout, ended.stderr) in (("", "interrupted\n"), ("", "interrupted before the run began\n"))


@pytest.mark.parametrize("allocate", [np.empty, torch.empty])
def test_what_memory_is_too_small_for_is_one_line(
    allocate: Callable[[int], object], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "app", lambda **_: allocate(2**57))
    ended = command("scenarios")
    assert ended.exit_code == 1
    (message,) = ended.err.splitlines()
    assert message.startswith("error: there is not enough memory: ")


@pytest.fixture
def denied(tmp_path: Path) -> Iterator[Path]:
    """A path in a folder that this user may not look into."""
    own = tmp_path / "denied"
    own.mkdir(mode=0o000)
    for folder in (own, Path("/proc/1/cwd")):
        try:
            (folder / "x").exists()
        except PermissionError:
            yield folder / "x"
            break
    else:
        pytest.skip("this user may look into every folder")
    own.chmod(0o700)


@pytest.mark.parametrize(
    "arguments", ["attach P", "stop P", "resume P", "compare P", "report P", "validate P", "init --yes --out P",
                  "simulate q.yaml --out P", "data list --path P", "data inspect uci-har --path P"],
)  # fmt: skip
def test_a_path_that_may_not_be_used_is_one_line(
    arguments: str, denied: Path, folder: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copy(folder / "q.yaml", tmp_path)
    ended = command(*arguments.replace("P", str(denied)).split())
    assert ended.exit_code == 2
    (message,) = ended.err.splitlines()
    assert str(denied) in message


def test_text_goes_one_way() -> None:
    package = Path(__file__).parent.parent / "blossom_ray"
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name != "terminal.py":
            assert not re.search(r"\bConsole\(", text), path
        if path.name != "tables.py":
            assert not re.search(r"(?<!\w)Text\(", text), path
    assert issubclass(BlossomError, Exception)
