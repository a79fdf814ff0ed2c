"""The user's own data from Python: what a callable returns, or what is given to `simulate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from blossom_ray.core.factories import resolve_factory
from blossom_ray.core.scores import TASKS, LearnedTask, Task
from blossom_ray.core.section import Factory, ModalityName, check_factory
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.division.options import GivenPartition
from blossom_ray.data.modalities.base import Scaling
from blossom_ray.data.sets.base import DatasetFacts, OwnData
from blossom_ray.data.targets import Targets
from blossom_ray.errors import OWN_CODE_RAISES, DataError, InputError, shown_error


class CustomData(OwnData):
    """Own data: a callable that returns a `blossom_ray.Dataset`, or the data set given to `simulate`."""

    facts: ClassVar = DatasetFacts(
        title="Own data: what data.factory returns, or simulate(data=...) is given",
        holds="as the factory gives",
        classes="as the factory gives",
        tasks=TASKS,
        held_out="as the factory gives",
    )

    dataset: Literal["custom"]
    factory: Factory | None = None
    """`module:attribute` of a callable that returns a `Dataset`, or, from Python, the callable itself. null: the data
    set is given as `simulate(scenario, data=...)`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the factory."""
    modalities: dict[ModalityName, Scaling] | None = None
    """Modality by name, where it is to be scaled."""
    standardize: bool = False
    """Whether each channel of each modality is brought to mean 0 and deviation 1 over the training rows of all clients
    together: `scale: standard` and `over: all` for all modalities."""

    _factory = field_validator("factory")(check_factory)

    def open(self, modalities: tuple[str, ...], seed: int, task: Task, /) -> Custom:
        return self.open_learned(modalities, seed, {"": LearnedTask(kind=task)})

    def open_learned(self, modalities: tuple[str, ...], _seed: int, learned: Mapping[str, LearnedTask], /) -> Custom:
        return Custom(self, tuple(sorted(modalities)), learned)

    def problem(self, error: InputError) -> tuple[str, str, str]:
        if self.factory is not None:
            return super().problem(error)
        found, _, expected = str(error).partition("; expected ")
        return "data.factory", found.removeprefix("data.factory "), expected


@dataclass(frozen=True)
class Custom:
    """What the factory returns, as a source."""

    spec: CustomData
    modalities: tuple[str, ...]
    learned: Mapping[str, LearnedTask]

    def targets(self) -> Targets:
        """As `DataSource`; what the factory has built is kept for a run that follows."""
        keep_built(self.spec, self._dataset)
        return self._fitting(self._dataset).targets

    def load(self) -> Dataset:
        """As `DataSource`; what a check has built of this very section is taken over."""
        built = take_built(self.spec)
        return self._fitting(self._dataset if built is None else built)

    @cached_property
    def _dataset(self) -> Dataset:
        """Labels come with the inputs, so the factory is called once for both."""
        if self.spec.factory is None:
            expected = "module:attribute, or a data set given to simulate(data=...)"
            raise DataError(f"data.factory is null; expected {expected}")
        build = resolve_factory(self.spec.factory, "data.factory")
        try:
            found = build(**self.spec.options)
        except OWN_CODE_RAISES as error:
            raise DataError(f"data.factory raised {shown_error(error)}") from error
        if not isinstance(found, Dataset):
            raise DataError(f"data.factory returned {type(found).__name__}; expected a blossom_ray.Dataset")
        return found

    def _fitting(self, found: Dataset) -> Dataset:
        """The data set for these modalities, these tasks and this partition; a `DataError` where it is not for them."""
        if missing := sorted(set(self.modalities) - found.inputs.keys()):
            raise DataError(
                f"data.factory returned the modalities {', '.join(sorted(found.inputs))}; "
                f"expected also {', '.join(missing)}, which clients own"
            )
        if found.held_out is not None and found.held_out.class_names != found.class_names:
            raise DataError("data.factory returned a held-out set with other class names; expected the same")
        for task in self.learned.values():
            found.labelled(task.labels).check_task(task.kind, task.labels)
        found = found.only(self.modalities)
        return found if isinstance(self.spec.partition, GivenPartition) else found.without_clients()


_built: list[tuple[CustomData, Dataset]] = []
"""At most one: what a check has built, for the run that follows it, so that no factory works twice for one run."""


def keep_built(section: CustomData, dataset: Dataset) -> None:
    """Keep what a section's factory has returned until `take_built`, or until another data set is kept."""
    _built[:] = [(section, dataset)]


def take_built(section: object) -> Dataset | None:
    """What was kept for this very section, once; None where nothing was."""
    return _built.pop()[1] if _built and _built[0][0] is section else None
