"""Which runs are compared, and by what they differ: folders of runs and sweeps become entries with settings.

Here, too, is how settings are set out for people, and how single classes take the place of modality sets.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import polars as pl

from blossom_ray.core.locations import local_path
from blossom_ray.core.phrases import one_of, shortened
from blossom_ray.core.records import Scoring
from blossom_ray.core.scores import Score
from blossom_ray.core.structure import child_value, split_path
from blossom_ray.errors import BlossomError, InputError, RunFolderError, first_line
from blossom_ray.runs.folder import MANIFEST_FILE, Run
from blossom_ray.runs.tables import ROUND_COLUMNS
from blossom_ray.scenario.identity import identity, numbers_tree
from blossom_ray.scenario.tree import Seeds
from blossom_ray.studies.comparison.scores import ALL, split_column
from blossom_ray.studies.sweeps.folder import Sweep, is_sweep
from blossom_ray.studies.sweeps.grid import SEED_KEYS, short_labels, value_text
from blossom_ray.text import quoted

if TYPE_CHECKING:
    import pyarrow as pa

Source = str | Path | Run | Sweep
NAME = "name"
SCORING, PLAIN, FINE_TUNED = "scoring", "plain", "fine-tuned"
"""The key that tells scores after local fine-tuning from plain ones, where runs have both."""
NOT_BEGUN = "not begun"
CLASS_SCORES = (
    *(Score(name, name, chance="classes") for name in ("recall", "precision", "f1")),
    Score("auroc", "AUROC", chance=0.5),
)
"""The scores of a class, by their columns in the table `classes`."""
_CLASS_COLUMNS = tuple(score.name for score in CLASS_SCORES)
_PREFIXES = {scoring.label: scoring.prefix for scoring in Scoring}
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class RunEntry:
    """A run, or a cell that has not begun.

    Attributes:
        place: Where it lies, for people.
        run: The run; None for a cell that has not begun, or whose folder is damaged.
        status: `finished`, or why it is not used.
        seeds: The seeds of federation and training.
        identity: Equal for runs of the same simulation.
        given: Value by path of the keys that its sweep varies.
        setting: Value, as a short word, by each key in which the entries differ; set by `with_settings`.
    """

    place: str
    run: Run | None
    status: str
    seeds: Seeds
    identity: str
    given: Mapping[str, Any]
    setting: Mapping[str, str]

    @property
    def finished(self) -> Run | None:
        """The run, where it has finished: no other is used."""
        return self.run if self.status == "finished" else None

    @cached_property
    def tree(self) -> dict[str, Any]:
        """All that the run's numbers follow from; what the sweep says of it where there is no run."""
        if self.run is None:
            return {}
        return {NAME: self.run.scenario.name, **numbers_tree(self.run.scenario)}

    def value(self, path: str) -> Any:
        """The value at a path, as the run has it, or as its sweep gives it where there is no run."""
        if self.run is None:
            return self.given.get(path)
        return reduce(child_value, split_path(path, self.tree), self.tree)


def each_source(sources: Iterable[object]) -> list[Source]:
    """The sources one by one, be they given so or as a list, a generator, or `Sweep.runs`.

    Raises:
        InputError: One is nothing that holds runs.
    """
    found: list[Source] = []
    for source in sources:
        if isinstance(source, str | Path | Run | Sweep):
            found.append(source)
        elif isinstance(source, Mapping):
            found += each_source(source.values())
        elif isinstance(source, Iterable) and not isinstance(source, bytes):
            found += each_source(source)
        else:
            raise InputError(
                f"a source of runs is {shortened(repr(source))} ({type(source).__name__}); expected the folder of a "
                "run or of a sweep, a Run, a Sweep, or a list of them"
            )
    return found


def collect(sources: Iterable[Source | Iterable[Source]]) -> list[RunEntry]:
    """The entries of all sources: cells of sweeps in their order, runs as given, each simulation once.

    Raises:
        RunFolderError: A source is neither a run nor a sweep, or is damaged.
        InputError: There are no runs at all, or a source is none.
    """
    found: dict[str, RunEntry] = {}
    for source in each_source(sources):
        for entry in _entries(source):
            before = found.get(entry.identity)
            # The same simulation twice has the same numbers; one that has finished is worth more.
            if before is None or (before.status != "finished" and entry.status == "finished"):
                found[entry.identity] = entry if before is None else replace(entry, given=before.given or entry.given)
    if not found:
        raise InputError("there are no runs to compare; expected folders of runs or sweeps")
    return with_settings(list(found.values()))


def with_settings(entries: Sequence[RunEntry]) -> list[RunEntry]:
    """The entries with their settings: the keys that sweeps vary, and those that tell other runs apart."""
    keys = dict.fromkeys(key for entry in entries for key in entry.given)
    if NAME not in keys and len({entry.tree.get(NAME) for entry in entries if entry.run is not None}) > 1:
        keys = {NAME: None, **keys}
    settings = _settings(entries, keys)
    groups: dict[str, list[RunEntry]] = {}
    for entry, setting in zip(entries, settings, strict=True):
        if entry.run is not None:
            groups.setdefault(repr((entry.seeds, setting)), []).append(entry)
    for group in groups.values():
        keys |= dict.fromkeys(_differing(group))
    return [replace(entry, setting=setting) for entry, setting in zip(entries, _settings(entries, keys), strict=True)]


def own_scores(entries: Iterable[RunEntry]) -> list[Score]:
    """The metrics that the runs bring along."""
    return [score for entry in entries if entry.run is not None for score in entry.run.scenario.own_scores]


def varied_keys(option: str, names: Iterable[str], keys: Sequence[str]) -> tuple[str, ...]:
    """Those of the keys in which runs differ that an option names by their paths or short labels, such as `lr`.

    Raises:
        InputError: A name is none of these.
    """
    labels = {label: key for key, label in short_labels(keys).items()}
    found = tuple(dict.fromkeys(labels.get(name, name) for name in names))
    for name in found:
        if name not in keys:
            varied = ", ".join(keys) or "nothing but the seed"
            raise InputError(f"{option} is {quoted(name)}; expected keys in which the runs differ: {varied}")
    return found


@dataclass(frozen=True)
class Grouping:
    """Where the value of each key stands, in the tables of a comparison, heat maps and panels of curves alike.

    Attributes:
        above: Keys whose values head a table or a panel: there is one for each combination.
        beside: Keys whose values tell the rows of a table, or the curves of a panel, apart.
        labels: A short name for each of all keys.
    """

    above: Sequence[str]
    beside: Sequence[str]
    labels: Mapping[str, str]

    def panel(self, setting: Mapping[str, Any]) -> str:
        """What heads the table of a setting: `partition iid, missing mask`; "" where there is one table alone."""
        return ", ".join(f"{self.labels[key]} {setting[key]}" for key in self.above)

    def name(self, setting: Mapping[str, Any]) -> str:
        """What tells a setting apart there: `full-model, fine-tuned`; "" where it has no others."""
        return ", ".join(str(setting[key]) for key in self.beside if (key, setting[key]) != (SCORING, PLAIN))

    @property
    def heading(self) -> str:
        """What the names are values of: `sharing`; "" where all are empty."""
        return ", ".join(self.labels[key] for key in self.beside if key != SCORING)

    def panels(
        self, items: Iterable[_Item], setting: Callable[[_Item], Mapping[str, Any]]
    ) -> dict[str, dict[str, list[_Item]]]:
        """Items by panel and name of their settings, in order."""
        found: dict[str, dict[str, list[_Item]]] = {}
        for item in items:
            place = setting(item)
            found.setdefault(self.panel(place), {}).setdefault(self.name(place), []).append(item)
        return found


def grouping_of(settings: Sequence[Mapping[str, Any]], keys: Sequence[str], baseline: Iterable[str]) -> Grouping:
    """The grouping of some settings: a scheme and what it is compared with stand beside each other.

    Keys whose value is the same in all settings stand nowhere. Where no key of the baseline varies, nor the scoring,
    the last key that does takes their place.
    """
    varied = [key for key in keys if len({setting[key] for setting in settings}) > 1]
    beside = [key for key in varied if key in (*baseline, SCORING)] or varied[-1:]
    return Grouping([key for key in varied if key not in beside], beside, key_labels(keys))


def key_labels(keys: Iterable[str]) -> dict[str, str]:
    """A short name for each key: `fusion` for `model.fusion.kind`."""
    return {key: "scenario" if key == "name" else label for key, label in short_labels(keys).items()}


def by_class(entries: Sequence[RunEntry], asked: str | None) -> tuple[list[RunEntry], str]:
    """The entries with runs whose rounds have the columns `<score>/<class>` in place of their own summaries.

    The second value is the metric that is asked for, without its modality set: `recall`, `precision`, `f1` or `auroc`,
    after `held_out/` or `fine_tuned/` where it is of these. None: `recall`, or `auroc` in a multilabel task.

    Raises:
        InputError: No such score, or no run has it.
    """
    used = [entry.finished for entry in entries if entry.finished is not None]
    is_multilabel = any(run.scenario.task == "multilabel" for run in used)
    metric, modalities = split_column(asked or ("auroc" if is_multilabel else "recall"))
    prefix, _, score = metric.rpartition("/")
    scoring = next((name for name, start in _PREFIXES.items() if start == f"{prefix}/"), "test")
    if score not in _CLASS_COLUMNS:
        raise InputError(f"the metric of a class is {shortened(metric)!r}; expected {one_of(_CLASS_COLUMNS)}")
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
        entry if entry.finished is None else replace(entry, run=_class_view(entry.finished, modalities))
        for entry in entries
    ], metric


def _settings(entries: Sequence[RunEntry], keys: Iterable[str]) -> list[dict[str, str]]:
    """The value of each key in words: those of a sweep's command where it is one of them."""
    settings: list[dict[str, str]] = [{} for _ in entries]
    for key in keys:
        words: dict[str, str] = {}
        for entry in entries:
            if key in entry.given:
                words.setdefault(repr(entry.value(key)), value_text(entry.given[key]))
        for entry, setting in zip(entries, settings, strict=True):
            value = entry.value(key)
            setting[key] = words.get(repr(value), "" if value is None else value_text(value))
    return settings


def _entries(source: Source) -> Iterable[RunEntry]:
    if isinstance(source, str | Path):
        path = local_path(source, "the run")
        if is_sweep(path):
            source = Sweep.open(path)
        elif os.path.exists(path / MANIFEST_FILE):  # False for what is no path at all, too
            source = Run.open(path)
        else:
            found = "has neither manifest.json nor sweep.json" if os.path.isdir(path) else "is no folder"
            raise RunFolderError(f"{path}: {found}; expected the folder of a run or of a sweep")
    if isinstance(source, Run):
        source.check()
        place = "a run in memory" if source.path is None else str(source.path)
        yield RunEntry(place, source, _status(source), source.scenario.seeds, identity(source.scenario), {}, {})
        return
    for cell in source.cells:
        folder = source.path / cell.folder
        run: Run | None = None
        status = NOT_BEGUN
        if (folder / MANIFEST_FILE).exists():
            try:
                opened = Run.open(folder)
                opened.check()
                status, run = _status(opened), opened
            except BlossomError as error:
                status = str(error)
        yield RunEntry(str(folder), run, status, cell.seeds, cell.identity, cell.setting, {})


def _status(run: Run) -> str:
    error = run.manifest.get("error")
    if run.status == "failed" and isinstance(error, dict):
        return f"failed: {first_line(error.get('message'))}"
    return run.status


def _differing(entries: Sequence[RunEntry]) -> list[str]:
    """Keys in which the scenarios of some runs differ, seeds left out; a kind stands for its section if it can."""
    if len(entries) < 2:
        return []
    leaves = [
        {path: repr(value) for path, value in _leaves(entry.tree).items() if path not in (NAME, *SEED_KEYS)}
        for entry in entries
    ]
    paths = dict.fromkeys(path for each in leaves for path in each)
    leaves = [{path: each.get(path, repr(None)) for path in paths} for each in leaves]
    paths = dict.fromkeys(path for path in paths if len({each[path] for each in leaves}) > 1)
    for kind in [path for path in paths if path.rpartition(".")[2] in ("kind", "dataset")]:
        section = kind.rpartition(".")[0]
        below = [path for path in paths if path.startswith(f"{section}.") and path != kind]
        # Whether one kind has several values below it.
        combinations = {(each[kind], *map(each.get, below)) for each in leaves}
        needs_all = len(combinations) > len({each[kind] for each in leaves})
        paths = {section if path == kind and needs_all else path: None for path in paths if path not in below}
    return list(paths)


def _leaves(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Values by dotted path; a list is one value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            found |= _leaves(value, f"{path}.")
        else:
            found[path] = value
    return found


def _class_view(run: Run, modalities: str) -> Run:
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
            columns = [
                pl.col(score).alias(f"{prefix}{score}/{label}") for score in _CLASS_COLUMNS if own[score].count()
            ]
            rounds = rounds.join(own.select("round", *columns), on="round", how="left", maintain_order="left")
    manifest = {key: value for key, value in run.manifest.items() if key != "tables"}  # which are sums of other columns

    def table(name: str) -> pa.Table:
        frame: pl.DataFrame = rounds if name == "rounds" else getattr(run, name)
        found: Any = frame.to_arrow()
        return found

    return Run(None, manifest, table, run.scenario)
