"""A data set in memory: one array per modality, labels, and subjects where the data set has them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from blossom_ray.errors import DataError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Targets:
    """What a partition needs of a data set: labels and subjects, without the inputs.

    Attributes:
        labels: (N,) int64, 0..num_classes-1.
        num_classes: Number of classes.
        subjects: (N,) int64, or None where samples belong to no subject.
    """

    labels: IntArray
    num_classes: int
    subjects: IntArray | None = None


@dataclass(frozen=True)
class Dataset:
    """Samples of several modalities with one label each.

    Attributes:
        inputs: Modality to array (N, *shape), float32, finite. Rows of all modalities belong together.
        labels: (N,) int64, 0..len(class_names)-1.
        class_names: Name of each class.
        subjects: (N,) int64, or None.
        held_out: A global test set that no client trains on, or None.

    Raises:
        DataError: Arrays of unequal length, a wrong type or shape, a label out of range, a value that is not finite.
    """

    inputs: Mapping[str, FloatArray]
    labels: IntArray
    class_names: tuple[str, ...]
    subjects: IntArray | None = None
    held_out: Dataset | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.inputs, Mapping):
            raise DataError(
                f"inputs are of type {type(self.inputs).__name__}; expected a mapping from modality to array"
            )
        if not self.inputs:
            raise DataError("the data set has no modality")
        _check_names(self.inputs, self.class_names)
        _check_dtype("labels", self.labels, np.int64)
        if self.labels.ndim != 1:
            raise DataError(f"labels have shape {self.labels.shape}; expected one label per sample")
        if self.num_samples == 0:
            raise DataError("the data set has no samples")
        if self.subjects is not None:
            _check_array("subjects", self.subjects, np.int64, self.num_samples)
            if self.subjects.ndim != 1:
                raise DataError(f"subjects have shape {self.subjects.shape}; expected one subject per sample")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.num_classes:
            raise DataError(f"labels run from {low} to {high}; expected 0 to {self.num_classes - 1}")
        for modality, values in self.inputs.items():
            _check_array(f"modality {modality!r}", values, np.float32, self.num_samples)
            if values.ndim < 2 or 0 in values.shape:
                raise DataError(
                    f"modality {modality!r} has shape {values.shape}; expected (samples, ...), none of it 0"
                )
            if not np.isfinite(values).all():
                row = int(np.argmax(~np.isfinite(values).reshape(len(values), -1).all(axis=1)))
                raise DataError(f"modality {modality!r}, row {row}: a value is not finite")
        if self.held_out is not None and not isinstance(self.held_out, Dataset):
            raise DataError(f"the held-out set is of type {type(self.held_out).__name__}; expected a Dataset")
        if self.held_out is not None and self.held_out.input_shapes != self.input_shapes:
            raise DataError(f"the held-out set has shapes {self.held_out.input_shapes}; expected {self.input_shapes}")

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one sample by modality."""
        return {modality: tuple(values.shape[1:]) for modality, values in self.inputs.items()}

    @property
    def targets(self) -> Targets:
        """Labels and subjects."""
        return Targets(self.labels, self.num_classes, self.subjects)

    def fingerprint(self) -> str:
        """SHA-256 (hex) over names, shapes and values: equal for equal data, whatever file they came from."""
        digest = hashlib.sha256()
        arrays: dict[str, np.ndarray] = {**dict(sorted(self.inputs.items())), "labels": self.labels}
        if self.subjects is not None:
            arrays["subjects"] = self.subjects
        for name, values in arrays.items():
            digest.update(f"{name}{values.shape}{values.dtype}".encode())
            digest.update(np.ascontiguousarray(values).data)
        digest.update("\0".join(self.class_names).encode())
        if self.held_out is not None:
            digest.update(self.held_out.fingerprint().encode())
        return digest.hexdigest()


def _check_names(inputs: Mapping[Any, Any], class_names: Any) -> None:
    if not isinstance(class_names, tuple | list) or not all(isinstance(name, str) for name in class_names):
        raise DataError("class_names are not a tuple of text; expected the name of each class")
    for modality in inputs:
        if not isinstance(modality, str):
            raise DataError(f"a modality is called {modality!r}; expected text")


def _check_array(name: str, values: Any, dtype: type[np.generic], length: int) -> None:
    _check_dtype(name, values, dtype)
    if values.ndim == 0 or len(values) != length:
        raise DataError(f"{name} have shape {values.shape}; expected {length} rows, as many as labels")


def _check_dtype(name: str, values: Any, dtype: type[np.generic]) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != dtype:
        found = getattr(values, "dtype", type(values).__name__)
        raise DataError(f"{name} have type {found}; expected a NumPy array of {np.dtype(dtype)}")
