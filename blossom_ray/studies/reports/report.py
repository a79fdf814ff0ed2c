"""From run folders to the report's files: which sections there are, and those that set runs beside each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from blossom_ray.core.locations import local_path
from blossom_ray.errors import InputError
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.folder import Run
from blossom_ray.studies.comparison.comparing import Comparison, Question, compare_entries
from blossom_ray.studies.comparison.entries import NOT_BEGUN, RunEntry, Source, collect, each_source
from blossom_ray.studies.comparison.notes import run_notes
from blossom_ray.studies.comparison.panels import choice_table, comparison_title, panel_tables, remarks, shown_interval
from blossom_ray.studies.comparison.scores import ALL, metric_columns
from blossom_ray.studies.comparison.tasks import task_metrics, task_names, task_view
from blossom_ray.studies.reports.charts import figure_style, heat_map
from blossom_ray.studies.reports.federation import failure_section, federation_section, time_section, traffic_section
from blossom_ray.studies.reports.page import (
    FIGURE_FORMATS,
    ReportFigure,
    ReportSection,
    render_page,
    save_figure,
    save_page,
)
from blossom_ray.studies.reports.scores import class_section, client_section, curve_section, modality_section
from blossom_ray.studies.reports.variants import Variant, variants_of
from blossom_ray.text import brief

_SUMMARIES = {
    "final": "last scored round",
    "last5": "mean of the last five rounds that both were scored in",
    "best": "round of the best score",
}
PAGE_NAME = "report.html"
_MOST_NAMED = 5


def report(
    *sources: Source | Iterable[Source],
    out: str | Path | None = None,
    figures: str | Path | None = None,
    title: str | None = None,
    choose: str | None = None,
    tune: str | Sequence[str] = (),
) -> list[Path]:
    """Write one HTML page, which needs no network, about a run, a sweep, or several of them side by side.

    Args:
        sources: Run folders, folders of sweeps, such opened, or lists of them.
        out: The page; None: `report.html` in the folder of a single source, else in the working directory.
        figures: Folder for every figure as SVG and as PDF, for a paper; None: none are written.
        title: Its heading; None: the names of the scenarios.
        choose: As in `compare`: the page is then about the runs with the values that were chosen on validation.
        tune: The keys whose values are chosen.

    Returns:
        The files written, the page first.

    Raises:
        RunFolderError: A source is no run and no sweep or is damaged, or a file cannot be written.
        InputError: No run has a complete round yet, or there is nothing to choose from.

    Examples:
        >>> from blossom_ray import report
        >>> report("sweeps/quickstart", figures="figures")
    """
    page_path = None if out is None else local_path(out, "out")
    if page_path is not None and page_path.is_dir():
        raise InputError(f"out is '{page_path}', which is a folder; expected a file")
    figures = None if figures is None else local_path(figures, "figures")
    given = each_source(sources)
    entries = collect(given)
    finished = [entry.finished for entry in entries if entry.finished is not None]
    comparisons: list[Comparison] = []
    if len(finished) > 1 or choose is not None or tune:
        metrics = task_metrics(entries)
        comparisons = [compare_entries(entries, Question(metric, choose=choose, tune=tune)) for metric in metrics]
        entries = _keep_chosen(entries, comparisons[0])
    baseline = tuple(comparisons[0].baseline) if comparisons else ()
    told = [note.text for note in comparisons[0].run_notes] if comparisons else []
    runs = [entry.run for entry in entries if entry.run is not None]
    notes = list(dict.fromkeys([*told, *(note.text for note in run_notes(("", run) for run in runs))]))
    variants = variants_of(entries, baseline, notes if len(runs) > 1 else ())
    if not variants:
        found = "; ".join(f"{entry.place}: {entry.status}" for entry in entries[:_MOST_NAMED])
        raise InputError(f"no run has a complete round yet ({found}); expected at least one that has")
    used = [run for variant in variants for run in variant.runs]
    with figure_style():
        compared = _comparison_sections(entries, comparisons, finished)
        noted = _note_section(variants, told)
        scored = [variant for variant in variants if variant.rounds.height]
        sections = [
            federation_section(used),
            *compared,
            noted,
            *_score_sections(scored),
            *(of(variants) for of in (traffic_section, time_section, failure_section)),
        ]
        sections = [section for section in sections if not section.is_empty]
        if len(used) == 1:
            lead = "" if used[0].path is None else used[0].path.name
        else:
            seeds = sorted({run.scenario.seeds for run in used})
            lead = f"{len(used)} runs: {len(variants)} settings, seeds {', '.join(map(str, seeds))}"
        page = render_page(
            title=title or ", ".join(dict.fromkeys(run.scenario.name for run in used)),
            lead="; ".join(filter(None, (lead, *_left_out(entries)))),
            facts=_facts(used[0]) if len(used) == 1 else {},
            sections=sections,
            # The runs of a setting differ in their seeds alone.
            scenarios={
                each.name or each.runs[0].scenario.name: scenario_yaml(each.runs[0].scenario) for each in variants
            },
        )
        path = page_path or _default_path(given)
        save_page(path, page)
        written = [path]
        if figures is not None:
            shown = [figure for section in sections for figure in section.figures]
            written += [save_figure(each, figures, form) for each in shown for form in FIGURE_FORMATS]
    return written


def comparison_section(title: str, comparison: Comparison, told: Sequence[str] = ()) -> ReportSection:
    """The tables of a comparison with its notes, but for those that were told elsewhere.

    Above them stands a heat map of the differences, where there is a baseline.
    """
    gain_of = comparison.summary
    notes = [f"{comparison_title(comparison, gain_of)}.", *remarks(comparison, gain_of)]
    notes = [note for note in notes if note not in told]
    return ReportSection(title, _difference_figures(comparison), [*panel_tables(comparison, gain_of)], notes)


def _comparison_sections(
    entries: Sequence[RunEntry], comparisons: Sequence[Comparison], finished: Sequence[Run]
) -> Iterator[ReportSection]:
    """The comparison by each task's score, and by the same one on the held-out set where a run has it."""
    for comparison in comparisons:
        task = comparison.metric.partition("/")[0] if len(comparisons) > 1 else ""
        if comparison is comparisons[0] and (choice := comparison.choice) is not None:
            table = choice_table(choice, joined=True)
            notes = [f"{table.title}.", *choice.notes]
            yield ReportSection("Chosen on validation", tables=[replace(table, title="")], notes=notes)
        own = comparison_section("Comparison", comparison)
        yield _of_task(own, task)
        for start, title in (("held_out/", "on the held-out set"), ("unseen/", "of unseen clients")):
            if any(metric_columns(run, f"{start}{comparison.metric}") for run in finished):
                other = compare_entries(entries, Question(metric=f"{start}{comparison.metric}"))
                yield _of_task(comparison_section(f"Comparison {title}", other, told=own.notes), task)


def _score_sections(variants: Sequence[Variant]) -> Iterator[ReportSection]:
    """What there is to show of scores, task by task where they have names."""
    for task in task_names(run for variant in variants for run in variant.runs) or ("",):
        own = [replace(each, runs=[task_view(run, task) for run in each.runs if _has(run, task)]) for each in variants]
        own = [variant for variant in own if variant.runs] if task else [*variants]
        for section in (curve_section, modality_section, class_section, client_section):
            if own:
                yield _of_task(section(own), task)


def _has(run: Run, task: str) -> bool:
    return task in (run.scenario.tasks or ())


def _of_task(section: ReportSection, task: str) -> ReportSection:
    """A section that says of which task it is, as do the names of its figures."""
    if not task:
        return section
    figures = [replace(figure, name=f"{task}-{figure.name}") for figure in section.figures]
    return replace(section, title=f"{section.title}: {task}", figures=figures)


def _difference_figures(comparison: Comparison) -> list[ReportFigure]:
    grouping, points = comparison.grouping, f"points_{comparison.summary}"
    shown = [row for row in comparison.table.to_dicts() if row["modalities"] == ALL and row[points] is not None]
    panels = grouping.panels(shown, dict)
    if not panels:
        return []
    names = list(dict.fromkeys(name for row in panels.values() for name in row))
    cells = [[row[name][0] if name in row else None for name in names] for row in panels.values()]
    values = [[None if cell is None else cell[points] for cell in row] for row in cells]
    below = {
        (i, j): shown_interval(cell, points, "{:+.1f}".format)
        for i, row in enumerate(cells) for j, cell in enumerate(row) if cell is not None
    }  # fmt: skip
    unit, unit_words = ("points", "percent points") if comparison.is_share else ("difference", "the score")
    figure = heat_map([panel or "difference" for panel in panels], names, values, unit, below)
    caption = (
        f"Difference to {', '.join(comparison.baseline.values())} in {unit_words}, positive where better: "
        f"{_SUMMARIES[comparison.summary]}, mean over seeds, with its 95 % interval: ± over seeds, "
        "in brackets over the clients of one."
    )
    return [ReportFigure("gains", figure, caption)]


def _keep_chosen(entries: list[RunEntry], comparison: Comparison) -> list[RunEntry]:
    """The entries that are left where values of some keys were chosen, without these keys."""
    choice = comparison.choice
    if choice is None:
        return entries
    kept = set(comparison.runs["run"])
    return [
        replace(entry, setting={key: word for key, word in entry.setting.items() if key not in choice.keys})
        for entry in entries
        if entry.place in kept
    ]


def _note_section(variants: Sequence[Variant], told: Sequence[str]) -> ReportSection:
    """What the runs noted of themselves, but for what the comparison tells; numbered on from there."""
    notes = run_notes((variant.name, run) for variant in variants for run in variant.runs)
    if sum(len(variant.runs) for variant in variants) == 1:
        return ReportSection("Notes", notes=[note.text for note in notes])
    numbers = {text: number for number, text in enumerate(variants[0].notes, 1)}
    return ReportSection("Notes", notes=[f"[{numbers[note.text]}] {note}" for note in notes if note.text not in told])


def _default_path(sources: Sequence[Source]) -> Path:
    folder = sources[0] if len(sources) == 1 else Path()
    if isinstance(folder, str | Path):
        return local_path(folder, "the run") / PAGE_NAME
    return (folder.path or Path()) / PAGE_NAME


def _left_out(entries: Sequence[RunEntry]) -> list[str]:
    """Runs that have not begun, cannot be read, or are not whole: nothing of them is in the page."""
    absent = [entry for entry in entries if entry.run is None]
    missing = [Path(entry.place).name for entry in absent if entry.status == NOT_BEGUN]
    told = [f"not used: {entry.status}" for entry in absent if entry.status != NOT_BEGUN]
    return [*told, f"not used: {brief(', '.join(missing))}: {NOT_BEGUN}"] if missing else told


def _facts(run: Run) -> dict[str, str]:
    """What a run was, in a few words each."""
    scenario, manifest = run.scenario, run.manifest
    sharing, versions = scenario.sharing, manifest.get("versions", {})
    scopes = [sharing] if isinstance(sharing, str) else [f"{name} {scope}" for name, scope in sharing.items()]
    found = {
        "sharing": ", ".join(scopes),
        "rounds": f"{run.rounds.height - 1} of {scenario.rounds}",
        "seed": str(scenario.seeds),
        "status": run.status,
        "started (UTC)": str(manifest.get("started_at") or "")[:16].replace("T", " "),
        "blossom-ray": str(versions.get("blossom-ray", "")) if isinstance(versions, dict) else "",
    }
    return {name: value for name, value in found.items() if value}
