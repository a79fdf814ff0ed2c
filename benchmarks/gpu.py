"""What a GPU does with the clients of a round: one script without Ray, within five minutes.

    PYTHONPATH=. python benchmarks/gpu.py --out gpu.json                  # CUDA where there is one, else the CPU
    PYTHONPATH=. python benchmarks/gpu.py --device cpu --scale 0.01       # tries the script

Needs Python 3.11 or newer, PyTorch, NumPy, pydantic, safetensors and this repository; blossom-ray itself need not be
installed. A machine without pydantic or safetensors takes their wheels along:

    pip download pydantic safetensors --only-binary=:all: --python-version 3.12 -d wheels
    for wheel in wheels/*.whl; do python -m zipfile -e $wheel .wheels/; done      # then PYTHONPATH=.:.wheels

Set-ups: W1 (two small encoders, 160 samples a client, batch 16), the paper's UCI-HAR model, and the CIFAR-10 set-up of
pfl-research's benchmarks (users of 50 images, 50 of 1,000 a round, batch 10; with a network of this package). For each:
clients trained alone and stacked, on the device and on the CPU, must agree; then clients per second alone, by size of
the stack, and in whole rounds of FedAvg and SCAFFOLD, sums and states included; how long the device computed of that,
and its peak memory. Last, ten steps of W1 by hand, eagerly and as one CUDA graph: what is left to gain. Rows are
written as they come; what the budget does not allow for is said to be left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from blossom_ray.clients.job import Affine, ClientTask, LocalJob, LocalPass, LocalResult
from blossom_ray.clients.local_training import SequentialEngine
from blossom_ray.clients.options import Training
from blossom_ray.clients.stacked.engine import StackedEngine
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.sums import weighted_sum
from blossom_ray.models.options import Model
from blossom_ray.tasks.learned import one_task

# Kernels on a GPU add in another order than on a CPU, and TF32 is off: differences of single precision.
LARGEST_DIFFERENCE = 1e-3
RATE = 0.05


@dataclass(frozen=True)
class SetUp:
    """What is trained.

    Attributes:
        name: For the table.
        shapes: Of a sample by modality.
        model: The scenario's `model` section.
        num_classes: Of the task.
        num_samples: Of each client.
        batch_size: Of a step.
        cohorts: Clients of a round, for each of which there is a row.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    model: Mapping[str, Any]
    num_classes: int
    num_samples: int
    batch_size: int
    cohorts: tuple[int, ...]


SET_UPS = (
    SetUp(
        "W1",
        {"first": (100,), "second": (192,)},
        {
            "encoders": {name: {"kind": "mlp", "hidden": [64], "dim": 32} for name in ("first", "second")},
            "fusion": {"kind": "concat", "dim": 64},
            "head": {"kind": "linear"},
        },
        num_classes=10,
        num_samples=160,
        batch_size=16,
        cohorts=(1_000, 10_000),
    ),
    SetUp(
        "UCI-HAR, conv-gru",
        {"acc": (128, 3), "gyro": (128, 3)},
        {
            "encoders": {name: {"kind": "conv-gru", "dropout": 0.0} for name in ("acc", "gyro")},
            "fusion": {"kind": "attention", "dim": 256},
            "head": {"kind": "mlp", "dropout": 0.0},
        },
        num_classes=6,
        num_samples=160,
        batch_size=16,
        cohorts=(256,),
    ),
    SetUp(
        "CIFAR-10, 50 of 1,000 users",
        {"image": (3, 32, 32)},
        {
            "encoders": {"image": {"kind": "conv2d", "channels": [32, 64], "norm": "none", "dim": 128}},
            "fusion": {"kind": "concat", "dim": 128},
            "head": {"kind": "linear"},
        },
        num_classes=10,
        num_samples=50,
        batch_size=10,
        cohorts=(50, 1_000),
    ),
)


class Table:
    """Rows that are printed and kept as they come.

    Args:
        device: Where is computed.
        budget: Seconds for all.
        out: A JSON file, written anew with each row; None: none.
    """

    def __init__(self, device: torch.device, budget: float, out: Path | None) -> None:
        self.device, self._budget, self._out, self._begun = device, budget, out, time.perf_counter()
        self._on, self._rows = describe(device), list[tuple[str, str, float, str]]()
        print(f"{self._on}\n\n| set-up | what | value | unit |\n|---|---|---:|---|", flush=True)

    @property
    def left(self) -> float:
        """Seconds that are left of the budget."""
        return self._budget - (time.perf_counter() - self._begun)

    def add(self, name: str, what: str, value: float, unit: str) -> None:
        """A row."""
        self._rows.append((name, what, value, unit))
        print(f"| {name} | {what} | {value:,.4g} | {unit} |", flush=True)
        if self._out is not None:
            self._out.write_text(json.dumps({"on": self._on, "rows": self._rows}, indent=1), encoding="utf-8")

    def has_time(self, name: str, what: str, seconds: float) -> bool:
        """Whether something that takes about so long still fits; if not, says that it is left out."""
        if seconds < self.left:
            return True
        print(f"| {name} | {what} | left out | {self.left:.0f} s are left |", flush=True)
        return False

    def seconds(self, action: Callable[[], object], repeats: int = 3) -> float:
        """Median wall time, the device's work included, after one run to warm up."""
        taken = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            action()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
        return median(taken[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--budget", type=float, default=280, help="seconds for all")
    parser.add_argument("--stack", type=int, nargs="+", default=[64, 256, 1024, 4096], help="clients of a stack")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the number of clients")
    parser.add_argument("--only", default="", help="the set-ups whose name contains this")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no CUDA device; --device cpu runs the same on the processor")
    torch.set_num_threads(1)
    # PyTorch lets convolutions round to TF32 unless it is told otherwise.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    table = Table(torch.device(arguments.device), arguments.budget, arguments.out)
    chosen = [set_up for set_up in SET_UPS if arguments.only in set_up.name]
    for set_up in chosen:
        cohorts = tuple(max(2, int(number * arguments.scale)) for number in set_up.cohorts)
        measure(replace(set_up, cohorts=cohorts), arguments.stack, table)
    if SET_UPS[0] in chosen:
        measure_by_hand(max(2, int(1024 * arguments.scale)), table)
    print(f"\n{arguments.budget - table.left:.0f} s in all")


def describe(device: torch.device) -> str:
    """What this runs on, and when."""
    what = "no GPU: one thread of the processor"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        what = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{now}, {what}, torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}"


def measure(set_up: SetUp, sizes: Sequence[int], table: Table) -> None:
    """All rows of a set-up."""
    name, training = (
        set_up.name,
        Training.model_validate({"batch_size": set_up.batch_size, "optimizer": {"kind": "sgd"}}),
    )
    space = workspace(set_up, table.device)
    job = LocalJob(training, RATE, (LocalPass(1, frozenset(space.trained)),), seed=0, round_index=1)
    table.add(name, "parameters", sum(space.num_parameters.values()), "")
    check_same(set_up, job, table)
    few = make_tasks(set_up, space, 8)
    alone = table.seconds(lambda: SequentialEngine(space).train(few, job)) / len(few)
    table.add(name, "one after the other", 1 / alone, "clients/s")
    tasks = make_tasks(set_up, space, min(max(set_up.cohorts), 1_000))
    best, best_size, a_client = 0.0, sizes[0], alone
    for size in sizes:
        own = [tasks[number % len(tasks)] for number in range(size)]
        if size > 2 * max(set_up.cohorts) or not table.has_time(name, f"stack of {size:,}", 5 * size * a_client):
            break
        engine = StackedEngine(space, capacity=size, max_rows=size * set_up.batch_size)
        try:
            taken = table.seconds(partial(engine.train, own, job))
        except torch.cuda.OutOfMemoryError:
            print(f"| {name} | stack of {size:,} | out of memory | |", flush=True)
            break
        a_client = taken / size
        table.add(name, f"stack of {size:,}", 1 / a_client, "clients/s")
        best, best_size = max((best, best_size), (1 / a_client, size))
    for number in set_up.cohorts:
        measure_rounds(set_up, space, job, (number, best_size, 1 / max(best, 1e-9)), table)


def measure_rounds(set_up: SetUp, space: Workspace, job: LocalJob, size: tuple[int, int, float], table: Table) -> None:
    """Whole rounds; `size` is the clients of one, those of a stack, and the seconds that a client should take."""
    number, stack, a_client = size
    name, is_gpu = set_up.name, table.device.type == "cuda"
    shards = make_tasks(set_up, space, min(number, 1_000))
    # More clients than shards in memory: they have samples in common, which changes nothing about what is computed.
    cohort = [replace(shards[client % len(shards)], client=client) for client in range(number)]
    engine = StackedEngine(space, capacity=stack, max_rows=stack * set_up.batch_size)
    for what, algorithm in (("FedAvg", FedAvg), ("SCAFFOLD", Scaffold)):
        row = f"{what}, {number:,} clients a round"
        if not table.has_time(name, row, 5 * number * a_client):
            continue
        if is_gpu:
            torch.cuda.reset_peak_memory_stats()
        one_round = partial(algorithm(space).round, engine, cohort, job, stack)
        taken = table.seconds(one_round, 2)
        table.add(name, row, number / taken, "clients/s")
        if is_gpu:
            table.add(name, f"{row}: peak memory", torch.cuda.max_memory_allocated() / 2**20, "MiB")
            table.add(name, f"{row}: the device computes", busy_share(one_round), "")


def busy_share(action: Callable[[], object]) -> float:
    """Which part of the time the device's kernels and copies take."""
    from torch.profiler import ProfilerActivity, profile

    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        action()
        torch.cuda.synchronize()
    taken = time.perf_counter() - started
    microseconds = sum(event.self_device_time_total for event in found.key_averages())
    return float(microseconds) / 1e6 / taken


class FedAvg:
    """Federated averaging, by hand: chunks of clients, weighted sums in float64, the average."""

    def __init__(self, space: Workspace) -> None:
        self._blocks = dict(space.initial_blocks)

    def round(self, engine: StackedEngine, cohort: Sequence[ClientTask], job: LocalJob, chunk: int) -> None:
        """One round."""
        sums: dict[str, list[Any]] = {name: [] for name in self._blocks}
        for start in range(0, len(cohort), chunk):
            tasks = [self.task(task) for task in cohort[start : start + chunk]]
            results = engine.train(tasks, self.job(job))
            for name, parts in sums.items():
                parts.append(
                    weighted_sum((len(task.labels), r.blocks[name]) for task, r in zip(tasks, results, strict=True))
                )
            self.finish(tasks, results)
        for name, parts in sums.items():
            total, weight = sum(part.total for part in parts), sum(part.weight for part in parts)
            self._blocks[name] = (total / weight).astype(np.float32)

    def task(self, task: ClientTask) -> ClientTask:
        """A client with what it receives."""
        return replace(task, blocks=self._blocks)

    def job(self, job: LocalJob) -> LocalJob:
        """How clients train."""
        return job

    def finish(self, tasks: Sequence[ClientTask], results: Sequence[LocalResult]) -> None:
        """What is done once a chunk has been trained."""


class Scaffold(FedAvg):
    """SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378), option II, as offsets of the gradient."""

    def __init__(self, space: Workspace) -> None:
        super().__init__(space)
        self._sizes = dict(space.num_parameters)
        self._own: dict[int, dict[str, np.ndarray]] = {}
        self._common = {name: np.zeros(size, np.float32) for name, size in self._sizes.items()}
        self._changes = {name: np.zeros(size) for name, size in self._sizes.items()}

    def round(self, engine: StackedEngine, cohort: Sequence[ClientTask], job: LocalJob, chunk: int) -> None:
        super().round(engine, cohort, job, chunk)
        for name, change in self._changes.items():
            self._common[name] += (change / len(cohort)).astype(np.float32)
            change[:] = 0

    def task(self, task: ClientTask) -> ClientTask:
        own = self._own.get(task.client)
        offset = {name: common - own[name] if own else common for name, common in self._common.items()}
        return replace(super().task(task), affine=(Affine(offset=offset),))

    def job(self, job: LocalJob) -> LocalJob:
        return replace(job, passes=tuple(replace(each, has_offset=True) for each in job.passes))

    def finish(self, tasks: Sequence[ClientTask], results: Sequence[LocalResult]) -> None:
        for task, result in zip(tasks, results, strict=True):
            own = self._own.setdefault(task.client, {})
            for name, size in self._sizes.items():
                moved = (self._blocks[name][:size] - result.blocks[name][:size]) / (result.num_steps * RATE)
                before, after = own.get(name, 0.0), own.get(name, 0.0) - self._common[name] + moved
                own[name] = after
                self._changes[name] += after - before


def workspace(set_up: SetUp, device: torch.device) -> Workspace:
    """The model of a set-up."""
    section = Model.model_validate(set_up.model)
    learned = one_task("classification", set_up.num_classes)
    return Workspace(section, set_up.shapes, learned, owned=tuple(set_up.shapes), seed=0, device=device)


def make_tasks(set_up: SetUp, space: Workspace, number: int) -> list[ClientTask]:
    """Clients with noise for samples."""
    draw = np.random.default_rng(0)
    return [
        ClientTask(
            client,
            space.initial_blocks,
            {
                name: draw.standard_normal((set_up.num_samples, *shape), np.float32)
                for name, shape in set_up.shapes.items()
            },
            draw.integers(0, set_up.num_classes, set_up.num_samples),
        )
        for client in range(number)
    ]


def check_same(set_up: SetUp, job: LocalJob, table: Table) -> None:
    """Stop where clients alone on the CPU, and alone and stacked on the device, do not agree."""
    spaces = [workspace(set_up, torch.device("cpu")), workspace(set_up, table.device)]
    tasks = make_tasks(set_up, spaces[0], 3)
    expected = SequentialEngine(spaces[0]).train(tasks, job)
    for what, engine in (("alone", SequentialEngine(spaces[1])), ("stacked", StackedEngine(spaces[1]))):
        found = engine.train(tasks, job)
        difference = max(
            float(np.abs(one.blocks[name] - other.blocks[name]).max())
            for one, other in zip(expected, found, strict=True)
            for name in one.blocks
        )
        if not difference < LARGEST_DIFFERENCE:
            raise SystemExit(f"{set_up.name}, {what}: blocks differ by {difference:.2g} from those of the CPU")
        table.add(set_up.name, f"largest difference from the CPU, {what}", difference, "")


def measure_by_hand(number: int, table: Table) -> None:
    """Ten steps of W1 for so many clients, with its gradient by hand: eagerly, and as one CUDA graph."""
    name, steps, device = "W1, gradient by hand", 10, table.device
    shapes = [(64, 100), (32, 64), (64, 192), (32, 64), (64, 64), (10, 64)]
    torch.manual_seed(0)
    weights = [torch.randn(number, *shape, device=device) * 0.1 for shape in shapes]
    biases = [torch.zeros(number, shape[0], device=device) for shape in shapes]
    inputs = [torch.randn(steps, number, 16, width, device=device) for width in (100, 192)]
    labels = torch.randint(0, 10, (steps, number, 16), device=device)

    def run() -> None:
        for step in range(steps):
            _step_by_hand(weights, biases, [own[step] for own in inputs], labels[step])

    expected = _loss_gradient(weights, biases, [own[0] for own in inputs], labels[0])
    before = [weight.clone() for weight in weights]
    _step_by_hand(weights, biases, [own[0] for own in inputs], labels[0])
    difference = max(
        float(((old - new) / RATE - gradient).abs().max())
        for old, new, gradient in zip(before, weights, expected, strict=True)
    )
    if not difference < LARGEST_DIFFERENCE:
        raise SystemExit(f"the gradient by hand differs by {difference:.2g} from autograd's")
    table.add(name, "largest difference from autograd", difference, "")
    table.add(name, f"stack of {number:,}", number / table.seconds(run), "clients/s")
    if device.type == "cuda":
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        table.add(name, f"stack of {number:,}, one CUDA graph", number / table.seconds(graph.replay), "clients/s")


def _forward(weights: Sequence[Tensor], biases: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """What each linear layer gives, in the order of the weights."""

    def linear(at: int, values: Tensor) -> Tensor:
        return torch.baddbmm(biases[at].unsqueeze(1), values, weights[at].transpose(1, 2))

    found: list[Tensor] = []
    for at, own in enumerate(inputs):
        found.append(linear(2 * at, own))
        found.append(linear(2 * at + 1, found[-1].relu()))
    found.append(linear(4, torch.cat([found[1], found[3]], 2)))
    found.append(linear(5, found[4]))
    return found


def _loss_gradient(
    weights: Sequence[Tensor], biases: Sequence[Tensor], inputs: Sequence[Tensor], labels: Tensor
) -> tuple[Tensor, ...]:
    """Autograd's gradient of each client's mean loss by the weights."""
    own = [weight.detach().clone().requires_grad_() for weight in weights]
    outputs = _forward(own, biases, inputs)[-1]
    losses = functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="none")
    gradients: tuple[Tensor, ...] = torch.autograd.grad(losses.view_as(labels).mean(1).sum(), own)
    return gradients


@torch.no_grad()
def _step_by_hand(
    weights: Sequence[Tensor], biases: Sequence[Tensor], inputs: Sequence[Tensor], labels: Tensor
) -> None:
    """One step of plain SGD on each client's mean loss, in place."""
    found = _forward(weights, biases, inputs)

    def back(at: int, gradient: Tensor, values: Tensor) -> Tensor:
        before = torch.bmm(gradient, weights[at])
        weights[at].baddbmm_(gradient.transpose(1, 2), values, alpha=-RATE)
        biases[at].sub_(gradient.sum(1), alpha=RATE)
        return before

    outputs = (found[5].softmax(2) - functional.one_hot(labels, found[5].shape[2])) / labels.shape[1]
    embedded = torch.cat([found[1], found[3]], 2)
    gradient = back(4, back(5, outputs, found[4]), embedded)
    for at, own in enumerate(inputs):
        part = gradient[:, :, 32 * at : 32 * (at + 1)].contiguous()
        hidden = found[2 * at]
        back(2 * at, back(2 * at + 1, part, hidden.relu()) * (hidden > 0), own)


if __name__ == "__main__":
    main()
