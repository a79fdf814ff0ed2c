"""Chooses among values of some keys by scores on validation, so that test scores report and choose nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from blossom_ray.core.phrases import did_you_mean, listed, shortened
from blossom_ray.core.scores import SCORES, SUFFIXES, task_prefix
from blossom_ray.data.division.options import GivenPartition
from blossom_ray.errors import InputError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.scenario.tree import Seeds
from blossom_ray.studies.comparison.entries import RunEntry, key_labels, own_scores, varied_keys
from blossom_ray.studies.comparison.rows import all_stop, make_rows, runs_frame, table_frame
from blossom_ray.studies.comparison.scores import ALL, VALIDATION, Summary, score_of, split_column, validation_columns
from blossom_ray.studies.sweeps.grid import Cell

COLUMNS = ("validation", "validation_low", "validation_high")
BUDGET = ("num_values", "num_runs", "num_rounds")
# Means over the same scores in another order differ by rounding.
_ROUNDING = 1e-12
_MOST_NAMED = 8
_NEEDS_ROWS = "expected runs with data.validation_fraction above 0, since values are chosen on validation rows alone"

NO_SCORE = "tune is given without choose; expected the score on validation data to choose by, too"

Words = tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """What was chosen on validation.

    Attributes:
        metric: The column of the table `rounds` that it was chosen by, such as `validation/accuracy`.
        summary: Which score of a run in this column: `final`, `last5` or `best`.
        is_share: Whether it is a share of 1, which is shown in percent.
        keys: The keys that were tuned.
        settings: The other keys in which the runs differ.
        table: A row per setting of the other keys: these, the tuned keys with the values chosen, null where none could
            be, `num_seeds`, the mean `validation` score over seeds with `_low` and `_high` (`interval` says of what, as
            in a comparison), and the budget: `num_values` that were tried, in `num_runs` runs of `num_rounds` rounds
            together.
        tried: A row per setting of all keys: these, `num_seeds`, `validation` with `_low` and `_high`, `is_chosen`, and
            `note` (why it could not be chosen).
        notes: What a reader of the table should know.
    """

    metric: str
    summary: Summary
    is_share: bool
    keys: tuple[str, ...]
    settings: tuple[str, ...]
    table: pl.DataFrame
    tried: pl.DataFrame
    notes: tuple[str, ...]

    def beside(self, table: pl.DataFrame, keys: Iterable[str]) -> pl.DataFrame:
        """A comparison's table, a row per setting of `keys` and so on, with what was chosen and the budget in columns.

        Over keys that are neither these nor tuned, scores are averaged and budgets are added.
        """
        on = [key for key in keys if key in self.settings]
        texts = [pl.col(key).drop_nulls().unique(maintain_order=True).str.join("; ") for key in self.keys]
        limits = [pl.when(pl.len() == 1).then(pl.col(name).first()).alias(name) for name in COLUMNS[1:]]
        columns = [*texts, pl.col(COLUMNS[0]).mean(), *limits, pl.col(BUDGET).sum()]
        if not on:
            return table.join(self.table.select(columns), how="cross")
        found = self.table.group_by(on, maintain_order=True).agg(columns)
        return table.join(found, on=on, how="left", maintain_order="left")


def check_choice(cells: Sequence[Cell], choose: str | None, tune: Iterable[str]) -> str | None:
    """The column that values are chosen by; a sweep that none could be chosen from is refused before anything runs.

    Raises:
        InputError: One of the two is missing, a key is not varied, no such score, or a cell has no validation rows.
    """
    if choose is None:
        if [*tune]:
            raise InputError(NO_SCORE)
        return None
    _tuned_keys(tune, tuple(dict.fromkeys(key for cell in cells for key in cell.setting)))
    for cell in cells:
        scenario = cell.scenario
        # Splits that the data give may have validation rows without it.
        sections = scenario.data_sets.values()
        if not any(data.validation_fraction or isinstance(data.partition, GivenPartition) for data in sections):
            raise InputError(f"cell {cell.name}: data.validation_fraction is 0; {_NEEDS_ROWS}")
        _check_metric(choose, _expected_scores(scenario))
    return VALIDATION + choose.removeprefix(VALIDATION)


def choose_values(
    entries: Sequence[RunEntry], choose: str, tune: str | Iterable[str], by: Summary | None, up_to: int | None
) -> tuple[Choice, list[RunEntry]]:
    """Take the values of the keys `tune`, for every setting of the others, whose mean over seeds is the best one.

    All seeds of a setting get the same values. Values without a score for one of its seeds are not chosen from; of
    equal ones, the first in the order of the runs are taken. `by` None: by the best score of a run where runs stop
    early, else by the mean of its last five. `up_to` None: by all rounds.

    Returns:
        What was chosen, and the runs with these values, their settings without the tuned keys.

    Raises:
        InputError: There is nothing to choose from.
    """
    metric = _validation_metric(choose, entries)
    keys = tuple(entries[0].setting)
    tuned = _tuned_keys(tune, keys)
    others = tuple(key for key in keys if key not in tuned)
    score = score_of(metric, own_scores(entries))
    wanted, only = split_column(metric)
    rows = [row for row in make_rows(entries, metric, score, None, up_to) if row.metric == wanted]
    summary = by or ("best" if all_stop(rows) else "last5")
    table = table_frame(rows, keys, score).to_dicts()
    means = {_words(row, keys): row for row in table if row["modalities"] == (only or ALL)}
    by_run = {
        (_words(row, keys), Seeds(row["seed"], row["training_seed"])): row
        for row in runs_frame(rows, keys, score).to_dicts()
        if row["modalities"] in (ALL, only)
    }
    order = [*dict.fromkeys(_words(entry.setting, tuned) for entry in entries)]
    groups: dict[Words, list[RunEntry]] = {}
    for entry in entries:
        groups.setdefault(_words(entry.setting, others), []).append(entry)
    tried: list[dict[str, Any]] = []
    chosen: list[dict[str, Any]] = []
    kept: list[RunEntry] = []
    notes: list[str] = []
    edges: dict[str, list[str]] = {}
    labels = key_labels(keys)
    for group in groups.values():
        setting = {key: group[0].setting[key] for key in others}
        name = ", ".join(setting.values())
        of = f"{name}: " if name else ""
        seeds = sorted({entry.seeds for entry in group})
        options: list[dict[str, Any]] = []
        for values in sorted({_words(entry.setting, tuned) for entry in group}, key=order.index):
            place = {**setting, **dict(zip(tuned, values, strict=True))}
            words = _words(place, keys)
            note = _missing({seed: by_run.get((words, seed)) for seed in seeds}, summary)
            option = {**place, "num_seeds": 0, "is_chosen": False, "note": note}
            if (mean := means.get(words)) is not None:
                option |= {name: mean[name] for name in ("num_seeds", "interval")}
                option |= {f"validation{end}": mean[f"{summary}{end}"] for end in ("", "_low", "_high")}
            options.append(option)
        notes += [
            f"{of}{_in_words(row, tuned, labels)} is not chosen from: {row['note']}" for row in options if row["note"]
        ]
        scored = [row["validation"] for row in options if row["note"] is None]
        top = (min if score.lower_is_better else max)(scored, default=math.nan)
        best = [
            row
            for row in options
            if row["note"] is None and math.isclose(row["validation"], top, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
        ]
        if len(best) > 1:
            equal = " and ".join(_in_words(row, tuned, labels) for row in best)
            notes.append(f"{of}{equal} are equal on validation; the first is taken")
        tried += options
        begun = [entry.run for entry in group if entry.run is not None]
        num_rounds = sum(max(0, run.rounds.height - 1) for run in begun)
        budget = {"num_values": len(options), "num_runs": len(begun), "num_rounds": num_rounds}
        if not best:
            notes.append(f"{of}nothing is chosen, since no values have a score for every seed")
            chosen.append({**setting, **budget})
            continue
        best[0]["is_chosen"] = True
        chosen.append({key: value for key, value in best[0].items() if key not in ("is_chosen", "note")} | budget)
        values = _words(best[0], tuned)
        kept += [replace(entry, setting=setting) for entry in group if _words(entry.setting, tuned) == values]
        for edge in _edges(group, values, tuned, labels):
            edges.setdefault(edge, []).append(name)
    if not kept:
        more = f"; and {len(notes) - _MOST_NAMED} more" if len(notes) > _MOST_NAMED else ""
        raise InputError("; ".join(notes[:_MOST_NAMED]) + more)
    notes += [edge + (f" (for {'; '.join(names)})" if others else "") for edge, names in edges.items()]
    grids = [{_words(entry.setting, tuned) for entry in group} for group in groups.values()]
    notes += _uneven(chosen, grids, others)
    texts = dict.fromkeys((*keys, "interval", "note"), pl.String)
    types = {**texts, "is_chosen": pl.Boolean, **dict.fromkeys(("num_seeds", *BUDGET), pl.Int64)}

    def frame(records: list[dict[str, Any]], *columns: str) -> pl.DataFrame:
        names = (*others, *tuned, "num_seeds", *COLUMNS, "interval", *columns)
        return pl.DataFrame(records, schema={name: types.get(name, pl.Float64) for name in names})

    choice = Choice(
        metric=metric,
        summary=summary,
        is_share=score.is_share,
        keys=tuned,
        settings=others,
        table=frame(chosen, *BUDGET),
        tried=frame(tried, "is_chosen", "note"),
        notes=tuple(dict.fromkeys(notes)),
    )
    return choice, kept


def _tuned_keys(tune: str | Iterable[str], keys: Sequence[str]) -> Words:
    """The keys whose values are chosen, by their paths."""
    found = varied_keys("tune", [tune] if isinstance(tune, str) else tune, keys)
    if not found:
        varied = ", ".join(keys) or "nothing but the seed"
        raise InputError(f"tune names no key to choose values of; expected some in which the runs differ: {varied}")
    return found


def _expected_scores(scenario: Scenario) -> list[str]:
    """The scores on validation that a run of this scenario will have, of all clients first."""
    ends = ("", *SUFFIXES, *{f"/{group.modality_set}" for group in scenario.groups})
    starts = ("", "fine_tuned/") if scenario.evaluation.fine_tune is not None else ("",)
    names = [
        f"{task_prefix(task)}{name}"
        for task, section in scenario.learned.items()
        for name in [*(score.name for score in (*SCORES[section.kind], *scenario.own_scores)), "loss"]
    ]
    return [f"{start}{name}{end}" for start in starts for end in ends for name in names]


def _validation_metric(asked: str, entries: Iterable[RunEntry]) -> str:
    """The column that a choice is made by: `validation/accuracy` for `accuracy`."""
    known: dict[str, None] = {}
    for entry in entries:
        if entry.finished is not None:
            columns = validation_columns(entry.finished)
            if not columns:
                raise InputError(f"{entry.place} has no scores on validation rows; {_NEEDS_ROWS}")
            known |= dict.fromkeys(name.removeprefix(VALIDATION) for name in columns)
    if known:
        _check_metric(asked, known)
    return VALIDATION + asked.removeprefix(VALIDATION)


def _check_metric(asked: str, known: Iterable[str]) -> None:
    name, known = asked.removeprefix(VALIDATION), list(known)
    if name not in known:
        # With tasks, all have a name behind a slash.
        plain = [each for each in known if not split_column(each)[1]] or known
        raise InputError(
            f"choose is {shortened(asked)!r}; expected a score on validation: {listed(plain[:_MOST_NAMED])}"
            f"{did_you_mean(name, known)}"
        )


def _words(row: Mapping[str, Any], keys: Iterable[str]) -> Words:
    return tuple(row[key] for key in keys)


def _in_words(row: Mapping[str, Any], tuned: Iterable[str], labels: Mapping[str, str]) -> str:
    return ", ".join(f"{labels[key]} {row[key]}" for key in tuned)


def _missing(runs: Mapping[Seeds, Mapping[str, Any] | None], summary: Summary) -> str | None:
    """Which seeds have no score, and why; None where all have."""
    found: dict[str, list[Seeds]] = {}
    for seed, row in runs.items():
        if row is None or row[summary] is None:
            reason = "there is no run" if row is None else row["note"] or f"no {summary} score on validation"
            found.setdefault(reason.removeprefix("not used: "), []).append(seed)
    texts = (f"seed{'s' * (len(seeds) > 1)} {listed(seeds)}: {reason}" for reason, seeds in found.items())
    return "; ".join(texts) or None


def _edges(group: Sequence[RunEntry], chosen: Words, tuned: Words, labels: Mapping[str, str]) -> Iterator[str]:
    """Numbers that were chosen and are the smallest or largest tried."""
    for key, word in zip(tuned, chosen, strict=True):
        values = {entry.setting[key]: entry.value(key) for entry in group}
        numbers = [value for value in values.values() if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(numbers) < len(values) or len(numbers) < 2 or values[word] not in (min(numbers), max(numbers)):
            continue
        edge = "smallest" if values[word] == min(numbers) else "largest"
        yield f"{labels[key]} {word} is the {edge} of the {len(numbers)} tried, so a better one may lie beyond"


def _uneven(rows: Sequence[Mapping[str, Any]], grids: Sequence[set[Words]], others: Words) -> list[str]:
    """What there is to say where not every setting had the same chances."""
    budgets = [(row["num_runs"], row["num_rounds"], row["num_values"]) for row in rows]
    notes = []
    if len(set(budgets)) > 1:
        least, most = (budgets.index(pick(budgets)) for pick in (min, max))
        texts = (
            f"{', '.join(_words(row, others))} had {row['num_values']} values in {row['num_runs']} runs of "
            f"{row['num_rounds']} rounds"
            for row in (rows[least], rows[most])
        )
        notes.append(f"budgets differ: {', '.join(texts)}")
    if any(grid != grids[0] for grid in grids):
        notes.append("not every setting was tuned over the same values")
    return notes
