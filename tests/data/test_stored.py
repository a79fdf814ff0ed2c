"""Samples that stay where they are kept: read as the equal float32 array is, some rows at a time."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blossom_ray import Dataset, write_table
from blossom_ray.core.blocks import ClientProfile
from blossom_ray.data import stored
from blossom_ray.data.division.federation import Federation
from blossom_ray.data.division.scaling import scales_of
from blossom_ray.data.division.split import Split
from blossom_ray.data.gaps import fill_gaps
from blossom_ray.data.modalities.base import Scaling
from blossom_ray.data.shard_writing import write_held_out, write_shards
from blossom_ray.data.shards import ShardReader, pack
from blossom_ray.data.stored import StoredRows, slices
from blossom_ray.data.summary import deviations, summarise
from blossom_ray.errors import DataError

BYTES = [np.arange(12, dtype=np.uint8).reshape(2, 2, 3), np.arange(12, 36, dtype=np.uint8).reshape(4, 2, 3)]
ROWS = np.array([5, 0, -1, 2, 2], np.int64)


@pytest.fixture
def two_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of samples of six numbers."""
    monkeypatch.setattr(stored, "BYTES_AT_ONCE", 48)
    return


def as_array(fill: float = 0) -> np.ndarray:
    """What rows `ROWS` of `BYTES` are with a factor of 1/255, by a plain loop."""
    kept = [sample for part in BYTES for sample in part]
    rows = [np.full((2, 3), fill) if row < 0 else kept[row] / 255 for row in ROWS]
    return np.array(rows, np.float32)


@pytest.mark.parametrize(
    "index",
    [slice(None), slice(1, 3), slice(2, 2), np.array([4, 0]), np.array([], np.int64), ROWS == 2, np.zeros(5, bool)],
    ids=["all", "slice", "empty-slice", "ints", "no-ints", "bools", "no-bools"],
)
@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_rows_are_those_of_the_equal_array(index: slice | np.ndarray, fill: float) -> None:
    rows = StoredRows(BYTES, ROWS, 1 / 255, fill)
    found = rows[index]
    assert found.dtype == np.float32
    assert found.flags.writeable
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, as_array(fill)[index])
    np.testing.assert_array_equal(rows.chosen(index)[:], as_array(fill)[index])
    assert (rows.shape, rows.ndim, rows.size, rows.nbytes, len(rows)) == ((5, 2, 3), 3, 30, 120, 5)


def test_every_byte_becomes_the_nearest_float_to_its_part_of_255() -> None:
    rows = StoredRows([np.arange(256, dtype=np.uint8)[:, np.newaxis]], np.arange(256), 1 / 255)
    np.testing.assert_array_equal(rows[:][:, 0], (np.arange(256) / 255).astype(np.float32))


def test_tokens_and_floats_are_as_they_are_kept() -> None:
    tokens = StoredRows([np.array([[7, 0], [2**24, 3]], np.int32)], np.array([1, 0]))
    assert tokens[:].tolist() == [[2**24, 3], [7, 0]]
    floats = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_array_equal(StoredRows([floats], np.array([2, 2, 0]))[1:], floats[[2, 0]])


def test_what_is_read_is_no_part_of_what_is_kept() -> None:
    kept = np.ones((2, 3), np.float32)
    StoredRows.of(kept)[:][:] = 5
    assert (kept == 1).all()


def test_slices_cover_all_rows_by_bytes(two_rows_at_once: None) -> None:
    values = StoredRows(BYTES, ROWS)
    assert [*slices(values)] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert [*slices(values, 3, most=1)] == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert [*slices(np.zeros((2, 100), np.float32))] == [slice(0, 1), slice(1, 2)]  # one row is more already


def both(**others: object) -> tuple[Dataset, Dataset]:
    """The data set with stored rows, and with the equal array; the row without a sample is not observed."""
    rest = {"labels": np.arange(5), "class_names": (*"abcde",), "observed": {"a": ROWS >= 0}, **others}
    second = np.arange(5, dtype=np.float32)[:, np.newaxis]
    return (
        Dataset({"a": StoredRows(BYTES, ROWS, 1 / 255), "b": second}, **rest),  # type: ignore[arg-type]
        Dataset({"a": as_array(), "b": second}, **rest),  # type: ignore[arg-type]
    )


def test_a_data_set_is_the_same_with_them(two_rows_at_once: None, tmp_path: Path) -> None:
    mine, other = both()
    assert mine.fingerprint() == other.fingerprint()
    assert summarise(mine) == summarise(other)
    assert deviations(mine, "a") == deviations(other, "a")
    np.testing.assert_array_equal(mine.lacking("a"), other.lacking("a"))
    assert mine.only(["a"]).fingerprint() == other.only(["a"]).fingerprint()
    tested = [replace(own, held_out=own) for own in (mine, other)]
    assert tested[0].fingerprint() == tested[1].fingerprint()
    tables = [write_table(own, tmp_path / f"{place}.arrow").read_bytes() for place, own in enumerate(tested)]
    assert tables[0] == tables[1]


def test_clients_own_them_or_do_not(two_rows_at_once: None) -> None:
    rest = {"labels": np.zeros(5, np.int64), "class_names": ("x",), "clients": np.array([0, 0, 1, 2, 2])}
    mine = Dataset({"a": StoredRows(BYTES, ROWS, 1 / 255, np.nan), "b": np.ones((5, 1), np.float32)}, **rest)
    other = Dataset({"a": as_array(np.nan), "b": np.ones((5, 1), np.float32)}, **rest)
    assert mine.fingerprint() == other.fingerprint()
    assert mine.given_clients is not None
    assert other.given_clients is not None
    assert [mine.given_clients.members([client]) for client in range(3)] == [
        other.given_clients.members([client]) for client in range(3)
    ]
    assert mine.without_clients().fingerprint() == other.without_clients().fingerprint()
    with pytest.raises(DataError, match="row 2 is missing, while client '0' has it in other rows"):
        replace(mine, clients=np.array([0, 0, 0, 1, 1]))


def test_gaps_take_rows_away_without_reading() -> None:
    class Unread(np.ndarray):
        def __getitem__(self, key: object) -> object:
            raise AssertionError("read")

    rows = StoredRows([BYTES[0].view(Unread), BYTES[1].view(Unread)], ROWS)
    filled, observed = fill_gaps({"a": rows}, {"a": np.array([False, True, True, False, False])})
    assert isinstance(filled["a"], StoredRows)
    assert filled["a"].rows.tolist() == [5, -1, -1, 2, 2]
    assert observed["a"].tolist() == [True, False, False, True, True]
    assert rows.chosen(np.array([3, 1])).rows.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("values", "observed", "row"),
    [
        (StoredRows([np.array([[1.0], [np.inf]], np.float32)], np.array([0, 0, 1])), None, "row 2: a value is not fin"),
        (StoredRows([np.ones((1, 1), np.float32)], np.array([0, -1, 0]), fill=np.nan), None, "row 1: a value is not"),
        (StoredRows([np.ones((1, 1), np.uint8)], np.array([0, 0, -1])), [0, 0, 1], "row 0: a value is not 0, while"),
        (StoredRows([np.ones((1, 1), np.uint8)], np.array([0, 0])), None, "has shape|have shape"),
    ],
    ids=["infinite", "nan-fill", "not-zero", "length"],
)
def test_wrong_values_are_refused(values: StoredRows, observed: list[int] | None, row: str) -> None:
    has = {} if observed is None else {"a": np.array(observed, bool)}
    with pytest.raises(DataError, match=row):
        Dataset({"a": values}, np.zeros(3, np.int64), ("x",), observed=has)


def federation_of(dataset: Dataset) -> Federation:
    rows = [([0, 2], [], [1]), ([3], [4], [])]
    federation = Federation.of([Split(*(np.array(part, np.int64) for part in own)) for own in rows])
    return replace(federation, observed=dict(dataset.observed))


def test_shards_are_the_same_files(two_rows_at_once: None, tmp_path: Path) -> None:
    profiles = [ClientProfile(0, ("a", "b")), ClientProfile(1, ("a",))]
    packed = []
    for place, dataset in enumerate(both()):
        folder = tmp_path / str(place)
        index = write_shards(dataset, federation_of(dataset), profiles, folder)
        write_held_out([dataset], folder)
        with ShardReader(index) as reader:
            np.testing.assert_array_equal(reader.shard(0).inputs["a"], as_array()[[0, 2, 1]])
            held_out = reader.held_out(0)
            assert held_out is not None
            np.testing.assert_array_equal(held_out.inputs["a"], as_array())
        packed.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.rows")})
        assert len(pack(index, [1])) == 3
    assert packed[0] == packed[1]


def test_a_set_larger_than_what_is_in_memory_at_once_goes_to_shards(tmp_path: Path) -> None:
    # 200 MB as float32, kept as 50 MB of bytes on disk, most of one client.
    kept = np.memmap(tmp_path / "kept", np.uint8, "w+", shape=(1000, 50_000))
    kept[:] = np.arange(1000, dtype=np.uint8)[:, np.newaxis]
    rows = StoredRows([kept], np.arange(1000)[::-1], 1 / 255)
    held_out = Dataset({"a": rows}, np.zeros(1000, np.int64), ("x",))
    tracemalloc.start()
    try:
        dataset = Dataset({"a": rows}, np.zeros(1000, np.int64), ("x",), held_out=held_out)
        dataset.fingerprint()
        federation = Federation.of([Split(np.arange(900), np.arange(0), np.arange(900, 1000))])
        profiles = [ClientProfile(0, ("a",))]
        scales = scales_of(dataset, federation, profiles, lambda _: Scaling(scale="minmax")).by_client
        index = write_shards(dataset, federation, profiles, tmp_path, scales=scales)
        write_held_out([held_out], tmp_path)
        with ShardReader(index) as reader:
            seen = reader.held_out(0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * stored.BYTES_AT_ONCE
    with ShardReader(index) as reader:
        low, size = (numbers.astype(np.float64) for numbers in scales["a"][0])
        expected = ((rows[np.array([0, 999])] - low) / size).astype(np.float32)
        np.testing.assert_array_equal(reader.shard(0).inputs["a"][[0, 999]], expected)
        assert seen is not None
        np.testing.assert_array_equal(seen.inputs["a"][[0, 999]], expected)
