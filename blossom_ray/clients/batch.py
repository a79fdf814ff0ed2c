"""A batch as the author of an algorithm sees it, in `before`, `loss` and `after`: of one client, in PyTorch.

Where clients are stacked, what is asked for is computed for all of them and an author's function is mapped over it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from blossom_ray.errors import RunError
from blossom_ray.models.late_fusion import Forward, LateFusionModel, Presence
from blossom_ray.tasks.learned import Learned, TaskPart

Asked: TypeAlias = tuple[str, tuple[str, ...] | None]
"""A forward pass: the copy ("" for what is trained or measured) and the modalities; None for all."""
Measured: TypeAlias = "Callable[[Batch], Mapping[str, Tensor]]"
"""Numbers per sample by name, (B, ...), of a client's batch."""
RECEIVED = "received"
"""The copy that is the model as it was before training."""


class Forwards(Protocol):
    """Gives the forward passes of a batch."""

    def forward(self, asked: Asked) -> Forward:
        """One of them, computed when it is asked for, and once."""


@dataclass(frozen=True)
class Batch:
    """A client's batch. `batch["name"]` is an extra of the algorithm.

    Attributes:
        labels: Labels, as the data have them: what `targets` and `labelled` are taken from.
        present: By owned modality (B,), 0 where it is left out, or a sample lacks it.
        real: (B,), 0 for padding. A term across samples must leave padding out.
        extras: By name a tree, or the only array.
    """

    labels: Tensor
    present: Mapping[str, Tensor]
    real: Tensor
    extras: Mapping[str, Any]
    _forwards: Forwards
    _learned: Learned
    _asked: Asked = ("", None)

    def __getitem__(self, name: str) -> Any:
        return self.extras[name]

    @property
    def targets(self) -> Any:
        """Labels, (B,) int64, or (B, O) float32, as the task has them; of several tasks by name. 0 if not known."""
        return self._by_task(lambda part: part.targets_of(self.labels))

    @property
    def labelled(self) -> Any:
        """Which labels are known, 0 or 1 in the shape of `targets`."""

        def known(part: TaskPart) -> Tensor:
            own = part.known_of(self.labels)
            return torch.ones_like(self.labels, dtype=torch.float32) if own is None else own

        return self._by_task(known)

    @property
    def outputs(self) -> Any:
        """What the model gives, (B, O); of several tasks by name."""
        return self._by_task(lambda part: part.outputs_of(self.all_outputs))

    @property
    def all_outputs(self) -> Tensor:
        """The same, those of several tasks side by side."""
        return self._forwards.forward(self._asked).outputs

    @property
    def representation(self) -> Tensor:
        """What its fusion gives, (B, F); where each task has one, side by side."""
        return self._forwards.forward(self._asked).representation

    @property
    def embeddings(self) -> Mapping[str, Tensor]:
        """What its encoders give, (B, E) by owned modality; zeros where `present` is 0."""
        return self._forwards.forward(self._asked).embeddings

    @property
    def losses(self) -> Any:
        """The task's loss of each sample, (B,), 0 where no label is known; of several tasks by name."""
        return self._by_task(lambda part: part.losses(self.all_outputs, self.labels))

    @property
    def task_losses(self) -> list[Tensor]:
        """The losses of each task, in their order."""
        return [part.losses(self.all_outputs, self.labels) for part in self._learned.parts]

    @property
    def total_loss(self) -> Tensor:
        """The sum over tasks of weight times loss, (B,); of one task without a weight its losses."""
        found = self.task_losses
        weighted = [
            own if part.weight == 1 else part.weight * own for part, own in zip(self._learned.parts, found, strict=True)
        ]
        return sum(weighted[1:], weighted[0])

    def _by_task(self, of: Callable[[TaskPart], Any]) -> Any:
        found = {part.name: of(part) for part in self._learned.parts}
        return found if self._learned.has_several else next(iter(found.values()))

    def through(self, copy: str = "", modalities: Collection[str] | None = None) -> Batch:
        """The same samples through another copy of the model, or with some modalities alone.

        Args:
            copy: `received`, or an extra that is a copy; in evaluation mode and without a gradient. "": the model of
                this batch.
            modalities: Those that are looked at; the embeddings are those of all, fusion and head are computed again,
                in evaluation mode.
        """
        own_copy, narrowed = self._asked
        if modalities is None:
            return replace(self, _asked=(copy or own_copy, narrowed))
        kept = tuple(name for name in self.present if name in modalities and (narrowed is None or name in narrowed))
        present = {name: values * (name in kept) for name, values in self.present.items()}
        return replace(self, _asked=(copy or own_copy, kept), present=present)


class LiveForwards:
    """The forward passes of one client's batch, or of a stack's.

    Args:
        own: The pass of the model that is trained or measured.
        model: That model.
        inputs: Modality to (B, *shape), without those that are left out.
        present: Of modalities that some samples lack, which have it: `inputs` has those alone.
        others: Gives the model of another copy, in evaluation mode.
    """

    def __init__(
        self,
        own: Callable[[], Forward],
        model: LateFusionModel,
        inputs: Mapping[str, Tensor],
        present: Mapping[str, Presence],
        others: Callable[[str], LateFusionModel],
    ) -> None:
        self._own, self._model, self._inputs, self._others = own, model, inputs, others
        self._present = present
        self._found: dict[Asked, Forward] = {}

    def forward(self, asked: Asked) -> Forward:
        """One of them."""
        if asked not in self._found:
            copy, modalities = asked
            if not copy:
                found = self._filled(self._own()) if modalities is None else self._narrowed(self._model, asked)
            else:
                with torch.no_grad():
                    model = self._others(copy)
                    if modalities is None:
                        found = self._filled(model.traced(self._inputs, self._present))
                    else:
                        found = self._narrowed(model, asked)
            self._found[asked] = found
        return self._found[asked]

    def _narrowed(self, model: LateFusionModel, asked: Asked) -> Forward:
        copy, modalities = asked
        whole = self.forward((copy, None))
        kept = {name: whole.embeddings[name] for name in modalities or () if name in self._inputs}
        if not kept:
            return replace(
                whole, outputs=torch.zeros_like(whole.outputs), representation=torch.zeros_like(whole.representation)
            )
        present = {name: own for name, own in self._present.items() if name in kept}
        with _still(model):
            found = replace(model.fused(kept, present), embeddings=whole.embeddings)
        if len(present) < len(kept):
            return found
        # A sample that has none of them is as a batch without them.
        has_some = torch.stack([own.mask for own in present.values()]).any(dim=0)
        return replace(
            found,
            outputs=torch.where(has_some, found.outputs, 0.0),
            representation=torch.where(has_some, found.representation, 0.0),
        )

    def _filled(self, found: Forward) -> Forward:
        """With zeros for the embeddings of modalities that are left out."""
        absent = [name for name in self._model.owned if name not in found.embeddings]
        if not absent:
            return found
        some = next(iter(found.embeddings.values()))
        zeros = {name: some.new_zeros(len(some), self._model.embedding_dims[name]) for name in absent}
        filled = {**found.embeddings, **zeros}
        return replace(found, embeddings={name: filled[name] for name in self._model.owned})


class FixedForwards:
    """Forward passes that have been computed."""

    def __init__(self, found: Mapping[Asked, Forward], method: str) -> None:
        self._found, self._method = found, method

    def forward(self, asked: Asked) -> Forward:
        """One of them.

        Raises:
            RunError: It was not asked for when the author's function was looked at.
        """
        if asked not in self._found:
            raise RunError(
                f"algorithm: {self._method} asks for other forward passes in some batches; expected the same"
            )
        return self._found[asked]


def one_per_sample(numbers: object, num_rows: int) -> Tensor:
    """What `loss` gave.

    Raises:
        RunError: It is no number per sample.
    """
    if not isinstance(numbers, Tensor) or tuple(numbers.shape) != (num_rows,):
        found = f"shape {tuple(numbers.shape)}" if isinstance(numbers, Tensor) else type(numbers).__name__
        raise RunError(f"algorithm: loss gave {found}; expected ({num_rows},), a number per sample")
    return numbers


def per_sample(found: object, num_rows: int) -> Mapping[str, Tensor]:
    """What `before` or `after` gave.

    Raises:
        RunError: It is no dict of numbers per sample.
    """
    if not isinstance(found, Mapping):
        raise RunError(f"algorithm: before or after gave {type(found).__name__}; expected a dict of tensors")
    for name, numbers in found.items():
        if not isinstance(numbers, Tensor) or numbers.shape[:1] != (num_rows,):
            shape = f"shape {tuple(numbers.shape)}" if isinstance(numbers, Tensor) else type(numbers).__name__
            raise RunError(f"algorithm: before or after gave {name} of {shape}; expected ({num_rows}, ...) per sample")
    return found


@contextmanager
def _still(model: LateFusionModel) -> Any:
    """Fusions and heads in evaluation mode: no dropout, and running statistics are not moved."""
    blocks = {*model.fusion_of, *model.fusion_of.values()}
    were = [(module, module.training) for block in blocks for module in model.blocks[block].modules()]
    for module, _ in were:
        module.training = False
    try:
        yield
    finally:
        for module, training in were:
            module.training = training
