"""Federations as they are given: by a table, by arrays, by a data set; and what of it contradicts itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from data_sets import open_source
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray import Dataset, from_arrays, write_table
from blossom_ray.core.scores import LearnedTask
from blossom_ray.data.division.federation import Federation, build_federation
from blossom_ray.data.division.options import ClientGroup
from blossom_ray.data.division.partition import PartitionError
from blossom_ray.data.federated import FederatedDataset
from blossom_ray.data.options import examine_federation
from blossom_ray.data.sets.custom import CustomData
from blossom_ray.data.sets.table import TableData
from blossom_ray.data.targets import Targets
from blossom_ray.errors import DataError

NUM_ROWS = 24
OWNERS = ["b", "a", "c", "b", "a", "c"] * 4
SPLITS = ["train"] * 12 + ["validation"] * 6 + ["test"] * 6
LACKS = {"acc": (), "gyro": ("c",)}
"""Which clients lack a modality."""
SETS = (("acc",), ("acc", "gyro"), ("acc", "gyro"))
"""The modalities of c, a and b, in this order."""

Rows = dict[str, list[Any]]
Kind = Callable[[Path, Rows], tuple[TableData | CustomData, Targets]]


def rows_of(**changes: list[Any]) -> Rows:
    """Columns of 24 rows of three clients. `acc` has the number of its row in it, which tells rows apart."""
    names = changes.get("client", OWNERS)
    rows: Rows = {
        "client": [*OWNERS],
        "label": [row % 2 for row in range(NUM_ROWS)],
        "acc": [[float(row), 1.0] for row in range(NUM_ROWS)],
        "gyro": [None if str(name) in LACKS["gyro"] else [0.5, 1.0, float(row)] for row, name in enumerate(names)],
    }
    return {name: values for name, values in {**rows, **changes}.items() if values}


def from_table(folder: Path, rows: Rows) -> tuple[TableData, Targets]:
    path = folder / "rows.parquet"
    pl.DataFrame(rows, strict=False).write_parquet(path)
    spec = TableData.model_validate({"dataset": "table", "path": str(path), "partition": {"kind": "given"}})
    return spec, open_source(spec, ("acc", "gyro"), 0).targets()


def dataset_of(rows: Rows) -> Dataset:
    """The rows as arrays; None stands where a modality is missing."""
    inputs = {name: rows[name] for name in ("acc", "gyro")}
    return from_arrays(
        inputs, rows["label"], clients=rows["client"], recordings=rows.get("recording"), splits=rows.get("split")
    )


def custom(dataset: Dataset) -> tuple[CustomData, Targets]:
    data = {"dataset": "custom", "factory": lambda: dataset, "partition": {"kind": "given"}}
    spec = CustomData.model_validate(data)
    return spec, open_source(spec, ("acc", "gyro"), 0).targets()


def from_lists(folder: Path, rows: Rows) -> tuple[CustomData, Targets]:
    del folder
    return custom(dataset_of(rows))


def from_a_written_table(folder: Path, rows: Rows) -> tuple[TableData, Targets]:
    path = write_table(dataset_of(rows), folder / "written.arrow")
    spec = TableData.model_validate({"dataset": "table", "path": str(path), "partition": {"kind": "given"}})
    return spec, open_source(spec, ("acc", "gyro"), 0).targets()


KINDS: dict[str, Kind] = {"table": from_table, "arrays": from_lists, "written": from_a_written_table}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
refusing = pytest.mark.parametrize("kind", [from_table, from_lists], ids=["table", "arrays"])


def federation_of(spec: TableData | CustomData, targets: Targets, sets: Any = SETS) -> Federation:
    return build_federation(spec, targets, len(sets), 0, sets)


@every_kind
def test_each_client_has_its_own_rows_and_no_others(kind: Kind, tmp_path: Path) -> None:
    spec, targets = kind(tmp_path, rows_of())
    federation = federation_of(spec, targets)
    assert federation.names == ("c", "a", "b")  # by modality set as the scenario has them, then by name
    for client, name in enumerate(federation.names):
        assert sorted(federation.rows(client).tolist()) == [row for row in range(NUM_ROWS) if OWNERS[row] == name]
    # floor(0.3 * 8) of the rows of each are for testing.
    assert federation.test.counts.tolist() == [2, 2, 2]


@every_kind
def test_given_splits_are_the_clients_own(kind: Kind, tmp_path: Path) -> None:
    spec, targets = kind(tmp_path, rows_of(split=SPLITS))
    federation = federation_of(spec, targets)
    for client, name in enumerate(federation.names):
        own = [row for row in range(NUM_ROWS) if OWNERS[row] == name]
        assert federation.train.of(client).tolist() == [row for row in own if row < 12]
        assert federation.validation.of(client).tolist() == [row for row in own if 12 <= row < 18]
        assert federation.test.of(client).tolist() == [row for row in own if row >= 18]


@every_kind
def test_validation_rows_come_from_what_was_given_to_train_on(kind: Kind, tmp_path: Path) -> None:
    spec, targets = kind(tmp_path, rows_of(split=["train"] * 18 + ["test"] * 6))
    federation = federation_of(spec.model_copy(update={"validation_fraction": 0.34}), targets)
    assert federation.validation.counts.tolist() == [2, 2, 2]
    for client in range(3):
        assert federation.test.of(client).min() >= 18
        assert [*federation.train.of(client), *federation.validation.of(client)] != []
        assert max(*federation.train.of(client), *federation.validation.of(client)) < 18
    spec, targets = kind(tmp_path, rows_of(split=SPLITS))
    with pytest.raises(PartitionError, match=r"data\.validation_fraction is 0\.1, while the data say which rows"):
        federation_of(spec.model_copy(update={"validation_fraction": 0.1}), targets)


def test_rows_that_are_held_out_are_no_clients(tmp_path: Path) -> None:
    """Neither a client nor a recording has to be named for them; a client that is held out whole is none."""
    rows = rows_of(
        client=[*OWNERS[:18], None, "z", *OWNERS[20:]],
        gyro=[[1.0, 2.0, 3.0] if row in (18, 19) or OWNERS[row] != "c" else None for row in range(NUM_ROWS)],
        split=["train"] * 18 + ["held-out"] * 2 + ["train"] * 4,
    )
    for kind in KINDS.values():
        spec, targets = kind(tmp_path, rows)
        assert targets.clients is not None
        assert targets.clients.names == ("a", "b", "c")
        assert len(targets.labels) == NUM_ROWS - 2
        held_out = open_source(spec, ("acc", "gyro"), 0).load().held_out
        assert held_out is not None
        assert held_out.inputs["acc"][:, 0].tolist() == [18.0, 19.0]


@every_kind
@pytest.mark.parametrize("dtype", ["whole", "text"])
def test_names_may_be_numbers_or_text(kind: Kind, dtype: str, tmp_path: Path) -> None:
    numbers = {"a": 10, "b": 2, "c": 100}
    owners: list[Any] = [numbers[name] if dtype == "whole" else str(numbers[name]) for name in OWNERS]
    gyro = [None if name == "c" else [1.0, 2.0, float(row)] for row, name in enumerate(OWNERS)]
    spec, targets = kind(tmp_path, rows_of(client=owners, gyro=gyro))
    assert targets.clients is not None
    assert targets.clients.names == (("2", "10", "100") if dtype == "whole" else ("10", "100", "2"))
    federation = federation_of(spec, targets)
    assert federation.names == (("100", "2", "10") if dtype == "whole" else ("100", "10", "2"))
    for client, name in enumerate(federation.names):
        assert all(str(owners[row]) == name for row in federation.rows(client))


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(NUM_ROWS)))
def test_the_order_of_rows_does_not_matter(order: list[int]) -> None:
    rows = rows_of(split=SPLITS)
    shuffled = {name: [values[row] for row in order] for name, values in rows.items()}
    (spec, targets), (other_spec, others) = (custom(dataset_of(each)) for each in (rows, shuffled))
    found, other = federation_of(spec, targets), federation_of(other_spec, others)
    assert found.names == other.names
    for client in range(3):
        for mine, theirs in (
            (found.train.of(client), other.train.of(client)),
            (found.validation.of(client), other.validation.of(client)),
            (found.test.of(client), other.test.of(client)),
        ):
            assert sorted(mine.tolist()) == sorted(order[row] for row in theirs.tolist())


@every_kind
def test_clients_from_the_data(kind: Kind, tmp_path: Path) -> None:
    spec, _ = kind(tmp_path, rows_of())
    found = examine_federation(FederatedDataset(spec, ("acc", "gyro"), "from-data", 0, {"": LearnedTask()}))
    assert found.problems == []
    assert [(group.count, group.modalities) for group in found.clients] == [(1, ("acc",)), (2, ("acc", "gyro"))]
    alone = examine_federation(FederatedDataset(spec, ("acc",), "from-data", 0, {"": LearnedTask()}))
    assert [(group.count, group.modalities) for group in alone.clients] == [(3, ("acc",))]


@refusing
@pytest.mark.parametrize(
    ("groups", "found"),
    [
        (
            [(1, "acc"), (3, "acc+gyro")],
            "have 3 clients with acc+gyro, while {source} has 2 clients with values of exactly these: 'a', 'b'",
        ),
        (
            [(3, "acc+gyro")],
            "have 0 clients with acc, while {source} has 1 client with values of exactly these: 'c'",
        ),
        (
            [(1, "acc"), (1, "acc+gyro"), (1, "gyro")],
            "have 1 client with acc+gyro, while {source} has 2 clients with values of exactly these: 'a', 'b'",
        ),
        (
            [(1, "acc"), (2, "acc+gyro"), (1, "gyro")],
            "have 1 client with gyro, while {source} has 0 clients with values of exactly these; 'c' with acc",
        ),
    ],
)
def test_groups_must_agree_with_the_data(groups: list[tuple[int, str]], found: str, kind: Kind, tmp_path: Path) -> None:
    spec, _ = kind(tmp_path, rows_of())
    clients = tuple(ClientGroup(count=count, modalities=tuple(own.split("+"))) for count, own in groups)
    source = "column 'client'" if isinstance(spec, TableData) else "clients"
    ((path, text, expected),) = examine_federation(
        FederatedDataset(spec, ("acc", "gyro"), clients, 0, {"": LearnedTask()})
    ).problems
    assert (path, text) == ("clients", found.format(source=source))
    assert expected == "as many clients of each modality set as the data have, or clients: from-data"


@refusing
def test_a_client_of_one_row_is_named(kind: Kind, tmp_path: Path) -> None:
    spec, targets = kind(tmp_path, rows_of(client=changed(OWNERS, r0="z")))
    with pytest.raises(PartitionError, match=r"has 1 row of 'z'; expected at least 2 rows of each client"):
        federation_of(spec, targets, (*SETS, ("acc", "gyro")))


def changed(values: list[Any], **rows: Any) -> list[Any]:
    """A column with other values in the rows r0, r1, ..."""
    values = [*values]
    for row, value in rows.items():
        values[int(row[1:])] = value
    return values


GYRO = rows_of()["gyro"]
PARTS = [*zip(OWNERS, SPLITS, strict=True)]
RECORDINGS = [f"r{row}" for row in range(NUM_ROWS)]
WRONG: list[tuple[Rows, str, str, str]] = [
    ({"client": changed(OWNERS, r7=None)}, "client", "row 7 is null", "a whole number, or text"),
    ({"split": changed(SPLITS, r3="dev")}, "split", "row 3 is 'dev'", "'train' or 'validation' or 'test' or"),
    ({"split": changed(SPLITS, r5=None)}, "split", "row 5 is null", "'train' or 'validation' or 'test' or"),
    (
        {"split": ["test" if name == "c" else part for name, part in PARTS]},
        "split", "row 2 is 'test', and no row of client 'c' is 'train'", "'train' in some of its rows",
    ),
    (
        {"split": ["train" if (name, part) == ("a", "test") else part for name, part in PARTS]},
        "split", "row 1 is 'train', and no row of client 'a' is 'test', which other clients have",
        "'test' in some of its rows",
    ),
    (
        {"split": ["train" if (n, p) == ("b", "validation") else p for n, p in PARTS]},
        "split", "row 0 is 'train', and no row of client 'b' is 'validation', which other clients have",
        "'validation' in some of its rows",
    ),
    (
        {"split": ["train"] * 12 + ["validation"] * 12},
        "split", "row 12 is 'validation', while no row is 'test'", "'test' in some",
    ),
    ({"split": ["held-out"] * NUM_ROWS}, "split", "in no row", "it in some"),
    (
        {"acc": [None if name == "c" else [1.0, 2.0] for name in OWNERS]},
        "client", "row 2 is 'c', a client without values of acc, gyro", "values of one of them",
    ),
    (
        {"split": SPLITS, "recording": changed(RECORDINGS, r20="r2")},
        "recording", "row 20 is 'r2', in 'test', as is", "one split for all rows of a recording",
    ),
    (  # of two clients
        {"split": SPLITS, "recording": changed(RECORDINGS, r19="r0")},
        "recording", "row 19 is 'r0', in 'test', as is", "one split for all rows of a recording",
    ),
    ({"recording": changed(RECORDINGS, r9=None)}, "recording", "row 9 is null", "a whole number, or text"),
    ({"acc": changed(rows_of()["acc"], r6=[1.0, float("nan")])}, "acc", "row 6", "finite"),
]  # fmt: skip


@refusing
@pytest.mark.parametrize(("rows", "column", "found", "expected"), WRONG, ids=[f"{w[1]}-{w[2][:24]}" for w in WRONG])
def test_a_contradiction_names_row_column_and_what_is_expected(
    rows: Rows, column: str, found: str, expected: str, kind: Kind, tmp_path: Path
) -> None:
    def load() -> Dataset:
        return open_source(kind(tmp_path, rows_of(**rows))[0], ("acc", "gyro"), 0).load()

    with pytest.raises(DataError) as error:
        load()
    text = str(error.value)
    assert found in text
    assert expected in text or "not finite" in text
    assert column in text


@every_kind
def test_a_client_owns_what_it_has_in_a_row_that_may_be_trained_on(kind: Kind, tmp_path: Path) -> None:
    """Where rows are not split yet, that is any of them."""
    for gyro, expected in (
        (changed(GYRO, r4=None), (("acc", "gyro"), ("acc", "gyro"), ("acc",))),
        (changed(GYRO, r8=[1.0, 2.0, 3.0]), (("acc", "gyro"),) * 3),
    ):
        _, targets = kind(tmp_path, rows_of(gyro=gyro))
        assert targets.clients is not None
        assert targets.clients.modalities == expected
        assert targets.observed["gyro"].tolist() == [value is not None for value in gyro]


@every_kind
def test_a_held_out_row_may_lack_a_modality(kind: Kind, tmp_path: Path) -> None:
    rows = rows_of(split=["train"] * 20 + ["held-out"] * 4)  # rows 20 and 23 are of client c
    spec, _ = kind(tmp_path, rows)
    held_out = open_source(spec, ("acc", "gyro"), 0).load().held_out
    assert held_out is not None
    assert held_out.observed["gyro"].tolist() == [False, True, True, False]


@every_kind
def test_a_recording_stands_on_one_side_of_the_splits_of_all_clients(kind: Kind, tmp_path: Path) -> None:
    """Rows 0 and 3 are of one client, 0 and 1 of two: a recording may be of several."""
    spec, targets = kind(tmp_path, rows_of(recording=[f"r{row // 2}" for row in range(NUM_ROWS)]))
    assert targets.recordings is not None
    federation = federation_of(spec, targets)
    train, test = (set(targets.recordings[rows].tolist()) for rows in (federation.train.flat, federation.test.flat))
    assert not train & test
    assert len(test) == 3  # floor(0.3 * 12)


def test_a_column_called_recording_counts_where_a_key_asks_for_it(tmp_path: Path) -> None:
    pl.DataFrame(rows_of(recording=[row // 2 for row in range(NUM_ROWS)], gyro=[])).write_parquet(
        tmp_path / "t.parquet"
    )

    def source(**keys: Any) -> Any:
        data = {"dataset": "table", "path": str(tmp_path / "t.parquet"), **keys}
        return open_source(TableData.model_validate(data), ("acc",), 0)

    plain = source()
    assert plain.targets().recordings is None
    notes = plain.load().notes
    assert len(notes) == 2
    assert notes[0].startswith("column 'client' is not used, since data.partition.kind is 'iid'")
    assert notes[1].startswith("column 'recording' is not used, so rows of one recording may stand in training and in")
    for keys in ({"split": "recording"}, {"recording_column": "recording"}, {"partition": {"kind": "given"}}):
        asked = source(**keys)
        assert asked.targets().recordings.tolist() == [row // 2 for row in range(NUM_ROWS)]
        assert not any("recording" in note for note in asked.load().notes)


def test_a_table_without_clients_keeps_the_meaning_of_test(tmp_path: Path) -> None:
    rows = rows_of(client=[], gyro=[], split=["train"] * 20 + ["test"] * 3 + ["held-out"])
    pl.DataFrame(rows).write_parquet(tmp_path / "t.parquet")
    data = TableData(dataset="table", path=str(tmp_path / "t.parquet"))
    loaded = open_source(data, ("acc",), 0).load()
    assert (loaded.num_samples, loaded.held_out and loaded.held_out.num_samples) == (20, 4)
    arrays = from_arrays({"acc": rows["acc"]}, rows["label"], splits=rows["split"])
    assert arrays.fingerprint() == loaded.fingerprint()
    with pytest.raises(DataError, match=r"row 2 is 'validation'.*and 'validation' with data\.partition: {kind: given}"):
        from_arrays({"acc": rows["acc"]}, rows["label"], splits=changed(rows["split"], r2="validation"))


def test_a_written_table_is_the_data_set(tmp_path: Path) -> None:
    owners = [{"a": 10, "b": 2, "c": 100}[name] for name in OWNERS]
    gyro = [None if name == 100 else [1.0, 2.0, 3.0] for name in owners]
    recordings = [f"r{row}" for row in range(NUM_ROWS)]
    dataset = dataset_of(rows_of(client=owners, gyro=gyro, split=SPLITS, recording=recordings))
    spec = TableData.model_validate(
        {"dataset": "table", "path": str(write_table(dataset, tmp_path / "t.arrow")), "partition": {"kind": "given"}}
        | {"class_names": ["0", "1"]}
    )
    read = open_source(spec, ("acc", "gyro"), 0).load()
    assert read.client_names == dataset.client_names == ("2", "10", "100")
    assert read.fingerprint() == dataset.fingerprint()
    for name, values in dataset.inputs.items():
        np.testing.assert_array_equal(read.inputs[name], values)


def test_in_other_partitions_rows_without_a_modality_are_anybodys(tmp_path: Path) -> None:
    rows = rows_of()
    pl.DataFrame(rows, strict=False).write_parquet(tmp_path / "t.parquet")
    dataset = dataset_of(rows)
    for spec in (
        TableData(dataset="table", path=str(tmp_path / "t.parquet")),
        CustomData(dataset="custom", factory=lambda: dataset),
    ):
        dealt = open_source(spec, ("acc", "gyro"), 0).load()
        assert dealt.clients is None
        assert dealt.observed["gyro"].tolist() == [value is not None for value in rows["gyro"]]
    alone = open_source(CustomData(dataset="custom", factory=lambda: dataset), ("acc",), 0).load()
    assert alone.clients is None
    assert alone.notes == (
        "clients say whose the samples are, and are not used: data.partition: {kind: given} uses them",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": np.array([0, 2])}, "clients are 2 numbers from 0 to 2; expected 0 to 2, each in some row"),
        ({"clients": np.array([-1, 0])}, "clients are 2 numbers from -1 to 0; expected numbers from 0"),
        ({"clients": np.array([0, 1]), "client_names": ("a",)}, "clients are 2 numbers .*; expected 0 to 0"),
        ({"clients": np.array([0, 1]), "client_names": ("a", "a")}, "client_names has a name twice"),
        ({"clients": np.array([0.0, 1.0])}, "clients have type float64; expected a NumPy array of int64"),
        ({"splits": np.array([0, 2])}, "splits are given, while clients are not"),
        ({"clients": np.array([0, 0]), "splits": np.array([0, 3])}, "splits, row 1 is 3; expected 0 .train., 1"),
        (
            {"clients": np.array([0, 1]), "splits": np.array([0, 2])},
            "splits, row 1 is 'test', and no row of client '1'",
        ),
    ],
)
def test_what_a_data_set_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset({"acc": np.zeros((2, 3), np.float32)}, np.array([0, 1]), ("a", "b"), **changes)
