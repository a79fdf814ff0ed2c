"""Blocks with an optimizer, or a learning rate, of their own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from blossom_ray import Run, Scenario, simulate
from blossom_ray.clients.job import ClientTask, LocalJob, LocalPass, LocalResult
from blossom_ray.clients.local_training import SequentialEngine
from blossom_ray.clients.options import Adam, Sgd, Training
from blossom_ray.clients.stacked.engine import StackedEngine
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.seeding import Purpose, generator
from blossom_ray.models.options import Model
from blossom_ray.runs.session import record_run, resume_run
from blossom_ray.tasks.learned import one_task

SHAPES = {"acc": (4,), "gyro": (3,)}
MODEL = {
    "encoders": {name: {"kind": "mlp", "hidden": [5], "dim": 4} for name in SHAPES},
    "fusion": {"kind": "concat", "dim": 6},
    "head": {"kind": "linear"},
}
MIXED = {
    "kind": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "blocks": {
        "encoder/*": {"lr": 0.02},
        "encoder/gyro": {"kind": "adam", "lr": 0.01},
        "head": {"lr": 0.2, "momentum": 0.0, "weight_decay": 0.1},
    },
}


def space() -> Workspace:
    return Workspace(Model.model_validate(MODEL), SHAPES, one_task("classification", 3), owned=tuple(SHAPES), seed=0)


def tasks(workspace: Workspace, *sizes: int) -> list[ClientTask]:
    found = []
    for client, size in enumerate(sizes):
        rng = np.random.default_rng(client)
        inputs = {name: rng.normal(size=(size, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
        found.append(ClientTask(client, workspace.initial_blocks, inputs, rng.integers(0, 3, size)))
    return found


def job(training: Training, learning_rate: float = 0.1) -> LocalJob:
    blocks = frozenset(space().trained)
    return LocalJob(
        training,
        learning_rate,
        (LocalPass(2, blocks, anchored=blocks, mu=training.proximal_mu),),
        seed=0,
        round_index=1,
    )


def section(optimizer: dict[str, Any], **changes: Any) -> Training:
    return Training.model_validate({"batch_size": 4, "optimizer": optimizer} | changes)


def assert_same(found: LocalResult, expected: LocalResult) -> None:
    for name, values in expected.blocks.items():
        np.testing.assert_allclose(found.blocks[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
    assert found.optimizer_state.keys() == expected.optimizer_state.keys()
    for name, state in expected.optimizer_state.items():
        assert found.optimizer_state[name].keys() == state.keys()
        for key, values in state.items():
            np.testing.assert_allclose(found.optimizer_state[name][key], values, rtol=1e-3, atol=1e-6)


def test_rates_and_kinds_follow_the_names_of_blocks() -> None:
    optimizer = section(MIXED).optimizer
    assert optimizer.of("fusion") == Sgd(kind="sgd", lr=0.1, momentum=0.9)
    assert optimizer.of("encoder/acc") == Sgd(kind="sgd", lr=0.02, momentum=0.9)
    assert optimizer.of("encoder/gyro") == Adam(kind="adam", lr=0.01)
    assert optimizer.of("head") == Sgd(kind="sgd", lr=0.2, weight_decay=0.1)
    # A schedule that is at half of lr halves all rates.
    rates = {name: rate for _, rate, names in optimizer.alike(("head", "encoder/gyro"), 0.05) for name in names}
    assert rates == {"head": pytest.approx(0.1), "encoder/gyro": pytest.approx(0.005)}
    grouped = [names for _, _, names in optimizer.alike(("encoder/acc", "fusion", "encoder/b"), 0.1)]
    assert grouped == [["encoder/acc", "encoder/b"], ["fusion"]]


def test_training_equals_the_plain_loop() -> None:
    plain, workspace = space(), space()
    [task] = tasks(workspace, 10)
    of = {name: list(flat.module.parameters()) for name, flat in plain.flat.items()}
    optimizers = [
        torch.optim.SGD(
            [
                {"params": of["encoder/acc"], "lr": 0.02},
                {"params": of["fusion"]},
                {"params": of["head"], "lr": 0.2, "momentum": 0.0, "weight_decay": 0.1},
            ],
            lr=0.1,
            momentum=0.9,
        ),
        torch.optim.Adam(of["encoder/gyro"], lr=0.01),
    ]
    draw = generator(0, Purpose.TRAINING, 1, 0)
    plain.model.train()
    for _ in range(2):
        for rows in np.split(draw.permutation(10), [4, 8]):
            plain.model.zero_grad()
            outputs = plain.model({name: torch.from_numpy(values[rows]) for name, values in task.inputs.items()})
            F.cross_entropy(outputs, torch.from_numpy(task.labels[rows])).backward()
            for optimizer in optimizers:
                optimizer.step()
    [result] = SequentialEngine(workspace).train([task], job(section(MIXED)))
    for name, flat in plain.flat.items():
        np.testing.assert_allclose(result.blocks[name], flat.read(), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "optimizer",
    [
        MIXED,
        {"kind": "sgd", "lr": 0.1, "weight_decay": 0.1, "blocks": {"encoder/*": {"lr": 0.02}, "head": {"lr": 0.2}}},
        {"kind": "adamw", "lr": 0.1, "blocks": {"head": {"kind": "sgd", "lr": 0.1}, "fusion": {"beta1": 0.5}}},
    ],
)
@pytest.mark.parametrize("proximal_mu", [0.0, 0.5])
def test_the_engines_agree(optimizer: dict[str, Any], proximal_mu: float) -> None:
    workspace = space()
    training = section(optimizer, keep_optimizer_state=True, proximal_mu=proximal_mu)
    first, apart = tasks(workspace, 9, 4, 1), SequentialEngine(workspace)
    stacked = StackedEngine(workspace)
    for learning_rate in (0.1, 0.05):
        expected, found = (engine.train(first, job(training, learning_rate)) for engine in (apart, stacked))
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
        # In the second round one client of them has trained before: steps are counted by client.
        later = [ClientTask(t.client, r.blocks, t.inputs, t.labels, {}, r.optimizer_state)
                 for t, r in zip(first, expected, strict=True)]  # fmt: skip
        first = [later[0], *first[1:]]


@pytest.fixture
def scenario(small_scenario: Scenario) -> Scenario:
    return small_scenario.override(
        {
            "rounds": 4,
            "training.optimizer": {"kind": "sgd", "momentum": 0.9, "blocks": {"head": {"kind": "adam"}}},
            "training.keep_optimizer_state": True,
            "checkpoint.every": 2,
        }
    )


def test_kept_state_comes_back_from_a_checkpoint(scenario: Scenario, tmp_path: Path) -> None:
    whole = simulate(scenario)
    records = record_run(scenario, tmp_path)
    next(record for record in records if record.round_index == 3)
    records.close()
    assert len(list(resume_run(scenario, tmp_path))) == 2
    assert Run.open(tmp_path).manifest["digest"] == whole.manifest["digest"]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"heed": {"lr": 0.1}}, "blocks.heed is not a block of this model; expected one of encoder/*, encoder/acc, "),
        ({"head": {"beta1": 0.5}}, "blocks.head.beta1 is not a key of 'sgd'; expected one of kind, lr, momentum, "),
        ({"head": {"kind": "adam", "momentum": 0.9}}, "blocks.head.momentum is not a key of 'adam'; expected one of "),
        ({"encoder/*": {"nesterov": True}}, "blocks.encoder/*.nesterov is true, while momentum is 0; expected false, "),
        ({"head": {"lr": 0}}, "blocks.head.lr is 0; expected a number above 0"),
        ({"head": {"rate": 0.1}}, "blocks.head.rate is not a known key; expected one of kind, lr, "),
    ],
)
def test_what_is_wrong_is_said(small_scenario: Scenario, blocks: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=r"training\.optimizer\.") as raised:
        small_scenario.override({"training.optimizer": {"kind": "sgd", "blocks": blocks}})
    assert f"training.optimizer.{message}" in str(raised.value)


def test_rates_are_varied_by_path(small_scenario: Scenario) -> None:
    scenario = small_scenario.override({"training.optimizer.blocks.head.lr": 0.5, "training.optimizer.lr": 0.25})
    assert (scenario.training.optimizer.of("head").lr, scenario.training.optimizer.of("fusion").lr) == (0.5, 0.25)
