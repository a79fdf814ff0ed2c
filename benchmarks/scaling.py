"""How time and memory of a round grow with clients, model and actors, one at a time.

    python benchmarks/scaling.py --vary clients actors model --repeats 3

Clients have one modality (32 values), 16 training samples and take one step of batch 16; the model is one MLP, whose
hidden layer sets its size. Every row is a run of its own, in turns over the repeats, each in a process of its own. A
round is timed from one record's arrival to the next one's, without the first and the last, which is scored. Memory is
the proportional set size of all processes of the run together, Ray's own included, looked at twice a second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np
from peak_memory import memory_by_kind

from blossom_ray import Scenario, simulate

INPUT_SIZE, DIM, CLASSES = 32, 8, 4
SAMPLES_PER_CLIENT = 17
BASE = {"clients": 1000, "kilobytes": 40, "actors": 2, "engine": "vectorized"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--vary", nargs="+", default=["clients", "actors", "model"], choices=["clients", "actors", "model"]
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(round_seconds(json.loads(arguments.one), arguments.rounds)))
        return
    rows = [row for what in arguments.vary for row in rows_of(what)]
    found: list[list[tuple[float, int]]] = [[] for _ in rows]
    for _ in range(arguments.repeats):
        for row, measured in zip(rows, found, strict=True):
            measured.append(run(row, arguments.rounds))
            print(f"{row}: {1e3 * measured[-1][0]:.0f} ms a round", file=sys.stderr, flush=True)
    print("| clients | model, kB | actors | ms a round | range | ms a client | peak memory, MiB |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for row, measured in zip(rows, found, strict=True):
        milliseconds = [1e3 * seconds for seconds, _ in measured]
        middle, memory = median(milliseconds), median(size for _, size in measured) / 2**20
        spread = f"{min(milliseconds):.0f} to {max(milliseconds):.0f}"
        numbers = f"{middle:.0f} | {spread} | {middle / row['clients']:.3f} | {memory:.0f}"
        print(f"| {row['clients']:,} | {row['kilobytes']:,} | {row['actors']} | {numbers} |", flush=True)


def rows_of(what: str) -> Iterator[dict[str, Any]]:
    """The runs of one curve."""
    match what:
        case "clients":
            yield from (BASE | {"clients": number} for number in (10, 100, 1_000, 10_000))
        case "actors":
            yield from (BASE | {"actors": number} for number in (1, 2, 4))
        case "model":
            # Large models train one after the other, ten clients of them; stacks pay with small ones.
            yield BASE | {"kilobytes": 4}
            yield BASE | {"kilobytes": 400, "clients": 100}
            yield BASE | {"kilobytes": 4_000, "clients": 20, "engine": "sequential"}
            yield BASE | {"kilobytes": 40_000, "clients": 10, "engine": "sequential"}


def run(row: dict[str, Any], num_rounds: int) -> tuple[float, int]:
    """Median seconds of a round and peak memory in bytes of one run."""
    command = [sys.executable, __file__, "--one", json.dumps(row), "--rounds", str(num_rounds)]
    environment = os.environ | {"RAY_worker_niceness": "0"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_by_kind(process.pid).total())
        time.sleep(0.5)
    assert process.stdout is not None
    if process.returncode != 0:
        raise SystemExit(f"{row} failed")
    return median(json.loads(process.stdout.read())), peak


def round_seconds(row: dict[str, Any], num_rounds: int) -> list[float]:
    """Wall time of the rounds of one run."""
    arrivals = [time.perf_counter() for _ in simulate(scaling_scenario(row, num_rounds), stream=True)]
    return [float(seconds) for seconds in np.diff(arrivals)[1:-1]]


def scaling_scenario(row: dict[str, Any], num_rounds: int) -> Scenario:
    """A federation of `clients` clients with a model of `kilobytes` on `actors` actors."""
    num_clients = row["clients"]
    # Encoder h(32 + 1) + 8(h + 1), fusion 8(8 + 1), head 4(8 + 1); four bytes each.
    hidden = max(
        1, round((250 * row["kilobytes"] - DIM - DIM * (DIM + 1) - CLASSES * (DIM + 1)) / (INPUT_SIZE + 1 + DIM))
    )
    return Scenario.model_validate(
        {
            "name": "scaling",
            "rounds": num_rounds,
            "data": {
                "dataset": "synthetic",
                "samples": SAMPLES_PER_CLIENT * num_clients,
                "classes": CLASSES,
                "modalities": {"only": {"kind": "vector", "shape": [INPUT_SIZE]}},
                "held_out_samples": 0,
                "test_fraction": 0.001,
            },
            "clients": [{"count": num_clients, "modalities": ["only"]}],
            "model": {
                "encoders": {"only": {"kind": "mlp", "hidden": [hidden], "dim": DIM}},
                "fusion": {"kind": "concat", "dim": DIM},
                "head": {"kind": "linear"},
            },
            "sharing": "full-model",
            "training": {"batch_size": 16, "engine": row["engine"]},
            "evaluation": {"every": num_rounds, "clients": 1 / num_clients},
            "execution": {
                "chunk_size": 50 if num_clients >= 100 else 5,
                "clients_per_actor": -(-num_clients // row["actors"]),
                "client_resources": {"num_cpus": 0.25},
            },
        }
    )


if __name__ == "__main__":
    main()
