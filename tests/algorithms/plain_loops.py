"""A federation in plain PyTorch, one client after the other, blocks as vectors: what papers' boxes are put into.

It takes shards, cohorts, initial values and the order of batches from the simulator, and nothing else.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from blossom_ray import Scenario
from blossom_ray.core.blocks import Scope
from blossom_ray.core.seeding import Purpose, generator
from blossom_ray.models.build import build_client_model
from blossom_ray.runtime.local import LocalRuntime
from blossom_ray.runtime.preparation import Preparation, prepare
from blossom_ray.server import Server, initial_server
from blossom_ray.simulation import run_rounds

TREE: dict[str, Any] = {
    "rounds": 4,
    "data": {
        "dataset": "synthetic",
        "samples": 160,
        "classes": 4,
        "modalities": {"acc": {"kind": "vector", "shape": [5]}, "gyro": {"kind": "vector", "shape": [4]}},
        "partition": {"kind": "dirichlet", "alpha": 0.5},
    },
    "clients": [
        {"count": 3, "modalities": ["acc", "gyro"]},
        {"count": 3, "modalities": ["acc"]},
        {"count": 3, "modalities": ["gyro"]},
    ],
    "model": {
        "encoders": {name: {"kind": "mlp", "hidden": [6], "dim": 5} for name in ("acc", "gyro")},
        "fusion": {"kind": "attention", "dim": 6},
        "head": {"kind": "linear"},
    },
    "sharing": "full-model",
    "training": {"batch_size": 5, "local_epochs": 2, "optimizer": {"kind": "sgd", "lr": 0.1}},
    "server": {"clients_per_round": 5},
    "execution": {"runtime": "local", "chunk_size": 2},
}
"""Nine clients of three modality sets with unequal shards, five a round."""

BATCH_NORM = {"model.head": {"kind": "mlp", "hidden": [6], "norm": "batch", "dropout": 0.0}}

Blocks = dict[str, Tensor]


def running(module: nn.Module) -> Tensor:
    """The running means and variances of a block, one after the other."""
    found = [buffer.flatten() for name, buffer in module.named_buffers() if name.rpartition(".")[2][:8] == "running_"]
    return torch.cat([torch.zeros(0), *found]).clone()


def set_running(module: nn.Module, values: Tensor) -> None:
    """Put these in their place."""
    for norm in norms_of(module):
        size = norm.num_features
        norm.running_mean, norm.running_var = values[:size].clone(), values[size : 2 * size].clone()
        values = values[2 * size :]


def norms_of(module: nn.Module) -> list[Any]:
    """Its normalisation layers that keep running statistics; trained on one sample they use these."""
    return [each for each in module.modules() if isinstance(each, _BatchNorm)]


def scenario_of(algorithm: Mapping[str, Any], **changes: Any) -> Scenario:
    """The scenario with an algorithm, and some keys replaced by dotted path (`__` for a dot)."""
    tree = {name.replace("__", "."): value for name, value in changes.items()}
    return Scenario.model_validate({**TREE, "algorithm": algorithm}).override(tree)


@dataclass
class Simulated:
    """What the simulator ended with: values on the server, and what clients keep, by copy and block."""

    preparation: Preparation
    server: Server
    kept: dict[int, dict[str, dict[str, np.ndarray]]]
    records: list[Any]

    def value(self, block: str, copy: str = "", key: str = "") -> np.ndarray:
        """The value of an instance on the server."""
        return next(
            held.sent.values for i, held in self.server.blocks.items() if (i.name, i.copy, i.key) == (block, copy, key)
        )


def simulated(scenario: Scenario) -> Simulated:
    """Run a scenario in this process, and look at all that there is afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        preparation = prepare(scenario, Path(folder))
        runtime = LocalRuntime(preparation)
        server = initial_server(preparation.plan, preparation.profiles_on_server(), scenario.server.optimizer)
        records = []
        for record, after in run_rounds(preparation, runtime, server):
            records.append(record)
            server = after
        states = {c: runtime._host._states.settle(c, standing=scenario.rounds) for c in runtime._host.clients}
        kept = {
            client: {"model": dict(state.private), **{copy: dict(own) for copy, own in state.extras.items()}}
            for client, state in states.items()
            if state.rounds_trained
        }
        runtime.close()
    return Simulated(preparation, server, kept, records)


@dataclass
class World:
    """The federation as plain values; a block's vector has its running statistics behind the parameters.

    Attributes:
        shared: The averaged blocks: by name, and where each modality set has its own by `label`.
        first: Their first values.
        private: By client its private blocks.
        n: Training samples of each client.
    """

    scenario: Scenario
    shared: Blocks = field(default_factory=dict)
    private: dict[int, Blocks] = field(default_factory=dict)
    n: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        scenario = self.scenario
        with tempfile.TemporaryDirectory() as folder:
            preparation = prepare(scenario, Path(folder))
            self.plan, self.population = preparation.plan, preparation.population
            self.shards, self.tests = {}, {}
            reader = preparation.open_shards()
            for profile in self.population.profiles:
                shard = reader.shard(profile.index)
                for rows, (inputs, labels, _) in ((self.shards, shard.train()), (self.tests, shard.test())):
                    tensors = {name: torch.tensor(np.array(values)) for name, values in inputs.items()}
                    rows[profile.index] = tensors, torch.tensor(np.array(labels))
                self.n[profile.index] = len(self.shards[profile.index][1])
            reader.close()
        self.models = {}
        for profile in self.population.profiles:
            model = build_client_model(
                self.plan.model,
                self.plan.shapes(profile),
                self.plan.tasks[""].num_outputs,
                profile.modalities,
                self.plan.seed,
            )
            self.models[profile.index] = model
            self.private[profile.index] = {}
            for name, module in model.blocks.items():
                vector = torch.cat([parameters_to_vector(module.parameters()).detach(), running(module)])
                if self.plan.scheme.scope(name) is Scope.PRIVATE:
                    self.private[profile.index][name] = vector
                else:
                    self.shared.setdefault(self.label(profile.index, name), vector)
        self.first = dict(self.shared)

    @property
    def rounds(self) -> range:
        return range(1, self.scenario.rounds + 1)

    def rate(self, t: int) -> float:
        section = self.scenario.training
        return section.schedule.learning_rate(section.optimizer.lr, t, self.scenario.rounds)

    def cohort(self, t: int) -> tuple[int, ...]:
        return self.population.cohort(self.scenario.seeds.training, t)

    def label(self, client: int, block: str) -> str:
        """Which of `shared` a client's block is."""
        is_split = self.plan.scheme.scope(block) is Scope.SAME_MODALITIES
        return f"{block} of {'+'.join(self.models[client].owned)}" if is_split else block

    def averaged(self, client: int) -> list[str]:
        """The client's blocks that are averaged."""
        return [str(block) for block in self.models[client].blocks if block not in self.private[client]]

    def received(self, client: int) -> Blocks:
        """The averaged blocks that a client holds, copies."""
        return {block: self.shared[self.label(client, block)].clone() for block in self.averaged(client)}

    def holders(self, label: str) -> list[int]:
        return [k for k in self.models if label in [self.label(k, block) for block in self.averaged(k)]]

    def batches(self, client: int, t: int) -> Callable[[int], Iterator[tuple[dict[str, Tensor], Tensor]]]:
        """A function from a number of epochs to the next batches of a client's round; dropped modalities are not in."""
        seed, dropout = self.scenario.seeds.training, self.scenario.training.modality_dropout
        draw = generator(seed, Purpose.TRAINING, t, client)
        drops = generator(seed, Purpose.MODALITY_DROPOUT, t, client)
        inputs, labels = self.shards[client]

        def more(epochs: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
            for _ in range(epochs):
                order = torch.from_numpy(draw.permutation(len(labels)))
                for rows in order.split(self.scenario.training.batch_size):
                    kept = list(inputs)
                    if dropout and len(inputs) > 1:
                        kept = [name for name, u in zip(inputs, drops.random(len(inputs)), strict=True) if u >= dropout]
                        kept = kept or [list(inputs)[int(drops.integers(len(inputs)))]]
                    yield {name: inputs[name][rows] for name in kept}, labels[rows]

        return more

    def set_model(self, client: int, blocks: Mapping[str, Tensor]) -> Any:
        """The client's model with these blocks; those that are not here are its private ones."""
        model = self.models[client]
        for name, module in model.blocks.items():
            vector = {**self.private[client], **blocks}[name].clone()
            vector_to_parameters(vector, module.parameters())
            set_running(module, vector[sum(parameter.numel() for parameter in module.parameters()) :])
        model.eval()
        return model

    def gradient(self, client: int, blocks: Mapping[str, Tensor], loss: Callable[[Any], Tensor]) -> Blocks:
        """The gradient by block of a function of the client's model; zeros for running statistics."""
        model = self.set_model(client, blocks)
        model.zero_grad()
        loss(model).backward()
        found = {}
        for name, module in model.blocks.items():
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
            found[name] = torch.cat([parameters_to_vector(parts), torch.zeros_like(running(module))])
        return found

    def descend(
        self,
        client: int,
        blocks: Blocks,
        batches: Iterator[tuple[dict[str, Tensor], Tensor]],
        rate: float,
        added: Callable[[str, Tensor], Tensor | float] = lambda block, w: 0.0,
        loss: Callable[..., Tensor] | None = None,
        only: Collection[str] | None = None,
    ) -> tuple[Blocks, Counter[str]]:
        """Plain SGD on a client's blocks; private ones are kept.

        Args:
            client: The client.
            blocks: Its averaged blocks, not changed.
            batches: What to train on.
            rate: Learning rate.
            added: What is added to the gradient of a block at w.
            loss: Of the model, inputs and labels; None: the mean cross-entropy.
            only: The blocks that are trained; None: all.

        Returns:
            The new averaged blocks, and by block in how many steps it was used.
        """
        w, steps = {**self.private[client], **blocks}, Counter[str]()
        for inputs, labels in batches:

            def value(model: Any, inputs: Any = inputs, labels: Any = labels) -> Tensor:
                for norm in norms_of(model):
                    norm.train(len(labels) > 1)
                if loss is not None:
                    return loss(model, inputs, labels)
                return torch.nn.functional.cross_entropy(model(inputs), labels)

            g = self.gradient(client, w, value)
            w = {
                name: x - rate * (g[name] + added(name, x)) if only is None or name in only else x
                for name, x in w.items()
            }
            for name, module in self.models[client].blocks.items():
                if len(found := running(module)):
                    w[name] = torch.cat([w[name][: -len(found)], found])
            steps.update(b for b in w if not b.startswith("encoder/") or b.removeprefix("encoder/") in inputs)
        for name in self.private[client]:
            self.private[client][name] = w[name]
        return {name: w[name] for name in blocks}, steps

    def by_label(self, sent: Mapping[int, Blocks]) -> dict[str, dict[int, Tensor]]:
        """What clients sent of each averaged block, by `label` and client, float64."""
        found: defaultdict[str, dict[int, Tensor]] = defaultdict(dict)
        for client, own in sent.items():
            for block, value in own.items():
                found[self.label(client, block)][client] = value.double()
        return found

    def average(self, sent: Mapping[int, Blocks], weights: Mapping[int, float]) -> None:
        """Replace each averaged block by the weighted mean over those who sent it."""
        for label, own in self.by_label(sent).items():
            total = sum(weights[c] * value for c, value in own.items()) / sum(weights[c] for c in own)
            self.shared[label] = torch.as_tensor(total).float()


def assert_kept(run: Simulated, copy: str, expected: Mapping[int, Blocks], tolerance: float = 2e-5) -> None:
    """Clients that trained keep these values of a copy, by client and block."""
    assert set(run.kept) == set(expected)
    for client, blocks in expected.items():
        assert run.kept[client][copy].keys() == blocks.keys()
        for block, value in blocks.items():
            assert_close(run.kept[client][copy][block], value, f"{copy} {block} of client {client}", tolerance)


def assert_close(found: np.ndarray, expected: Tensor, what: str, tolerance: float = 2e-5) -> None:
    """Equal within rounding, which a few rounds of float32 carry along."""
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=0, atol=tolerance, err_msg=what)


def assert_model_equals(run: Simulated, world: World) -> None:
    """The server's model and all private blocks of clients that have trained are those of the loop."""
    for label, value in world.shared.items():
        block, _, key = label.partition(" of ")
        assert_close(run.value(block, key=key), value, label)
    for client, kept in run.kept.items():
        for block, own in kept["model"].items():
            assert_close(own, world.private[client][block], f"{block} of client {client}")
