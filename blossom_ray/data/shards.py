"""Clients' shards: written once per federation, read by memory map or from a buffer, without a copy.

One Arrow file per modality and one for the labels of each set of tasks, each with one batch per client that has it. A
client's batch holds its train rows, then its validation rows, then its test rows. Where clients do not observe a
modality in all of their rows, one more file says in which. The held-out set lies beside them, with one batch for each
way in which clients see it; where each client scales it by numbers of its own, a file with these says how. Samples that
are kept as bytes stay bytes where they are many, and are read as float32 by the batch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.core.label_rows import label_rows
from blossom_ray.data.dataset import Dataset, LabelColumn
from blossom_ray.data.division.federation import Federation
from blossom_ray.data.division.labelling import column_of, is_partial
from blossom_ray.data.gaps import BoolArray
from blossom_ray.data.stored import Rows, Scale, StoredRows, taken
from blossom_ray.data.targets import IntArray, Labels
from blossom_ray.errors import DataError, RunFolderError

ByteArray = npt.NDArray[np.uint8]
_Batch = npt.NDArray[Any] | StoredRows
_MOST_FLOATS = 2**30
"""Bytes of a modality's samples as float32 above which what is kept as bytes stays so in its file."""

_CLIENTS = "clients"
_HELD_OUT = "held-out/"
_SUFFIX = ".arrow"


class Samples(NamedTuple):
    """Some samples of a client; views of its shard.

    Attributes:
        inputs: Own modalities to (n, *shape) float32, in memory or not.
        labels: (n,) int64, or (n, C) float32, as in `Dataset`; of several tasks, or known in part, rows as
            `core/label_rows.py` has them.
        observed: Of the modalities that some of these samples lack: (n,) bool, which have it.
    """

    inputs: dict[str, Rows]
    labels: Labels
    observed: dict[str, BoolArray]


@dataclass(frozen=True)
class Shard:
    """One client's samples, or the held-out set: read-only views of the Arrow data.

    Attributes:
        inputs: Own modalities to (n, *shape) float32: train rows, then validation rows, then test rows.
        labels: As in `Samples`.
        num_train: How many of the n rows are for training; 0 for the held-out set.
        num_validation: How many of the next rows are for validation; the rest are test rows.
        observed: Of the modalities that some row lacks: (n,) bool, which have it. The inputs of the others are zeros.
    """

    inputs: Mapping[str, Rows]
    labels: Labels
    num_train: int
    num_validation: int = 0
    observed: Mapping[str, BoolArray] = field(default_factory=dict)

    def train(self) -> Samples:
        """The train rows."""
        return self._rows(slice(None, self.num_train))

    def validation(self) -> Samples:
        """The validation rows, of which there may be none."""
        return self._rows(slice(self.num_train, self.num_train + self.num_validation))

    def test(self) -> Samples:
        """The test rows."""
        return self._rows(slice(self.num_train + self.num_validation, None))

    def _rows(self, rows: slice) -> Samples:
        inputs = {modality: taken(values, rows) for modality, values in self.inputs.items()}
        observed = {modality: has[rows] for modality, has in self.observed.items() if not has[rows].all()}
        return Samples(inputs, self.labels[rows], observed)


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where each client's samples stand in the files. Small: every process that reads them has one.

    Attributes:
        folder: The folder with the files.
        batches: Modality to the number of each client's batch in its file, (num_clients,) int64; -1 where the
            client does not own it. With several data sets, of `<data set>/<modality>`.
        num_train: (num_clients,) int64: train rows of each client.
        num_validation: (num_clients,) int64: validation rows of each client.
        num_test: (num_clients,) int64: test rows of each client.
        gaps: As `batches`, of the files that say in which rows modalities are observed; -1 where it is in all rows.
        views: (num_clients,) int64: which way of seeing the held-out set is each client's.
        labels: By tasks, such as `activity+who`, as `batches`, of the files of labels; -1 where a client has others.
        scales: As `batches`, of the files that say how clients scale the held-out set, each by numbers of its own.
    """

    folder: Path
    batches: Mapping[str, IntArray]
    num_train: IntArray
    num_validation: IntArray
    num_test: IntArray
    gaps: Mapping[str, IntArray]
    views: IntArray
    labels: Mapping[str, IntArray] = field(default_factory=dict)
    scales: Mapping[str, IntArray] = field(default_factory=dict)

    @property
    def num_samples(self) -> IntArray:
        """(num_clients,) int64: rows of each client, for whatever they are."""
        return self.num_train + self.num_validation + self.num_test

    @classmethod
    def joined(cls, parts: Sequence[tuple[Sequence[int], ShardIndex]]) -> ShardIndex:
        """The index of all clients, from those of several data sets in one folder, each with the ids of its clients."""
        num_clients = sum(len(clients) for clients, _ in parts)

        def spread(of: Callable[[ShardIndex], Mapping[str, IntArray]], fill: int) -> dict[str, IntArray]:
            found: dict[str, IntArray] = {}
            for clients, index in parts:
                for name, numbers in of(index).items():
                    found.setdefault(name, np.full(num_clients, fill, np.int64))[list(clients)] = numbers
            return found

        counts = ("num_train", "num_validation", "num_test", "views")
        return cls(
            folder=parts[0][1].folder,
            batches=spread(lambda index: index.batches, -1),
            gaps=spread(lambda index: index.gaps, -1),
            labels=spread(lambda index: index.labels, -1),
            scales=spread(lambda index: index.scales, -1),
            **spread(lambda index: {name: getattr(index, name) for name in counts}, 0),
        )


def write_shards(
    dataset: Dataset,
    federation: Federation,
    profiles: Sequence[ClientProfile],
    folder: Path,
    views: IntArray | None = None,
    name: str = "",
    scales: Mapping[str, Mapping[int, Scale]] = MappingProxyType({}),
) -> ShardIndex:
    """Write every client's samples; of those that the data set has on disk a little is in memory at once.

    Args:
        dataset: With the modalities of all clients, and in `label_columns` the labels of each task by its name.
        federation: Rows of each client, and what it observes in them.
        profiles: The clients in the order of their ids.
        folder: Made if it does not exist; files of the same name are replaced.
        views: As in `ShardIndex`; None: all clients see the held-out set in the same way.
        name: Of the data set, where there are several in one folder.
        scales: Of modalities that each owner scales by numbers of its own, these by client.

    Raises:
        RunFolderError: The files cannot be written.
    """
    rows = [federation.rows(client) for client in range(len(profiles))]
    places = [federation.located(dataset, client) for client in range(len(profiles))]
    sources = [*{id(part): part for part, _ in places}.values()]
    labels, batches, gaps, own_scales = {}, {}, {}, {}
    for tasks in sorted({profile.tasks for profile in profiles}):
        together = "+".join(tasks)
        has = np.array([profile.tasks == tasks for profile in profiles])
        own_places = [places[client] for client in np.flatnonzero(has)]
        parts = {id(part): _labels_of(part, tasks, dataset) for part, _ in own_places}
        _write(
            folder / _labels_name(together),
            next(iter(parts.values())),
            (parts[id(part)][own] for part, own in own_places),
        )
        labels[together] = _numbered(has)
    for modality, samples in dataset.inputs.items():
        observed = federation.observed.get(modality)
        owns = np.array([modality in profile.modalities for profile in profiles])
        by_client, key = scales.get(modality, {}), _key(modality, name)
        owned = (
            _samples(
                part.inputs[modality], own, None if observed is None else observed[rows[client]], by_client.get(client)
            )
            for client, (part, own) in enumerate(places)
            if owns[client]
        )
        stay_bytes = _stay_bytes([part.inputs[modality] for part in sources])
        _write(folder / _file_name(key), samples, owned, stay_bytes=stay_bytes)
        batches[key] = _numbered(owns)
        if by_client:
            found = [np.stack(by_client[client]) for client in np.flatnonzero(owns).tolist()]
            _write(folder / _scale_name(key), found[0], found)
            own_scales[key] = batches[key]
        if observed is not None:
            lacks = np.array([owner and not observed[own].all() for owner, own in zip(owns, rows, strict=True)])
            masks = (observed[rows[client]].view(np.uint8) for client in np.flatnonzero(lacks))
            _write(folder / _gaps_name(key), observed.view(np.uint8), masks)
            gaps[key] = _numbered(lacks)
    return ShardIndex(
        folder=folder,
        batches=batches,
        num_train=federation.train.counts,
        num_validation=federation.validation.counts,
        num_test=federation.test.counts,
        gaps=gaps,
        views=np.zeros(len(profiles), np.int64) if views is None else views,
        labels=labels,
        scales=own_scales,
    )


def write_held_out(
    held_out: Sequence[Dataset],
    folder: Path,
    *,
    dataset: Dataset | None = None,
    tasks: Collection[tuple[str, ...]] = (("",),),
    name: str = "",
) -> None:
    """Write the held-out global test set beside the shards in `folder`.

    Args:
        held_out: The set as clients see it, for each way in which they do.
        folder: Where `write_shards` writes.
        dataset: What that is given, for what the labels are of which the set has none; needed with several tasks.
        tasks: Those that clients have together.
        name: As in `write_shards`.

    Raises:
        RunFolderError: The files cannot be written.
    """
    for number, view in enumerate(held_out):
        place = _held_out(number)
        for modality, samples in view.inputs.items():
            file = folder / (place + _file_name(_key(modality, name)))
            _write(file, samples, [samples], stay_bytes=_stay_bytes([samples]))
        for modality, observed in view.observed.items():
            own = observed.view(np.uint8)
            _write(folder / (place + _gaps_name(_key(modality, name))), own, [own])
        for together in tasks:
            if any(column_of(view, task) is not None for task in together):
                labels = _labels_of(view, together, dataset or view)
                _write(folder / (place + _labels_name("+".join(together))), labels, [labels])


def pack(index: ShardIndex, clients: Sequence[int]) -> dict[str, ByteArray]:
    """The samples of these clients alone, for a process that cannot map the files.

    Args:
        index: What `write_shards` returned.
        clients: Ids in any order, each once.

    Returns:
        One Arrow file as a uint8 vector for the labels of each task and for each modality that one of the clients has,
        one for each that one of them does not observe throughout, or scales by numbers of its own, and the clients'
        ids; `ShardReader` reads them.

    Raises:
        DataError: A file is missing or damaged.
    """
    chosen = np.array(clients, np.int64)
    numbers = {_labels_name(task): batches[chosen] for task, batches in index.labels.items()}
    numbers |= {_file_name(modality): batches[chosen] for modality, batches in index.batches.items()}
    numbers |= {_gaps_name(modality): batches[chosen] for modality, batches in index.gaps.items()}
    numbers |= {_scale_name(modality): batches[chosen] for modality, batches in index.scales.items()}
    owned = {name: own[own >= 0] for name, own in numbers.items() if (own >= 0).any()}
    return {
        _CLIENTS: chosen.view(np.uint8),
        **{name: _copy_batches(index.folder / name, own) for name, own in owned.items()},
    }


def pack_held_out(index: ShardIndex, clients: Sequence[int]) -> dict[str, ByteArray]:
    """The held-out set as these clients see it, to be merged into what `pack` gives; empty where none was written.

    Apart from `pack`, since many processes can share one copy of it.

    Raises:
        DataError: A file is missing or damaged.
    """
    if not (index.folder / _held_out(0)).is_dir():
        return {}
    owned = [modality for modality, batches in index.batches.items() if (batches[list(clients)] >= 0).any()]
    files = [*map(_labels_name, index.labels), *map(_file_name, owned), *map(_gaps_name, owned)]
    views = np.unique(index.views[list(clients)]).tolist()
    names = [name for view in views for file in files if _is_file(index.folder / (name := _held_out(view) + file))]
    return {name: _copy_batches(index.folder / name, np.zeros(1, np.int64)) for name in names}


class ShardReader:
    """Reads shards without copying them. Files are opened when they are first needed.

    Args:
        index: What `write_shards` returned, with its folder still in place where there are no buffers.
        buffers: What `pack` returned, with what `pack_held_out` returned where the held-out set is needed. They must
            not change while views are in use.
    """

    def __init__(self, index: ShardIndex, buffers: Mapping[str, ByteArray] | None = None) -> None:
        self._index, self._buffers = index, buffers
        self._open: dict[str, tuple[Any, dict[str, Any], Any]] = {}
        numbers = (index.labels, index.batches, index.gaps, index.scales)
        self._labels, self._batches, self._gaps, self._scales = numbers
        if buffers is not None:
            packed = np.frombuffer(buffers[_CLIENTS], np.int64)
            self._labels, self._batches, self._gaps, self._scales = (
                {name: _renumbered(batches, packed) for name, batches in own.items()} for own in numbers
            )

    def shard(self, client: int) -> Shard:
        """One client's samples, in its own modalities.

        Raises:
            KeyError: The packed buffers do not hold this client.
            DataError: A file is missing or damaged.
        """
        own = _of(client, self._labels)
        if not own:
            raise KeyError(client)
        task, position = own[0]
        observed = {key: self._array(_gaps_name(key), number) for key, number in _of(client, self._gaps)}
        observed = {key: has.view(np.bool_) for key, has in observed.items()}
        scales = self._own_scales(client)
        inputs = {
            key: self._samples(_file_name(key), number, observed.get(key), scales.get(key))
            for key, number in _of(client, self._batches)
        }
        return Shard(
            inputs={_modality(key): values for key, values in inputs.items()},
            labels=self._array(_labels_name(task), position),
            num_train=int(self._index.num_train[client]),
            num_validation=int(self._index.num_validation[client]),
            observed={_modality(key): has for key, has in observed.items()},
        )

    def held_out(self, client: int) -> Shard | None:
        """The held-out global test set as a client sees it, all rows test rows; None where its task has none.

        Raises:
            DataError: A file is missing or damaged.
        """
        place, owned = _held_out(int(self._index.views[client])), [key for key, _ in _of(client, self._batches)]
        labels = place + _labels_name(_of(client, self._labels)[0][0])
        if not self._has_file(labels):
            return None
        gaps = [key for key in owned if self._has_file(place + _gaps_name(key))]
        observed = {key: self._array(place + _gaps_name(key), 0).view(np.bool_) for key in gaps}
        scales = self._own_scales(client)
        inputs = {key: self._samples(place + _file_name(key), 0, observed.get(key), scales.get(key)) for key in owned}
        for key, scale in scales.items():
            if isinstance(values := inputs[key], np.ndarray):
                own = _samples(values, slice(None), observed.get(key), scale)
                inputs[key] = own.in_one_piece(self._index.folder if self._buffers is None else None)
        return Shard(
            inputs={_modality(key): values for key, values in inputs.items()},
            labels=self._array(labels, 0),
            num_train=0,
            observed={_modality(key): has for key, has in observed.items()},
        )

    def close(self) -> None:
        """Close the files. The memory behind shards is given back when the last view of it goes."""
        for _, _, source in self._open.values():
            source.close()
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _has_file(self, name: str) -> bool:
        return _is_file(self._index.folder / name) if self._buffers is None else name in self._buffers

    def _own_scales(self, client: int) -> dict[str, Scale]:
        return {key: Scale(*self._array(_scale_name(key), number)) for key, number in _of(client, self._scales)}

    def _samples(self, name: str, number: int, observed: BoolArray | None, scale: Scale | None) -> Rows:
        """A batch as float32; bytes become what they stand for when they are read, in this scale or that of all."""
        values: npt.NDArray[Any] = self._array(name, number)
        told = self._open[name][1]
        if "factor" not in told:
            return values
        pooled = None if told["scale"] is None else Scale(*map(np.array, told["scale"]))
        rows = replace(StoredRows.of(values), factor=told["factor"])
        return _samples(rows, slice(None), observed, scale or pooled)

    def _array(self, name: str, number: int) -> Any:
        """A batch, (n, *shape) as it is kept: a read-only view of the file or of the buffer."""
        with _damage_told(name):
            if name not in self._open:
                if self._buffers is None:
                    source = pa.memory_map(_file(self._index.folder / name))
                else:
                    source = pa.BufferReader(pa.py_buffer(self._buffers[name]))
                file = pa.ipc.open_file(source)
                told = {key.decode(): json.loads(value) for key, value in file.schema.metadata.items()}
                self._open[name] = file, told, source
            file, told, _ = self._open[name]
            batch = file.get_batch(number)
        return batch.column(0).values.to_numpy(zero_copy_only=True).reshape(batch.num_rows, *told["shape"])


def _key(modality: str, dataset: str) -> str:
    """What a modality is called among those of all data sets."""
    return f"{dataset}/{modality}" if dataset else modality


def _modality(key: str) -> str:
    return key.rpartition("/")[2]


def _file_name(key: str) -> str:
    return f"input-{key}"


def _labels_name(task: str) -> str:
    return f"labels-{task}" if task else "labels"


def _labels_of(part: Dataset, tasks: Sequence[str], dataset: Dataset) -> Labels:
    """The labels of some tasks in a part of a data set, as `Samples` has them; those that it lacks are not known."""
    found = []
    for task in tasks:
        column, like = column_of(part, task), column_of(dataset, task)
        assert like is not None, "the data set has the labels of all tasks"
        if column is None:
            labels = np.zeros((part.num_samples, *like.labels.shape[1:]), like.labels.dtype)
            column = LabelColumn(labels, like.class_names, np.zeros(labels.shape, bool))
        found.append(column)
    if len(found) == 1 and not is_partial(dataset, tasks[0]):
        return found[0].labels
    return label_rows([(column.labels, column.known) for column in found])


def _gaps_name(key: str) -> str:
    return f"observed-{key}"


def _scale_name(key: str) -> str:
    return f"scale-{key}"


def _held_out(view: int) -> str:
    return f"{_HELD_OUT}{view}/"


def _of(client: int, numbers: Mapping[str, IntArray]) -> list[tuple[str, int]]:
    """The modalities, or tasks, of which a client has a batch, and the number of that."""
    return [(modality, int(batches[client])) for modality, batches in numbers.items() if batches[client] >= 0]


def _samples(values: Rows, rows: IntArray | slice, observed: BoolArray | None, scale: Scale | None) -> StoredRows:
    """Some rows, zeros where they are not observed (n,); scaled by what a client has of its own, if anything."""
    found = StoredRows.of(values).chosen(rows)
    found = found if observed is None else found.without(~observed, 0)
    return found if scale is None else replace(found, scale=scale)


def _numbered(owns: npt.NDArray[np.bool_]) -> IntArray:
    """Batch numbers 0, 1, ... for those that own, -1 for the others."""
    return np.where(owns, np.cumsum(owns) - 1, -1).astype(np.int64)


def _renumbered(batches: IntArray, clients: IntArray) -> IntArray:
    """The numbers that batches have in what `pack` gives for these clients."""
    packed = np.full_like(batches, -1)
    packed[clients] = _numbered(batches[clients] >= 0)
    return packed


def _stay_bytes(parts: Collection[Rows]) -> bool:
    """Whether these samples are bytes, of one meaning, and many."""
    factors = {part.factor if isinstance(part, StoredRows) and part.is_of_bytes else None for part in parts}
    return len(factors) == 1 and None not in factors and sum(part.nbytes for part in parts) > _MOST_FLOATS


def _write(path: Path, like: _Batch, batches: Iterable[_Batch], *, stay_bytes: bool = False) -> None:
    """Write batches of rows, each row flattened into a fixed-size list; its shape, as in `like`, is metadata.

    Of rows that stay bytes it is metadata, too, what they stand for.
    """
    dtype, told = like.dtype, {"shape": json.dumps(like.shape[1:])}
    if stay_bytes and isinstance(like, StoredRows):
        scale = None if like.scale is None else [numbers.tolist() for numbers in like.scale]
        dtype, told = np.dtype(np.uint8), told | {"factor": json.dumps(like.factor), "scale": json.dumps(scale)}
    item = pa.field("item", pa.from_numpy_dtype(dtype), nullable=False)
    row = pa.field("row", pa.list_(item, math.prod(like.shape[1:])), nullable=False)
    schema = pa.schema([row], metadata=told)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(_file(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for rows in batches:
                if isinstance(rows, StoredRows):
                    rows = (rows.as_kept() if stay_bytes else rows).in_one_piece(path.parent, dtype)
                flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
                column = pa.FixedSizeListArray.from_arrays(flat, type=row.type)
                writer.write_batch(pa.record_batch([column], schema=schema))
    except OSError as error:
        raise RunFolderError(f"{_file(path)} cannot be written: {error}") from error


def _copy_batches(path: Path, numbers: IntArray) -> ByteArray:
    """Some batches of a file, in this order, as a file of their own in memory."""
    with _damage_told(path.name), pa.memory_map(_file(path)) as source:
        reader = pa.ipc.open_file(source)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, reader.schema) as writer:
            for number in numbers.tolist():
                writer.write_batch(reader.get_batch(number))
    return np.frombuffer(sink.getvalue(), np.uint8)


def _file(path: Path) -> str:
    return f"{path}{_SUFFIX}"


def _is_file(path: Path) -> bool:
    return os.path.exists(_file(path))


@contextmanager
def _damage_told(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, KeyError) as error:
        raise DataError(f"{name}{_SUFFIX} is missing; expected the shards as they were written") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{name}{_SUFFIX} is damaged ({error}); expected it as it was written") from error
