"""Clients as own data give them: whose each sample is, what a client owns, and which rows it trains and tests on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from blossom_ray.errors import DataError

IntArray = npt.NDArray[np.int64]
Place = Callable[[int], str]
"""Words for the place of a row, such as `labels, row 3`."""

SPLITS = ("train", "validation", "test")
"""The parts of a client's rows, in the order in which its shard has them."""
HELD_OUT = "held-out"
_SIDES = (*SPLITS, HELD_OUT)  # -1, the number of a held-out row, finds the last


@dataclass(frozen=True)
class GivenClients:
    """The clients of a data set.

    Attributes:
        names: What the user calls them, sorted: numbers by size, text by its letters.
        owners: (N,) int64: whose each sample is, as a place in `names`.
        modalities: By client, the modalities that it owns, sorted.
        splits: (N,) int64: the place in `SPLITS` of the part that each sample is of, or None where the data do not
            say.
        source: Where they stand, for messages.
        notes: What is to be known of what they own, in a line each.
    """

    names: tuple[str, ...]
    owners: IntArray
    modalities: tuple[tuple[str, ...], ...]
    splits: IntArray | None = None
    source: str = "clients"
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        owners: IntArray,
        missing: Mapping[str, npt.NDArray[np.bool_]],
        splits: IntArray | None,
        origin: Origin,
        source: str = "clients",
    ) -> Self:
        """The clients of rows, where these agree about what a client's rows are for.

        A client owns the modalities that it has in some row to train on; where rows are not split yet, in some row.

        Args:
            names: What the clients are called.
            owners: (N,): whose each row is; every client has some.
            missing: By modality, (N,): whether each row lacks it.
            splits: As in `GivenClients`.
            origin: Where rows stand.
            source: As in `GivenClients`.

        Raises:
            DataError: A client has no row to train on, or none of a part that others have; there are rows to validate
                on and none to test on; a client owns no modality.
        """
        if splits is not None:
            counts = np.zeros((len(names), len(SPLITS)), np.int64)
            np.add.at(counts, (owners, splits), 1)
            used = counts.sum(axis=0) > 0
            if used[1] and not used[2]:
                row = int((splits == 1).argmax())
                raise DataError(f"{origin.split(row)} is 'validation', while no row is 'test'; expected 'test' in some")
            for part, name in enumerate(SPLITS):
                lacking = np.flatnonzero(counts[:, part] == 0)
                if len(lacking) and (part == 0 or used[part]):
                    client = int(lacking[0])
                    row = int((owners == client).argmax())
                    others = ", which other clients have" if part else ""
                    raise DataError(
                        f"{origin.split(row)} is {SPLITS[splits[row]]!r}, and no row of client {names[client]!r} is "
                        f"{name!r}{others}; expected {name!r} in some of its rows"
                    )
        trains = np.ones(len(owners), np.bool_) if splits is None else splits == 0
        owned: list[list[str]] = [[] for _ in names]
        notes = []
        for modality in sorted(missing):
            has = ~missing[modality]
            num_to_train, num_rows = (np.bincount(owners[has & rows], minlength=len(names)) for rows in (trains, has))
            for client, name in enumerate(names):
                if num_to_train[client]:
                    owned[client].append(modality)
                elif num_rows[client]:
                    found = f"client {name!r} has {modality} in {num_rows[client]} rows and in none to train on"
                    notes.append(f"{found}, so it does not own it")
        modalities = tuple(map(tuple, owned))
        if () in modalities:
            number = modalities.index(())
            raise DataError(
                f"{origin.client(int((owners == number).argmax()))} is {names[number]!r}, a client without values of "
                f"{', '.join(sorted(missing))} to train on; expected values of one of them"
            )
        return cls(names, owners, modalities, splits, source, tuple(notes))

    def members(self, chosen: Collection[int] | None = None) -> dict[tuple[str, ...], list[int]]:
        """The clients that own exactly the same modalities, in the order of `names`; sets are sorted.

        Args:
            chosen: Those that are asked for; None: all.
        """
        found: dict[tuple[str, ...], list[int]] = {}
        for client, modalities in enumerate(self.modalities):
            if chosen is None or client in chosen:
                found.setdefault(modalities, []).append(client)
        return dict(sorted(found.items()))


@dataclass(frozen=True)
class Origin:
    """Words for where rows stand, by what they say.

    Attributes:
        client: Of a row's client.
        split: Of its split.
    """

    client: Place = field(default=lambda row: f"clients, row {row}")
    split: Place = field(default=lambda row: f"splits, row {row}")


def check_recordings(recordings: IntArray, splits: IntArray, place: Place, names: Sequence[str] = ()) -> None:
    """Refuse a recording that stands in several parts, be they of one client or of several.

    Args:
        recordings: (N,): the recording of each row, or -1 for none.
        splits: (N,): as in `GivenClients`, and -1 for a row of the held-out set.
        place: Where rows stand.
        names: What the recordings are called; empty where their numbers are their names.

    Raises:
        DataError: One does.
    """
    rows = np.flatnonzero(recordings >= 0)
    numbers, first, places = np.unique(recordings[rows], return_index=True, return_inverse=True)
    differs = splits[rows] != splits[rows][first][places]
    if differs.any():
        at = int(differs.argmax())
        row, other = int(rows[at]), int(rows[first[places[at]]])
        number = int(numbers[places[at]])
        name = names[number] if names else number
        raise DataError(
            f"{place(row)} is {name!r}, in {_SIDES[splits[row]]!r}, as is {place(other)}, in "
            f"{_SIDES[splits[other]]!r}; expected one split for all rows of a recording"
        )
