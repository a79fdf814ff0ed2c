"""`training.loss`: what local training makes small, on both engines, in the central model and in fine-tuning."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from blossom_ray import Scenario, simulate
from blossom_ray.clients.job import ClientTask, LocalJob, LocalPass
from blossom_ray.clients.local_training import SequentialEngine
from blossom_ray.clients.losses import Loss, Objective, class_weights
from blossom_ray.clients.options import Training
from blossom_ray.clients.stacked.engine import StackedEngine
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.scores import Task
from blossom_ray.core.seeding import Purpose, generator
from blossom_ray.errors import ClientError, InputError, RunError, ScenarioError
from blossom_ray.models.options import Model
from blossom_ray.tasks.learned import one_task

MODEL = {
    "encoders": {"acc": {"kind": "mlp", "hidden": [5], "dim": 4}},
    "fusion": {"kind": "concat", "dim": 6},
    "head": {"kind": "linear"},
}
OUTPUTS = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 0.5], [-1.0, 0.0, 3.0]])
CLASSES = torch.tensor([0, 1, 0])


class Huber:
    def __init__(self, delta: float = 1.0) -> None:
        self.delta = delta

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.huber_loss(outputs, targets, reduction="none", delta=self.delta).mean(dim=1)


class Contrast:
    """Looks at its whole batch, so that a neighbour of another client would be seen in it."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        centred = outputs - outputs.mean(dim=0)
        return F.cross_entropy(centred, targets, reduction="none")


def loss_section(tree: dict[str, Any]) -> Loss:
    return Training.model_validate({"loss": tree}).loss


def objective(tree: dict[str, Any], task: Task = "classification", num_outputs: int = 3) -> Objective:
    return Objective(loss_section(tree), one_task(task, num_outputs), torch.device("cpu"))


def losses(tree: dict[str, Any], labels: Any, targets: Tensor, task: Task = "classification") -> list[float]:
    """Of the three samples above, on a client that trains with these labels."""
    found = objective(tree, task)
    each: list[float] = found.each(OUTPUTS, targets, found.weights([np.array(labels)]), (3,)).total.tolist()
    return each


def test_class_weights_can_be_done_by_hand() -> None:
    labels = np.array([0, 0, 0, 2])  # four samples of two classes: 4 / (2 * 3) and 4 / (2 * 1)
    assert class_weights("balanced", labels, 3, 0.9).tolist() == pytest.approx([2 / 3, 0, 2])
    # (1 - 0.5) / (1 - 0.5^n): 4/7 and 1, scaled to a sum of 2.
    assert class_weights("effective-number", labels, 3, 0.5).tolist() == pytest.approx([8 / 11, 0, 14 / 11])
    assert class_weights("effective-number", labels, 3, 0.0).tolist() == [1, 0, 1]
    assert class_weights((1.0, 2.0, 3.0), labels, 3, 0.9).tolist() == [1, 2, 3]
    several = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], np.float32)  # the second class: 3 without, 1 with it
    balanced = class_weights("balanced", several, 2, 0.9)
    assert balanced.tolist() == [[pytest.approx(4 / 2), pytest.approx(4 / 6)], [pytest.approx(4 / 6), pytest.approx(2)]]
    assert class_weights("balanced", np.ones((3, 1), np.float32), 1, 0.9).tolist() == [[0], [1]]
    assert class_weights((5.0, 6.0), several, 2, 0.9).tolist() == [[1, 1], [5, 6]]


def test_losses_of_classes_can_be_done_by_hand() -> None:
    log_p = torch.log_softmax(OUTPUTS, dim=1)
    plain = [-log_p[row, label].item() for row, label in enumerate(CLASSES)]
    assert losses({"kind": "task"}, [0, 1], CLASSES) == pytest.approx(plain)
    assert plain[0] == pytest.approx(np.log(3))
    weighted = losses({"kind": "weighted"}, [0, 1, 1, 1], CLASSES)
    assert weighted == pytest.approx([2 * plain[0], 2 / 3 * plain[1], 2 * plain[2]])
    # The first sample has p = 1/3: (2/3)^2 log 3.
    focal = losses({"kind": "focal"}, [0, 1], CLASSES)
    assert focal[0] == pytest.approx(4 / 9 * np.log(3))
    assert focal == pytest.approx([(1 - np.exp(-loss)) ** 2 * loss for loss in plain])
    assert losses({"kind": "focal", "gamma": 0.0, "alpha": [1, 2, 3]}, [0, 1], CLASSES) == pytest.approx(
        [plain[0], 2 * plain[1], plain[2]]
    )
    smoothed = losses({"kind": "label-smoothing", "smoothing": 0.3}, [0, 1], CLASSES)
    mixed = 0.7 * torch.tensor(plain) - 0.3 * log_p.mean(dim=1)
    assert smoothed == pytest.approx(mixed.tolist())


def test_losses_of_several_classes_at_once_can_be_done_by_hand() -> None:
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    terms = F.binary_cross_entropy_with_logits(OUTPUTS, targets, reduction="none")
    labels = [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    factors = torch.tensor([[2 / 3, 2 / 3, 1], [2, 2, 1], [2 / 3, 2 / 3, 1]])
    weighted = losses({"kind": "weighted"}, labels, targets, "multilabel")
    assert weighted == pytest.approx((factors * terms).mean(dim=1).tolist())
    focal = losses({"kind": "focal", "gamma": 2.0, "alpha": 0.25}, labels, targets, "multilabel")
    alpha = 0.25 * targets + 0.75 * (1 - targets)
    assert focal == pytest.approx((alpha * (1 - torch.exp(-terms)) ** 2 * terms).mean(dim=1).tolist())


def test_a_sample_that_is_surely_right_has_a_finite_gradient() -> None:
    outputs = torch.tensor([[200.0, 0.0]], requires_grad=True)
    found = objective({"kind": "focal", "gamma": 0.5}, num_outputs=2)
    (gradient,) = torch.autograd.grad(found.mean(outputs, torch.tensor([0]), (None,)).total, outputs)
    assert gradient.tolist() == [[0.0, 0.0]]


def space(loss: dict[str, Any], task: Task = "classification") -> Workspace:
    model = Model.model_validate(MODEL)
    return Workspace(model, {"acc": (4,)}, one_task(task, 3), owned=("acc",), seed=0, loss=loss_section(loss))


def make_tasks(workspace: Workspace, task: Task, *sizes: int) -> list[ClientTask]:
    found = []
    for client, size in enumerate(sizes):
        rng = np.random.default_rng(client)
        labels = {
            "classification": rng.integers(0, 3, size),
            "multilabel": rng.integers(0, 2, (size, 3)).astype(np.float32),
            "regression": rng.normal(size=(size, 3)).astype(np.float32),
        }[task]
        inputs = {"acc": rng.normal(size=(size, 4)).astype(np.float32)}
        found.append(ClientTask(client, workspace.initial_blocks, inputs, labels))
    return found


def job(workspace: Workspace) -> LocalJob:
    training = Training.model_validate({"batch_size": 4})
    return LocalJob(training, 0.1, (LocalPass(2, frozenset(workspace.trained)),), seed=0, round_index=1)


KINDS: list[tuple[dict[str, Any], Task]] = [
    ({"kind": "task"}, "classification"),
    ({"kind": "weighted"}, "classification"),
    ({"kind": "weighted", "weights": "effective-number", "beta": 0.9}, "multilabel"),
    ({"kind": "focal", "alpha": "balanced"}, "classification"),
    ({"kind": "focal", "alpha": 0.25}, "multilabel"),
    ({"kind": "label-smoothing"}, "classification"),
    ({"kind": "custom", "factory": Contrast}, "classification"),
    ({"kind": "custom", "factory": Huber, "options": {"delta": 0.5}}, "regression"),
]


@pytest.mark.parametrize(("tree", "task"), KINDS)
def test_the_engines_agree(tree: dict[str, Any], task: Task) -> None:
    workspace = space(tree, task)
    tasks = make_tasks(workspace, task, 9, 6, 1)
    expected, found = (engine(workspace).train(tasks, job(workspace)) for engine in (SequentialEngine, StackedEngine))
    for one, other in zip(found, expected, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        for name, values in other.blocks.items():
            np.testing.assert_allclose(one.blocks[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


def plain_weighted(outputs: Tensor, targets: Tensor, labels: np.ndarray) -> Tensor:
    counts = np.bincount(labels, minlength=3)
    weights = torch.tensor([len(labels) / (np.count_nonzero(counts) * n) if n else 0.0 for n in counts]).float()
    return (F.cross_entropy(outputs, targets, reduction="none") * weights[targets]).sum() / len(targets)


def plain_focal(outputs: Tensor, targets: Tensor, _: np.ndarray) -> Tensor:
    p = F.softmax(outputs, dim=1)[torch.arange(len(targets)), targets]
    return (-((1 - p) ** 2) * p.log()).mean()


@pytest.mark.parametrize(("tree", "plain"), [({"kind": "weighted"}, plain_weighted), ({"kind": "focal"}, plain_focal)])
def test_training_equals_the_plain_loop(
    tree: dict[str, Any], plain: Callable[[Tensor, Tensor, np.ndarray], Tensor]
) -> None:
    by_hand, workspace = space({"kind": "task"}), space(tree)
    [task] = make_tasks(workspace, "classification", 10)
    model = by_hand.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    draw = generator(0, Purpose.TRAINING, 1, 0)
    for _ in range(2):
        for rows in np.split(draw.permutation(10), [4, 8]):
            optimizer.zero_grad()
            outputs = model({name: torch.from_numpy(values[rows]) for name, values in task.inputs.items()})
            plain(outputs, torch.from_numpy(task.labels[rows]), task.labels).backward()
            optimizer.step()
    [result] = SequentialEngine(workspace).train([task], job(workspace))
    for name, flat in by_hand.flat.items():
        np.testing.assert_allclose(result.blocks[name], flat.read(), rtol=1e-5, atol=1e-6, err_msg=name)


def test_scoring_keeps_the_loss_of_the_task() -> None:
    plain, other = space({"kind": "task"}), space({"kind": "focal"})
    for engine in (SequentialEngine, StackedEngine):
        scored = [
            engine(each).evaluate(make_tasks(each, "classification", 9), 4, round_index=1) for each in (plain, other)
        ]
        assert scored[0][0].by_task[""].loss == scored[1][0].by_task[""].loss


@pytest.mark.parametrize("sharing", ["full-model", "central"])
def test_rounds_train_with_it(small_scenario: Scenario, sharing: str) -> None:
    changes = {"sharing": sharing, "evaluation.fine_tune": {"epochs": 1}}
    plain, given, focal = (
        simulate(small_scenario.override({**changes, "training.loss": loss}))
        for loss in ({"kind": "task"}, {"kind": "weighted", "weights": [1.0, 1.0, 1.0]}, {"kind": "focal"})
    )
    assert given.final["train_loss"] == pytest.approx(plain.final["train_loss"], rel=1e-4)
    assert given.final["fine_tuned/loss"] == pytest.approx(plain.final["fine_tuned/loss"], rel=1e-4)
    assert focal.final["train_loss"] < 0.8 * plain.final["train_loss"]
    assert focal.final["loss"] == pytest.approx(plain.final["loss"], rel=0.2)


@pytest.mark.ray
def test_one_and_two_actors_compute_the_same(small_scenario: Scenario) -> None:
    changes: Mapping[str, Any] = {
        "training.loss": {"kind": "focal", "alpha": "balanced"},
        "training.transform": {"acc": {"kind": "noise"}, "gyro": {"kind": "time-mask"}},
        "training.optimizer.blocks": {"head": {"kind": "adam"}},
    }
    alone = simulate(small_scenario.override(changes))
    for clients_per_actor in (5, 3):
        execution = {"runtime": "ray", "clients_per_actor": clients_per_actor, "client_resources.num_cpus": 0.2}
        spread = simulate(
            small_scenario.override({**changes, **{f"execution.{key}": value for key, value in execution.items()}})
        )
        assert spread.manifest["digest"] == alone.manifest["digest"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.loss.kind": "focl"}, "is 'focl'; expected one of task, weighted, focal, label-smoothing, custom; "
         "did you mean 'focal'?"),
        ({"training.loss": {"kind": "focal", "gama": 1}}, "gama is not a known key; expected one of kind, "),
        ({"training.loss": {"kind": "focal", "gamma": -1}}, "gamma is -1; expected a number of at least 0"),
        ({"training.loss": {"kind": "focal", "alpha": 0.25}}, "alpha is 0.25, one number for all classes; expected "),
        ({"training.loss": {"kind": "weighted", "weights": "balance"}}, "weights is 'balance'; expected "),
        ({"training.loss": {"kind": "weighted", "weights": [1, 2]}}, "weights is [1.0, 2.0]; expected 3 numbers, one "),
        ({"training.loss": {"kind": "label-smoothing", "smoothing": 1.0}}, "smoothing is 1.0; expected a number "),
        ({"task": "regression", "data.classes": 2, "data.targets": 2, "training.loss": {"kind": "weighted"}},
         "kind is 'weighted', while the task is 'regression'; expected one of task, custom"),
        ({"task": "multilabel", "training.loss": {"kind": "label-smoothing"}},
         "kind is 'label-smoothing', while the task is 'multilabel'; expected one of task, weighted, focal, custom"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(small_scenario: Scenario, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        small_scenario.override(changes)
    assert "training.loss." in str(raised.value)
    assert message in str(raised.value)


def test_weights_for_another_number_of_classes_than_the_data_have_are_refused() -> None:
    message = r"training.loss.weights is \[1.0, 2.0\]; expected 3 numbers, one for each class"
    with pytest.raises(InputError, match=message):
        space({"kind": "weighted", "weights": [1, 2]})


def own(function: Callable[[Tensor, Tensor], object]) -> dict[str, Any]:
    return {"kind": "custom", "factory": lambda: function}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda o, t: F.cross_entropy(o, t), "the loss is torch.float32 of shape () on cpu; expected a float32 "),
        (lambda o, t: F.cross_entropy(o, t).item(), r"the loss is float; expected a float32 tensor of shape (2,)"),
        (lambda o, t: F.cross_entropy(o, t, reduction="none").detach(), "the loss has no gradient; expected "),
        (lambda o, t: F.cross_entropy(o.double(), t, reduction="none"), "the loss is torch.float64 of shape (2,) "),
        (lambda o, t: F.cross_entropy(o, t, reduction="none") / 0, "the loss of a sample is not finite"),
        (lambda o, t: (o - o.detach()).square().sum(dim=1).sqrt(), "the loss has a gradient that is not finite "),
        (lambda o, t: 1 / 0, "the loss raised on outputs of shape (2, 3): ZeroDivisionError"),
    ],
)  # fmt: skip
def test_an_own_loss_is_tried(
    small_scenario: Scenario, function: Callable[[Tensor, Tensor], object], message: str
) -> None:
    with pytest.raises(InputError) as raised:
        simulate(small_scenario.override({"training.loss": own(function)}))
    assert message in str(raised.value)
    assert "training.loss (" in str(raised.value)


def test_a_factory_that_makes_no_function_is_refused(small_scenario: Scenario) -> None:
    def no_factory(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    for factory, message in ((no_factory, "raised TypeError"), (lambda: 3, "returned int; expected a function of ")):
        scenario = small_scenario.override({"training.loss": {"kind": "custom", "factory": factory}})
        with pytest.raises(InputError, match=rf"training.loss.factory {message}"):
            simulate(scenario)


def test_what_a_factory_draws_is_the_same_in_every_process() -> None:
    def projected() -> Callable[[Tensor, Tensor], Tensor]:
        projection = torch.randn(3, 3)
        return lambda outputs, targets: F.cross_entropy(outputs @ projection, targets, reduction="none")

    before = torch.get_rng_state()
    first, second = (objective({"kind": "custom", "factory": projected}) for _ in range(2))
    assert torch.equal(*(each.each(OUTPUTS, CLASSES, (None,), (3,)).total for each in (first, second)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_a_loss_that_stops_being_finite_names_the_client(small_scenario: Scenario, engine: str) -> None:
    def growing(outputs: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(outputs, targets, reduction="none")
        return losses if len(outputs) == 2 else losses + torch.inf

    scenario = small_scenario.override({"training.loss": own(growing), "training.engine": engine})
    with pytest.raises(ClientError, match=r"client 0, round 1: .*training.loss .* is not finite"):
        simulate(scenario)
    with pytest.raises(RunError, match="is not finite"):
        simulate(scenario.override({"sharing": "central", "training.engine": "sequential"}))


def test_a_changed_own_loss_is_noticed(small_scenario: Scenario, tmp_path: Path, monkeypatch: Any) -> None:
    from blossom_ray.reading.own_code import own_code_checksums

    (tmp_path / "own_loss_of_a_test.py").write_text("def make():\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    changes = {
        "training.loss": {"kind": "custom", "factory": "own_loss_of_a_test:make"},
        "training.transform": {"acc": {"kind": "custom", "factory": "own_loss_of_a_test:make"}},
    }
    assert list(own_code_checksums(small_scenario.override(changes))) == ["own_loss_of_a_test"]
