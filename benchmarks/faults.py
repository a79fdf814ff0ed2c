"""A fault campaign: runs whose processes are killed at random moments, compared bit for bit with an undisturbed one.

    python benchmarks/faults.py --runs 50 --out faults
    python benchmarks/faults.py --runs 0 --out faults        # the table of what is there, nothing is run

Each run is a `blossom-ray simulate` with partial participation, private heads and kept optimizer state on three
actors. At random moments one victim after another gets SIGKILL: a client actor, two, all of them, the driver actor,
or the command itself, which is then resumed. A few undisturbed runs come first: what a fault costs is measured against
their median. One line of JSON per run is appended to `<out>/campaign.jsonl` as it ends, so a campaign that is
interrupted goes on where it stopped; the table of all lines is printed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil

from blossom_ray import Run, Scenario, simulate
from blossom_ray.reading.writer import scenario_yaml

QUICKSTART = Path(__file__).parent.parent / "scenarios" / "quickstart.yaml"
# Kind of fault: the title of the processes that it strikes, and how many of them (None: all).
VICTIMS: dict[str, tuple[str, int | None]] = {
    "client actor": ("ray::ClientActor", 1),
    "two client actors": ("ray::ClientActor", 2),
    "all client actors": ("ray::ClientActor", None),
    "driver actor": ("ray::DriverActor", 1),
}
KINDS = (*VICTIMS, "command")
CHANGES: dict[str, Any] = {
    "name": "faults",
    "data.samples": 1500,
    "sharing": "private-head",
    "server.clients_per_round": 6,
    "training.keep_optimizer_state": True,
    "training.local_epochs": 3,
    "checkpoint.every": 3,
    "failures.max_retries": 5,
    "execution": {"runtime": "ray", "clients_per_actor": 4, "client_resources": {"num_cpus": 0.5}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="disturbed runs, those of earlier calls included")
    parser.add_argument("--undisturbed", type=int, default=3, help="runs without faults, before the others")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=2, help="most kills per run")
    parser.add_argument("--out", type=Path, default=Path("faults"))
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    out.mkdir(exist_ok=True)

    log = out / "campaign.jsonl"
    if arguments.runs:
        scenario = Scenario.load(QUICKSTART, CHANGES | {"rounds": arguments.rounds})
        (out / "scenario.yaml").write_text(scenario_yaml(scenario), encoding="utf-8")
        expected = simulate(scenario.override({"execution.runtime": "local"}), out=out / "expected")
        for number in range(len(outcomes(log)), arguments.undisturbed + arguments.runs):
            rng = random.Random(number)
            kills = rng.randint(1, arguments.kills) if number >= arguments.undisturbed else 0
            planned = [(rng.choice(KINDS), rng.uniform(0.0, 6.0)) for _ in range(kills)]
            outcome = {"run": number, "planned": kills, **disturbed(out, planned, expected)}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(outcome) + "\n")
    print(table(outcomes(log)))


def outcomes(log: Path) -> list[dict[str, Any]]:
    """What became of the runs so far."""
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def disturbed(out: Path, planned: list[tuple[str, float]], expected: Run) -> dict[str, Any]:
    """One run with faults, each so many seconds after client actors are there, and what became of it."""
    started = time.perf_counter()
    before = set((out / "runs").glob("faults/*"))
    command = [sys.executable, "-m", "blossom_ray", "simulate", str(out / "scenario.yaml"), "--out", str(out / "runs")]
    faults: list[str] = []
    process = start(command)
    for kind, delay in planned:
        if not wait_for_actors(process):
            break
        time.sleep(delay)
        if process.poll() is not None or not strike(process, kind):
            break
        faults.append(kind)
        if kind == "command":
            process.wait()
            process = start(resume_command(out, before, command))
    exit_code = process.wait(timeout=900)
    (folder,) = run_folders(out, before)
    run = Run.open(folder)
    return {
        "faults": faults,
        "exit_code": exit_code,
        "status": run.status,
        "identical": run.status == "finished" and same(run, expected),
        "repeated": run.failures.height,
        "driver_losses": len(run.manifest.get("driver_losses", [])),
        "seconds": round(time.perf_counter() - started, 1),
    }


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sys.stderr)


def run_folders(out: Path, before: set[Path]) -> list[Path]:
    """Run folders that came since then; one without a manifest is of a command that was killed at once."""
    return [folder for folder in set((out / "runs").glob("faults/*")) - before if (folder / "manifest.json").exists()]


def resume_command(out: Path, before: set[Path], command: list[str]) -> list[str]:
    """Go on with the run, or begin it where the command was killed before it had a folder."""
    folders = run_folders(out, before)
    return [sys.executable, "-m", "blossom_ray", "resume", str(folders[0])] if folders else command


def wait_for_actors(process: subprocess.Popen[bytes]) -> bool:
    """Wait until client actors are there; False if the run ended before."""
    while process.poll() is None:
        if victims(process, "ray::ClientActor"):
            return True
        time.sleep(0.05)
    return False


def strike(process: subprocess.Popen[bytes], kind: str) -> bool:
    """Kill; whether there was anything to kill."""
    if kind == "command":
        process.kill()
        return True
    title, number = VICTIMS[kind]
    found = victims(process, title)[:number]
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return bool(found)


def victims(process: subprocess.Popen[bytes], title: str) -> list[int]:
    found = []
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    for child in children:
        try:
            if title in " ".join(child.cmdline()):
                found.append(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def same(run: Run, expected: Run) -> bool:
    """The same bits in blocks and tables, but for times."""
    if run.manifest["digest"] != expected.manifest["digest"]:
        return False
    for name in ("rounds", "clients", "blocks"):
        frame, other = getattr(run, name), getattr(expected, name)
        timed = [column for column in other.columns if "seconds" in column]
        if not frame.drop(timed).equals(other.drop(timed)):
            return False
    return True


def table(outcomes: list[dict[str, Any]]) -> str:
    undisturbed = [outcome for outcome in outcomes if not outcome["planned"]]
    runs = [outcome for outcome in outcomes if outcome["planned"]]
    kinds = Counter(kind for outcome in runs for kind in outcome["faults"])
    rows: dict[str, object] = {
        "runs": len(runs),
        "faults injected": kinds.total(),
        **{f"- {kind} killed": kinds[kind] for kind in KINDS},
        "runs finished": sum(outcome["status"] == "finished" for outcome in runs),
        "runs bit-identical to the undisturbed one": sum(outcome["identical"] for outcome in runs),
    }
    if undisturbed:
        usual = median(outcome["seconds"] for outcome in undisturbed)
        rows[f"seconds of an undisturbed run (median of {len(undisturbed)})"] = f"{usual:.1f}"
        if kinds.total():
            lost = sum(outcome["seconds"] - usual for outcome in runs if outcome["faults"])
            rows["seconds lost per fault (mean)"] = f"{lost / kinds.total():.1f}"
        for kind in KINDS:
            alone = [outcome["seconds"] - usual for outcome in runs if outcome["faults"] == [kind]]
            if alone:
                rows[f"- {kind} (mean of {len(alone)} runs with this fault alone)"] = f"{mean(alone):.1f}"
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


if __name__ == "__main__":
    main()
