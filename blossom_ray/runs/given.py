"""A data set that a program gives to `simulate`, put in the place of the scenario's `data` section."""

from __future__ import annotations

import hashlib
from pathlib import Path

from blossom_ray.data.dataset import Dataset
from blossom_ray.data.division.options import GivenPartition
from blossom_ray.data.sets.custom import CustomData
from blossom_ray.data.sets.table import TableData
from blossom_ray.data.table.writer import write_table
from blossom_ray.errors import DataError, Problem, ScenarioError
from blossom_ray.reading.scenario import Scenario


def with_dataset(scenario: Scenario, dataset: Dataset) -> Scenario:
    """The scenario with this data set, for a run in this process.

    Raises:
        ScenarioError: The scenario's `data` names another data set.
        DataError: It is no `Dataset`.
    """
    section = _section(scenario, dataset)
    return scenario.model_copy(update={"data": section.model_copy(update={"factory": lambda: dataset})})


def with_table(scenario: Scenario, dataset: Dataset, folder: Path) -> Scenario:
    """The scenario with this data set as a file, which other processes read and a run can be resumed from.

    The file is named after the data's fingerprint, what is left out and what samples are pieces of, so runs on the
    same data share it.

    Args:
        scenario: With `data: {dataset: custom}` and no factory.
        dataset: The data set.
        folder: Where the file is, or is written.

    Raises:
        ScenarioError: The scenario's `data` names another data set.
        DataError: It is no `Dataset`.
        RunFolderError: The file cannot be written.
    """
    section = _section(scenario, dataset)
    if not isinstance(section.partition, GivenPartition):
        dataset = dataset.without_clients()
    name = dataset.fingerprint()
    if dataset.label_columns:
        prints = [dataset.labelled(column).fingerprint() for column in dataset.label_columns]
        name = hashlib.sha256("".join([name, *prints]).encode()).hexdigest()
    if dataset.left_out:
        name = hashlib.sha256(f"{name}{dataset.left_out}".encode()).hexdigest()
    if dataset.pieces is not None:
        told = name.encode() + dataset.pieces.recordings.tobytes() + repr(dataset.pieces.overlap).encode()
        name = hashlib.sha256(told).hexdigest()
    path = folder.absolute() / f"data-{name[:16]}.arrow"
    if not path.exists():
        write_table(dataset, path)
    shared = (CustomData.model_fields.keys() & TableData.model_fields.keys()) - {"dataset"}
    table = TableData(
        dataset="table",
        path=str(path),
        class_names=dataset.class_names,
        **{key: getattr(section, key) for key in sorted(shared)},
    )
    return scenario.model_copy(update={"data": table})


def _section(scenario: Scenario, dataset: Dataset) -> CustomData:
    if not isinstance(dataset, Dataset):
        raise DataError(f"data is of type {type(dataset).__name__}; expected a blossom_ray.Dataset")
    section = scenario.data
    if not isinstance(section, CustomData) or section.factory is not None:
        found = "names another data set" if isinstance(section, CustomData) else f"is {section.dataset!r}"
        path = "data.factory" if isinstance(section, CustomData) else "data.dataset"
        expected = "'custom' without a factory, since a data set is given to simulate"
        raise ScenarioError((Problem(path, found, expected),))
    return section
