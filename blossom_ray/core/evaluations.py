"""What scoring clients gave: one by one, or of many of them as columns, in a tenth of the memory."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class SetScores:
    """Scores of those of a client's samples that have the same of its modalities.

    Attributes:
        num_examples: How many these are.
        loss: Mean loss over them.
        scores: As in `ClientEvaluation`.
    """

    num_examples: int
    loss: float
    scores: Mapping[str, float | None]


@dataclass(frozen=True)
class ClientEvaluation:
    """One client's scores in one of its tasks, on its own test or validation split, or on the held-out global test set.

    Attributes:
        client: The client's id.
        num_examples: Samples scored: those with a label of the task.
        loss: Mean loss over them; where some lack some labels of the task, over all labels.
        scores: The task's scores by name, as in `SCORES`; None where the samples do not define one.
        bytes_down: Bytes of blocks sent to the client for evaluation; of a client with several tasks those for all of
            them stand with the first one, as `seconds` do.
        seconds: Time spent on this client.
        rounds_trained: Rounds in which the client has trained so far, this one included; None where that is not known.
        by_set: Scores of the samples that have the same modalities, by these; empty where no sample of its chunk lacks
            one.
        task: The task, one of the client's; "" in a scenario without `tasks`.
    """

    client: int
    num_examples: int
    loss: float
    scores: Mapping[str, float | None]
    bytes_down: int
    seconds: float
    rounds_trained: int | None = None
    by_set: Mapping[str, SetScores] = field(default_factory=dict)
    task: str = ""


@dataclass(frozen=True, eq=False)
class EvaluationColumns(Sequence[ClientEvaluation]):
    """`ClientEvaluation` of many clients in one task, none of whose samples lack a modality: a column per attribute.

    A sequence of them like any other.

    Attributes:
        client: (n,) int64.
        num_examples: (n,) int64.
        loss: (n,) float64.
        scores: By name (n,) float64; each is defined by the samples of all.
        bytes_down: (n,) int64.
        seconds: (n,) float64.
        rounds_trained: (n,) int64; -1 where that is not known.
        task: The task.
    """

    client: npt.NDArray[np.int64]
    num_examples: npt.NDArray[np.int64]
    loss: npt.NDArray[np.float64]
    scores: Mapping[str, npt.NDArray[np.float64]]
    bytes_down: npt.NDArray[np.int64]
    seconds: npt.NDArray[np.float64]
    rounds_trained: npt.NDArray[np.int64]
    task: str

    def __len__(self) -> int:
        return len(self.client)

    @overload
    def __getitem__(self, place: int) -> ClientEvaluation: ...
    @overload
    def __getitem__(self, place: slice) -> EvaluationColumns: ...
    def __getitem__(self, place: int | slice) -> ClientEvaluation | EvaluationColumns:
        if isinstance(place, slice):
            return self.at(place)
        return next(iter(self.at(slice(place, place + 1 or None))))

    def __iter__(self) -> Iterator[ClientEvaluation]:
        names, scores = [*self.scores], [values.tolist() for values in self.scores.values()]
        known = (number if number >= 0 else None for number in self.rounds_trained.tolist())
        numbers = [self.client, self.num_examples, self.loss, self.bytes_down, self.seconds]
        for values, rounds_trained, *own in zip(
            zip(*scores, strict=True),
            known,
            *(column.tolist() for column in numbers),
            strict=True,
        ):
            client, num_examples, loss, bytes_down, seconds = own
            found = dict(zip(names, values, strict=True))
            yield ClientEvaluation(
                client, num_examples, loss, found, bytes_down, seconds, rounds_trained, task=self.task
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def at(self, places: slice | npt.NDArray[Any]) -> Self:
        """Those at some places."""
        return type(self)(
            self.client[places],
            self.num_examples[places],
            self.loss[places],
            {name: values[places] for name, values in self.scores.items()},
            self.bytes_down[places],
            self.seconds[places],
            self.rounds_trained[places],
            self.task,
        )


def joined_evaluations(parts: Iterable[Sequence[ClientEvaluation]]) -> Sequence[ClientEvaluation]:
    """All of these, in order of id; as columns where all of them are, of one task with the same scores."""
    given = [part for part in parts if len(part)]
    columns = [part for part in given if isinstance(part, EvaluationColumns)]
    kinds = {(part.task, *part.scores) for part in columns}
    if len(columns) < len(given) or len(kinds) != 1:
        return tuple(sorted(chain.from_iterable(given), key=lambda each: each.client))

    def join(attribute: str) -> npt.NDArray[Any]:
        return np.concatenate([getattr(part, attribute) for part in columns])

    found = EvaluationColumns(
        join("client"),
        join("num_examples"),
        join("loss"),
        {name: np.concatenate([part.scores[name] for part in columns]) for name in columns[0].scores},
        join("bytes_down"),
        join("seconds"),
        join("rounds_trained"),
        columns[0].task,
    )
    is_sorted = bool((np.diff(found.client) >= 0).all())
    return found if is_sorted else found.at(np.argsort(found.client, kind="stable"))


def clients_of(evaluations: Sequence[ClientEvaluation]) -> list[int]:
    """The client of each."""
    if isinstance(evaluations, EvaluationColumns):
        return [*evaluations.client.tolist()]
    return [each.client for each in evaluations]
