"""Reading the scenario that a command is given, with `--set` and `--seed`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from blossom_ray.errors import Problem, ScenarioError

if TYPE_CHECKING:
    from blossom_ray.scenario import Scenario


def load_scenario(path: Path, settings: list[str] | None, seed: int | None) -> Scenario:
    """Read and check a scenario, its data included; every problem at once.

    Raises:
        ScenarioError: With every problem found.
    """
    from blossom_ray.data.federation import federation_problems
    from blossom_ray.factories import factory_problems
    from blossom_ray.scenario.reader import inspect_scenario, parse_assignment

    problems: list[Problem] = []
    overrides: dict[str, Any] = {}
    for text in settings or []:
        try:
            key, value = parse_assignment(text)
        except ScenarioError as error:
            problems += error.problems
        else:
            overrides[key] = value
    sources = {key: f"--set {key}" for key in overrides}
    if seed is not None:
        overrides["seed"], sources["seed"] = seed, "--seed"
    reading = inspect_scenario(path, overrides, sources)
    problems += reading.problems
    sections = reading.sections
    if {"data", "clients", "seed"} <= sections.keys() and not _concerns(problems, "data", "clients"):
        clients = sections["clients"]
        num_clients = sum(group.count for group in clients)
        owned = {modality for group in clients for modality in group.modalities}
        # A modality that the data do not have is reported already, at its encoder.
        owned -= {problem.path.removeprefix("model.encoders.") for problem in problems}
        modalities = tuple(sorted(owned))
        for where, found, expected in federation_problems(sections["data"], modalities, num_clients, sections["seed"]):
            problems.append(reading.problem(where, found, expected))
    if "model" in sections:
        problems += [reading.problem(*problem) for problem in factory_problems(sections["model"])]
    if problems or reading.scenario is None:
        problems.sort(key=lambda problem: (problem.source is not None, problem.line or 0))
        raise ScenarioError(tuple(problems))
    return reading.scenario


def _concerns(problems: list[Problem], *sections: str) -> bool:
    return any(problem.path.split(".")[0] in sections for problem in problems)
