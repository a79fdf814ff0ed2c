"""One task of several: a run as its clients of that task make it, and what runs with several are compared by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl

from blossom_ray.core.scores import of_task, split_scoring, task_prefix
from blossom_ray.errors import InputError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runs.folder import Run
from blossom_ray.runs.tables import NUM_EXAMPLES, ROUND_COLUMNS
from blossom_ray.studies.comparison.entries import RunEntry, with_settings
from blossom_ray.studies.comparison.scores import VALIDATION, usual_score

if TYPE_CHECKING:
    import pyarrow as pa


def task_names(runs: Iterable[Run]) -> tuple[str, ...]:
    """The tasks that some of the runs have by name, in their order."""
    return tuple(dict.fromkeys(task for run in runs for task in run.scenario.tasks or ()))


def task_metrics(entries: Sequence[RunEntry], *, per_class: bool = False) -> list[str | None]:
    """What runs are compared by where nobody says: a metric for each task, or None where tasks have no names.

    Args:
        entries: The runs.
        per_class: Whether single classes are compared.
    """
    runs = [entry.run for entry in entries if entry.run is not None]
    found: list[str | None] = []
    for task in task_names(runs):
        kind = next(run.scenario.learned[task].kind for run in runs if task in run.scenario.learned)
        if not per_class:
            found.append(usual_score([entry.finished for entry in entries if entry.finished], kind, task))
        elif kind != "regression":
            found.append(f"{task}/{'recall' if kind == 'classification' else 'auroc'}")
    return found or [None]


def by_task(entries: Sequence[RunEntry], metric: str | None) -> tuple[Sequence[RunEntry], str | None]:
    """The entries with runs of the task alone that a metric begins with, and the metric without it.

    Runs that do not have the task stay as they are; so do all where tasks have no names. What tells runs apart that no
    sweep has made is what that task's clients differ in, so that a run of it alone is paired with one of several tasks;
    where that does not tell all of them apart, it is what the runs differ in.

    Raises:
        InputError: Runs have several tasks, and the metric is of none of them.
    """
    tasks = task_names(entry.run for entry in entries if entry.run is not None)
    if not tasks:
        return entries, metric
    scoring, rest = split_scoring(metric or "")
    task, _, own = rest.partition("/")
    if task not in tasks:
        examples = ", ".join(f"{task}/..." for task in tasks)
        found = "no metric is given" if metric is None else f"the metric is {metric!r}"
        raise InputError(f"{found}, while the runs have the tasks {', '.join(tasks)}; expected one of {examples}")
    seen = [
        replace(entry, run=task_view(entry.run, task))
        if entry.run is not None and task in (entry.run.scenario.tasks or ())
        else entry
        for entry in entries
    ]
    if not any(entry.given for entry in entries):
        told = with_settings(seen)
        if len({repr((entry.seeds, entry.setting)) for entry in told}) == len(told):
            seen = told
    return seen, f"{scoring}{own}"


def task_view(run: Run, task: str) -> Run:
    """A run as if its clients of one task were all that it has: its scores by the names of runs without `tasks`.

    Rounds, bytes and blocks are those of the whole run.
    """
    rounds = run.rounds
    columns = {name: name for name in ROUND_COLUMNS} | of_task({name: name for name in rounds.columns}, task)
    if (stop := run.scenario.stop) is not None and stop.metric is not None:
        # What the run has stopped by says which round is its best one, be it about another task: one model is kept.
        watched = f"{VALIDATION}{stop.metric.removeprefix(VALIDATION)}"
        columns |= {watched: watched} if watched in {*rounds.columns} - {*columns.values()} else {}
    clients = run.clients
    if "task" in clients.columns:
        clients = clients.filter(pl.col("task").str.split("+").list.contains(task))
    own = of_task({name: name for name in clients.columns}, task)
    # Of clients with several tasks: the samples with a label of this one.
    counts = {f"{scoring.prefix}num_examples": column for scoring, column in NUM_EXAMPLES.items()}
    own = {counts.get(name, name): column for name, column in own.items()}
    others = tuple(task_prefix(name) for name in run.scenario.learned)
    # `name` is added where clients are asked for.
    added = ("task", "name", *own)
    kept = [name for name in clients.columns if name not in added and not split_scoring(name)[1].startswith(others)]
    frames = {
        "rounds": rounds.select(pl.col(column).alias(name) for name, column in columns.items()),
        "clients": clients.select(*kept, *(pl.col(column).alias(name) for name, column in own.items())),
        **{name: _of_scorings(getattr(run, name), f"/{task}") for name in ("classes", "confusion")},
    }
    data = run.manifest.get("data") or {}
    whole = {key: value for key, value in data.items() if key != "tasks"}
    manifest = {key: value for key, value in run.manifest.items() if key != "tables"}  # which are sums of other columns
    manifest["data"] = {**whole, **(data.get("tasks") or {}).get(task, {})}

    def table(name: str) -> pa.Table:
        frame: pl.DataFrame = frames[name] if name in frames else getattr(run, name)
        found: Any = frame.to_arrow()
        return found

    return Run(None, manifest, table, _scenario_view(run.scenario, task))


def _of_scorings(frame: pl.DataFrame, end: str) -> pl.DataFrame:
    own = frame.filter(pl.col("scoring").str.ends_with(end))
    return own.with_columns(pl.col("scoring").str.strip_suffix(end))


def _scenario_view(scenario: Scenario, task: str) -> Scenario:
    groups = (
        scenario.groups
        if scenario.tasks and len(scenario.tasks) == 1
        else [group for group in scenario.groups if task in group.tasks]
    )
    (whole,) = (each for each in scenario.federated if task in each.learned)
    encoders = {name: encoder for name, encoder in scenario.model.encoders.items() if name in whole.modalities}
    changes: dict[str, Any] = {
        "model": scenario.model.model_copy(update={"encoders": encoders}),
        "data": whole.data,
        "datasets": None,
        "tasks": None,
        "task": scenario.learned[task].kind,
        "clients": tuple(group.model_copy(update={"task": None}) for group in groups),
    }
    if scenario.stop is not None and scenario.stop.metric is not None:
        metric = scenario.stop.metric.removeprefix(VALIDATION).removeprefix(task_prefix(task))
        changes["stop"] = scenario.stop.model_copy(update={"metric": metric})
    return scenario.model_copy(update=changes)
