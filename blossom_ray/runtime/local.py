"""All clients in this process, one after the other: for breakpoints, tests and notebooks."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from blossom_ray.algorithms.selection import Chunk
from blossom_ray.checkpoint import Checkpoint
from blossom_ray.clients.host import ClientHost
from blossom_ray.clients.plan import ChunkEvaluation, ChunkUpdate, SentBlocks
from blossom_ray.core.blocks import Block
from blossom_ray.core.records import Failure, Scoring
from blossom_ray.core.sums import PartialSum, summed
from blossom_ray.errors import ClientError
from blossom_ray.runtime.base import Description, Pending, RuntimeRound
from blossom_ray.runtime.preparation import Preparation


class LocalRuntime:
    """A `Runtime` that loops over its clients.

    Args:
        preparation: The prepared federation.
    """

    def __init__(self, preparation: Preparation) -> None:
        self._host = ClientHost(preparation.plan, preparation.population.profiles, preparation.open_shards())
        self._drops = preparation.scenario.failures.on_failure == "drop"
        self._failures: list[Failure] = []
        # One thread, as in an actor: the number of threads can change the order of sums inside torch.
        self._num_threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def train(
        self, chunks: Sequence[Chunk], blocks: SentBlocks, *, round_index: int, learning_rate: float
    ) -> Iterator[ChunkUpdate]:
        """Train the chunks' clients on these blocks."""
        waiting = list(reversed(chunks))
        while waiting:
            chunk = waiting.pop()
            try:
                part = self._host.train(chunk, blocks, round_index=round_index, learning_rate=learning_rate, whole=True)
            except ClientError as error:
                if not self._drops:
                    raise
                self._failures.append(Failure("training", (error.client,), None, error.cause, "dropped"))
                if len(chunk.clients) > 1:
                    waiting.append(chunk.without(error.client))
                continue
            yield ChunkUpdate(part.records, iter(part.sent.items()), part.bytes_down, part.bytes_up)

    def evaluate(
        self, chunks: Sequence[Chunk], blocks: SentBlocks, *, round_index: int, scoring: Scoring
    ) -> Iterator[ChunkEvaluation]:
        """Score these blocks, in the state and on the samples that `scoring` names."""
        for chunk in chunks:
            yield self._host.evaluate(chunk, blocks, round_index=round_index, scoring=scoring)

    def private_sums(self, chunks: Sequence[Chunk], *, round_index: int) -> Iterator[Mapping[Block, PartialSum]]:
        """By chunk the private blocks of its clients after a round, added up."""
        for chunk in chunks:
            yield summed([self._host.private_sums(chunk, round_index=round_index, whole=True)])

    def take_round(self) -> RuntimeRound:
        """The clients that were dropped since the last call."""
        failures, self._failures = tuple(self._failures), []
        return RuntimeRound(failures)

    def save(self, folder: Path, round_index: int) -> Pending:
        """Write the clients' states after this round into `folder`, in the background."""
        self._host.begin_checkpoint(folder / "clients-0.safetensors", round_index=round_index)

        def wait() -> bool:
            self._host.finish_checkpoint()
            return True

        return Pending(wait)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Give every client the state that it has in a checkpoint."""
        self._host.restore(checkpoint.client_files)

    def describe(self) -> Description:
        """There are no other processes."""
        entries = {"runtime": "local", "actors": 0}
        return Description(entries, self._host.private_digest(), obstacles=self._host.obstacles)

    def close(self) -> None:
        """Unmap the shards and give torch its threads back."""
        self._host.close()
        torch.set_num_threads(self._num_threads)


Item = TypeVar("Item")


def shield(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items, each computed under torch's and NumPy's own settings.

    What the caller has set, such as `torch.autocast`, `torch.no_grad` or a default type, holds again whenever it has
    the word: between two items, and after the last.

    Args:
        items: Computed in this thread, as they are asked for. Closed with this generator.
    """
    try:
        while True:
            with _torch_as_it_starts(), np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
    finally:
        if isinstance(items, Generator):
            with _torch_as_it_starts():
                items.close()


@contextmanager
def _torch_as_it_starts() -> Iterator[None]:
    """All of torch's settings that change what is computed, as a new process has them, with one thread as in actors."""
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    precision = torch.get_float32_matmul_precision()
    dtype = torch.get_default_dtype()
    num_threads = torch.get_num_threads()
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        # Leaving the mode of inference alone would bring the gradients back, and take them from the caller afterwards.
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        flushes = _flushes_denormals()
        try:
            torch.set_default_dtype(torch.float32)
            _use_deterministic(mode=False, warns_only=False)
            torch.set_float32_matmul_precision("highest")
            torch.set_num_threads(1)
            if flushes:
                torch.set_flush_denormal(False)
            yield
        finally:
            torch.set_default_dtype(dtype)
            _use_deterministic(is_deterministic, warns_only)
            torch.set_float32_matmul_precision(precision)
            torch.set_num_threads(num_threads)
            if flushes:
                torch.set_flush_denormal(True)


def _use_deterministic(mode: bool, warns_only: bool) -> None:
    """Where it is another mode only: setting it imports PyTorch's compiler, which takes a second."""
    if (mode, warns_only) != (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    ):
        torch.use_deterministic_algorithms(mode, warn_only=warns_only)


def _flushes_denormals() -> bool:
    """Whether this thread takes the smallest numbers for 0; torch has no way to ask."""
    return bool(np.float32(2**-140) * np.float32(1) == 0)
