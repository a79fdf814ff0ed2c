"""A federation as one file that every contender of `scaffold.py` reads, and what it hands back.

Needs NumPy and PyTorch alone, since the peers run in environments without blossom-ray. `scaffold.py` writes the file:
shards, cohorts, order of the samples in each epoch, initial parameters. What it leaves to a contender is the algorithm.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

NUM_FEATURES, NUM_CLASSES = 20, 6
WEIGHTINGS = ("samples", "uniform")


class Mlp(nn.Module):
    """The scenario's model over one modality: an MLP encoder, a linear fusion, a linear head; 1,378 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(NUM_FEATURES, 32), nn.ReLU(), nn.Linear(32, 12))
        self.fusion = nn.Linear(12, 16)
        self.head = nn.Linear(16, NUM_CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        """(B, 20) to logits (B, 6)."""
        logits: Tensor = self.head(self.fusion(self.encoder(features)))
        return logits


def flat(model: nn.Module) -> np.ndarray:
    """(P,) float32: the parameters in their order, copied."""
    return parameters_to_vector(model.parameters()).detach().numpy().copy()


@dataclass(frozen=True)
class Federation:
    """Who has which samples, and all that is drawn while they train.

    Attributes:
        features: (samples, 20) float32, of all clients in their order.
        labels: (samples,) int64.
        sizes: (clients,) int64: how many samples a client has.
        cohorts: (rounds, cohort) int64: who trains.
        orders: int64: for each round, client of its cohort and epoch a permutation of that client's samples, one after
            the other.
        initial: (P,) float32: parameters before the first round.
        test_features: (test samples, 20) float32: the common test set.
        test_labels: (test samples,) int64.
        epochs: Local epochs.
        batch_size: Samples of a batch; the last one of an epoch may have fewer.
        learning_rate: Of plain SGD.
    """

    features: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    cohorts: np.ndarray
    orders: np.ndarray
    initial: np.ndarray
    test_features: np.ndarray
    test_labels: np.ndarray
    epochs: int
    batch_size: int
    learning_rate: float

    @classmethod
    def load(cls, path: Path) -> Federation:
        """Read the file."""
        with np.load(path) as file:
            return cls(**{name: array if array.ndim else array.item() for name, array in file.items()})

    def save(self, path: Path) -> None:
        """Write the file."""
        np.savez(path, **{each.name: getattr(self, each.name) for each in fields(self)})

    def model(self) -> Mlp:
        """The model before the first round."""
        model = Mlp()
        vector_to_parameters(torch.tensor(self.initial), model.parameters())
        return model

    def samples(self, client: int) -> tuple[Tensor, Tensor]:
        """A client's features (n, 20) and labels (n,)."""
        end = int(self.sizes[: client + 1].sum())
        rows = slice(end - int(self.sizes[client]), end)
        return torch.from_numpy(self.features[rows]), torch.from_numpy(self.labels[rows])

    @cached_property
    def visits(self) -> list[tuple[int, list[Tensor]]]:
        """In the order in which cohorts train: a client, and its order of samples (n,) in each epoch."""
        found, place = [], 0
        for client in self.cohorts.ravel():
            number = int(self.sizes[client])
            epochs = self.orders[place : place + number * self.epochs].reshape(self.epochs, number)
            found.append((int(client), [torch.from_numpy(order) for order in epochs]))
            place += epochs.size
        return found


def run_contender(
    description: str | None, contenders: dict[str, Callable[[Federation, str], Iterator[np.ndarray]]]
) -> None:
    """Command line of a contender's script: each of its algorithms on each federation, unless that is there already.

    Args:
        description: The script's own.
        contenders: By name, from a federation and a weighting to the parameters (P,) after each round.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="has a folder with federation.npz for each seed")
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    for path in sorted(folder.glob("seed-*/federation.npz")):
        federation = Federation.load(path)
        for weighting in WEIGHTINGS:
            for name, run in contenders.items():
                record(path.with_name(f"{weighting} {name}.npy"), run, federation, weighting)


def record(path: Path, run: Callable[[Any, str], Iterator[np.ndarray]], federation: Any, weighting: str) -> None:
    """Write the parameters after each round, (rounds, P) float32, unless they are there already."""
    if not path.exists():
        made = np.stack(list(run(federation, weighting)))
        with path.with_suffix(".part").open("wb") as file:
            np.save(file, made)
        path.with_suffix(".part").replace(path)
