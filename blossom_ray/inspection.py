"""Whether a scenario can be run: its own values, the data that it needs, and own code that it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blossom_ray.data.federation import Examination, examine_federation
from blossom_ray.errors import Problem, ScenarioError
from blossom_ray.factories import factory_problems
from blossom_ray.locations import is_uri
from blossom_ray.scenario import Scenario
from blossom_ray.scenario.checks import missing_validation
from blossom_ray.scenario.reader import Reading, inspect_scenario
from blossom_ray.scenario.sections import Data
from blossom_ray.scenario.writer import plain_tree
from blossom_ray.scores import Task


class Inspector:
    """Checks scenarios one after the other; data that several of them share are looked at once."""

    def __init__(self) -> None:
        self._known: dict[str, Examination] = {}

    def read(
        self, path: Path, overrides: Mapping[str, Any], sources: Mapping[str, str], *, with_uris: bool = True
    ) -> Scenario:
        """The scenario of a file with some values replaced, its data and own code checked.

        Args:
            path: The file.
            overrides: Value by dotted path.
            sources: Where each override came from, such as `--set rounds`.
            with_uris: Whether data at a URI are looked at; they may be within reach of another machine alone.

        Raises:
            ScenarioError: With every problem found.
        """
        reading = inspect_scenario(path, overrides, sources)
        problems = [
            *reading.problems,
            *(self._data_problems(reading) if with_uris or not _is_elsewhere(reading) else ()),
        ]
        problems += [reading.problem(*problem) for problem in factory_problems(reading.sections)]
        if problems or reading.scenario is None:
            problems.sort(key=lambda problem: (problem.source is not None, problem.line or 0))
            raise ScenarioError(tuple(problems))
        return reading.scenario

    def check(self, scenario: Scenario) -> None:
        """Find out whether the data of a scenario can be read and divided, and own code be imported.

        Raises:
            ScenarioError: They cannot.
        """
        found = [*_problems(self._examined(scenario), dict(scenario)), *factory_problems(dict(scenario))]
        if found:
            raise ScenarioError(tuple(Problem(*problem) for problem in found))

    def notes(self, scenario: Scenario) -> list[str]:
        """What is to be known of the federation of a scenario that was found right, in a line each."""
        return self._examined(scenario).notes

    def _data_problems(self, reading: Reading) -> list[Problem]:
        sections = reading.sections
        known = {problem.path.split(".")[0] for problem in reading.problems}
        if not {"data", "clients", "seed", "task"} <= sections.keys() or known & {"data", "clients"}:
            return []
        clients = sections["clients"]
        owned = {modality for group in clients for modality in group.modalities}
        # A modality that the data do not have is reported already, at its encoder.
        owned -= {problem.path.removeprefix("model.encoders.") for problem in reading.problems}
        num_clients = sum(group.count for group in clients)
        seed, task = sections["seed"], sections["task"]
        found = self._examination(sections["data"], tuple(sorted(owned)), num_clients, seed, task)
        return [reading.problem(*problem) for problem in _problems(found, sections)]

    def _examined(self, scenario: Scenario) -> Examination:
        return self._examination(scenario.data, scenario.modalities, scenario.num_clients, scenario.seed, scenario.task)

    def _examination(
        self, data: Data, modalities: tuple[str, ...], num_clients: int, seed: int, task: Task
    ) -> Examination:
        # Callables by what they are in this process: two of one name need not be the same.
        key = json.dumps([plain_tree(data, defaults=True), modalities, num_clients, seed, task], default=id)
        if key not in self._known:
            self._known[key] = examine_federation(data, modalities, num_clients, seed, task)
        return self._known[key]


def _problems(found: Examination, sections: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    missing = missing_validation(sections) if found.has_validation is False else ()
    return [*found.problems, *missing]


def _is_elsewhere(reading: Reading) -> bool:
    path = getattr(reading.sections.get("data"), "path", None)
    return path is not None and is_uri(path)
