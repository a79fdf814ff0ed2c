"""All data of several tasks in one place: one model with a head for each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from blossom_ray import Dataset, Run, Scenario, from_arrays, simulate
from blossom_ray.core.seeding import Purpose, generator
from blossom_ray.models.build import build_client_model
from blossom_ray.runs.session import record_run, resume_run
from blossom_ray.runtime.local import LocalRuntime
from blossom_ray.runtime.measurement import choose_engines
from blossom_ray.runtime.preparation import prepare
from blossom_ray.server import initial_server
from blossom_ray.simulation import run_rounds

pytestmark = pytest.mark.usefixtures("one_thread")

LR, DECAY = 0.2, 0.1
BOTH = ["activity", "stress"]


def two_labels() -> Dataset:
    """Five clients of ten samples, labelled for a classification and a regression."""
    draw = np.random.default_rng(1)
    acc, gyro, classes = draw.normal(size=(50, 4)), draw.normal(size=(50, 3)), draw.integers(0, 3, 50)
    return from_arrays(
        {"acc": acc, "gyro": gyro},
        classes,
        clients=np.repeat(np.arange(5), 10),
        splits=(["train"] * 6 + ["test"] * 4) * 5,
        label_columns={
            "activity": ([str(label) for label in classes], "classification"),
            "stress": (acc[:, :1] + gyro[:, :1], "regression"),
            "rated": ([None if row % 3 == 0 else acc[row, 0] for row in range(50)], "regression"),
        },
    )


def scenario_of(*groups: tuple[int, str | list[str]], **changes: Any) -> Scenario:
    encoder = {"kind": "mlp", "hidden": [4], "dim": 3, "dropout": 0.0}
    tree = {
        "rounds": 2,
        "data": {"dataset": "custom", "factory": two_labels, "partition": {"kind": "given"}},
        "tasks": {"activity": {"labels": "activity"}, "stress": {"kind": "regression", "labels": "stress"}},
        "clients": [{"count": count, "modalities": ["acc", "gyro"], "task": task} for count, task in groups if count],
        "model": {
            "encoders": {"acc": encoder, "gyro": encoder},
            "fusion": {"kind": "mean", "dim": 4},
            "head": {"kind": "linear"},
        },
        "sharing": "central",
        "training": {"batch_size": 100, "optimizer": {"kind": "sgd", "lr": LR}},
        "execution": {"runtime": "local"},
    }
    return Scenario.model_validate(tree).override({key.replace("__", "."): value for key, value in changes.items()})


def test_one_step_on_all_samples_is_the_average_of_the_clients_steps() -> None:
    """Of clients with both tasks: their losses are weighed as the clients' are."""
    scenario = scenario_of((5, BOTH), tasks__stress__loss_weight=0.3)
    pooled, federated = simulate(scenario), simulate(scenario.override({"sharing": "full-model"}))
    for metric in ("activity/train_loss", "stress/train_loss", "activity/loss", "stress/rmse"):
        expected = federated.rounds[metric].drop_nulls().to_list()
        assert pooled.rounds[metric].drop_nulls().to_list() == pytest.approx(expected, rel=1e-5), metric
    rows = pooled.clients.filter(round=1)
    assert rows["stress/train_loss"].to_list() == pytest.approx([pooled.rounds["stress/train_loss"][1]] * 5)


@pytest.mark.parametrize("others", [0, 2])
def test_one_task_of_which_some_labels_lack_is_learned_from_the_others(others: int) -> None:
    """As the step of its clients, with clients of another task beside them and alone."""
    tasks = {
        "rated": {"kind": "regression", "labels": "rated"},
        **({"activity": {"labels": "activity"}} if others else {}),
    }
    scenario = scenario_of((others, "activity"), (5 - others, "rated"), tasks=tasks)
    apart = {"encoder/*": "same-task", "fusion": "same-task", "head": "same-task"}
    pooled, federated = (simulate(scenario.override({"sharing": each})) for each in ("central-per-task", apart))
    for metric in ("rated/train_loss", "rated/loss", "rated/rmse"):
        expected = federated.rounds[metric].drop_nulls().to_list()
        assert pooled.rounds[metric].drop_nulls().to_list() == pytest.approx(expected, rel=1e-5), metric


def test_a_batch_is_of_one_task_and_the_head_of_the_other_rests(tmp_path: Path) -> None:
    """Against plain PyTorch: a step of each task in a round, in random order; decay is where a block steps."""
    scenario = scenario_of((3, "activity"), (2, "stress"), training__optimizer__weight_decay=DECAY)
    preparation = choose_engines(prepare(scenario, tmp_path))
    with preparation.open_shards() as shards:
        parts = [shards.shard(client).train() for client in range(5)]
    pools = [
        ({name: torch.from_numpy(np.concatenate([part.inputs[name] for part in own])) for name in ("acc", "gyro")},
         torch.from_numpy(np.concatenate([part.labels for part in own])))
        for own in (parts[:3], parts[3:])
    ]  # fmt: skip
    plan, owner = preparation.plan, preparation.population.profiles[0]
    model = build_client_model(plan.model, plan.shapes(owner), {"activity": 3, "stress": 1}, ("acc", "gyro"), plan.seed)
    server = initial_server(plan, preparation.profiles_on_server(), scenario.server.optimizer)
    for round_index in (1, 2):
        draw = generator(plan.seed, Purpose.CENTRAL_TRAINING, round_index)
        orders = [draw.permutation(len(labels)) for _, labels in pools]
        for place in draw.permutation(2):
            (inputs, labels), rows = pools[place], torch.from_numpy(orders[place])
            outputs = model({name: values[rows] for name, values in inputs.items()})
            if place == 0:
                loss = F.cross_entropy(outputs[:, :3], labels[rows])
            else:
                loss = F.mse_loss(outputs[:, 3:], labels[rows])
            model.zero_grad()
            loss.backward()
            for name, block in model.blocks.items():
                if name != ("head/stress", "head/activity")[place]:
                    for parameter in block.parameters():
                        parameter.data -= LR * (parameter.grad + DECAY * parameter.data)
    *_, (record, server) = run_rounds(preparation, LocalRuntime(preparation), server)
    for name, block in model.blocks.items():
        (found,) = (held.sent.values for instance, held in server.blocks.items() if instance.name == name)
        expected = parameters_to_vector(block.parameters()).detach().numpy()
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)
    assert {client.num_steps for client in record.training} == {2}
    assert all(block.task_cosine is None for block in record.blocks)


def test_tasks_have_scores_and_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    norm = {"model.head": {"kind": "mlp", "hidden": [4], "norm": "batch"}, "training.batch_size": 4}
    scenario = scenario_of((2, "activity"), (1, "stress"), (2, BOTH), checkpoint={"every": 1}).override(norm)
    whole = simulate(scenario)
    assert {"activity/accuracy", "stress/rmse", "activity/train_loss", "stress/train_loss"} <= {*whole.rounds.columns}
    records = record_run(scenario, tmp_path)
    next(record for record in records if record.round_index == 1)
    records.close()
    for _ in resume_run(scenario, tmp_path):
        pass
    assert Run.open(tmp_path).manifest["digest"] == whole.manifest["digest"]
    assert Run.open(tmp_path).rounds["stress/rmse"].to_list() == whole.rounds["stress/rmse"].to_list()
