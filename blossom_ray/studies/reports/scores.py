"""The parts of a report on scores: curves over rounds, modality sets, clients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from blossom_ray.core.scores import Score
from blossom_ray.studies.comparison.panels import BELOW
from blossom_ray.studies.comparison.rows import rounds_text
from blossom_ray.studies.comparison.scores import ALL
from blossom_ray.studies.reports.charts import Curve, curves, distributions
from blossom_ray.studies.reports.page import ReportFigure, ReportSection
from blossom_ray.studies.reports.variants import Variant, format_mean, headline_scores, scale
from blossom_ray.studies.tables import TextTable, format_score

SCORINGS = {
    "{}": "",
    "{}_trained": "clients that trained",
    "fine_tuned/{}": "after fine-tuning",
    "validation/{}": "validation split",
    "held_out/{}": "held-out set",
}
"""Words for each kind of scoring, by its columns in the table `rounds`; on the clients' test splits first."""
MOST_PANELS_OF_CLIENTS = 12
"""With more categories, the dots of single clients can no longer be told apart; the tables remain."""
MOST_CLIENTS_NAMED = 50
"""Of more, the table `clients` of the run has the names."""


def curve_section(variants: Sequence[Variant]) -> ReportSection:
    """Each score over rounds, then the loss, one panel per panel of the variants; then what was scored last."""
    figures = []
    split, start = _scored_split(variants)
    for score in headline_scores(variants)[:2]:
        panels = _panels(variants, f"{start}{score.name}", score.label)
        words = f"{score.label} after each scored round: mean over clients, weighted by {split} samples."
        figure = curves(panels, x_label="round", y_label=_axis_label(score))
        figures.append(ReportFigure(f"curve-{score.name}", figure, f"{words} {_band(variants)}"))
    loss, words = f"{start}loss", f"Mean loss on the clients' {split} splits after each round"
    if len(variants) == 1:
        names = {loss: split, "train_loss": "training"}
        lines = [variants[0].curve(column, label=name) for column, name in names.items()]
        panels = {"loss": [Curve(line.label, line.x, line.y) for line in lines if line.y]}
        caption = f"{words}, and on the samples seen while training."
    else:
        panels, caption = _panels(variants, loss, "loss"), f"{words}. {_band(variants)}"
    figures.append(ReportFigure("curve-loss", curves(panels, x_label="round", y_label="loss"), caption))
    return ReportSection("Scores over rounds", figures, _score_tables(variants))


def modality_section(variants: Sequence[Variant]) -> ReportSection:
    """The first score by modality set: a panel per set, or all sets in one where there is one variant."""
    score, (split, start) = headline_scores(variants)[0], _scored_split(variants)
    column = f"{start}{score.name}"
    sets = sorted({end for variant in variants for end in variant.modality_sets(f"{start}{{}}")})
    if len(variants) == 1:
        title = f"{score.label} by modality set"
        panels = {title: [variants[0].curve(f"{column}/{own}", label=own) for own in sets]}
    elif sets and len({variant.panel for variant in variants}) == 1:
        panels = {own: [variant.curve(f"{column}/{own}") for variant in variants] for own in sets}
    else:
        return ReportSection("Modality sets", [])
    caption = f"{score.label} of the clients that own exactly these modalities, on their {split} splits."
    if any(len(variant.runs) > 1 for variant in variants):
        caption += f" {_band(variants)}"
    figure = curves(panels, x_label="round", y_label=_axis_label(score))
    return ReportSection("Modality sets", [ReportFigure("modality-sets", figure, caption)])


def client_section(variants: Sequence[Variant]) -> ReportSection:
    """The first score of every client in the last scored round."""
    score = headline_scores(variants)[0]
    groups: dict[str, dict[str, list[float]]] = {}
    runs = [(variant.name, run) for variant in variants for run in variant.runs]
    for name, run in runs:
        scored = run.clients.filter(pl.col(score.name).is_not_null())
        last = scored.filter(pl.col("round") == scored["round"].max())
        for own, value in last.select("modalities", score.name).iter_rows():
            groups.setdefault(own, {}).setdefault(name, []).append(scale(score.name) * value)
    tables = []
    if len(runs) == 1 and "name" in last.columns:  # what the data call their clients
        found = last.head(MOST_CLIENTS_NAMED).select("client", "name", "modalities", "num_test_examples", score.name)
        rows = [[*map(str, words), format_score(score, value)] for *words, value in found.iter_rows()]
        tables = [TextTable(["client", "name", "modality set", "test samples", score.label], rows)]
    if not groups or sum(map(len, groups.values())) > MOST_PANELS_OF_CLIENTS:
        return ReportSection("Clients", [], tables)
    caption = (
        f"{score.label} of every client in the last scored round: dots, median and quartiles; the whiskers end at the "
        "10th and 90th percentile."
    )
    figure = distributions(dict(sorted(groups.items())), x_label=_axis_label(score))
    return ReportSection("Clients", [ReportFigure("clients", figure, caption)], tables)


def _scored_split(variants: Sequence[Variant]) -> tuple[str, str]:
    """The splits that every round scores, test ones unless all runs score these once; what their columns begin with."""
    splits = {run.scenario.evaluation.split for variant in variants for run in variant.runs}
    return ("validation", "validation/") if splits == {"validation"} else ("test", "")


def _panels(variants: Sequence[Variant], column: str, title: str) -> dict[str, list[Curve]]:
    panels: dict[str, list[Curve]] = {}
    for variant in variants:
        curve = variant.curve(column)
        if curve.y:
            panels.setdefault(variant.panel or title, []).append(curve)
    return panels or {title: []}


def _score_tables(variants: Sequence[Variant]) -> list[TextTable]:
    """What was scored last, each kind of scoring by itself; a table per panel."""
    scores = headline_scores(variants)
    columns = ["last scored round", *(score.label for score in scores), "loss", "round"]
    rows: dict[str, list[list[str]]] = {}
    for variant in variants:
        rows.setdefault(variant.panel, []).extend(_score_rows(variant, scores))
    are_many = len(rows) > 1
    return [
        TextTable(columns, found, f"{panel}, last scored round" if are_many else "", is_folded=are_many)
        for panel, found in rows.items()
    ]


def _score_rows(variant: Variant, scores: Sequence[Score]) -> Iterator[list[str]]:
    for kind, words in SCORINGS.items():
        title = " ".join(filter(None, (", ".join(filter(None, (variant.label, words))) or ALL, variant.marks)))
        sets = variant.modality_sets(kind)
        if sets and not variant.last(kind, ""):
            yield [title]
        for end in ("", *(f"/{own}" for own in sets)):
            if last := variant.last(kind, end):
                names = [*(score.name for score in scores), "loss"]
                values = [[row.get(f"{kind.format(name)}{end}") for row in last] for name in names]
                known = [[value for value in each if value is not None] for each in values]
                rounds = rounds_text(sorted({row["round"] for row in last})) or "-"
                yield [f"{BELOW}{end[1:]}" if end else title, *map(format_mean, names, known), rounds]


def _axis_label(score: Score) -> str:
    return f"{score.label} (%)" if score.is_share else score.label


def _band(variants: Sequence[Variant]) -> str:
    if all(len(variant.runs) == 1 for variant in variants):
        return "The band reaches from the 10th to the 90th percentile over clients."
    return (
        "The band, which may leave the frame, is the 95 % interval over seeds; with one seed, it reaches from the 10th "
        "to the 90th percentile over clients."
    )
