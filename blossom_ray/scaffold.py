"""A first scenario from a few choices: the packaged scenario of the data set, with other clients, data and sharing.

Problems name the options of `blossom-ray init`, from which the choices come.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
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


_LONGEST_NAME = 64
_LEGAL = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{_LONGEST_NAME - 1}}}")
"""As the scenario's `ModalityName`."""
_MOST_MODALITIES = 8
"""Of more, columns of plain numbers are suggested as one modality, and clients that have them all."""


@dataclass(frozen=True)
class TableSketch:
    """What a table holds, as far as a first scenario has to know it.

    Attributes:
        columns: Modality to its column, or its columns of plain numbers.
        shapes: Modality to the shape of a sample.
        left_out: Why each other column is no modality.
        num_rows: Rows that clients share.
        task: The first task that the labels can serve.
        class_names: Names of classes or targets.
        problems: What keeps a scenario from being written.
    """

    columns: Mapping[str, str | list[str]] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    num_rows: int = 0
    task: Task = "classification"
    class_names: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


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
        table: What the table at the path holds.
    """

    name: str
    dataset: str
    path: str | None
    clients: str
    sharing: str
    rounds: int
    partition: str
    table: TableSketch = TableSketch()


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
    table = TableSketch()
    if dataset == "table":
        table = _sketch(path)
        groups = _table_groups(table) or groups
        partition = "iid"
    return Choices(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-")[:100] or "scenario",
        dataset=dataset,
        path=path,
        clients=" ".join(f"{count}:{','.join(modalities)}" for count, modalities in groups),
        sharing=tree["sharing"],
        rounds=tree["rounds"],
        partition=partition,
        table=table,
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
    problems += [*wrong_groups, *choices.table.problems]
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
    if choices.table.problems:  # anything else would follow from them
        raise ScenarioError(tuple(problems))
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
            columns = choices.table.columns
            renamed = {name: {"column": columns[name]} for name in modalities if columns.get(name, name) != name}
            return {
                "data": ({"dataset": "table", **({"modalities": renamed} if renamed else {})}, "--dataset"),
                "data.path": (choices.path, "--path"),
                "task": (choices.table.task, "--path"),
            }
        case _:
            return {"data.path": (choices.path, "--path")}


def _encoders(choices: Choices, tree: dict[str, Any], modalities: Iterable[str]) -> dict[str, Any]:
    """An encoder for each modality: that of the packaged scenario, else one that suits the shape of a sample."""
    if choices.dataset == "table":
        shapes, known = choices.table.shapes, {}
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


def _table_groups(table: TableSketch) -> list[tuple[str, list[str]]]:
    """Groups of clients: some with each modality, some with all; as many as there are rows to train and test with."""
    names = list(table.columns)
    if len(names) in range(2, _MOST_MODALITIES + 1):
        for alone, together in ((3, 4), (1, 1)):
            if 2 * (alone * len(names) + together) <= table.num_rows:
                return [*((str(alone), [name]) for name in names), (str(together), names)]
    return [(str(min(10, max(1, table.num_rows // 2))), names)] if names else []


def _sketch(path: str | None) -> TableSketch:
    """What the table at a path holds; nothing where it cannot be read, which the checks of the scenario tell."""
    if path is None:
        return TableSketch()
    try:
        shapes, reasons = _table(path, "classification").columns()
    except DataError:
        return TableSketch()
    columns = _modalities(shapes)
    sketch = TableSketch(
        columns=columns,
        shapes={name: shapes[column] if isinstance(column, str) else () for name, column in columns.items()},
        left_out=tuple(reasons.values()),
    )
    refused: dict[tuple[str, str], list[str]] = {}
    for task in TASKS:
        table = _table(path, task)
        try:
            num_rows = len(table.targets().labels)
        except DataError as error:
            found, _, expected = str(error).partition("; expected ")
            refused.setdefault((found, expected), []).append(task)
        else:
            if columns:
                return replace(sketch, num_rows=num_rows, task=task, class_names=table.class_names)
            found = f"is {path!r}, which has no column for a modality" + "".join(
                f"; {reason}" for reason in reasons.values()
            )
            return replace(sketch, problems=(Problem("data.path", found, "a column of numbers", source="--path"),))
    problems = []
    for (found, expected), tasks in refused.items():
        note = f"for task: {', '.join(tasks)}" if len(refused) > 1 else None
        if "has no column 'label'" in found:
            note = "a scenario names another column as data.label_column"
        problems.append(Problem("data.path", f"is {path!r}: {found}", expected, source="--path", note=note))
    return replace(sketch, problems=tuple(problems))


def _table(path: str, task: Task) -> Table:
    return Table(TableData(dataset="table", path=path), (), task)


def _modalities(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str | list[str]]:
    """Modality to column: of its name where that is a legal one, else of one like it."""
    plain = [column for column, shape in shapes.items() if shape == ()]
    are_joined = len(shapes) > _MOST_MODALITIES and len(plain) > 1
    sources = [column for column in shapes if not (are_joined and column in plain)]
    taken = {column for column in sources if _LEGAL.fullmatch(column)}
    found: dict[str, str | list[str]] = {}
    for column in sources:
        found[column if column in taken else _new_name(column, {*taken, *found})] = column
    if are_joined:
        found[_new_name("numbers", found)] = plain
    return found


def _new_name(column: str, taken: Collection[str]) -> str:
    """A legal name like a column's that no other modality has."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", column).strip("_.-")[:_LONGEST_NAME] or "column"
    names = (name, *(f"{name[: _LONGEST_NAME - 8]}_{number}" for number in range(2, len(taken) + 3)))
    return next(candidate for candidate in names if candidate not in taken)
