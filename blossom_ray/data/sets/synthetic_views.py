"""What each modality of the synthetic data sees of a label, and what a set of modalities can tell at best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from blossom_ray.data.dataset import IntArray
from blossom_ray.data.options import SyntheticData, SyntheticModality
from blossom_ray.errors import DataError


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
