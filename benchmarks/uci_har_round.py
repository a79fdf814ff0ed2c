"""One round of the modality-exclusive UCI-HAR setting against a plain PyTorch loop, in turns, on one core each.

    python benchmarks/uci_har_round.py "UCI HAR Dataset.zip"

The plain loop does the same steps on the same batches: once with the client's own encoder alone, which is what we
compute, and once as the paper's reference code does, with the absent modality's encoder run on zeros in every step.
First the plain loop's result for one client is compared with ours.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.nn import functional as F

from blossom_ray import Scenario
from blossom_ray.clients.engines import make_engine
from blossom_ray.clients.job import ClientTask, LocalJob, LocalPass
from blossom_ray.clients.options import EngineName
from blossom_ray.clients.samples import read_only_tensor
from blossom_ray.clients.workspace import Workspace, client_workspace
from blossom_ray.core.blocks import ClientProfile
from blossom_ray.core.seeding import Purpose, generator, torch_seed
from blossom_ray.runtime.preparation import Preparation, prepare

RATE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the official archive")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    scenario = Scenario.load("scenarios/uci-har-exclusive.yaml", {"data.path": arguments.data})
    with tempfile.TemporaryDirectory() as folder:
        preparation = prepare(scenario, Path(folder))
        check_same_result(preparation)
        seconds: dict[str, list[float]] = {"ours": [], "plain loop": [], "plain loop, absent encoder on zeros": []}
        for _ in range(arguments.repeats):
            for name, train in zip(seconds, (ours, plain, plain_with_zeros), strict=True):
                started = time.process_time()
                for client in range(scenario.num_clients):
                    train(preparation, client)
                seconds[name].append(time.process_time() - started)
    ratios = {
        name: median(own / other for own, other in zip(seconds["ours"], times, strict=True))
        for name, times in seconds.items()
    }
    print("| | processor seconds a round, training | ours / it |\n|---|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {median(times):.2f} | {ratios[name]:.2f} |")


SPACES: dict[tuple[tuple[str, ...], str], Workspace] = {}


def make_workspace(preparation: Preparation, client: int, missing: str = "mask") -> Workspace:
    """A model with initial blocks; clients of one modality set take turns in it."""
    plan = preparation.plan
    owned = preparation.population.profiles[client].modalities
    if (owned, missing) not in SPACES:
        model = plan.model.model_copy(update={"missing": missing})
        space = client_workspace(replace(plan, model=model), ClientProfile(0, owned))
        SPACES[owned, missing] = space
    space = SPACES[owned, missing]
    space.load(space.initial_blocks, space.initial_state)
    return space


def ours(preparation: Preparation, client: int, engine: EngineName = "sequential") -> dict[str, np.ndarray]:
    inputs, labels, _ = preparation.open_shards().shard(client).train()
    space = make_workspace(preparation, client)
    section = preparation.plan.training
    job = LocalJob(section, RATE, (LocalPass(section.local_epochs, frozenset(space.trained)),), seed=0, round_index=1)
    (result,) = make_engine(engine, space).train([ClientTask(client, space.initial_blocks, inputs, labels)], job)
    return result.blocks


def plain(preparation: Preparation, client: int, *, zeros: bool = False) -> dict[str, np.ndarray]:
    inputs, labels, _ = preparation.open_shards().shard(client).train()
    space = make_workspace(preparation, client)
    absent = make_workspace(preparation, client, "zero-input").flat if zeros else {}
    model, section = space.model, preparation.plan.training
    tensors = {name: read_only_tensor(values) for name, values in inputs.items()}
    targets = read_only_tensor(labels)
    sgd = section.optimizer
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=sgd.weight_decay)
    order = torch.from_numpy(generator(0, Purpose.TRAINING, 1, client).permutation(len(labels)))
    torch.manual_seed(torch_seed(0, Purpose.TRAINING, 1, client))
    model.train()
    for batch in torch.split(order, section.batch_size):
        optimizer.zero_grad()
        own = {name: values[batch] for name, values in tensors.items()}
        loss = F.cross_entropy(model(own), targets[batch])
        for block, flat in absent.items():
            if block.startswith("encoder/") and block not in space.flat:
                shape = preparation.plan.input_shapes[""][block.removeprefix("encoder/")]
                # Zeros through the encoder that the client does not own, with a graph, as in the reference.
                loss = loss + 0.0 * flat.module.train()(torch.zeros(len(batch), *shape, requires_grad=True)).sum()
        loss.backward()
        optimizer.step()
    return {name: flat.read() for name, flat in space.flat.items()}


def plain_with_zeros(preparation: Preparation, client: int) -> dict[str, np.ndarray]:
    return plain(preparation, client, zeros=True)


def check_same_result(preparation: Preparation, engine: EngineName = "sequential") -> None:
    mine, others = ours(preparation, 0, engine), plain(preparation, 0)
    worst = max(float(np.abs(mine[name] - others[name]).max()) for name in mine)
    assert worst < 1e-4, f"the two compute different things: {worst}"
    print(f"largest difference after one round of one client: {worst:.1e}\n")


if __name__ == "__main__":
    main()
