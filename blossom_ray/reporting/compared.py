"""The parts of a report on several settings: gains over the baseline as a heat map, and the table of `compare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blossom_ray.comparison.comparing import Comparison
from blossom_ray.comparison.formats import comparison_title, flat_table, interval_text, remarks
from blossom_ray.comparison.run_scores import ALL
from blossom_ray.comparison.run_selection import Entry
from blossom_ray.reporting.charts import heat_map
from blossom_ray.reporting.parts import ReportFigure, ReportSection, ReportTable
from blossom_ray.reporting.variants import Variant


def comparison_section(comparison: Comparison) -> ReportSection:
    """The comparison's table with its notes, below a heat map of the differences where there is a baseline."""
    header, rows = flat_table(comparison, "last5")
    figures = _gain_figures(comparison)
    notes = [f"{comparison_title(comparison, 'last5')}.", *remarks(comparison, "last5")]
    return ReportSection("Comparison", figures, [ReportTable(header, rows)], notes)


def variants_of(entries: Sequence[Entry], baseline: Sequence[str]) -> list[Variant]:
    """The runs among some entries by setting, in order; a panel per setting of all keys but the baseline's.

    Args:
        entries: With their settings. Those without a run, or without a complete round, are left out.
        baseline: The keys whose values stand side by side in a panel; where there are none, all keys do.
    """
    runs: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if entry.run is not None and entry.run.rounds.height:
            beside = {key: value for key, value in entry.setting.items() if key in baseline}
            above = {key: value for key, value in entry.setting.items() if key not in baseline}
            if not beside:
                beside, above = above, {}
            runs.setdefault((", ".join(above.values()), ", ".join(beside.values())), []).append(entry)
    variants = [
        Variant(label, [entry.run for entry in members if entry.run is not None], panel)
        for (panel, label), members in runs.items()
    ]
    return variants if len(variants) > 1 else [Variant("", variant.runs) for variant in variants]


def _gain_figures(comparison: Comparison) -> list[ReportFigure]:
    varied = [key for key in comparison.keys if comparison.table[key].n_unique() > 1]
    columns = [key for key in varied if key in comparison.baseline]
    above = [key for key in varied if key not in columns]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    names: dict[str, None] = {}
    for row in comparison.table.to_dicts():
        if row["modalities"] == ALL and row["points_last5"] is not None:
            name = ", ".join(str(row[key]) for key in columns)
            names[name] = None
            found.setdefault(", ".join(str(row[key]) for key in above) or "difference", {})[name] = row
    if not found:
        return []
    cells = [[row.get(name) for name in names] for row in found.values()]
    values = [[None if cell is None else cell["points_last5"] for cell in row] for row in cells]
    below = {
        (i, j): interval_text(cell, "points_last5", lambda value: f"{value:+.1f}")
        for i, row in enumerate(cells) for j, cell in enumerate(row) if cell is not None
    }  # fmt: skip
    unit = "points" if comparison.is_share else "difference"
    figure = heat_map(list(found), list(names), values, unit, below)
    baseline = ", ".join(comparison.baseline.values())
    unit_words = "percent points" if comparison.is_share else "the score"
    caption = (
        f"Difference to {baseline} in {unit_words}, positive where better: "
        "mean of the last five rounds that both were scored in, mean over seeds, with its 95 % interval: ± over seeds, "
        "in brackets over the clients of one."
    )
    return [ReportFigure("gains", figure, caption)]
