"""The actor that holds clients: a shell around a `ClientHost` that unpacks, calls and returns.

A plain class; `actors.py` wraps it for Ray where it is spawned.
"""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from blossom_ray.algorithms.selection import Chunk
from blossom_ray.clients.plan import ChunkEvaluation, SentBlock
from blossom_ray.core.blocks import Block, BlockInstance
from blossom_ray.core.records import ClientTraining, Scoring
from blossom_ray.core.sums import Contributions, PartialSum
from blossom_ray.runtime.kernels import Kernels, kernels
from blossom_ray.runtime.preparation import Preparation

if TYPE_CHECKING:
    from blossom_ray.clients.host import ClientHost

Buffers = Mapping[str, np.ndarray]
# Block instances with their versions; their values follow as arguments of their own, in this order.
Versions = tuple[tuple[BlockInstance, int], ...]


@dataclass(frozen=True)
class TrainingReport:
    """What comes back of a part of a chunk, before its blocks.

    Attributes:
        records: One per client, in client order.
        instances: What follows, one object each, in this order.
        bytes_down: Bytes sent to these clients by block instance.
        bytes_up: Bytes that they sent back by block instance.
        memory_bytes: Resident set of the process now.
    """

    records: tuple[ClientTraining, ...]
    instances: tuple[BlockInstance, ...]
    bytes_down: Mapping[BlockInstance, int]
    bytes_up: Mapping[BlockInstance, int]
    memory_bytes: int


class ClientActor:
    """One client or several in a process of their own.

    Args:
        num_gpus: Fraction of a GPU that this actor may use, memory included; 0 for the CPU.
    """

    def __init__(self, num_gpus: float) -> None:
        import torch

        # Imported here, so that actors get ready while the data are being prepared elsewhere.
        from blossom_ray.clients.host import ClientHost

        torch.set_num_threads(1)
        if num_gpus > 0:
            _prepare_gpu(num_gpus)
        self._device = "cuda" if num_gpus > 0 else "cpu"
        self._host_type = ClientHost
        self._host: ClientHost | None = None

    def ready(self) -> int:
        """The number of this process, which is up."""
        return os.getpid()

    def setup(
        self,
        preparation: Preparation,
        clients: Sequence[int],
        buffers: Buffers | None,
        checkpoint_files: Sequence[Path] = (),
    ) -> int:
        """Take clients in, as they are in a checkpoint if there is one; the number of this process.

        Their shards are memory-mapped, or read from `buffers`, Arrow data in the object store.
        """
        profiles = [preparation.population.profiles[client] for client in clients]
        shards = preparation.open_shards(buffers)
        self._host = self._host_type(preparation.plan, profiles, shards, self._device)
        self._engines = frozenset(preparation.plan.engines.values())
        if checkpoint_files:
            self._host.restore(checkpoint_files)
        # Modules and clients are here for good: the garbage collector need not look at them again in each round.
        gc.freeze()
        return os.getpid()

    def train(
        self,
        chunk: Chunk,
        versions: Versions,
        round_index: int,
        learning_rate: float,
        whole: bool,
        *values: np.ndarray,
    ) -> Any:
        """Train clients; returns a report and, as objects of their own, what is sent back of each block."""
        blocks = _blocks(versions, values)
        part = self._here.train(chunk, blocks, round_index=round_index, learning_rate=learning_rate, whole=whole)
        memory_bytes = psutil.Process().memory_info().rss
        report = TrainingReport(part.records, tuple(part.sent), part.bytes_down, part.bytes_up, memory_bytes)
        return (report, *part.sent.values()) if part.sent else report

    def evaluate(
        self, chunk: Chunk, versions: Versions, round_index: int, scoring: Scoring, *values: np.ndarray
    ) -> ChunkEvaluation:
        """Score clients."""
        return self._here.evaluate(chunk, _blocks(versions, values), round_index=round_index, scoring=scoring)

    def private_sums(
        self, chunk: Chunk, _versions: Versions, round_index: int, whole: bool
    ) -> dict[Block, PartialSum | Contributions]:
        """The clients' private blocks, added up or one by one."""
        return self._here.private_sums(chunk, round_index=round_index, whole=whole)

    def replay(self, method: str, chunk: Chunk, versions: Versions, round_index: int, *arguments: Any) -> None:
        """Do what `train` or `evaluate` does to the clients' states, for its effect alone; `private_sums` has none."""
        if method == "train":
            self.train(chunk, versions, round_index, *arguments)
        elif method == "evaluate":
            self._here.replay_evaluation(chunk, _blocks(versions, arguments[1:]), round_index=round_index)

    def sees(self, folder: Path) -> bool:
        """Whether a folder of the driver's node is there on this one."""
        return folder.is_dir()

    def begin_checkpoint(self, path: Path, round_index: int) -> None:
        """Write the clients' states after a round into a file, in the background."""
        self._here.begin_checkpoint(path, round_index=round_index)

    def finish_checkpoint(self) -> None:
        """Wait until the file is on disk."""
        self._here.finish_checkpoint()

    def restore(self, paths: Sequence[Path]) -> None:
        """Take the clients' states from a checkpoint's files."""
        self._here.restore(paths)

    def describe(self) -> tuple[int, dict[int, str], Kernels, tuple[str, ...]]:
        """The largest resident set of this process so far in bytes, with what `Description` has of its clients and it.

        Pages that it shares with others are counted.
        """
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return peak, self._here.private_digest(), kernels(self._engines), self._here.obstacles

    @property
    def _here(self) -> ClientHost:
        assert self._host is not None, "setup comes first"
        return self._host


def _prepare_gpu(share: float) -> None:
    """Have this process compute in float32 and to the same bits each time, in its share of a GPU's memory."""
    import torch

    if share < 1:
        torch.cuda.set_per_process_memory_fraction(share)
    # Left alone, cuDNN's convolutions and recurrent layers round their inputs to 10 of a float32's 23 bits.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    # A chunk that is computed again, after a kill or in a resumed run, has to give what it gave before.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed
    torch.backends.cudnn.benchmark = False
    # Filling new memory costs time, and finds faults alone.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a module of a kind of its own
    torch.use_deterministic_algorithms(True, warn_only=True)


def _blocks(versions: Versions, values: Sequence[np.ndarray]) -> dict[BlockInstance, SentBlock]:
    return {instance: SentBlock(version, array) for (instance, version), array in zip(versions, values, strict=True)}
