"""What runs noted of themselves, each text once, with the settings that it concerns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from blossom_ray.results.run import Run


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
        settings = (
            f"{name} ({_counted(*counts)})" if name else _counted(*counts) for name, counts in self.runs.items()
        )
        return f"{', '.join(settings)}: {self.text}"


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


def _counted(number: int, total: int) -> str:
    return f"{number} of {total} run{'s' * (total > 1)}"
