"""The paragraph on the federation: which data, who has them, how they were divided, what a round is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blossom_ray.algorithms.selection import cohort_size
from blossom_ray.runs.folder import Run
from blossom_ray.studies.reports.parts import ReportSection
from blossom_ray.text import brief

_SPLITS = {"num_train": "to train on", "num_validation": "for validation", "num_test": "to test on"}
_MOST_SETS = 12


def federation_section(runs: Sequence[Run]) -> ReportSection:
    """A paragraph per data set. What differs between runs is listed, of counts the smallest and the largest."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_data(run), []).append(run)
    return ReportSection("Federation", text=[_paragraph(name, members) for name, members in groups.items()])


def _paragraph(name: str, runs: Sequence[Run]) -> str:
    def each(words: Callable[[Run], str]) -> str:
        return _listed(words(run) for run in runs)

    def counts(key: str) -> str:
        return _range(number for run in runs if isinstance(number := _recorded(run).get(key), int))

    samples = [f"{number} {words}" for key, words in _SPLITS.items() if (number := counts(key)) not in ("", "0")]
    held_out = counts("num_held_out")
    samples += [f"{held_out} held out from all clients"] if held_out not in ("", "0") else []
    sentences = [
        f"{name}: {each(_task)}",
        f"Samples: {_and(samples)}" if samples else "",
        each(_clients),
        f"Partition: {each(_partition)}; split by {each(lambda run: run.scenario.data.split)}",
        f"A missing modality: {each(lambda run: run.scenario.model.missing)}",
        f"{each(lambda run: f'{run.scenario.rounds:,}')} rounds with {each(_cohort)} in each",
    ]
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def _recorded(run: Run) -> Mapping[str, Any]:
    """What the manifest says of the data; those of earlier versions say less."""
    return run.manifest.get("data") or {}


def _data(run: Run) -> str:
    """The data set, with what tells own ones apart."""
    data = run.scenario.data
    own = getattr(data, "factory", None) or (data.path if data.dataset == "table" else None)
    return data.dataset if own is None else f"{data.dataset} ({Path(str(own)).name})"


def _task(run: Run) -> str:
    number = _recorded(run).get("num_classes")
    if not isinstance(number, int):
        return run.scenario.task
    noun = {"classification": "classes", "multilabel": "labels", "regression": "targets"}[run.scenario.task]
    return f"{run.scenario.task}, {number:,} {noun if number > 1 else noun.removesuffix('s')}"


def _sets(run: Run) -> Mapping[str, int]:
    """The number of clients by modality set."""
    return _recorded(run).get("clients") or Counter(profile.modality_set for profile in run.scenario.profiles())


def _clients(run: Run) -> str:
    sets = _sets(run)
    shown = [f"{number:,} with {name}" for name, number in [*sets.items()][:_MOST_SETS]]
    shown += [f"{len(sets) - _MOST_SETS} more sets of modalities"] if len(sets) > _MOST_SETS else []
    total = sum(sets.values())
    return f"{total:,} client{'s' * (total > 1)}: {', '.join(shown)}"


def _partition(run: Run) -> str:
    (_, kind), *options = run.scenario.data.partition.model_dump().items()
    shown = {name.replace("_", " "): value for name, value in options if value is not False}
    words = ", ".join(name if value is True else f"{name} {value}" for name, value in shown.items())
    return f"{kind} ({words})" if words else str(kind)


def _cohort(run: Run) -> str:
    total = sum(_sets(run).values())
    number = cohort_size(run.scenario.server.clients_per_round, total)
    return "all clients" if number == total else f"{number:,} client{'s' * (number > 1)}"


def _listed(words: Iterable[str]) -> str:
    return brief(" or ".join(dict.fromkeys(words)))


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _range(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return "" if not found else f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"
