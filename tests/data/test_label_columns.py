"""Label columns by name, which the tasks of a federation name: those of every data set, of tables, and from arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_every_data_set import DOWNLOADED, modalities_of, section_of

from blossom_ray import Scenario, ScenarioError, from_arrays, simulate, write_table
from blossom_ray.core.scores import LearnedTask
from blossom_ray.data.dataset import Dataset, LabelColumn
from blossom_ray.data.options import SECTIONS
from blossom_ray.data.sets.table import TableData
from blossom_ray.errors import DataError
from blossom_ray.runs.given import with_table

INPUTS = {"acc": np.arange(12, dtype=np.float32).reshape(6, 2)}


@pytest.mark.parametrize("name", [*DOWNLOADED, "synthetic"])
def test_every_data_set_has_the_labels_that_it_announces(name: str, tmp_path: Path) -> None:
    known = SECTIONS[name].facts.labels
    section = section_of(name, "classification", tmp_path / "small")
    loaded = section.open_learned(modalities_of(section), 0, {"one": LearnedTask()}).load()
    assert section.labelled(loaded, next(iter(known))) is loaded
    for labels, tasks in known.items():
        if labels != "subject" or loaded.subjects is not None:
            assert section.labelled(loaded, labels).task in tasks


def test_amplitudes_of_generated_data_are_those_that_the_samples_have() -> None:
    """Without noise's share a sample is its amplitude times the pattern of its class: their ratios are known."""
    loud = {"acc": {"shape": [40, 2], "signal": 1e4}, "gyro": {"shape": [40, 2], "signal": 1e4}}
    section = SECTIONS["synthetic"].model_validate({"dataset": "synthetic", "samples": 60, "modalities": loud})
    dataset = section.open_learned(("acc", "gyro"), 3, {"one": LearnedTask()}).load()
    amplitudes = section.labelled(dataset, "amplitude")
    assert amplitudes.class_names == ("acc", "gyro")
    for place, name in enumerate(("acc", "gyro")):
        rows = np.flatnonzero(dataset.labels == 2)
        sizes = np.sqrt(np.square(dataset.inputs[name][rows]).mean(axis=(1, 2)))
        found = amplitudes.labels[rows, place]
        np.testing.assert_allclose(sizes / sizes[0], found / found[0], rtol=1e-3)


def test_subjects_are_labels_of_any_data_set_and_of_the_held_out_set_where_it_has_no_others() -> None:
    held_out = Dataset(INPUTS, np.zeros(6, np.int64), ("a",), subjects=np.array([7, 7, 3, 3, 3, 7]))
    dataset = replace(held_out, subjects=np.array([3, 3, 7, 7, 7, 9]), held_out=held_out)
    labelled = dataset.labelled("subject")
    assert (labelled.labels.tolist(), labelled.class_names) == ([0, 0, 1, 1, 1, 2], ("3", "7", "9"))
    assert labelled.held_out is not None
    assert labelled.held_out.labels.tolist() == [1, 1, 0, 0, 0, 1]
    stranger = replace(held_out, subjects=np.array([7, 7, 3, 3, 3, 4]))
    assert replace(dataset, held_out=stranger).labelled("subject").held_out is None
    with pytest.raises(DataError, match=r"the data set has no labels 'speaker'; expected subject"):
        dataset.labelled("speaker")


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (LabelColumn(np.array([0, 1, 2]), ("a", "b", "c")), "labels 'more' have shape (3,); expected 6 rows"),
        (LabelColumn(np.arange(6), ("a", "b")), "labels 'more' run from 0 to 5; expected 0 to 1"),
        (LabelColumn(np.full((6, 1), np.nan, np.float32), ("t",)), "labels 'more', row 0: a value is not finite"),
    ],
)
def test_a_wrong_column_is_named(column: LabelColumn, told: str) -> None:
    with pytest.raises(DataError) as raised:
        Dataset(INPUTS, np.zeros(6, np.int64), ("a",), label_columns={"more": column})
    assert told in str(raised.value)


def test_columns_from_arrays_follow_their_rows() -> None:
    splits = ["train", "test", "train", "train", "test", "train"]
    columns = {"effort": ([0.5, 1, 2, 3, 4, 5], "regression"), "who": (list("abcabc"), "classification")}
    dataset = from_arrays(INPUTS, list("xyxyxy"), splits=splits, label_columns=columns)
    assert dataset.labelled("effort").labels[:, 0].tolist() == [0.5, 2, 3, 5]
    who = dataset.labelled("who")
    assert (who.labels.tolist(), who.class_names) == ([0, 2, 0, 2], ("a", "b", "c"))
    assert who.held_out is not None
    assert who.held_out.labels.tolist() == [1, 1]
    assert who.fingerprint() != dataset.fingerprint() != dataset.labelled("effort").fingerprint()


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"who": (["a", "b"], "classification")}, "labels 'who' have 2 rows; expected 6, as many as labels"),
        ({"who": ([None] * 6, "classification")}, "labels 'who', row 0 is null; expected a label in some row"),
        ({"who": ([0, 1, np.nan, 1, 2, 3], "regression")}, "labels 'who', row 2 is [nan]; expected finite numbers"),
        ({"who": ([0, 1] * 3, "classify")}, "labels 'who' are for task 'classify'; expected one of classification, "),
        ({3: ([0, 1] * 3, "classification")}, "labels are called 3; expected text"),
    ],
)
def test_wrong_columns_from_arrays_are_named(columns: Any, told: str) -> None:
    with pytest.raises(DataError) as raised:
        from_arrays(INPUTS, list("xyxyxy"), label_columns=columns)
    assert told in str(raised.value)


def test_labels_of_another_task_are_named() -> None:
    dataset = from_arrays(INPUTS, list("xyxyxy"), label_columns={"effort": ([0.5, 1, 2, 3, 4, 5], "regression")})
    tasks = {"what": {}, "effort": {"labels": "effort"}}
    tree = {
        "rounds": 1, "data": {"dataset": "custom"}, "tasks": tasks, "model": {"encoders": {"acc": {"kind": "mlp"}}},
        "clients": [{"count": 1, "modalities": ["acc"], "task": task} for task in tasks],
    }  # fmt: skip
    with pytest.raises(ScenarioError, match=r"the labels 'effort' are for regression \(float32, 1 per sample\)"):
        simulate(Scenario.model_validate(tree), data=dataset)


def learned(**labels: Any) -> dict[str, LearnedTask]:
    return {name: LearnedTask(**given) for name, given in labels.items()}


def test_a_table_gives_what_was_written_and_names_what_it_lacks(tmp_path: Path) -> None:
    names = ("c", "b", "a")  # an order of its own, which the numbers alone do not tell
    columns = {
        "who": LabelColumn(np.array([0, 1, 2, 0, 1, 2]), names),
        "effort": LabelColumn(np.arange(12, dtype=np.float32).reshape(6, 2), ("left", "right")),
    }
    written = Dataset(INPUTS, np.array([0, 1] * 3), ("x", "y"), label_columns=columns)
    path = write_table(written, tmp_path / "rows.arrow")
    section = TableData(dataset="table", path=str(path), class_names=("x", "y"))
    tasks = learned(plain={}, who={"labels": "who"}, effort={"kind": "regression", "labels": "effort"})
    read = section.open_learned(("acc",), 0, tasks).load()
    for task in tasks.values():
        assert section.labelled(read, task.labels).fingerprint() == written.labelled(task.labels).fingerprint()
    with pytest.raises(DataError, match=r"has no column 'mood'"):
        section.open_learned(("acc",), 0, learned(plain={}, mood={"labels": "mood"})).targets()
    first = section.open_learned(("acc",), 0, learned(who={"labels": "who"})).load()
    assert first.labelled("who").class_names == names


def test_given_data_with_other_columns_are_another_file(tmp_path: Path) -> None:
    tree = {
        "rounds": 1, "data": {"dataset": "custom"}, "clients": [{"count": 2, "modalities": ["acc"]}],
        "model": {"encoders": {"acc": {"kind": "mlp"}}},
    }  # fmt: skip
    scenario = Scenario.model_validate(tree)
    plain = Dataset(INPUTS, np.array([0, 1] * 3), ("x", "y"))
    more = replace(plain, label_columns={"who": LabelColumn(np.arange(6) % 2, ("a", "b"))})
    others = replace(plain, label_columns={"who": LabelColumn(np.arange(6) % 3, ("a", "b", "c"))})
    paths = {with_table(scenario, dataset, tmp_path).data.path for dataset in (plain, more, others, more)}
    assert len(paths) == 3
