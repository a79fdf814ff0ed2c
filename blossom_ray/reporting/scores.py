"""The parts of a report on scores: curves over rounds, modality sets, clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import polars as pl

from blossom_ray.reporting.charts import Curve, curves, distributions
from blossom_ray.reporting.parts import ReportFigure, ReportSection, ReportTable
from blossom_ray.reporting.variants import Variant, format_final, headline_scores, scale
from blossom_ray.scores import Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PANELS_OF_CLIENTS = 12
"""With more categories, the dots of single clients can no longer be told apart; the tables remain."""


def curve_section(variants: Sequence[Variant]) -> ReportSection:
    """Each score over rounds, then the loss; one panel per panel of the variants."""
    figures = []
    for score in headline_scores(variants)[:2]:
        panels = _panels(variants, score.name, score.label)
        caption = (
            f"{score.label} after each scored round: mean over clients, weighted by test samples. {_band(variants)}"
        )
        figures.append(ReportFigure(f"curve-{score.name}", _curves(panels, score), caption))
    figures.append(_loss_figure(variants))
    scores = headline_scores(variants)
    rows = [
        [variant.name or "all clients", *_values(variant, scores, ""), format_final(variant, "loss")]
        for variant in variants
    ]
    return ReportSection("Scores over rounds", figures, [ReportTable(["last scored round", *_labels(scores)], rows)])


def modality_section(variants: Sequence[Variant]) -> ReportSection:
    """The first score by modality set: a panel per set, or all sets in one where there is one variant."""
    score = headline_scores(variants)[0]
    sets = sorted({end for variant in variants for end in _modality_sets(variant)})
    if len(variants) == 1:
        panels = {
            f"{score.label} by modality set": [variants[0].curve(f"{score.name}/{own}", label=own) for own in sets]
        }
    elif len({variant.panel for variant in variants}) == 1:
        panels = {own: [variant.curve(f"{score.name}/{own}") for variant in variants] for own in sets}
    else:
        panels = {}
    caption = f"{score.label} of the clients that own exactly these modalities."
    figures = [ReportFigure("modality-sets", _curves(panels, score), caption)] if panels else []
    scores = headline_scores(variants)
    rows = [
        [*([variant.name] if len(variants) > 1 else []), own, *_values(variant, scores, f"/{own}"),
         format_final(variant, f"loss/{own}")]
        for variant in variants
        for own in _modality_sets(variant)
    ]  # fmt: skip
    columns = [*(["variant"] if len(variants) > 1 else []), "modality set", *_labels(scores)]
    return ReportSection("Modality sets", figures, [ReportTable(columns, rows)])


def client_section(variants: Sequence[Variant]) -> ReportSection:
    """The first score of every client in the last scored round."""
    score = headline_scores(variants)[0]
    groups: dict[str, dict[str, list[float]]] = {}
    for variant in variants:
        for run in variant.runs:
            scored = run.clients.filter(pl.col(score.name).is_not_null())
            last = scored.filter(pl.col("round") == scored["round"].max())
            for own, value in last.select("modalities", score.name).iter_rows():
                groups.setdefault(own, {}).setdefault(variant.name, []).append(scale(score.name) * value)
    if not groups or sum(map(len, groups.values())) > MOST_PANELS_OF_CLIENTS:
        return ReportSection("Clients")
    caption = (
        f"{score.label} of every client in the last scored round: dots, median and quartiles; the whiskers end at the "
        "10th and 90th percentile."
    )
    figure = distributions(dict(sorted(groups.items())), x_label=_axis_label(score))
    return ReportSection("Clients", [ReportFigure("clients", figure, caption)])


def _loss_figure(variants: Sequence[Variant]) -> ReportFigure:
    if len(variants) == 1:
        names = {"loss": "test", "train_loss": "training"}
        lines = [variants[0].curve(column, label=name) for column, name in names.items()]
        panels = {"loss": [Curve(line.label, line.x, line.y) for line in lines if line.y]}
        caption = "Mean loss on the clients' test splits after each round, and on the samples seen while training."
    else:
        panels = _panels(variants, "loss", "loss")
        caption = "Mean loss on the clients' test splits after each round."
    return ReportFigure("curve-loss", curves(panels, x_label="round", y_label="loss"), caption)


def _panels(variants: Sequence[Variant], column: str, title: str) -> dict[str, list[Curve]]:
    panels: dict[str, list[Curve]] = {}
    for variant in variants:
        curve = variant.curve(column)
        if curve.y:
            panels.setdefault(variant.panel or title, []).append(curve)
    return panels or {title: []}


def _curves(panels: Mapping[str, Sequence[Curve]], score: Score) -> Figure:
    return curves(panels, x_label="round", y_label=_axis_label(score))


def _labels(scores: Sequence[Score]) -> list[str]:
    return [*(score.label for score in scores), "loss"]


def _values(variant: Variant, scores: Sequence[Score], end: str) -> list[str]:
    return [format_final(variant, f"{score.name}{end}") for score in scores]


def _modality_sets(variant: Variant) -> list[str]:
    return sorted(name.removeprefix("loss/") for name in variant.rounds.columns if name.startswith("loss/"))


def _axis_label(score: Score) -> str:
    return f"{score.label} (%)" if score.is_share else score.label


def _band(variants: Sequence[Variant]) -> str:
    if all(len(variant.runs) == 1 for variant in variants):
        return "The band reaches from the 10th to the 90th percentile over clients."
    return "The band is the range over seeds; with one seed, the 10th to 90th percentile over clients."
