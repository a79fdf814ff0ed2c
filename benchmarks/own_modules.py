"""W1 with a user's own MLP encoders: stacked by `torch.vmap`, one client after the other, and our MLP beside them.

    python benchmarks/own_modules.py --clients 250 --rounds 7

One process, one thread. The contenders take a round in turns, so that noise falls on all alike. First, both
engines must have led to the same blocks but for rounding. The table has the median processor time of a client's whole
round, and the median over rounds of its ratio to own modules that are stacked.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from torch import Tensor, nn

from blossom_ray import Scenario
from blossom_ray.runtime.local import LocalRuntime
from blossom_ray.runtime.measurement import choose_engines
from blossom_ray.runtime.preparation import prepare
from blossom_ray.server import Server, initial_server
from blossom_ray.simulation import run_rounds

W1 = Path(__file__).with_name("w1.yaml")
LARGEST_DIFFERENCE = 1e-5


class OwnMlp(nn.Module):
    """What `kind: mlp` is in W1, with a forward pass of its own."""

    def __init__(self, input_shape: tuple[int, ...], dim: int = 32) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(input_shape[0], 64), nn.Linear(64, dim)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, F) to (B, dim)."""
        return self.out(self.hidden(inputs).relu())


OWN: dict[str, Any] = {
    name: {"kind": "custom", "factory": OwnMlp, "options": {"dim": 32}} for name in ("first", "second")
}
CONTENDERS: dict[str, dict[str, Any]] = {
    "own modules, stacked": {"model.encoders": OWN},
    "own modules, one client after the other": {"model.encoders": OWN, "training.engine": "sequential"},
    "ours, stacked": {},
}
FIRST, SECOND, _ = CONTENDERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with ExitStack() as stack:
        rounds = {name: started(changes, arguments, stack) for name, changes in CONTENDERS.items()}
        one, other = next(rounds[FIRST]), next(rounds[SECOND])
        difference = max(
            float(np.abs(one.blocks[b].sent.values - other.blocks[b].sent.values).max()) for b in one.blocks
        )
        if not difference < LARGEST_DIFFERENCE:
            raise SystemExit(f"the engines disagree: blocks differ by {difference:.2g}")
        next(rounds["ours, stacked"])
        for _ in range(arguments.rounds):
            for name, own in rounds.items():
                before = time.process_time()
                next(own)
                seconds[name].append(time.process_time() - before)
    print(f"{arguments.clients} clients, {arguments.rounds} rounds; after round 1 blocks differ by {difference:.1e}\n")
    print("| | ms a client | it / own modules, stacked | range |\n| --- | ---: | ---: | ---: |")
    for name, found in seconds.items():
        ratios = [one / other for one, other in zip(found, seconds[FIRST], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"| {name} | {1e3 * median(found) / arguments.clients:.2f} | {median(ratios):.2f} | {spread} |")


def started(changes: dict[str, Any], arguments: argparse.Namespace, stack: ExitStack) -> Iterator[Server]:
    """W1 with some changes: the server after each of its rounds, from round 1 on."""
    common = {
        "rounds": arguments.rounds + 2,  # the last one scores, too, and is not run
        "clients.0.count": arguments.clients,
        "data.samples": arguments.clients * 161,
        "evaluation.clients": 1 / arguments.clients,
        "execution.runtime": "local",
        "training.engine": "vectorized",
    }
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    preparation = choose_engines(prepare(Scenario.load(W1, common | changes), folder))
    if preparation.notes:
        raise SystemExit("\n".join(preparation.notes))
    runtime = LocalRuntime(preparation)
    stack.callback(runtime.close)
    profiles = preparation.population.representatives()
    server = initial_server(preparation.plan, profiles, preparation.scenario.server.optimizer)
    return (after for _, after in run_rounds(preparation, runtime, server, first_round=1))


if __name__ == "__main__":
    main()
