r"""Rounds of W1 and of other scenarios by this checkout and by another commit, in turns, and the start of commands.

    python benchmarks/before_after.py --base COMMIT --turns 5 \
        --scenario scenarios/paper/uci-har_dirichlet_5-5-0.yaml "UCI HAR Dataset.zip" \
        --scenario scenarios/paper/ptb-xl_dirichlet_5-5-0.yaml PTB-XL

Each turn runs both checkouts, each in a process of its own, the other one first in every second turn. A round's
seconds are processor time, on one thread, without the first round; a command's are those of the whole process. W1 is
stacked there and compiled here, the other scenarios have the engine that they name, or here that of `--engine`. Both
sides must come to the same digest, or with other engines to the same training loss in round 1 within rounding. Machines
are noisy: look at the ratio of a turn, and at the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

LARGEST_DIFFERENCE = 1e-4
REPOSITORY = Path(__file__).resolve().parent.parent
CODE = """
import itertools, json, sys, time
from pathlib import Path
from blossom_ray import Run, Scenario, simulate
path, changes, out = json.loads(sys.argv[1])
# Round 0 ends at the first of these times, and round 1 has the costs of a start.
ends = [time.process_time() for _ in simulate(Scenario.load(path, changes), out=out, stream=True)][1:]
[folder] = Path(out).glob("*/*/manifest.json")
run = Run.open(folder.parent)
found = {key: run.manifest[key] for key in ("engines", "digest")} | {"loss": run.rounds["train_loss"].drop_nulls()[0]}
print(json.dumps([[end - begin for begin, end in itertools.pairwise(ends)], found]))
"""
COMMANDS = {"--help": ["--help"], "validate": ["validate", str(REPOSITORY / "scenarios" / "quickstart.yaml")]}


def main() -> None:
    """Print the seconds of each turn and the median of the ratios, now to before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="commit to compare with")
    parser.add_argument("--scenario", nargs=2, action="append", default=[], metavar=("FILE", "DATA"))
    parser.add_argument("--engine", help="training.engine of this checkout, for the scenarios given")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    local = {"execution.runtime": "local", "checkpoint.every": 0}
    w1, stacked = local | {"rounds": 7}, {"training.engine": "vectorized"}
    # By name the scenario, and what is changed in it before and now.
    cases = {"W1": (str(REPOSITORY / "benchmarks" / "w1.yaml"), w1 | stacked, w1)}
    for file, data in arguments.scenario:
        changes = local | {"data.path": str(Path(data).resolve()), "rounds": 4}
        engine = {"training.engine": arguments.engine} if arguments.engine else {}
        cases[Path(file).stem] = (str(Path(file).resolve()), changes, changes | engine)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        base.mkdir()
        archive = subprocess.run(["git", "archive", arguments.base], cwd=REPOSITORY, check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", str(base)], input=archive.stdout, check=True)
        for case, (scenario, before, now) in cases.items():
            changes = {base: before, REPOSITORY: now}
            in_turns(case, arguments.turns, base, lambda where, s=scenario, c=changes: rounds(where, s, c[where]))
        for command, words in COMMANDS.items():
            in_turns(command, arguments.turns, base, lambda where, w=words: whole_process(where, w))


def in_turns(case: str, turns: int, base: Path, run: object) -> None:
    """Run both checkouts alternately and print what it took."""
    assert callable(run)
    ratios = []
    for turn in range(turns):
        order = [base, REPOSITORY] if turn % 2 == 0 else [REPOSITORY, base]
        found = {where: run(where) for where in order}
        (before, one), (now, other) = found[base], found[REPOSITORY]
        ratios.append(now / before)
        taken = f"{before:.3f} s before, {now:.3f} s now, ratio {ratios[-1]:.3f}{agreement(one, other)}"
        print(f"{case}, turn {turn + 1}: {taken}", flush=True)
    print(f"{case}: median ratio {median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}", flush=True)


def agreement(before: Any, now: Any) -> str:
    """How far both came to the same, for a run."""
    if before is None:
        return ""
    if before["digest"] == now["digest"]:
        return ", equal digests"
    difference = abs(now["loss"] / before["loss"] - 1)
    is_rounding = before["engines"] != now["engines"] and difference < LARGEST_DIFFERENCE
    assert is_rounding, f"{before} before, {now} now"
    return f", training loss of round 1 equal to {difference:.0e}"


def rounds(where: Path, scenario: str, changes: dict[str, object]) -> tuple[float, Any]:
    """The median processor seconds of a round after the first, and what the run came to."""
    with tempfile.TemporaryDirectory() as folder:
        printed = _run(where, ["-c", CODE, json.dumps([scenario, changes, str(Path(folder) / "run")])])
    seconds, found = json.loads(printed.splitlines()[-1])
    return median(seconds), found


def whole_process(where: Path, words: list[str]) -> tuple[float, Any]:
    """The seconds of a command, the better of three."""
    taken = []
    for _ in range(3):
        begin = time.perf_counter()
        _run(where, ["-m", "blossom_ray", *words])
        taken.append(time.perf_counter() - begin)
    return min(taken), None


def _run(where: Path, words: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(where)}
    # Python looks first where it was started.
    done = subprocess.run(
        [sys.executable, *words], cwd=where, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


if __name__ == "__main__":
    main()
