"""From a scenario file, or a scenario and some changes, to a checked `Scenario`, or to every problem of it."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError, create_model

from blossom_ray.core.phrases import accepted, did_you_mean, shown
from blossom_ray.core.section import Finding, Section, plain_tree
from blossom_ray.core.structure import Hint, Part, split_path
from blossom_ray.errors import Problem, ScenarioError
from blossom_ray.reading.messages import findings
from blossom_ray.reading.overrides import apply_overrides
from blossom_ray.reading.packaged import packaged_scenarios, scenario_path
from blossom_ray.reading.yaml_tree import Document, Node, parse_yaml
from blossom_ray.scenario.checks import cross_problems, missing_data
from blossom_ray.scenario.tree import ScenarioTree, apply_compat
from blossom_ray.storage import RefusedFileError, read_file
from blossom_ray.text import brief

MAX_FILE_BYTES = 2**20
_MAX_PROBLEMS = 50  # nobody reads more, and looking for near names takes its time
_OVERRIDE = "override"
_DISCRIMINATORS = ("kind", "dataset")


class Scenario(ScenarioTree):
    """What is simulated: data, clients, model, sharing, training and where it runs."""

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Scenario:
        """Read a scenario file (YAML 1.2), or a packaged scenario by name; apply overrides by dotted path, check it.

        Raises:
            ScenarioError: With every problem found, each with file, line and path.
        """
        return _scenario_or_raise(inspect_scenario(path, overrides))

    def override(self, values: Mapping[str, Any], sources: Mapping[str, str] | None = None) -> Scenario:
        """A new scenario with some values replaced by dotted path, checked again.

        Values that were left at their defaults follow the new kind of their section: see `apply_overrides`.

        Args:
            values: Such as `{"sharing": "full-model", "training.optimizer.lr": 0.01, "clients.0.count": 3}`.
            sources: Where a value came from, by its path, such as `--seed`, for messages; default `override`.

        Raises:
            ScenarioError: With every problem found.
        """
        tree = plain_tree(self, defaults=False)
        origins = Origins(None, None, tree, {key: (sources or {}).get(key, _OVERRIDE) for key in values})
        return _scenario_or_raise(_check(tree, origins, values, ()))


class Place(NamedTuple):
    """Where a value stands: the fields of `Problem` of the same names."""

    file: str | None = None
    line: int | None = None
    source: str | None = None


@dataclass(frozen=True)
class Origins:
    """Where the values of a tree came from: lines of a file, and overrides.

    Attributes:
        file: The file as the user wrote it, or None.
        root: The parsed file, or None.
        tree: Its plain values, or None.
        sources: Label by path of the overrides.
    """

    file: str | None
    root: Node | None
    tree: Any
    sources: Mapping[str, str]

    def problem(self, path: str, found: str, expected: str) -> Problem:
        """A problem with its place."""
        return Problem(brief(path), found, expected, *self.locate(path))

    def locate(self, path: str) -> Place:
        """Where the value at a dotted path stands; for a missing key, the section that lacks it."""
        parts = split_path(path, self.tree)
        node, is_there = (None, False) if self.root is None else self.root.at(parts)
        source = self._source(parts, is_there)
        if source is not None:
            return Place(self.file, None, source)
        return Place(self.file, None if node is None or node is self.root else node.line)

    def _source(self, parts: tuple[Part, ...], is_there: bool) -> str | None:
        """The label of the override that gives the value, or that made the section or chose the kind that lacks it."""
        overrides = {split_path(path, self.tree): label for path, label in self.sources.items()}
        for length in range(len(parts), 0, -1) if parts else (0,):
            if parts[:length] in overrides:
                return overrides[parts[:length]]
        above = parts[:-1]
        if is_there or not above:
            return None
        for key in _DISCRIMINATORS:
            if (*above, key) in overrides:
                return overrides[*above, key]
        if self.root is not None and self.root.at(above)[1]:
            return None
        return next((label for given, label in overrides.items() if given[: len(above)] == above), None)


@dataclass(frozen=True)
class Inspection:
    """What became of a scenario file.

    Attributes:
        scenario: The scenario, or None where there are problems.
        problems: Everything that is wrong with it, in the order of lines, overrides last.
        sections: The top-level values that are right in themselves, whatever the others are: `data`, `clients`
            (a tuple), `seed`, ...
        origins: Where its values came from.
    """

    scenario: Scenario | None
    problems: tuple[Problem, ...]
    sections: Mapping[str, Any]
    origins: Origins


def recorded_scenario(path: Path) -> Scenario:
    """The scenario in a run's folder. The run is read wherever it lies: its data need not be there.

    Raises:
        ScenarioError: With every problem found, each with file, line and path.
    """
    return _scenario_or_raise(inspect_scenario(path, with_data=False))


def inspect_scenario(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    sources: Mapping[str, str] | None = None,
    *,
    with_data: bool = True,
) -> Inspection:
    """Read and check a scenario file; wrong content is reported, never raised.

    Args:
        path: The file, or the name of a packaged scenario. Problems name it as it is written here.
        overrides: Value by dotted path, applied before the checks: see `apply_overrides`.
        sources: Where an override came from, by its path, such as `--seed`; default `override`.
        with_data: Whether the data's path must exist.
    """
    overrides = overrides or {}
    labels = {key: (sources or {}).get(key, _OVERRIDE) for key in overrides}
    document = _read_document(scenario_path(Path(path)))
    tree = None if document.root is None else document.root.plain()
    origins = Origins(str(path), document.root, tree, labels)
    problems = tuple(
        dataclasses.replace(problem, path=brief(problem.path), found=brief(problem.found), file=str(path))
        for problem in document.problems
    )
    if document.root is None:
        return Inspection(None, _limit(problems), {}, origins)
    if not isinstance(tree, Mapping):
        wrong = "is empty" if tree is None else shown(tree)
        finding = Finding("", wrong, accepted(Hint(Scenario)))
        return Inspection(None, _limit((*problems, origins.problem(*finding))), {}, origins)
    return _check(tree, origins, overrides, problems, with_data=with_data)


def _scenario_or_raise(inspection: Inspection) -> Scenario:
    if inspection.scenario is None:
        raise ScenarioError(inspection.problems)
    return inspection.scenario


def _read_document(path: Path) -> Document:
    try:
        content = read_file(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        near = did_you_mean(path.with_suffix("").as_posix(), packaged_scenarios())
        return _unreadable("does not exist", f", or a name that `blossom-ray scenarios` lists{near}")
    except IsADirectoryError:
        return _unreadable("is a folder")
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.EOVERFLOW:
            return Document(None, (Problem("", "is larger than 1 MiB", "a scenario of a few kB"),))
        if isinstance(error, RefusedFileError):
            return _unreadable("is a pipe, a device or a socket", ": write what a command prints into a file first")
        return _unreadable(f"cannot be read ({getattr(error, 'strerror', None) or error})")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return Document(None, (Problem("", "is not UTF-8 text", "a YAML 1.2 file in UTF-8", line=line),))
    return parse_yaml(text)


def _unreadable(found: str, other: str = "") -> Document:
    return Document(None, (Problem("", found, f"a scenario file (YAML 1.2){other}"),))


def _check(
    tree: Mapping[str, Any],
    origins: Origins,
    overrides: Mapping[str, Any],
    problems: tuple[Problem, ...],
    *,
    with_data: bool = True,
) -> Inspection:
    changed, found = apply_overrides(tree, overrides)
    scenario: Scenario | None = None
    num_left = 0
    try:
        scenario = Scenario.model_validate(changed)
        sections = dict(scenario)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        num_left = max(0, len(errors) - _MAX_PROBLEMS)
        found += findings(errors[:_MAX_PROBLEMS], Scenario)
        sections = _right_sections(apply_compat(changed), {str(detail["loc"][0]) for detail in errors if detail["loc"]})
    found += cross_problems(sections)
    if with_data:
        found += missing_data(sections)
    problems = (*problems, *(origins.problem(*finding) for finding in dict.fromkeys(found)))
    in_order = tuple(sorted(problems, key=lambda problem: (problem.source is not None, problem.line or 0)))
    return Inspection(None if problems else scenario, _limit(in_order, num_left), sections, origins)


def _limit(problems: tuple[Problem, ...], num_left: int = 0) -> tuple[Problem, ...]:
    """The first problems, and in a last one how many more there are, with those that nobody has looked at."""
    shown, num_left = problems[:_MAX_PROBLEMS], num_left + len(problems[_MAX_PROBLEMS:])
    if not num_left:
        return shown
    more = f"has {num_left:,} more problem{'s' * (num_left > 1)}"
    return (*shown, Problem("", more, "the ones above mended first", problems[0].file))


def _right_sections(tree: Mapping[str, Any], wrong: set[str]) -> dict[str, Any]:
    """The top-level values without errors, validated."""
    partial = _scenario_without(frozenset(wrong))
    return dict(partial.model_validate({key: value for key, value in tree.items() if key in partial.model_fields}))


@lru_cache(maxsize=64)
def _scenario_without(keys: frozenset[str]) -> type[Section]:
    """The model of scenarios without these keys; pydantic takes milliseconds to make one."""
    fields: dict[str, Any] = {
        name: (field.annotation, field) for name, field in Scenario.model_fields.items() if name not in keys
    }
    return create_model("PartialScenario", __base__=Section, **fields)
