"""A task with the user's own metrics beside its scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from numbers import Real

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from blossom_ray.core.factories import resolve_factory
from blossom_ray.errors import OWN_CODE_RAISES, RunError, shown_error
from blossom_ray.tasks.base import BoolArray, ClassCounts, DoubleArray, Metric, Reduction, Tally, TaskRules

_PREFIX = "metric/"


class WithMetrics(TaskRules):
    """The rules of a task, and metrics of the user's own on top.

    A metric is a function of one client's labels and outputs. The tally keeps its value and whether it has one, in a
    row per client: values of several clients do not add up, so a tally of several has none.

    Args:
        rules: The task's own rules.
        metrics: The scenario's `evaluation.metrics` section.

    Raises:
        InputError: A function cannot be found.
    """

    def __init__(self, rules: TaskRules, metrics: Mapping[str, Metric]) -> None:
        self._rules = rules
        self._metrics = {
            name: (resolve_factory(section.function, _where(name)), section.options)
            for name, section in metrics.items()
        }

    def loss(self, outputs: Tensor, targets: Tensor, *, reduction: Reduction, known: Tensor | None = None) -> Tensor:
        """The task's loss."""
        return self._rules.loss(outputs, targets, reduction=reduction, known=known)

    def predict(self, outputs: Tensor) -> Tensor:
        """The outputs themselves, which own metrics see; (B, O)."""
        return outputs

    def tally(
        self,
        labels: npt.NDArray[np.generic],
        predictions: npt.NDArray[np.generic],
        num_outputs: int,
        known: BoolArray | None = None,
    ) -> Tally:
        """The task's tally and, per metric, its value on those of the samples of which all labels are known.

        Raises:
            RunError: A metric raised, or gave something else than a number or None.
        """
        predicted = self._rules.predict(torch.from_numpy(np.asarray(predictions))).numpy()
        tally = self._rules.tally(labels, predicted, num_outputs, known)
        if known is not None:
            whole = known.reshape(len(known), -1).all(axis=1)
            labels, predictions = labels[whole], predictions[whole]
        if tally.num_undefined:
            values = {_PREFIX + name: np.array([[np.nan, 1.0]]) for name in self._metrics}
        else:
            values = {_PREFIX + name: self._value(name, labels, predictions) for name in self._metrics}
        return replace(tally, moments={**tally.moments, **values})

    def scores(self, tally: Tally) -> dict[str, float | None]:
        """The task's scores, then the metrics; None for a metric without a value, or of several clients together."""
        return {**self._rules.scores(tally), **{name: _only(tally.moments[_PREFIX + name]) for name in self._metrics}}

    def classes(self, tally: Tally) -> ClassCounts | None:
        """What the task says of each class."""
        return self._rules.classes(tally)

    def _value(self, name: str, labels: npt.NDArray[np.generic], outputs: npt.NDArray[np.generic]) -> DoubleArray:
        function, options = self._metrics[name]
        if not len(labels):
            return np.array([[0.0, 0.0]])
        labels, outputs = labels.view(), outputs.view()
        labels.flags.writeable = outputs.flags.writeable = False
        try:
            value = function(labels, outputs, **options)
        except OWN_CODE_RAISES as error:
            raise RunError(f"{_where(name)} raised {shown_error(error)}") from error
        if value is None:
            return np.array([[0.0, 0.0]])
        if type(value) is bool or not isinstance(value, Real):
            raise RunError(f"{_where(name)} gave {value!r}; expected a number, or None where the samples define none")
        return np.array([[float(value), 1.0]])


def _only(rows: DoubleArray) -> float | None:
    """The value of a tally's only client, if it has one."""
    return float(rows[0, 0]) if len(rows) == 1 and rows[0, 1] else None


def _where(name: str) -> str:
    return f"evaluation.metrics.{name}.function"
