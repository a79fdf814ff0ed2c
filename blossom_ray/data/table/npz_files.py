"""NumPy's archives (`np.savez`): each array a column, read some rows at a time and never unpickled."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from blossom_ray.data.table.columns import Batches, check_distinct, damage_told
from blossom_ray.errors import DataError

_BYTES_AT_ONCE = 2**24
_FEW_BYTES = 2**30
_MOST_PACKED = 100
"""So many times its packed size may an array have that is above `_FEW_BYTES`; more is a zip bomb."""
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class _Array(NamedTuple):
    """An array of N rows as it lies in its member.

    Attributes:
        member: Name of the member.
        start: Bytes in it before the values.
        num_rows: N.
        shape: Of a row.
        dtype: Of a value.
        is_fortran: Whether the first index varies fastest.
    """

    member: str
    start: int
    num_rows: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * self.dtype.itemsize


class NpzFile:
    """As `ColumnFile`: arrays (N, *shape), all of one N, of numbers, truth values or text.

    Args:
        path: The file.
        name: What messages call it.

    Raises:
        DataError: It is no such archive or damaged, an array holds Python objects, or has another N than the others.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self.name, self.folder = path, name, path.parent
        with self._damage_told(), zipfile.ZipFile(path) as archive:
            check_distinct(self.name, archive.namelist())
            self._arrays = {
                member.filename.removesuffix(".npy"): self._array(archive, member) for member in archive.infolist()
            }
        if not self._arrays:
            raise DataError(f"{self.name} holds no array; expected one per column")
        first, *others = self._arrays.items()
        for name, array in others:
            if array.num_rows != first[1].num_rows:
                found = (
                    f"{self.name} has {first[1].num_rows:,} rows in array {first[0]!r}, {array.num_rows:,} in {name!r}"
                )
                raise DataError(f"{found}; expected a row per sample in each array")
        self.num_rows = first[1].num_rows
        self.types: Mapping[str, Any] = {name: _type(array) for name, array in self._arrays.items()}
        self.index_columns: frozenset[str] = frozenset()
        self.metadata: Mapping[bytes, bytes] = {}

    def may_have_nulls(self, column: str) -> bool:
        """As `ColumnFile`: an array has none."""
        return column not in self.types

    def batches(self, columns: Sequence[str]) -> Batches:
        """As `ColumnFile`. A batch is about 16 MiB."""
        arrays = {name: self._arrays[name] for name in columns}
        rows_at_once = max(1, _BYTES_AT_ONCE // max(1, sum(array.row_bytes for array in arrays.values())))
        with self._damage_told(), zipfile.ZipFile(self._path) as archive, ExitStack() as opened:
            sources = {name: opened.enter_context(archive.open(array.member)) for name, array in arrays.items()}
            whole = {}
            for name, array in arrays.items():
                sources[name].read(array.start)
                if array.is_fortran:  # whose rows are spread over all of it
                    values = _values(sources[name], array, self.num_rows)
                    whole[name] = values.reshape(*reversed(array.shape), self.num_rows).transpose()
            for first_row in range(0, self.num_rows, rows_at_once):
                num_rows = min(rows_at_once, self.num_rows - first_row)
                yield (
                    first_row,
                    {
                        name: _column(
                            whole[name][first_row : first_row + num_rows]
                            if array.is_fortran
                            else _values(sources[name], array, num_rows).reshape(num_rows, *array.shape),
                            self.types[name],
                        )
                        for name, array in arrays.items()
                    },
                )

    def _array(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Array:
        place = f"{self.name}, array {member.filename.removesuffix('.npy')!r}"
        if not member.filename.endswith(".npy") or member.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise DataError(f"{self.name} holds {member.filename!r}; expected arrays alone, as np.savez writes them")
        size, packed = member.file_size, member.compress_size
        if size > max(_FEW_BYTES, _MOST_PACKED * packed):
            found = f"{place} has {size:,} bytes, packed into {packed:,}"
            raise DataError(f"{found}; expected at most {_FEW_BYTES:,}, or {_MOST_PACKED} times as many as packed")
        with archive.open(member) as file:
            try:
                shape, is_fortran, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
            except (ValueError, KeyError) as error:
                raise DataError(f"{place} has no header of NumPy; expected an array as np.savez writes it") from error
            start = file.tell()
        if dtype.hasobject:
            raise DataError(f"{place} holds Python objects, which are pickles; expected numbers, truth values or text")
        if dtype.kind not in "biufUS" or not dtype.itemsize or (dtype.kind == "f" and dtype.itemsize > 8):
            raise DataError(f"{place} is of type {dtype}; expected numbers, truth values or text")
        if not shape or min(shape[1:], default=1) < 1 or shape[0] < 0:
            raise DataError(f"{place} has shape {list(shape)}; expected a row per sample, with values")
        array = _Array(member.filename, start, shape[0], shape[1:], dtype, is_fortran and len(shape) > 1)
        if start + shape[0] * array.row_bytes != size:
            found = f"{place} has {size - start:,} bytes for shape {list(shape)} of {dtype}"
            raise DataError(f"{found}; expected {shape[0] * array.row_bytes:,}")
        if array.is_fortran and size > _FEW_BYTES:
            found = f"{place} has {size:,} bytes in Fortran's order, in which no row stands by itself"
            raise DataError(f"{found}; expected at most {_FEW_BYTES:,}, or np.ascontiguousarray of it")
        return array

    def _damage_told(self) -> AbstractContextManager[None]:
        return damage_told(self.name, "an .npz archive of arrays, whole, as np.savez writes it")


def _values(source: IO[bytes], array: _Array, num_rows: int) -> npt.NDArray[Any]:
    content = source.read(num_rows * array.row_bytes)
    if len(content) < num_rows * array.row_bytes:
        raise EOFError("not all of it is there")
    return np.frombuffer(content, array.dtype)


def _type(array: _Array) -> Any:
    if array.dtype.kind in "US":
        return pa.list_(pa.string(), math.prod(array.shape)) if array.shape else pa.string()
    type_ = pa.from_numpy_dtype(array.dtype.newbyteorder("="))
    return pa.fixed_shape_tensor(type_, array.shape) if array.shape else type_


def _column(values: npt.NDArray[Any], type_: Any) -> Any:
    """The rows (n, *shape) as an Arrow array."""
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    flat = np.ascontiguousarray(values).reshape(-1)
    if values.dtype.kind == "U":
        leaves = pa.array(flat.tolist(), pa.string())
    else:
        leaves = pa.array(flat.astype(flat.dtype.newbyteorder("="), copy=False))
    if isinstance(type_, pa.FixedShapeTensorType):
        storage = pa.FixedSizeListArray.from_arrays(leaves, type_.storage_type.list_size)
        return pa.ExtensionArray.from_storage(type_, storage)
    return leaves if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(leaves, type_.list_size)
