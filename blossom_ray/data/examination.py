"""What `validate` says of a scenario's data before anything runs: whether they can be read and divided."""

from __future__ import annotations

from typing import NamedTuple

from blossom_ray.core.scores import Task
from blossom_ray.data.dataset import Targets
from blossom_ray.data.division.federation import build_federation, groups_of
from blossom_ray.data.division.options import ClientGroup, Clients
from blossom_ray.data.division.partition import PartitionError
from blossom_ray.data.sets.base import DataSection
from blossom_ray.errors import InputError


class Examination(NamedTuple):
    """What `validate` says of a scenario's data.

    Attributes:
        problems: What keeps them from being divided over the clients: for each problem its path inside the scenario,
            what was found and what is expected, as in `errors.Problem`; empty when the federation can be built.
        notes: What is to be known of the federation, in a line each.
        has_validation: Whether some client has a validation split; None where the federation cannot be built.
        clients: The groups of clients, as the scenario or the data give them; none where there are problems.
    """

    problems: list[tuple[str, str, str]]
    notes: list[str]
    has_validation: bool | None = None
    clients: tuple[ClientGroup, ...] = ()


def examine_federation(
    data: DataSection, modalities: tuple[str, ...], clients: Clients, seed: int, task: Task
) -> Examination:
    """Find out what dividing a scenario's data over its clients comes to.

    Labels and subjects are read, and inputs only where they cannot be had without (own data).
    """
    try:
        targets = data.open(modalities, seed, task).targets()
        groups = _groups(clients, targets)
        sets = [tuple(sorted(group.modalities)) for group in groups for _ in range(group.count)]
        federation = build_federation(data, targets, len(sets), seed, sets)
        found = federation.overlap(targets.pieces)
        return Examination([], [str(found)] if found else [], bool(federation.num_validation.any()), groups)
    except PartitionError as error:
        return Examination([(error.path, error.found, error.expected)], [])
    except InputError as error:
        return Examination([data.problem(error)], [])


def _groups(clients: Clients, targets: Targets) -> tuple[ClientGroup, ...]:
    if not isinstance(clients, str):
        return clients
    if targets.clients is None:
        found, expected = "is 'from-data', but the data do not say whose their samples are", "groups of clients"
        raise PartitionError("clients", found, f"{expected}, or data with clients")
    return groups_of(targets.clients)
