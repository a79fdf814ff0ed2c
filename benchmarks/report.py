"""W1 to W4 on this machine, one after the other, as a report of the day: what `make bench` runs.

    python benchmarks/report.py --peers .peers/bin/python --fluke .fluke/bin/python --data "UCI HAR Dataset.zip"

Each part is a command of its own, which first checks that contenders compute the same thing, and goes in turns. Its
output is written when it ends; started again on the same day and commit, the parts that are there are left out. W2
needs UCI-HAR's official archive.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
OURS = ("torch", "ray", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, help="Python with flwr and pfl")
    parser.add_argument("--fluke", default=sys.executable, help="Python with fluke")
    parser.add_argument("--data", help="the official archive of UCI-HAR; without it W2 is left out")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=["W1", "W2", "W3", "W4"], help="these workloads")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "bench", help="folder of the reports")
    arguments = parser.parse_args()
    commit = told("git", "describe", "--always", "--dirty")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{datetime.now():%Y-%m-%d}-{commit}.md"
    if not path.exists():
        path.write_text(
            f"# Benchmarks of {datetime.now():%Y-%m-%d}, commit {commit}\n\n{machine()}\n", encoding="utf-8"
        )
    for title, command in parts(arguments):
        if title.partition(":")[0] not in arguments.only or f"## {title}\n" in path.read_text(encoding="utf-8"):
            continue
        print(title, flush=True)
        began, load = datetime.now(), os.getloadavg()[0]
        # Ray's low priority for workers would decide the matter where others use the machine, too.
        environment = {**os.environ, "RAY_worker_niceness": "0", "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            [sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"{title} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        shown = shlex.join(["python", *command]).replace(str(REPOSITORY) + "/", "")
        took = f"{began:%H:%M}, {(datetime.now() - began).total_seconds():.0f} s, load before {load:.1f}"
        # Tables and sentences are Markdown; what peak memory says goes to the other stream.
        text = "\n".join(part.strip() for part in (done.stdout, done.stderr if title.startswith("W4") else "") if part)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n## {title}\n\n`{shown}` ({took})\n\n{text}\n")
    print(path)


def parts(arguments: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Title and command of each part."""
    turns = ["--turns", str(arguments.turns)]
    peers = ["--peers", arguments.peers, "--fluke", arguments.fluke]
    yield "W1: clients per second against peers", ["benchmarks/w1.py", *peers, "--clients", "100", "1000", *turns]
    if arguments.data:
        yield "W2: rounds of UCI-HAR against a plain loop", ["benchmarks/w2.py", arguments.data, *turns]
    yield "W3: a round without training, packed", ["benchmarks/overhead.py", "--clients", "1000"]
    few = ["--clients", "20", "--clients-per-actor", "1"]
    yield "W3: a round without training, an actor per client", ["benchmarks/overhead.py", *few]
    run = ["blossom-ray", "simulate", "benchmarks/w4.yaml", "--out", str(arguments.out / "runs")]
    yield "W4: 10,000 registered clients, memory of all processes", ["benchmarks/peak_memory.py", *run]
    yield "W4: bytes of an idle client", ["benchmarks/idle_clients.py"]


def machine() -> str:
    """What it runs on, and with which packages."""
    names = [line.partition(":")[2].strip() for line in cpu_lines() if line.startswith("model name")]
    versions = ", ".join(f"{name} {version(name)}" for name in OURS)
    memory = psutil.virtual_memory().total / 2**30
    processor = f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{os.cpu_count()} cores ({processor}), {memory:.0f} GiB, Python {platform.python_version()}, {versions}."


def cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def told(*command: str) -> str:
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
