"""Where a round's time goes: processor time by phase, for any scenario, in one process.

    python benchmarks/round_profile.py benchmarks/w1.yaml --rounds 6
    python benchmarks/round_profile.py scenarios/ten-thousand.yaml --rounds 6 --set evaluation.clients=0.01

The scenario runs in the local runtime, on one thread. A stopwatch is put around the functions that do the phases below;
while one runs inside another, the outer watch stands still, so the parts add up to the whole. What no watch covers is
`everything else`. Round 1 is left out.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

import blossom_ray.clients.host
import blossom_ray.clients.stacked.training
import blossom_ray.rounds
import blossom_ray.simulation
from blossom_ray import Scenario, simulate
from blossom_ray.algorithms.selection import Population
from blossom_ray.clients.compiled.engine import CompiledSteps
from blossom_ray.clients.host import ClientHost
from blossom_ray.clients.local_training import SequentialEngine
from blossom_ray.clients.stacked.engine import StackedEngine
from blossom_ray.clients.stacked.optimizer import StackOptimizer
from blossom_ray.clients.stacked.stack import Stack
from blossom_ray.clients.stacked.training import StackTrainer
from blossom_ray.core.sums import Accumulator
from blossom_ray.data.shards import ShardReader
from blossom_ray.reading.overrides import parse_assignment

Place = tuple[Any, str]
PHASES: dict[str, tuple[Place, ...]] = {
    "cohort and chunks": ((Population, "cohort"), (Population, "cut")),
    "open shards": ((ShardReader, "shard"),),
    "bookkeeping of clients": ((ClientHost, "train"),),
    "engine around its steps": ((StackedEngine, "train"),),
    "clients one after the other": ((SequentialEngine, "train"),),
    "steps in C": ((CompiledSteps, "_epoch"),),
    "compiled engine around its steps": ((CompiledSteps, "train"),),
    "blocks to and from the kernels, drift": ((CompiledSteps, "_load"), (CompiledSteps, "_read")),
    "blocks into the stack": ((Stack, "load"),),
    "samples into the stack": ((blossom_ray.clients.stacked.training, "Shards"),),
    "forward, loss": ((StackTrainer, "train"),),
    "backward": ((torch.autograd, "grad"),),
    "optimizer": ((StackOptimizer, "step"),),
    "blocks out of the stack": ((Stack, "read"),),
    "client drift": ((Stack, "distances"),),
    "check that updates are finite": ((blossom_ray.clients.host, "check_finite"),),
    "sums within chunks": ((blossom_ray.clients.host, "weighted_sum"),),
    "sums over chunks, average": ((Accumulator, "add"), (Accumulator, "result")),
    "server step": ((blossom_ray.simulation, "server_step"),),
    "round record": ((blossom_ray.simulation, "round_record"),),
    "scoring": ((blossom_ray.simulation, "evaluate_round"),),
}


class Stopwatches:
    """Processor time by phase; the innermost running phase alone gets it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._running = ["everything else"]
        self._last = time.process_time()

    def switch(self) -> None:
        """Give the time since the last switch to the running phase."""
        now = time.process_time()
        self.seconds[self._running[-1]] += now - self._last
        self._last = now

    def wrap(self, phase: str, action: Callable[..., Any]) -> Callable[..., Any]:
        """`action`, with a watch around it."""

        def watched(*arguments: Any, **options: Any) -> Any:
            self.switch()
            self._running.append(phase)
            try:
                return action(*arguments, **options)
            finally:
                self.switch()
                self._running.pop()

        return watched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    changes = {"rounds": arguments.rounds, "execution.runtime": "local", "checkpoint.every": 0}
    scenario = Scenario.load(arguments.scenario, changes | dict(map(parse_assignment, arguments.changes)))

    watches = Stopwatches()
    for phase, places in PHASES.items():
        for owner, name in places:
            setattr(owner, name, watches.wrap(phase, getattr(owner, name)))
    num_trained = 0
    for record in simulate(scenario, stream=True):
        watches.switch()
        if record.round_index <= 1:
            watches.seconds.clear()
        else:
            num_trained += len(record.cohort)
        if record.round_index == scenario.rounds - 1:
            # The last round scores whoever was not asked before.
            break
    total = watches.seconds.total()
    print(f"{num_trained} clients trained, {1e3 * total / num_trained:.3f} ms of processor time each\n")
    print("| phase | ms a client | part |\n|---|---:|---:|")
    for phase, seconds in watches.seconds.most_common():
        print(f"| {phase} | {1e3 * seconds / num_trained:.4f} | {seconds / total:.1%} |")


if __name__ == "__main__":
    main()
