"""What a reader of a comparison should know: what runs noted of themselves, what computed them, what limits numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from blossom_ray.core.scores import Score
from blossom_ray.runs.folder import Run
from blossom_ray.studies.comparison.entries import PLAIN, SCORING
from blossom_ray.studies.comparison.rows import Row, all_stop
from blossom_ray.studies.comparison.scores import VALIDATION, Compute

MARK = "*"
"""Behind a gain that is over other rounds than the scores beside it, and a score that is over others than most."""
BEST_NOTES = (
    "best is optimistic: its round is chosen on the test scores that it then reports",
    "best is the test score of the round with the best validation score",
    "best is optimistic: its round is chosen on the validation scores that it then reports",
    "best is compared between runs alone that have validation scores, or that have none",
)
"""How the best round was chosen; a note about it begins with one of these."""
_ONCE_NOTE = (
    "a test split that was scored once, at the end (evaluation.split: validation), has that score as final, and no "
    "last 5, best or rounds to a target"
)
_STOP_NOTE = "runs that stop early (stop) count by their own last or best rounds, not by those that both were scored in"
_FEW_SEEDS = 3
# Another share of the compute than this makes a difference that a reader should know of.
_UNEQUAL = 0.01
_VERSIONS = ("torch", "numpy")
_UNSET = "not set"


@dataclass(frozen=True)
class RunNote:
    """What runs noted in their manifests, which a reader of their numbers should know.

    `runs` says by setting, in words, "" where there is one alone: how many of its runs noted this, of how many.
    """

    text: str
    runs: Mapping[str, tuple[int, int]]

    def __str__(self) -> str:
        return f"{_settings(self.runs)}: {self.text}"


def run_notes(runs: Iterable[tuple[str, Run]]) -> tuple[RunNote, ...]:
    """The notes of some runs, each with the word for its setting."""
    runs = [*runs]
    noted = ((text, setting) for setting, run in runs for text in {str(n): 0 for n in run.manifest.get("notes", ())})
    return tuple(RunNote(text, found) for text, found in _counts(noted, runs).items())


def kernel_notes(runs: Iterable[tuple[str, Run]]) -> list[str]:
    """In what the kernels differ that runs, each with the word for its setting, were computed with, a note for each.

    Older runs, which do not say, are left out.
    """
    runs = [*runs]
    described = [(setting, found) for setting, run in runs if (found := dict(_kernels(run)))]
    notes = []
    for key in dict.fromkeys(key for _, found in described for key in found):
        counts = _counts(((found.get(key, _UNSET), setting) for setting, found in described), runs)
        if len(counts) > 1:
            words = "; ".join(f"{value} in {_settings(found)}" for value, found in counts.items())
            notes.append(f"runs were computed by other kernels, which moves scores as noise does: {key} {words}")
    return notes


def score_notes(rows: Sequence[Row], table: pl.DataFrame, score: Score) -> list[str]:
    """What scores, gains and intervals are over, and what they do not say: of paired rows and the table of them."""
    seeds = {row.entry.seeds for row in rows if row.scores.scored}
    notes = _best_notes(rows)
    num_pairs = table["num_pairs"].max()
    if (number := table["p_final"].count()) > 0:
        notes.append(f"p: t test paired by seed; Holm: p adjusted for the {number} comparisons of this table")
    if isinstance(num_pairs, int) and 2 <= num_pairs <= _FEW_SEEDS:
        notes.append(
            f"{num_pairs} seeds: that a difference has the same sign in each is no evidence, since by chance one in "
            f"{2 ** (num_pairs - 1)} has"
        )
    federations = {seed.federation for seed in seeds}
    if len(federations) < len(seeds):
        notes.append(
            f"{len(seeds)} pairs of seeds in {len(federations)} federation{'s' * (len(federations) > 1)}: intervals "
            "over them do not cover how federations differ"
        )
    if len(seeds) == 1:
        notes.append("one seed: there is no interval over seeds; those in brackets are over its clients alone")
    if len({row.last_rounds for row in rows} - {None}) > 1:
        notes.append(f"{MARK} last 5 over other rounds than in most rows, since fewer or others were scored")
    if any(row.pair is not None and any(row.pair.rounds.values()) for row in rows):
        notes.append(f"{MARK} gain over the rounds alone that both were scored in; scores beside it are over their own")
    if any(row.scores.is_once for row in rows):
        notes.append(_ONCE_NOTE)
    if any(row.pair is not None and row.pair.is_apart and all_stop([row]) for row in rows):
        notes.append(_STOP_NOTE)
    if score.lower_is_better:
        notes.append("lower scores are better here; positive points and gains are lower scores")
    return notes


def compute_notes(rows: Sequence[Row], keys: Sequence[str]) -> list[str]:
    """Which rows took more or less to compute than what they are compared with."""
    sides: dict[tuple[str, str], list[tuple[Compute, Compute]]] = {}
    for row, against in _compared(rows):
        name, other = (
            ", ".join(each.setting[key] for key in keys if (key, each.setting[key]) != (SCORING, PLAIN))
            for each in (row, against)
        )
        if name != other:
            sides.setdefault((name, other), []).append((row.compute, against.compute))
    unequal: dict[str, list[str]] = {}
    for (name, other), pairs in sides.items():
        ratios = {
            "samples": _ratio([(own.num_examples, base.num_examples) for own, base in pairs]),
            "steps": _ratio([(own.num_steps, base.num_steps) for own, base in pairs]),
        }
        times: dict[str, list[str]] = {}
        for word, ratio in ratios.items():
            if ratio is not None and abs(ratio - 1) > _UNEQUAL:
                times.setdefault(f"{ratio:.3g} x", []).append(word)
        if times:
            parts = [f"{ratio} the {' and '.join(words)}" for ratio, words in times.items()]
            unequal.setdefault(f"{' and '.join(parts)} of {other}", []).append(name)
    return [f"unequal compute: {'; '.join(names)}: {times}" for times, names in unequal.items()]


def setting_in_words(setting: Mapping[str, Any], keys: Iterable[str]) -> str:
    """The setting of a run, which is the same for its plain and its fine-tuned scores."""
    return ", ".join(str(setting[key]) for key in keys if key != SCORING)


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


def _counts(said: Iterable[tuple[str, str]], runs: Iterable[tuple[str, Run]]) -> dict[str, dict[str, tuple[int, int]]]:
    """By text that runs of settings said, these settings: how many of their runs did, of how many."""
    totals = Counter(setting for setting, _ in runs)
    counts: dict[str, Counter[str]] = {}
    for text, setting in said:
        counts.setdefault(text, Counter())[setting] += 1
    return {text: {name: (number, totals[name]) for name, number in found.items()} for text, found in counts.items()}


def _settings(runs: Mapping[str, tuple[int, int]]) -> str:
    """Settings with how many of their runs it is."""
    return ", ".join(f"{name} ({_counted(*counts)})" if name else _counted(*counts) for name, counts in runs.items())


def _counted(number: int, total: int) -> str:
    return f"{number} of {total} run{'s' * (total > 1)}"


def _compared(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Rows with their baseline's; where none has one, with the one of the same federation that took least."""
    pairs = [(row, row.pair.against) for row in rows if row.pair is not None]
    if pairs:
        yield from pairs
        return

    def took(row: Row) -> list[float]:
        numbers = (row.compute.num_examples, row.compute.num_steps)
        return [math.inf if number is None else number for number in numbers]

    alike: dict[Any, list[Row]] = {}
    for row in rows:
        if row.scores.scored and row.federation is not None:
            alike.setdefault((row.federation, row.modalities), []).append(row)
    for members in alike.values():
        least = min(members, key=took)
        yield from ((row, least) for row in members)


def _ratio(pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    """How many times as much the first ones are together; None where one of them is not known."""
    known = [(own, base) for own, base in pairs if own is not None and base]
    if len(known) < len(pairs):
        return None
    return math.fsum(own for own, _ in known) / math.fsum(base for _, base in known)


def _best_notes(rows: Sequence[Row]) -> list[str]:
    """How the best rounds were chosen, with the numbers of runs where that was not in one way."""
    runs: dict[str, set[str]] = {}
    for row in rows:
        if row.scores.own.rounds["best"]:
            is_validated = row.scores.judge.startswith(VALIDATION)
            note = BEST_NOTES[2 if row.metric.startswith(VALIDATION) else 1 if is_validated else 0]
            runs.setdefault(note, set()).add(row.entry.identity)
    if len(runs) < 2:
        return list(runs)
    return [*(f"{note} ({len(each)} run{'s' * (len(each) > 1)})" for note, each in runs.items()), BEST_NOTES[3]]
