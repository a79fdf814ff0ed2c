"""An own algorithm, tried on a few small clients, so that its mistakes are found before a run finds them.

The clients have the scenario's model, sharing and training, and generated samples in the shapes of its data. Encoders
rest in some batches, batches are short, classes are absent, and some clients are never drawn. Where clients have
several tasks, so have some of these.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from blossom_ray.algorithms.options import CustomAlgorithm, FederatedAveraging, algorithm_of
from blossom_ray.algorithms.seam import METHODS, Client, Sent, Tree, has
from blossom_ray.clients.options import Training
from blossom_ray.core.scores import LearnedTask, Task
from blossom_ray.core.section import Custom
from blossom_ray.data.arrays import from_arrays
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.division.options import ClientGroup, DirichletPartition, Partition, QuantityPartition
from blossom_ray.data.sets.custom import CustomData
from blossom_ray.data.sets.synthetic import SyntheticData
from blossom_ray.errors import BlossomError, RunError
from blossom_ray.models.encoder_options import EmbeddingEncoder
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runtime.local import LocalRuntime
from blossom_ray.runtime.measurement import choose_engines
from blossom_ray.runtime.preparation import prepare
from blossom_ray.scenario.sections import Checkpoint, Evaluation, Execution, Failures
from blossom_ray.server import initial_server
from blossom_ray.simulation import run_rounds
from blossom_ray.storage import temporary_folder

_ROUNDS, _SAMPLES, _BATCH_SIZE, _MOST_RATE, _OUTPUTS = 4, 14, 4, 0.05, 3
_RANDOM = "expected numbers of the simulator's: an extra of the scope drawn, or the argument `draw`"
_SAME = 1e-4, 1e-5
"""How far results may differ where sums run in another order, relative to their size and at all."""


def algorithm_problem(scenario: Scenario) -> tuple[str, str] | None:
    """What is wrong with a scenario's algorithm, as what was found and what is expected; None where nothing is.

    Args:
        scenario: Checked; its data are looked at where they alone tell shapes or classes.
    """
    try:
        _try(scenario)
    except BlossomError as error:
        told = str(error).partition("\n")[0].removeprefix("algorithm: ").removeprefix("algorithm.factory ")
        found, _, expected = told.partition("; expected ")
        return found, expected or "an algorithm that runs"
    return None


def _try(scenario: Scenario) -> None:
    """Run it a few times.

    Raises:
        BlossomError: Something is wrong with it.
    """
    if isinstance(scenario.algorithm, FederatedAveraging):
        return
    trial = _small(scenario)
    together = _results(trial, 64, dropout=0.5)
    again = _results(trial, 64, dropout=0.5)
    if any(not np.array_equal(values, again[name]) for name, values in together.items()):
        raise RunError("algorithm: gives other numbers when it is run again; " + _RANDOM)
    if _far(together, _results(trial, 1, dropout=0.5)):
        raise RunError("algorithm: gives other numbers for clients one by one; expected that no client sees another")
    all_clients = trial.model_copy(update={"server": trial.server.model_copy(update={"clients_per_round": 1.0})})
    if trial.model.missing != "prototype" and not isinstance(trial.model.fusion, Custom):
        gaps = {"observed": dict.fromkeys(trial.modalities, 0.7), "without_modality": "keep-one"}
        all_clients = all_clients.model_copy(update={"data": all_clients.data_sets[""].model_copy(update=gaps)})
    plain, stacked = (_results(all_clients, 64, dropout=0.0, engine=engine) for engine in ("sequential", "vectorized"))
    if _far(plain, stacked):
        raise RunError(
            "algorithm: gives other numbers where clients are stacked; expected terms across samples that leave out "
            "padding, where batch.real is 0"
        )


def _small(scenario: Scenario) -> Scenario:
    """The scenario with a few clients of generated samples, not checked again."""
    whole = scenario.federated[0]  # one data set is as good as several: own code sees one at a time
    encoders = {name: encoder for name, encoder in scenario.model.encoders.items() if name in whole.modalities}
    changes: dict[str, Any] = {
        "data": whole.data,
        "datasets": None,
        "clients": whole.groups,
        "tasks": scenario.tasks and dict(whole.learned),
        "model": scenario.model.model_copy(update={"encoders": encoders}),
    }
    scenario = scenario.model_copy(update=changes)
    trained = (group for group in scenario.groups if group.role == "train")
    only = tuple(scenario.tasks or ())  # what clients have that name none
    found = {(tuple(sorted(group.modalities)), group.group, group.tasks or only) for group in trained}
    kinds = sorted(found, key=lambda kind: (-len(kind[2]), -len(kind[0]), kind))
    chosen, covered = list[tuple[tuple[str, ...], str, tuple[str, ...]]](), set[str]()
    for kind in kinds:
        if len(chosen) < 3 or not {*kind[0], *kind[2]} <= covered:
            chosen.append(kind)
            covered |= {*kind[0], *kind[2]}
    each = 2 if len(chosen) > 1 else 5
    clients = tuple(
        ClientGroup(count=each, modalities=names, group=label, task=tasks or None) for names, label, tasks in chosen
    )
    size = _SAMPLES * each * len(chosen)
    partition: Partition = QuantityPartition(kind="quantity", min_samples=6)
    if scenario.task == "classification" and scenario.tasks is None:
        partition = DirichletPartition(kind="dirichlet", alpha=1.0, min_samples=6)
    return scenario.model_copy(
        update={
            "rounds": _ROUNDS,
            "clients": clients,
            "tasks": _learned(scenario, {task for *_, tasks in chosen for task in tasks}),
            "data": CustomData(dataset="custom", factory=partial(_samples, scenario, size), partition=partition),
            "server": scenario.server.model_copy(update={"clients_per_round": max(2, each * len(chosen) // 2)}),
            "evaluation": Evaluation(held_out="never"),
            "stop": None,
            "checkpoint": Checkpoint(),
            "failures": Failures(),
        }
    )


def _learned(scenario: Scenario, used: Collection[str]) -> dict[str, LearnedTask] | None:
    """The tasks of the clients that are tried, each with the labels of its name."""
    if scenario.tasks is None:
        return None
    return {
        name: LearnedTask(kind=task.kind, labels=name, loss_weight=task.loss_weight)
        for name, task in scenario.tasks.items()
        if name in used
    }


def _samples(scenario: Scenario, size: int) -> Dataset:
    """Normal numbers or tokens in the shapes of the scenario's data, and random labels of all classes but the last."""
    data, modalities = scenario.data_sets[""], scenario.modalities
    draw, shapes = np.random.default_rng(0), dict(data.input_shapes(modalities))
    task = next(iter(scenario.learned.values())).kind
    opened, is_classification = data.open(modalities, scenario.seed, task), task == "classification"
    if scenario.tasks is not None and set(modalities) <= shapes.keys():
        num_outputs = _OUTPUTS
    elif isinstance(data, SyntheticData):
        num_outputs = data.targets if task == "regression" else data.classes
    elif set(modalities) <= shapes.keys() and is_classification:
        num_outputs = opened.targets().num_classes
    else:
        loaded = opened.load()
        shapes, num_outputs = loaded.input_shapes, loaded.num_classes

    def drawn(name: str) -> Any:
        encoder, shape = scenario.model.encoders[name], (size, *shapes[name])
        if isinstance(encoder, EmbeddingEncoder):
            return draw.integers(encoder.vocabulary or 1, size=shape)
        return draw.standard_normal(shape)

    if scenario.tasks is not None:
        columns = {name: (_labels(draw, own.kind, size, _OUTPUTS), own.kind) for name, own in scenario.tasks.items()}
        inputs = {name: drawn(name) for name in modalities}
        return from_arrays(inputs, [0, 1] * (size // 2), label_columns=columns)
    names = [str(number) for number in range(num_outputs)]
    inputs = {name: drawn(name) for name in modalities}
    if is_classification:
        return from_arrays(
            inputs, [names[at] for at in draw.integers(max(2, num_outputs - 1), size=size)], class_names=names
        )
    return from_arrays(inputs, _labels(draw, task, size, num_outputs), task=task, class_names=names)


def _labels(draw: np.random.Generator, task: Task, size: int, num_outputs: int) -> Any:
    values = draw.standard_normal((size, num_outputs))
    if task == "classification":
        return values.argmax(axis=1)
    return values if task == "regression" else (values > 0).astype(np.int64)


def _results(trial: Scenario, chunk_size: int, *, dropout: float, engine: str = "sequential") -> dict[str, np.ndarray]:
    """What the server has after some rounds, and what clients score."""
    watched = _Watched(algorithm_of(trial.algorithm), is_mapped=engine == "vectorized")
    changes = {
        "engine": engine,
        "local_epochs": 1,
        "batch_size": _BATCH_SIZE,
        "min_batch_size": 1,
        "modality_dropout": 0.0 if trial.model.missing == "prototype" else dropout,
        "precision": "float32",
        "optimizer": trial.training.optimizer.model_copy(update={"lr": min(_MOST_RATE, trial.training.optimizer.lr)}),
    }
    training: Training = trial.training.model_copy(update=changes)
    scenario = trial.model_copy(
        update={
            "algorithm": CustomAlgorithm(kind="custom", factory=lambda: watched),
            "training": training,
            "execution": Execution(runtime="local", chunk_size=chunk_size),
        }
    )
    with temporary_folder() as folder:
        preparation = choose_engines(prepare(scenario, folder))
        server = initial_server(preparation.plan, preparation.profiles_on_server(), scenario.server.optimizer)
        runtime = LocalRuntime(preparation)
        try:
            for record, after in run_rounds(preparation, runtime, server):
                last, server = record, after
        finally:
            runtime.close()
    found = {str(instance): block.sent.values for instance, block in server.blocks.items()}
    return found | {"losses": np.array([scored.loss for scored in last.evaluation])}


def _far(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    relative, absolute = _SAME
    return any(
        not np.allclose(values, other[name], rtol=relative, atol=absolute + relative * abs(values).max())
        for name, values in one.items()
    )


class _Watched:
    """An algorithm whose methods are looked at as they are called: what they leave behind, what they give.

    Args:
        author: The algorithm.
        is_mapped: Whether values cannot be looked at, since functions are mapped over clients.
    """

    def __init__(self, author: Any, *, is_mapped: bool) -> None:
        self._author, self._is_mapped = author, is_mapped
        for method in METHODS:
            if has(author, method):
                setattr(self, method, partial(self._called, method))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._author, name)

    def _called(self, method: str, *given: Any) -> Any:
        function, own = getattr(self._author, method), _own_state(self._author)
        draws = _random_state(with_torch=method not in _TRAINING)
        client = _Divided(**vars(given[0])) if method == "finish" else None
        found = function(*((client,) if client is not None else given))
        if method == "extras" and found != function(*given):
            raise RunError(
                "algorithm: extras gives something else when it is asked again; expected a function of layout"
            )
        for name, state in _own_state(self._author).items():
            if own.get(name) != state:
                raise RunError(
                    f"algorithm: {method} keeps {name} in itself, which no checkpoint has; expected an extra"
                )
        if draws != _random_state(with_torch=method not in _TRAINING):
            raise RunError(f"algorithm: {method} draws from a global generator; {_RANDOM}")
        if not self._is_mapped:
            _check_finite(method, found)
            if client is not None and isinstance(found, Mapping):
                _check_resting(client, found)
        return found


_TRAINING = ("loss", "local")
"""In these, layers that drop values out draw from torch's generator, which is seeded for them."""


class _Divided(Client):
    """A client that notes whether its steps were asked for."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("mean_step", "num_steps"):
            object.__setattr__(self, "asks_for_steps", True)
        return super().__getattribute__(name)


def _check_resting(client: _Divided, found: Mapping[str, Any]) -> None:
    """Whether steps of a block that took none were made use of."""
    if not getattr(client, "asks_for_steps", False):
        return
    for name, value in found.items():
        is_kept = not isinstance(value, Sent)
        tree, held = value if is_kept else value.value, client.extras.get(name)
        if not isinstance(tree, Tree) or not isinstance(held, Tree):
            continue
        for block, steps in client.num_steps.items():
            if not steps and block in tree and block in held and tree[block].shape == held[block].shape:
                before = held[block] if is_kept else torch.zeros_like(tree[block])
                if not torch.equal(tree[block], before):
                    raise RunError(
                        f"algorithm: finish changes {name} for {block}, which took no step; expected * k.stepped"
                    )


def _check_finite(method: str, found: Any) -> None:
    """A loss that is not finite need not reach a gradient: 0 times infinity."""
    numbers = {"numbers": found} if method == "loss" else found if method in ("before", "after") else {}
    for name, values in numbers.items() if isinstance(numbers, Mapping) else ():
        if isinstance(values, torch.Tensor) and not torch.isfinite(values.detach()).all():
            expected = "finite numbers, whatever classes and modalities are absent"
            raise RunError(f"algorithm: {method} gave {name} that are not finite; expected {expected}")


def _own_state(author: Any) -> dict[str, bytes]:
    """What an algorithm has in itself and in its class, by name."""
    of_class = {name: value for name, value in vars(type(author)).items() if not callable(value) and name[:2] != "__"}
    return {name: _state(value) for name, value in {**of_class, **getattr(author, "__dict__", {})}.items()}


def _state(value: Any) -> bytes:
    if isinstance(value, torch.Generator):
        return bytes(value.get_state().numpy())
    try:
        return pickle.dumps(value)
    except Exception:  # whatever cannot be pickled is compared by what it shows
        return repr(value).encode()


def _random_state(*, with_torch: bool) -> list[bytes]:
    own = [pickle.dumps((random.getstate(), np.random.get_state()))]  # it is what authors may use
    return [*own, bytes(torch.random.get_rng_state().numpy())] if with_torch else own
