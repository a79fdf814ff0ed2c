"""What holds for each data set of the union `Data`; a new one needs a small copy in `downloads.py` and no line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from downloads import DOWNLOADS, uci_har

from blossom_ray import from_arrays, write_table
from blossom_ray.core.scores import TASKS, Task
from blossom_ray.core.section import find_conflicts
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.options import SECTIONS
from blossom_ray.data.sets.base import DataSection, Download
from blossom_ray.data.sets.table import TableData
from blossom_ray.errors import DataError

SMALL: Mapping[str, Callable[[Path], Path]] = {**DOWNLOADS, "uci-har": uci_har}
DOWNLOADED = [name for name, section in SECTIONS.items() if issubclass(section, Download)]
LABELS: Mapping[Task, Any] = {
    "classification": ["sit", "walk"] * 12,
    "multilabel": [[0.0, 1.0], [1.0, 1.0]] * 12,
    "regression": np.arange(24) / 7,
}


def own_data(task: Task) -> Dataset:
    inputs = {name: np.arange(24 * 6, dtype=np.float32).reshape(24, 2, 3) for name in ("acc", "gyro")}
    return from_arrays(inputs, LABELS[task], task=task, subjects=np.arange(24) // 6, recordings=np.arange(24) // 3)


def section_of(name: str, task: Task, folder: Path) -> DataSection:
    """A section that names a small copy, or makes one."""
    folder.mkdir(exist_ok=True)
    options: dict[str, Any] = {"dataset": name}
    match name:
        case "synthetic":
            options |= {"samples": 24, "held_out_samples": 12, "subjects": 3}
        case "table":
            options["path"] = str(write_table(own_data(task), folder / "rows.arrow"))
        case "custom":
            options["factory"] = lambda: own_data(task)
        case _:
            options["path"] = str(SMALL[name](folder))
            if name == "ptb-xl" and task == "multilabel":
                options["labels"] = "multi"
    return SECTIONS[name].model_validate(options)


def modalities_of(section: DataSection) -> tuple[str, ...]:
    return tuple(section.shapes) if isinstance(section, Download) else ("acc", "gyro")


def one_line(error: pytest.ExceptionInfo[DataError]) -> str:
    (line,) = str(error.value).splitlines()
    return line


@pytest.mark.parametrize("name", SECTIONS)
def test_facts_are_whole(name: str) -> None:
    section = SECTIONS[name]
    facts = section.facts
    assert all((facts.title, facts.holds, facts.classes, facts.held_out))
    assert facts.tasks
    assert set(facts.tasks) <= set(TASKS)
    assert (section.__doc__ or "").strip()
    if issubclass(section, Download):
        assert all((facts.download, facts.page, facts.licence, facts.shapes, section.landmarks))
        assert name in SMALL
        assert section.model_validate({"dataset": name}).shapes == facts.shapes


@pytest.mark.parametrize(
    ("name", "task"), [(name, task) for name, kind in SECTIONS.items() for task in kind.facts.tasks]
)
def test_what_is_opened_is_what_was_announced(name: str, task: Task, tmp_path: Path) -> None:
    section = section_of(name, task, tmp_path / "files")
    assert [*find_conflicts(section, "data"), *section.task_problems(task)] == []
    modalities = modalities_of(section)
    source = section.open(modalities[::-1], 0, task)
    assert source.modalities == tuple(sorted(modalities))
    targets, dataset = source.targets(), section.open(modalities, 0, task).load()
    dataset.check_task(task)
    assert sorted(dataset.inputs) == sorted(modalities)
    told = section.input_shapes((*modalities, "of no data set"))
    assert {modality: dataset.input_shapes[modality] for modality in modalities if modality in told} == {
        modality: shape for modality, shape in told.items() if modality in modalities
    }
    assert told or isinstance(section, TableData) or name == "custom"
    np.testing.assert_array_equal(targets.labels, dataset.targets.labels)
    assert targets.num_classes == dataset.targets.num_classes
    for asked, found in ((targets.subjects, dataset.subjects), (targets.recordings, dataset.recordings)):
        assert (asked is None) == (found is None)
        if asked is not None:
            np.testing.assert_array_equal(asked, found)
    assert dataset.held_out is None or dataset.held_out.input_shapes == dataset.input_shapes
    if section.num_subjects is not None and dataset.subjects is not None:
        assert len(np.unique(dataset.subjects)) <= section.num_subjects
    alone = section.open(modalities[:1], 0, task).load()
    assert sorted(alone.inputs) == [modalities[0]]
    np.testing.assert_array_equal(alone.inputs[modalities[0]], dataset.inputs[modalities[0]])
    # As a table it is the same data set, its recordings included.
    path = write_table(dataset, tmp_path / "as.arrow")
    table = TableData(dataset="table", path=str(path), class_names=dataset.class_names)
    read = table.open(modalities, 0, task).load()
    assert read.fingerprint() == dataset.fingerprint()
    assert read.left_out == dataset.left_out
    assert (read.pieces is None) == (dataset.pieces is None)
    if read.pieces is not None and dataset.pieces is not None:
        np.testing.assert_array_equal(read.pieces.recordings, dataset.pieces.recordings)
        assert read.pieces.overlap == dataset.pieces.overlap


@pytest.mark.parametrize("name", DOWNLOADED)
def test_what_is_no_copy_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    section, facts = SECTIONS[name], SECTIONS[name].facts
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.zip").write_text("no zip")
    for place in ("nowhere", "empty", "notes.zip"):
        given = section.model_validate({"dataset": name, "path": str(tmp_path / place)})
        source = given.open(tuple(facts.shapes), 0, facts.tasks[0])  # looks at nothing yet
        for read in (source.targets, source.load):
            with pytest.raises(DataError) as error:
                read()
            assert place in one_line(error)
        path, found, expected = given.problem(error.value)
        assert (path, expected) == ("data.path", facts.download)
        assert place in found
    with pytest.raises(DataError) as error:
        given.open(("of no data set",), 0, facts.tasks[0])
    assert one_line(error).startswith(f"{name} has no modality 'of no data set'; expected some of")
    missing = section.model_validate({"dataset": name})
    with pytest.raises(DataError) as error:
        missing.open(tuple(facts.shapes), 0, facts.tasks[0])
    assert one_line(error) == f"data.path is missing; expected {facts.download}; get it from {facts.page}"
    ((key, _, _),) = find_conflicts(missing, "data")
    assert key == "data.path"
    nobody = section.model_validate({"dataset": name, "path": "~nobody-of-that-name/x"})
    with pytest.raises(DataError, match=r"^~nobody-of-that-name/x: .*; expected"):
        nobody.open(tuple(facts.shapes), 0, facts.tasks[0])
