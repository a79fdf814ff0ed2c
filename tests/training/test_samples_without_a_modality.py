"""Samples that lack a modality of their client: what its encoder, its fusion and its optimizer make of them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from blossom_ray.clients.contributions import entropies, with_prototypes
from blossom_ray.clients.engines import make_engine
from blossom_ray.clients.job import Affine, ClientTask, LocalJob, LocalPass, LocalResult, Scored
from blossom_ray.clients.options import EngineName, Training
from blossom_ray.clients.workspace import Workspace
from blossom_ray.models.fusion import Attention, ProjectedMean
from blossom_ray.models.options import Model
from blossom_ray.tasks.learned import one_task

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {"acc": (4,), "gyro": (3,)}
MLP = {"kind": "mlp", "hidden": [5], "dim": 4}
ENGINES: tuple[EngineName, ...] = ("sequential", "vectorized")
RULES = ("mask", "zero-embedding", "zero-input")
ADAM = {"kind": "adam", "weight_decay": 0.1}


def workspace(encoder: dict[str, Any] | None = None, sparse: tuple[str, ...] = (), **changes: Any) -> Workspace:
    encoders = dict.fromkeys(SHAPES, encoder or MLP)
    tree = {"encoders": encoders, "fusion": {"kind": "attention", "dim": 6}, "head": {"kind": "linear"}} | changes
    return Workspace(
        Model.model_validate(tree), SHAPES, one_task("classification", 3), owned=("acc", "gyro"), seed=0, sparse=sparse
    )


@pytest.fixture(autouse=True)
def _stacks_are_stacked(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO):
        yield
    assert "one after the other" not in caplog.text


def normed(shape: tuple[int, ...]) -> nn.Module:
    """An encoder with batch normalisation and dropout."""
    return nn.Sequential(nn.Linear(*shape, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(5, 4))


def client(number: int, space: Workspace, num_rows: int, rate: float = 0.5, poison: float = 0.0) -> ClientTask:
    """A client whose every third row has acc alone, and others of whose rows have gyro alone."""
    rng = np.random.default_rng(number)
    inputs = {name: rng.normal(size=(num_rows, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
    gyro = np.arange(num_rows) % 3 > 0
    observed = {"gyro": gyro, "acc": (rng.random(num_rows) < rate) | ~gyro}
    for name, has in observed.items():
        inputs[name][~has] = poison
    labels = rng.integers(0, 3, num_rows)
    return ClientTask(number, space.initial_blocks, inputs, labels, observed=observed)


class InOrder(LocalJob):
    """Samples are taken as they stand."""

    def order_generators(self, clients: Sequence[int]) -> Any:  # as every job
        return [SimpleNamespace(permutation=np.arange)] * len(clients)


def job(
    space: Workspace, optimizer: dict[str, Any] | None = None, kind: type[LocalJob] = LocalJob, **key: Any
) -> LocalJob:
    section = Training.model_validate(
        {"batch_size": 4, "local_epochs": 2, "keep_optimizer_state": True, "optimizer": optimizer or {"kind": "sgd"}}
    )
    blocks = frozenset(space.trained)
    passes = key.pop("passes", (LocalPass(2, blocks),))
    return kind(section, 0.05, passes, seed=0, round_index=1, **key)


def same_bits(found: LocalResult, expected: LocalResult) -> bool:
    def flat(result: LocalResult) -> dict[str, bytes]:
        states = {
            f"{b}/{n}": v
            for b, own in (*result.local_state.items(), *result.optimizer_state.items())
            for n, v in own.items()
        }
        return {name: values.tobytes() for name, values in (result.blocks | states).items()}

    return flat(found) == flat(expected) and (found.loss, found.steps) == (expected.loss, expected.steps)


@pytest.mark.parametrize("missing", RULES)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_unobserved_rows_hold_does_not_matter(engine: EngineName, missing: str) -> None:
    """NaN would reach every number, 1e30 would move statistics."""
    space = workspace({"kind": "custom", "factory": normed}, missing=missing)
    computes = make_engine(engine, space)

    def results(poison: float) -> tuple[list[LocalResult], list[Scored], list[dict[str, torch.Tensor]]]:
        tasks = [client(number, space, size, poison=poison) for number, size in enumerate((9, 13))]
        trained = computes.train(tasks, job(space, ADAM))
        after = [task.after(result) for task, result in zip(tasks, trained, strict=True)]
        scored = computes.evaluate(after, 5, round_index=1)
        return trained, scored, computes.measure(after, numbers, 5, round_index=1)

    def numbers(batch: Any) -> dict[str, Any]:
        whole = {"outputs": batch.outputs, "entropy": entropies(batch.outputs), "losses": batch.losses}
        return whole | batch.embeddings | {"gyro alone": batch.through(modalities=["gyro"]).representation}

    trained, scored, measured = results(0.0)
    for poison in (float("nan"), 1e30):
        again, scored_again, measured_again = results(poison)
        for own, sums in zip(measured_again, measured, strict=True):
            assert own.keys() == sums.keys()
            assert all(torch.equal(own[name], sums[name]) for name in sums)
        assert all(same_bits(*pair) for pair in zip(again, trained, strict=True))
        for found, expected in zip(scored_again, scored, strict=True):
            found, expected = found.by_task[""], expected.by_task[""]
            assert found.loss == expected.loss
            assert found.by_set.keys() == expected.by_set.keys() == {"acc", "gyro", "acc+gyro"}
            for name, (tally, loss_sum) in expected.by_set.items():
                assert found.by_set[name][1] == loss_sum
                np.testing.assert_array_equal(found.by_set[name][0].counts["confusion"], tally.counts["confusion"])


@pytest.mark.parametrize("poison", [0.0, float("nan")])
def test_a_prototype_is_the_mean_over_the_rows_that_have_the_modality(poison: float) -> None:
    space = workspace(missing="prototype", sparse=("acc", "gyro"))
    task = client(0, space, 9, poison=poison)
    (result,) = make_engine("sequential", space).train([task], job(space))
    measured = with_prototypes(space, task, result, ["gyro"], batch_size=4)
    space.load(task.after(measured).blocks, measured.local_state)
    with torch.inference_mode():
        rows = torch.from_numpy(task.inputs["gyro"][task.observed["gyro"]])
        expected = space.model.eval().blocks["encoder/gyro"](rows).mean(dim=0)
    np.testing.assert_allclose(measured.blocks["prototype/gyro"], expected.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(space.model.blocks["prototype/gyro"].mean.numpy(), measured.blocks["prototype/gyro"])


@pytest.mark.parametrize("missing", [*RULES, "prototype"])
@pytest.mark.parametrize("kind", ["attention", "concat", "mean", "gated"])
def test_a_batch_with_gaps_is_its_samples_one_by_one(kind: str, missing: str) -> None:
    """Each sample through the model that was told of the modalities that this one has: the rule for whole batches."""
    space = workspace(fusion={"kind": kind, "dim": 6}, missing=missing, sparse=("acc", "gyro"))
    task = client(1, space, 8)
    blocks = dict(task.blocks)
    for name in ("acc", "gyro") if missing == "prototype" else ():
        blocks[f"prototype/{name}"] = np.linspace(-1, 1, 4, dtype=np.float32)
    task = replace(task, blocks=blocks)
    expected = by_hand(space, task)
    for engine in ENGINES if missing != "prototype" else ENGINES[:1]:
        (result,) = make_engine(engine, space).train([task], job(space, {"kind": "sgd", "momentum": 0.9}, InOrder))
        for name, values in expected.items():
            np.testing.assert_allclose(result.blocks[name], values, rtol=2e-4, atol=2e-5, err_msg=f"{engine} {name}")


def by_hand(space: Workspace, task: ClientTask) -> dict[str, np.ndarray]:
    """Two epochs in batches of four with momentum, in plain PyTorch; an encoder that no sample needs rests."""
    space.load(task.blocks, space.initial_state)
    model = space.model
    model.train()
    vectors = {name: [*flat.module.parameters()] for name, flat in space.trained.items()}
    momenta = {name: [torch.zeros_like(p) for p in own] for name, own in vectors.items()}
    for start in (0, 4, 0, 4):
        rows = range(start, start + 4)
        total, seen = torch.zeros(()), {"fusion", "head"}
        for row in rows:
            has = [name for name in SHAPES if task.observed[name][row]]
            outputs = model({name: torch.from_numpy(task.inputs[name][row : row + 1]) for name in has})
            total = total + F.cross_entropy(outputs, torch.tensor(task.labels[row : row + 1]))
            seen |= {f"encoder/{name}" for name in has}
        for own in vectors.values():
            for parameter in own:
                parameter.grad.zero_()  # type: ignore[union-attr]  # a view of the block's gradient
        (total / 4).backward()
        with torch.no_grad():
            for name in seen:
                for parameter, momentum in zip(vectors[name], momenta[name], strict=True):
                    momentum.mul_(0.9).add_(parameter.grad)  # type: ignore[arg-type]  # there is one
                    parameter.sub_(0.05 * momentum)
    return {name: flat.read() for name, flat in space.trained.items()}


def normed_input(_: tuple[int, ...]) -> nn.Module:
    """Normalises its input over the batch before anything else."""
    return nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))


class OneFeature:
    """A client of one feature a modality."""

    def __init__(self) -> None:
        encoders = {"acc": MLP, "gyro": {"kind": "custom", "factory": normed_input}}
        tree = {"encoders": encoders, "fusion": {"kind": "mean", "dim": 2}, "head": {"kind": "linear"}}
        shapes, owned = {"acc": (1,), "gyro": (1,)}, ("acc", "gyro")
        self.space = Workspace(Model.model_validate(tree), shapes, one_task("classification", 2), owned=owned, seed=0)
        self.blocks = self.space.initial_blocks

    def task(self, num_rows: int, number: int = 0) -> ClientTask:
        """Rows in batches of three, of which two, one and none have gyro."""
        gyro = np.array([1, 3, 0, 2, 0, 0, 0, 0, 0], np.float32)[:num_rows, None]
        has = np.array([1, 1, 0, 1, 0, 0, 0, 0, 0], bool)[:num_rows]
        acc, labels = np.ones((num_rows, 1), np.float32), np.arange(num_rows) % 2
        return ClientTask(number, self.blocks, {"acc": acc, "gyro": gyro}, labels, observed={"gyro": has})

    def train(self, engine: EngineName, *tasks: ClientTask, optimizer: dict[str, Any] = ADAM) -> list[LocalResult]:
        plain = job(self.space, optimizer, InOrder, passes=(LocalPass(1, frozenset(self.space.trained)),))
        section = plain.training.model_copy(update={"batch_size": 3})
        return make_engine(engine, self.space).train(tasks, replace(plain, training=section))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_encoder_sees_the_rows_that_have_its_modality_and_rests_without_any(engine: EngineName) -> None:
    one = OneFeature()
    whole, first_two = one.train(engine, one.task(9), one.task(6, 1))
    # Behind four parameters: mean and variance. Of values 1 and 3: 0.1 * 2, 0.9 + 0.1 * 2. One row moves nothing.
    np.testing.assert_allclose(whole.blocks["encoder/gyro"][-2:], [0.2, 1.1], rtol=1e-6)
    assert whole.local_state["encoder/gyro"]["0.num_batches_tracked"] == 1
    steps = {name: float(state["step"]) for name, state in whole.optimizer_state.items()}
    assert steps == {"encoder/acc": 3, "encoder/gyro": 2, "fusion": 3, "head": 3}
    # As an algorithm counts them: along the gradient of F, which is zero in the third.
    assert (whole.num_steps, whole.steps["encoder/gyro"], whole.steps["head"]) == (3, 3, 3)
    # After the third batch, weight decay and moments included, the encoder is as after the second.
    assert whole.blocks["encoder/gyro"].tobytes() == first_two.blocks["encoder/gyro"].tobytes()
    for key, values in first_two.optimizer_state["encoder/gyro"].items():
        assert whole.optimizer_state["encoder/gyro"][key].tobytes() == values.tobytes()
    assert whole.blocks["head"].tobytes() != first_two.blocks["head"].tobytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_with_an_offset_no_encoder_rests(engine: EngineName) -> None:
    one = OneFeature()
    size = one.space.num_parameters["encoder/gyro"]
    offset = {"encoder/gyro": np.full(size, 2.0, np.float32)}
    task = replace(one.task(9), affine=(Affine(offset=offset),))
    blocks = frozenset(one.space.trained)
    plain = job(one.space, {"kind": "sgd"}, InOrder, passes=(LocalPass(1, blocks, has_offset=True),))
    plain = replace(plain, training=plain.training.model_copy(update={"batch_size": 3}))
    (with_offset,) = make_engine(engine, one.space).train([task], plain)
    # The third batch alone: rows 6 to 8, none with gyro, so the step is the offset's.
    last = replace(
        task,
        inputs={name: values[6:] for name, values in task.inputs.items()},
        labels=task.labels[6:],
        observed={"gyro": task.observed["gyro"][6:]},
    )
    (alone,) = make_engine(engine, one.space).train([last], plain)
    moved = alone.blocks["encoder/gyro"][:size] - task.blocks["encoder/gyro"][:size]
    np.testing.assert_allclose(moved, -0.05 * 2.0, rtol=1e-5)
    assert with_offset.steps["encoder/gyro"] == 3


def test_a_fusion_leaves_out_what_a_sample_lacks() -> None:
    mean = ProjectedMean({"acc": 1, "gyro": 1}, 1)
    with torch.no_grad():
        for layer, (weight, bias) in zip(mean.projections, ((1.0, 1.0), (2.0, 2.0)), strict=True):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    embeddings = {"acc": torch.ones(2, 1), "gyro": torch.tensor([[1.0], [0.0]])}
    masks = {"gyro": torch.tensor([[True], [False]])}
    assert mean(embeddings, masks).flatten().tolist() == [3.0, 2.0]  # projections 2 and 4: not 1, nor with the bias 2
    attention = Attention({"acc": 1, "gyro": 1}, 1)
    assert attention.weights(embeddings, masks)[1].tolist() == [1.0, 0.0]


def test_sets_of_a_client() -> None:
    task = OneFeature().task(6)
    found: Mapping[str, np.ndarray] = task.rows_by_set()
    assert {name: rows.tolist() for name, rows in found.items()} == {"acc": [2, 4, 5], "acc+gyro": [0, 1, 3]}
    assert (task.num_observed("gyro"), task.num_observed("acc")) == (3, 6)


AGREEMENT: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "decay and anchor, stepped in the backward pass": ({}, {"kind": "sgd", "weight_decay": 0.1}, {"mu": 0.5}),
    "momentum and normalisation": ({"kind": "custom", "factory": normed}, {"kind": "sgd", "momentum": 0.9}, {}),
    # A bias before a normalisation has a gradient of rounding alone, which a small eps would blow up.
    "moments and normalisation": (
        {"kind": "custom", "factory": normed},
        {"kind": "adamw", "weight_decay": 0.1, "eps": 0.01},
        {},
    ),
}


@pytest.mark.parametrize("missing", RULES)
@pytest.mark.parametrize("case", AGREEMENT)
def test_both_engines_agree_whoever_stands_beside(case: str, missing: str) -> None:
    encoder, optimizer, more = AGREEMENT[case]
    space = workspace(encoder or None, missing=missing, head={"kind": "mlp", "hidden": [5], "norm": "batch"})
    blocks = frozenset(space.trained)
    step = LocalPass(2, blocks, anchored=blocks if more else frozenset(), **more)
    # Batches of four: at a low rate many encoders rest, or see one sample.
    tasks = [client(number, space, size, rate=0.2) for number, size in enumerate((3, 13, 8, 5))]
    plain = job(space, optimizer, passes=(step,))
    stacked = make_engine("vectorized", space).train(tasks, plain)
    for position, task in enumerate(tasks):
        (alone,) = make_engine("sequential", space).train([task], plain)
        (pair, _) = make_engine("vectorized", space).train([task, tasks[position - 1]], plain)
        for found in (stacked[position], pair):
            assert (found.num_steps, dict(found.steps)) == (alone.num_steps, dict(alone.steps))
            assert found.loss == pytest.approx(alone.loss, rel=1e-4)
            states = [{**result.local_state, **result.optimizer_state} for result in (found, alone)]
            for name, values in alone.blocks.items():
                np.testing.assert_allclose(found.blocks[name], values, rtol=1e-3, atol=2e-4, err_msg=name)
            assert states[0].keys() == states[1].keys()
            for name, own in states[1].items():
                for key, values in own.items():
                    np.testing.assert_allclose(
                        states[0][name][key], values, rtol=1e-3, atol=2e-4, err_msg=f"{name} {key}"
                    )
    counted = make_engine("vectorized", space).evaluate(tasks, 4, round_index=1)
    for task, found in zip(tasks, counted, strict=True):
        (expected,) = make_engine("sequential", space).evaluate([task], 4, round_index=1)
        assert {name: loss for name, (_, loss) in found.by_task[""].by_set.items()} == pytest.approx(
            {name: loss for name, (_, loss) in expected.by_task[""].by_set.items()}, rel=1e-4
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_through_some_modalities_gives_zeros_for_a_sample_that_has_none_of_them(engine: EngineName) -> None:
    space = workspace()
    tasks = [client(number, space, size) for number, size in enumerate((9, 5))]

    def alone(batch: Any) -> dict[str, Any]:
        seen = batch.through(modalities=["gyro"])
        return {"outputs": seen.outputs, "present": seen.present["gyro"], "absent": seen.present["acc"]}

    sums = make_engine(engine, space).measure(tasks, alone, 4, round_index=1)
    for task, found in zip(tasks, sums, strict=True):
        has = task.observed["gyro"]
        space.load(task.blocks, space.initial_state)
        with torch.inference_mode():
            outputs = space.model.eval()({"gyro": torch.from_numpy(task.inputs["gyro"][has])})
        np.testing.assert_allclose(found["outputs"], outputs.double().sum(dim=0), rtol=1e-5, atol=1e-6)
        assert (float(found["present"]), float(found["absent"])) == (has.sum(), 0)
