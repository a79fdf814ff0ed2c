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

Regression: T targets in the place of the classes, y_it ~ N(0, 1), and a_i = 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from blossom_ray.core.scores import Task
from blossom_ray.core.seeding import Purpose, generator, stable_number
from blossom_ray.data.dataset import Dataset, FloatArray, IntArray, Labels, Targets, targets_of
from blossom_ray.data.options import SyntheticData, SyntheticModality
from blossom_ray.errors import DataError

_DEFAULT_SHAPES = {"sequence": (64, 3), "image": (1, 16, 16), "vector": (32,)}
_AXES = {"sequence": "(time, channels)", "image": "(channels, height, width)", "vector": "(features,)"}
_ROWS_AT_ONCE = 4096
_SHARE_OF_POSITIVES = 0.3

# What stands in the round's place of a generator's key: each kind of draw has its own stream.
_LABELS, _SUBJECTS, _TEMPLATES, _SUBJECT_PATTERNS, _SAMPLES = range(5)


def synthetic_targets(spec: SyntheticData, seed: int, task: Task = "classification") -> Targets:
    """Strata and subjects of the samples that clients share, without generating inputs.

    Args:
        spec: The scenario's `data` section.
        seed: The scenario's seed.
        task: The scenario's task.

    Returns:
        Labels (N,) int64, in classification each class N / C times give or take one; subjects (N,) int64, spread as
        evenly, or None.
    """
    labels = _labels(spec, spec.samples, seed, Purpose.DATA, task)
    return targets_of(labels, _num_outputs(spec, task), _subjects(spec, spec.samples, seed, Purpose.DATA))


def synthetic_dataset(
    spec: SyntheticData, modalities: tuple[str, ...], seed: int, task: Task = "classification"
) -> Dataset:
    """Generate the samples, and the held-out set if the section asks for one.

    Each modality has its own random streams: the values of one do not depend on which others are generated.
    The held-out set has the same patterns, other samples and other subjects.

    Args:
        spec: The scenario's `data` section.
        modalities: Those to generate. One that `spec.modalities` does not list gets the defaults.
        seed: The scenario's seed.
        task: The scenario's task.

    Returns:
        Inputs (N, *shape) float32 by modality; class names `class 0`, `class 1`, ..., or `target 0`, ...

    Raises:
        DataError: A shape does not fit its kind, or a modality tells apart more classes than there are.
    """
    held_out = None
    if spec.held_out_samples > 0:
        held_out = _generate(spec, modalities, spec.held_out_samples, seed, Purpose.HELD_OUT, task, None)
    return _generate(spec, modalities, spec.samples, seed, Purpose.DATA, task, held_out)


def _generate(
    spec: SyntheticData,
    modalities: tuple[str, ...],
    num_samples: int,
    seed: int,
    purpose: Purpose,
    task: Task,
    held_out: Dataset | None,
) -> Dataset:
    labels = _labels(spec, num_samples, seed, purpose, task)
    subjects = _subjects(spec, num_samples, seed, purpose)
    name = "target" if task == "regression" else "class"
    return Dataset(
        inputs={modality: _inputs(spec, modality, labels, subjects, seed, purpose, task) for modality in modalities},
        labels=labels,
        class_names=tuple(f"{name} {number}" for number in range(_num_outputs(spec, task))),
        subjects=subjects,
        held_out=held_out,
    )


def _labels(spec: SyntheticData, num_samples: int, seed: int, purpose: Purpose, task: Task) -> Labels:
    draw = generator(seed, purpose, _LABELS)
    match task:
        case "classification":
            return _evenly(num_samples, spec.classes, draw)
        case "multilabel":
            return (draw.random((num_samples, spec.classes)) < _SHARE_OF_POSITIVES).astype(np.float32)
        case "regression":
            return draw.standard_normal((num_samples, spec.targets), dtype=np.float32)


def _num_outputs(spec: SyntheticData, task: Task) -> int:
    return spec.targets if task == "regression" else spec.classes


def _subjects(spec: SyntheticData, num_samples: int, seed: int, purpose: Purpose) -> IntArray | None:
    if spec.subjects is None:
        return None
    subjects = _evenly(num_samples, spec.subjects, generator(seed, purpose, _SUBJECTS))
    return subjects + spec.subjects if purpose is Purpose.HELD_OUT else subjects


def _evenly(num_samples: int, num_values: int, draw: np.random.Generator) -> IntArray:
    return draw.permutation(np.arange(num_samples, dtype=np.int64) % num_values)


def _inputs(
    spec: SyntheticData,
    modality: str,
    labels: Labels,
    subjects: IntArray | None,
    seed: int,
    purpose: Purpose,
    task: Task,
) -> FloatArray:
    section = modality_section(spec, modality)
    shape = _sample_shape(section, modality)
    stream = stable_number(modality)
    samples = generator(seed, purpose, _SAMPLES, stream)
    seen, weights = _content(spec, modality, labels, samples, task)
    number = num_seen(spec, modality, spec.classes) if labels.ndim == 1 else labels.shape[1]
    drawn = generator(seed, Purpose.DATA, _TEMPLATES, stream)
    templates = section.signal * patterns(section.kind, shape, number, drawn)

    values = samples.standard_normal((len(labels), *shape), dtype=np.float32)
    weights = weights.reshape(*weights.shape, *(1 for _ in shape))
    # Some rows at a time: the patterns of all rows at once would take more memory than the samples.
    for start in range(0, len(labels), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        for pattern_numbers, weight in zip(seen[rows].T, weights[rows].swapaxes(0, 1), strict=True):
            values[rows] += (weight * templates[pattern_numbers]).astype(np.float32)

    if spec.subject_shift > 0 and subjects is not None and spec.subjects is not None:
        drawn = generator(seed, purpose, _SUBJECT_PATTERNS, stream)
        shifts = (spec.subject_shift * patterns(section.kind, shape, spec.subjects, drawn)).astype(np.float32)
        for start in range(0, len(labels), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            values[rows] += shifts[subjects[rows] % spec.subjects]
    return values


def _content(
    spec: SyntheticData, modality: str, labels: Labels, draw: np.random.Generator, task: Task
) -> tuple[IntArray, npt.NDArray[np.float64]]:
    """Which patterns make up each sample, (N, terms), and the weight of each of them, (N, terms)."""
    if task == "classification":
        seen = views(spec, modality, np.asarray(labels, np.int64))[:, np.newaxis]
        return seen, draw.uniform(0.75, 1.25, size=seen.shape)
    outputs = np.array(seen_outputs(spec, modality, labels.shape[1]), np.int64)
    weights = labels[:, outputs].astype(np.float64)
    if task == "multilabel":
        weights *= draw.uniform(0.75, 1.25, size=(len(labels), 1))
    return np.broadcast_to(outputs, weights.shape), weights


def _sample_shape(section: SyntheticModality, modality: str) -> tuple[int, ...]:
    default = _DEFAULT_SHAPES[section.kind]
    shape = default if section.shape is None else section.shape
    if len(shape) != len(default):
        raise DataError(
            f"data.modalities.{modality}.shape is {list(shape)}; "
            f"expected {len(default)} numbers for kind {section.kind}: {_AXES[section.kind]}"
        )
    return shape


def views(spec: SyntheticData, modality: str, labels: IntArray) -> IntArray:
    """The group of classes that a modality sees (classification): v_m(y) in `synthetic.py`.

    Args:
        spec: The scenario's `data` section.
        modality: Its name.
        labels: (N,) int64.

    Returns:
        (N,) int64, 0..k_m-1.

    Raises:
        DataError: A modality tells apart more classes than there are.
    """
    num_groups = num_seen(spec, modality, spec.classes)
    if num_groups == spec.classes:
        return labels
    stride = math.prod(_seen_before(spec, modality, spec.classes))
    if num_groups > 1:
        stride = min(stride, (spec.classes - 1) // (num_groups - 1))
    return (labels // stride) % num_groups


def seen_outputs(spec: SyntheticData, modality: str, num_outputs: int) -> tuple[int, ...]:
    """The classes (multilabel) or targets (regression) that a modality sees: V_m in `synthetic.py`.

    Args:
        spec: The scenario's `data` section.
        modality: Its name.
        num_outputs: Number of classes or targets.

    Raises:
        DataError: A modality sees more than there are.
    """
    number = num_seen(spec, modality, num_outputs)
    if number == num_outputs:
        return tuple(range(num_outputs))
    offset = sum(_seen_before(spec, modality, num_outputs))
    return tuple((offset + position) % num_outputs for position in range(number))


def ceiling(spec: SyntheticData, modalities: Iterable[str]) -> float:
    """The best accuracy of a classification from these modalities: distinct combinations of views / number of classes.

    It is reached without noise and with equally frequent classes; no modality at all gives 1 / C.

    Raises:
        DataError: A modality tells apart more classes than there are.
    """
    labels = np.arange(spec.classes, dtype=np.int64)
    columns = [views(spec, modality, labels).tolist() for modality in modalities]
    return len(set(zip(*columns, strict=True))) / spec.classes if columns else 1 / spec.classes


def modality_section(spec: SyntheticData, modality: str) -> SyntheticModality:
    """The section of a modality; the defaults where the scenario does not list it."""
    return spec.modalities[modality] if modality in spec.modalities else SyntheticModality()


def num_seen(spec: SyntheticData, modality: str, num_outputs: int) -> int:
    """k_m: groups of classes, classes or targets that a modality tells apart.

    Raises:
        DataError: More than there are.
    """
    number = modality_section(spec, modality).distinguishable_classes
    if number is None:
        return num_outputs
    if number > num_outputs:
        raise DataError(
            f"data.modalities.{modality}.distinguishable_classes is {number}; "
            f"expected at most {num_outputs}, the number of classes or targets"
        )
    return number


def _seen_before(spec: SyntheticData, modality: str, num_outputs: int) -> Iterator[int]:
    for other in sorted(spec.modalities):
        number = num_seen(spec, other, num_outputs)
        if other < modality and number < num_outputs:
            yield number


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
            drawn = _smooth_sequences(shape[0], (number, shape[1]), draw)
        case "image":
            drawn = _smooth_images(shape, number, draw)
        case _:
            drawn = draw.standard_normal((number, *shape))
    axes = tuple(range(1, drawn.ndim))
    return np.asarray(drawn / np.sqrt(np.square(drawn).mean(axis=axes, keepdims=True)))


def _smooth_sequences(num_steps: int, channels: tuple[int, int], draw: np.random.Generator) -> npt.NDArray[np.float64]:
    frequencies = draw.integers(1, _HIGHEST_FREQUENCY + 1, size=(channels[0], 1, channels[1], _NUM_WAVES))
    phases = draw.uniform(0, 2 * np.pi, size=frequencies.shape)
    time = np.arange(num_steps).reshape(1, -1, 1, 1) / num_steps
    return np.asarray(np.sin(2 * np.pi * frequencies * time + phases).sum(axis=-1))


def _smooth_images(shape: tuple[int, ...], number: int, draw: np.random.Generator) -> npt.NDArray[np.float64]:
    channels, height, width = shape
    size = (number, channels, 1, 1, _NUM_WAVES)
    down = draw.integers(0, _HIGHEST_FREQUENCY // 2 + 1, size=size)
    across = draw.integers(1, _HIGHEST_FREQUENCY // 2 + 1, size=size)
    phases = draw.uniform(0, 2 * np.pi, size=size)
    rows = np.arange(height).reshape(1, 1, -1, 1, 1) / height
    columns = np.arange(width).reshape(1, 1, 1, -1, 1) / width
    return np.asarray(np.cos(2 * np.pi * (down * rows + across * columns) + phases).sum(axis=-1))
