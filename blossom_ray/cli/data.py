"""Commands about data sets: `data list`, `data inspect`, `data prepare`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blossom_ray.cli import completion
from blossom_ray.cli.interruption import interruptible
from blossom_ray.cli.options import Json, Seed, Settings, app, load_scenario, parse_settings
from blossom_ray.cli.output import print_json, say
from blossom_ray.core.locations import local_path
from blossom_ray.errors import DataError, InputError, ScenarioError
from blossom_ray.text import quoted

if TYPE_CHECKING:
    from blossom_ray.core.blocks import ClientProfile
    from blossom_ray.data.dataset import Dataset
    from blossom_ray.data.federated import FederatedDataset
    from blossom_ray.data.sets.base import DataSource
    from blossom_ray.data.summary import ClientShare, DatasetSummary, ObservedRows
    from blossom_ray.reading.scenario import Scenario
    from blossom_ray.studies.reports.page import ReportSection

data_app = typer.Typer(
    name="data",
    help="Look at data sets: which there are, what one holds, how a scenario divides it; decode one ahead of time.",
    no_args_is_help=True,
)
app.add_typer(data_app)

Target = Annotated[
    str,
    typer.Argument(
        metavar="NAME|SCENARIO",
        help="A data set's name as in `data list`, or a scenario file.",
        autocompletion=completion.datasets_and_scenarios,
    ),
]
DataPath = Annotated[Path | None, typer.Option("--path", help="Where the files are: data.path.")]
Modalities = Annotated[
    list[str] | None, typer.Option("--modality", help="Only this one of a named data set. Repeatable.")
]


@data_app.command("list", epilog="Example: blossom-ray data list --path ~/downloads")
def list_datasets(
    path: Annotated[Path | None, typer.Option("--path", help="Look for downloaded files here, up to two folders deep.")]
    = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """List the data sets: what they hold, where to get them, which file to give."""
    from blossom_ray.cli.console.data import facts_text
    from blossom_ray.cli.console.terminal import terminal
    from blossom_ray.data.options import DATASETS

    found: dict[str, Path] = {}
    if path is not None:
        path = local_path(path, "--path")
        if not os.path.exists(path):
            raise InputError(f"--path is {str(path)!r}, which does not exist; expected a folder or an archive")
        from blossom_ray.data.options import find_downloads

        found = find_downloads(path)
    console = terminal()
    for name, facts in DATASETS.items():
        if as_json:
            shapes = {modality: list(shape) for modality, shape in facts.shapes.items()}
            where = str(found[name]) if name in found else None
            print_json({"name": name, **vars(facts), "tasks": list(facts.tasks), "shapes": shapes, "found": where})
        else:
            console.print(facts_text(name, facts, found.get(name)))


@data_app.command(
    epilog="Example: blossom-ray data inspect uci-har --path 'UCI HAR Dataset.zip' --set data.zscore=true"
)
def inspect(
    target: Target,
    path: DataPath = None,
    modality: Modalities = None,
    settings: Settings = None,
    seed: Seed = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", help="Write a page with some pictures, sounds and texts of each of a scenario's first clients."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a data set holds; with a scenario, also what each of its clients gets."""
    from blossom_ray.cli.console.data import shares_view, summary_view
    from blossom_ray.cli.console.terminal import terminal
    from blossom_ray.data.options import DATASETS
    from blossom_ray.data.summary import unit_notes
    from blossom_ray.studies.tables import line

    if html is not None:
        html = local_path(html, "--html")
        if html.is_dir():
            raise InputError(f"--html is '{html}', which is a folder; expected a file")
        if target in DATASETS:
            raise InputError(f"--html is for a scenario, whose clients it shows; expected one in the place of {target}")
    console = terminal()
    with interruptible() as interruption:
        interruption.farewell = "interrupted"
        scenario, loaded = _load(target, path, modality or [], settings or [], seed, as_json=as_json)
        everyone = tuple(scenario.profiles())
        found = {
            whole.name: _inspected(
                whole, source, dataset, everyone, is_divided=target not in DATASETS, with_page=html is not None
            )
            for whole, source, dataset in loaded
        }
    spread = {name: {m: v.deviation for m, v in each.summary.modalities.items()} for name, each in found.items()}
    notes = unit_notes(spread)
    if html is not None:
        _write_page(html, scenario, found.values(), notes)
    if as_json:
        values = {name: _plain(each) for name, each in found.items()}
        print_json(values.get("", {"datasets": values, "notes": notes}))
        return
    for each in found.values():
        console.print(summary_view(each.title, each.summary, each.fingerprint))
        if each.shares is not None:
            view = shares_view(each.shares, each.profiles, each.observed)
            # A column for each class may not fit; a line that the terminal breaks can still be read.
            needed = console.measure(view, options=console.options.update(max_width=10_000)).maximum
            terminal(width=max(console.width, needed)).print(view)
    for note in (*(note for each in found.values() for note in each.notes), *notes):
        console.print(line(note))
    if html is not None:
        say(html)


@dataclass(frozen=True)
class _Inspected:
    """What is shown of a data set, and of its clients where it is divided over some."""

    dataset: str
    title: str
    summary: DatasetSummary
    fingerprint: str
    profiles: Sequence[ClientProfile]
    shares: Sequence[ClientShare] | None
    observed: Mapping[str, Mapping[str, ObservedRows]]
    notes: Sequence[str]
    sections: Sequence[ReportSection] = ()


def _inspected(
    whole: FederatedDataset,
    source: DataSource,
    dataset: Dataset,
    everyone: Sequence[ClientProfile],
    *,
    is_divided: bool,
    with_page: bool,
) -> _Inspected:
    from blossom_ray.data.division.labelling import known_labels, labelled_lines, left_out_lines, without_unlabelled
    from blossom_ray.data.federated import labelled_by_task
    from blossom_ray.data.summary import observed_rows, shares, summarise

    profiles = whole.profiles(everyone)
    own: list[ClientShare] | None = None
    observed: dict[str, dict[str, ObservedRows]] = {}
    notes = [*dataset.notes]
    sections: list[ReportSection] = []
    if is_divided:
        with whole.told():
            targets = whole.targets(dataset)
            by_task = {name: whole.data.labelled(dataset, task.labels) for name, task in whole.learned.items()}
            labelled = labelled_by_task(dataset, by_task)
            known = known_labels(labelled, [*by_task])
            divided = whole.divide(targets)
            to_learn = without_unlabelled(divided, profiles, known)
            federation = whole.observe(to_learn, targets)
        notes += [f"left out: {what}: {number:,}" for what, number in left_out_lines(divided, to_learn)]
        notes += labelled_lines(federation, profiles, known, labelled)
        own = [replace(each, client=whole.ids[each.client]) for each in shares(dataset, federation)]
        observed = observed_rows(federation, profiles)
        if with_page:
            from blossom_ray.studies.reports.contact_sheet import contact_sheet

            sections = [*contact_sheet(source, dataset, federation, own, profiles)]
    name = whole.data.dataset
    title = f"{whole.name}: {name}" if whole.name else name
    return _Inspected(name, title, summarise(dataset), dataset.fingerprint(), profiles, own, observed, notes, sections)


def _write_page(path: Path, scenario: Scenario, found: Iterable[_Inspected], notes: Sequence[str]) -> None:
    """What `--html` asks for.

    Raises:
        RunFolderError: The file cannot be written.
    """
    from blossom_ray.reading.writer import scenario_yaml
    from blossom_ray.studies.reports.page import ReportSection, render_page, save_page

    sections = []
    for each in found:
        told = [*map(str, each.summary.left_out), *each.notes]
        left = len(each.profiles) - len(each.sections)
        told += [f"and {left:,} more clients" for _ in range(left > 0)]
        fingerprint = f"{each.summary.num_samples:,} samples, fingerprint {each.fingerprint}."
        sections += [ReportSection(each.title, text=[fingerprint], notes=told), *each.sections]
    sections += [ReportSection("Units", notes=notes)] if notes else []
    name = scenario.name
    page = render_page(title=name, lead="data", facts={}, sections=sections, scenarios={name: scenario_yaml(scenario)})
    save_page(path, page)


def _plain(found: _Inspected) -> dict[str, Any]:
    """The same as plain values, for JSON."""
    from blossom_ray.cli.console.data import plain_summary

    values = {"dataset": found.dataset, **plain_summary(found.summary), "fingerprint": found.fingerprint}
    if found.shares is not None:
        values["clients"] = [
            {"client": share.client, "name": share.name or None, "modalities": list(profile.modalities),
             **({"role": "unseen"} if profile.is_unseen else {}),
             "train": share.num_train, "validation": share.num_validation, "test": share.num_test,
             "labels": dict(share.labels), "subjects": share.num_subjects}
            for share, profile in zip(found.shares, found.profiles, strict=True)
        ]  # fmt: skip
    if found.observed:
        values["observed"] = {
            name: {split: vars(rows) for split, rows in own.items()} for name, own in found.observed.items()
        }
    if found.notes:
        values["notes"] = list(found.notes)
    return values


@data_app.command(epilog="Example: blossom-ray data prepare ptb-xl --path ptb-xl-1.0.3.zip")
def prepare(
    target: Target,
    path: DataPath = None,
    modality: Modalities = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Decode a data set into the cache, so that runs find it there. The cache is where BLOSSOM_RAY_CACHE says."""
    from blossom_ray.data.files.cache import cache_folder, entries
    from blossom_ray.runtime.loading import decode
    from blossom_ray.studies.tables import format_bytes, format_seconds

    started = time.monotonic()
    with interruptible() as interruption:
        interruption.farewell = "interrupted; nothing half done is kept, and what is done is not done again"
        scenario, opened = _load(target, path, modality or [], settings or [], None, as_json=as_json)
    prepared = [(whole.data.dataset, dataset.num_samples, dataset.left_out) for whole, _, dataset in opened]
    del opened
    seconds = time.monotonic() - started
    folder, decoded = cache_folder(), decode(scenario)
    for name, num_samples, left_out in prepared:
        num_bytes = sum(entries(name, folder).values())
        if name == "table":
            num_bytes = sum(kept.num_bytes for parts in decoded.values() for kept in parts)
        if as_json:
            missing = [vars(entry) for entry in left_out]
            facts = {"dataset": name, "samples": num_samples, "left_out": missing, "seconds": seconds}
            print_json({**facts, "cache": str(folder), "cached_bytes": num_bytes})
        elif num_bytes:
            kept = f"{format_bytes(num_bytes)} of it in {folder}"
            say(f"{name}: {num_samples:,} samples ready after {format_seconds(seconds)}; {kept}")
        else:
            say(f"{name}: {num_samples:,} samples; nothing to prepare, they are read or made anew for each run")
        if not as_json and left_out:
            say(*left_out)


def _load(
    target: str, path: Path | None, modalities: list[str], settings: list[str], seed: int | None, *, as_json: bool
) -> tuple[Scenario, list[tuple[FederatedDataset, DataSource, Dataset]]]:
    """The scenario that is asked for, and its data sets; a bar on a terminal while a loader works.

    Raises:
        DataError: One cannot be read; where it can be had is said, too.
    """
    from blossom_ray.cli.console.loading import loading_bar

    with loading_bar(hidden=as_json):
        scenario = _scenario(target, path, modalities, settings, seed)
        loaded = []
        for whole in scenario.federated:
            try:
                with whole.told():
                    source = whole.open()
                    loaded.append((whole, source, source.load()))
            except DataError as error:
                facts, name = whole.data.facts, whole.data.dataset
                hint = [f"{name}: give {facts.download}; get it from {facts.page}"] if facts.page else []
                raise DataError(*error.args, *hint) from error
        return scenario, loaded


def _scenario(target: str, path: Path | None, modalities: list[str], settings: list[str], seed: int | None) -> Scenario:
    """The scenario of a file, or the smallest one that has a named data set.

    Raises:
        InputError: It is neither, or what is asked for is not right.
    """
    from blossom_ray.data.options import DATASETS
    from blossom_ray.reading.packaged import scenario_path

    if target in DATASETS:
        return _scenario_of_named(target, path, modalities, settings, seed)
    if Path(target).suffix not in (".yaml", ".yml") and not os.path.exists(scenario_path(Path(target))):
        raise InputError(
            f"{quoted(target)} is neither a data set nor a scenario file; "
            f"expected one of {', '.join(DATASETS)} or a file"
        )
    if modalities:
        raise InputError("--modality is for a named data set; expected it left out with a scenario, whose clients tell")
    given = settings if path is None else [*settings, f"data.path={path}"]
    return load_scenario(Path(target), given, seed)


def _scenario_of_named(
    name: str, path: Path | None, modalities: list[str], settings: list[str], seed: int | None
) -> Scenario:
    from blossom_ray.data.options import DATASETS
    from blossom_ray.reading.scenario import Scenario

    facts = DATASETS[name]
    overrides, problems = parse_settings(settings)
    if problems:
        raise ScenarioError(tuple(problems))
    for modality in modalities:
        if facts.shapes and modality not in facts.shapes:
            raise InputError(f"--modality is {quoted(modality)}; expected one of {', '.join(facts.shapes)}")
    owned = modalities or [*facts.shapes] or (["acc", "gyro"] if name == "synthetic" else [])
    if not owned:
        raise InputError(f"{name} has the modalities that your data have; expected them by --modality, or a scenario")
    tree = {
        "rounds": 1,
        "data": {"dataset": "synthetic"},
        "clients": [{"count": 1, "modalities": owned}],
        "model": {"encoders": {modality: {"kind": "mlp"} for modality in owned}},
    }
    try:
        scenario = Scenario.model_validate(tree)
    except ValueError as error:
        names = ", ".join(map(quoted, owned))
        raise InputError(f"--modality is {names}; expected letters, digits, '.', '_' and '-', at most 64") from error
    options = {"data.path": None if path is None else str(path), "seed": seed}
    values = {"data.dataset": name, **{key: value for key, value in options.items() if value is not None}, **overrides}
    sources = {"data.path": "--path", "seed": "--seed", **{key: f"--set {key}" for key in overrides}}
    # A setting such as data.labels asks for another task than the usual one.
    tasks = [overrides["task"]] if "task" in overrides else facts.tasks
    problems = []
    for task in tasks:
        labels = {key: sources.get(key, f"data {name}") for key in (*values, "task")}
        try:
            return scenario.override({**values, "task": task}, labels)
        except ScenarioError as error:
            problems = problems or [*error.problems]
    raise ScenarioError(tuple(problems))
