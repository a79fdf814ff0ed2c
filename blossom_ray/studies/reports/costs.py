"""The parts of a report on what runs cost and what went wrong: communication, time, failures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

import polars as pl

from blossom_ray.studies.reports.charts import bars, stacked_areas
from blossom_ray.studies.reports.parts import ReportFigure, ReportSection, ReportTable
from blossom_ray.studies.reports.variants import Variant
from blossom_ray.studies.tables import format_bytes, format_seconds

if TYPE_CHECKING:
    from blossom_ray.runs.folder import Run


def traffic_section(variants: Sequence[Variant]) -> ReportSection:
    """One variant: up and down by block. Several: all bytes by variant, divided into blocks."""
    values: dict[str, dict[str, float]] = {}
    rows = []
    for variant in variants:
        for block, down, up in _traffic(variant):
            if len(variants) == 1:
                values[block] = {"to clients": down / 1e6, "from clients": up / 1e6}
            else:
                parts = values.setdefault(variant.name, {})
                name = block.partition(" ")[0]
                parts[name] = parts.get(name, 0.0) + (down + up) / 1e6
            rows.append([*([variant.name] if len(variants) > 1 else []), block, format_bytes(down), format_bytes(up)])
    if not any(value for entry in values.values() for value in entry.values()):
        return ReportSection("Communication")
    figure = bars(values, x_label="MB sent in the whole run", stacked=len(variants) > 1)
    columns = [*(["variant"] if len(variants) > 1 else []), "block (scope)", "to clients", "from clients"]
    caption = "Bytes of each block sent to clients and back over the whole run; mean over seeds."
    table = ReportTable(columns, rows) if len(variants) == 1 else ReportTable(columns, rows, "by block", is_folded=True)
    return ReportSection("Communication", [ReportFigure("communication", figure, caption)], [table])


def time_section(variants: Sequence[Variant]) -> ReportSection:
    """Wall time by phase and round for a single run, and a row per run, below those of their variants if several."""
    rows, totals = [], []
    for variant in variants:
        seconds = [run.rounds.filter(pl.col("round") > 0)["seconds"].drop_nulls().to_list() for run in variant.runs]
        timed = [(_run_name(variant, run), each) for run, each in zip(variant.runs, seconds, strict=True) if each]
        rows += [[name, str(len(each)), *_times(each, sum(each))] for name, each in timed]
        if timed:
            times = [second for _, each in timed for second in each]
            totals.append([variant.name or "all runs", str(len(timed)), *_times(times, sum(times) / len(timed))])
    tables = [ReportTable(["run", "rounds", "median round", "all rounds"], rows)] if rows else []
    if len(rows) > 1:
        folded = replace(tables[0], title="single runs", is_folded=True)
        tables = [ReportTable(["setting", "runs", "median round", "all rounds of a run"], totals), folded]
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
        for variant, run in _runs(variants)
        for row in run.failures.select("round", "client", "actor", "phase", "cause", "action").iter_rows()
    ]
    columns = ["run", "round", "client", "actor", "phase", "cause", "what was done"]
    return ReportSection("Failures", tables=[ReportTable(columns, rows)] if rows else [])


def _times(rounds: Sequence[float], total: float) -> list[str]:
    return [format_seconds(median(rounds)), format_seconds(total)]


def _traffic(variant: Variant) -> Iterator[tuple[str, float, float]]:
    """Block with its scope, bytes down and bytes up, summed over rounds and averaged over runs."""
    columns = pl.concat([run.blocks.select("block", "scope", "bytes_down", "bytes_up") for run in variant.runs])
    sums = columns.group_by("block", "scope").agg(pl.col("bytes_down", "bytes_up").sum()).sort("block", "scope")
    for block, scope, down, up in sums.iter_rows():
        yield f"{block} ({scope})", down / len(variant.runs), up / len(variant.runs)


def _runs(variants: Sequence[Variant]) -> Iterator[tuple[Variant, Run]]:
    for variant in variants:
        for run in variant.runs:
            yield variant, run


def _run_name(variant: Variant, run: Run) -> str:
    return ", ".join(part for part in (variant.name, f"seed {run.scenario.seeds}") if part)
