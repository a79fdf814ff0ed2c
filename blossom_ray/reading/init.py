"""A first scenario from a few choices: the packaged scenario of the data set, with other clients, data and sharing.

Problems name the options of `blossom-ray init`, from which the choices come.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from blossom_ray.core.phrases import did_you_mean, listed, one_of, shown
from blossom_ray.core.scores import TASKS, Task
from blossom_ray.data.clients import HELD_OUT, SPLITS
from blossom_ray.data.modalities.suggestions import Suggestion
from blossom_ray.data.sets.synthetic import SyntheticData
from blossom_ray.data.sets.table import Table, TableData
from blossom_ray.data.table.places import FILE_SPLIT, split_of
from blossom_ray.data.targets import Targets
from blossom_ray.errors import DataError, Problem, ScenarioError
from blossom_ray.models.encoder_options import EmbeddingEncoder
from blossom_ray.reading.inspection import Inspector
from blossom_ray.reading.packaged import packaged_scenarios
from blossom_ray.reading.scenario import Scenario
from blossom_ray.reading.yaml_tree import parse_yaml, resolve_scalar
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


FROM_DATA = "from-data"
_LONGEST_NAME = 64
_LEGAL = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{_LONGEST_NAME - 1}}}")
"""As the scenario's `ModalityName`."""
_MOST_MODALITIES = 8
"""Of more, columns of plain numbers are suggested as one modality, and clients that have them all."""
_TABLE_ROUNDS = 30
_TABLE_SHARING = "full-model"
_TABLE_OPTIMIZER = {"kind": "adam", "lr": 0.003}
"""With `data.standardize`, what learned on tables of very different units and sizes; with few rows per
client, private heads did so late."""

_WITH_MEDIA = {"model.fusion.norm": "layer", "training.local_epochs": 2}
"""What learned in few rounds, and on three seeds of drawn pictures, tones and sentences. Embeddings of tokens and of
pictures differ in size, so that one of them had all the attention; group normalisation in the encoder of pictures goes
with it, since statistics over a batch of clients with a dozen samples did not learn."""


@dataclass(frozen=True)
class TableSketch:
    """What a table holds, as far as a first scenario has to know it.

    Attributes:
        modalities: By name what `data.modalities` says of each, with its column or its columns of plain numbers.
        shapes: Modality to the shape of a sample.
        left_out: Why each other column is no modality.
        num_rows: Rows that clients share.
        num_subjects: Subjects with several of them, 0 where they belong to none.
        keys: Of the `data` section, what columns ask for.
        seen: What these columns are taken for.
        task: The first task that the labels can serve, or the one that was asked for.
        class_names: Names of classes or targets.
        problems: What keeps a scenario from being written.
    """

    modalities: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    num_rows: int = 0
    num_subjects: int = 0
    keys: Mapping[str, Any] = field(default_factory=dict)
    seen: tuple[str, ...] = ()
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
        clients: Groups of clients, such as `3:acc 3:gyro 4:acc,gyro`, or `from-data`.
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


def suggest(
    dataset: str,
    path: str | None,
    name: str,
    partition: str | None = None,
    task: Task | None = None,
    label: str | None = None,
) -> Choices:
    """The choices for a data set if nothing else is said: those of its packaged scenario; for a table by its columns.

    Args:
        dataset: A data set; of one that is unknown, `scaffold` tells.
        path: `data.path`, or None.
        name: What the scenario is to be called; made a valid name.
        partition: How samples are to be divided, where that is known.
        task: What a table's labels are for; None: the first task that they can serve.
        label: The column with a table's labels; None: `label`.
    """
    tree = _tree(dataset)
    groups = [(str(group["count"]), group["modalities"]) for group in tree["clients"]]
    usual = ":".join(str(value) for value in tree["data"]["partition"].values())
    table, clients, sharing, rounds = TableSketch(), "", tree["sharing"], tree["rounds"]
    if dataset == "table":
        table = _sketch(path, partition, task, label)
        groups = _table_groups(table) or groups
        usual = table.keys.get("partition", "iid")
        clients = FROM_DATA if usual == "given" else ""
        sharing, rounds = _TABLE_SHARING, _TABLE_ROUNDS
    return Choices(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-")[:100] or "scenario",
        dataset=dataset,
        path=path,
        clients=clients or " ".join(f"{count}:{','.join(modalities)}" for count, modalities in groups),
        sharing=sharing,
        rounds=rounds,
        partition=partition or usual,
        table=table,
    )


def scaffold(choices: Choices) -> Scenario:
    """The scenario that these choices make, checked with its data.

    Raises:
        ScenarioError: With every problem found; its source is the option that it comes from.
    """
    problems, table = [], choices.table
    if choices.dataset not in STARTING_POINTS:
        found = "is 'custom', which takes code" if choices.dataset == "custom" else shown(choices.dataset)
        near = did_you_mean(choices.dataset, STARTING_POINTS)
        problems.append(Problem("data.dataset", found, one_of(STARTING_POINTS) + near, source="--dataset"))
    tree = _tree(choices.dataset)
    clients: Any = FROM_DATA
    modalities = list(table.modalities)
    if choices.clients.strip() != FROM_DATA:
        groups, wrong_groups = _groups(choices.clients)
        problems += wrong_groups
        clients = groups or tree["clients"]
        modalities = list(dict.fromkeys(name for group in groups for name in group["modalities"]))
    if table.problems:  # anything else would follow from them
        raise ScenarioError((*problems, *table.problems))
    values: dict[str, tuple[Any, str]] = {
        "name": (choices.name, "--out"),
        "clients": (clients, "--clients"),
        "sharing": (choices.sharing, "--sharing"),
        "rounds": (choices.rounds, "--rounds"),
    }
    shapes, encoders = table.shapes, tree["model"]["encoders"]
    if choices.dataset == "table":
        section, encoders = {"dataset": "table", **_modalities_section(table, modalities)}, {}
        section |= {key: value for key, value in table.keys.items() if key != "partition"}
        values |= {"data": (section, "--dataset"), "task": (table.task, "--path")}
        values["training.optimizer"] = (_TABLE_OPTIMIZER, "--dataset")
        if any("kind" in table.modalities.get(name, ()) for name in modalities):
            values |= {key: (value, "--dataset") for key, value in _WITH_MEDIA.items()}
    elif choices.dataset == "synthetic":
        shapes, known = SyntheticData(dataset="synthetic").input_shapes(modalities), tree["data"]["modalities"]
        values["data.modalities"] = ({name: known[name] for name in modalities if name in known}, "--clients")
    if choices.path is not None or choices.dataset != "synthetic":
        values["data.path"] = (choices.path, "--path")
    kind, colon, alpha = choices.partition.partition(":")
    partition = {"kind": kind, **({"alpha": resolve_scalar(alpha)} if colon else {})}
    values["data.partition"] = (partition, "--partition")
    if modalities:
        # That of the packaged scenario, else one that suits the shape of a sample.
        kinds = {name: told.get("kind", "numbers") for name, told in table.modalities.items()}
        chosen = {name: encoders.get(name) or _encoder(shapes.get(name, ()), kinds.get(name)) for name in modalities}
        values["model.encoders"] = (chosen, "--clients")
    overrides = {key: value for key, (value, _) in values.items()}
    sources = {key: source for key, (_, source) in values.items()}
    start = packaged_scenarios()[STARTING_POINTS.get(choices.dataset, "quickstart")]
    try:
        scenario = Inspector().read(start, overrides, sources)
    except ScenarioError as error:
        problems += error.problems
    if problems:
        raise ScenarioError(tuple(problems))
    # How many numbers of tokens there are stays with the data, whose options can then be changed alone.
    unsettled = {
        name: EmbeddingEncoder(kind="embedding") if isinstance(section, EmbeddingEncoder) else section
        for name, section in scenario.model.encoders.items()
    }
    return scenario.model_copy(update={"model": scenario.model.model_copy(update={"encoders": unsettled})})


def _tree(dataset: str) -> dict[str, Any]:
    """The packaged scenario that the data set's begins as, plain."""
    path = packaged_scenarios()[STARTING_POINTS.get(dataset, "quickstart")]
    document = parse_yaml(path.read_text(encoding="utf-8"))
    assert document.root is not None, path
    tree: dict[str, Any] = document.root.plain()
    return tree


def _groups(text: str) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The groups of clients, and what is wrong with others. Counts that are no numbers are left to the scenario."""
    words = text.split()
    right = [word for word in words if re.fullmatch(r"[^:]+:.+", word)]
    parts = [word.partition(":") for word in right]
    groups = [{"count": resolve_scalar(count), "modalities": names.split(",")} for count, _, names in parts]
    wrong = [f"has {quoted(word)}" for word in words if word not in right] if words else ["is empty"]
    return groups, [Problem("", found, _CLIENTS_FORM, source="--clients") for found in wrong]


def _modalities_section(table: TableSketch, modalities: Collection[str]) -> dict[str, Any]:
    """What the `data` section says of a table's modalities: nothing of those whose column has their name."""
    told = {name: dict(table.modalities[name]) for name in modalities if name in table.modalities}
    # Tokens are no numbers to be scaled, and pictures have a scale: where there are such, each modality has its own.
    is_own = any("kind" in section for section in told.values())
    for name, section in told.items():
        if section["column"] == name:
            del section["column"]
        if is_own and "kind" not in section:
            section |= {"scale": "standard", "over": "all"}
    told = {name: section for name, section in told.items() if section}
    return {**({"modalities": told} if told else {}), **({} if is_own else {"standardize": True})}


def _encoder(shape: tuple[int, ...], kind: str | None = None) -> dict[str, Any]:
    """Tokens are embedded; images convolved; sequences, too, and then read by a GRU; else there are dense layers."""
    match shape:
        case _ if kind == "text":
            return {"kind": "embedding"}
        case (_, height, width) if kind in ("image", "audio"):
            # Halved until few places are left.
            channels = [8, 16, 32, 64][: max(2, round(math.log2(min(height, width))) - 2)]
            return {"kind": "conv2d", "channels": channels, "norm": "group", "dim": 64}
        case (_, height, width) if min(height, width) >= 8:
            return {"kind": "conv2d", "channels": [8, 16, 32], "dim": 64}
        case (steps, _) if steps >= 8:
            return {"kind": "conv-gru", "channels": [32, 64, 128], "dim": 64}
        case (_, _):
            return {"kind": "gru", "dim": 64}
        case _:
            return {"kind": "mlp", "hidden": [64], "dim": 64}


def _table_groups(table: TableSketch) -> list[tuple[str, list[str]]]:
    """Groups of clients: some with each modality, some with all; as many as there is something to divide for."""
    names = list(table.modalities)
    most = table.num_subjects if table.keys.get("partition") == "subject" else table.num_rows // 2
    if len(names) in range(2, _MOST_MODALITIES + 1):
        for alone, together in ((3, 4), (1, 1)):
            if alone * len(names) + together <= most:
                return [*((str(alone), [name]) for name in names), (str(together), names)]
    return [(str(min(10, max(1, most))), names)] if names else []


def _sketch(path: str | None, partition: str | None, task: Task | None, label: str | None) -> TableSketch:
    """What the table at a path holds; nothing where it cannot be read, which the checks of the scenario tell."""
    if path is None:
        return TableSketch()
    try:
        keys = _keys(path, partition, {} if label is None else {"label_column": label})
        keys |= _split_keys(_table(path, "classification", keys), keys)
        table = _table(path, "classification", keys)
        shapes, suggestions, reasons = table.columns()
        whole = [column for column, shape in shapes.items() if shape == () and table.rows.is_whole(column)]
    except DataError:
        return TableSketch()
    told = [*reasons.values()]
    if 0 < len(whole) < len(shapes):  # where there is nothing else, they are what there is to learn from
        shapes = {column: shape for column, shape in shapes.items() if column not in whole}
        told.append(f"{listed(whole)}: whole numbers, as ids and counts are; data.modalities takes what is measured")
    modalities = _modalities(shapes, suggestions)
    columns = {name: section["column"] for name, section in modalities.items()}
    sketch = TableSketch(
        modalities=modalities,
        shapes={name: shapes[column] if isinstance(column, str) else () for name, column in columns.items()},
        left_out=tuple(told),
        keys=keys,
        seen=(
            *(f"{column}: {found.seen} ({_options(found)})" for column, found in suggestions.items()),
            *(
                f"split {own!r}: read as {split} (data.split_names)"
                for own, split in keys.get("split_names", {}).items()
            ),
        ),
    )
    refused: dict[tuple[str, str], list[str]] = {}
    for each in TASKS if task is None else (task,):
        table = _table(path, each, keys, modalities)
        try:
            targets = table.targets()
        except DataError as error:
            found, _, expected = str(error).partition("; expected ")
            refused.setdefault((found, expected), []).append(each)
        else:
            if modalities:
                sketch = replace(sketch, num_rows=len(targets.labels), task=each, class_names=table.class_names)
                return _with_subjects(sketch, targets, partition)
            found = f"is {path!r}, which has no column for a modality" + "".join(f"; {reason}" for reason in told)
            return replace(sketch, problems=(Problem("data.path", found, "a column of numbers", source="--path"),))
    problems = []
    for (found, expected), tasks in refused.items():
        note = f"for task: {', '.join(tasks)}" if len(refused) > 1 else None
        if "has no column 'label'" in found:
            note = "--label names another column"
        problems.append(Problem("data.path", f"is {path!r}: {found}", expected, source="--path", note=note))
    return replace(sketch, problems=tuple(problems))


def _keys(path: str, partition: str | None, labels: Mapping[str, Any]) -> dict[str, Any]:
    """What the columns of a table ask for in the `data` section, `partition` by its kind alone, besides its labels."""
    names = _table(path, "classification", {}).rows.names
    by_recording = {**labels, **({"split": "recording"} if "recording" in names else {})}
    if partition not in (None, "given"):
        return by_recording
    if "client" in names:
        return {"partition": "given", **by_recording}
    if "subject" not in names:
        return by_recording
    by_subject = {"partition": "given", "client_column": "subject", **by_recording}
    if partition == "given":
        return by_subject
    # A subject that lacks a modality is a client that lacks it; else subjects can be dealt to any clients. Splits that
    # leave a subject none to train on are about a held-out set.
    shapes, suggestions, _ = _table(path, "classification", labels).columns()
    modalities = _modalities(shapes, suggestions)
    try:
        given = _table(path, "classification", by_subject, modalities).given_clients if modalities else None
    except DataError:
        given = None
    return by_recording if given is None or len(given.members()) == 1 else by_subject


def _split_keys(table: Table, keys: Mapping[str, Any]) -> dict[str, Any]:
    """What splits ask for: rows to validate on are shared, too, where clients have no splits of their own."""
    column = next((name for name in ("split", FILE_SPLIT) if name in table.rows.names), None)
    if column is None:
        return {}
    found = {"split_column": column} if column == FILE_SPLIT else {}
    if keys.get("partition") == "given":
        return found
    meant = {value: split_of(value) for value in table.rows.values(column).distinct if isinstance(value, str)}
    others = {value: split for value, split in meant.items() if split and value not in ("train", "test", HELD_OUT)}
    shared = {value: "train" if split == "validation" else split for value, split in others.items()}
    return {**found, **({"split_names": shared} if shared else {})}


def _with_subjects(sketch: TableSketch, targets: Targets, partition: str | None) -> TableSketch:
    """The sketch with what its rows say of clients, subjects, recordings and splits."""
    keys, seen = dict(sketch.keys), [*sketch.seen]
    if targets.observed:
        keys["without_modality"] = "leave-out"
    # With a row to train on and one to test on, a subject makes a client.
    sizes = np.unique(targets.subjects, return_counts=True)[1] if targets.subjects is not None else np.zeros(0)
    num_subjects = int((sizes > 1).sum())
    given = targets.clients
    if given is not None:
        column = keys.get("client_column", "client")
        sets = [f"{len(clients)} with {'+'.join(own)}" for own, clients in given.members().items()]
        seen.append(f"{column}: {len(given.names)} clients, {listed(sets)}")
        if given.splits is not None:
            counts = zip(SPLITS, np.bincount(given.splits, minlength=len(SPLITS)).tolist(), strict=True)
            seen.append(f"split: {listed(f'{count:,} {name}' for name, count in counts)} rows")
    elif num_subjects > 1 and partition is None:
        keys["partition"] = "subject"
        seen.append(f"subject: {len(sizes):,} subjects, each whole with one client")
    if targets.recordings is not None:
        num_recordings = len(np.unique(targets.recordings))
        seen.append(f"recording: {num_recordings:,} recordings, each whole in one split (data.split: recording)")
    return replace(sketch, keys=keys, num_subjects=num_subjects, seen=tuple(seen))


def _options(found: Suggestion) -> str:
    """A suggested section in words."""
    return ", ".join(f"{key}: {value}" for key, value in found.section.items())


def _table(
    path: str, task: Task, keys: Mapping[str, Any], modalities: Mapping[str, Any] = MappingProxyType({})
) -> Table:
    """A table with these modalities, by name what `data.modalities` says of each."""
    section: dict[str, Any] = {"dataset": "table", "path": path, **keys, "modalities": {**modalities}}
    section["partition"] = {"kind": keys.get("partition", "iid")}
    return TableData.model_validate(section).open(tuple(modalities), 0, task)


def _modalities(
    shapes: Mapping[str, tuple[int, ...]], suggestions: Mapping[str, Suggestion]
) -> dict[str, dict[str, Any]]:
    """By name what `data.modalities` says: a column of that name where it is a legal one, else of one like it."""
    plain = [column for column, shape in shapes.items() if shape == ()]
    are_joined = len(shapes) > _MOST_MODALITIES and len(plain) > 1
    sources = [column for column in shapes if not (are_joined and column in plain)]
    taken = {column for column in sources if _LEGAL.fullmatch(column)}
    found: dict[str, dict[str, Any]] = {}
    for column in sources:
        section = suggestions[column].section if column in suggestions else {}
        found[column if column in taken else _new_name(column, {*taken, *found})] = {**section, "column": column}
    if are_joined:
        found[_new_name("numbers", found)] = {"column": plain}
    return found


def _new_name(column: str, taken: Collection[str]) -> str:
    """A legal name like a column's that no other modality has."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", column).strip("_.-")[:_LONGEST_NAME] or "column"
    names = (name, *(f"{name[: _LONGEST_NAME - 8]}_{number}" for number in range(2, len(taken) + 3)))
    return next(candidate for candidate in names if candidate not in taken)
