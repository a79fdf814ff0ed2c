"""The parts of a report on several settings: gains over the baseline as a heat map, and the table of `compare`."""

from __future__ import annotations

from collections.abc import Sequence

from blossom_ray.comparison.comparing import Comparison
from blossom_ray.comparison.formats import comparison_title, flat_table, remarks
from blossom_ray.comparison.run_scores import ALL
from blossom_ray.comparison.run_selection import Entry
from blossom_ray.reporting.charts import heat_map
from blossom_ray.reporting.parts import ReportFigure, ReportSection, ReportTable
from blossom_ray.reporting.variants import Variant


def comparison_section(comparison: Comparison) -> ReportSection:
    """The comparison's table with its notes, below a heat map of the gains where there is a baseline."""
    header, rows = flat_table(comparison, "last5")
    figures = _gain_figures(comparison)
    notes = [f"{comparison_title(comparison, 'last5')}.", *remarks(comparison)]
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
    gains: dict[str, dict[str, float | None]] = {}
    names: dict[str, None] = {}
    for row in comparison.table.to_dicts():
        if row["modalities"] == ALL and row["gain_last5"] is not None:
            name = ", ".join(str(row[key]) for key in columns)
            names[name] = None
            gains.setdefault(", ".join(str(row[key]) for key in above) or "gain", {})[name] = row["gain_last5"]
    if not gains:
        return []
    values = [[row.get(name) for name in names] for row in gains.values()]
    figure = heat_map(list(gains), list(names), values, "gain (%)")
    baseline = ", ".join(comparison.baseline.values())
    caption = (
        f"Personalization gain over {baseline} in percent: mean of the last five rounds that both were scored in, mean "
        "over seeds."
    )
    return [ReportFigure("gains", figure, caption)]
