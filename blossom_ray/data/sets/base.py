"""What every data set has: its facts, a way to open it, and what the loaders of several have in common.

A data set is a file beside this one: a section of the scenario with its options, its facts, and the loader that `open`
gives. What is heavy (Arrow, SciPy, PyTorch) is imported when files are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from blossom_ray.core.phrases import one_of, shown
from blossom_ray.core.scores import LearnedTask, Task
from blossom_ray.core.section import Finding
from blossom_ray.data.dataset import Dataset, LeftOut
from blossom_ray.data.division.options import DirichletPartition, Division
from blossom_ray.data.files.archives import LARGEST_TABLE_BYTES, Archive, open_archive
from blossom_ray.data.files.remote import local_path
from blossom_ray.data.modalities.base import Scaling
from blossom_ray.data.modalities.text import TextModality
from blossom_ray.data.targets import FloatArray, IntArray, Targets
from blossom_ray.errors import DataError, InputError

Shapes = Mapping[str, tuple[int, ...]]


class DataSource(Protocol):
    """A data set that has not been read yet."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that `load` gives, sorted."""

    def targets(self) -> Targets:
        """Labels and subjects of the samples that clients share; cheap where the data set allows it.

        Raises:
            DataError: The data set is missing, damaged or not of the announced shape.
        """

    def load(self) -> Dataset:
        """All samples of these modalities, and the held-out set where there is one.

        Raises:
            DataError: The data set is missing, damaged or not of the announced shape.
        """


@dataclass(frozen=True)
class DatasetFacts:
    """What people ask before they download a data set.

    Attributes:
        title: Its full name and source.
        holds: Number and kind of its samples.
        classes: Number of classes, or how they follow from the options.
        tasks: The tasks that its labels serve.
        held_out: What the held-out global test set is, or "none".
        download: What `data.path` must name, as a phrase that completes "expected ..."; "" where no file is needed.
        page: Where to get it, as a phrase that completes "get it from ...", or "".
        licence: Its licence, or "".
        extra: The extra of this package that decoding needs, as in `pip install "blossom-ray[extra]"`, or "".
        shapes: Shape of one sample by modality, with the default options; empty where the scenario decides.
        labels: By the name of its labels, for `tasks`, the tasks that they serve. The first are those of
            `Dataset.labels`. Empty where the data say.
    """

    title: str
    holds: str
    classes: str
    tasks: tuple[Task, ...]
    held_out: str
    download: str = ""
    page: str = ""
    licence: str = ""
    extra: str = ""
    shapes: Shapes = field(default_factory=dict)
    labels: Mapping[str, tuple[Task, ...]] = field(default_factory=dict)


class DataSection(Division):
    """The `data` section. Each data set is a subclass."""

    facts: ClassVar[DatasetFacts]
    """What is known of it without reading it."""

    if TYPE_CHECKING:
        dataset: str

    def open(self, modalities: tuple[str, ...], seed: int, task: Task, /) -> DataSource:
        """The data set as a source. Nothing is read or generated yet; files at a URI are brought here.

        Args:
            modalities: Those that the federation's clients own.
            seed: The scenario's seed; generated data depend on it, and pairs of `av-mnist` without a seed of their own.
            task: The scenario's task; own data that are for another one are refused when they are read.

        Raises:
            DataError: `path` is missing where files are needed, what is at a URI cannot be had, or the data set lacks
                a modality.
        """
        raise NotImplementedError

    def open_learned(self, modalities: tuple[str, ...], seed: int, learned: Mapping[str, LearnedTask], /) -> DataSource:
        """The same for what a scenario's clients learn; `Dataset.labelled` then has the labels of each task.

        Args:
            modalities: As `open`.
            seed: As `open`.
            learned: By the name of a task, as `ScenarioTree.learned`.

        Raises:
            DataError: As `open`.
        """
        return self.open(modalities, seed, next(iter(learned.values())).kind)

    def labelled(self, dataset: Dataset, labels: str | None) -> Dataset:
        """The data set, as it was loaded, with the labels that a task names.

        Raises:
            DataError: It has none of this name.
        """
        return dataset.labelled(None if labels == next(iter(self.facts.labels), None) else labels)

    def skewed_labels(self, learned: Mapping[str, LearnedTask]) -> str | None:
        """The labels whose classes the partition skews; None: those of `Dataset.labels`."""
        named = self.partition.labels if isinstance(self.partition, DirichletPartition) else None
        labels = named or next(iter(learned.values())).labels
        return None if labels == next(iter(self.facts.labels), None) else labels

    @property
    def num_subjects(self) -> int | None:
        """Subjects among the samples that clients share in the whole data set, or None where that is unknown."""
        return None

    def input_shapes(self, _modalities: Iterable[str], /) -> dict[str, tuple[int, ...]]:
        """Shape of one sample by modality, for those of them of which the section tells it."""
        return {}

    def scaling(self, _modality: str, /) -> Scaling:
        """How a modality is to be scaled."""
        return Scaling()

    def task_problems(self, task: Task) -> Iterator[Finding]:
        """What does not fit the scenario's task."""
        if task not in self.facts.tasks:
            found = f"{shown(task)}, which the labels of {self.dataset} do not serve"
            yield Finding("task", found, one_of(self.facts.tasks))

    def problem(self, error: InputError) -> tuple[str, str, str]:
        """An error of the source as a problem of the scenario: path, what was found, what is expected."""
        return "data", f"cannot be used ({error})", "a data set that can be loaded"


class Download(DataSection):
    """A data set that is read from files as one downloads them, named by `path`."""

    landmarks: ClassVar[tuple[str, ...]]
    """Members of archives and folders of which every copy of the data set has one."""
    largest_bytes: ClassVar[int] = LARGEST_TABLE_BYTES
    """Members of archives above this size are refused."""

    if TYPE_CHECKING:
        path: str | None

    @property
    def shapes(self) -> Shapes:
        """Shape of one sample by modality, for all modalities of the data set with these options."""
        return self.facts.shapes

    def input_shapes(self, modalities: Iterable[str], /) -> dict[str, tuple[int, ...]]:
        return {name: self.shapes[name] for name in modalities if name in self.shapes}

    def open(self, modalities: tuple[str, ...], seed: int, _task: Task, /) -> DataSource:
        if self.path is None:
            raise DataError(f"data.path is missing; expected {self.facts.download}; get it from {self.facts.page}")
        path = local_path(self.path)
        try:
            files = Path(path).expanduser()
        except RuntimeError as error:
            raise DataError(f"{path}: {error}; expected {self.facts.download}") from error
        for modality in modalities:
            if modality not in self.shapes:
                expected = f"some of {', '.join(self.shapes)}"
                raise DataError(f"{self.dataset} has no modality {modality!r}; expected {expected}")
        return Opened(self, files, tuple(sorted(modalities)), seed)

    def read_targets(self, opened: Opened, /) -> Targets:
        """What `DataSource.targets` gives."""
        raise NotImplementedError

    def read(self, opened: Opened, /) -> Dataset:
        """What `DataSource.load` gives."""
        raise NotImplementedError

    def conflicts(self) -> Iterator[Finding]:
        if self.path is None:
            yield Finding("path", "is null", f"{self.facts.download}; get it from {self.facts.page}")

    def problem(self, error: InputError) -> tuple[str, str, str]:
        found = "is missing" if self.path is None else f"is {self.path!r}, which cannot be used ({error})"
        return "data.path", found, self.facts.download


@dataclass(frozen=True)
class Opened:
    """A download as a source: its files have been found.

    Attributes:
        spec: The section, which knows how they are read.
        path: Where they are.
        modalities: Those asked for, sorted.
        seed: The scenario's seed.
    """

    spec: Download
    path: Path
    modalities: tuple[str, ...]
    seed: int

    def archive(self) -> AbstractContextManager[Archive]:
        """The files, below the folder with the section's first landmark."""
        return open_archive(self.path, landmark=self.spec.landmarks[0], largest_bytes=self.spec.largest_bytes)

    def targets(self) -> Targets:
        """As `DataSource`."""
        return self.spec.read_targets(self)

    def load(self) -> Dataset:
        """As `DataSource`."""
        return self.spec.read(self)


class OwnData(DataSection):
    """The user's own data, which may say whose their samples are."""

    if TYPE_CHECKING:
        standardize: bool
        modalities: Mapping[str, Scaling] | None

    def scaling(self, modality: str) -> Scaling:
        if self.standardize:
            return Scaling(scale="standard", over="all")
        return (self.modalities or {}).get(modality, Scaling())

    def conflicts(self) -> Iterator[Finding]:
        yield from super().conflicts()
        for name, section in (self.modalities or {}).items() if self.standardize else ():
            if section.scale != "none":
                found = f"is {section.scale!r}, while standardize is true, which scales all modalities"
                yield Finding(f"modalities.{name}.scale", found, "one of the two")
            if not section.are_amounts:
                found = f"is true, while the numbers of words of {name} are no amounts"
                yield Finding("standardize", found, "false, and scale in the modalities that are to be scaled")

    def num_tokens(self, modality: str, /) -> int | None:
        """How many numbers of tokens a modality has, with that of padding; None where it is no text of the section's.

        Raises:
            DataError: Its tokenizer cannot be read.
        """
        own = (self.modalities or {}).get(modality)
        return own.num_tokens() if isinstance(own, TextModality) and own.features is None else None


def check_content(
    name: str, what: str, labels: Sequence[int] | IntArray, official: Sequence[int], class_names: Sequence[str]
) -> tuple[LeftOut, ...]:
    """Refuse a copy with as many rows as the official one and other labels; smaller cuts pass.

    Args:
        name: What messages call the copy, or its part.
        what: What its rows are, such as `recordings`.
        labels: (N,) int64, from 0.
        official: Rows of each class in the official files.
        class_names: Name of each class.

    Returns:
        As `rows_lacking`.

    Raises:
        DataError: N is the official number of rows, and a class has more or fewer of them.
    """
    if len(labels) == sum(official):
        for found, expected, class_name in zip(
            np.bincount(labels, minlength=len(official)), official, class_names, strict=True
        ):
            if found != expected:
                raise DataError(
                    f"{name} has {found} rows of class {class_name}; expected {expected}, as in the official files; "
                    "download it again"
                )
    return rows_lacking(what, len(labels), sum(official))


def rows_lacking(what: str, found: int, official: int) -> tuple[LeftOut, ...]:
    """One entry where a copy has fewer rows than the official files, else none.

    Args:
        what: Which rows, such as `windows of the train part`.
        found: Rows of the copy.
        official: Rows of the official files.
    """
    missing = official - found
    return (LeftOut(f"{what} that the official files have and this copy has not", missing),) if missing > 0 else ()


def standardised(windows: npt.NDArray[np.float32 | np.int16]) -> FloatArray:
    """Each channel of each window brought to mean 0 and deviation 1; a constant channel becomes 0.

    Args:
        windows: (N, time, channels), in any unit. Not modified.

    Returns:
        The same shape, float32. Means and deviations are computed in float64.
    """
    result = np.empty(windows.shape, np.float32)
    for start in range(0, len(windows), _WINDOWS_AT_ONCE):
        values = windows[start : start + _WINDOWS_AT_ONCE].astype(np.float64)
        centred = values - values.mean(axis=1, keepdims=True)
        deviation = values.std(axis=1, keepdims=True)
        # Rounding may leave a constant channel with a tiny deviation, and dividing by that would blow it up.
        constant = np.ptp(values, axis=1, keepdims=True) == 0
        result[start : start + _WINDOWS_AT_ONCE] = np.where(constant, 0, centred / np.where(constant, 1, deviation))
    return result


# Float64 copies of a large data set all at once would take several times its size.
_WINDOWS_AT_ONCE = 1024
