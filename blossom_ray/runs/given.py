"""Data sets that a program gives to `simulate`, put in the place of the scenario's own custom ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from blossom_ray.core.phrases import listed
from blossom_ray.core.section import plain_tree
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.division.options import GivenPartition
from blossom_ray.data.modalities.numbers import NumbersModality
from blossom_ray.data.options import AnyData
from blossom_ray.data.sets.custom import CustomData
from blossom_ray.data.sets.table import TableData
from blossom_ray.data.table.writer import write_table
from blossom_ray.errors import DataError, Problem, ScenarioError
from blossom_ray.reading.scenario import Scenario

Given = Dataset | Mapping[str, Dataset]
"""The data set of a scenario, or several by their names in `datasets`."""


def with_dataset(scenario: Scenario, given: Given) -> Scenario:
    """The scenario with these data sets, for a run in this process.

    Raises:
        ScenarioError: The scenario names another data set.
        DataError: It is no `Dataset`, or none of the scenario's.
    """

    def in_memory(section: CustomData, dataset: Dataset) -> CustomData:
        return section.model_copy(update={"factory": lambda: dataset})

    return _with_sections(scenario, given, in_memory)


def with_table(scenario: Scenario, given: Given, folder: Path) -> Scenario:
    """The scenario with these data sets as files, which other processes read and a run can be resumed from.

    A file is named after the data's fingerprint, what is left out and what samples are pieces of, so runs on the
    same data share it.

    Args:
        scenario: With `dataset: custom` and no factory in their places.
        given: The data sets.
        folder: Where the files are, or are written.

    Raises:
        ScenarioError: The scenario names another data set.
        DataError: It is no `Dataset`, or none of the scenario's.
        RunFolderError: A file cannot be written.
    """
    return _with_sections(scenario, given, lambda section, dataset: _table(section, dataset, folder))


def _with_sections(
    scenario: Scenario, given: Given, section_with: Callable[[CustomData, Dataset], AnyData]
) -> Scenario:
    if not isinstance(given, Mapping):
        if scenario.datasets is not None:
            raise DataError(
                f"data is one data set, while there are the datasets {listed(scenario.datasets)}; expected "
                "a mapping from their names"
            )
        return scenario.model_copy(update={"data": section_with(_section(scenario.data, "data", given), given)})
    datasets = dict(scenario.datasets or {})
    for name, dataset in given.items():
        if name not in datasets:
            expected = f"some of {listed(datasets)}" if datasets else "a blossom_ray.Dataset for `data`"
            raise DataError(f"data has a data set {name!r}; expected {expected}")
        datasets[name] = section_with(_section(datasets[name], f"datasets.{name}", dataset), dataset)
    return scenario.model_copy(update={"datasets": datasets})


def _table(section: CustomData, dataset: Dataset, folder: Path) -> TableData:
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
    shared = (CustomData.model_fields.keys() & TableData.model_fields.keys()) - {"dataset", "modalities"}
    scaling = {name: plain_tree(own, defaults=False) for name, own in (section.modalities or {}).items()}
    return TableData(
        dataset="table",
        path=str(path),
        class_names=dataset.class_names,
        modalities={name: NumbersModality(**own) for name, own in scaling.items()},
        **{key: getattr(section, key) for key in sorted(shared)},
    )


def _section(section: object, place: str, dataset: object) -> CustomData:
    if not isinstance(dataset, Dataset):
        raise DataError(f"data is of type {type(dataset).__name__}; expected a blossom_ray.Dataset")
    if not isinstance(section, CustomData) or section.factory is not None:
        found = (
            "names another data set" if isinstance(section, CustomData) else f"is {getattr(section, 'dataset', None)!r}"
        )
        path = f"{place}.factory" if isinstance(section, CustomData) else f"{place}.dataset"
        expected = "'custom' without a factory, since a data set is given to simulate"
        raise ScenarioError((Problem(path, found, expected),))
    return section
