"""Sequential, stacked and compiled training of the same clients: do they agree, and how fast is each?

    python benchmarks/engines.py --clients 64 --repeats 7

One process, one thread. Per model the engines train the same chunk in turns, so that noise on the machine falls on all
alike. The table has the medians of processor time per client, and of the ratio to the sequential engine in each turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from blossom_ray.clients.compiled.engine import CompiledEngine
from blossom_ray.clients.job import ClientTask, LocalJob, LocalPass, LocalResult
from blossom_ray.clients.local_training import SequentialEngine
from blossom_ray.clients.options import Training
from blossom_ray.clients.stacked.engine import StackedEngine
from blossom_ray.clients.workspace import Workspace
from blossom_ray.models.options import Model
from blossom_ray.tasks.learned import one_task

BATCH_SIZE = 16
W1_ENCODER: dict[str, Any] = {"kind": "mlp", "hidden": [64], "dim": 32}
W1: dict[str, Any] = {
    "encoder": W1_ENCODER,
    "fusion": {"kind": "concat", "dim": 64},
    "head": {"kind": "linear"},
    "num_outputs": 10,
}
HAR: dict[str, Any] = {"fusion": {"kind": "attention", "dim": 256}, "head": {"kind": "mlp"}, "num_outputs": 6}
VECTORS: dict[str, tuple[int, ...]] = {"first": (100,), "second": (192,)}
SEQUENCES: dict[str, tuple[int, ...]] = {"acc": (128, 3), "gyro": (128, 3)}
MODELS: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "mlp (W1)": (VECTORS, W1),
    "mlp (W1), dropout 0.1": (VECTORS, W1 | {"encoder": W1_ENCODER | {"dropout": 0.1}}),
    "conv1d (UCI-HAR)": (SEQUENCES, HAR | {"encoder": {"kind": "conv1d"}}),
    "conv-gru (UCI-HAR)": (SEQUENCES, HAR | {"encoder": {"kind": "conv-gru"}}),
    "gru (UCI-HAR)": (SEQUENCES, HAR | {"encoder": {"kind": "gru"}}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64, help="clients of the chunk")
    parser.add_argument("--steps", type=int, default=10, help="batches of 16 per client")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each engine")
    parser.add_argument("--capacity", type=int, help="the most clients in a stack; default: the engine's own")
    parser.add_argument("--optimizer", default="sgd", choices=("sgd", "adam", "adamw"))
    parser.add_argument("--momentum", type=float, default=0.0, help="momentum of sgd")
    parser.add_argument("--only", default="", help="the models whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optimizer: dict[str, Any] = {"kind": arguments.optimizer}
    if arguments.optimizer == "sgd":
        optimizer["momentum"] = arguments.momentum
    section = Training.model_validate({"batch_size": BATCH_SIZE, "optimizer": optimizer})
    options = {"capacity": arguments.capacity} if arguments.capacity else {}

    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, {arguments.clients} clients, {optimizer}\n")
    print("| model | parameters | sequential, ms | stacked, ms | ratio | compiled, ms | ratio | largest difference |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, (shapes, model) in MODELS.items():
        if arguments.only not in name:
            continue
        space = build(shapes, model)
        tasks = make_tasks(space, shapes, arguments.clients, arguments.steps * BATCH_SIZE, model["num_outputs"])
        job = make_job(space, section)
        engines = SequentialEngine(space), StackedEngine(space, **options), CompiledEngine(space)
        first, *others = (partial(engine.train, tasks, job) for engine in engines)
        expected = first()
        difference = max(largest_difference(expected, other()) for other in others)
        times = [[seconds(train) for train in (first, *others)] for _ in range(arguments.repeats)]
        alone, *rest = zip(*times, strict=True)
        columns = [f"{1e3 * median(alone) / len(tasks):.2f}"]
        for taken in rest:
            ratio = median(one / other for one, other in zip(alone, taken, strict=True))
            columns += [f"{1e3 * median(taken) / len(tasks):.2f}", f"{ratio:.2f}"]
        num_parameters = sum(flat.num_parameters for flat in space.flat.values())
        print(f"| {name} | {num_parameters:,} | {' | '.join(columns)} | {difference:.1e} |", flush=True)


def build(shapes: dict[str, tuple[int, ...]], model: dict[str, Any]) -> Workspace:
    encoders = dict.fromkeys(shapes, model["encoder"])
    section = Model.model_validate({"encoders": encoders, "fusion": model["fusion"], "head": model["head"]})
    return Workspace(section, shapes, one_task("classification", model["num_outputs"]), owned=tuple(shapes), seed=0)


def make_tasks(
    space: Workspace, shapes: dict[str, tuple[int, ...]], num_clients: int, num_samples: int, num_classes: int
) -> list[ClientTask]:
    rng = np.random.default_rng(0)
    return [
        ClientTask(
            client,
            space.initial_blocks,
            {name: rng.normal(size=(num_samples, *shape)).astype(np.float32) for name, shape in shapes.items()},
            rng.integers(0, num_classes, num_samples),
        )
        for client in range(num_clients)
    ]


def make_job(space: Workspace, section: Training) -> LocalJob:
    """One epoch of all blocks."""
    return LocalJob(section, 0.05, (LocalPass(1, frozenset(space.trained)),), seed=0, round_index=1)


def largest_difference(expected: list[LocalResult], found: list[LocalResult]) -> float:
    difference = max(
        float(np.abs(one.blocks[name] - other.blocks[name]).max())
        for one, other in zip(expected, found, strict=True)
        for name in one.blocks
    )
    if not difference < 1e-3:
        raise SystemExit(f"the engines disagree: blocks differ by {difference:.2g}")
    return difference


def seconds(action: Callable[[], object]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


if __name__ == "__main__":
    main()
