"""Features that are computed once: from decoded samples to Arrow files in the cache, some samples at a time.

A file is named after the decoded part that it follows from and its first sample there, in a folder named after what
decoded the part and after the model. What was killed goes on with the first file that is not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from blossom_ray.core.progress import tell
from blossom_ray.data.files.cache import cache_folder
from blossom_ray.data.files.decoded import Decoded, Kept
from blossom_ray.data.files.parts import Part, lock_folder, open_part, write_part
from blossom_ray.data.modalities.base import Media
from blossom_ray.data.modalities.features import Features, features_key
from blossom_ray.data.stored import StoredRows
from blossom_ray.data.targets import FloatArray
from blossom_ray.errors import DataError

if TYPE_CHECKING:
    from blossom_ray.data.modalities.extractors import Extractor

_FILE_BYTES = 2**25
"""Of the features of a file, which has at least a batch."""


def extracted(
    found: Decoded, media: Media, name: str, where: str, place: Callable[[int], str], *, folder: Path | None = None
) -> Decoded:
    """The features of decoded samples; those that were computed before come from the cache.

    The model runs on all cores, or on a GPU where PyTorch finds one. Memory: the model, a batch, and the features of a
    file. A second process that asks for the same waits until it is there.

    Args:
        found: The samples.
        media: What decoded them, and says which features.
        name: Of the modality, for the progress.
        where: Its section's place in the scenario, or its name, for messages.
        place: Words for the place of a value, by its number.
        folder: Where the cache lies; `cache_folder()` by default.

    Returns:
        Of the samples without error, in their order, features (n, *shape) float32; errors as in `found`.

    Raises:
        InputError: The model is not to be had, it refuses the samples, its features are not finite or of several
            shapes, or the cache cannot be written.
    """
    assert media.features is not None
    parts: list[Part] = []
    with ExitStack() as stack:
        work = _Work(
            media.features,
            media,
            name,
            f"{where}.features",
            place,
            sum(map(len, found.parts)) - len(found.errors),
            stack,
        )
        key = json.dumps([found.files[0].parent.name if found.files else "", work.key], sort_keys=True)
        root = cache_folder() if folder is None else folder
        work.folder = root / f"features-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
        first = 0
        for samples, file in zip(found.parts, found.files, strict=True):
            right = np.array([row for row in range(len(samples)) if first + row not in found.errors], np.int64)
            parts += work.of_part(StoredRows((samples,), right, found.factor), file.stem, first)
            first += len(samples)
    return Decoded(
        parts=tuple(part.samples for part in parts) or (np.empty((0, 1), np.float32),),
        errors=found.errors,
        files=found.files,
        factor=1.0,
        kept=(*found.kept, Kept(work.folder, work.num_done, work.num_new, sum(part.num_bytes for part in parts))),
    )


@dataclass
class _Work:
    """A model, and the folder that its features go to."""

    features: Features
    media: Media
    name: str
    where: str
    place: Callable[[int], str]
    num_all: int
    stack: ExitStack
    folder: Path = field(init=False)
    shape: tuple[int, ...] | None = field(default=None, init=False)
    num_done: int = field(default=0, init=False)
    num_new: int = field(default=0, init=False)
    is_locked: bool = field(default=False, init=False)

    @cached_property
    def extractor(self) -> Extractor:
        """The model, loaded when it is first needed."""
        from blossom_ray.data.modalities.extractors import open_extractor

        rate: int | None = getattr(self.media, "rate", None)
        found = open_extractor(self.features, self.where, kind=self.media.kind, rate=rate)
        self.stack.callback(found.release)
        return found

    @property
    def key(self) -> dict[str, object]:
        """All that features follow from besides the samples."""
        key = features_key(self.features, self.where)
        # A callable may give a module that its code does not tell from others.
        return {**key, "values": self.extractor.checksum()} if callable(self.features.module) else key

    def of_part(self, samples: StoredRows, stem: str, first: int) -> Iterator[Part]:
        """The files with the features of a part's samples; `first` is the number of the part's first value."""
        start = 0
        while start < len(samples):
            file = self.folder / f"{stem}-{start}.arrow"
            part = open_part(file)
            if part is None:
                if not self.is_locked:
                    lock_folder(self.folder, self.stack)
                    self.is_locked = True
                    continue  # another process may have written it meanwhile
                features = self.computed(samples.chosen(slice(start, None)), first)
                part = write_part(file, features, [None] * len(features))
                self.num_new += len(features)
            self.check_shape(part.samples.shape[1:])
            start += len(part.samples)
            self.num_done += len(part.samples)
            tell(f"features of {self.name}", self.num_done, self.num_all)
            yield part

    def computed(self, samples: StoredRows, first: int) -> FloatArray:
        """The features of the first of these samples, as many as a file takes."""
        batches: list[FloatArray] = []
        for start in range(0, len(samples), self.features.batch_size):
            rows = slice(start, start + self.features.batch_size)
            features = self.extractor(samples[rows])
            self.check_shape(features.shape[1:])
            is_finite = np.isfinite(features).reshape(len(features), -1).all(axis=1)
            if not is_finite.all():
                place = self.place(first + int(samples.rows[rows][is_finite.argmin()]))
                raise DataError(f"{place}: what {self.where} gives is not finite; expected finite numbers")
            batches.append(features)
            tell(f"features of {self.name}", self.num_done + rows.start + len(features), self.num_all)
            if sum(batch.nbytes for batch in batches) >= _FILE_BYTES:
                break
        return np.concatenate(batches)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if self.shape not in (None, shape):
            found = f"{self.where}: the model gives {shape} for some samples and {self.shape} for others"
            raise DataError(f"{found}; expected one shape")
        self.shape = shape
