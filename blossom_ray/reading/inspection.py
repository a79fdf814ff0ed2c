"""Whether a scenario can be run: its own values, the data that it needs, and own code that it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blossom_ray.core.factories import factory_problems
from blossom_ray.core.locations import is_uri
from blossom_ray.core.scores import LearnedTask
from blossom_ray.core.section import plain_tree
from blossom_ray.data.division.options import ClientGroup, Clients
from blossom_ray.data.options import Data, Examination, examine_federation
from blossom_ray.errors import Problem, ScenarioError
from blossom_ray.models.weights import with_sums
from blossom_ray.reading.scenario import Inspection, Scenario, inspect_scenario
from blossom_ray.scenario.checks import cross_problems, missing_validation, missing_weights


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

        Returns:
            The scenario, with the checksums of files of weights. In the place of `clients: from-data` it has the groups
            that the data give, where these are looked at.

        Raises:
            ScenarioError: With every problem found.
        """
        reading = inspect_scenario(path, overrides, sources)
        groups: tuple[ClientGroup, ...] = ()
        problems = [*reading.problems]
        location = getattr(reading.sections.get("data"), "path", None)
        if with_uris or location is None or not is_uri(location):
            groups, found = self._look_at_data(reading)
            problems += (problem for problem in found if problem not in problems)
        problems += [reading.origins.problem(*problem) for problem in factory_problems(reading.sections)]
        if problems or reading.scenario is None:
            problems.sort(key=lambda problem: (problem.source is not None, problem.line or 0))
            raise ScenarioError(tuple(problems))
        return _settled(reading.scenario, groups)

    def check(self, scenario: Scenario) -> Scenario:
        """Find out whether the data of a scenario can be read and divided, and own code be imported.

        Returns:
            As `read`.

        Raises:
            ScenarioError: They cannot.
        """
        sections = dict(scenario)
        groups, found = self._divide(sections, scenario.modalities)
        found += [*factory_problems(sections), *missing_weights(sections)]
        if found:
            raise ScenarioError(tuple(Problem(*problem) for problem in found))
        return _settled(scenario, groups)

    def notes(self, scenario: Scenario) -> list[str]:
        """What is to be known of the federation of a scenario that was found right, in a line each."""
        return self._examine(scenario.data, scenario.modalities, scenario.groups, scenario.seed, scenario.learned).notes

    def _look_at_data(self, reading: Inspection) -> tuple[tuple[ClientGroup, ...], list[Problem]]:
        """The clients that the data of a scenario give where it leaves that to them, and what is wrong with these."""
        sections = reading.sections
        known = {problem.path.split(".")[0] for problem in reading.problems}
        if not {"data", "clients", "seed", "task", "tasks"} <= sections.keys() or known & {"data", "clients", "tasks"}:
            return (), []
        clients = sections["clients"]
        if isinstance(clients, str):
            if "model" not in sections:
                return (), []
            owned = set(sections["model"].encoders)
        else:
            owned = {modality for group in clients for modality in group.modalities}
        # A modality that the data do not have is reported already, at its encoder.
        owned -= {problem.path.removeprefix("model.encoders.") for problem in reading.problems}
        groups, found = self._divide(sections, tuple(sorted(owned)))
        return groups, [reading.origins.problem(*problem) for problem in found]

    def _divide(
        self, sections: Mapping[str, Any], modalities: tuple[str, ...]
    ) -> tuple[tuple[ClientGroup, ...], list[tuple[str, str, str]]]:
        """The clients that the data give, where a scenario leaves that to them, and what is wrong with its data."""
        clients = sections["clients"]
        learned = sections["tasks"] or {"": LearnedTask(kind=sections["task"])}
        examined = self._examine(sections["data"], modalities, clients, sections["seed"], learned)
        missing = missing_validation(sections) if examined.has_validation is False else ()
        groups, found = examined.clients if isinstance(clients, str) else (), [*examined.problems, *missing]
        if groups:
            found += cross_problems({**sections, "clients": groups})
        return groups, found

    def _examine(
        self,
        data: Data,
        modalities: tuple[str, ...],
        clients: Clients,
        seed: int,
        learned: Mapping[str, LearnedTask],
    ) -> Examination:
        key = _key(data, modalities, clients, seed, learned)
        if key not in self._known:
            found = self._known[key] = examine_federation(data, modalities, clients, seed, learned)
            # With the clients that it leaves to the data, it is the same federation.
            self._known[_key(data, modalities, found.clients, seed, learned)] = found
        return self._known[key]


def _settled(scenario: Scenario, groups: tuple[ClientGroup, ...]) -> Scenario:
    """The scenario with the groups that the data give, if they do, and the checksums of files of weights."""
    scenario = scenario.with_clients(groups) if groups else scenario
    return scenario.model_copy(update={"model": with_sums(scenario.model)}) if scenario.model.pretrained else scenario


def _key(
    data: Data, modalities: tuple[str, ...], clients: Clients, seed: int, learned: Mapping[str, LearnedTask]
) -> str:
    """What a federation follows from."""
    groups = clients if isinstance(clients, str) else [plain_tree(group, defaults=True) for group in clients]
    # Callables by what they are in this process: two of one name need not be the same.
    tasks = {name: plain_tree(task, defaults=True) for name, task in learned.items()}
    return json.dumps([plain_tree(data, defaults=True), modalities, groups, seed, tasks], default=id)
