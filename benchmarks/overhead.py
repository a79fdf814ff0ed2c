"""W3: what a round costs besides training: clients that give back the blocks that they got.

    python benchmarks/overhead.py --clients 1000 --rounds 12             # packed, one actor per core
    python benchmarks/overhead.py --clients 40 --clients-per-actor 1     # an actor per client
    python benchmarks/overhead.py --clients 1000 --runtime local --profile

The model has 100,000 parameters (0.4 MB) in three shared blocks. All clients take part in every round. Everything but
training and scoring is as in any run: drawing and cutting the cohort, sending blocks, reading each client's shard,
checking that updates are finite, summing them, records, the stream of records to the process that watches. A round is
timed from one record's arrival to the next one's, without the first two and the last, by the clock and as processor
time of all processes together.

Client actors import this module, since the scenario names its encoder; on import it takes training and scoring out of
the engine.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
from peers.workload import Watch
from torch import nn

from blossom_ray import Scenario, simulate
from blossom_ray.clients.job import ClientTask, LocalJob, LocalResult, Scored
from blossom_ray.clients.local_training import SequentialEngine

NUM_PARAMETERS = 100_000
INPUT_SIZE, FUSED, CLASSES = 8, 8, 4


def no_training(engine: SequentialEngine, tasks: Sequence[ClientTask], _job: LocalJob) -> list[LocalResult]:
    """What each client got."""
    trained = tuple(engine._workspace.trained)
    drift = dict.fromkeys(trained, 0.0)
    return [
        LocalResult({name: t.blocks[name] for name in trained}, {}, {}, len(t.labels), 1, 0.0, drift, 0.0)
        for t in tasks
    ]


def no_scoring(engine: SequentialEngine, tasks: Sequence[ClientTask], _batch_size: int, **_round: Any) -> list[Scored]:
    """As if every sample were rightly found."""
    learned, nothing = engine._workspace.learned, np.zeros(0)
    return [Scored.of(task, learned, [task.labels], losses=[nothing], loss_sums=[0.0], seconds=0.0) for task in tasks]


# The methods and not the engine: a host looks for the engine before it makes the model, which imports this module.
SequentialEngine.train = no_training  # type: ignore[method-assign]  # what this benchmark is about
SequentialEngine.evaluate = no_scoring  # type: ignore[method-assign]  # as above


def encoder(input_shape: tuple[int, ...], dim: int) -> nn.Module:
    """One linear layer."""
    return nn.Linear(input_shape[0], dim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--clients-per-actor", type=int, help="default: one actor per core")
    parser.add_argument("--chunk-size", type=int, default=125)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--runtime", default="ray", choices=("ray", "local"))
    parser.add_argument("--profile", action="store_true", help="where the time goes; with --runtime local")
    arguments = parser.parse_args()
    scenario = overhead_scenario(arguments)
    profiler = cProfile.Profile()
    watch = Watch()
    for record in simulate(scenario, stream=True):
        if record.round_index > 0 and record.metrics["train_loss"] != 0:
            raise SystemExit("clients have trained")
        if 1 < record.round_index < scenario.rounds:
            watch.lap()
        if arguments.profile and record.round_index == 2:
            profiler.enable()
    profiler.disable()
    if arguments.profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    wall, cpu = ([1e3 * value / arguments.clients for value in times] for times in (watch.seconds, watch.cpu_seconds))
    print(
        f"{arguments.clients} clients, {arguments.clients_per_actor or 'packed'} per actor, {arguments.runtime}: "
        f"{median(wall):.3f} ms a client ({min(wall):.3f} to {max(wall):.3f}, {len(wall)} rounds), "
        f"{sum(cpu) / len(cpu):.3f} ms of processor time over all processes"
    )


def overhead_scenario(arguments: argparse.Namespace) -> Scenario:
    """Three shared blocks that make up 100,000 parameters, two samples per client."""
    num_clients = arguments.clients
    # Encoder d(8 + 1), fusion 8(d + 1), head 4(8 + 1).
    dim = (NUM_PARAMETERS - CLASSES * (FUSED + 1) - FUSED) // (INPUT_SIZE + 1 + FUSED)
    per_actor = arguments.clients_per_actor
    cpus = 1.0 if per_actor is None else 0.01
    return Scenario.model_validate(
        {
            "name": "overhead",
            "rounds": arguments.rounds,
            "data": {
                "dataset": "synthetic",
                "samples": 2 * num_clients,
                "classes": CLASSES,
                "modalities": {"only": {"kind": "vector", "shape": [INPUT_SIZE]}},
                "held_out_samples": 0,
            },
            "clients": [{"count": num_clients, "modalities": ["only"]}],
            "model": {
                "encoders": {"only": {"kind": "custom", "factory": "overhead:encoder", "options": {"dim": dim}}},
                "fusion": {"kind": "concat", "dim": FUSED},
                "head": {"kind": "linear"},
            },
            "sharing": "full-model",
            "evaluation": {"every": arguments.rounds, "clients": 1 / num_clients},
            "execution": {
                "runtime": arguments.runtime,
                "chunk_size": arguments.chunk_size,
                "clients_per_actor": per_actor or "auto",
                "client_resources": {"num_cpus": cpus},
            },
        }
    )


if __name__ == "__main__":
    import overhead

    # As the module that the scenario names, not as __main__: there must be one of it.
    overhead.main()
