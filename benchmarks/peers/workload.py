"""Workload W1 as files that every contender reads: samples, order of batches, initial parameters.

Needs NumPy, psutil and PyTorch alone, since the peers run in an environment without blossom-ray. `blossom.py` writes
the files.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor, nn

BATCH_SIZE = 16
NUM_STEPS = 10
NUM_SAMPLES = BATCH_SIZE * NUM_STEPS
LEARNING_RATE = 0.05
NUM_CLASSES = 10
INPUT_SIZES = {"first": 100, "second": 192}


class TwoModalityMlp(nn.Module):
    """An MLP per modality, a linear layer over both embeddings, a linear head: 27,786 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(INPUT_SIZES["first"], 64), nn.ReLU(), nn.Linear(64, 32))
        self.second = nn.Sequential(nn.Linear(INPUT_SIZES["second"], 64), nn.ReLU(), nn.Linear(64, 32))
        self.fusion = nn.Linear(64, 64)
        self.head = nn.Linear(64, NUM_CLASSES)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits (B, 10) of samples (B, 100) and (B, 192)."""
        logits: Tensor = self.head(self.fusion(torch.cat([self.first(first), self.second(second)], dim=1)))
        return logits


@dataclass(frozen=True)
class Workload:
    """The clients' training samples, in memory that processes share.

    Attributes:
        first: (clients, 160, 100) float32.
        second: (clients, 160, 192) float32.
        labels: (clients, 160) int64.
        orders: (rounds, clients, 160) int64: the order in which a client goes through its samples.
        initial: Parameters before the first round, by the names of `TwoModalityMlp`.
    """

    first: np.ndarray
    second: np.ndarray
    labels: np.ndarray
    orders: np.ndarray
    initial: Mapping[str, np.ndarray]

    @classmethod
    def open(cls, folder: Path) -> Workload:
        """Map the files of a folder. They are mapped to be written, which spares torch's warning; nobody does."""
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in _ARRAYS}
        with np.load(folder / "initial.npz") as initial:
            return cls(**arrays, initial=dict(initial))

    def save(self, folder: Path) -> None:
        """Write the files."""
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        np.savez(folder / "initial.npz", **self.initial)

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return len(self.labels)

    def batches(self, client: int, round_index: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A client's ten batches of a round, counted from 1."""
        first, second, labels = (torch.from_numpy(a[client]) for a in (self.first, self.second, self.labels))
        for rows in torch.split(torch.from_numpy(self.orders[round_index - 1, client]), BATCH_SIZE):
            yield first[rows], second[rows], labels[rows]


_ARRAYS = ("first", "second", "labels", "orders")


def train_client(model: nn.Module, workload: Workload, client: int, round_index: int) -> float:
    """The bare PyTorch loop: ten steps of SGD from the parameters that `model` holds; the mean loss before each."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    loss_sum = torch.zeros(())
    for first, second, targets in workload.batches(client, round_index):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(first, second), targets)
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach()
    return float(loss_sum) / NUM_STEPS


class Watch:
    """Wall and processor time of rounds, from the end of one to the end of the next; round 1 only starts it.

    Attributes:
        seconds: Wall time of each round.
        cpu_seconds: Processor time of this process and all below it, Ray's own included, in each round.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self._processes: list[psutil.Process] = []

    def lap(self) -> None:
        """A round has ended."""
        if not self._processes:
            # Looking for them takes time, so it is done once: no contender starts processes after its first round.
            self._processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            self._wall, self._cpu = time.perf_counter(), self._processor_time()
            return
        wall, cpu = time.perf_counter(), self._processor_time()
        self.seconds.append(wall - self._wall)
        self.cpu_seconds.append(cpu - self._cpu)
        self._wall, self._cpu = wall, cpu

    def _processor_time(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes if process.is_running())


@dataclass
class Outcome:
    """What a contender reports.

    Attributes:
        seconds: Wall time of each round but the first.
        cpu_seconds: Processor time of these rounds, over all processes.
        loss: Mean training loss of round 1 over all clients; None where the contender does not report it.
        num_steps: Optimizer steps of round 1.
        average: Parameters after round 1.
    """

    seconds: list[float]
    cpu_seconds: list[float]
    loss: float | None
    num_steps: int
    average: Mapping[str, np.ndarray]

    def save(self, path: Path) -> None:
        """Write a .npz file."""
        names = ("seconds", "cpu_seconds", "loss", "num_steps")
        facts = json.dumps({name: getattr(self, name) for name in names})
        np.savez(path, facts=np.array(facts), **{f"average/{name}": array for name, array in self.average.items()})

    @classmethod
    def load(cls, path: Path) -> Outcome:
        """Read a .npz file."""
        with np.load(path) as file:
            average = {name.removeprefix("average/"): file[name] for name in file.files if name != "facts"}
            return cls(**json.loads(str(file["facts"])), average=average)


def parser_of_contender(description: str | None) -> argparse.ArgumentParser:
    """Command line that all contenders share: folder with the workload, file for the outcome, number of rounds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the workload's files")
    parser.add_argument("outcome", type=Path, help="where the outcome goes (.npz)")
    parser.add_argument("--rounds", type=int, default=3)
    return parser
