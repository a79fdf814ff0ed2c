from __future__ import annotations

import gc
import pickle
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from data_sets import synthetic_dataset

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.division.federation import Federation, build_federation
from blossom_ray.data.division.split import Split
from blossom_ray.data.sets.synthetic import SyntheticData, SyntheticModality
from blossom_ray.data.shard_writing import write_held_out, write_shards
from blossom_ray.data.shards import ShardIndex, ShardReader, pack, pack_held_out
from blossom_ray.errors import DataError, RunFolderError

PROFILES = [
    ClientProfile(0, ("acc",)),
    ClientProfile(1, ("image",)),
    ClientProfile(2, ("acc", "image")),
    ClientProfile(3, ("image",)),
]
FIRST_ROWS = {"acc": [0, -1, 12, -1], "image": [-1, 0, 13, 26]}  # of 12, 13, 13 and 12 each


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    spec = SyntheticData(
        dataset="synthetic",
        samples=50,
        held_out_samples=7,
        modalities={"acc": SyntheticModality(), "image": SyntheticModality(kind="image")},
    )
    return synthetic_dataset(spec, ("acc", "image"), 0)


@pytest.fixture(scope="module")
def federation(dataset: Dataset) -> Federation:
    return build_federation(SyntheticData(dataset="synthetic"), dataset.targets, 4, 0)


@pytest.fixture(scope="module")
def index(dataset: Dataset, federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    folder = tmp_path_factory.mktemp("shards") / "made"
    index = write_shards(dataset, federation, PROFILES, folder)
    assert dataset.held_out is not None
    write_held_out([dataset.held_out], folder)
    return index


@pytest.fixture(params=["files", "buffers", "pickled index"])
def reader(request: pytest.FixtureRequest, index: ShardIndex) -> ShardReader:
    match request.param:
        case "files":
            return ShardReader(index)
        case "buffers":
            buffers = {**pack(index, range(4)), **pack_held_out(index, range(4))}
            return ShardReader(index, buffers)
        case _:
            return ShardReader(pickle.loads(pickle.dumps(index)))


def test_index(index: ShardIndex, federation: Federation) -> None:
    assert index.num_samples.tolist() == [12, 13, 13, 12]
    assert {modality: rows.tolist() for modality, rows in index.inputs.items()} == FIRST_ROWS
    assert index.num_train.tolist() == federation.train.counts.tolist()
    assert index.num_test.tolist() == federation.test.counts.tolist()


def test_each_client_reads_its_own_rows_and_modalities(
    reader: ShardReader, dataset: Dataset, federation: Federation
) -> None:
    with reader:
        for profile in PROFILES:
            shard = reader.shard(profile.index)
            assert tuple(sorted(shard.inputs)) == profile.modalities
            for rows, (inputs, labels, _) in (
                (federation.train.of(profile.index), shard.train()),
                (federation.test.of(profile.index), shard.test()),
            ):
                assert labels.dtype == np.int64
                assert np.array_equal(labels, dataset.labels[rows])
                for modality, values in inputs.items():
                    assert values.dtype == np.float32
                    assert np.array_equal(values, dataset.inputs[modality][rows])


def test_views_are_read_only_and_contiguous(reader: ShardReader) -> None:
    shard = reader.shard(2)
    for values in (*shard.inputs.values(), shard.labels, *shard.train()[0].values(), shard.test()[1]):
        assert values.flags.c_contiguous
        assert values.flags.aligned
        with pytest.raises(ValueError, match=r"read-only"):
            values[0] = 0


def test_the_held_out_set(reader: ShardReader, dataset: Dataset) -> None:
    held_out = reader.held_out(1)
    assert held_out is not None
    assert dataset.held_out is not None
    inputs, labels, _ = held_out.test()
    assert set(inputs) == {"image"}
    assert np.array_equal(inputs["image"], dataset.held_out.inputs["image"])
    assert np.array_equal(labels, dataset.held_out.labels)
    train_inputs, train_labels, _ = held_out.train()
    assert train_inputs["image"].shape == (0, 1, 16, 16)
    assert train_labels.shape == (0,)


def test_clients_that_see_the_same_held_out_set_have_the_same_memory(reader: ShardReader) -> None:
    first, other, more = (reader.held_out(client) for client in (1, 3, 2))
    assert first is not None
    assert first is other
    assert first is not more
    assert first.test().labels is first.test().labels
    assert first.test().inputs["image"] is first.test().inputs["image"]


def test_no_held_out_set(dataset: Dataset, federation: Federation, tmp_path: Path, index: ShardIndex) -> None:
    without = write_shards(dataset, federation, PROFILES, tmp_path)
    assert ShardReader(without).held_out(0) is None
    assert pack_held_out(without, [0]) == {}
    assert ShardReader(index, pack(index, [0])).held_out(0) is None


def address(values: np.ndarray) -> int:
    start: int = values.__array_interface__["data"][0]
    return start


def test_nothing_is_copied_from_buffers(index: ShardIndex) -> None:
    buffers = pack(index, range(4))
    shard = ShardReader(index, buffers).shard(2)
    for values, buffer in ((shard.inputs["acc"], buffers["input-acc"]), (shard.labels, buffers["labels"])):
        assert address(buffer) <= address(values) < address(buffer) + buffer.nbytes
        assert address(values) + values.nbytes <= address(buffer) + buffer.nbytes


def test_nothing_is_copied_from_files(index: ShardIndex) -> None:
    tracemalloc.start()
    try:
        with ShardReader(index) as reader:
            shards = [reader.shard(client) for client in range(4)]
            allocated = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # What a shard is described by takes a little; the samples themselves must not.
    assert allocated < sum(values.nbytes for shard in shards for values in shard.inputs.values()) / 5


def test_values_lie_in_the_mapped_file(index: ShardIndex) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the system does not list mapped files")
    with ShardReader(index) as reader:
        values = reader.shard(2).inputs["acc"]
        lines = [line.split() for line in maps.read_text().splitlines() if line.endswith("input-acc.rows")]
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
    assert any(start <= address(values) < end for start, end in ranges)


def test_views_outlive_the_reader_and_the_map_goes_with_them(index: ShardIndex) -> None:
    reader = ShardReader(index)
    shard = reader.shard(2)
    total = float(shard.inputs["acc"].sum())
    reader.close()
    assert float(shard.inputs["acc"].sum()) == total
    assert float(reader.shard(2).inputs["acc"].sum()) == total
    reader.close()
    del shard
    gc.collect()  # views that other tests of this folder left in cycles
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(index.folder) not in maps.read_text()


def test_packed_buffers_hold_these_clients_alone(index: ShardIndex) -> None:
    buffers = pack(index, [3, 1])
    assert "input-acc" not in buffers
    assert all(buffer.dtype == np.uint8 for buffer in buffers.values())
    reader, files = ShardReader(index, buffers), ShardReader(index)
    for client in (1, 3):
        assert np.array_equal(reader.shard(client).inputs["image"], files.shard(client).inputs["image"])
        assert np.array_equal(reader.shard(client).labels, files.shard(client).labels)
    with pytest.raises(KeyError, match=r"2"):
        reader.shard(2)
    own_bytes = sum(files.shard(client).inputs["image"].nbytes for client in (1, 3))
    assert own_bytes <= buffers["input-image"].nbytes < own_bytes + 4000


def test_the_smallest_shard_has_one_row_on_each_side(tmp_path: Path) -> None:
    rows = np.arange(4)
    dataset = Dataset({"m": rows[:, None].astype(np.float32)}, rows % 2, ("no", "yes"))
    federation = Federation.of([Split(rows[[train]], rows[:0], rows[[test]]) for train, test in ((3, 0), (1, 2))])
    index = write_shards(dataset, federation, [ClientProfile(k, ("m",)) for k in range(2)], tmp_path)
    with ShardReader(index) as reader:
        assert reader.shard(0).train()[0]["m"].tolist() == [[3.0]]
        assert reader.shard(0).test()[0]["m"].tolist() == [[0.0]]
        assert reader.shard(1).train()[1].tolist() == [1]
        assert reader.shard(1).test()[1].tolist() == [0]


def test_validation_rows_stand_between_train_and_test_rows(dataset: Dataset, tmp_path: Path) -> None:
    federation = build_federation(SyntheticData(dataset="synthetic", validation_fraction=0.2), dataset.targets, 4, 0)
    index = write_shards(dataset, federation, PROFILES, tmp_path)
    assert index.num_validation.tolist() == [2, 2, 2, 2]
    assert sorted(index.num_samples.tolist()) == [12, 12, 13, 13]
    buffers = pack(index, [1, 2])
    for reader in (ShardReader(index), ShardReader(index, buffers)):
        with reader:
            shard = reader.shard(2)
            for (inputs, labels, _), rows in (
                (shard.train(), federation.train.of(2)),
                (shard.validation(), federation.validation.of(2)),
                (shard.test(), federation.test.of(2)),
            ):
                assert np.array_equal(inputs["acc"], dataset.inputs["acc"][rows])
                assert np.array_equal(labels, dataset.labels[rows])
            assert np.array_equal(shard.labels, dataset.labels[federation.rows(2)])


def test_missing_and_damaged_files(dataset: Dataset, federation: Federation, tmp_path: Path) -> None:
    index = write_shards(dataset, federation, PROFILES, tmp_path)
    whole = (tmp_path / "labels.rows").read_bytes()
    for content in (b"", b"short", whole[:-1], whole[:60], b"\xff" * 8 + whole[8:], whole[:8] + b"?" + whole[9:]):
        (tmp_path / "labels.rows").write_bytes(content)
        with pytest.raises(DataError, match=r"labels.rows is damaged"):
            ShardReader(index).shard(0)
    (tmp_path / "input-acc.rows").unlink()
    with pytest.raises(DataError, match=r"input-acc.rows is missing; expected the shards as they were written"):
        ShardReader(index).shard(0)
    with pytest.raises(DataError, match=r"labels.rows is damaged"):
        pack(index, [0])


def test_a_folder_that_cannot_be_made(dataset: Dataset, federation: Federation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFolderError, match=r"labels.rows cannot be written"):
        write_shards(dataset, federation, PROFILES, tmp_path / "file")


def test_ten_thousand_clients_in_seconds(tmp_path: Path) -> None:
    num_clients = 10_000
    spec = SyntheticData(dataset="synthetic", samples=50_000, held_out_samples=0)
    dataset = synthetic_dataset(
        spec.model_copy(update={"modalities": {"v": SyntheticModality(kind="vector")}}), ("v",), 0
    )
    federation = build_federation(spec, dataset.targets, num_clients, 0)
    profiles = [ClientProfile(client, ("v",)) for client in range(num_clients)]
    start = time.process_time()
    index = write_shards(dataset, federation, profiles, tmp_path)
    with ShardReader(index) as reader:
        num_rows = sum(len(reader.shard(client).labels) for client in range(num_clients))
    assert num_rows == 50_000
    assert time.process_time() - start < 20
    assert len(pickle.dumps(index)) < 60 * num_clients


def test_labels_of_several_columns(federation: Federation, dataset: Dataset, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
    held_out = Dataset({"acc": np.ones((3, 64, 3), np.float32)}, labels[:3], ("left", "right"))
    several = Dataset({"acc": dataset.inputs["acc"]}, labels, ("left", "right"), held_out=held_out)
    profiles = [ClientProfile(client, ("acc",)) for client in range(4)]
    index = write_shards(several, federation, profiles, tmp_path)
    write_held_out([held_out], tmp_path)
    buffers = {**pack(index, (2,)), **pack_held_out(index, (2,))}
    for reader in (ShardReader(index), ShardReader(index, buffers)):
        with reader:
            np.testing.assert_array_equal(reader.shard(2).train()[1], labels[federation.train.of(2)])
            assert reader.shard(2).labels.dtype == np.float32
            test_set = reader.held_out(2)
            assert test_set is not None
            np.testing.assert_array_equal(test_set.labels, labels[:3])
