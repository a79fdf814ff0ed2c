"""How samples are divided over clients: pure functions from labels and subjects to row indices.

Each rule gives every row an owner, so parts are disjoint and complete by construction.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from blossom_ray.core.phrases import did_you_mean
from blossom_ray.core.seeding import Purpose, generator
from blossom_ray.data.clients import GivenClients
from blossom_ray.data.division.options import (
    DirichletPartition,
    GivenPartition,
    IidPartition,
    Partition,
    QuantityPartition,
    SubjectPartition,
)
from blossom_ray.data.targets import IntArray, Targets
from blossom_ray.errors import DataError

MAX_DRAWS = 100
_FEWEST_DRAWS = 10
_DRAWN_PROPORTIONS = 10**8  # a few seconds; a partition with more proportions gets fewer draws
_MOST_PROPORTIONS = 10**7  # 80 MB as float64, several times over
_LARGEST_ALPHA = 1e12  # even to the last row; far beyond it the draw's own sums overflow
_MOST_NAMED = 5
_MANY = 8  # from so many clients on a call for all of them pays
_FEWEST_SAMPLES = 2  # one to train on, one to test on
_HELD_OUT, _CHOICE = 1, 2
"""What stands in the round's place of the keys of these draws; those of single clients have 0."""


class PartitionError(DataError):
    """Samples that cannot be divided as the scenario asks.

    Args:
        path: Dotted path of the value at fault inside the scenario, such as `data.partition.alpha`.
        found: What stands there and why it cannot be met, as a phrase that completes "<path> ...".
        expected: What would work, as a phrase that completes "expected ...".
    """

    def __init__(self, path: str, found: str, expected: str) -> None:
        super().__init__(path, found, expected)
        self.path, self.found, self.expected = path, found, expected

    def __str__(self) -> str:
        return f"{self.path} {self.found}; expected {self.expected}"


def partition(
    spec: Partition,
    targets: Targets,
    num_clients: int,
    seed: int,
    modality_sets: Sequence[tuple[str, ...]] = (),
    num_unseen: int = 0,
) -> list[IntArray]:
    """Divide the rows of a data set over clients.

    Every client gets at least 2 rows (`min_samples` where the rule has it). The parts are drawn first, then matched
    to clients at random, so a client's id says nothing about the size of its part. Where the parts are given, nothing
    is drawn: of each modality set the data's clients follow each other in the order of their names.

    Args:
        spec: The rule.
        targets: Labels, subjects and given clients of all rows.
        num_clients: Number of clients, >= 1.
        seed: The scenario's seed.
        modality_sets: The modalities of each client, sorted; for given clients alone.
        num_unseen: How many of them, the last ones, never train; for given clients alone.

    Returns:
        For each client its rows, sorted, int64. Disjoint, and complete together.

    Raises:
        PartitionError: The rule cannot be met with this data set and number of clients, or has more than ten million
            proportions to draw (classes times clients).
    """
    if isinstance(spec, GivenPartition):
        return _parts(_given(spec, targets, modality_sets, num_unseen, seed), num_clients)
    num_rows = len(targets.labels)
    fewest = spec.min_samples if isinstance(spec, DirichletPartition | QuantityPartition) else _FEWEST_SAMPLES
    if num_clients * fewest > num_rows:
        raise _too_few_rows(spec, num_rows, num_clients, fewest)
    if isinstance(spec, DirichletPartition) and num_clients * targets.num_classes > _MOST_PROPORTIONS:
        raise PartitionError(
            "data.partition.kind",
            f"is 'dirichlet', with {targets.num_classes} classes over {num_clients} clients",
            f"classes times clients at most {_MOST_PROPORTIONS:,}, or another kind",
        )
    matching = generator(seed, Purpose.MATCHING).permutation(num_clients)
    match spec:
        case IidPartition():
            dealt = np.arange(num_rows, dtype=np.int64) % num_clients
            owners = generator(seed, Purpose.PARTITION).permutation(dealt)
        case DirichletPartition(equal_sizes=True):
            owners = _equal_sizes(spec.alpha, targets, num_clients, generator(seed, Purpose.PARTITION))
        case DirichletPartition():
            owners = _dirichlet(spec, targets.labels, targets.num_classes, matching, seed)
        case QuantityPartition():
            owners = _dirichlet(spec, np.zeros(num_rows, np.int64), 1, matching, seed)
        case SubjectPartition():
            owners = _whole_subjects(targets.subjects, num_clients, generator(seed, Purpose.PARTITION))
    return _parts(matching[owners], num_clients)


def held_out_parts(targets: Targets | None, num_clients: int, seed: int) -> list[IntArray]:
    """The rows of clients that never train, in a held-out part whose people are dealt to them as wholes.

    Args:
        targets: Of the held-out part; None where there is none.
        num_clients: Number of these clients, >= 1.
        seed: The scenario's seed.

    Raises:
        PartitionError: There is no held-out part, or it has too few people or tells none.
    """
    subjects = None if targets is None else targets.subjects
    num_people = 0 if subjects is None else len(np.unique(subjects))
    if num_people < num_clients:
        has = "there is none" if targets is None else f"it has {num_people}" if num_people else "it tells none"
        asking = f"{num_clients} client{'s' * (num_clients > 1)}"
        found = f"ask for people of the held-out part for {asking} (rows: held-out), and {has}"
        raise PartitionError("clients", found, "at most as many clients as people, or rows: shared")
    draw = generator(seed, Purpose.UNSEEN, _HELD_OUT)
    owners = _whole_subjects(subjects, num_clients, draw)
    return _parts(draw.permutation(num_clients)[owners], num_clients)


def unseen_clients(spec: GivenPartition, given: GivenClients, seed: int) -> frozenset[int]:
    """The clients of the data that never train.

    Args:
        spec: Their names, or a fraction.
        given: The clients of the data.
        seed: The scenario's seed, which the fraction is drawn from.

    Raises:
        PartitionError: A name is no client's, or none is left to train.
    """
    num_clients = len(given.names)
    if isinstance(spec.unseen, float):
        drawn = generator(seed, Purpose.UNSEEN, _CHOICE).permutation(num_clients)
        found = {int(client) for client in drawn[: max(1, int(spec.unseen * num_clients + 1e-9))]}
    else:
        for name in spec.unseen:
            if name not in given.names:
                expected = f"clients of {given.source}" + did_you_mean(name, given.names)
                raise PartitionError("data.partition.unseen", f"names {name!r}", expected)
        found = {given.names.index(name) for name in spec.unseen}
    if len(found) == num_clients:
        raise PartitionError("data.partition.unseen", f"leaves none of {num_clients} clients to train", "fewer of them")
    return frozenset(found)


def _given(
    spec: GivenPartition, targets: Targets, modality_sets: Sequence[tuple[str, ...]], num_unseen: int, seed: int
) -> IntArray:
    """The owner of each row, as the data say."""
    given = targets.clients
    if given is None:
        found = "is 'given', but the data do not say whose their samples are"
        raise PartitionError("data.partition.kind", found, "another kind, or data with clients")
    unseen = unseen_clients(spec, given, seed)
    num_trained = len(modality_sets) - num_unseen
    trained = {*range(len(given.names))} - unseen
    order = _matched(given, modality_sets[:num_trained], given.members(trained), "")
    order += _matched(given, modality_sets[num_trained:], given.members(unseen), "unseen ")
    sizes = np.bincount(given.owners)
    if given.splits is None and sizes.min() < _FEWEST_SAMPLES:
        found = f"is 'given', while {given.source} has {sizes.min()} row of {given.names[int(sizes.argmin())]!r}"
        expected = f"at least {_FEWEST_SAMPLES} rows of each client, one to train on and one to test on"
        raise PartitionError("data.partition.kind", found, expected)
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return places[given.owners]


def _matched(
    given: GivenClients,
    modality_sets: Sequence[tuple[str, ...]],
    members: Mapping[tuple[str, ...], Sequence[int]],
    kind: str,
) -> list[int]:
    """Which client of the data each of a scenario is: the next in the order of names that owns exactly its set."""

    def named(clients: Sequence[int]) -> str:
        names = ", ".join(repr(given.names[client]) for client in clients[:_MOST_NAMED])
        return f"{names}, ..." if len(clients) > _MOST_NAMED else names

    wanted = Counter(modality_sets)
    for modalities in sorted({*wanted, *members}):
        number, own = wanted[modalities], members.get(modalities, [])
        if number == len(own):
            continue
        counts = [f"{count} {kind}client{'s' * (count != 1)}" for count in (number, len(own))]
        found = f"have {counts[0]} with {'+'.join(modalities)}, while {given.source} has {counts[1]}"
        others = [each for each in members if each != modalities]
        if own:
            found += f" with values of exactly these: {named(own)}"
        elif others:
            found += f" with values of exactly these; {named(members[others[0]])} with {'+'.join(others[0])}"
        expected = "as many clients of each modality set as the data have, or clients: from-data"
        raise PartitionError("clients", found, expected)
    waiting = {modalities: iter(clients) for modalities, clients in members.items()}
    return [next(waiting[modalities]) for modalities in modality_sets]


def _parts(owners: IntArray, num_clients: int) -> list[IntArray]:
    order = np.argsort(owners, kind="stable")  # stable: rows stay sorted within a part
    ends = np.cumsum(np.bincount(owners, minlength=num_clients)).tolist()
    return [order[start:end] for start, end in pairwise([0, *ends])]


def _dirichlet(
    spec: DirichletPartition | QuantityPartition, labels: IntArray, num_classes: int, matching: IntArray, seed: int
) -> IntArray:
    """Proportions over clients per class, in label order; drawn again until every client has `min_samples`.

    Source: Yurochkin et al. 2019 (arXiv:1905.12022), section 4; per class over clients as in the paper's experiments.
    """
    num_clients = len(matching)
    class_sizes = np.bincount(labels, minlength=num_classes)
    lowest_shortage = num_clients + 1
    num_draws = max(_FEWEST_DRAWS, min(MAX_DRAWS, _DRAWN_PROPORTIONS // (num_clients * num_classes)))
    for attempt in range(num_draws):
        draw = generator(seed, Purpose.PARTITION, attempt)
        proportions = draw.dirichlet(np.full(num_clients, min(spec.alpha, _LARGEST_ALPHA)), size=num_classes)
        cuts = (np.cumsum(proportions, axis=1) * class_sizes[:, None]).astype(np.int64)
        cuts = np.minimum(cuts, class_sizes[:, None])
        cuts[:, -1] = class_sizes
        counts = np.diff(cuts, axis=1, prepend=0)
        sizes = counts.sum(axis=0)
        shortage = int((sizes < spec.min_samples).sum())
        if shortage == 0:
            return _owners_by_class(labels, counts, draw)
        if shortage < lowest_shortage:
            lowest_shortage, lowest, smallest = shortage, int(sizes.min()), int(sizes.argmin())
    raise PartitionError(
        "data.partition.alpha",
        f"is {spec.alpha:g}, which leaves {lowest_shortage} of {num_clients} clients with fewer than "
        f"{spec.min_samples} samples (client {matching[smallest]} has {lowest}; {num_draws} draws tried)",
        "a larger alpha, fewer clients or more samples, or a smaller data.partition.min_samples",
    )


def _owners_by_class(labels: IntArray, counts: IntArray, draw: np.random.Generator) -> IntArray:
    """Deal the shuffled rows of each class to clients in order; `counts` is (num_classes, num_clients)."""
    owners = np.empty(len(labels), np.int64)
    clients = np.arange(counts.shape[1], dtype=np.int64)
    for label, class_counts in enumerate(counts):
        owners[draw.permutation(np.flatnonzero(labels == label))] = np.repeat(clients, class_counts)
    return owners


def _equal_sizes(alpha: float, targets: Targets, num_clients: int, draw: np.random.Generator) -> IntArray:
    """A class mix per client, equal sizes within one, rows without replacement.

    The mix is Dir(alpha * C * p), with p the classes' shares of the data set: the symmetric Dir(alpha) where the C
    classes are equally frequent, and close to `iid` for a large alpha where they are not.

    Source: Hsu et al. 2019 (arXiv:1909.06335), section 3.1, whose alpha is C times ours.
    """
    remaining = np.bincount(targets.labels, minlength=targets.num_classes)
    present = np.flatnonzero(remaining)
    concentration = min(alpha, _LARGEST_ALPHA) * len(present) * remaining[present] / remaining.sum()
    mixes = draw.dirichlet(concentration, size=num_clients)
    sizes = np.full(num_clients, len(targets.labels) // num_clients)
    sizes[: len(targets.labels) % num_clients] += 1
    counts = np.zeros((targets.num_classes, num_clients), np.int64)
    left = remaining[present]
    client = 0
    while client < num_clients:
        # Of so many clients none can exhaust a class: their draws, the same ones, are one call.
        ahead = min(num_clients - client, int(left.min()) // int(sizes[client]))
        if ahead < _MANY:
            counts[present, client] = _draw_classes(int(sizes[client]), mixes[client], left, draw)
            left -= counts[present, client]
            client += 1
            continue
        own = slice(client, client + ahead)
        weights = mixes[own] / mixes[own].sum(axis=1, keepdims=True)
        counts[present, own] = draw.multinomial(sizes[own], weights).T
        left -= counts[present, own].sum(axis=1)
        client += ahead
    return _owners_by_class(targets.labels, counts, draw)


def _draw_classes(size: int, mix: np.ndarray, left: IntArray, draw: np.random.Generator) -> IntArray:
    """How many rows of each class one client gets; the mix is renormalised when a class is exhausted."""
    counts = np.zeros(len(left), np.int64)
    while (wanted := size - int(counts.sum())) > 0:
        weights = np.where(left > counts, mix, 0.0)
        if weights.sum() <= 0:  # nothing is left of the classes in the mix
            weights = (left - counts).astype(np.float64)
        counts = np.minimum(counts + draw.multinomial(wanted, weights / weights.sum()), left)
    return counts


def _whole_subjects(subjects: IntArray | None, num_clients: int, draw: np.random.Generator) -> IntArray:
    """Subjects in random order, largest first, each to the client with the fewest samples so far."""
    if subjects is None:
        raise PartitionError(
            "data.partition.kind",
            "is 'subject', but the samples belong to no subject",
            "'iid', 'dirichlet' or 'quantity', or a data set with subjects",
        )
    _, positions, sizes = np.unique(subjects, return_inverse=True, return_counts=True)
    if len(sizes) < num_clients:
        raise PartitionError(
            "data.partition.kind",
            f"is 'subject', but {len(sizes)} subjects cannot be divided over {num_clients} clients",
            f"at most {len(sizes)} clients, or another kind",
        )
    order = draw.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    loads = [(0, client) for client in range(num_clients)]
    owners = np.empty(len(sizes), np.int64)
    for subject in order:
        load, client = loads[0]
        owners[subject] = client
        heapq.heapreplace(loads, (load + int(sizes[subject]), client))
    smallest = min(loads)
    if smallest[0] < _FEWEST_SAMPLES:
        raise PartitionError(
            "data.partition.kind",
            f"is 'subject', which leaves a client with {smallest[0]} sample of one subject",
            f"subjects with at least {_FEWEST_SAMPLES} samples, or fewer clients",
        )
    return owners[positions]


def _too_few_rows(spec: Partition, num_rows: int, num_clients: int, fewest: int) -> PartitionError:
    if isinstance(spec, DirichletPartition | QuantityPartition):
        possible = num_rows // num_clients
        return PartitionError(
            "data.partition.min_samples",
            f"is {fewest}, which {num_rows} samples over {num_clients} clients cannot give",
            f"at most {possible}, or fewer clients" if possible >= _FEWEST_SAMPLES else "fewer clients or more samples",
        )
    return PartitionError(
        "data.partition",
        f"divides {num_rows} samples over {num_clients} clients",
        f"at least {_FEWEST_SAMPLES} samples per client: fewer clients or more samples",
    )
