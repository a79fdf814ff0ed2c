"""Where a scenario's samples come from: one small interface over generated, downloaded and own data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from blossom_ray.core.factories import resolve_factory
from blossom_ray.core.scores import Task
from blossom_ray.data.audio_text_data import AvMnistData, IemocapData, MeldData
from blossom_ray.data.dataset import Dataset, Targets
from blossom_ray.data.facts import DATASETS
from blossom_ray.data.files.remote import local_path
from blossom_ray.data.options import (
    CustomData,
    Data,
    Downloaded,
    KuHarData,
    PtbXlData,
    SyntheticData,
    TableData,
    UciHarData,
)
from blossom_ray.data.partition_options import GivenPartition
from blossom_ray.data.sets.av_mnist import AvMnist
from blossom_ray.data.sets.iemocap import Iemocap
from blossom_ray.data.sets.ku_har import KuHar
from blossom_ray.data.sets.meld import Meld
from blossom_ray.data.sets.ptb_xl import PtbXl
from blossom_ray.data.sets.synthetic import synthetic_dataset, synthetic_targets
from blossom_ray.data.sets.uci_har import UciHar
from blossom_ray.data.table.source import Table
from blossom_ray.errors import OWN_CODE_RAISES, DataError, shown_error


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


def open_source(data: Data, modalities: tuple[str, ...], seed: int, task: Task = "classification") -> DataSource:
    """The source of a scenario's `data` section. Nothing is read or generated yet; files at a URI are brought here.

    Args:
        data: The section.
        modalities: Those that the federation's clients own.
        seed: The scenario's seed; generated data depend on it, and pairs of `av-mnist` without a seed of their own.
        task: The scenario's task; own data that are for another one are refused when they are read.

    Raises:
        DataError: `path` is missing where files are needed, what is at a URI cannot be had, or the data set lacks a
            modality.
    """
    match data:
        case SyntheticData():
            return _SyntheticSource(data, tuple(sorted(modalities)), seed, task)
        case UciHarData():
            return UciHar(_path(data), modalities=modalities, acceleration=data.acceleration, zscore=data.zscore)
        case KuHarData():
            return KuHar(
                _path(data), modalities=modalities, windows=data.windows, classes=data.classes, rate_hz=data.rate_hz,
                zscore=data.zscore,
            )  # fmt: skip
        case PtbXlData():
            return PtbXl(
                _path(data), modalities=modalities, labels=data.labels, use_validation_fold=data.use_validation_fold,
                zscore=data.zscore,
            )  # fmt: skip
        case AvMnistData():
            return AvMnist(
                _path(data),
                modalities=modalities,
                pairs=data.pairs,
                held_out_pairs=data.held_out_pairs,
                pairing_seed=seed if data.pairing_seed is None else data.pairing_seed,
                spectrogram=data.spectrogram,
            )
        case MeldData():
            return Meld(_path(data), modalities=modalities, classes=data.classes, audio=data.audio, text=data.text)
        case IemocapData():
            return Iemocap(
                _path(data),
                modalities=modalities,
                held_out_session=data.held_out_session,
                subjects=data.subjects,
                audio=data.audio,
                text=data.text,
            )
        case TableData():
            return Table(data.model_copy(update={"path": local_path(data.path)}), modalities, task)
        case CustomData(factory=None):
            raise DataError(
                "data.factory is null; expected module:attribute, or a data set given to simulate(data=...)"
            )
        case CustomData():
            return _CustomSource(data, tuple(sorted(modalities)), task)


def _path(data: Downloaded) -> str:
    if data.path is None:
        facts = DATASETS[data.dataset]
        raise DataError(f"data.path is missing; expected {facts.download}; get it from {facts.page}")
    return local_path(data.path)


@dataclass(frozen=True)
class _SyntheticSource:
    spec: SyntheticData
    modalities: tuple[str, ...]
    seed: int
    task: Task

    def targets(self) -> Targets:
        return synthetic_targets(self.spec, self.seed, self.task)

    def load(self) -> Dataset:
        return synthetic_dataset(self.spec, self.modalities, self.seed, self.task)


class _CustomSource:
    def __init__(self, spec: CustomData, modalities: tuple[str, ...], task: Task) -> None:
        self._spec, self._task = spec, task
        self.modalities = modalities

    def targets(self) -> Targets:
        keep_built(self._spec, self._dataset)
        return self._fitting(self._dataset).targets

    def load(self) -> Dataset:
        built = take_built(self._spec)
        return self._fitting(self._dataset if built is None else built)

    @cached_property
    def _dataset(self) -> Dataset:
        """Labels come with the inputs, so the factory is called once for both."""
        assert self._spec.factory is not None, "open_source looks for it"
        build = resolve_factory(self._spec.factory, "data.factory")
        try:
            found = build(**self._spec.options)
        except OWN_CODE_RAISES as error:
            raise DataError(f"data.factory raised {shown_error(error)}") from error
        if not isinstance(found, Dataset):
            raise DataError(f"data.factory returned {type(found).__name__}; expected a blossom_ray.Dataset")
        return found

    def _fitting(self, found: Dataset) -> Dataset:
        """The data set for these modalities, this task and this partition.

        Raises:
            DataError: It is not for them.
        """
        missing = [modality for modality in self.modalities if modality not in found.inputs]
        if missing:
            raise DataError(
                f"data.factory returned the modalities {', '.join(sorted(found.inputs))}; "
                f"expected also {', '.join(missing)}, which clients own"
            )
        if found.held_out is not None and found.held_out.class_names != found.class_names:
            raise DataError("data.factory returned a held-out set with other class names; expected the same")
        found.check_task(self._task)
        found = _only(found, self.modalities)
        return found if isinstance(self._spec.partition, GivenPartition) else found.without_clients()


_built: list[tuple[CustomData, Dataset]] = []
"""At most one: what a check has built, for the run that follows it, so that no factory works twice for one run."""


def keep_built(section: CustomData, dataset: Dataset) -> None:
    """Keep what a section's factory has returned until `take_built`, or until another data set is kept."""
    _built[:] = [(section, dataset)]


def take_built(section: object) -> Dataset | None:
    """What was kept for this very section, once; None where nothing was."""
    return _built.pop()[1] if _built and _built[0][0] is section else None


def _only(dataset: Dataset, modalities: tuple[str, ...]) -> Dataset:
    """The data set without the modalities that no client owns."""
    if set(dataset.inputs) == set(modalities):
        return dataset
    return replace(
        dataset,
        inputs={modality: dataset.inputs[modality] for modality in modalities},
        held_out=None if dataset.held_out is None else _only(dataset.held_out, modalities),
    )
