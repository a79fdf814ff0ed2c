"""A fault campaign: runs whose processes are killed at random moments, compared bit for bit with an undisturbed one.

    python benchmarks/faults.py --runs 50 --out faults

Each run is a `blossom-ray simulate` of 20 rounds with partial participation, private heads and kept optimizer state on
three actors. At random moments one victim after another gets SIGKILL: a client actor, all client actors, the driver
actor, or the command itself, which is then resumed. One line of JSON per run is appended to `<out>/campaign.jsonl` as
it ends, so an interrupted campaign goes on where it stopped; the table of all lines is printed at the end.
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
from typing import Any

import psutil

from blossom_ray import Run, Scenario, simulate
from blossom_ray.scenario.writer import scenario_yaml

VICTIMS = {"client actor": "ray::ClientActor", "all client actors": "ray::ClientActor", "driver": "ray::DriverActor"}
KINDS = (*VICTIMS, "command")
CHANGES: dict[str, Any] = {
    "name": "faults",
    "rounds": 20,
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
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--kills", type=int, default=2, help="most kills per run")
    parser.add_argument("--out", type=Path, default=Path("faults"))
    arguments = parser.parse_args()
    arguments.out.mkdir(exist_ok=True)

    scenario = Scenario.load("scenarios/quickstart.yaml", CHANGES)
    (arguments.out / "scenario.yaml").write_text(scenario_yaml(scenario), encoding="utf-8")
    expected = simulate(scenario.override({"execution.runtime": "local"}), out=arguments.out / "undisturbed")
    log = arguments.out / "campaign.jsonl"
    done = len(log.read_text().splitlines()) if log.exists() else 0
    for number in range(done, arguments.runs):
        outcome = disturbed(arguments.out, random.Random(number), arguments.kills, expected)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"run": number, **outcome}) + "\n")
    print(table([json.loads(line) for line in log.read_text().splitlines()]))


def disturbed(out: Path, rng: random.Random, most_kills: int, expected: Run) -> dict[str, Any]:
    """One run with kills at random moments, and what became of it."""
    started = time.perf_counter()
    before = set((out / "runs").glob("faults/*"))
    command = [sys.executable, "-m", "blossom_ray", "simulate", str(out / "scenario.yaml"), "--out", str(out / "runs")]
    faults: list[str] = []
    planned = [(rng.choice(KINDS), rng.uniform(0.0, 6.0)) for _ in range(rng.randint(1, most_kills))]
    process = start(command)
    for kind, delay in planned:
        if not wait_for_actors(process):
            break
        time.sleep(delay)
        if process.poll() is None and strike(process, kind):
            faults.append(kind)
        if kind == "command":
            process.wait()
            process = start(resume_command(out, before, command))
    exit_code = process.wait(timeout=600)
    (folder,) = set((out / "runs").glob("faults/*")) - before
    run = Run.open(folder)
    return {
        "faults": faults,
        "exit_code": exit_code,
        "status": run.status,
        "identical": run.status == "finished" and same(run, expected),
        "repeated": run.failures.height,
        "driver_restarts": run.manifest.get("driver_restarts", 0),
        "seconds": round(time.perf_counter() - started, 1),
    }


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sys.stderr)


def resume_command(out: Path, before: set[Path], command: list[str]) -> list[str]:
    """Go on with the run, or begin it where the command was killed before it had a folder."""
    folders = set((out / "runs").glob("faults/*")) - before
    ready = [folder for folder in folders if (folder / "manifest.json").exists()]
    return [sys.executable, "-m", "blossom_ray", "resume", str(ready[0])] if ready else command


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
    found = victims(process, VICTIMS[kind])
    for pid in found if kind == "all client actors" else found[:1]:
        os.kill(pid, signal.SIGKILL)
    return bool(found)


def victims(process: subprocess.Popen[bytes], title: str) -> list[int]:
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child.pid for child in children if title in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []


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
    kinds = Counter(kind for outcome in outcomes for kind in outcome["faults"])
    finished = sum(outcome["status"] == "finished" for outcome in outcomes)
    rows = {
        "runs": len(outcomes),
        "faults injected": sum(kinds.values()),
        **{f"  {kind} killed": kinds[kind] for kind in KINDS},
        "runs finished": finished,
        "runs bit-identical to the undisturbed one": sum(outcome["identical"] for outcome in outcomes),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


if __name__ == "__main__":
    main()
