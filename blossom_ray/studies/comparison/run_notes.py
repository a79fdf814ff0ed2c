"""What runs noted of themselves, each text once, with the settings that it concerns; and what computed them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from blossom_ray.runs.folder import Run

_VERSIONS = ("torch", "numpy")
_UNSET = "not set"


@dataclass(frozen=True)
class RunNote:
    """What runs noted in their manifests, which a reader of their numbers should know.

    Attributes:
        text: The note.
        runs: By setting, in words, "" where there is one alone: how many of its runs noted this, of how many.
    """

    text: str
    runs: Mapping[str, tuple[int, int]]

    def __str__(self) -> str:
        return f"{_settings(self.runs)}: {self.text}"


def run_notes(runs: Iterable[tuple[str, Run]]) -> tuple[RunNote, ...]:
    """The notes of some runs, each with the word for its setting."""
    totals: Counter[str] = Counter()
    counts: dict[str, Counter[str]] = {}
    for setting, run in runs:
        totals[setting] += 1
        for text in dict.fromkeys(map(str, run.manifest.get("notes", ()))):
            counts.setdefault(text, Counter())[setting] += 1
    return tuple(
        RunNote(text, {setting: (number, totals[setting]) for setting, number in found.items()})
        for text, found in counts.items()
    )


def kernel_notes(runs: Iterable[tuple[str, Run]]) -> list[str]:
    """In what the kernels differ that runs were computed with, a note for each; none where they say the same.

    Args:
        runs: Each with the word for its setting. Older ones, which do not say, are left out.
    """
    totals: Counter[str] = Counter()
    described = []
    for setting, run in runs:
        totals[setting] += 1
        if found := dict(_kernels(run)):
            described.append((setting, found))
    notes = []
    for key in dict.fromkeys(key for _, found in described for key in found):
        counts: dict[str, Counter[str]] = {}
        for setting, found in described:
            counts.setdefault(found.get(key, _UNSET), Counter())[setting] += 1
        if len(counts) > 1:
            words = (
                f"{value} in {_settings({setting: (number, totals[setting]) for setting, number in each.items()})}"
                for value, each in counts.items()
            )
            notes.append(
                f"runs were computed by other kernels, which moves scores as noise does: {key} {'; '.join(words)}"
            )
    return notes


def _kernels(run: Run) -> Iterator[tuple[str, str]]:
    """What chose a run's kernels, by name; several values where its processes differed."""
    processes = run.manifest.get("kernels", ())
    if not processes:
        return
    versions = run.manifest.get("versions", {})
    yield from ((name, versions[name]) for name in _VERSIONS if name in versions)
    flat = [
        {"processor": each["processor"], "cpu_capability": each["cpu_capability"], **each["libraries"]}
        | each["variables"]
        for each in processes
    ]
    for name in dict.fromkeys(name for each in flat for name in each):
        yield name, " and ".join(sorted({str(each.get(name, _UNSET)) for each in flat}))


def _settings(runs: Mapping[str, tuple[int, int]]) -> str:
    """Settings with how many of their runs it is."""
    return ", ".join(f"{name} ({_counted(*counts)})" if name else _counted(*counts) for name, counts in runs.items())


def _counted(number: int, total: int) -> str:
    return f"{number} of {total} run{'s' * (total > 1)}"
