"""The parts of a report on the federation and what it took: data and clients, communication, time, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl

from blossom_ray.algorithms.selection import cohort_size
from blossom_ray.core.phrases import listed
from blossom_ray.runs.folder import Run
from blossom_ray.studies.reports.charts import bars, stacked_areas
from blossom_ray.studies.reports.page import ReportFigure, ReportSection
from blossom_ray.studies.reports.variants import Variant
from blossom_ray.studies.tables import TextTable, format_bytes, format_seconds
from blossom_ray.text import brief

_SAMPLES = {
    "num_train": "to train on", "num_validation": "for validation", "num_test": "to test on",
    "num_held_out": "held out from all clients",
}  # fmt: skip
_MOST_SETS = 12


def federation_section(runs: Sequence[Run]) -> ReportSection:
    """A paragraph per data set. What differs between runs is listed, of counts the smallest and the largest."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_data(run), []).append(run)
    return ReportSection("Federation", text=[_paragraph(name, members) for name, members in groups.items()])


def traffic_section(variants: Sequence[Variant]) -> ReportSection:
    """One variant: up and down by block. Several: all bytes by variant, divided into blocks. The mean over its runs."""
    values: dict[str, dict[str, float]] = {}
    rows, are_several = [], len(variants) > 1
    for variant in variants:
        sent = pl.concat([run.blocks.select("block", "scope", "bytes_down", "bytes_up") for run in variant.runs])
        sums = sent.group_by("block", "scope").agg(pl.col("bytes_down", "bytes_up").sum() / len(variant.runs))
        for block, scope, down, up in sums.sort("block", "scope").iter_rows():
            name = f"{block} ({scope})"
            if are_several:
                parts = values.setdefault(variant.name, {})
                parts[block] = parts.get(block, 0.0) + (down + up) / 1e6
            else:
                values[name] = {"to clients": down / 1e6, "from clients": up / 1e6}
            rows.append([*([variant.name] if are_several else []), name, format_bytes(down), format_bytes(up)])
    if not any(value for entry in values.values() for value in entry.values()):
        return ReportSection("Communication")
    figure = bars(values, x_label="MB sent in the whole run", stacked=are_several)
    columns = [*(["variant"] if are_several else []), "block (scope)", "to clients", "from clients"]
    caption = "Bytes of each block sent to clients and back over the whole run; mean over seeds."
    table = TextTable(columns, rows, "by block" if are_several else "", is_folded=are_several)
    return ReportSection("Communication", [ReportFigure("communication", figure, caption)], [table])


def time_section(variants: Sequence[Variant]) -> ReportSection:
    """Wall time by phase and round for a single run, and a row per run, below those of their variants if several."""
    rows, totals = [], []
    for variant in variants:
        timed = []
        for run in variant.runs:
            if seconds := run.rounds.filter(pl.col("round") > 0)["seconds"].drop_nulls().to_list():
                timed.append(seconds)
                rows.append([_run_name(variant, run), str(len(seconds)), *_times(seconds, sum(seconds))])
        if timed:
            times = [*chain(*timed)]
            totals.append([variant.name or "all runs", str(len(timed)), *_times(times, sum(times) / len(timed))])
    tables = [TextTable(["run", "rounds", "median round", "all rounds"], rows)] if rows else []
    if len(rows) > 1:
        folded = replace(tables[0], title="single runs", is_folded=True)
        tables = [TextTable(["setting", "runs", "median round", "all rounds of a run"], totals), folded]
    figures = []
    if len(rows) == 1:
        table = variants[0].runs[0].rounds.filter(pl.col("round") > 0)
        parts = {"training": "seconds_train", "evaluation": "seconds_evaluate"}
        areas = {name: table[column].fill_null(0.0).to_list() for name, column in parts.items()}
        figure = stacked_areas(table["round"].to_list(), areas, x_label="round", y_label="seconds")
        figures = [ReportFigure("time", figure, "Wall time of each round by phase; aggregation is part of training.")]
    return ReportSection("Time", figures, tables)


def failure_section(variants: Sequence[Variant]) -> ReportSection:
    """A row per failure and client concerned; nothing where nothing failed."""
    rows = [
        [_run_name(variant, run), *("" if value is None else str(value) for value in row)]
        for variant in variants
        for run in variant.runs
        for row in run.failures.select("round", "client", "actor", "phase", "cause", "action").iter_rows()
    ]
    columns = ["run", "round", "client", "actor", "phase", "cause", "what was done"]
    return ReportSection("Failures", tables=[TextTable(columns, rows)] if rows else [])


def _paragraph(name: str, runs: Sequence[Run]) -> str:
    def each(words: Callable[[Run], str]) -> str:
        return brief(" or ".join(dict.fromkeys(words(run) for run in runs)))

    samples = []
    for key, words in _SAMPLES.items():
        numbers = sorted({number for run in runs if isinstance(number := _recorded(run).get(key), int)})
        if numbers and numbers != [0]:
            extremes = dict.fromkeys((numbers[0], numbers[-1]))
            samples.append(f"{' to '.join(f'{number:,}' for number in extremes)} {words}")
    sentences = [
        f"{name}: {each(_task)}",
        f"Samples: {' and '.join(filter(None, (', '.join(samples[:-1]), samples[-1])))}" if samples else "",
        each(_clients),
        _observed(runs[0]) if len(runs) == 1 else "",
        f"Partition: {each(_partition)}; split by {each(_split)}",
        f"A missing modality: {each(lambda run: run.scenario.model.missing)}",
        f"{each(lambda run: f'{run.scenario.rounds:,}')} rounds with {each(_cohort)} in each",
    ]
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def _recorded(run: Run) -> Mapping[str, Any]:
    """What the manifest says of the data; those of earlier versions say less."""
    return run.manifest.get("data") or {}


def _data(run: Run) -> str:
    """The data set, with what tells own ones apart."""
    found = []
    for name, data in run.scenario.data_sets.items():
        own = getattr(data, "factory", None) or (data.path if data.dataset == "table" else None)
        told = data.dataset if own is None else f"{data.dataset} ({Path(str(own)).name})"
        found.append(f"{name}: {told}" if name else told)
    return ", ".join(found)


def _task(run: Run) -> str:
    recorded = _recorded(run)
    found = []
    for name, task in run.scenario.learned.items():
        number = (recorded.get("tasks", {}).get(name, {}) if name else recorded).get("num_classes")
        noun = {"classification": "classes", "multilabel": "labels", "regression": "targets"}[task.kind]
        counted = f", {number:,} {noun if number > 1 else noun.removesuffix('s')}" if isinstance(number, int) else ""
        found.append(f"{name}: {task.kind}{counted}" if name else f"{task.kind}{counted}")
    return "; ".join(found)


def _sets(run: Run) -> Mapping[str, int]:
    """The number of clients that train by modality set."""
    recorded = _recorded(run).get("clients")
    return recorded or Counter(each.modality_set for each in run.scenario.profiles() if not each.is_unseen)


def _clients(run: Run) -> str:
    sets = _sets(run)
    shown = [f"{number:,} with {name}" for name, number in [*sets.items()][:_MOST_SETS]]
    shown += [f"{len(sets) - _MOST_SETS} more sets of modalities"] if len(sets) > _MOST_SETS else []
    total, unseen = sum(sets.values()), run.scenario.num_unseen
    others = f", and {unseen:,} that never train{'s' * (unseen == 1)}" if unseen else ""
    return f"{total:,} client{'s' * (total > 1)}: {', '.join(shown)}{others}"


def _observed(run: Run) -> str:
    """The modalities that are not observed in all rows, with the part of each split in which they are."""
    found = []
    for name, own in _recorded(run).get("observed", {}).items():
        shares = {split.replace("_", "-"): 100 * rows["observed"] / rows["rows"] for split, rows in own.items()}
        found.append(f"{name} is observed in {', '.join(f'{s:.1f} % of {split} rows' for split, s in shares.items())}")
    return "; ".join(found)


def _partition(run: Run) -> str:
    found = []
    for data in run.scenario.data_sets.values():
        (_, kind), *options = data.partition.model_dump().items()
        shown = {name.replace("_", " "): value for name, value in options if value not in (False, None, ())}
        texts = {name: listed(value) if isinstance(value, tuple) else value for name, value in shown.items()}
        words = ", ".join(name if text is True else f"{name} {text}" for name, text in texts.items())
        found.append(f"{kind} ({words})" if words else str(kind))
    return ", ".join(dict.fromkeys(found))


def _split(run: Run) -> str:
    return ", ".join(dict.fromkeys(data.split for data in run.scenario.data_sets.values()))


def _cohort(run: Run) -> str:
    total, size = sum(_sets(run).values()), run.scenario.server.clients_per_round
    if isinstance(size, Mapping):
        return ", ".join(f"{one} of {task}" for task, one in size.items())
    number = cohort_size(size, total)
    return "all clients" if number == total else f"{number:,} client{'s' * (number > 1)}"


def _times(rounds: Sequence[float], total: float) -> list[str]:
    return [format_seconds(median(rounds)), format_seconds(total)]


def _run_name(variant: Variant, run: Run) -> str:
    return ", ".join(part for part in (variant.name, f"seed {run.scenario.seeds}") if part)
