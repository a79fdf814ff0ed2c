"""Damaged run folders by the thousand: truncated, edited, swapped, linked, hostile, then used by every command.

    python benchmarks/mutations.py --mutations 1000 --seed 0 --out mutations

The victim is a federation whose result depends on everything that can be lost: six clients, private heads, kept
optimizer state, four of six a round, a checkpoint every second round; there is one that was killed after round 6, one
that finished, and a sweep. A mutation damages a copy in one way, then one command of `resume`, `attach`, `compare`,
`report` and `stop` runs on it in a forked child with a time limit. It must end as on the undamaged folder, or with exit
code 1 or 2 and a few lines without a traceback and without raw escapes; it must change nothing outside the folder.
One line of JSON per mutation is appended to `<out>/mutations.jsonl` as it ends; the table is printed at the end, and
the exit code is 1 if anything was not as it must be.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# Some for the children, which are forked.
import blossom_ray.cli.commands
import blossom_ray.cli.console.runs
import blossom_ray.runtime.local
import blossom_ray.studies.reports.report  # noqa: F401
from blossom_ray import Run, Scenario, sweep
from blossom_ray.runs.session import record_run
from blossom_ray.runs.table_files import read_table
from blossom_ray.runs.tables import TABLES
from blossom_ray.storage import remove

ROUNDS, KILLED_AFTER = 8, 6
TIMEOUT_S = 30.0
MOST_OUTPUT_BYTES = 20_000
COMMANDS = ("resume", "attach", "compare", "report", "stop")
HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07", "\x9b31m", "<script>alert(1)</script>", "$\\frac{", "$x$", "../../evil", "\u202eabc",
    "x" * 5000, "\n\nerror: gone", "", "é" * 300, "\0",
)  # fmt: skip
ODD = (None, True, -1, 0, 2**63, 10**30, 1e308, float("inf"), float("nan"), [], {}, [[]], "1e999", *HOSTILE)
ESCAPES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def victim() -> Scenario:
    """The scenario of the runs that are damaged."""
    return Scenario.model_validate(
        {
            "name": "victim",
            "rounds": ROUNDS,
            "data": {"dataset": "synthetic", "samples": 90, "modalities": {"acc": {"shape": [3, 8]}}},
            "clients": [{"count": 6, "modalities": ["acc"]}],
            "model": {"encoders": {"acc": {"kind": "mlp", "hidden": [4]}}},
            "sharing": "private-head",
            "server": {"clients_per_round": 4},
            "training": {"keep_optimizer_state": True, "optimizer": {"kind": "adam", "lr": 0.01}},
            "checkpoint": {"every": 2},
            "execution": {"runtime": "local"},
        }
    )


def make_originals(folder: Path) -> int:
    """`killed`, `finished`, `sweep`, and `other`, from which parts are swapped in."""
    scenario = victim()
    for name, seed in (("finished", 0), ("other", 1)):
        records = record_run(scenario.override({"seed": seed}), folder / name)
        for record in records:
            if (name, record.round_index) == ("finished", KILLED_AFTER):
                shutil.copytree(folder / name, folder / "killed")
    for _ in sweep(scenario.override({"rounds": 2}), seeds=[0, 1], out=folder / "sweep"):
        pass
    return 0


# Each damages a folder in one way, and says to what.


def some_file(folder: Path, rng: random.Random) -> Path:
    """Any file of the folder, tables and JSON rather than others."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    likely = [path for path in files if path.suffix in (".arrows", ".parquet", ".json")]
    return rng.choice(likely if likely and rng.random() < 0.7 else files)


def truncated(folder: Path, rng: random.Random) -> Path:
    path = some_file(folder, rng)
    os.truncate(path, rng.randrange(path.stat().st_size + 1))
    return path


def emptied(folder: Path, rng: random.Random) -> Path:
    path = some_file(folder, rng)
    os.truncate(path, 0)
    return path


def flipped(folder: Path, rng: random.Random) -> Path:
    path = some_file(folder, rng)
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 3)):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return path


def doubled(folder: Path, rng: random.Random) -> Path:
    path = some_file(folder, rng)
    path.write_bytes(path.read_bytes() * 2)
    return path


def gone(folder: Path, rng: random.Random) -> Path:
    path = some_file(folder, rng)
    path.unlink()
    return path


def swapped(folder: Path, rng: random.Random) -> Path:
    """The same file of another run, or another file of this one."""
    path = some_file(folder, rng)
    other = folder.parent.parent / "originals" / "other" / path.relative_to(folder)
    if not other.is_file() or rng.random() < 0.3:
        other = some_file(folder, rng)
    shutil.copyfile(other, folder / "swapped")
    (folder / "swapped").replace(path)
    return path


def rows_changed(folder: Path, rng: random.Random) -> Path:
    """A whole table with rows cut at a record, left out, twice, none at all, another number or a hostile text."""
    run = rng.choice(sorted(path.parent for path in folder.rglob("manifest.json")))
    name = rng.choice([*TABLES])
    table = read_table(run, name)
    start, length = rng.randrange(table.num_rows + 1), rng.randint(1, 5)
    match rng.choice(("cut", "hole", "double", "empty", "edit")):
        case "cut":
            table = table.slice(0, start)
        case "hole":
            table = pa.concat_tables([table.slice(0, start), table.slice(start + length)])
        case "double":
            table = pa.concat_tables([table.slice(0, start + length), table.slice(start)])
        case "empty":
            table = table.slice(0, 0)
        case _ if table.num_rows:
            rows, column = table.to_pylist(), rng.choice(table.column_names)
            kind = table[column].type
            value = rng.choice(HOSTILE) if pa.types.is_string(kind) else rng.choice((0, -1, 1, 2**31 - 1, None))
            rows[rng.randrange(len(rows))][column] = value
            table = pa.Table.from_pylist(rows, table.schema)
    new = run / "new"
    if (run / f"{name}.parquet").exists():
        pq.write_table(table, new)
        path = run / f"{name}.parquet"
    else:
        with pa.OSFile(str(new), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        path = run / f"{name}.arrows"
    new.replace(path)
    return path


def json_changed(folder: Path, rng: random.Random) -> Path:
    """Other values, types and names in a manifest, an index or a sweep; also one that is a status."""
    path = rng.choice(sorted(folder.rglob("*.json")))
    tree = json.loads(path.read_text(encoding="utf-8"))
    if "status" in tree and rng.random() < 0.3:
        tree["status"] = rng.choice(("finished", "running", "failed", "interrupted", *HOSTILE))
    else:
        place: Any = tree
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = rng.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
                place = place[key]
                continue
            place[key] = rng.choice(ODD)
            break
    if "status" in tree and rng.random() < 0.2:
        tree |= {"notes": [rng.choice(HOSTILE)], "error": {"type": "X", "message": rng.choice(HOSTILE)}}
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def scenario_changed(folder: Path, rng: random.Random) -> Path:
    """Another value or a hostile name in a scenario, with and without the manifest's checksum of it."""
    path = rng.choice(sorted(folder.rglob("scenario.yaml")))
    text = path.read_text(encoding="utf-8")
    edits = ("rounds: ", "seed: ", "name: ", "lr: ", "every: ")
    edit = rng.choice([edit for edit in edits if edit in text])
    value = json.dumps(rng.choice((*HOSTILE, 1, 3, 0.5)))
    path.write_text(re.sub(rf"{edit}\S+", lambda _: edit + value, text, count=1), encoding="utf-8")
    if rng.random() < 0.3:
        manifest = path.with_name("manifest.json")
        tree = json.loads(manifest.read_text(encoding="utf-8"))
        tree.pop("scenario_sha256", None)
        manifest.write_text(json.dumps(tree), encoding="utf-8")
    return path


def linked(folder: Path, rng: random.Random) -> Path:
    """A link to someone else's file, folder or device, a hard link, a pipe or a folder instead of a file or folder."""
    path = some_file(folder, rng)
    if rng.random() < 0.2 and path.parent != folder:
        path = path.parent
    outside = folder.parent / "outside"
    remove(path)
    match rng.choice(("file", "folder", "device", "none", "hard", "pipe", "mkdir", "itself")):
        case "file":
            path.symlink_to(outside / "precious")
        case "folder":
            path.symlink_to(outside)
        case "device":
            path.symlink_to(rng.choice(("/dev/zero", "/dev/full", "/dev/null")))
        case "none":
            path.symlink_to(outside / "missing")
        case "hard":
            path.hardlink_to(outside / "precious")
        case "pipe":
            os.mkfifo(path)
        case "mkdir":
            path.mkdir()
        case _:
            path.symlink_to(path.name)
    return path


def planted(folder: Path, rng: random.Random) -> Path:
    """A link where a temporary file, a report, a log or a checkpoint is about to be written."""
    run = rng.choice(sorted(path.parent for path in folder.rglob("manifest.json")))
    names = [f".{name}.{form}.partial" for name in TABLES for form in ("arrows", "parquet")]
    names += [".manifest.json.partial", ".scenario.yaml.partial", ".report.html.partial", "report.html", "log.jsonl"]
    names += ["checkpoints", "checkpoints/.000008.partial", "checkpoints/000008", "process.json", "output.log"]
    path = run / rng.choice(names)
    outside = folder.parent / "outside"
    if path.name == "report.html" or path.name == ".report.html.partial":
        path = folder / path.name
    remove(path)
    path.parent.mkdir(exist_ok=True)
    kind = rng.choice(("file", "folder", "hard", "missing"))
    if kind == "hard":
        path.hardlink_to(outside / "precious")
    else:
        path.symlink_to(outside / {"file": "precious", "folder": "", "missing": "missing"}[kind])
    return path


def process_claimed(folder: Path, rng: random.Random) -> Path:
    """A note of a process in the background, with numbers and hosts that are none."""
    import socket

    path = folder / "process.json"
    pid = rng.choice((*ODD, 1, 999_999_999, os.getppid()))
    host = rng.choice((socket.gethostname(), *HOSTILE, None))
    path.write_text(json.dumps({"pid": pid, "host": host}), encoding="utf-8")
    return path


MUTATIONS: tuple[Callable[[Path, random.Random], Path], ...] = (
    truncated, emptied, flipped, doubled, gone, swapped, rows_changed, rows_changed, json_changed, scenario_changed,
    linked, planted, process_claimed,
)  # fmt: skip


# What a command did.


def arguments_of(command: str, folder: Path) -> list[str]:
    """A command line."""
    return [command, str(folder), *(["--json"] if command == "compare" else [])]


def run_command(command: str, folder: Path, out: Path) -> tuple[int | None, str, str, float]:
    """A command: exit code (None: it took too long), standard output and error, seconds."""
    started = time.monotonic()
    code = forked(lambda: _command(arguments_of(command, folder)), out, TIMEOUT_S)
    texts = [(out / name).read_text(encoding="utf-8", errors="surrogateescape") for name in ("stdout", "stderr")]
    return code, texts[0], texts[1], time.monotonic() - started


def forked(action: Callable[[], int], out: Path, timeout_s: float) -> int | None:
    """What an action gives in a child of this process, which prints into files of `out`; None if it took too long.

    This process has imported everything and begun no threads: it has never used Polars or torch.
    """
    out.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.setsid()
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
            os.chdir(out)
            code = action()
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _command(arguments: list[str]) -> int:
    sys.argv = ["blossom-ray", *arguments]
    from blossom_ray.cli import main

    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def tables_of(folder: Path, out: Path) -> str:
    """Status, digests and rows of a run that has finished, without what was timed; empty where it cannot be read."""

    def tell() -> int:
        run = Run.open(folder)
        found = [run.status, run.manifest["digest"]]
        for name in TABLES:
            frame = getattr(run, name)
            found.append(frame.drop([column for column in frame.columns if "seconds" in column]).to_dicts())
        print(repr(found))
        return 0

    return (out / "stdout").read_text(encoding="utf-8") if forked(tell, out, TIMEOUT_S) == 0 else ""


def outside_of(folder: Path) -> list[tuple[str, bytes]]:
    """What lies where nothing may be written."""
    return [(str(path), path.read_bytes() if path.is_file() else b"") for path in sorted(folder.rglob("*"))]


def comparable(command: str, text: str, place: Path) -> str:
    """What a command printed, or its page, without places and times."""
    text = text.replace(str(place), "FOLDER")
    return re.sub(r"\d+(\.\d+)? ?(ms|s|min|MiB|kB|MB)\b", "TIME", text) if command == "attach" else text


def numbers(printed: str) -> Any:
    """A comparison in JSON without what runs noted of themselves."""
    return json.loads(printed, object_hook=lambda found: {k: v for k, v in found.items() if k != "run_notes"})


def judged(result: tuple[int | None, str, str, float], *, same: bool) -> str:
    """What is wrong with how a command ended; empty where nothing is."""
    code, stdout, stderr, _ = result
    if code is None:
        return "hang"
    if "Traceback (most recent call last)" in stdout + stderr:
        return "traceback"
    if code < 0 or code not in (0, 1, 2):
        return f"exit code {code}"
    if ESCAPES.search(stdout.replace("\r", "")) or ESCAPES.search(stderr.replace("\r", "")):
        return "raw escapes"
    if len(stdout) + len(stderr) > MOST_OUTPUT_BYTES:
        return "too much text"
    if code == 0 and not same:
        return "wrong result with exit 0"
    if code and not stderr.strip():
        return "no message"
    return ""


def trial(number: int, seed: int, folder: Path, expected: dict[tuple[str, str], Any]) -> dict[str, Any]:
    """One mutation and one command."""
    rng = random.Random(f"{seed}/{number}")
    mutate = MUTATIONS[number % len(MUTATIONS)]
    state = rng.choice(("killed", "killed", "finished", "sweep"))
    commands = ("compare", "report") if state == "sweep" else COMMANDS
    command = rng.choice((*commands, commands[0]))
    place = folder / "place"
    remove(place)
    (place / "outside").mkdir(parents=True)
    (place / "outside" / "precious").write_text("precious")
    (place / "out").mkdir()
    target = Path(shutil.copytree(folder / "originals" / state, place / "run"))
    case = {"number": number, "kind": mutate.__name__, "state": state, "command": command}
    case["file"] = str(mutate(target, rng).relative_to(target))
    before = outside_of(place / "outside"), sorted(path.name for path in place.iterdir())
    result = run_command(command, target, place / "out")
    wrong = ""
    code, stdout, stderr, seconds = result
    reference = expected[state, command]
    same = False
    if code == 0:
        with contextlib.suppress(OSError, ValueError):
            if command == "resume":
                same = tables_of(target, place / "out") == reference["tables"]
            elif command in ("attach", "compare"):
                printed = comparable(command, stdout, target)
                same = printed == reference["printed"]
                if command == "compare" and not same:
                    # What a manifest notes of its run is shown as it is.
                    same = bool(json.loads(stdout)["unused"]) or numbers(printed) == numbers(reference["printed"])
            elif command == "report":
                page = (target / "report.html").read_text(encoding="utf-8")
                printed = comparable(command, page, target)
                # What a manifest says of itself is shown, and a scenario whose checksum was taken out with it; a run
                # that was killed may have had fewer rounds.
                is_free = state == "killed" or mutate in (json_changed, process_claimed, scenario_changed)
                same = printed == reference["printed"] or "not used: " in page or is_free
                same = same and not ESCAPES.search(page.replace("\r", ""))
    wrong = judged(result, same=same)
    if (outside_of(place / "outside"), sorted(path.name for path in place.iterdir())) != before:
        wrong = "written outside"
    told = (stderr or stdout).strip().splitlines()
    return {**case, "code": code, "seconds": round(seconds, 2), "wrong": wrong, "told": told[-3:] if told else []}


def references(folder: Path) -> dict[tuple[str, str], Any]:
    """What each command gives on the undamaged folders."""
    found: dict[tuple[str, str], Any] = {}
    tables = tables_of(folder / "originals" / "finished", folder / "place")
    for state in ("killed", "finished", "sweep"):
        for command in COMMANDS if state != "sweep" else ("compare", "report"):
            place = folder / "place"
            remove(place)
            (place / "out").mkdir(parents=True)
            target = Path(shutil.copytree(folder / "originals" / state, place / "run"))
            code, stdout, stderr, _ = run_command(command, target, place / "out")
            if code != {"attach": 1 if state == "killed" else 0, "stop": 2}.get(command, 0):
                raise SystemExit(f"{command} on the undamaged {state} ended with {code}: {stderr}")
            text = (target / "report.html").read_text(encoding="utf-8") if command == "report" else stdout
            found[state, command] = {"printed": comparable(command, text, target), "tables": tables}
    return found


def table(outcomes: list[dict[str, Any]]) -> str:
    """Outcomes by kind of mutation."""
    lines = [
        "| Mutation | Trials | As undamaged, exit 0 | Refused | Wrong | Longest (s) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind in (*dict.fromkeys(mutate.__name__ for mutate in MUTATIONS), None):
        mine = [outcome for outcome in outcomes if kind in (None, outcome["kind"])]
        if mine:
            wrong = sum(bool(outcome["wrong"]) for outcome in mine)
            same = sum(outcome["code"] == 0 and not outcome["wrong"] for outcome in mine)
            longest = max(outcome["seconds"] for outcome in mine)
            name = "**all**" if kind is None else kind.replace("_", " ")
            lines.append(f"| {name} | {len(mine)} | {same} | {len(mine) - same - wrong} | {wrong} | {longest:.1f} |")
    counts = Counter(outcome["wrong"] for outcome in outcomes if outcome["wrong"])
    return "\n".join([*lines, "", *(f"{count} times: {what}" for what, count in counts.most_common())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("mutations"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    log = arguments.out / "mutations.jsonl"
    log.write_text("")
    with TemporaryDirectory(prefix="blossom-ray-mutations-") as name:
        folder = Path(name)
        if forked(lambda: make_originals(folder / "originals"), folder / "made", 300.0) != 0:
            raise SystemExit((folder / "made" / "stderr").read_text(encoding="utf-8"))
        expected = references(folder)
        for number in range(arguments.mutations):
            outcomes.append(trial(number, arguments.seed, folder, expected))
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(outcomes[-1]) + "\n")
    print(table(outcomes))
    raise SystemExit(any(outcome["wrong"] for outcome in outcomes))


if __name__ == "__main__":
    main()
