"""The part of a report on single classes: how many samples of each are recognised, what the others are taken for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import polars as pl

from blossom_ray.core.scores import Score
from blossom_ray.studies.reports.page import ReportSection
from blossom_ray.studies.reports.variants import Variant, format_mean
from blossom_ray.studies.tables import TextTable, format_score

MOST_CLASSES = 25
"""With more, the columns of a confusion matrix can no longer be told apart; the scores of each class remain."""
MOST_MATRICES = 4
"""Settings whose matrices are shown; of more, recall alone is compared."""
SCORINGS = {
    "test": "the clients' test splits", "fine_tuned": "the same after fine-tuning",
    "validation": "the clients' validation splits", "held_out": "the held-out set",
}  # fmt: skip
_COUNTS = ("num_true", "num_predicted", "num_correct")
_KEY = ("scoring", "modalities", "class", "name")
_SHARE = Score("recall", "recall")


def class_section(variants: Sequence[Variant]) -> ReportSection:
    """Recall by class of several settings, a table per panel; of few, scores and confusion of each class as well."""
    frames = [(variant, _last_rounds(run.classes for run in variant.runs)) for variant in variants]
    found = [(variant, frame) for variant, frame in frames if not frame.is_empty()]
    if not found:
        return ReportSection("Classes")
    tables = [*_recall_tables(found)] if len(found) > 1 else []
    if len(found) <= MOST_MATRICES:
        for variant, frame in found:
            tables += _class_tables(variant, frame, is_folded=len(found) > 1)
    notes = ["recall: share of the samples of a class that are recognised; counts are added over clients and seeds"]
    if any(table.shares for table in tables):
        notes.append("shade and percent: share of the samples of the row's class that are taken for the column's")
    return ReportSection("Classes", tables=tables, notes=notes)


def _recall_tables(found: Sequence[tuple[Variant, pl.DataFrame]]) -> Iterator[TextTable]:
    panels: dict[str, list[tuple[Variant, pl.DataFrame]]] = {}
    for variant, frame in found:
        panels.setdefault(variant.panel, []).append((variant, frame))
    for panel, members in panels.items():
        recall: dict[tuple[int, str], dict[str, list[float]]] = {}
        for variant, frame in members:
            own = frame.filter(pl.col("scoring") == "test", pl.col("modalities") == "")
            for number, name, value in own.select("class", "name", "recall").iter_rows():
                values = recall.setdefault((number, name), {}).setdefault(variant.label, [])
                values += [] if value is None else [value]
        labels = [variant.label for variant, _ in members]
        rows = [
            [name, *(format_mean("recall", values.get(label, [])) for label in labels)]
            for (_, name), values in recall.items()
        ]
        words = [word for word in (panel, "recall on the clients' test splits") if word]
        yield TextTable(["class", *labels], rows, ", ".join(words), is_folded=len(panels) > 1)


def _class_tables(variant: Variant, frame: pl.DataFrame, *, is_folded: bool) -> Iterator[TextTable]:
    """A table per scoring, of the clients of all modality sets where they were scored on samples of their own."""
    confusion = _last_rounds(run.confusion for run in variant.runs)
    sums = frame.group_by(_KEY, maintain_order=True).agg(pl.col(_COUNTS).sum(), pl.col("auroc").mean())
    whole = sums.filter(pl.col("modalities") == "")["scoring"].unique().to_list()
    for (scoring, own), rows in sums.group_by("scoring", "modalities", maintain_order=True):
        if own and scoring in whole:
            continue
        counts = confusion.filter(pl.col("scoring") == scoring)
        if own:
            counts = counts.filter(pl.col("modalities") == own)
        cells = counts.group_by("label", "predicted").agg(pl.col("count").sum()).rows()
        words = [variant.name, SCORINGS.get(str(scoring), str(scoring)), f"clients with {own}" if own else ""]
        title = ", ".join(filter(None, words))
        yield _class_table(title, rows, {(label, to): count for label, to, count in cells}, is_folded=is_folded)
        is_folded = True


def _class_table(
    title: str, classes: pl.DataFrame, counts: Mapping[tuple[int, int], int], *, is_folded: bool
) -> TextTable:
    named = dict(classes.select("class", "name").iter_rows())
    shown = named if counts and len(named) <= MOST_CLASSES else {}
    has_auroc = classes["auroc"].count() > 0
    columns = ["class", "recall", "precision", "F1", *(["AUROC"] if has_auroc else []), "samples"]
    rows: list[list[str]] = []
    shares: dict[tuple[int, int], float] = {}
    for place, row in enumerate(classes.iter_rows(named=True)):
        true, predicted, correct = (row[name] for name in _COUNTS)
        pairs = ((correct, true), (correct, predicted), (2 * correct, true + predicted))
        scores = [part / whole if whole else None for part, whole in pairs]
        scores += [row["auroc"]] if has_auroc else []
        cells = [row["name"], *(format_score(_SHARE, score) for score in scores), f"{true:,}"]
        for to in shown:
            if count := counts.get((row["class"], to), 0):
                shares[place, len(cells)] = min(1.0, count / max(true, 1))
            cells.append(f"{count:,} ({100 * count / max(true, 1):.0f} %)" if count else "0")
        rows.append(cells)
    return TextTable([*columns, *(f"as {name}" for name in shown.values())], rows, title, is_folded, shares)


def _last_rounds(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat([frame.filter(pl.col("round") == pl.col("round").max()) for frame in frames])
