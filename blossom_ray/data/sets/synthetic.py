"""Generated multimodal samples of which it is known what any set of modalities can tell.

Sample i of modality m is

    x_i = signal_m * c_i + subject_shift * S[m, subject_i] + e_i

with noise e_i ~ N(0, 1) in each value and content c_i by task. Patterns S, and T below, have root mean square 1
(`patterns`).

Classification: y_i is one of C classes, equally likely. Modality m sees the view v_m(y), one of k_m groups of classes
(`distinguishable_classes`; k_m = C: the label itself), and c_i = a_i T[m, v_m(y_i)] with a_i ~ U(0.75, 1.25). For
k_m < C,

    v_m(y) = (y // stride_m) mod k_m,    stride_m = min(P_m, (C - 1) // (k_m - 1))

where P_m is the product of k over the modalities before m, in sorted order, that have k < C. So C = 6 with k = 3
and k = 2 identifies the label from both modalities, and from neither alone. The minimum keeps k_m groups in use
whatever the other modalities are.

Multilabel: y_i has each of C classes with probability 0.3, independently, and modality m sees the k_m classes
V_m = {(o_m + j) mod C, j < k_m}: c_i = a_i * sum of y_ic T[m, c] over c in V_m. The offset o_m is the sum of k over
the modalities before m, in sorted order, that have k < C.

In a classification the label column `amplitude` has the a_i of each modality, for scenarios with several tasks.

Regression: T targets in the place of the classes, y_it ~ N(0, 1), and a_i = 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from blossom_ray.core.phrases import shown
from blossom_ray.core.scores import TASKS, LearnedTask, Task
from blossom_ray.core.section import Finding, ModalityName, NonNegative, Positive, Section
from blossom_ray.core.seeding import Purpose, generator, stable_number
from blossom_ray.data.dataset import Dataset, LabelColumn
from blossom_ray.data.sets.base import DataSection, DatasetFacts
from blossom_ray.data.targets import FloatArray, IntArray, Labels, Targets, targets_of
from blossom_ray.errors import DataError

_KINDS = {
    "sequence": ((64, 3), "time, channels"),
    "image": ((1, 16, 16), "channels, height, width"),
    "vector": ((32,), "features"),
}
"""Shape families: the shape where none is given, and what its numbers are."""
# Ten million labels are 80 MB, and a few copies of them are needed to divide them over clients.
_MOST_SAMPLES = 10_000_000
_MOST_VALUES_OF_A_SAMPLE = 100_000_000
_ROWS_AT_ONCE = 4096
_SHARE_OF_POSITIVES = 0.3
_AMPLITUDES = (0.75, 1.25)

# What stands in the round's place of a generator's key: each kind of draw has its own stream.
_LABELS, _SUBJECTS, _TEMPLATES, _SUBJECT_PATTERNS, _SAMPLES = range(5)


class SyntheticModality(Section):
    """Shape of one synthetic modality and how much it alone tells about the label."""

    kind: Literal["sequence", "image", "vector"] = "sequence"
    """Shape family: `sequence` (time, channels), `image` (channels, height, width), `vector` (features)."""
    shape: Annotated[tuple[Positive, ...], Field(strict=False)] | None = None
    """Shape of one sample. Default: (64, 3) for a sequence, (1, 16, 16) for an image, (32,) for a vector."""
    distinguishable_classes: Positive | None = None
    """How many groups of classes this modality tells apart; classes of one group look alike in it. Equal to
    `classes` (default): sufficient alone. 1: tells nothing. Best accuracy from it alone: this number / `classes`.
    With `task: multilabel` or `regression`: how many of the classes or targets it sees at all."""
    signal: NonNegative = 1.0
    """Root mean square of the class pattern, in units of the noise's standard deviation."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.shape or _KINDS[self.kind][0]

    def conflicts(self) -> Iterator[Finding]:
        (usual, axes), shape = _KINDS[self.kind], self.sample_shape
        if math.prod(shape) > _MOST_VALUES_OF_A_SAMPLE:
            expected = f"at most {_MOST_VALUES_OF_A_SAMPLE:,} values in a sample"
            yield Finding("shape", shown(self.shape), expected)
        if len(shape) != len(usual):
            many = f"{len(usual)} numbers" if len(usual) > 1 else "1 number"
            yield Finding("shape", shown(self.shape), f"{many} ({axes}) for the kind {self.kind}")


class SyntheticData(DataSection):
    """Generated samples; the formula stands in `blossom_ray/data/sets/synthetic.py` and in the docs."""

    facts: ClassVar = DatasetFacts(
        title="Generated samples; best attainable accuracy known",
        holds="data.samples, 2,000 by default",
        classes="data.classes, 6 by default",
        tasks=TASKS,
        held_out="data.held_out_samples, 500 by default",
        labels={"class": ("classification",), "subject": ("classification",), "amplitude": ("regression",)},
    )

    dataset: Literal["synthetic"]
    path: None = None
    """Not used: synthetic data need no file."""
    samples: Positive = 2000
    """Samples over all clients."""
    classes: Annotated[int, Field(ge=2, le=1_000_000_000)] = 6
    """Number of classes, equally likely. With `task: multilabel` a sample has each with probability 0.3."""
    targets: Positive = 1
    """Number of targets, each standard normal, with `task: regression`."""
    modalities: dict[ModalityName, SyntheticModality] = Field(default_factory=dict)
    """Modality by name. A modality that clients own and that is not listed gets the defaults."""
    subjects: Positive | None = None
    """Number of subjects that samples are attributed to, or null for none."""
    subject_shift: NonNegative = 0.0
    """Root mean square of a pattern that each subject adds to all of its samples, in units of the noise."""
    held_out_samples: Annotated[int, Field(ge=0, le=1_000_000_000)] = 500
    """Samples of the held-out global test set that no client trains on."""

    @property
    def num_subjects(self) -> int | None:
        return self.subjects

    def modality(self, name: str) -> SyntheticModality:
        """The section of a modality; the defaults where the scenario does not list it."""
        return self.modalities[name] if name in self.modalities else SyntheticModality()

    def num_seen(self, name: str, num_outputs: int) -> int:
        """k_m: groups of classes, classes or targets that a modality tells apart.

        Raises:
            DataError: More than there are.
        """
        number = self.modality(name).distinguishable_classes
        if number is None:
            return num_outputs
        if number > num_outputs:
            raise DataError(
                f"data.modalities.{name}.distinguishable_classes is {number}; "
                f"expected at most {num_outputs}, the number of classes or targets"
            )
        return number

    def input_shapes(self, modalities: Iterable[str], /) -> dict[str, tuple[int, ...]]:
        found = {name: self.modality(name) for name in modalities}
        return {name: each.sample_shape for name, each in found.items() if not any(each.conflicts())}

    def open(self, modalities: tuple[str, ...], seed: int, task: Task, /) -> Synthetic:
        return Synthetic(self, tuple(sorted(modalities)), seed, task)

    def open_learned(self, modalities: tuple[str, ...], seed: int, learned: Mapping[str, LearnedTask], /) -> Synthetic:
        # Labels that have a name are those of a classification.
        kinds: list[Task] = [task.kind for task in learned.values() if task.labels is None]
        return self.open(modalities, seed, kinds[0] if kinds else "classification")

    def conflicts(self) -> Iterator[Finding]:
        for key, number in (("samples", self.samples), ("held_out_samples", self.held_out_samples)):
            if number > _MOST_SAMPLES:
                expected = f"at most {_MOST_SAMPLES:,}; larger data come in as own data"
                yield Finding(key, shown(number), expected)
        for key, number in (("classes", self.classes), ("subjects", self.subjects or 0)):
            if number > self.samples:
                yield Finding(key, shown(number), f"at most {self.samples}, the number of samples")
        if self.subjects is None:
            for key, value in (("split", self.split), ("partition.kind", self.partition.kind)):
                if value in ("subject", "common-subject"):
                    found = f"is {value!r}, while data.subjects is null"
                    yield Finding(key, found, "a number of subjects in data.subjects, or another choice")

    def task_problems(self, task: Task) -> Iterator[Finding]:
        yield from super().task_problems(task)
        limit, what = (self.targets, "targets") if task == "regression" else (self.classes, "classes")
        for name, modality in self.modalities.items():
            groups = modality.distinguishable_classes
            if groups is not None and groups > limit:
                expected = f"at most {limit}, the number of {what}"
                yield Finding(f"data.modalities.{name}.distinguishable_classes", f"is {groups}", expected)


@dataclass(frozen=True)
class Synthetic:
    """The generated data set as a source.

    Each modality has its own random streams: the values of one do not depend on which others are generated. The
    held-out set has the same patterns, other samples and other subjects.
    """

    spec: SyntheticData
    modalities: tuple[str, ...]
    seed: int
    task: Task

    def targets(self) -> Targets:
        """As `DataSource`, without generating inputs: each class N / C times give or take one, subjects as evenly."""
        labels, subjects = self._rows(self.spec.samples, Purpose.DATA)
        return targets_of(labels, self._num_outputs, subjects)

    def load(self) -> Dataset:
        """As `DataSource`; class names `class 0`, `class 1`, ..., or `target 0`, ..."""
        number = self.spec.held_out_samples
        held_out = self._part(number, Purpose.HELD_OUT, None) if number else None
        return self._part(self.spec.samples, Purpose.DATA, held_out)

    @property
    def _num_outputs(self) -> int:
        return self.spec.targets if self.task == "regression" else self.spec.classes

    def _part(self, num_samples: int, purpose: Purpose, held_out: Dataset | None) -> Dataset:
        labels, subjects = self._rows(num_samples, purpose)
        name = "target" if self.task == "regression" else "class"
        more = {}
        if self.task == "classification":
            drawn = [
                self._samples(modality, purpose).uniform(*_AMPLITUDES, num_samples) for modality in self.modalities
            ]
            more = {"amplitude": LabelColumn(np.stack(drawn, axis=-1).astype(np.float32), self.modalities)}
        return Dataset(
            inputs={modality: self._inputs(modality, labels, subjects, purpose) for modality in self.modalities},
            labels=labels,
            class_names=tuple(f"{name} {number}" for number in range(self._num_outputs)),
            subjects=subjects,
            held_out=held_out,
            label_columns=more,
        )

    def _samples(self, modality: str, purpose: Purpose) -> np.random.Generator:
        """What the samples of a modality are drawn from: amplitudes first, then noise."""
        return generator(self.seed, purpose, _SAMPLES, stable_number(modality))

    def _rows(self, num_samples: int, purpose: Purpose) -> tuple[Labels, IntArray | None]:
        """Labels and subjects."""
        spec, draw = self.spec, generator(self.seed, purpose, _LABELS)
        labels: Labels
        match self.task:
            case "classification":
                labels = _evenly(num_samples, spec.classes, draw)
            case "multilabel":
                labels = (draw.random((num_samples, spec.classes)) < _SHARE_OF_POSITIVES).astype(np.float32)
            case "regression":
                labels = draw.standard_normal((num_samples, spec.targets), dtype=np.float32)
        if spec.subjects is None:
            return labels, None
        subjects = _evenly(num_samples, spec.subjects, generator(self.seed, purpose, _SUBJECTS))
        return labels, subjects + spec.subjects if purpose is Purpose.HELD_OUT else subjects

    def _inputs(self, modality: str, labels: Labels, subjects: IntArray | None, purpose: Purpose) -> FloatArray:
        spec, section, stream = self.spec, self.spec.modality(modality), stable_number(modality)
        shape, (usual, axes) = section.sample_shape, _KINDS[section.kind]
        if len(shape) != len(usual):
            raise DataError(
                f"data.modalities.{modality}.shape is {list(shape)}; "
                f"expected {len(usual)} numbers for kind {section.kind}: ({axes})"
            )
        samples = self._samples(modality, purpose)
        seen, weights = self._content(modality, labels, samples)
        number = spec.num_seen(modality, spec.classes) if labels.ndim == 1 else labels.shape[1]
        drawn = generator(self.seed, Purpose.DATA, _TEMPLATES, stream)
        templates = section.signal * patterns(section.kind, shape, number, drawn)

        values = samples.standard_normal((len(labels), *shape), dtype=np.float32)
        weights = weights.reshape(*weights.shape, *(1 for _ in shape))
        shifts = None
        if spec.subject_shift > 0 and subjects is not None and spec.subjects is not None:
            drawn = generator(self.seed, purpose, _SUBJECT_PATTERNS, stream)
            shifts = (spec.subject_shift * patterns(section.kind, shape, spec.subjects, drawn)).astype(np.float32)
        # Some rows at a time: the patterns of all rows at once would take more memory than the samples.
        for start in range(0, len(labels), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            for pattern_numbers, weight in zip(seen[rows].T, weights[rows].swapaxes(0, 1), strict=True):
                values[rows] += (weight * templates[pattern_numbers]).astype(np.float32)
            if shifts is not None and subjects is not None:
                values[rows] += shifts[subjects[rows] % len(shifts)]
        return values

    def _content(
        self, modality: str, labels: Labels, draw: np.random.Generator
    ) -> tuple[IntArray, npt.NDArray[np.float64]]:
        """Which patterns make up each sample, (N, terms), and the weight of each of them, (N, terms)."""
        if self.task == "classification":
            seen = views(self.spec, modality, np.asarray(labels, np.int64))[:, np.newaxis]
            return seen, draw.uniform(*_AMPLITUDES, size=seen.shape)
        outputs = np.array(seen_outputs(self.spec, modality, labels.shape[1]), np.int64)
        weights = labels[:, outputs].astype(np.float64)
        if self.task == "multilabel":
            weights *= draw.uniform(*_AMPLITUDES, size=(len(labels), 1))
        return np.broadcast_to(outputs, weights.shape), weights


def _evenly(num_samples: int, num_values: int, draw: np.random.Generator) -> IntArray:
    return draw.permutation(np.arange(num_samples, dtype=np.int64) % num_values)


def views(spec: SyntheticData, modality: str, labels: IntArray) -> IntArray:
    """The group of classes that a modality sees (classification): v_m(y) in `synthetic.py`, (N,) int64, 0..k_m-1.

    Raises:
        DataError: A modality tells apart more classes than there are.
    """
    num_groups = spec.num_seen(modality, spec.classes)
    if num_groups == spec.classes:
        return labels
    stride = math.prod(_seen_before(spec, modality, spec.classes))
    if num_groups > 1:
        stride = min(stride, (spec.classes - 1) // (num_groups - 1))
    return (labels // stride) % num_groups


def seen_outputs(spec: SyntheticData, modality: str, num_outputs: int) -> tuple[int, ...]:
    """The classes (multilabel) or targets (regression) that a modality sees: V_m in `synthetic.py`.

    Raises:
        DataError: A modality sees more than there are.
    """
    number = spec.num_seen(modality, num_outputs)
    if number == num_outputs:
        return tuple(range(num_outputs))
    offset = sum(_seen_before(spec, modality, num_outputs))
    return tuple((offset + position) % num_outputs for position in range(number))


def _seen_before(spec: SyntheticData, modality: str, num_outputs: int) -> Iterator[int]:
    for other in sorted(spec.modalities):
        number = spec.num_seen(other, num_outputs)
        if other < modality and number < num_outputs:
            yield number


def ceiling(spec: SyntheticData, modalities: Iterable[str]) -> float:
    """The best accuracy of a classification from these modalities: distinct combinations of views / number of classes.

    It is reached without noise and with equally frequent classes; no modality at all gives 1 / C.

    Raises:
        DataError: A modality tells apart more classes than there are.
    """
    labels = np.arange(spec.classes, dtype=np.int64)
    columns = [views(spec, modality, labels).tolist() for modality in modalities]
    return len(set(zip(*columns, strict=True))) / spec.classes if columns else 1 / spec.classes


_NUM_WAVES = 3
_HIGHEST_FREQUENCY = 8


def patterns(kind: str, shape: tuple[int, ...], number: int, draw: np.random.Generator) -> npt.NDArray[np.float64]:
    """Patterns of root mean square 1, smooth along time and space.

    Args:
        kind: `sequence`: sums of sinusoids over time. `image`: sums of plane waves. `vector`: Gaussian values.
        shape: Shape of one pattern: (time, channels), (channels, height, width) or (features,).
        number: How many.
        draw: Source of random numbers.

    Returns:
        (number, *shape) float64.
    """
    match kind:
        case "sequence":
            frequencies = draw.integers(1, _HIGHEST_FREQUENCY + 1, size=(number, 1, shape[1], _NUM_WAVES))
            phases = draw.uniform(0, 2 * np.pi, size=frequencies.shape)
            time = np.arange(shape[0]).reshape(1, -1, 1, 1) / shape[0]
            drawn = np.sin(2 * np.pi * frequencies * time + phases).sum(axis=-1)
        case "image":
            channels, height, width = shape
            size = (number, channels, 1, 1, _NUM_WAVES)
            down = draw.integers(0, _HIGHEST_FREQUENCY // 2 + 1, size=size)
            across = draw.integers(1, _HIGHEST_FREQUENCY // 2 + 1, size=size)
            phases = draw.uniform(0, 2 * np.pi, size=size)
            rows = np.arange(height).reshape(1, 1, -1, 1, 1) / height
            columns = np.arange(width).reshape(1, 1, 1, -1, 1) / width
            drawn = np.cos(2 * np.pi * (down * rows + across * columns) + phases).sum(axis=-1)
        case _:
            drawn = draw.standard_normal((number, *shape))
    axes = tuple(range(1, drawn.ndim))
    return np.asarray(drawn / np.sqrt(np.square(drawn).mean(axis=axes, keepdims=True)))
