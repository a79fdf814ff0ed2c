"""Keeps what is set in a user's process from a run that computes there, and the run's settings from the user."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import numpy as np
import torch

Item = TypeVar("Item")


def shielded(items: Iterator[Item]) -> Generator[Item, None, None]:
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
            torch.use_deterministic_algorithms(mode=False)
            torch.set_float32_matmul_precision("highest")
            torch.set_num_threads(1)
            if flushes:
                torch.set_flush_denormal(False)
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.use_deterministic_algorithms(is_deterministic, warn_only=warns_only)
            torch.set_float32_matmul_precision(precision)
            torch.set_num_threads(num_threads)
            if flushes:
                torch.set_flush_denormal(True)


def _flushes_denormals() -> bool:
    """Whether this thread takes the smallest numbers for 0; torch has no way to ask."""
    return bool(np.float32(2**-140) * np.float32(1) == 0)
