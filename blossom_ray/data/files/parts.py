"""Arrow files with the samples of some values each, and the folder in the cache that one process at a time fills.

A file is written whole or not at all, with the checksum of what is in it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from blossom_ray.data.files.cache import writable
from blossom_ray.errors import DataError
from blossom_ray.storage import replacing


class Part(NamedTuple):
    """A file's content.

    Attributes:
        samples: (n, *shape), mapped from the file, read-only.
        errors: By the number of a value that is no sample, what is wrong with it; its sample is 0.
        num_bytes: Of the file.
    """

    samples: npt.NDArray[Any]
    errors: Mapping[int, str]
    num_bytes: int


def open_part(file: Path) -> Part | None:
    """What `write_part` wrote; None where there is no such file, or it is damaged."""
    try:
        with pa.memory_map(str(file)) as source:
            num_bytes = source.size()
            table = pa.ipc.open_file(source)
            batch = table.get_batch(0)
            batch.validate()
            errors = batch.column("error").to_pylist()
            flat = batch.column("sample").values.to_numpy()
            if table.schema.metadata[b"crc32"].decode() != _checksum(flat, errors):
                return None
            samples = flat.reshape(len(errors), *json.loads(table.schema.metadata[b"shape"]))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, AttributeError):
        return None
    samples.setflags(write=False)
    return Part(samples, {number: error for number, error in enumerate(errors) if error is not None}, num_bytes)


def write_part(file: Path, samples: npt.NDArray[Any], errors: Sequence[str | None]) -> Part:
    """Write samples (n, *shape), n > 0, and for each value what is wrong with it, if anything is.

    Raises:
        DataError: The cache cannot be written.
    """
    flat = np.ascontiguousarray(samples).reshape(-1)
    mask = pa.array([error is not None for error in errors])
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat), len(flat) // len(samples), mask=mask)
    batch = pa.record_batch([column, pa.array(errors, pa.string())], ["sample", "error"])
    facts = {"crc32": _checksum(flat, errors), "shape": json.dumps(samples.shape[1:])}
    schema = batch.schema.with_metadata(facts)
    with (
        writable(file.parents[1]),
        replacing(file, shared=True) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        writer.write_batch(batch.replace_schema_metadata(facts))
    found = open_part(file)
    if found is None:
        raise DataError(f"{file} was written and cannot be read back; expected a disk that keeps what is written")
    return found


def lock_folder(folder: Path, stack: ExitStack) -> None:
    """Make a folder of parts, and be the only process that writes there until `stack` is left.

    Raises:
        DataError: The cache cannot be written.
    """
    from filelock import FileLock  # which imports asyncio

    with writable(folder.parent):
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(folder.parent / f".{folder.name}.lock"))


def _checksum(flat: npt.NDArray[Any], errors: Sequence[str | None]) -> str:
    """CRC-32, which finds damage at several gigabytes a second; what a file is of, its name tells by SHA-256."""
    return f"{zlib.crc32(json.dumps(errors).encode(), zlib.crc32(flat.data)):08x}"
