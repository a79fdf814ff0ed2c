"""Runs as a comparison of single classes sees them: classes stand where modality sets do in others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl

from blossom_ray.core.phrases import one_of, shortened
from blossom_ray.core.scores import Score
from blossom_ray.errors import InputError
from blossom_ray.runs.folder import Run
from blossom_ray.runs.tables import ROUND_COLUMNS
from blossom_ray.studies.comparison.run_scores import ALL, split_column
from blossom_ray.studies.comparison.run_selection import Entry

if TYPE_CHECKING:
    import pyarrow as pa

CLASS_SCORES = (
    *(Score(name, name, chance="classes") for name in ("recall", "precision", "f1")),
    Score("auroc", "AUROC", chance=0.5),
)
"""The scores of a class, by their columns in the table `classes`."""
_NAMES = tuple(score.name for score in CLASS_SCORES)
_PREFIXES = {"test": "", **{name: f"{name}/" for name in ("validation", "fine_tuned", "held_out")}}


def by_class(entries: Sequence[Entry], asked: str | None) -> tuple[list[Entry], str]:
    """The entries with runs whose rounds have the columns `<score>/<class>` in place of their own summaries.

    Args:
        entries: What is compared.
        asked: `recall`, `precision`, `f1` or `auroc`, after `held_out/` or `fine_tuned/` and before `/<modality set>`
            where it is of these; None: `recall`, or `auroc` in a multilabel task.

    Returns:
        The entries, and the metric without its modality set.

    Raises:
        InputError: No such score, or no run has it.
    """
    used = [entry.run for entry in entries if entry.run is not None and entry.status == "finished"]
    is_multilabel = any(run.scenario.task == "multilabel" for run in used)
    metric, modalities = split_column(asked or ("auroc" if is_multilabel else "recall"))
    scoring, score = _split(metric)
    if score not in _NAMES:
        raise InputError(f"the metric of a class is {shortened(metric)!r}; expected {one_of(_NAMES)}")
    sets = dict.fromkeys(
        name for run in used for name in run.classes.filter(pl.col("scoring") == scoring)["modalities"].to_list()
    )
    if modalities not in sets and used:
        if not sets:
            raise InputError(
                f"no run has scores of single classes ({scoring}); expected runs of a classification or a multilabel "
                "task whose evaluation.per_class is final or every"
            )
        expected = [f"{metric}/{name}" if name else metric for name in sorted(sets)]
        raise InputError(f"the metric is {shortened(asked or metric)!r}; expected {one_of(expected)}")
    return [
        entry if entry.run is None or entry.status != "finished" else replace(entry, run=_view(entry.run, modalities))
        for entry in entries
    ], metric


def _split(metric: str) -> tuple[str, str]:
    """The scoring and the score of a metric without a modality set."""
    prefix, _, score = metric.rpartition("/")
    return next((name for name, start in _PREFIXES.items() if start == f"{prefix}/"), "test"), score


def _view(run: Run, modalities: str) -> Run:
    """The run with scores of classes, over the clients of one modality set or "" for all, as columns of its rounds."""
    classes = run.classes.filter(pl.col("modalities") == modalities)
    names = dict(classes.select("class", "name").unique(maintain_order=True).rows())
    times = Counter(names.values())
    labels = {
        number: f"{name} (class {number})" if times[name] > 1 or name == ALL else name for number, name in names.items()
    }
    rounds = run.rounds.select(*ROUND_COLUMNS)
    for scoring, prefix in _PREFIXES.items():
        for number, label in labels.items():
            own = classes.filter(pl.col("scoring") == scoring, pl.col("class") == number)
            columns = [pl.col(score).alias(f"{prefix}{score}/{label}") for score in _NAMES if own[score].count()]
            rounds = rounds.join(own.select("round", *columns), on="round", how="left", maintain_order="left")
    manifest = {key: value for key, value in run.manifest.items() if key != "tables"}  # which are sums of other columns

    def table(name: str) -> pa.Table:
        frame: pl.DataFrame = rounds if name == "rounds" else getattr(run, name)
        found: Any = frame.to_arrow()
        return found

    return Run(None, manifest, table, run.scenario)
