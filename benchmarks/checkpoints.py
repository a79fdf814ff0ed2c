"""What checkpoints cost: the share of a run that waits for them, and the time that ten thousand private states take.

    python benchmarks/checkpoints.py scenarios/uci-har-exclusive.yaml --rounds 20
    python benchmarks/checkpoints.py --clients 10000 --values 1000 16838

With a scenario, the loop runs in this process and the clients where the scenario says; the time that the loop spends
in calls of the checkpoint writer is summed up. Its last checkpoint, which the loop waits for, counts too. Pairs of
runs with and without checkpoints, in turns, show what else they cost (`--pairs`).

With a number of clients, so many states with a private block of so many values each are written as one host writes
them, with checksums and with all on disk (fsync). Times are medians of `--repeats`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from blossom_ray import Scenario
from blossom_ray.checkpoint import CheckpointStore
from blossom_ray.clients.plan import ClientState
from blossom_ray.clients.state_files import write_clients
from blossom_ray.core.blocks import BlockInstance, Scope
from blossom_ray.runs import loop
from blossom_ray.runtime import actors, cluster
from blossom_ray.runtime.base import Runtime
from blossom_ray.runtime.local import LocalRuntime
from blossom_ray.runtime.preparation import Preparation
from blossom_ray.server import Server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--values", type=int, nargs="+", default=[1000, 16838], help="float32 values of a state")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where checkpoints are written; a temporary folder")
    arguments = parser.parse_args()
    if arguments.scenario is None:
        for num_values in arguments.values:
            print(private_states(arguments.clients, num_values, arguments.repeats, arguments.folder))
        return
    scenario = Scenario.load(arguments.scenario, {"rounds": arguments.rounds})
    with cluster.session():
        for _ in range(arguments.pairs):
            print(overhead(scenario, arguments.folder))


def overhead(scenario: Scenario, folder: Path | None) -> str:
    """One run with checkpoints and one without: seconds of each, and of the former in calls of the writer."""
    without, _ = timed_run(scenario.override({"checkpoint.every": 0}), folder)
    seconds, waited = timed_run(scenario, folder)
    return (
        f"{scenario.name}, {scenario.rounds} rounds, {scenario.execution.runtime}, "
        f"checkpoint.every {scenario.checkpoint.every}: {seconds:.2f} s, {without:.2f} s without; "
        f"in checkpoint calls {waited:.3f} s = {100 * waited / seconds:.2f} %"
    )


def timed_run(scenario: Scenario, folder: Path | None) -> tuple[float, float]:
    """Seconds of the rounds, and seconds of them in calls of the checkpoint writer."""
    writer: Any = loop._CheckpointWriter
    stopwatch = Stopwatch()
    methods = {name: getattr(writer, name) for name in ("after_round", "commit")}
    for name, method in methods.items():
        setattr(writer, name, stopwatch.timed(method))
    try:
        with TemporaryDirectory(dir=folder) as name:
            shards = Path(name) / "shards"
            shards.mkdir()
            events = loop.run(scenario, starter(scenario), shards=shards, checkpoints=Path(name) / "checkpoints")
            next(events)  # data and actors are ready
            started = time.perf_counter()
            for _ in events:
                pass
            return time.perf_counter() - started, stopwatch.seconds
    finally:
        for name, method in methods.items():
            setattr(writer, name, method)


def starter(scenario: Scenario) -> Callable[[Preparation], Runtime]:
    if scenario.execution.runtime == "local":
        return LocalRuntime
    handles = actors.spawn_clients(scenario, stacks=scenario.training.may_stack)
    return lambda preparation: actors.ActorRuntime(preparation, handles)


class Stopwatch:
    """Sums up the time in some functions, a call within a call once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time added."""

        def call(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            self._depth += 1
            try:
                return function(*arguments, **options)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.perf_counter() - started

        return call


def private_states(num_clients: int, num_values: int, repeats: int, folder: Path | None) -> str:
    """Time to write a checkpoint of so many clients, whole and on disk."""
    encoder = BlockInstance("encoder/acc", Scope.SHARED)
    draw = np.random.default_rng(0)
    states = {
        client: ClientState(
            private={"head": draw.standard_normal(num_values, dtype=np.float32)}, versions={encoder: client}
        )
        for client in range(num_clients)
    }
    times = []
    with TemporaryDirectory(dir=folder) as name:
        store = CheckpointStore(Path(name), keep=1)
        for round_index in range(repeats):
            started = time.perf_counter()
            write_clients(store.begin(round_index) / "clients-0.safetensors", states)
            checkpoint = store.commit(round_index, Server({}), {})
            times.append(time.perf_counter() - started)
        size = sum(path.stat().st_size for path in checkpoint.folder.iterdir())
    listed = ", ".join(f"{seconds:.2f}" for seconds in times)
    return (
        f"{num_clients} states of {num_values} values, {size / 1e6:.0f} MB: median {median(times):.2f} s "
        f"of {repeats} ({listed})"
    )


if __name__ == "__main__":
    main()
