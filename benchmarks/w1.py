"""W1: clients per second of blossom-ray, Flower, pfl-research, fluke and the bare PyTorch loop, in turns in one run.

    python -m venv .peers
    .peers/bin/pip install -r benchmarks/peers/requirements.txt
    python -m venv .fluke
    .fluke/bin/pip install torch==2.13.0 torchvision==0.28.0 fluke-fl==0.8.1
    python benchmarks/w1.py --peers .peers/bin/python --fluke .fluke/bin/python --clients 100 1000 --turns 3

Two modalities, an MLP of 27,786 parameters, all clients train ten steps of batch 16 in each round. Each contender is a
process of its own that starts anew in each turn: blossom-ray and Flower use two Ray actors, the bare loop two
processes, pfl and fluke one. First, after one round, all of them must have taken the same number of steps, with the
same mean loss (pfl reports none), and have the same average but for rounding: they start from the same parameters and
see the same batches. A figure is the median over the rounds of a turn; the table has the median over turns, with the
extremes. Processor time over all processes of a contender stands beside the clock's: it depends less on what else the
machine does.

Peers need versions of Ray and typer other than ours, and fluke others than they, hence environments of their own. Ray
gives its workers a low priority, which would decide the matter on a machine that others use, too: here it is switched
off for all.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from peers.workload import Outcome

HERE = Path(__file__).parent
ROUNDS = {
    "blossom-ray": 9,
    "bare loop, both cores": 6,
    "pfl-research, one process": 5,
    "fluke, one process": 5,
    "Flower": 3,
}
SCRIPTS = {
    "blossom-ray": "blossom.py",
    "bare loop, both cores": "plain_loop.py",
    "pfl-research, one process": "pfl_research.py",
    "fluke, one process": "fluke_w1.py",
    "Flower": "flower.py",
}
LARGEST_DIFFERENCE = 1e-5
OURS, REFERENCE, FLUKE = "blossom-ray", "bare loop, both cores", "fluke, one process"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, help="Python with flwr and pfl")
    parser.add_argument("--fluke", default=sys.executable, help="Python with fluke")
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(SCRIPTS), choices=list(SCRIPTS), help="these contenders")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="passed on to blossom.py")
    arguments = parser.parse_args()
    pythons = dict.fromkeys(SCRIPTS, arguments.peers) | {OURS: sys.executable, FLUKE: arguments.fluke}
    for num_clients in arguments.clients:
        with tempfile.TemporaryDirectory() as folder:
            ours = [f"--clients={num_clients}", *(f"--set={change}" for change in arguments.changes)]
            write = [str(Path(folder)), "none", f"--rounds={max(ROUNDS.values())}", "--write", *ours]
            subprocess.run([sys.executable, str(HERE / "peers" / "blossom.py"), *write], check=True)
            turns = []
            for number in range(arguments.turns):
                turn = {name: run(name, Path(folder), pythons[name], ours) for name in arguments.only}
                if number == 0:
                    check_same(turn)
                turns.append(turn)
                for name, outcome in turn.items():
                    rate, cost = clients_per_second(outcome, num_clients), cpu_milliseconds(outcome, num_clients)
                    print(f"turn {number + 1}, {name}: {rate:.0f} clients/s, {cost:.2f} CPU ms a client", flush=True)
        print_table(turns, num_clients)


def run(name: str, folder: Path, python: str, options: list[str]) -> Outcome:
    """Run one contender in a process of its own."""
    outcome, script = folder / "outcome.npz", HERE / "peers" / SCRIPTS[name]
    outcome.unlink(missing_ok=True)
    command = [python, str(script), str(folder), str(outcome), f"--rounds={ROUNDS[name]}"]
    environment = os.environ | {"RAY_worker_niceness": "0"}
    if name != OURS:
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(command + (options if name == OURS else []), env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return Outcome.load(outcome)


def check_same(turn: dict[str, Outcome]) -> None:
    """Stop where two contenders computed different things."""
    expected = turn.get(REFERENCE, next(iter(turn.values())))
    for name, found in turn.items():
        difference = max(float(np.abs(found.average[key] - value).max()) for key, value in expected.average.items())
        if found.num_steps != expected.num_steps or difference > LARGEST_DIFFERENCE:
            raise SystemExit(f"{name}: {found.num_steps} steps, average differs by {difference:.1e}")
        if found.loss is not None and expected.loss is not None and abs(found.loss - expected.loss) > 1e-5:
            raise SystemExit(f"{name}: mean loss {found.loss}, expected {expected.loss}")
        print(f"checked: {name}: {found.num_steps} steps, loss {found.loss}, average differs by {difference:.1e}")


def clients_per_second(outcome: Outcome, num_clients: int) -> float:
    """By the clock: median over the rounds of a turn."""
    return num_clients / median(outcome.seconds)


def cpu_milliseconds(outcome: Outcome, num_clients: int) -> float:
    """Processor time per client, all processes together: median over the rounds of a turn."""
    return 1e3 * median(outcome.cpu_seconds) / num_clients


def print_table(turns: list[dict[str, Outcome]], num_clients: int) -> None:
    """Clients per second, processor time per client, and how many times as much of both the others take."""
    print(f"\n| {num_clients:,} clients | clients/s | range | ours / it | range | CPU ms a client | it / ours |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in turns[0]:
        rates = [clients_per_second(turn[name], num_clients) for turn in turns]
        ratios = [clients_per_second(turn[OURS], num_clients) / rate for turn, rate in zip(turns, rates, strict=True)]
        costs = [cpu_milliseconds(turn[name], num_clients) for turn in turns]
        shares = [cost / cpu_milliseconds(turn[OURS], num_clients) for turn, cost in zip(turns, costs, strict=True)]
        spread = f"{min(rates):.0f} to {max(rates):.0f} | {median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
        print(f"| {name} | {median(rates):.0f} | {spread} | {median(costs):.2f} | {median(shares):.2f} |", flush=True)


if __name__ == "__main__":
    main()
