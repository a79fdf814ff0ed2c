"""W2: rounds of the modality-exclusive UCI-HAR setting on both cores, against a plain PyTorch loop on both cores.

    python benchmarks/w2.py "UCI HAR Dataset.zip" --turns 3

Ten clients, five with the accelerometer and five with the gyroscope, Dirichlet(0.5), the paper's model (385,352
parameters with both modalities), private head and fusion: `scenarios/uci-har-exclusive.yaml`. Ours is `simulate` with
two actors and `training.engine: compiled`, or that of `--engine`; the time of a round is split into training (with
sending, averaging and the server's step) and scoring. The plain loop trains the same clients on the same batches in two
processes, each with half of the samples, and does nothing else: no averaging, no scoring, the same initial blocks in
each round. That both compute the same is checked for one client, in one process, as in `uci_har_round.py`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import get_args

import torch
from uci_har_round import check_same_result, plain

from blossom_ray import Scenario, simulate
from blossom_ray.clients.options import EngineName
from blossom_ray.runtime.preparation import Preparation, prepare

NUM_PROCESSES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the official archive")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--engine", default="compiled", choices=get_args(EngineName))
    parser.add_argument("--rounds", type=int, default=4, help="rounds of each in a turn")
    arguments = parser.parse_args()
    # Ray's low priority for workers would decide the matter where others use the machine, too.
    os.environ |= {"RAY_worker_niceness": "0"}
    changes = {"data.path": arguments.data, "rounds": arguments.rounds, "evaluation.held_out": "never"}
    changes["training.engine"] = arguments.engine
    scenario = Scenario.load("scenarios/uci-har-exclusive.yaml", changes)
    training, scoring, loop = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        preparation = prepare(scenario, Path(folder))
        check_same_result(preparation, arguments.engine)
        with plain_workers(preparation) as pipes:
            for _ in range(arguments.turns):
                records = list(simulate(scenario, stream=True))[1:]
                training.append(median(record.seconds["train"] for record in records))
                scoring.append(median(record.seconds["evaluate"] for record in records))
                loop.append(median(plain_round(pipes) for _ in range(arguments.rounds)))
    ratios = [ours / theirs for ours, theirs in zip(training, loop, strict=True)]
    print("| seconds a round, both cores | median over turns | range |\n|---|---:|---:|")
    rows = {"ours, training": training, "plain loop, training": loop, "ours, scoring": scoring}
    for name, values in (rows | {"ours / plain loop, training": ratios}).items():
        print(f"| {name} | {median(values):.2f} | {min(values):.2f} to {max(values):.2f} |")


@contextmanager
def plain_workers(preparation: Preparation) -> Iterator[list[Connection]]:
    """Processes that wait for a round to begin."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for number in range(NUM_PROCESSES):
        ours, theirs = context.Pipe()
        context.Process(target=work, args=(preparation, halves(preparation)[number], theirs), daemon=True).start()
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()
    yield pipes
    for pipe in pipes:
        pipe.send(False)


def halves(preparation: Preparation) -> list[list[int]]:
    """The clients of each process: the largest one left goes to the process with the fewest samples."""
    sizes, parts = preparation.shards.num_train, [[] for _ in range(NUM_PROCESSES)]
    for client in sorted(range(len(sizes)), key=lambda client: -sizes[client]):
        min(parts, key=lambda part: sum(sizes[member] for member in part)).append(client)
    return parts


def work(preparation: Preparation, clients: list[int], pipe: Connection) -> None:
    torch.set_num_threads(1)
    pipe.send("ready")
    while pipe.recv():
        for client in clients:
            plain(preparation, client)
        pipe.send("done")


def plain_round(pipes: list[Connection]) -> float:
    """Wall time of one round of the plain loop."""
    started = time.perf_counter()
    for pipe in pipes:
        pipe.send(True)
    for pipe in pipes:
        pipe.recv()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
