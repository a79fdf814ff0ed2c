"""Data sets opened as a run opens them, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blossom_ray.core.scores import Task
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.options import SECTIONS
from blossom_ray.data.sets.base import DataSection, DataSource, Download
from blossom_ray.data.sets.synthetic import SyntheticData
from blossom_ray.data.targets import Targets


def opened(name: str, path: str | Path, *, modalities: tuple[str, ...] = (), **options: Any) -> DataSource:
    """A downloaded data set with these options, and all of its modalities if none are named."""
    section = SECTIONS[name].model_validate({"dataset": name, "path": str(path), **options})
    assert isinstance(section, Download)
    return section.open(modalities or tuple(section.shapes), 0, section.facts.tasks[0])


def open_source(data: DataSection, modalities: tuple[str, ...], seed: int, task: Task = "classification") -> DataSource:
    return data.open(modalities, seed, task)


def synthetic_dataset(
    spec: SyntheticData, modalities: tuple[str, ...], seed: int, task: Task = "classification"
) -> Dataset:
    return spec.open(modalities, seed, task).load()


def synthetic_targets(spec: SyntheticData, seed: int, task: Task = "classification") -> Targets:
    return spec.open((), seed, task).targets()
