"""Encoders of tokens in both engines: beside a loop over samples and tokens, and beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_stacked import assert_same_result, train_alone, train_stacked, training
from test_stacked import workspace as of_sections
from test_token_encoder import POOLINGS, looped
from torch import nn
from torch.nn import functional as F

from blossom_ray.clients.job import ClientTask
from blossom_ray.clients.stacked.support import is_known
from blossom_ray.clients.stacked.trial import stacking_obstacle
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import Block

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {"acc": (6,), "gyro": (3,)}
VOCABULARY = 9
SIZES = (1, 3, 8, 9, 11)


def workspace(pooling: str, shapes: Mapping[str, tuple[int, ...]] = SHAPES, **changes: Any) -> Workspace:
    encoder = {"kind": "embedding", "vocabulary": VOCABULARY, "width": 4, "pooling": pooling, "dim": 3}
    return of_sections({**encoder, "dropout": changes.pop("dropout", 0.0)}, shapes=shapes, **changes)


def make_tasks(space: Workspace, sizes: tuple[int, ...] = SIZES) -> list[ClientTask]:
    """Clients with tables of their own. Of each sample some tokens are padding, of the first all are."""
    tasks = []
    for client, size in enumerate(sizes):
        rng = np.random.default_rng(client)
        inputs = {}
        for name in space.model.owned:
            tokens = rng.integers(1, VOCABULARY, (size, *space.model.input_shapes[name]))
            tokens[rng.random(tokens.shape) < 0.4] = 0
            tokens[0] = 0
            inputs[name] = tokens.astype(np.float32)
        blocks = {
            name: (values * rng.uniform(0.9, 1.1, values.shape)).astype(np.float32)
            for name, values in space.initial_blocks.items()
        }
        tasks.append(ClientTask(client, blocks, inputs, rng.integers(0, 3, size)))
    return tasks


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_are_those_of_a_loop(pooling: str) -> None:
    space, section = workspace(pooling, {"acc": (6,), "gyro": (3,)}), training({"kind": "sgd"}, batch_size=16)
    tasks = make_tasks(space)
    stacked = train_stacked(space, tasks, section, learning_rate=1.0)
    for task, together in zip(tasks, stacked, strict=True):
        alone = train_alone(space, task, section, learning_rate=1.0)
        space.load(task.blocks, space.initial_state)
        model = space.model.train()
        embeddings = {
            name: looped(model.blocks[Block("encoder", name)], torch.from_numpy(values), pooling)
            for name, values in task.inputs.items()
        }
        outputs = model.blocks[Block("head")](model.blocks[Block("fusion")](embeddings))
        loss = F.cross_entropy(outputs, torch.from_numpy(task.labels))
        for name in space.trained:
            gradients = torch.autograd.grad(
                loss,
                [*model.blocks[name].parameters()],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            gradient = torch.cat([values.flatten() for values in gradients]).numpy()
            for result in (together, alone):
                step = task.blocks[name] - result.blocks[name]
                np.testing.assert_allclose(step, gradient, rtol=1e-4, atol=1e-5, err_msg=f"{name} of {task.client}")


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("optimizer", [{"kind": "sgd", "momentum": 0.9, "weight_decay": 0.1}, {"kind": "adam"}])
def test_engines_agree(pooling: str, optimizer: dict[str, Any]) -> None:
    section = training(optimizer, local_epochs=2)
    space = workspace(pooling, dropout=0.3)
    assert stacking_obstacle(space) is None
    tasks = make_tasks(space)
    for task, result in zip(tasks, train_stacked(space, tasks, section, learning_rate=0.03), strict=True):
        assert_same_result(result, train_alone(space, task, section, learning_rate=0.03))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("missing", ["mask", "zero-input"])
def test_samples_and_clients_that_lack_tokens(pooling: str, missing: str) -> None:
    """A sample that lacks the modality is another thing than one without tokens, which its encoder sees."""
    for owned in (("acc", "gyro"), ("gyro",)):
        space = workspace(pooling, owned=owned, missing=missing)
        tasks = make_tasks(space)
        if len(owned) == 2:
            tasks = [replace(task, observed={"acc": np.arange(len(task.labels)) % 3 != 1}) for task in tasks]
        for task, result in zip(tasks, train_stacked(space, tasks, training()), strict=True):
            assert_same_result(result, train_alone(space, task, training()))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Embedding(5, 2), True),
        (nn.Embedding(5, 2, padding_idx=0), False),
        (nn.Embedding(5, 2, max_norm=1.0), False),
        (nn.Embedding(5, 2, scale_grad_by_freq=True), False),
        (nn.EmbeddingBag(5, 2, padding_idx=3), True),
        (nn.EmbeddingBag(5, 2, sparse=True), False),
        (nn.EmbeddingBag(5, 2, include_last_offset=True), False),
    ],
    ids=str,
)
def test_tables_that_have_a_stacked_form(layer: nn.Module, expected: bool) -> None:
    assert is_known(layer) is expected
