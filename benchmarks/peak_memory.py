"""Peak memory of a command and all of its descendants together, Ray's own processes included.

    python benchmarks/peak_memory.py blossom-ray simulate scenarios/quickstart.yaml

Memory is the proportional set size (Linux): a page that several processes share counts once, divided among them.
Every `--interval` seconds the sizes of all processes are added up; the largest sum is reported, by kind of process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter

import psutil


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interval", type=float, default=0.5, help="seconds between two looks")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command and its arguments")
    arguments = parser.parse_args()

    started = time.perf_counter()
    process = subprocess.Popen(arguments.command)
    peak: Counter[str] = Counter()
    while process.poll() is None:
        now = memory_by_kind(process.pid)
        if now.total() > peak.total():
            peak = now
        time.sleep(arguments.interval)

    print(f"\n{time.perf_counter() - started:.1f} s, exit code {process.returncode}", file=sys.stderr)
    print(f"peak {peak.total() / 2**20:.0f} MiB over all processes:", file=sys.stderr)
    for kind, size in peak.most_common():
        print(f"  {size / 2**20:7.0f} MiB  {kind}", file=sys.stderr)
    raise SystemExit(process.returncode)


def memory_by_kind(root: int) -> Counter[str]:
    """Proportional set sizes in bytes of a process and its descendants, summed by kind."""
    sizes: Counter[str] = Counter()
    try:
        processes = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return sizes
    for process in processes:
        try:
            sizes[kind_of(process)] += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return sizes


def kind_of(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    if "ray::" in command:
        return command.split("::", 1)[1].split(".")[0].split()[0]
    for name in ("raylet", "gcs_server", "log_monitor", "dashboard", "agent"):
        if name in command:
            return f"ray {name}"
    return process.name()


if __name__ == "__main__":
    main()
