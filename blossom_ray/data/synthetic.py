"""Generated multimodal samples whose best attainable accuracy, from any set of modalities, is known.

A label y is one of C classes, equally likely. Modality m sees the view v_m(y), one of k_m groups of classes
(`distinguishable_classes`; k_m = C: the label itself), and sample i of it is

    x_i = a_i * signal_m * T[m, v_m(y_i)] + subject_shift * S[m, subject_i] + e_i

with a_i ~ U(0.75, 1.25), e_i ~ N(0, 1) in each value, and patterns T and S of root mean square 1: sums of
sinusoids over time (`sequence`), sums of plane waves (`image`), Gaussian (`vector`). For k_m < C,

    v_m(y) = (y // stride_m) mod k_m,    stride_m = min(P_m, (C - 1) // (k_m - 1))

where P_m is the product of k over the modalities before m, in sorted order, that have k < C. So C = 6 with k = 3
and k = 2 identifies the label from both modalities, and from neither alone. The minimum keeps k_m groups in use
whatever the other modalities are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from blossom_ray.data.dataset import Dataset, FloatArray, IntArray, Targets
from blossom_ray.errors import DataError
from blossom_ray.scenario.sections import SyntheticData, SyntheticModality
from blossom_ray.seeding import Purpose, generator, stable_number

_DEFAULT_SHAPES = {"sequence": (64, 3), "image": (1, 16, 16), "vector": (32,)}
_AXES = {"sequence": "(time, channels)", "image": "(channels, height, width)", "vector": "(features,)"}
_NUM_WAVES = 3
_HIGHEST_FREQUENCY = 8
_ROWS_AT_ONCE = 4096

# What stands in the round's place of a generator's key: each kind of draw has its own stream.
_LABELS, _SUBJECTS, _TEMPLATES, _SUBJECT_PATTERNS, _SAMPLES = range(5)


def synthetic_targets(spec: SyntheticData, seed: int) -> Targets:
    """Labels and subjects of the samples that clients share, without generating inputs.

    Args:
        spec: The scenario's `data` section.
        seed: The scenario's seed.

    Returns:
        Labels (N,) int64, each class N / C times give or take one; subjects (N,) int64, spread as evenly, or
        None.
    """
    return _targets(spec, spec.samples, seed, Purpose.DATA)


def synthetic_dataset(spec: SyntheticData, modalities: tuple[str, ...], seed: int) -> Dataset:
    """Generate the samples, and the held-out set if the section asks for one.

    Each modality has its own random streams: the values of one do not depend on which others are generated.
    The held-out set has the same class patterns, other samples and other subjects.

    Args:
        spec: The scenario's `data` section.
        modalities: Those to generate. One that `spec.modalities` does not list gets the defaults.
        seed: The scenario's seed.

    Returns:
        Inputs (N, *shape) float32 by modality; class names `class 0`, `class 1`, ...

    Raises:
        DataError: A shape does not fit its kind, or a modality tells apart more classes than there are.
    """
    held_out = None
    if spec.held_out_samples > 0:
        held_out = _generate(spec, modalities, spec.held_out_samples, seed, Purpose.HELD_OUT, None)
    return _generate(spec, modalities, spec.samples, seed, Purpose.DATA, held_out)


def views(spec: SyntheticData, modality: str, labels: IntArray) -> IntArray:
    """The group of classes that a modality sees: v_m(y) of the formula above.

    Args:
        spec: The scenario's `data` section.
        modality: Its name.
        labels: (N,) int64.

    Returns:
        (N,) int64, 0..k_m-1.

    Raises:
        DataError: A modality tells apart more classes than there are.
    """
    num_groups = _num_groups(spec, modality)
    if num_groups == spec.classes:
        return labels
    stride = math.prod(
        _num_groups(spec, other)
        for other in spec.modalities
        if other < modality and _num_groups(spec, other) < spec.classes
    )
    if num_groups > 1:
        stride = min(stride, (spec.classes - 1) // (num_groups - 1))
    return (labels // stride) % num_groups


def ceiling(spec: SyntheticData, modalities: Iterable[str]) -> float:
    """The best accuracy that these modalities allow: distinct combinations of views / number of classes.

    It is reached without noise and with equally frequent classes; no modality at all gives 1 / C.

    Raises:
        DataError: A modality tells apart more classes than there are.
    """
    labels = np.arange(spec.classes, dtype=np.int64)
    columns = [views(spec, modality, labels).tolist() for modality in modalities]
    return len(set(zip(*columns, strict=True))) / spec.classes if columns else 1 / spec.classes


def _generate(
    spec: SyntheticData,
    modalities: tuple[str, ...],
    num_samples: int,
    seed: int,
    purpose: Purpose,
    held_out: Dataset | None,
) -> Dataset:
    targets = _targets(spec, num_samples, seed, purpose)
    return Dataset(
        inputs={modality: _inputs(spec, modality, targets, seed, purpose) for modality in modalities},
        labels=targets.labels,
        class_names=tuple(f"class {label}" for label in range(spec.classes)),
        subjects=targets.subjects,
        held_out=held_out,
    )


def _targets(spec: SyntheticData, num_samples: int, seed: int, purpose: Purpose) -> Targets:
    labels = _evenly(num_samples, spec.classes, generator(seed, purpose, _LABELS))
    subjects = None
    if spec.subjects is not None:
        subjects = _evenly(num_samples, spec.subjects, generator(seed, purpose, _SUBJECTS))
        if purpose is Purpose.HELD_OUT:
            subjects += spec.subjects
    return Targets(labels, spec.classes, subjects)


def _evenly(num_samples: int, num_values: int, draw: np.random.Generator) -> IntArray:
    return draw.permutation(np.arange(num_samples, dtype=np.int64) % num_values)


def _inputs(spec: SyntheticData, modality: str, targets: Targets, seed: int, purpose: Purpose) -> FloatArray:
    section = _section(spec.modalities, modality)
    shape = _sample_shape(section, modality)
    stream = stable_number(modality)
    seen = views(spec, modality, targets.labels)
    patterns = generator(seed, Purpose.DATA, _TEMPLATES, stream)
    templates = section.signal * _patterns(section.kind, shape, _num_groups(spec, modality), patterns)

    samples = generator(seed, purpose, _SAMPLES, stream)
    amplitudes = samples.uniform(0.75, 1.25, size=(len(seen), *(1 for _ in shape)))
    values = samples.standard_normal((len(seen), *shape), dtype=np.float32)
    # Some rows at a time: the patterns of all rows at once would take more memory than the samples.
    for start in range(0, len(seen), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        values[rows] += (amplitudes[rows] * templates[seen[rows]]).astype(np.float32)

    if spec.subject_shift > 0 and targets.subjects is not None and spec.subjects is not None:
        patterns = generator(seed, purpose, _SUBJECT_PATTERNS, stream)
        shifts = (spec.subject_shift * _patterns(section.kind, shape, spec.subjects, patterns)).astype(np.float32)
        for start in range(0, len(seen), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            values[rows] += shifts[targets.subjects[rows] % spec.subjects]
    return values


def _section(sections: Mapping[str, SyntheticModality], modality: str) -> SyntheticModality:
    return sections[modality] if modality in sections else SyntheticModality()


def _num_groups(spec: SyntheticData, modality: str) -> int:
    num_groups = _section(spec.modalities, modality).distinguishable_classes
    if num_groups is None:
        return spec.classes
    if num_groups > spec.classes:
        raise DataError(
            f"data.modalities.{modality}.distinguishable_classes is {num_groups}; "
            f"expected at most data.classes, {spec.classes}"
        )
    return num_groups


def _sample_shape(section: SyntheticModality, modality: str) -> tuple[int, ...]:
    default = _DEFAULT_SHAPES[section.kind]
    shape = default if section.shape is None else section.shape
    if len(shape) != len(default):
        raise DataError(
            f"data.modalities.{modality}.shape is {list(shape)}; "
            f"expected {len(default)} numbers for kind {section.kind}: {_AXES[section.kind]}"
        )
    return shape


def _patterns(kind: str, shape: tuple[int, ...], number: int, draw: np.random.Generator) -> npt.NDArray[np.float64]:
    """(number, *shape) patterns of root mean square 1, smooth along time and space."""
    match kind:
        case "sequence":
            patterns = _smooth_sequences(shape[0], (number, shape[1]), draw)
        case "image":
            patterns = _smooth_images(shape, number, draw)
        case _:
            patterns = draw.standard_normal((number, *shape))
    axes = tuple(range(1, patterns.ndim))
    return np.asarray(patterns / np.sqrt(np.square(patterns).mean(axis=axes, keepdims=True)))


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
