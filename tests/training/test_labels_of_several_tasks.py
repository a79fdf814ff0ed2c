"""Clients with several tasks, and labels that are not known: losses, heads and scores, in numbers done by hand."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from blossom_ray.clients.engines import make_engine
from blossom_ray.clients.job import Affine, ClientTask, LocalJob, LocalPass, LocalResult
from blossom_ray.clients.losses import Objective, class_weights
from blossom_ray.clients.options import EngineName, Training
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.label_rows import label_rows
from blossom_ray.core.scores import Task
from blossom_ray.models.options import Model
from blossom_ray.tasks import task_rules
from blossom_ray.tasks.learned import Learned

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {"acc": (4,), "gyro": (3,)}
MLP = {"kind": "mlp", "hidden": [5], "dim": 4}
ENGINES: tuple[EngineName, ...] = ("sequential", "vectorized")


def learned(**tasks: tuple[Task, int, float]) -> Learned:
    found = {name: (kind, task_rules(kind), number, weight) for name, (kind, number, weight) in tasks.items()}
    return Learned(found, has_rows=True)


BOTH = learned(activity=("classification", 3, 1.0), who=("classification", 2, 0.3))


def loss_of(kind: dict[str, Any], own: Learned) -> Objective:
    return Objective(Training.model_validate({"loss": kind}).loss, own, torch.device("cpu"))


def test_a_task_adds_its_weight_times_its_labelled_samples_over_all() -> None:
    """Four rows, one labelled in `who` with a loss of 2: 0.3 * 2 / 4 = 0.15, and not 0.3 * 2 = 0.6."""
    surely_wrong = float(np.log(np.e**2 - 1))  # log(1 + exp(x)) is 2
    outputs = torch.tensor([[0.0, 0, 0, 0, surely_wrong]] + [[1.0, 2, 3, 4, 5]] * 3)
    known = np.array([True, False, False, False])
    rows = torch.from_numpy(label_rows([(np.zeros(4, np.int64), None), (np.zeros(4, np.int64), known)]))
    total, by_task = loss_of({"kind": "task"}, BOTH).mean(outputs, rows, (None, None))
    activity = F.cross_entropy(outputs[:, :3], torch.zeros(4, dtype=torch.int64)).item()
    assert by_task is not None
    assert by_task.tolist() == pytest.approx([activity, 0.5])
    assert total.item() - activity == pytest.approx(0.15)


@pytest.mark.parametrize("kind", ["task", "focal", "weighted"])
def test_a_class_of_which_the_label_is_not_known_adds_nothing(kind: str) -> None:
    """With a loss of 0.6 in one of two classes, the other one not being known, a row has 0.3."""
    several = learned(cough=("multilabel", 2, 1.0))
    wrong = float(np.log(np.expm1(0.6)))
    outputs = torch.tensor([[wrong, 50.0]], requires_grad=True)
    labels, known = np.zeros((1, 2), np.float32), np.array([[True, False]])
    rows = label_rows([(labels, known)])
    own = loss_of({"kind": kind}, several)
    loss = own.mean(outputs, torch.from_numpy(rows), own.weights([rows])).total
    (gradient,) = torch.autograd.grad(loss, outputs)
    expected = 0.6 * (1 - np.exp(-0.6)) ** 2 if kind == "focal" else 0.6
    assert loss.item() == pytest.approx(expected / 2)
    assert gradient[0, 1] == 0


def test_weights_of_classes_follow_from_labels_that_are_known() -> None:
    labels, known = np.array([0, 0, 0, 2, 0]), np.array([True, True, True, True, False])
    assert class_weights("balanced", labels, 3, 0.9, known).tolist() == pytest.approx([2 / 3, 0, 2])
    several = np.array([[1, 0], [0, 0], [0, 0]], np.float32)
    is_known = np.array([[True, False], [True, True], [False, True]])  # 1 without, 1 with the first class
    assert class_weights("balanced", several, 2, 0.9, is_known).tolist() == [[1, 1], [1, 0]]


def test_own_losses_see_samples_with_labels_alone() -> None:
    seen: list[int] = []

    def made() -> Any:
        def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            seen.append(len(outputs))
            return F.cross_entropy(outputs, targets, reduction="none")

        return loss

    own = loss_of({"kind": "custom", "factory": made}, BOTH)
    rows = label_rows([(np.array([0, 1, 2]), None), (np.zeros(3, np.int64), np.array([False, True, False]))])
    seen.clear()
    losses = own.each(torch.zeros(3, 5), torch.from_numpy(rows), (None, None), (3,))
    assert seen == [3, 1]
    assert losses.total.tolist() == pytest.approx([np.log(3), np.log(3) + 0.3 * np.log(2), np.log(3)])


def test_scores_of_labels_that_are_known() -> None:
    """Labels (1, ?, 0) and logits (2, 5, 1): the one pair is won. Taken for 0, the middle one would win against it."""
    labels = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    known = np.array([[True, True], [False, True], [True, False]])
    logits = np.array([[2, -1], [5, 1], [1, -1]], np.float32)
    (part,) = learned(cough=("multilabel", 2, 1.0)).parts
    found = part.tally(label_rows([(labels, known)]), logits)
    assert found is not None
    tally, number = found
    scores = part.rules.scores(tally)
    assert (tally.num_examples, number) == (3, 2.0)  # four labels of two classes
    assert scores["macro_auroc"] == 1.0
    assert tally.counts["predicted"].tolist() == [2, 1]  # the second sample's first class counts for nobody
    assert scores["subset_accuracy"] == 1.0  # of the one sample that is known in full
    nothing = part.tally(label_rows([(labels, np.zeros_like(known))]), logits)
    assert nothing is None


def test_errors_over_targets_that_are_known() -> None:
    labels, known = np.array([[1.0, 0.0], [3.0, 8.0]], np.float32), np.array([[True, False], [True, True]])
    (part,) = learned(grade=("regression", 2, 1.0)).parts
    found = part.tally(label_rows([(labels, known)]), np.array([[2, 99], [3, 6]], np.float32))
    assert found is not None
    scores = part.rules.scores(found[0])
    assert scores["rmse"] == pytest.approx(np.sqrt((1 + 0 + 4) / 3))
    assert scores["mae"] == pytest.approx(1.0)
    assert scores["r2"] == pytest.approx(1 - 1 / 2)  # of the first target alone, which varies


@pytest.fixture
def _stacks_are_stacked(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO):
        yield
    assert "one after the other" not in caplog.text


THREE = learned(activity=("classification", 3, 1.0), cough=("multilabel", 2, 2.0), stress=("regression", 1, 0.5))


def workspace(own: Learned, fusions: tuple[str, ...] = ("",), **changes: Any) -> Workspace:
    tree = {"encoders": dict.fromkeys(SHAPES, MLP), "fusion": {"kind": "concat", "dim": 6}, "head": {"kind": "linear"}}
    return Workspace(Model.model_validate(tree | changes), SHAPES, own, owned=("acc", "gyro"), seed=0, fusions=fusions)


def client(number: int, space: Workspace, size: int) -> ClientTask:
    """Samples of which some labels of each task are not known."""
    rng = np.random.default_rng(number)
    inputs = {name: rng.normal(size=(size, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
    labels: list[Any] = []
    for part in space.learned.parts:
        values: Any = rng.normal(size=(size, part.num_outputs)).astype(np.float32)
        if part.kind == "classification":
            values = rng.integers(0, part.num_outputs, size)
        elif part.kind == "multilabel":
            values = (values > 0).astype(np.float32)
        labels.append((values, rng.random(values.shape) < 0.6))
    return ClientTask(number, space.initial_blocks, inputs, label_rows(labels))


class InOrder(LocalJob):
    """Samples are taken as they stand."""

    def order_generators(self, clients: Sequence[int]) -> Any:  # as every job
        return [SimpleNamespace(permutation=np.arange)] * len(clients)


def job(space: Workspace, optimizer: dict[str, Any], **key: Any) -> LocalJob:
    section = Training.model_validate({"batch_size": 2, "keep_optimizer_state": True, "optimizer": optimizer})
    passes = (LocalPass(1, frozenset(space.trained), **key),)
    return InOrder(section, 0.1, passes, seed=0, round_index=1)


def plain_loop(space: Workspace, task: ClientTask) -> dict[str, np.ndarray]:
    """An epoch of SGD with weight decay in plain PyTorch, a module for each block, without this package's losses."""
    space.load(task.blocks, {})
    blocks = {name: copy.deepcopy(module) for name, module in space.model.blocks.items()}
    for start in range(0, len(task.labels), 2):
        rows = slice(start, start + 2)
        embeddings = {name: blocks[f"encoder/{name}"](torch.from_numpy(v[rows])) for name, v in task.inputs.items()}
        used, total, at = [blocks["encoder/acc"], blocks["encoder/gyro"]], torch.zeros(()), 0
        for part in space.learned.parts:
            width = 1 if part.kind == "classification" else part.num_outputs
            labels, known = (torch.from_numpy(task.labels[rows, at + i : at + i + width]) for i in (0, width))
            at += 2 * width
            if not known.any():
                continue
            fusion = blocks[f"fusion/{part.name}" if f"fusion/{part.name}" in blocks else "fusion"]
            used += [fusion, blocks[f"head/{part.name}"]]
            outputs = blocks[f"head/{part.name}"](fusion(embeddings))
            if part.kind == "classification":
                losses = F.cross_entropy(outputs, labels[:, 0].long(), reduction="none").unsqueeze(1)
            elif part.kind == "multilabel":
                losses = F.binary_cross_entropy_with_logits(outputs, labels, reduction="none")
            else:
                losses = (outputs - labels) ** 2
            total = total + part.weight * losses[known > 0].sum() / width / len(labels)
        parameters = {id(p): p for module in used for p in module.parameters()}.values()
        torch.optim.SGD(parameters, lr=0.1, weight_decay=0.1).zero_grad()
        total.backward()
        torch.optim.SGD(parameters, lr=0.1, weight_decay=0.1).step()
        for module in blocks.values():
            module.zero_grad()
    return {name: nn.utils.parameters_to_vector(m.parameters()).detach().numpy() for name, m in blocks.items()}


@pytest.mark.usefixtures("_stacks_are_stacked")
@pytest.mark.parametrize("fusions", [("",), ("activity", "cough", "stress")], ids=["one fusion", "one each"])
@pytest.mark.parametrize("engine", ENGINES)
def test_training_is_the_plain_loop(engine: EngineName, fusions: tuple[str, ...]) -> None:
    space = workspace(THREE, fusions)
    tasks = [client(number, space, size) for number, size in enumerate((7, 4))]
    found = make_engine(engine, space).train(tasks, job(space, {"kind": "sgd", "weight_decay": 0.1}))
    for task, result in zip(tasks, found, strict=True):
        expected = plain_loop(space, task)
        assert {str(name) for name in result.blocks} == {str(name) for name in expected}
        for name, values in expected.items():
            np.testing.assert_allclose(result.blocks[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
        counts = {name: own.num_examples for name, own in result.by_task.items()}
        rows = torch.from_numpy(task.labels)
        assert list(counts.values()) == THREE.known_samples(rows).sum(dim=0).tolist()
        weighted = sum(
            part.weight * own.loss * own.num_examples
            for part, own in zip(THREE.parts, result.by_task.values(), strict=True)
        )
        assert result.loss == pytest.approx(weighted / len(task.labels), rel=1e-5)


@pytest.mark.usefixtures("_stacks_are_stacked")
@pytest.mark.parametrize("engine", ENGINES)
def test_scores_are_by_task(engine: EngineName) -> None:
    space = workspace(THREE)
    tasks = [client(number, space, size) for number, size in enumerate((7, 4))]
    for scored, task in zip(make_engine(engine, space).evaluate(tasks, 3, round_index=1), tasks, strict=True):
        space.load(task.blocks, {})
        with torch.inference_mode():
            outputs = space.model.eval()({name: torch.from_numpy(v) for name, v in task.inputs.items()})
            losses = [part.losses(outputs, torch.from_numpy(task.labels)) for part in THREE.parts]
        for part, own in zip(THREE.parts, losses, strict=True):
            _, known = part.known_rows(task.labels)
            assert known is not None
            width = 1 if known.ndim == 1 else known.shape[1]
            assert scored.by_task[part.name].loss == pytest.approx(own.sum().item() * width / known.sum(), rel=1e-5)


class Normed(nn.Module):
    """A head with statistics and dropout."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(width), nn.Linear(width, outputs))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(inputs)
        return found


def resting(engine: EngineName, num_batches: int, size: int = 6, **affine: Any) -> tuple[Workspace, list[LocalResult]]:
    """Two clients, the first of which has labels of `who` in its first two samples alone."""
    space = workspace(BOTH, head={"kind": "custom", "factory": Normed})
    tasks = []
    for number in range(2):
        whole = client(number, space, size)
        known = np.arange(size) < (2 if number == 0 else size)
        rows = label_rows([(np.arange(size) % 3, None), (np.arange(size) % 2, known)])
        own = {name: values[: 2 * num_batches] for name, values in whole.inputs.items()}
        tasks.append(replace(whole, inputs=own, labels=rows[: 2 * num_batches], **affine))
    how = job(space, {"kind": "adam", "weight_decay": 0.1, "eps": 0.01}, has_offset=bool(affine))
    return space, make_engine(engine, space).train(tasks, how)


@pytest.mark.usefixtures("_stacks_are_stacked")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_head_without_a_labelled_sample_rests(engine: EngineName) -> None:
    """No step, decay, moment, counter, statistic; and the other head draws the masks that it draws in each engine."""
    _, once = resting(engine, 1)
    space, often = resting(engine, 3)
    rested, stepped = often
    assert (rested.optimizer_state["head/who"]["step"], stepped.optimizer_state["head/who"]["step"]) == (1, 3)
    assert rested.local_state["head/who"]["layers.1.num_batches_tracked"] == 1
    assert stepped.local_state["head/who"]["layers.1.num_batches_tracked"] == 3
    before = {"block": once[0].blocks["head/who"], **once[0].optimizer_state["head/who"]}
    after = {"block": rested.blocks["head/who"], **rested.optimizer_state["head/who"]}
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=1e-5, atol=1e-7)
    if engine == "sequential":
        assert often[0].blocks["head/who"].tobytes() == once[0].blocks["head/who"].tobytes()
        _, stacked = resting("vectorized", 3)
        for one, other in zip(often, stacked, strict=True):
            for name, values in one.blocks.items():
                # Adam divides by gradients of nearly 0, which enlarges what kernels round; another mask is a step off.
                np.testing.assert_allclose(other.blocks[name], values, rtol=1e-3, atol=2e-4, err_msg=name)
    assert space.model.fusion_of.keys() == {"head/activity", "head/who"}


@pytest.mark.parametrize("engine", ENGINES)
def test_with_an_offset_no_head_rests(engine: EngineName) -> None:
    """Its gradient is 0 plus the offset."""
    space = workspace(BOTH)
    rows = label_rows([(np.zeros(2, np.int64), None), (np.zeros(2, np.int64), np.zeros(2, bool))])
    offset = np.full(space.flat["head/who"].num_parameters, 0.5, np.float32)
    whole = client(0, space, 2)
    tasks = [replace(whole, client=k, labels=rows, affine=(Affine(offset={"head/who": offset}),)) for k in range(2)]
    found = make_engine(engine, space).train(tasks, job(space, {"kind": "sgd"}, has_offset=True))
    for result in found:
        np.testing.assert_allclose(result.blocks["head/who"], whole.blocks["head/who"] - 0.05, rtol=1e-5, atol=1e-6)
        assert "who" not in result.by_task
