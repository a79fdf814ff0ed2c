"""What a registered client costs in memory while it is idle: in the process with the loop, and where it lives.

    python benchmarks/client_memory.py --clients 10000 50000

No Ray: a federation is prepared, pickled as an actor gets it, and a host trains and scores every client once.
`tracemalloc` counts Python's and NumPy's memory without the shards; "process" is the growth of a process's own memory
(USS) over the same steps without it: with the shards' pages, what Arrow and PyTorch hold, and what allocators keep.
"""

from __future__ import annotations

import argparse
import gc
import pickle
import tempfile
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch

from blossom_ray import Scenario
from blossom_ray.client_host import ClientHost
from blossom_ray.preparation import prepare
from blossom_ray.sampling import Chunk, Population
from blossom_ray.server import initial_server

MODALITY: dict[str, Any] = {"kind": "vector", "shape": [8]}
ENCODER: dict[str, Any] = {"kind": "mlp", "hidden": [8], "dim": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[10_000, 50_000])
    parser.add_argument("--sharing", default="private-head")
    arguments = parser.parse_args()
    print("Bytes per client\n")
    print("| clients | table in the driver | table in an actor | state, scored | state, trained | process |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for num_clients in arguments.clients:
        # A fresh process each: memory that an allocator kept would be used again, and tracemalloc takes some itself.
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
            bytes_of = [processes.submit(measure, num_clients, arguments.sharing, counts) for counts in (traced, own)]
            cells = [*bytes_of[0].result(), bytes_of[1].result()[-1]]
        print(f"| {num_clients:,} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |", flush=True)


def federation(num_clients: int, sharing: str) -> Scenario:
    tree = {
        "rounds": 1,
        "data": {"dataset": "synthetic", "samples": 4 * num_clients, "modalities": {"one": MODALITY, "two": MODALITY}},
        "clients": [
            {"count": num_clients // 2, "modalities": ["one"]},
            {"count": num_clients - num_clients // 2, "modalities": ["one", "two"]},
        ],
        "model": {
            "encoders": {"one": ENCODER, "two": ENCODER},
            "fusion": {"kind": "concat", "dim": 8},
            "head": {"kind": "linear"},
        },
        "sharing": sharing,
        "server": {"clients_per_round": 0.1},
        "training": {"engine": "vectorized"},
        "execution": {"runtime": "local", "chunk_size": 64},
    }
    return Scenario.model_validate(tree)


def measure(num_clients: int, sharing: str, in_use: Callable[[], int]) -> list[float]:
    """Bytes per client by `in_use`: table in the driver, in an actor, state once scored, and state once trained."""
    torch.set_num_threads(1)
    scenario = federation(num_clients, sharing)
    with tempfile.TemporaryDirectory() as folder:
        preparation = prepare(scenario, Path(folder))
        server = initial_server(preparation.plan, preparation.population.representatives(), scenario.server.optimizer)
        pickled = pickle.dumps(preparation)
        marks = [in_use()]
        table = Population(tuple(scenario.profiles()), scenario.execution.chunk_size, scenario.server.clients_per_round)
        chunks = table.chunks
        marks.append(in_use())
        received = pickle.loads(pickled)
        marks.append(in_use())
        host = ClientHost(received.plan, received.population.profiles, received.open_shards())
        # One chunk of each kind makes the models; they do not count.
        for clients in received.population.signatures.values():
            host.evaluate(Chunk(0, clients[:1]), server.sent, round_index=0, held_out=False)
        marks.append(in_use())
        for chunk in chunks:
            host.evaluate(chunk, server.sent, round_index=0, held_out=False)
        marks.append(in_use())
        for chunk in chunks:
            host.train(chunk, server.sent, round_index=1, learning_rate=0.1, whole=True)
        for chunk in chunks:
            host.evaluate(chunk, server.sent, round_index=1, held_out=False)
        marks.append(in_use())
        host.close()
    driver, actor, _, scored, trained = (after - before for before, after in pairwise(marks))
    return [count / num_clients for count in (driver, actor, scored, scored + trained)]


def traced() -> int:
    """Bytes that Python and NumPy hold, from the first call on."""
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def own() -> int:
    """Bytes of this process's memory that no other process shares."""
    gc.collect()
    return psutil.Process().memory_full_info().uss


if __name__ == "__main__":
    main()
