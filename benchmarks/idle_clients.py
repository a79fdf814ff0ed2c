"""W4: what a registered client costs in a process that holds it, besides its shard and its private blocks.

    python benchmarks/idle_clients.py --clients 2000 12000

Python memory (tracemalloc) of the prepared federation and of a host with all of these clients, once before any of them
has trained and once after all have: the differences between two numbers of clients, divided by theirs. Shards are
mapped files and count for nothing here. Both kinds of client have a private head of 4 kB, which is subtracted.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import tracemalloc
from pathlib import Path

from blossom_ray import Scenario
from blossom_ray.runtime.local import LocalRuntime
from blossom_ray.runtime.preparation import prepare
from blossom_ray.server import initial_server
from blossom_ray.simulation import run_rounds

INPUT_SIZE, FUSED, CLASSES = 4, 99, 10
HEAD_BYTES = 4 * CLASSES * (FUSED + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs=2, default=[2000, 12000])
    few, many = parser.parse_args().clients
    measure(10)  # imports and caches count for nobody
    before, after = zip(measure(few), measure(many), strict=True)
    idle, trained = ((large - small) / (many - few) for small, large in (before, after))
    print(f"{few:,} and {many:,} clients in one process:")
    print(f"a client that never trained: {idle:,.0f} bytes")
    print(f"a client that has trained: {trained - HEAD_BYTES:,.0f} bytes and its private head of {HEAD_BYTES:,} bytes")


def measure(num_clients: int) -> tuple[int, int]:
    """Bytes with all clients registered, and with all of them trained once."""
    scenario = Scenario.model_validate(
        {
            "name": "idle",
            "rounds": 2,
            "data": {
                "dataset": "synthetic",
                "samples": 4 * num_clients,
                "classes": CLASSES,
                "modalities": {"only": {"kind": "vector", "shape": [INPUT_SIZE]}},
                "held_out_samples": 0,
            },
            "clients": [{"count": num_clients, "modalities": ["only"]}],
            "model": {
                "encoders": {"only": {"kind": "mlp", "hidden": [], "dim": 4}},
                "fusion": {"kind": "concat", "dim": FUSED},
                "head": {"kind": "linear"},
            },
            "sharing": "private-head",
            "training": {"engine": "vectorized"},
            "evaluation": {"every": 2, "clients": 1 / num_clients},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        gc.collect()
        tracemalloc.start()
        preparation = prepare(scenario, Path(folder))
        runtime = LocalRuntime(preparation)
        profiles = preparation.population.representatives()
        server = initial_server(preparation.plan, profiles, scenario.server.optimizer)
        assert preparation.population.chunks
        gc.collect()
        registered = tracemalloc.get_traced_memory()[0]
        rounds = run_rounds(preparation, runtime, server, first_round=1)
        next(rounds)
        gc.collect()
        trained = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        rounds.close()
        runtime.close()
    return registered, trained


if __name__ == "__main__":
    main()
