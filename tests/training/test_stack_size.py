"""Stacks on a device with little memory: measured, tried in halves, and with the same results."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from test_stacked import ENCODERS, assert_same_result, make_job, make_tasks, training, workspace
from torch.utils._python_dispatch import TorchDispatchMode

from blossom_ray.clients.job import ClientTask, LocalResult
from blossom_ray.clients.stacked.engine import StackedEngine
from blossom_ray.clients.stacked.stack import CudaMemory, StackSize
from blossom_ray.clients.workspace import Workspace
from blossom_ray.errors import ClientError

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = (9, 4, 11, 7, 9, 3, 5, 8)


class SmallMemory(TorchDispatchMode):
    """A device on which no tensor has room for more than `most` values."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.num_refused = most, 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() > self.most:
            self.num_refused += 1
            raise torch.OutOfMemoryError(f"{result.numel()} values")
        return result


class WatchedMemory(CudaMemory):
    """A device with so many bytes, of which each client of a stack takes the same."""

    def __init__(self, free: int, peak: int) -> None:
        self.free, self.peak = free, peak
        self.calls: list[str] = []

    def reset_peak(self) -> None:
        self.calls.append("reset")

    def peak_bytes(self) -> int:
        return self.peak

    def free_bytes(self) -> int:
        return self.free

    def release(self) -> None:
        self.calls.append("release")


def largest_tensor(space: Workspace, tasks: Sequence[ClientTask]) -> int:
    """Values of the largest tensor that training these at once makes."""
    low, high = 1, 2**24
    while low < high:
        middle = (low + high) // 2
        engine = StackedEngine(space, capacity=len(tasks))
        with SmallMemory(middle) as memory, suppress(torch.OutOfMemoryError):
            engine.train(tasks, make_job(space, training()))
        low, high = (middle + 1, high) if memory.num_refused else (low, middle)
    return low


@pytest.mark.parametrize("kind", ["mlp", "conv-gru"])
def test_a_stack_that_does_not_fit_is_halved_and_the_results_are_the_same(kind: str) -> None:
    space = workspace(ENCODERS[kind], head={"kind": "mlp", "hidden": [6], "norm": "batch", "dropout": 0.3})
    tasks = make_tasks(space, SIZES)
    expected = StackedEngine(space).train(tasks, make_job(space, training()))
    engine = StackedEngine(space)
    # Room for half of the clients, but not for one more.
    with SmallMemory(largest_tensor(space, sorted(tasks, key=lambda t: -len(t.labels))[:4])) as memory:
        found = engine.train(tasks, make_job(space, training()))
        assert memory.num_refused == 1
        again = engine.train(tasks, make_job(space, training()))
        scored = engine.evaluate(tasks, batch_size=4, round_index=1)
        assert memory.num_refused == 1
    for one, two, other in zip(found, again, expected, strict=True):
        assert_same_result(one, other)
        assert_same_bits(one, two)
    for one, other in zip(scored, StackedEngine(space).evaluate(tasks, batch_size=4, round_index=1), strict=True):
        assert one.by_task[""].tally.num_examples == other.by_task[""].tally.num_examples
        assert one.by_task[""].loss == pytest.approx(other.by_task[""].loss, rel=1e-6)


def assert_same_bits(found: LocalResult, expected: LocalResult) -> None:
    assert found.loss == expected.loss
    for name, values in expected.blocks.items():
        np.testing.assert_array_equal(found.blocks[name], values)


def test_one_client_that_does_not_fit_is_an_error_that_says_what_helps() -> None:
    space = workspace()
    engine = StackedEngine(space)
    with SmallMemory(8), pytest.raises(ClientError, match="OutOfMemoryError") as caught:
        engine.train(make_tasks(space, (5, 4)), make_job(space, training()))
    assert "training.batch_size" in caught.value.hint


@pytest.mark.parametrize(("share", "expected"), [(0.25, 2000), (1.0, 600 + 50)])
def test_a_capped_process_counts_on_its_part_whatever_others_have_taken(
    monkeypatch: pytest.MonkeyPatch, share: float, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (600, 8000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 50)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: share)
    assert CudaMemory(torch.device("cuda")).free_bytes() == expected


def test_the_first_stack_tells_how_many_clients_fit() -> None:
    memory = WatchedMemory(free=1000, peak=80)
    size = StackSize(4, memory)
    size.watch()
    size.learn(4)
    # 20 bytes each, four fifths of 1000 bytes: 40 clients.
    assert size.limit == 40
    memory.peak = 8000
    size.watch()
    size.learn(40)
    assert (size.limit, memory.calls) == (40, ["reset"])


def test_a_size_that_did_not_fit_is_not_tried_again() -> None:
    memory = WatchedMemory(free=10**9, peak=1)
    size = StackSize(32, memory)
    size.halve(9)
    size.watch()
    size.learn(4)
    assert (size.limit, memory.calls) == (4, ["release"])
    unwatched = StackSize(32, None)
    unwatched.watch()
    unwatched.learn(32)
    assert unwatched.limit == 32


def test_an_engine_stacks_as_many_as_it_has_measured() -> None:
    space = workspace()
    tasks = make_tasks(space, SIZES)
    engine = StackedEngine(space, capacity=2, memory=WatchedMemory(free=100, peak=20))
    # Two clients take 20 bytes, so eight fit into four fifths of 100.
    found = engine.train(tasks, make_job(space, training()))
    assert engine._size.limit == 8
    for one, other in zip(found, StackedEngine(space).train(tasks, make_job(space, training())), strict=True):
        assert_same_result(one, other)
