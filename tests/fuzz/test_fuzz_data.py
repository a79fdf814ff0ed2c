"""Whatever an archive or a data set of one's own holds: a `Dataset`, or an error of ours."""

from __future__ import annotations

import io
import os
import struct
import time
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from conftest import SMALL
from data_sets import open_source, opened
from hypothesis import given
from hypothesis import strategies as st
from mutations import LONGEST_CASE_S, ByteEdit, byte_edits, damaged, few, outcome

from blossom_ray.core.scores import LearnedTask
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.federated import FederatedDataset
from blossom_ray.data.options import examine_federation
from blossom_ray.errors import BlossomError, DataError, InputError
from blossom_ray.reading.scenario import Scenario

NUM_ROWS = {"train": 6, "test": 3}
TOP = "UCI HAR Dataset/"


def official_members() -> dict[str, bytes]:
    """A small data set in the official layout and number format."""
    members = {}
    for part, num_rows in NUM_ROWS.items():
        members[f"{TOP}{part}/y_{part}.txt"] = b"".join(b"%d\r\n" % (1 + row) for row in range(num_rows))
        members[f"{TOP}{part}/subject_{part}.txt"] = b"".join(b"%d\r\n" % (1 + row // 2) for row in range(num_rows))
        line = b"".join(f"  {step / 1000:.7e}".replace("e-0", "e-00").encode() for step in range(1, 129)) + b"\r\n"
        for signal in ("body_acc", "body_gyro"):
            for axis in "xyz":
                members[f"{TOP}{part}/Inertial Signals/{signal}_{axis}_{part}.txt"] = line * num_rows
    return members


MEMBERS = official_members()
NAMES = tuple(MEMBERS)
TEXTS = (
    b"", b" ", b"\n", b"\x85\n", b"nan\n", b"inf\n", b"-1\n", b"0\n", b"7\n", b"1.5\n", b"1e400\n", b"1 2\n", b"0x1\n",
    b"1\n" * 6, b"9" * 5000, b"1\n" * 1_000_000, b"1 " * 500_000, b"nan " * 128 + b"\n", b"\0" * 100,
    b"1e39 " * 128 + b"\n", b"\xff\xfe1\0",
)  # fmt: skip


@dataclass(frozen=True)
class MemberEdit:
    """What happens to one member before it is zipped; `name` modulo the number of members chooses it."""

    kind: Literal["remove", "text", "bytes", "foreign", "double", "folder"]
    name: int
    text: bytes
    edits: tuple[ByteEdit, ...]


@dataclass(frozen=True)
class ArchiveCase:
    """A zip file: its members, how they are packed, and what happens to its bytes.

    Attributes:
        members: Edits of members.
        headers: Member, offset and value: two bytes that are written into a member's entry of the central directory.
        edits: Edits of the zip's bytes.
        compression: As in `zipfile`.
        is_nested: Whether the zip lies in another one.
    """

    members: tuple[MemberEdit, ...]
    headers: tuple[tuple[int, int, int], ...]
    edits: tuple[ByteEdit, ...]
    compression: int
    is_nested: bool


no_edits: st.SearchStrategy[tuple[ByteEdit, ...]] = st.just(())
archive_cases = st.builds(
    ArchiveCase,
    st.lists(
        st.builds(
            MemberEdit,
            st.sampled_from(("remove", "text", "bytes", "foreign", "double", "folder")),
            st.integers(0, len(NAMES) - 1),
            st.sampled_from(TEXTS),
            byte_edits.map(tuple),
        ),
        max_size=2,
    ).map(tuple),
    st.lists(
        st.tuples(
            st.integers(0, len(NAMES) - 1),
            st.integers(4, 44),
            st.sampled_from((0, 1, 8, 12, 14, 0x800, 0x7FFF, 0xFFFF)),
        ),
        max_size=2,
    ).map(tuple),
    no_edits | byte_edits.map(tuple),
    st.sampled_from(
        (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    ),
    st.booleans(),
)


def edited_members(edits: Sequence[MemberEdit]) -> list[tuple[str, bytes]]:
    """Name and content of every member, in the order of the archive."""
    members = list(MEMBERS.items())
    for edit in edits:
        name = NAMES[edit.name]
        content = dict(members).get(name, b"")
        others = [member for member in members if member[0] != name]
        match edit.kind:
            case "remove":
                members = others
            case "text":
                members = [*others, (name, edit.text)]
            case "bytes":
                members = [*others, (name, damaged(content, edit.edits))]
            case "foreign":
                foreign = (
                    "../../evil.txt",
                    "/evil.txt",
                    "C:\\evil.txt",
                    "train/y_train.txt",
                    "a.zip",
                    TOP,
                    "\udcff.txt",
                )
                members.append((foreign[edit.name % len(foreign)], edit.text))
            case "double":
                members.append((name, edit.text))
            case "folder":
                members = [*others, (f"{name}/", b"")]
    return members


def zipped(members: Sequence[tuple[str, bytes]], compression: int) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as bundle:
        warnings.simplefilter("ignore")  # zipfile warns of names that stand twice
        for name, content in members:
            bundle.writestr(name.encode("utf-8", "replace").decode(), content)
    return buffer.getvalue()


def archive_bytes(case: ArchiveCase) -> bytes:
    """The zip file of a case."""
    content = bytearray(zipped(edited_members(case.members), case.compression))
    for member, offset, value in case.headers:
        starts = [place for place in range(len(content)) if content[place : place + 4] == b"PK\x01\x02"]
        if starts:
            struct.pack_into("<H", content, starts[member % len(starts)] + offset, value)
    if case.is_nested:
        content = bytearray(zipped([("readme.names", b""), ("inner.zip", bytes(content))], zipfile.ZIP_DEFLATED))
    return damaged(bytes(content), case.edits)


def check_archive(case: ArchiveCase, folder: Path) -> None:
    """Read one archive; raises what no user may see, or AssertionError."""
    path = folder / "har.zip"
    path.write_bytes(archive_bytes(case))
    before = sorted(folder.rglob("*"))
    started = time.process_time()
    for read in (opened("uci-har", path).targets, opened("uci-har", path, zscore=True).load):
        found = outcome(read)
        if isinstance(found, BlossomError):
            assert isinstance(found, DataError)
            assert str(found).startswith("har.zip") or "data set" in str(found)
        else:
            labels = found.labels
            assert 0 <= labels.min() <= labels.max() < found.num_classes
    assert time.process_time() - started < LONGEST_CASE_S
    assert sorted(folder.rglob("*")) == before


@given(case=archive_cases)
@few(120)
def test_any_archive_is_a_data_set_or_a_data_error(case: ArchiveCase, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "archives"
    folder.mkdir(exist_ok=True)
    check_archive(case, folder)


def test_the_undamaged_archive_is_read(tmp_path: Path) -> None:
    (tmp_path / "har.zip").write_bytes(zipped(list(MEMBERS.items()), zipfile.ZIP_DEFLATED))
    dataset = opened("uci-har", tmp_path / "har.zip").load()
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert dataset.inputs["acc"][0, :2, 0].tolist() == pytest.approx([0.001, 0.002])


# --- data sets of one's own ---------------------------------------------------------------------------------------

ARRAYS: tuple[Any, ...] = (
    None, 5, "text", [1, 2], {}, np.zeros(0, np.int64), np.zeros(12, np.int64), np.arange(12), np.arange(12) % 3,
    np.full(12, -1), np.full(12, 2**62), np.zeros((12, 2), np.int64), np.array(3), np.array(3.0, np.float32),
    np.zeros(12, np.int32), np.zeros(12), np.array([None] * 12), np.array(["a"] * 12), np.zeros((12, 4), np.float32),
    np.zeros((12, 4), ">f4"), np.full((12, 4), np.nan, np.float32), np.full((12, 4), -np.inf, np.float32),
    np.zeros((12, 0), np.float32), np.zeros((0, 4), np.float32), np.zeros((11, 4), np.float32), np.ones(12, np.float32),
    np.zeros((12, 2, 2), np.float32), np.ones((4, 12), np.float32).T, np.zeros((12, 4), np.float32)[::-1],
    np.array([[1, 2], [3]] * 6, dtype=object), np.ma.masked_array(np.zeros((12, 4), np.float32), mask=True),
    np.broadcast_to(np.float32(1), (12, 4)), np.zeros((12, 4), np.complex64), np.zeros((12, 4), np.bool_),
)  # fmt: skip
GOOD = {"acc": np.ones((12, 4), np.float32), "gyro": np.ones((12, 3), np.float32)}
some = st.integers(0, len(ARRAYS) - 1)


@dataclass(frozen=True)
class DatasetCase:
    """Arguments of a `Dataset`, as numbers of `ARRAYS`; None: a good value."""

    acc: int | None
    gyro: int | None
    labels: int | None
    subjects: int | None
    class_names: Any
    held_out: Literal["none", "same", "other", "wrong"]
    partition: Literal["iid", "dirichlet", "subject", "quantity"]


dataset_cases = st.builds(
    DatasetCase,
    st.none() | some,
    st.none() | some,
    st.none() | some,
    st.none() | some,
    st.just(("a", "b", "c")) | st.sampled_from(((), ("a",), ["a", "b", "c"], "abc", (1, 2, 3), None, ("a",) * 20)),
    st.sampled_from(("none", "same", "other", "wrong")),
    st.sampled_from(("iid", "dirichlet", "subject", "quantity")),
)


def custom_scenario(factory: Any, partition: str) -> Scenario:
    data = {"dataset": "custom", "factory": factory, "partition": {"kind": partition}, "test_fraction": 0.3}
    return Scenario.model_validate({**SMALL, "data": data, "clients": [{"count": 2, "modalities": ["acc", "gyro"]}]})


def check_dataset(case: DatasetCase, folder: Path) -> None:
    """Build one data set and divide it; raises what no user may see, or AssertionError."""

    def chosen(number: int | None, good: Any) -> Any:
        return good if number is None else ARRAYS[number]

    def build() -> Dataset:
        inputs: Mapping[str, Any] = {"acc": chosen(case.acc, GOOD["acc"]), "gyro": chosen(case.gyro, GOOD["gyro"])}
        labels = chosen(case.labels, np.arange(12) % 3)
        subjects = chosen(case.subjects, np.arange(12) // 3)
        held_out: Any = None
        match case.held_out:
            case "same":
                held_out = Dataset(GOOD, np.arange(12) % 3, ("a", "b", "c"))
            case "other":
                held_out = Dataset({"acc": GOOD["acc"]}, np.arange(12) % 3, ("x", "y", "z"))
            case "wrong":
                held_out = "no data set"
        return Dataset(inputs, labels, case.class_names, subjects, held_out)

    del folder
    dataset = outcome(build)
    if isinstance(dataset, BlossomError):
        assert isinstance(dataset, DataError)
        assert str(dataset)
        return
    assert len(dataset.fingerprint()) == 64
    scenario = custom_scenario(lambda: dataset, case.partition)
    found = examine_federation(
        FederatedDataset(scenario.data, scenario.modalities, scenario.clients, 0, {"": LearnedTask()})
    ).problems
    assert all(path.startswith("data") and text and expected for path, text, expected in found)
    loaded = outcome(lambda: open_source(scenario.data, scenario.modalities, 0).load())
    assert isinstance(loaded, Dataset | InputError)


@given(case=dataset_cases)
@few(150)
def test_any_arrays_are_a_data_set_or_a_data_error(case: DatasetCase, tmp_path_factory: pytest.TempPathFactory) -> None:
    check_dataset(case, tmp_path_factory.getbasetemp())


# --- folders ------------------------------------------------------------------------------------------------------


def unpacked(folder: Path) -> Path:
    for name, content in MEMBERS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder / TOP


@pytest.mark.parametrize("member", ["train/y_train.txt", "train/Inertial Signals/body_acc_x_train.txt"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device", "huge"])
def test_what_is_no_file_of_the_data_set_is_refused_at_once(member: str, kind: str, tmp_path: Path) -> None:
    top = unpacked(tmp_path)
    path = top / member
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "huge":
            with path.open("wb") as file:
                file.truncate(10**10)
    with pytest.raises(
        DataError, match=r"holds no train/y_train|is not a file|is larger; expected at most|cannot be read"
    ):
        opened("uci-har", top).load()


@pytest.mark.parametrize(
    "path", ["x" * 5000, "a\0b", "~nobody-has-this-name/x", "/dev/zero", "/dev/null", "/proc/self/mem"]
)
def test_paths_that_hold_no_data_set(path: str) -> None:
    with pytest.raises(DataError):
        opened("uci-har", path).load()
