"""What an algorithm costs on W1: a correction of the gradient, a loss of its own, state that clients keep.

    python benchmarks/algorithms.py --clients 250 --rounds 7

One thread, stacked. Each contender has a process of its own, so that what one leaves in memory is not another's, and
they take a round in turns, so that noise falls on all alike. First, those that add nothing (an offset and a loss of
zeros) must have led to FedAvg's blocks but for rounding. The table has the median processor time of a client's whole
round, and the median over rounds of its ratio to FedAvg's.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blossom_ray import Scenario
from blossom_ray.algorithms.seam import Client, Pass
from blossom_ray.runtime.local import LocalRuntime
from blossom_ray.runtime.measurement import choose_engines
from blossom_ray.runtime.preparation import prepare
from blossom_ray.server import initial_server
from blossom_ray.simulation import run_rounds

W1 = Path(__file__).with_name("w1.yaml")
LARGEST_DIFFERENCE = 1e-5


class Offset:
    """Nothing is added to the gradient, as an offset."""

    def passes(self, k: Client) -> list[Pass]:
        """One pass."""
        return [Pass(offset=k.received * 0)]


class Loss:
    """Nothing is added to the loss, as a number per sample that depends on the representation."""

    def loss(self, batch: Any) -> Tensor:
        """(B,)."""
        zeros: Tensor = batch.representation.square().mean(-1) * 0
        return zeros


class Teacher:
    """The received model's outputs are learned, too (FedGKD, Yao et al. 2021): a second forward pass per step."""

    def loss(self, batch: Any) -> Tensor:
        """(B,)."""
        teacher = batch.through("received").outputs.softmax(-1)
        distilled: Tensor = -(teacher * torch.log_softmax(batch.outputs, -1)).sum(-1)
        return distilled


def custom(kind: type) -> dict[str, Any]:
    """The section of an own algorithm."""
    return {"kind": "custom", "factory": kind}


CONTENDERS: dict[str, Mapping[str, Any]] = {
    "fedavg": {},
    "offset of zeros": {"algorithm": custom(Offset)},
    "loss of zeros": {"algorithm": custom(Loss)},
    "received model as teacher": {"algorithm": custom(Teacher)},
    "proximal term (training.proximal_mu)": {"training.proximal_mu": 0.1},
    "scaffold": {"algorithm": {"kind": "scaffold"}},
    "feddyn": {"algorithm": {"kind": "feddyn"}},
    "ditto": {"algorithm": {"kind": "ditto"}},
}
SAME = ("offset of zeros", "loss of zeros")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    num_clients, num_rounds = arguments.clients, arguments.rounds
    scenario = Scenario.load(W1).override(
        {
            "rounds": num_rounds + 1,
            "clients.0.count": num_clients,
            "data.samples": 161 * num_clients,
            "execution.runtime": "local",
            "training.engine": "vectorized",
        }
    )
    start = multiprocessing.get_context("spawn")
    pipes = {}
    for name, changes in CONTENDERS.items():
        pipes[name], other = start.Pipe()
        start.Process(target=compute, args=(other, scenario.override(changes), num_rounds), daemon=True).start()
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    for pipe in pipes.values():
        assert pipe.recv() == "ready"
    for _ in range(num_rounds):
        for name, pipe in pipes.items():
            pipe.send("go on")
            seconds[name].append(pipe.recv())
    check_same({name: pipes[name].recv() for name in pipes})
    base = seconds["fedavg"]
    print(f"{'':38} ms a client   of FedAvg")
    for name, taken in seconds.items():
        ratio = median(own / other for own, other in zip(taken, base, strict=True))
        print(f"{name:38} {1000 * median(taken) / num_clients:11.3f} {ratio:11.2f}")


def compute(pipe: Connection, scenario: Scenario, num_rounds: int) -> None:
    """Take a round whenever one is asked for and say how long it took; in the end send the server's blocks."""
    with tempfile.TemporaryDirectory() as folder:
        preparation = choose_engines(prepare(scenario, Path(folder)))
        runtime = LocalRuntime(preparation)
        server = initial_server(preparation.plan, preparation.profiles_on_server(), scenario.server.optimizer)
        rounds = run_rounds(preparation, runtime, server)
        next(rounds), next(rounds)  # round 0 trains nobody, round 1 makes the stacks
        gc.freeze()
        pipe.send("ready")
        for _ in range(num_rounds):
            pipe.recv()
            started = time.process_time()
            _, after = next(rounds)
            pipe.send(time.process_time() - started)
        pipe.send({str(instance): block.sent.values for instance, block in after.blocks.items()})
        runtime.close()


def check_same(last: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Refuse to compare contenders that computed something else."""
    for name in SAME:
        for instance, values in last["fedavg"].items():
            difference = np.abs(values - last[name][instance]).max()
            assert difference < LARGEST_DIFFERENCE, f"{name}: {instance} differs by {difference}"


if __name__ == "__main__":
    main()
