"""When a run ends before its last round: its scores on the validation splits have not got better for a while."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from blossom_ray.core.records import RoundRecord, Stopped
from blossom_ray.core.scores import find_score
from blossom_ray.scenario.sections import Stop
from blossom_ray.scenario.tree import ScenarioTree


@dataclass(frozen=True)
class EarlyStopping:
    """How the watched score has gone so far.

    Attributes:
        metric: Its column of the table `rounds`, such as `validation/accuracy`.
        lower_is_better: Whether smaller values are better.
        section: The scenario's `stop`.
        rounds: The last round in any case.
        best_round: The round with the best value; None before the first finite one.
        value: That value.
        num_waited: Scored rounds since then, or without any value.
    """

    metric: str
    lower_is_better: bool
    section: Stop
    rounds: int
    best_round: int | None = None
    value: float | None = None
    num_waited: int = 0

    @classmethod
    def of(cls, scenario: ScenarioTree) -> Self | None:
        """What a scenario's `stop` asks for, before the first round; None without one."""
        section = scenario.stop
        if section is None:
            return None
        name = (section.metric or scenario.judge[0]).removeprefix("validation/")
        score = find_score(name, scenario.own_scores)
        assert score is not None, "scenarios with another metric are refused"
        return cls(f"validation/{name}", score.lower_is_better, section, scenario.rounds)

    def after(self, record: RoundRecord) -> Self:
        """With one more round. The untrained model is no candidate, and rounds without validation scores do not count.

        An equal value is not better, nor is one that is missing or not finite.
        """
        if record.round_index == 0 or not record.validation:
            return self
        value = record.metrics.get(self.metric, math.nan)
        sign = -1 if self.lower_is_better else 1
        if math.isfinite(value) and (self.value is None or sign * value > sign * self.value):
            return replace(self, best_round=record.round_index, value=value, num_waited=0)
        return replace(self, num_waited=self.num_waited + 1)

    def end(self, round_index: int) -> Stopped | None:
        """What ends the run after the last round that was seen; None where it goes on.

        Args:
            round_index: That round.
        """
        if round_index >= self.section.min_rounds and self.num_waited >= self.section.patience:
            return Stopped(round_index, self.best_round, self.metric, self.value, "patience")
        if round_index >= self.rounds:
            return Stopped(round_index, self.best_round, self.metric, self.value, "rounds")
        return None

    @property
    def state(self) -> dict[str, Any]:
        """What a run that goes on must know, as JSON values."""
        return {"best_round": self.best_round, "value": self.value, "num_waited": self.num_waited}

    def with_state(self, state: Mapping[str, Any]) -> Self:
        """As it was when `state` was taken."""
        return replace(self, **{name: state[name] for name in self.state})
