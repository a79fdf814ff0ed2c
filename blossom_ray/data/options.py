"""The `data` section: which data sets there are, where they lie, whether clients can share one.

A new data set is a file in `sets/` and a name in `Data`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import Field

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.data.clients import GivenClients
from blossom_ray.data.division.options import ClientGroup, GivenPartition, Partition
from blossom_ray.data.division.partition import PartitionError, unseen_clients
from blossom_ray.data.federated import FederatedDataset
from blossom_ray.data.files.archives import holds
from blossom_ray.data.sets.av_mnist import AvMnistData
from blossom_ray.data.sets.base import DataSection, DatasetFacts, Download
from blossom_ray.data.sets.custom import CustomData
from blossom_ray.data.sets.iemocap import IemocapData
from blossom_ray.data.sets.ku_har import KuHarData
from blossom_ray.data.sets.meld import MeldData
from blossom_ray.data.sets.ptb_xl import PtbXlData
from blossom_ray.data.sets.synthetic import SyntheticData
from blossom_ray.data.sets.table import TableData
from blossom_ray.data.sets.uci_har import UciHarData
from blossom_ray.data.summary import observed_lines, observed_rows
from blossom_ray.errors import InputError

AnyData = (
    SyntheticData | UciHarData | KuHarData | PtbXlData | AvMnistData | MeldData | IemocapData | TableData | CustomData
)
Data = Annotated[AnyData, Field(discriminator="dataset")]

SECTIONS: Mapping[str, type[DataSection]] = {
    get_args(section.model_fields["dataset"].annotation)[0]: section for section in get_args(get_args(Data)[0])
}
"""The section of each data set, by its name."""
DATASETS: Mapping[str, DatasetFacts] = {name: section.facts for name, section in SECTIONS.items()}
"""What is known of each data set without reading it, by its name."""

_MOST_CANDIDATES = 1000
_ARCHIVES = (".zip", ".npz")


def find_downloads(path: Path) -> dict[str, Path]:
    """The data sets that are at `path` or up to two folders below it, each with a path that `data.path` may name.

    Folders and archives are looked at, not their content, so what is found may still be damaged.

    Args:
        path: A folder, or an archive.
    """
    found: dict[str, Path] = {}
    downloads = {name: section for name, section in SECTIONS.items() if issubclass(section, Download)}
    for candidate in islice(_candidates(path), _MOST_CANDIDATES):
        for name, section in downloads.items():
            if name not in found and any(holds(candidate, landmark) for landmark in section.landmarks):
                found[name] = candidate
    return found


def _candidates(path: Path, depth: int = 2) -> Iterator[Path]:
    """The path itself, folders up to `depth` below it, and archives in all of these; nearest first."""
    yield path
    folders = [path]
    for level in range(depth + 1):
        entries: list[Path] = []
        for folder in folders:
            with suppress(OSError):  # a file, or a folder that may not be entered: it holds nothing for this user
                entries += sorted(folder.iterdir())
        folders = [entry for entry in entries if os.path.isdir(entry)] if level < depth else []
        archives = [entry for entry in entries if entry.suffix.lower() in _ARCHIVES and entry not in folders]
        yield from (*folders, *archives)


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


def _given_groups(spec: Partition, given: GivenClients, seed: int) -> tuple[ClientGroup, ...]:
    """The groups of clients that the data give, those that never train last."""
    unseen = unseen_clients(spec, given, seed) if isinstance(spec, GivenPartition) else frozenset[int]()

    def groups(clients: Collection[int], **more: Any) -> list[ClientGroup]:
        members = sorted(given.members(clients).items(), key=lambda item: "+".join(item[0]))
        return [ClientGroup(count=len(own), modalities=modalities, **more) for modalities, own in members]

    trained = groups({*range(len(given.names))} - unseen)
    return (*trained, *groups(unseen, role="unseen", shots=getattr(spec, "shots", None)))


def examine_federation(whole: FederatedDataset) -> Examination:
    """Find out what dividing a data set over its clients comes to.

    Labels and subjects are read, and inputs only where they cannot be had without (own data).
    """
    data, clients = whole.data, whole.clients
    try:
        source = whole.open()
        # Who is in the held-out part, and labels of another name, are known once all is read.
        needs_all = not isinstance(clients, str) and any(group.rows == "held-out" for group in clients)
        is_enough = data.skewed_labels(whole.learned) is None and not needs_all
        targets = source.targets() if is_enough else whole.targets(source.load())
        if isinstance(clients, str):
            if targets.clients is None:
                found = "is 'from-data', but the data do not say whose their samples are"
                raise PartitionError("clients", found, "groups of clients, or data with clients")
            whole = replace(whole, clients=_given_groups(data.partition, targets.clients, whole.seed))
        federation = whole.observe(whole.divide(targets), targets)
    except InputError as error:
        problem = data.problem(error)
        if isinstance(error, PartitionError):
            problem = error.path, error.found, error.expected
        path, found, expected = map(whole.in_words, problem)
        return Examination([(path, found, expected)], [])
    overlap = federation.overlap(targets.pieces)
    trained = [
        ClientProfile(client, tuple(sorted(group.modalities)))
        for client, group in enumerate(group for group in whole.groups for _ in range(group.count))
        if group.role == "train"
    ]
    notes = [*([] if targets.clients is None else targets.clients.notes), *([str(overlap)] if overlap else [])]
    notes += observed_lines(observed_rows(federation, trained))
    return Examination([], [whole.in_words(note) for note in notes], len(federation.validation.flat) > 0, whole.groups)
