"""The grid of a sweep: scenarios x values of some keys x seeds, as cells that have been checked."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from blossom_ray.errors import Problem, ScenarioError
from blossom_ray.reading.inspection import Inspector
from blossom_ray.reading.overrides import parse_assignment, parse_each
from blossom_ray.reading.scenario import Scenario
from blossom_ray.scenario.identity import identity
from blossom_ray.text import quoted

SEED_KEYS = ("seed", "training_seed")
"""Keys that are no setting: runs that differ in them alone are repetitions of one another."""
_MAX_TEXT_CHARACTERS = 40
_OPENING, _CLOSING = "[{", "]}"


@dataclass(frozen=True)
class Axis:
    """A key that a sweep varies, by its dotted path such as `model.fusion.kind`, and the values that it takes."""

    path: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        scenario: What is run.
        setting: Value by path of the keys that the sweep varies, seeds left out.
        name: Legible, made of the settings and the seeds; unique within a sweep.
        identity: Equal for scenarios that give the same numbers.
    """

    scenario: Scenario
    setting: Mapping[str, Any]
    name: str
    identity: str


def parse_axis(text: str) -> Axis:
    """A command line's `KEY=VALUE,VALUE,...`; each value is read as by `--set`.

    Commas inside brackets, braces and quotes separate nothing: `data.partition={kind: iid},{kind: subject}`.

    Raises:
        ScenarioError: No `=`, an empty path, an empty value or one that is not valid YAML.
    """
    path, equals, written = text.partition("=")
    if not equals:
        found, expected = "has no '='", "KEY=VALUE,VALUE,..., such as sharing=full-model,private-head"
        raise ScenarioError((Problem("", found, expected, source=f"--vary {text}"),))

    def parse(part: str) -> tuple[str, Any]:
        if not part.strip():
            wrong = Problem(path.strip(), "has an empty value", "values between commas", source=f"--vary {text}")
            raise ScenarioError((wrong,))
        return parse_assignment(f"{path}={part}", "--vary")

    values, problems = parse_each(parse, _split(written))
    if problems:
        raise ScenarioError(tuple(problems))
    return Axis(values[0][0], tuple(value for _, value in values))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds as a command line gives them: `5` is 0 to 4, `0,1,7` and `3,` are these.

    Raises:
        ScenarioError: Neither a number of seeds nor a list of different seeds.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    expected = "a number of seeds of at least 1, such as 5 for 0 to 4, or different seeds, such as 0,1,7"
    if not parts or not all(re.fullmatch(r"[0-9]{1,19}", part) for part in parts):
        raise ScenarioError((Problem("", f"is {quoted(text)}", expected, source="--seeds"),))
    numbers = tuple(int(part) for part in parts)
    if "," not in text:
        numbers = tuple(range(numbers[0])) if numbers[0] <= 100_000 else ()
    if not numbers or len(set(numbers)) < len(numbers):
        raise ScenarioError((Problem("", f"is {quoted(text)}", expected, source="--seeds"),))
    return numbers


def expand(
    bases: Sequence[Path | Scenario],
    axes: Sequence[Axis] = (),
    seeds: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Cell, ...]:
    """All cells of a grid, each checked, its data included: the seeds of one setting stand together.

    Args:
        bases: Scenario files or scenarios.
        axes: Keys that vary. They are set after `overrides`, in this order.
        seeds: Seeds; None: the one that each scenario has.
        overrides: Value by dotted path, for every cell.

    Raises:
        ScenarioError: With every problem of every cell; one that not all cells have names the first that has it.
    """
    axes = [*axes] if seeds is None else [*axes, Axis("seed", tuple(seeds))]
    _check_axes(axes)
    inspector = Inspector()
    found: list[tuple[Scenario, dict[str, Any]]] = []
    problems: dict[Problem, list[str]] = {}
    num_cells: Counter[str | None] = Counter()
    for base in bases:
        for each in product(*(axis.values for axis in axes)):
            setting = dict(zip((axis.path for axis in axes), each, strict=True))
            values = {path: value for path, value in (overrides or {}).items() if path not in setting} | setting
            sources = {path: f"--{'vary' if path in setting else 'set'} {path}" for path in values}
            try:
                if isinstance(base, Scenario):
                    num_cells[None] += 1
                    scenario = inspector.check(base.override(values))
                else:
                    num_cells[str(base)] += 1
                    scenario = inspector.read(base, values, sources)
            except ScenarioError as error:
                for problem in error.problems:
                    problems.setdefault(problem, []).append(setting_name(setting))
            else:
                found.append((scenario, setting))
    if problems:
        told = []
        for problem, cells in problems.items():
            total = num_cells[problem.file]
            note = f"in {len(cells)} of {total} cells, the first is {cells[0]}"
            # Of a problem that all cells of its file have, none has to be named.
            told.append(replace(problem, note=note) if len(cells) < total and cells[0] else problem)
        raise ScenarioError(tuple(told))
    return tuple(_name_cells(found, several_names=len({scenario.name for scenario, _ in found}) > 1))


def setting_name(setting: Mapping[str, Any]) -> str:
    """The values of a setting in one word: `sharing=full-model,fusion=attention,seed=0`."""
    return ",".join(f"{label}={value_text(setting[path])}" for path, label in short_labels(setting).items())


def short_labels(paths: Iterable[str]) -> dict[str, str]:
    """The shortest ends of dotted paths that tell them apart: `model.fusion.kind` is `fusion` where nothing else is."""
    paths = tuple(paths)
    labels: dict[str, str] = {}
    for path in paths:
        parts = path.split(".")
        if len(parts) > 1 and parts[-1] in ("kind", "dataset"):
            parts.pop()
        labels[path] = parts[-1]
    uses = Counter(labels.values())
    return {path: label if uses[label] == 1 else path for path, label in labels.items()}


def value_text(value: Any) -> str:
    """A value as a short word for file names and tables: `{kind: dirichlet, alpha: 0.5}` is `dirichlet-0.5`."""
    words = [re.sub(r"[^\w.+]+", "-", str(leaf), flags=re.ASCII).strip("-") for leaf in _leaves(value)]
    text = "-".join(word for word in words if word)
    return (text or "none")[:_MAX_TEXT_CHARACTERS].rstrip("-")


def _split(text: str) -> Iterator[str]:
    """The parts between commas that stand outside of brackets, braces and quotes."""
    depth, quote, start = 0, "", 0
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and (depth or not text[start:position].strip()):
            quote = character
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif character == "," and depth <= 0:
            yield text[start:position]
            start = position + 1
    yield text[start:]


def _check_axes(axes: Sequence[Axis]) -> None:
    once, some = "each key once, and the seed by --seeds alone", "at least one value"
    uses = Counter(axis.path for axis in axes).items()
    problems = [Problem(path, f"is varied {n} times", once, source="--vary") for path, n in uses if n > 1]
    empty = [axis.path for axis in axes if not axis.values]
    problems += [Problem(path, "has no value to take", some, source=f"--vary {path}") for path in empty]
    if problems:
        raise ScenarioError(tuple(problems))


def _name_cells(found: Sequence[tuple[Scenario, dict[str, Any]]], *, several_names: bool) -> Iterator[Cell]:
    """Cells with unique names; two that give the same numbers are refused."""
    seen: dict[str, str] = {}
    problems = []
    names: set[str] = set()
    for scenario, values in found:
        name = setting_name(values)
        if several_names or not name:
            name = ",".join(part for part in (scenario.name, name) if part)
        key = identity(scenario)
        if key in seen:
            found_text = f"gives the same numbers as the cell {seen[key]}"
            problems.append(Problem("", found_text, "cells that differ in what they compute", source=f"cell {name}"))
            continue
        seen[key] = name
        if name in names:
            name = f"{name}-{key[:6]}"
        names.add(name)
        setting = {"name": scenario.name} if several_names else {}
        plain = {path: value for path, value in values.items() if path not in SEED_KEYS}
        setting |= json.loads(json.dumps(plain, default=_callable_name))
        yield Cell(scenario, setting, name, key)
    if problems:
        raise ScenarioError(tuple(problems))


def _callable_name(value: object) -> str:
    return str(getattr(value, "__qualname__", value))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif value is None or isinstance(value, bool):
        yield {None: "null", True: "true", False: "false"}[value]
    else:
        yield _callable_name(value) if callable(value) else value
