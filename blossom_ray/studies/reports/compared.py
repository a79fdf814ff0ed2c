"""The parts of a report on several settings: differences to the baseline as a heat map, and the tables of `compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress

from blossom_ray.studies.comparison.choosing import Choice
from blossom_ray.studies.comparison.comparing import Comparison
from blossom_ray.studies.comparison.formats import (
    choice_table,
    choice_title,
    comparison_title,
    interval_text,
    panel_tables,
    remarks,
)
from blossom_ray.studies.comparison.grouping import grouping_of
from blossom_ray.studies.comparison.run_scores import ALL
from blossom_ray.studies.comparison.run_selection import Entry
from blossom_ray.studies.reports.charts import heat_map
from blossom_ray.studies.reports.parts import ReportFigure, ReportSection, ReportTable
from blossom_ray.studies.reports.variants import Variant

_SUMMARIES = {
    "final": "last scored round",
    "last5": "mean of the last five rounds that both were scored in",
    "best": "round of the best score",
}


def comparison_section(title: str, comparison: Comparison, told: Sequence[str] = ()) -> ReportSection:
    """The tables of a comparison with its notes, below a heat map of the differences where there is a baseline.

    Args:
        title: Heading of the section.
        comparison: What was compared.
        told: Notes that stand elsewhere.
    """
    tables, gain_of = [], comparison.summary
    for panel in panel_tables(comparison, gain_of):
        words = [part for part in (panel.title, "single runs") if part]
        tables.append(_table(panel.header, panel.rows, panel.title))
        tables.append(replace(_table(panel.run_header, panel.runs, ", ".join(words)), is_folded=True))
    notes = [f"{comparison_title(comparison, gain_of)}.", *remarks(comparison, gain_of)]
    return ReportSection(title, _difference_figures(comparison), tables, [note for note in notes if note not in told])


def choice_section(choice: Choice) -> ReportSection:
    """Which values were chosen on validation, for each setting of the other keys, and what was tried."""
    header, rows = choice_table(choice)
    num = len(choice.settings)
    columns = [", ".join(header[:num]) or "chosen", *header[num:]]
    cells = [[", ".join(row[:num]) or "for all", *row[num:]] for row in rows]
    notes = [f"{choice_title(choice)}.", *choice.notes]
    return ReportSection("Chosen on validation", tables=[ReportTable(columns, cells)], notes=notes)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> ReportTable:
    """A table without the columns that say nothing, such as means over the clients of a held-out set."""
    has_any = [any(cells[place : place + 1] not in ([], ["-"], [""]) for cells in rows) for place in range(len(header))]
    return ReportTable([*compress(header, has_any)], [[*compress(cells, has_any)] for cells in rows], title)


def variants_of(entries: Sequence[Entry], baseline: Sequence[str], notes: Sequence[str] = ()) -> list[Variant]:
    """The runs among some entries by setting, in order, in the panels that the tables of a comparison have.

    Args:
        entries: With their settings. Those without a run, or without a complete round, are left out.
        baseline: The keys whose values stand side by side in a panel.
        notes: The numbered notes of runs.
    """
    used = [(entry.setting, entry.run) for entry in entries if entry.run is not None and entry.run.rounds.height]
    settings = [setting for setting, _ in used]
    grouping = grouping_of(settings, [*settings[0]] if settings else [], baseline)
    return [
        Variant(name, [run for _, run in members], panel, notes)
        for panel, names in grouping.panels(used, lambda pair: pair[0]).items()
        for name, members in names.items()
    ]


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
        (i, j): interval_text(cell, points, lambda value: f"{value:+.1f}")
        for i, row in enumerate(cells) for j, cell in enumerate(row) if cell is not None
    }  # fmt: skip
    unit, unit_words = ("points", "percent points") if comparison.is_share else ("difference", "the score")
    figure = heat_map([panel or "difference" for panel in panels], names, values, unit, below)
    baseline = ", ".join(comparison.baseline.values())
    caption = (
        f"Difference to {baseline} in {unit_words}, positive where better: "
        f"{_SUMMARIES[comparison.summary]}, mean over seeds, with its 95 % interval: ± over seeds, "
        "in brackets over the clients of one."
    )
    return [ReportFigure("gains", figure, caption)]
