"""A first scenario from a few choices: the packaged scenario of the data set, with other clients, data and sharing.

Problems name the options of `blossom-ray init`, from which the choices come.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from blossom_ray.data.table import Table
from blossom_ray.errors import DataError, Problem, ScenarioError
from blossom_ray.inspection import Inspector
from blossom_ray.scenario import Scenario
from blossom_ray.scenario.checks import input_shapes
from blossom_ray.scenario.packaged import packaged_scenarios
from blossom_ray.scenario.phrases import did_you_mean, one_of, shown
from blossom_ray.scenario.sections import SyntheticData, TableData
from blossom_ray.scenario.yaml_tree import parse_yaml, resolve_scalar
from blossom_ray.scores import TASKS, Task
from blossom_ray.text import quoted

STARTING_POINTS: Mapping[str, str] = {
    "synthetic": "quickstart",
    "uci-har": "uci-har-incomplete",
    "ku-har": "ku-har",
    "ptb-xl": "ptb-xl",
    "av-mnist": "av-mnist",
    "meld": "meld",
    "iemocap": "iemocap",
    "table": "quickstart",
}
"""The packaged scenario that a scenario for each data set begins as."""

_CLIENTS_FORM = "COUNT:MODALITY,MODALITY for each group, such as '3:acc 4:acc,gyro'"
_PARTITION_FORM = "KIND or KIND:ALPHA, such as iid or dirichlet:0.5"


@dataclass(frozen=True)
class Choices:
    """What a user decides.

    Attributes:
        name: The scenario's name.
        dataset: A key of `STARTING_POINTS`.
        path: `data.path`, or None.
        clients: Groups of clients, such as `3:acc 3:gyro 4:acc,gyro`.
        sharing: A sharing scheme.
        rounds: Number of rounds.
        partition: Such as `iid` or `dirichlet:0.5`.
    """

    name: str
    dataset: str
    path: str | None
    clients: str
    sharing: str
    rounds: int
    partition: str


def suggested(dataset: str, path: str | None, name: str) -> Choices:
    """The choices for a data set if nothing else is said: those of its packaged scenario; for a table by its columns.

    Args:
        dataset: A data set; of one that is unknown, `scaffold` tells.
        path: `data.path`, or None.
        name: What the scenario is to be called; made a valid name.
    """
    tree = _tree(dataset)
    groups = [(str(group["count"]), group["modalities"]) for group in tree["clients"]]
    partition = ":".join(str(value) for value in tree["data"]["partition"].values())
    if dataset == "table":
        columns = list(_table_shapes(path))
        alone = [("3", [column]) for column in columns] if len(columns) > 1 else []
        groups = [*alone, ("4" if alone else "10", columns)] if columns else groups
        partition = "iid"
    return Choices(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-")[:100] or "scenario",
        dataset=dataset,
        path=path,
        clients=" ".join(f"{count}:{','.join(modalities)}" for count, modalities in groups),
        sharing=tree["sharing"],
        rounds=tree["rounds"],
        partition=partition,
    )


def scaffold(choices: Choices) -> Scenario:
    """The scenario that these choices make, checked with its data.

    Raises:
        ScenarioError: With every problem found; its source is the option that it comes from.
    """
    problems = []
    if choices.dataset not in STARTING_POINTS:
        found = "is 'custom', which takes code" if choices.dataset == "custom" else shown(choices.dataset)
        near = did_you_mean(choices.dataset, STARTING_POINTS)
        problems.append(Problem("data.dataset", found, one_of(STARTING_POINTS) + near, source="--dataset"))
    groups, wrong_groups = _groups(choices.clients)
    problems += wrong_groups
    modalities = list(dict.fromkeys(name for group in groups for name in group["modalities"]))
    tree = _tree(choices.dataset)
    values: dict[str, tuple[Any, str]] = {
        "name": (choices.name, "--out"),
        "clients": (groups or tree["clients"], "--clients"),
        "sharing": (choices.sharing, "--sharing"),
        "rounds": (choices.rounds, "--rounds"),
        **_data(choices, tree, modalities),
        "data.partition": (_partition(choices.partition), "--partition"),
    }
    if groups:
        values["model.encoders"] = (_encoders(choices, tree, modalities), "--clients")
    overrides = {key: value for key, (value, _) in values.items()}
    sources = {key: source for key, (_, source) in values.items()}
    start = packaged_scenarios()[STARTING_POINTS.get(choices.dataset, "quickstart")]
    try:
        scenario = Inspector().read(start, overrides, sources)
    except ScenarioError as error:
        problems += error.problems
    if problems:
        raise ScenarioError(tuple(problems))
    return scenario


def _tree(dataset: str) -> dict[str, Any]:
    """The packaged scenario that the data set's begins as, plain."""
    path = packaged_scenarios()[STARTING_POINTS.get(dataset, "quickstart")]
    document = parse_yaml(path.read_text(encoding="utf-8"))
    assert document.root is not None, path
    tree: dict[str, Any] = document.root.plain()
    return tree


def _groups(text: str) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The groups of clients, and what is wrong with others. Counts that are no numbers are left to the scenario."""
    groups: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for word in text.split():
        count, colon, names = word.partition(":")
        if not (count and colon and names):
            problems.append(Problem("", f"has {quoted(word)}", _CLIENTS_FORM, source="--clients"))
        else:
            groups.append({"count": resolve_scalar(count), "modalities": names.split(",")})
    if not text.split():
        problems.append(Problem("", "is empty", _CLIENTS_FORM, source="--clients"))
    return groups, problems


def _partition(text: str) -> dict[str, Any]:
    kind, colon, alpha = text.partition(":")
    return {"kind": kind, "alpha": resolve_scalar(alpha)} if colon else {"kind": kind}


def _data(choices: Choices, tree: dict[str, Any], modalities: list[str]) -> dict[str, tuple[Any, str]]:
    """Values of the `data` section and of the task, with the options that they come from."""
    match choices.dataset:
        case "synthetic":
            known = tree["data"]["modalities"]
            kept = {name: known[name] for name in modalities if name in known}
            path = {} if choices.path is None else {"data.path": (choices.path, "--path")}
            return {"data.modalities": (kept, "--clients"), **path}
        case "table":
            return {
                "data": ({"dataset": "table"}, "--dataset"),
                "data.path": (choices.path, "--path"),
                "task": (_table_task(choices.path), "--path"),
            }
        case _:
            return {"data.path": (choices.path, "--path")}


def _encoders(choices: Choices, tree: dict[str, Any], modalities: Iterable[str]) -> dict[str, Any]:
    """An encoder for each modality: that of the packaged scenario, else one that suits the shape of a sample."""
    if choices.dataset == "table":
        shapes, known = _table_shapes(choices.path), {}
    else:
        known = tree["model"]["encoders"]
        shapes = {}
        if choices.dataset == "synthetic":
            shapes = input_shapes(SyntheticData(dataset="synthetic"), modalities)
    return {name: known.get(name) or _encoder(shapes.get(name, ())) for name in modalities}


def _encoder(shape: tuple[int, ...]) -> dict[str, Any]:
    """Images are convolved; sequences, too, and then read by a GRU; anything else goes through dense layers."""
    match shape:
        case (_, height, width) if min(height, width) >= 8:
            return {"kind": "conv2d", "channels": [8, 16, 32], "dim": 64}
        case (steps, _) if steps >= 8:
            return {"kind": "conv-gru", "channels": [32, 64, 128], "dim": 64}
        case (_, _):
            return {"kind": "gru", "dim": 64}
        case _:
            return {"kind": "mlp", "hidden": [64], "dim": 64}


def _table_shapes(path: str | None) -> Mapping[str, tuple[int, ...]]:
    """Shape of a sample by column; empty where the table cannot be read, which the checks of the scenario tell."""
    if path is None:
        return {}
    try:
        return Table(TableData(dataset="table", path=path), (), "classification").shapes()
    except DataError:
        return {}


def _table_task(path: str | None) -> Task:
    """The first task that a table's labels can serve."""
    for task in TASKS if path is not None else ():
        try:
            Table(TableData(dataset="table", path=str(path)), (), task).targets()
        except DataError:
            continue
        return task
    return "classification"
