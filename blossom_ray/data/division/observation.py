"""In which of its rows a client observes a modality: what the data lack, what is drawn, which rows are left with none.

A draw is one number per row of the data set; a modality is observed where it is below the share that the scenario asks
for. So it asks neither whose the row is nor what it is for, and a larger share only adds rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.core.seeding import Purpose, generator, stable_number
from blossom_ray.data.clients import SPLITS
from blossom_ray.data.dataset import Dataset, LabelColumn
from blossom_ray.data.division.federation import Federation
from blossom_ray.data.division.labelling import chosen
from blossom_ray.data.division.options import ClientGroup, Division, of_held_out
from blossom_ray.data.division.partition import PartitionError
from blossom_ray.data.gaps import BoolArray, fill_gaps
from blossom_ray.data.stored import taken
from blossom_ray.data.targets import IntArray, Targets

_SHARED, _HELD_OUT = range(2)
"""The parts of a data set, each with draws of its own."""
_RULE = "data.without_modality"


def observe(
    federation: Federation, data: Division, targets: Targets, groups: Sequence[ClientGroup], seed: int
) -> Federation:
    """The federation with what its clients observe, without the rows that are left out; itself where all observe all.

    A client observes each modality that it owns in one training row at least: where the draw leaves none, in the row
    that it would add first.

    Args:
        federation: Which client has which rows.
        data: The scenario's `data` section.
        targets: What the data set lacks.
        groups: The clients, in the order of their ids.
        seed: The scenario's seed.

    Raises:
        PartitionError: A row is left with none of its client's modalities, and that is refused; a client is left
            without a row for something; or the data lack one of its modalities in all of its training rows.
    """
    by_group = [group.shares(data.observed) for group in groups]
    parts = {"shared": targets}
    if federation.num_held_out and targets.held_out is not None:
        parts["held-out"] = targets.held_out
    has_gaps_itself = any(part.observed for part in parts.values())
    if not has_gaps_itself and all(share == (1, 1, 1) for shares in by_group for share in shares.values()):
        return federation
    patterns, num_rows = dict[str, tuple[_Pattern, int]](), 0
    for number, (rows_of, part) in zip((_SHARED, _HELD_OUT), parts.items(), strict=False):
        draws = _Draws(seed, number, len(part.labels))
        patterns[rows_of] = _Pattern(data, part.observed, draws), num_rows
        num_rows += len(part.labels)
    observed = {name: np.zeros(num_rows, np.bool_) for group in groups for name in group.modalities}
    has_gaps = dict.fromkeys(observed, False)
    keeps: dict[str, list[BoolArray]] = {name: [] for name in SPLITS}
    first = 0
    for group, shares in zip(groups, by_group, strict=True):
        pattern, before = patterns[group.rows]
        for position, (split, all_rows) in enumerate(federation.splits.items()):
            start, end = all_rows.ends[first], all_rows.ends[first + group.count]
            rows = all_rows.flat[start:end] - before
            found = pattern.of(group, {name: share[position] for name, share in shares.items()}, rows)
            if split == "train":
                owners = np.repeat(np.arange(first, first + group.count), all_rows.counts[first : first + group.count])
                pattern.add_first_rows(group, found, rows, owners)
            is_left = pattern.with_some(found, rows, f"{split} rows of clients with {group.modality_set}")
            keeps[split].append(is_left)
            for name, own in found.items():
                observed[name][rows + before] = own
                has_gaps[name] |= not own[is_left].all()
        first += group.count
    if not any(has_gaps.values()) and all(kept.all() for each in keeps.values() for kept in each):
        return federation
    train, validation, test = (chosen(rows, np.concatenate(keeps[split])) for split, rows in federation.splits.items())
    left = replace(federation, train=train, validation=validation, test=test)
    for split, all_rows in federation.splits.items():
        if (is_lost := (left.splits[split].counts == 0) & (all_rows.counts > 0)).any():
            client = int(is_lost.argmax())
            lost = f"is 'leave-out', which leaves none of the {all_rows.counts[client]} {split} rows of client {client}"
            raise PartitionError(_RULE, lost, "larger shares of observed rows, larger parts, or 'keep-one'")
    return replace(left, observed={name: observed[name] for name, own in has_gaps.items() if own})


def observe_held_out(
    held_out: Dataset, data: Division, groups: Sequence[ClientGroup], seed: int
) -> tuple[list[Dataset], IntArray]:
    """The held-out set in each way in which clients see it, and which of these is each client's (num_clients,) int64.

    A way has the modalities of its clients, and zeros where one is not observed. Where all are observed in all rows,
    there is one way, the set itself.

    Args:
        held_out: The set with what the data have.
        data: The scenario's `data` section.
        groups: The clients, in the order of their ids.
        seed: The scenario's seed.

    Raises:
        PartitionError: A row is left with none of the modalities of some client, and that is refused, or no row is
            left.
    """
    counts = [group.count for group in groups]
    if not held_out.observed and all(of_held_out(share) == 1 for share in data.observed.values()):
        return [held_out], np.zeros(sum(counts), np.int64)
    views: dict[tuple[str, str], Dataset] = {}
    keys = [(group.modality_set, group.observed_draw) for group in groups]
    for key, group in zip(keys, groups, strict=True):
        if key not in views:
            views[key] = _view(held_out, group, data, seed)
    return [*views.values()], np.repeat([[*views].index(key) for key in keys], counts)


def _view(held_out: Dataset, group: ClientGroup, data: Division, seed: int) -> Dataset:
    shares = {name: of_held_out(data.observed.get(name, 1.0)) for name in sorted(group.modalities)}
    rows = np.arange(held_out.num_samples)
    pattern = _Pattern(data, held_out.observed, _Draws(seed, _HELD_OUT, len(rows)))
    found = pattern.of(group, shares, rows)
    is_left = pattern.with_some(found, rows, f"rows of the held-out set of clients with {group.modality_set}")
    if not is_left.any():
        raise PartitionError(_RULE, "is 'leave-out', which leaves no row of the held-out set", "larger shares")
    inputs, observed = fill_gaps(
        {name: taken(held_out.inputs[name], is_left) for name in found},
        {name: ~own[is_left] for name, own in found.items()},
    )
    # What is known of samples beside inputs and labels is of no account any more.
    columns = {name: column.of(is_left) for name, column in held_out.label_columns.items()}
    own = LabelColumn(held_out.labels, held_out.class_names, held_out.known).of(is_left)
    return Dataset(inputs, **vars(own), observed=observed, label_columns=columns)


def observation_digest(federation: Federation, held_out: Sequence[Dataset]) -> str:
    """SHA-256 (hex) over which modality is observed in which of the rows that are left.

    Args:
        federation: What `observe` gave.
        held_out: What `observe_held_out` gave, for each way in which clients see the set.
    """
    digest = hashlib.sha256(federation.digest().encode())
    masks = (federation.observed, *(view.observed for view in held_out))
    for number, (size, found) in enumerate(zip((0, *(view.num_samples for view in held_out)), masks, strict=True)):
        digest.update(f"{number} {size}".encode())
        for name, own in sorted(found.items()):
            digest.update(name.encode())
            digest.update(np.packbits(own).data)
    return digest.hexdigest()


def observation_of(
    clients: Sequence[ClientProfile],
    before: Federation,
    federation: Federation,
    views: Sequence[Dataset] = (),
    held_out: Dataset | None = None,
) -> str:
    """What `observation_digest` says of a federation of some clients alone; "" where they observe all that they own.

    Args:
        clients: These.
        before: The federation of all clients that `observe` was given.
        federation: What it gave.
        views: Each way in which these see the held-out set.
        held_out: The set.
    """
    numbers = [client.index for client in clients]
    rows = federation.only(numbers)
    lacked = {}
    for name, has in rows.observed.items():
        owners = [place for place, client in enumerate(clients) if name in client.modalities]
        if owners and not all(has[own.flat].all() for own in rows.only(owners).splits.values()):
            lacked[name] = has
    is_partial = lacked or rows.digest() != before.only(numbers).digest() or any(view is not held_out for view in views)
    return observation_digest(replace(rows, observed=lacked), views) if is_partial else ""


@dataclass(frozen=True)
class _Draws:
    """The numbers that rows are drawn by, made once for each name."""

    seed: int
    part: int
    num_rows: int
    made: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    def of(self, name: str) -> npt.NDArray[np.float64]:
        """(N,), from 0 to less than 1: of a modality, or of modalities that are drawn together."""
        if name not in self.made:
            draw = generator(self.seed, Purpose.OBSERVATION, self.part, stable_number(name))
            self.made[name] = draw.random(self.num_rows)
        return self.made[name]


@dataclass(frozen=True)
class _Pattern:
    """Which modalities are observed in which rows, by a part of a data set and what the scenario says of it."""

    data: Division
    known: Mapping[str, BoolArray]
    draws: _Draws

    def of(self, group: ClientGroup, shares: Mapping[str, float], rows: IntArray) -> dict[str, BoolArray]:
        """By modality whether it is observed in each of these rows (n,)."""
        found = {name: self._has(name, rows) for name in shares}
        for name, share in shares.items():
            if share < 1:
                found[name] &= self._draw(group, name)[rows] < share
        return found

    def add_first_rows(
        self, group: ClientGroup, found: Mapping[str, BoolArray], rows: IntArray, owners: IntArray
    ) -> None:
        """Add the training row that a draw would add first where a client has none; `owners` (n,) has their ids."""
        for name, own in found.items():
            for client in np.setdiff1d(owners, owners[own]).tolist():
                places = np.flatnonzero((owners == client) & self._has(name, rows))
                if not len(places):
                    number = int((owners == client).sum())
                    lacking = f"have no value of {name} in the {number} training rows of client {client}, which owns it"
                    raise PartitionError("data", lacking, f"a value in one of them, or clients that do not own {name}")
                own[places[self._draw(group, name)[rows[places]].argmin()]] = True

    def with_some(self, found: Mapping[str, BoolArray], rows: IntArray, what: str) -> BoolArray:
        """Whether each row (n,) stays, by what becomes of rows with nothing; `keep-one` adds to `found`."""
        has_some: BoolArray = np.logical_or.reduce(list(found.values()))
        if self.data.without_modality == "keep-one" and not has_some.all():
            # Infinite where there is no value to be kept.
            numbers = np.stack([np.where(self._has(name, rows), self.draws.of(name)[rows], np.inf) for name in found])
            kept = np.where(has_some | np.isinf(numbers).all(axis=0), -1, numbers.argmin(axis=0))
            for place, own in enumerate(found.values()):
                own |= kept == place
            has_some = np.logical_or.reduce(list(found.values()))
        if self.data.without_modality != "leave-out" and not has_some.all():
            names, number = ", ".join(found), int((~has_some).sum())
            lacking = f"{number} of {len(rows)} {what} have no observed value of {names}"
            if self.data.without_modality == "keep-one":
                raise PartitionError(_RULE, f"is 'keep-one', while in the data {lacking}", "'leave-out'")
            raise PartitionError(_RULE, f"is 'refuse', while {lacking}", "'leave-out' or 'keep-one'")
        return has_some

    def _has(self, name: str, rows: IntArray) -> BoolArray:
        return self.known[name][rows] if name in self.known else np.ones(len(rows), np.bool_)

    def _draw(self, group: ClientGroup, name: str) -> npt.NDArray[np.float64]:
        return self.draws.of(group.modality_set if group.observed_draw == "together" else name)
