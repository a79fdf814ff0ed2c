"""Whether a scenario can be run: its own values, the data that it needs, and own code that it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from blossom_ray.core.factories import factory_problems
from blossom_ray.core.locations import is_uri
from blossom_ray.core.phrases import listed
from blossom_ray.core.scores import LearnedTask
from blossom_ray.core.section import plain_tree
from blossom_ray.data.division.options import ClientGroup
from blossom_ray.data.federated import FederatedDataset, federated_datasets
from blossom_ray.data.options import Examination, examine_federation
from blossom_ray.data.sets.base import OwnData
from blossom_ray.errors import Problem, ScenarioError
from blossom_ray.models.weights import with_sums
from blossom_ray.reading.scenario import Inspection, Scenario, inspect_scenario
from blossom_ray.scenario.checks import cross_problems, data_sets, missing_validation, missing_weights


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
        locations = [getattr(data, "path", None) for data in data_sets(reading.sections).values()]
        if with_uris or not any(location and is_uri(location) for location in locations):
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
        found = {each.name: self._examine(each).notes for each in scenario.federated}
        return [f"{name}: {note}" if name else note for name, notes in found.items() for note in notes]

    def _look_at_data(self, reading: Inspection) -> tuple[tuple[ClientGroup, ...], list[Problem]]:
        """The clients that the data of a scenario give where it leaves that to them, and what is wrong with these."""
        sections = reading.sections
        known = {problem.path.split(".")[0] for problem in reading.problems}
        needed = {"data", "datasets", "clients", "tasks"}
        if not needed | {"seed", "task"} <= sections.keys() or known & needed:
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
        whole = federated_datasets(data_sets(sections), modalities, clients, sections["seed"], learned)
        examined = [self._examine(each) for each in whole]
        found = [problem for each in examined for problem in each.problems]
        found += (
            missing_validation(sections) if examined and all(each.has_validation is False for each in examined) else ()
        )
        groups = examined[0].clients if isinstance(clients, str) else ()
        if groups:
            found += cross_problems({**sections, "clients": groups})
        return groups, found

    def _examine(self, whole: FederatedDataset) -> Examination:
        key = _key(whole)
        if key not in self._known:
            found = self._known[key] = examine_federation(whole)
            # With the clients that it leaves to the data, it is the same federation.
            self._known[_key(replace(whole, clients=found.clients))] = found
        return self._known[key]


def _settled(scenario: Scenario, groups: tuple[ClientGroup, ...]) -> Scenario:
    """The scenario with what it leaves to others: groups of clients, checksums of files, numbers of tokens."""
    scenario = scenario.with_clients(groups) if groups else scenario
    model = with_sums(scenario.model).with_vocabularies(partial(_num_tokens, scenario))
    return scenario if model == scenario.model else scenario.model_copy(update={"model": model})


def _num_tokens(scenario: Scenario, modality: str) -> int | None:
    """How many numbers of tokens a modality has; None where no data set says it."""
    own = [data.num_tokens(modality) for data in scenario.data_sets.values() if isinstance(data, OwnData)]
    given = sorted({number for number in own if number is not None})
    if len(given) > 1:
        found = f"is null, while data sets have {listed(given)} numbers of tokens"
        expected = "one number, at least as large as all of them"
        raise ScenarioError((Problem(f"model.encoders.{modality}.vocabulary", found, expected),))
    return next(iter(given), None)


def _key(whole: FederatedDataset) -> str:
    """What a federation follows from."""
    groups = whole.clients if isinstance(whole.clients, str) else [plain_tree(g, defaults=True) for g in whole.clients]
    tasks = {name: plain_tree(task, defaults=True) for name, task in whole.learned.items()}
    told = [plain_tree(whole.data, defaults=True), whole.modalities, groups, whole.seed, tasks, whole.name]
    # Callables by what they are in this process: two of one name need not be the same.
    return json.dumps(told, default=id)
