"""The parts of a report on scores: curves over rounds, modality sets, single classes, clients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

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
    "validation/fine_tuned/{}": "validation split, after fine-tuning",
    "held_out/{}": "held-out set",
    "plain/{}": "averaged model",
    "unseen/{}": "unseen clients",
    "unseen/fine_tuned/{}": "unseen clients, after fine-tuning",
}
"""Words for each kind of scoring, by its columns in the table `rounds`; on the clients' test splits first."""
MOST_PANELS_OF_CLIENTS = 12
"""With more categories, the dots of single clients can no longer be told apart; the tables remain."""
MOST_CLIENTS_NAMED = 50
"""Of more, the table `clients` of the run has the names."""
MOST_CLASSES = 25
"""With more, the columns of a confusion matrix can no longer be told apart; the scores of each class remain."""
MOST_MATRICES = 4
"""Settings whose matrices are shown; of more, recall alone is compared."""
_SPLITS = {
    "test": "the clients' test splits", "fine_tuned": "the same after fine-tuning",
    "validation": "the clients' validation splits", "validation/fine_tuned": "the same after fine-tuning",
    "held_out": "the held-out set",
    "plain": "the clients' test splits, by the averaged model",
    "unseen": "the test splits of clients that never train", "unseen/fine_tuned": "the same after their fine-tuning",
}  # fmt: skip
_COUNTS = ("num_true", "num_predicted", "num_correct")
_KEY = ("scoring", "modalities", "class", "name")
_SHARE = Score("recall", "recall")


def curve_section(variants: Sequence[Variant]) -> ReportSection:
    """Each score over rounds, then the loss, one panel per panel of the variants; then what was scored last."""
    figures = []
    split, start = _scored_split(variants)
    for score in headline_scores(variants)[:2]:
        panels = _panels(variants, f"{start}{score.name}", score.label)
        words = f"{score.label} after each scored round: mean over clients, weighted by {split} samples."
        figure = curves(panels, x_label="round", y_label=_axis_label(score))
        figures.append(ReportFigure(f"curve-{score.name}", figure, f"{words} {_band(variants)}"))
    figures += _unseen_figures(variants)
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


def _unseen_figures(variants: Sequence[Variant]) -> Iterator[ReportFigure]:
    """The first score of clients that never train, before and after their fine-tuning, where runs have them."""
    score = headline_scores(variants)[0]
    kinds = {"unseen/": "as they are", "unseen/fine_tuned/": "after fine-tuning"}
    if not any(f"{start}loss" in variant.rounds.columns for variant in variants for start in kinds):
        return
    panels = {
        f"{score.label}, {words}": [v.curve(f"{start}{score.name}") for v in variants] for start, words in kinds.items()
    }
    if len(variants) == 1:
        curve = variants[0].curve
        panels = {score.label: [curve(f"{start}{score.name}", label=words) for start, words in kinds.items()]}
    words = f"{score.label} of clients that never train, with the shared blocks of each scored round"
    figure = curves(panels, x_label="round", y_label=_axis_label(score))
    yield ReportFigure("curve-unseen", figure, f"{words}. {_band(variants)}")


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


def client_section(variants: Sequence[Variant]) -> ReportSection:
    """The first score of every client in the last scored round."""
    score = headline_scores(variants)[0]
    groups: dict[str, dict[str, list[float]]] = {}
    runs = [(variant.name, run) for variant in variants for run in variant.runs]
    for name, run in runs:
        scored = run.clients.filter(pl.col(score.name).is_not_null())
        last = scored.filter(pl.col("round") == pl.col("round").max())
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
        ends = {f"/{own}": f"{BELOW}{own}" for own in sets}
        observed = {f"@{own}": own.partition("/") for own in variant.modality_sets(kind, "@")}
        ends |= {
            end: f"{BELOW}samples with {own}" + (f", clients with {owned}" if owned else "")
            for end, (own, _, owned) in observed.items()
        }
        for end, label in {"": title, **ends}.items():
            if last := variant.last(kind, end):
                names = [*(score.name for score in scores), "loss"]
                values = [[row.get(f"{kind.format(name)}{end}") for row in last] for name in names]
                known = [[value for value in each if value is not None] for each in values]
                rounds = rounds_text(sorted({row["round"] for row in last})) or "-"
                yield [label, *map(format_mean, names, known), rounds]


def _axis_label(score: Score) -> str:
    return f"{score.label} (%)" if score.is_share else score.label


def _band(variants: Sequence[Variant]) -> str:
    if all(len(variant.runs) == 1 for variant in variants):
        return "The band reaches from the 10th to the 90th percentile over clients."
    return (
        "The band, which may leave the frame, is the 95 % interval over seeds; with one seed, it reaches from the 10th "
        "to the 90th percentile over clients."
    )


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
        words = [variant.name, _SPLITS.get(str(scoring), str(scoring)), f"clients with {own}" if own else ""]
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
