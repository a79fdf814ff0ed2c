"""Reading what a command is given: a scenario with `--set` and `--seed`, and where to `--track` it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blossom_ray.errors import Problem, ScenarioError

if TYPE_CHECKING:
    from blossom_ray.reading.inspection import Inspector
    from blossom_ray.reading.scenario import Scenario
    from blossom_ray.runs.tracking import Target


def load_scenario(
    path: Path,
    settings: list[str] | None,
    seed: int | None,
    *,
    with_uris: bool = True,
    inspector: Inspector | None = None,
) -> Scenario:
    """Read and check a scenario, its data included, those at a URI on request; every problem at once.

    Raises:
        ScenarioError: With every problem found.
    """
    from blossom_ray.reading.inspection import Inspector

    overrides, problems = parse_settings(settings or [])
    sources = {key: f"--set {key}" for key in overrides}
    if seed is not None:
        overrides["seed"], sources["seed"] = seed, "--seed"
    try:
        scenario = (inspector or Inspector()).read(path, overrides, sources, with_uris=with_uris)
    except ScenarioError as error:
        problems += error.problems
    if problems:
        problems.sort(key=lambda problem: (problem.source is not None, problem.line or 0))
        raise ScenarioError(tuple(problems))
    return scenario


def parse_settings(settings: Sequence[str], option: str = "--set") -> tuple[dict[str, Any], list[Problem]]:
    """Value by dotted path of options such as `--set`, and what is wrong with others."""
    from blossom_ray.reading.scenario import parse_assignment

    problems: list[Problem] = []
    overrides: dict[str, Any] = {}
    for text in settings:
        try:
            key, value = parse_assignment(text, option)
        except ScenarioError as error:
            problems += error.problems
        else:
            overrides[key] = value
    return overrides, problems


def checked_targets(track: Sequence[str] | None) -> list[Target]:
    """The targets of `--track`, each once, that can be written to.

    Raises:
        InputError: One is no target, or cannot be written to.
    """
    if not track:
        return []
    from blossom_ray.runs.tracking import parse_target
    from blossom_ray.runs.tracking.following import check_target

    targets = [*dict.fromkeys(parse_target(text) for text in track)]
    for target in targets:
        check_target(target)
    return targets
