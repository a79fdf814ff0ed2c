"""The core without Ray: chunks of clients trained one after the other and stacked, on a GPU or a CPU.

    PYTHONPATH=. python benchmarks/gpu_core.py                     # CUDA where there is one, else the CPU
    PYTHONPATH=. python benchmarks/gpu_core.py --device cpu --largest 64 --repeats 3

Needs Python 3.11 or 3.12, PyTorch, NumPy, pydantic (with pydantic-core, annotated-types and typing-inspection) and this
repository; blossom-ray itself need not be installed.

Per model, stacks of 1, 2, 4, ... clients are trained until memory runs out (on a GPU the next size would take more than
`--memory` of it), and the size with the most clients per second is the chunk size found. First the stack must agree
with the clients trained alone. The report says what it ran on and when: figures without that are worth nothing.
"""

from __future__ import annotations

import argparse
import platform
import time
from datetime import UTC, datetime
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from engines import MODELS, make_job, make_tasks

from blossom_ray.clients.job import ClientTask, LocalJob
from blossom_ray.clients.local_training import SequentialEngine
from blossom_ray.clients.options import Training
from blossom_ray.clients.stacked.engine import StackedEngine
from blossom_ray.clients.workspace import Workspace
from blossom_ray.models.options import Model
from blossom_ray.tasks.learned import one_task

BATCH_SIZE = 16
# Kernels on a GPU add in another order than on a CPU, and TF32 is off: differences of single precision.
LARGEST_DIFFERENCE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--steps", type=int, default=10, help="batches of 16 per client")
    parser.add_argument("--largest", type=int, default=4096, help="the most clients in a stack")
    parser.add_argument("--memory", type=float, default=0.5, help="part of the GPU's memory that a stack may take")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="the models whose name contains this")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no CUDA device; --device cpu runs the same on the processor")
    torch.set_num_threads(1)
    print(describe(arguments.device))
    for name, (shapes, model) in MODELS.items():
        # Masks of dropout differ between the two on a GPU, so there is nothing to compare.
        if arguments.only in name and "dropout" not in name:
            run_model(name, shapes, model, arguments)


def describe(device: str) -> str:
    """What this runs on, and when."""
    what = "no GPU: one thread of the processor"
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        what = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{now}, {what}, torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}"


def run_model(
    name: str, shapes: dict[str, tuple[int, ...]], model: dict[str, Any], arguments: argparse.Namespace
) -> None:
    """Print a table: clients per second by size of the stack, and one after the other."""
    # Without dropout in any encoder or head, so that both ways can be compared.
    encoder = model["encoder"] | {"dropout": 0.0} if model["encoder"]["kind"] != "gru" else model["encoder"]
    head = model["head"] | {"dropout": 0.0} if model["head"]["kind"] == "mlp" else model["head"]
    section = Model.model_validate(
        {"encoders": dict.fromkeys(shapes, encoder), "fusion": model["fusion"], "head": head}
    )
    space = Workspace(
        section,
        shapes,
        one_task("classification", model["num_outputs"]),
        owned=tuple(shapes),
        seed=0,
        device=arguments.device,
    )
    training = Training.model_validate({"batch_size": BATCH_SIZE, "optimizer": {"kind": "sgd"}})
    job = make_job(space, training)
    tasks = make_tasks(space, shapes, 1, arguments.steps * BATCH_SIZE, model["num_outputs"])
    check_same(space, tasks * 3, job)

    alone = seconds(partial(SequentialEngine(space).train, tasks * 4, job), arguments) / 4
    print(f"\n{name}, {arguments.steps} steps of batch {BATCH_SIZE}; one after the other: {1 / alone:,.0f} clients/s\n")
    print("| clients in the stack | clients/s | to one after the other | peak memory, MiB |\n|---:|---:|---:|---:|")
    best, size = (0.0, 1), 1
    while size <= arguments.largest:
        engine = StackedEngine(space, capacity=size, max_rows=size * BATCH_SIZE)
        action = partial(engine.train, [tasks[0]] * size, job)
        try:
            rate = size / seconds(action, arguments)
        except torch.cuda.OutOfMemoryError:
            print(f"| {size} | out of memory | | |")
            break
        peak = torch.cuda.max_memory_allocated() if arguments.device == "cuda" else 0
        shown = f"{peak / 2**20:,.0f}" if peak else "not measured"
        print(f"| {size} | {rate:,.0f} | {rate * alone:.1f} | {shown} |", flush=True)
        best, size = max(best, (rate, size)), 2 * size
        if peak and 2 * peak > arguments.memory * torch.cuda.get_device_properties(0).total_memory:
            break
        if rate < 0.7 * best[0]:
            break
    print(f"\nchunk size found: {best[1]} ({best[0]:,.0f} clients/s)")


def check_same(space: Workspace, tasks: list[ClientTask], job: LocalJob) -> None:
    """Stop where a stack and the clients trained alone do not agree."""
    alone = SequentialEngine(space).train(tasks, job)
    stacked = StackedEngine(space).train(tasks, job)
    pairs = (
        (one.blocks[name], other.blocks[name]) for one, other in zip(alone, stacked, strict=True) for name in one.blocks
    )
    difference = max(float(np.abs(mine - yours).max()) for mine, yours in pairs)
    if not difference < LARGEST_DIFFERENCE:
        raise SystemExit(f"the engines disagree: blocks differ by {difference:.2g}")


def seconds(action: Any, arguments: argparse.Namespace) -> float:
    """Median wall time, the GPU's work included, after one run to warm up."""
    times = []
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(arguments.repeats + 1):
        started = time.perf_counter()
        action()
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return median(times[1:])


if __name__ == "__main__":
    main()
