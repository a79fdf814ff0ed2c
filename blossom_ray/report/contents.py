"""What a report shows of one run, or of several side by side: sections of figures and tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING

import polars as pl

from blossom_ray.console_tables import format_bytes, format_seconds
from blossom_ray.report.charts import Curve, bars, curves, distributions, stacked_areas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from blossom_ray.results import Run

NUM_HEADLINES = 2
"""Metrics that get a chart of their own; every metric is in the tables."""
_RAW_METRICS = ("loss", "mae", "rmse", "r2")


@dataclass(frozen=True)
class Variant:
    """Runs that differ in nothing but their seed.

    Attributes:
        label: What tells it from the other variants of a report.
        runs: Its runs, at least one.
    """

    label: str
    runs: Sequence[Run]

    @cached_property
    def rounds(self) -> pl.DataFrame:
        """The `rounds` tables of all runs, one below the other, with the column `run`; rounds that were scored."""
        frames = [
            run.rounds.filter(pl.col("num_evaluated") > 0).with_columns(run=pl.lit(index))
            for index, run in enumerate(self.runs)
        ]
        return pl.concat(frames, how="diagonal")


@dataclass(frozen=True)
class ReportTable:
    """A table of texts.

    Attributes:
        columns: Headings.
        rows: One sequence of cells per row; the first cell names the row.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class ReportFigure:
    """A figure with what it is called in files and what it shows.

    Attributes:
        name: File name without its ending.
        figure: The figure.
        caption: One sentence below it.
    """

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class ReportSection:
    """A part of a report.

    Attributes:
        title: Its heading.
        figures: Figures in order.
        tables: Tables in order, below the figures.
        text: A paragraph above them.
    """

    title: str
    figures: Sequence[ReportFigure] = ()
    tables: Sequence[ReportTable] = ()
    text: str = ""


def run_sections(variants: Sequence[Variant]) -> list[ReportSection]:
    """The sections on scores, traffic, time and failures. Without a scored round, those on scores are left out."""
    sections: list[ReportSection] = []
    if any(variant.rounds.height for variant in variants):
        sections += [_curve_section(variants), _modality_section(variants), _client_section(variants)]
    sections += [_traffic_section(variants), _time_section(variants), _failure_section(variants)]
    return [section for section in sections if section.figures or section.tables]


def headline_metrics(variants: Sequence[Variant]) -> list[str]:
    """The scores of these runs that have a spread over clients, in the order of their tables; loss is no score."""
    columns = dict.fromkeys(name for variant in variants for name in variant.rounds.columns)
    names = [name.removesuffix("_p50") for name in columns if name.endswith("_p50")]
    return [name for name in names if name != "loss"]


def metric_title(metric: str) -> str:
    """A metric's name for people: `macro_f1_present` becomes `macro-F1, classes present`."""
    titles = {
        "macro_f1_present": "macro-F1, classes present",
        "macro_f1_all": "macro-F1, all classes",
        "balanced_accuracy": "balanced accuracy",
        "macro_auroc": "macro-AUROC",
    }
    return titles.get(metric, metric.replace("_", " "))


def format_score(metric: str, value: float | None) -> str:
    """A score with its unit: percent for those of 0..1, three digits for losses and errors."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.4g}" if metric in _RAW_METRICS else f"{100 * value:.1f} %"


def _scale(metric: str) -> tuple[float, str]:
    return (1.0, metric_title(metric)) if metric in _RAW_METRICS else (100.0, f"{metric_title(metric)} (%)")


def _curve_section(variants: Sequence[Variant]) -> ReportSection:
    figures = []
    for metric in headline_metrics(variants)[:NUM_HEADLINES]:
        factor, label = _scale(metric)
        lines = [_curve(variant, metric, factor) for variant in variants]
        figures.append(
            ReportFigure(
                f"curve-{metric}",
                curves({metric_title(metric): lines}, x_label="round", y_label=label),
                f"{metric_title(metric)} after each scored round, mean over clients weighted by test samples. "
                + _band_text(variants),
            )
        )
    losses = [
        Curve(label, *_points(variant, column))
        for variant in variants
        for label, column in _loss_columns(variant, several=len(variants) > 1)
    ]
    if losses:
        figure = curves({"loss": losses}, x_label="round", y_label="loss")
        figures.append(ReportFigure("curve-loss", figure, "Loss on the clients' test splits, and while training."))
    metrics = [*headline_metrics(variants), "loss"]
    rows = [
        [variant.label or "all clients", *(format_score(metric, _final(variant, metric)) for metric in metrics)]
        for variant in variants
    ]
    table = ReportTable(["last scored round", *map(metric_title, metrics)], rows)
    return ReportSection("Scores over rounds", figures, [table])


def _modality_section(variants: Sequence[Variant]) -> ReportSection:
    metrics = headline_metrics(variants)[:NUM_HEADLINES]
    if not metrics:
        return ReportSection("Modality sets")
    metric = metrics[0]
    factor, label = _scale(metric)
    prefix = f"{metric}/"
    sets = sorted({name.removeprefix(prefix) for v in variants for name in v.rounds.columns if name.startswith(prefix)})
    if len(variants) > 1:
        panels = {
            owned: [
                _curve(variant, f"{metric}/{owned}", factor) for variant in variants if _has(variant, metric, owned)
            ]
            for owned in sets
        }
    else:
        lines = [_curve(variants[0], f"{metric}/{owned}", factor, label=owned) for owned in sets]
        panels = {f"{metric_title(metric)} by modality set": lines}
    caption = f"{metric_title(metric)} of the clients that own exactly these modalities."
    figure = ReportFigure("modality-sets", curves(panels, x_label="round", y_label=label), caption)
    rows = [
        [owned if len(variants) == 1 else f"{owned}, {variant.label}"]
        + [format_score(name, _final(variant, f"{name}/{owned}")) for name in headline_metrics(variants)]
        for owned in sets
        for variant in variants
    ]
    table = ReportTable(["modality set", *map(metric_title, headline_metrics(variants))], rows)
    return ReportSection("Modality sets", [figure], [table])


def _client_section(variants: Sequence[Variant]) -> ReportSection:
    metrics = headline_metrics(variants)[:1]
    groups: dict[str, dict[str, list[float]]] = {}
    for metric in metrics:
        for variant in variants:
            for row in _final_clients(variant, metric).iter_rows(named=True):
                groups.setdefault(row["modalities"], {}).setdefault(variant.label, []).append(row[metric])
    if not groups:
        return ReportSection("Clients")
    metric = metrics[0]
    factor, label = _scale(metric)
    values = {
        owned: {name: [factor * score for score in scores] for name, scores in by_variant.items()}
        for owned, by_variant in sorted(groups.items())
    }
    caption = (
        f"{metric_title(metric)} of every client in the last scored round: dots, quartiles, median; whiskers at the "
        "10th and 90th percentile."
    )
    return ReportSection("Clients", [ReportFigure("clients", distributions(values, x_label=label), caption)])


def _traffic_section(variants: Sequence[Variant]) -> ReportSection:
    """One run: up and down by block. Several: all bytes by variant, divided into blocks."""
    values: dict[str, dict[str, float]] = {}
    rows = []
    for variant in variants:
        for block, down, up in _traffic(variant):
            if len(variants) == 1:
                values[block] = {"to clients": down / 1e6, "from clients": up / 1e6}
            else:
                values.setdefault(variant.label, {})[block] = (down + up) / 1e6
            rows.append([block, *([variant.label] if len(variants) > 1 else []), format_bytes(down), format_bytes(up)])
    if not any(value for entry in values.values() for value in entry.values()):
        return ReportSection("Communication")
    figure = bars(values, x_label="MB sent in the whole run")
    columns = ["block (scope)", *(["variant"] if len(variants) > 1 else []), "to clients", "from clients"]
    caption = "Bytes of each block sent to clients and back over the whole run; mean over seeds."
    return ReportSection(
        "Communication", [ReportFigure("communication", figure, caption)], [ReportTable(columns, rows)]
    )


def _traffic(variant: Variant) -> Iterator[tuple[str, float, float]]:
    """Block with its scope, bytes down and bytes up, summed over rounds and averaged over runs."""
    columns = pl.concat([run.blocks.select("block", "scope", "bytes_down", "bytes_up") for run in variant.runs])
    sums = columns.group_by("block", "scope").agg(pl.col("bytes_down", "bytes_up").sum()).sort("block", "scope")
    for block, scope, down, up in sums.iter_rows():
        yield f"{block} ({scope})", down / len(variant.runs), up / len(variant.runs)


def _time_section(variants: Sequence[Variant]) -> ReportSection:
    rows = []
    for variant in variants:
        for run in variant.runs:
            seconds = run.rounds.filter(pl.col("round") > 0)["seconds"].drop_nulls().to_list()
            if seconds:
                median = format_seconds(sorted(seconds)[len(seconds) // 2])
                rows.append([_run_label(variant, run), str(len(seconds)), median, format_seconds(sum(seconds))])
    tables = [ReportTable(["run", "rounds", "median round", "all rounds"], rows)] if rows else []
    figures = []
    if len(variants) == 1 and len(variants[0].runs) == 1 and rows:
        table = variants[0].runs[0].rounds.filter(pl.col("round") > 0)
        parts = {"training": "seconds_train", "evaluation": "seconds_evaluate"}
        areas = {name: table[column].fill_null(0.0).to_list() for name, column in parts.items()}
        figure = stacked_areas(table["round"].to_list(), areas, x_label="round", y_label="seconds")
        figures = [ReportFigure("time", figure, "Wall time of each round by phase.")]
    return ReportSection("Time", figures, tables)


def _failure_section(variants: Sequence[Variant]) -> ReportSection:
    rows = [
        [_run_label(variant, run), *("" if value is None else str(value) for value in row)]
        for variant in variants
        for run in variant.runs
        for row in run.failures.select("round", "client", "actor", "phase", "cause", "action").iter_rows()
    ]
    if not rows:
        return ReportSection("Failures")
    columns = ["run", "round", "client", "actor", "phase", "cause", "what was done"]
    return ReportSection("Failures", tables=[ReportTable(columns, rows)])


def _curve(variant: Variant, column: str, factor: float, *, label: str | None = None) -> Curve:
    """Mean over runs, with their range; for one run, with the 10th and 90th percentile over clients."""
    name = variant.label if label is None else label
    if len(variant.runs) > 1:
        grouped = variant.rounds.filter(pl.col(column).is_not_null()).group_by("round").agg(
            mean=pl.col(column).mean(), low=pl.col(column).min(), high=pl.col(column).max()
        )  # fmt: skip
        mean, low, high = (_scaled(grouped.sort("round")[key], factor) for key in ("mean", "low", "high"))
        return Curve(name, grouped.sort("round")["round"].to_list(), mean, low, high)
    x, y = _points(variant, column)
    y = [factor * value for value in y]
    edges = [f"{column}_p10", f"{column}_p90"]
    if not set(edges) <= set(variant.rounds.columns):
        return Curve(name, x, y)
    table = variant.rounds.filter(pl.col(column).is_not_null())
    return Curve(name, x, y, *(_scaled(table[edge], factor) for edge in edges))


def _points(variant: Variant, column: str) -> tuple[list[int], list[float]]:
    """The mean of a column over runs, by round."""
    table = variant.rounds.filter(pl.col(column).is_not_null())
    means = table.group_by("round").agg(pl.col(column).mean()).sort("round")
    return means["round"].to_list(), means[column].to_list()


def _scaled(values: pl.Series, factor: float) -> list[float]:
    return [math.nan if value is None else factor * value for value in values.to_list()]


def _loss_columns(variant: Variant, *, several: bool) -> list[tuple[str, str]]:
    names = {"loss": "test", "train_loss": "training"}
    found = [(column, name) for column, name in names.items() if column in variant.rounds.columns]
    if several:
        return [(variant.label, column) for column, _ in found if column == "loss"]
    return [(name, column) for column, name in found]


def _band_text(variants: Sequence[Variant]) -> str:
    if any(len(variant.runs) > 1 for variant in variants):
        return "The band is the range over seeds; of a variant with one run, the 10th to 90th percentile over clients."
    return "The band reaches from the 10th to the 90th percentile over clients."


def _has(variant: Variant, metric: str, owned: str) -> bool:
    return f"{metric}/{owned}" in variant.rounds.columns


def _final(variant: Variant, metric: str) -> float | None:
    values = [run.final[metric] for run in variant.runs if metric in run.final]
    return fmean(values) if values else None


def _final_clients(variant: Variant, metric: str) -> pl.DataFrame:
    frames = []
    for run in variant.runs:
        scored = run.clients.filter(pl.col(metric).is_not_null())
        frames.append(scored.filter(pl.col("round") == scored["round"].max()).select("modalities", metric))
    return pl.concat(frames)


def _run_label(variant: Variant, run: Run) -> str:
    seed = f"seed {run.scenario.seed}"
    return f"{variant.label}, {seed}" if variant.label else seed


def facts(run: Run) -> Mapping[str, str]:
    """What a run was, in a few words each."""
    scenario, manifest = run.scenario, run.manifest
    sharing = scenario.sharing if isinstance(scenario.sharing, str) else str(dict(scenario.sharing))
    found = {
        "scenario": scenario.name,
        "sharing": sharing,
        "clients": str(scenario.num_clients),
        "rounds": f"{max(0, run.rounds.height - 1)} of {scenario.rounds}",
        "data": scenario.data.dataset,
        "seed": str(scenario.seed),
        "status": run.status,
        "started": str(manifest.get("started_at", "")),
        "data fingerprint": str(manifest.get("data_fingerprint", manifest.get("fingerprint", "")))[:12],
    }
    return {name: value for name, value in found.items() if value}
