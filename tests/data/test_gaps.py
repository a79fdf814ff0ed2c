"""Rows without a value of a modality: read from tables and arrays, kept, standardised, sharded and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_sets import open_source
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray import Dataset, from_arrays, write_table
from blossom_ray.core.blocks import ClientProfile
from blossom_ray.data.division.federation import Federation, build_federation
from blossom_ray.data.division.observation import observe
from blossom_ray.data.division.options import ClientGroup
from blossom_ray.data.division.partition import PartitionError
from blossom_ray.data.division.scaling import scaled, scales_of
from blossom_ray.data.division.split import Split
from blossom_ray.data.modalities.base import Scaling
from blossom_ray.data.sets.table import TableData
from blossom_ray.data.shard_writing import write_held_out, write_shards
from blossom_ray.data.shards import ShardReader, pack, pack_held_out
from blossom_ray.data.summary import observed_rows, summarise
from blossom_ray.errors import DataError

VALUES = [[1.0, 2.0], None, [5.0, 6.0], None, [9.0, 0.0], [3.0, 4.0]]
HAS = [value is not None for value in VALUES]
LABELS = [0, 1, 0, 1, 0, 1]


def table(folder: Path, columns: dict[str, Any], **keys: Any) -> TableData:
    path = folder / "rows.parquet"
    pl.DataFrame(columns, strict=False).write_parquet(path)
    return TableData.model_validate({"dataset": "table", "path": str(path), **keys})


def load(spec: TableData, *modalities: str) -> Dataset:
    source = open_source(spec, modalities, 0)
    targets, dataset = source.targets(), source.load()
    assert {name: rows.tolist() for name, rows in targets.observed.items()} == {
        name: rows.tolist() for name, rows in dataset.observed.items()
    }
    return dataset


def test_null_in_a_table_and_none_in_a_list_say_the_same(tmp_path: Path) -> None:
    """And so does a mask, whatever stands in the rows that it leaves out; a written table reads the same."""
    age = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    found = load(table(tmp_path, {"acc": VALUES, "age": age, "label": LABELS}), "acc", "age")
    listed = from_arrays({"acc": VALUES, "age": age}, LABELS)
    filled = np.array([value or [np.nan, 7.0] for value in VALUES])
    masked = from_arrays({"acc": filled, "age": age}, LABELS, observed={"acc": HAS, "age": [True] * 6})
    written = TableData(dataset="table", path=str(write_table(found, tmp_path / "written.arrow")))
    for dataset in (found, listed, masked, load(written, "acc", "age")):
        assert {name: rows.tolist() for name, rows in dataset.observed.items()} == {"acc": HAS}
        assert dataset.inputs["acc"].tolist() == [value or [0.0, 0.0] for value in VALUES]
        assert dataset.fingerprint() == found.fingerprint()
    whole = from_arrays({"acc": [value or [0.0, 0.0] for value in VALUES], "age": age}, LABELS)
    assert whole.observed == {}
    assert whole.fingerprint() != found.fingerprint()  # zeros are no gaps
    assert summarise(found).modalities["acc"].num_observed == 4
    assert summarise(found).modalities["acc"].mean == np.mean([1, 2, 5, 6, 9, 0, 3, 4])
    assert summarise(found).modalities["age"].num_observed is None


def test_null_in_the_held_out_set(tmp_path: Path) -> None:
    columns = {"acc": VALUES, "label": LABELS, "split": ["train", "train", "train", "test", "test", "test"]}
    found = load(table(tmp_path, columns), "acc")
    given = from_arrays({"acc": VALUES}, LABELS, splits=columns["split"])
    pair = from_arrays({"acc": VALUES[:3]}, LABELS[:3], held_out=({"acc": VALUES[3:]}, LABELS[3:]))
    for dataset in (found, given, pair):
        assert dataset.held_out is not None
        assert dataset.observed["acc"].tolist() == [True, False, True]
        assert dataset.held_out.observed["acc"].tolist() == [False, True, True]
        assert dataset.fingerprint() == found.fingerprint()


def test_one_null_of_several_columns_takes_the_row_and_is_counted(tmp_path: Path) -> None:
    columns = {"age": [1.0, None, 3.0, None], "bmi": [1.0, 2.0, None, None], "label": [0, 1, 0, 1]}
    spec = table(tmp_path, columns, modalities={"person": {"column": ["age", "bmi"]}})
    dataset = load(spec, "person")
    assert dataset.observed["person"].tolist() == [True, False, False, False]
    assert dataset.notes == ("person: not observed in 2 rows in which 'age' or 'bmi' is null or NaN in part",)


def test_nan_is_refused_or_says_that_nothing_was_observed_and_infinity_never_does(tmp_path: Path) -> None:
    windows = [[1.0, 2.0], [float("nan"), 4.0], None, [5.0, None]]
    columns = {"acc": windows, "label": [0, 1, 0, 1]}
    with pytest.raises(DataError, match=r"column 'acc', row 3 holds a null"):
        load(table(tmp_path, columns), "acc")
    spec = table(tmp_path, columns, modalities={"acc": {"nan": "unobserved"}})
    assert load(spec, "acc").observed["acc"].tolist() == [True, False, False, False]
    assert load(spec, "acc").notes == ("acc: not observed in 2 rows in which 'acc' is null or NaN in part",)
    for nan, found in (("refuse", "a value that is not finite"), ("unobserved", "an infinite value")):
        endless = {"acc": [[1.0, 2.0], [float("inf"), 0.0]], "label": [0, 1]}
        spec = table(tmp_path, endless, modalities={"acc": {"nan": nan}})
        with pytest.raises(DataError, match=f"column 'acc', row 1 holds {found}"):
            open_source(spec, ("acc",), 0).load()


def test_nulls_are_found_in_files_without_statistics_and_in_tensors(tmp_path: Path) -> None:
    tensors = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), (2,)), pa.array(VALUES, pa.list_(pa.float32(), 2))
    )
    rows = pa.table({"acc": tensors, "label": LABELS})
    pq.write_table(rows, tmp_path / "plain.parquet", write_statistics=False)
    pq.write_table(rows, tmp_path / "statistics.parquet")
    with pa.ipc.new_file(str(tmp_path / "rows.arrow"), rows.schema) as writer:
        writer.write_table(rows)
    for name in ("plain.parquet", "statistics.parquet", "rows.arrow"):
        spec = TableData(dataset="table", path=str(tmp_path / name))
        assert load(spec, "acc").observed["acc"].tolist() == HAS


CLIENTS = ["a", "a", "a", "b", "b", "b"]


def test_a_client_owns_what_it_has_in_a_row_to_train_on(tmp_path: Path) -> None:
    splits = ["train", "train", "test", "train", "train", "test"]
    gyro = [[1.0], None, [2.0], None, None, [3.0]]
    columns = {"acc": [[1.0]] * 6, "gyro": gyro, "label": LABELS, "client": CLIENTS, "split": splits}
    found = load(table(tmp_path, columns, partition={"kind": "given"}), "acc", "gyro")
    lists = {"acc": columns["acc"], "gyro": gyro}
    given = from_arrays(lists, LABELS, clients=CLIENTS, splits=splits)
    nans = {name: [value or [np.nan] for value in values] for name, values in lists.items()}
    for dataset in (found, given, from_arrays(nans, LABELS, clients=CLIENTS, splits=splits)):
        clients = dataset.given_clients
        assert clients is not None
        assert clients.modalities == (("acc", "gyro"), ("acc",))
        assert clients.notes == ("client 'b' has gyro in 1 rows and in none to train on, so it does not own it",)
        assert dataset.observed["gyro"].tolist() == [value is not None for value in gyro]
        assert dataset.fingerprint() == found.fingerprint()


def test_what_a_client_lacks_in_all_rows_is_kept_as_before(tmp_path: Path) -> None:
    gyro = [[1.0], [2.0], [3.0], None, None, None]
    columns = {"acc": [[1.0]] * 6, "gyro": gyro, "label": LABELS, "client": CLIENTS}
    dataset = load(table(tmp_path, columns, partition={"kind": "given"}), "acc", "gyro")
    assert dataset.observed == {}
    assert np.isnan(dataset.inputs["gyro"][3:]).all()
    shared = load(table(tmp_path, columns), "acc", "gyro")  # where rows are dealt, they are rows with a gap
    assert shared.observed["gyro"].tolist() == [value is not None for value in gyro]
    again = dataset.without_clients()
    assert again.observed["gyro"].tolist() == shared.observed["gyro"].tolist()
    assert np.array_equal(again.inputs["gyro"], shared.inputs["gyro"])


def test_what_a_data_set_says_of_gaps_must_be_right() -> None:
    inputs = {"acc": np.ones((3, 2), np.float32)}
    labels, has = np.zeros(3, np.int64), np.array([True, False, True])
    with pytest.raises(DataError, match="'acc', row 1: a value is not 0, while observed says that there is none"):
        Dataset(inputs, labels, ("a",), observed={"acc": has})
    with pytest.raises(DataError, match="observed has 'gyro'; expected some of acc"):
        Dataset(inputs, labels, ("a",), observed={"gyro": has})
    with pytest.raises(DataError, match="observed rows of 'acc' are all; expected"):
        Dataset(inputs, labels, ("a",), observed={"acc": np.ones(3, np.bool_)})
    with pytest.raises(DataError, match=r"observed rows of modality 'acc' are int64 of shape \(3,\); expected \(3,\)"):
        from_arrays(inputs, labels, observed={"acc": [1, 0, 1]})
    torn = np.array([[1.0], [np.nan], [2.0]], np.float32)
    with pytest.raises(DataError, match="'acc', row 1 is missing, while client '0' has it in other rows"):
        Dataset({"acc": torn}, labels, ("a",), clients=labels)


def federation_with_gaps() -> tuple[Dataset, Federation]:
    """Two clients of five rows each; the first lacks `gyro` in row 1 (training) and 4 (test), the second nowhere."""
    values = np.arange(1, 11, dtype=np.float32)[:, None]
    has = np.ones(10, np.bool_)
    has[[1, 4]] = False
    inputs = {"acc": values, "gyro": np.where(has[:, None], 10 * values, 0).astype(np.float32)}
    dataset = Dataset(inputs, np.zeros(10, np.int64), ("a",), observed={"gyro": has})
    parts = [Split(*(np.arange(start, end) for start, end in pairs)) for pairs in
             (((0, 3), (3, 4), (4, 5)), ((5, 8), (8, 9), (9, 10)))]  # fmt: skip
    groups = [ClientGroup(count=2, modalities=("acc", "gyro"))]
    spec = TableData(dataset="table", path="x")
    return dataset, observe(Federation.of(parts), spec, dataset.targets, groups, 0)


PROFILES = [ClientProfile(0, ("acc", "gyro")), ClientProfile(1, ("acc", "gyro"))]


def test_shards_have_what_is_observed_and_zeros_elsewhere(tmp_path: Path) -> None:
    dataset, federation = federation_with_gaps()
    dataset.inputs["gyro"][[1, 4]] = np.nan  # behind the reader
    held_out = Dataset(
        {"acc": np.ones((2, 1), np.float32), "gyro": np.float32([[0.0], [5.0]])}, np.zeros(2, np.int64), ("a",),
        observed={"gyro": np.array([False, True])},
    )  # fmt: skip
    index = write_shards(dataset, federation, PROFILES, tmp_path, np.array([1, 0]))
    write_held_out([held_out.only(["acc"]), held_out], tmp_path)
    packed = {**pack(index, [0]), **pack_held_out(index, [0])}
    for reader in (ShardReader(index), ShardReader(index, packed)):
        with reader:
            shard = reader.shard(0)
            assert shard.inputs["gyro"][:, 0].tolist() == [10, 0, 30, 40, 0]
            assert {name: rows.tolist() for name, rows in shard.observed.items()} == {
                "gyro": [True, False, True, True, False]
            }
            assert shard.train().observed["gyro"].tolist() == [True, False, True]
            assert shard.validation().observed == {}  # nothing lacks in these rows
            assert shard.test().observed["gyro"].tolist() == [False]
            seen = reader.held_out(0)
            assert seen is not None
            assert seen.test().observed["gyro"].tolist() == [False, True]
    with ShardReader(index) as reader:
        assert reader.shard(1).observed == {}


def test_mean_and_deviation_are_of_observed_training_rows() -> None:
    dataset, federation = federation_with_gaps()
    scales = scales_of(dataset, federation, PROFILES, lambda _: Scaling(scale="standard", over="all"))
    found = scaled(dataset, scales.pooled).inputs["gyro"][:][:, 0]
    train = np.array([10, 30, 60, 70, 80.0])
    expected = (10 * np.arange(1, 11) - train.mean()) / train.std()
    expected[[1, 4]] = 0
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_observed_rows_are_counted_by_modality_split_and_client() -> None:
    _, federation = federation_with_gaps()
    found = observed_rows(federation, PROFILES)
    assert {split: vars(rows) for split, rows in found["gyro"].items()} == {
        "train": {"rows": 6, "observed": 5, "by_client": (2, 3)},
        "validation": {"rows": 2, "observed": 2, "by_client": (1, 1)},
        "test": {"rows": 2, "observed": 1, "by_client": (0, 1)},
    }
    assert str(found["gyro"]["train"]) == "83.3 % of 6"


@settings(max_examples=25)
@given(st.lists(st.one_of(st.none(), st.floats(-9, 9, width=32)), min_size=4, max_size=12).filter(any))
def test_a_written_table_is_the_same_data_set(tmp_path_factory: pytest.TempPathFactory, values: list[Any]) -> None:
    labels = [row % 2 for row in range(len(values))]
    clients = [row % 2 for row in range(len(values))]
    dataset = from_arrays({"acc": [1.0] * len(values), "gyro": values}, labels, clients=clients)
    path = write_table(dataset, tmp_path_factory.mktemp("written") / "rows.arrow")
    spec = TableData.model_validate({"dataset": "table", "path": str(path), "partition": {"kind": "given"}})
    again = load(spec, "acc", "gyro")
    assert again.fingerprint() == dataset.fingerprint()
    assert (again.given_clients and again.given_clients.modalities) == (
        dataset.given_clients and dataset.given_clients.modalities
    )


def test_groups_that_contradict_the_nulls_are_refused(tmp_path: Path) -> None:
    columns = {"acc": [[1.0]] * 6, "gyro": [[1.0], None, None, None, None, None], "label": LABELS, "client": CLIENTS}
    spec = table(tmp_path, columns, partition={"kind": "given"})
    targets = open_source(spec, ("acc", "gyro"), 0).targets()
    with pytest.raises(PartitionError, match=r"clients have 0 clients with acc, while column 'client' has 1 client"):
        build_federation(spec, targets, 2, 0, [("acc", "gyro")] * 2)
