"""Figures of docs/results/claim.md: differences with their intervals, blocks as heat maps, clients one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from claim_lines import AGAINST, MEASURES, PRIVATE, TUNED, Arm, Compared, Lines, half, title
from grid import DATA, SKEWED
from matplotlib.figure import Figure

from blossom_ray.studies.reports import charts


def figures(lines: Lines, mapped: Sequence[tuple[str, str]]) -> Iterator[tuple[str, Figure]]:
    """Each figure that there are runs for, by name; `mapped` are the cases with all maps of private blocks."""
    if found := lines.primary():
        yield "primary", forest(found)
    maps = {
        f"{title(*case)} {name}": of_case
        for case in mapped
        for measure, name in MEASURES.items()
        if (of_case := lines.maps(*case, measure))
    }
    if maps:
        yield "blocks", heat_map(maps)
    for measure, name in MEASURES.items():
        groups = {
            title(data, case): gains
            for data in DATA
            for case in SKEWED
            if (gains := of_clients(lines, data, case, measure))
        }
        if groups:
            yield f"clients-{name}", charts.distributions(groups, x_label=f"{name}, points over the local model")


def forest(found: Sequence[Compared]) -> Figure:
    """A mark with its interval for each comparison, filled where it survives Holm's correction; a panel by measure."""
    rows = list(dict.fromkeys((each.data, each.case) for each in found))
    figure = Figure(figsize=(charts.WIDTH, 1.2 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(MEASURES), sharey=True)
    for axis, (measure, name) in zip(axes, MEASURES.items(), strict=True):
        for each in found:
            if each.measure == measure:
                place = AGAINST.index(each.base)
                look = charts.series(place)
                axis.errorbar(
                    fmean(each.values), rows.index((each.data, each.case)) + 0.24 * (place - 1), xerr=half(each.values),
                    fmt=look.marker, color=look.color, markersize=5, elinewidth=1.1,
                    markerfacecolor=look.color if each.is_sure else "white",
                )  # fmt: skip
        for place, base in enumerate(AGAINST):
            axis.plot([], [], charts.series(place).marker, color=charts.series(place).color, label=f"PHF - {base}")
        axis.axvline(0, color=charts.MUTED, linewidth=0.8)
        axis.set_title(f"{name}, percent points")
        axis.grid(visible=False, axis="y")
    axes[0].set_yticks(range(len(rows)), [title(*each) for each in rows])
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(AGAINST))
    return figure


def heat_map(maps: dict[str, dict[str, list[float]]]) -> Figure:
    """Points over FM by what is private (rows) and by case and measure (columns)."""
    rows = [name for name in PRIVATE if any(name in found for found in maps.values())]
    means = [[fmean(found[name]) if name in found else None for found in maps.values()] for name in rows]
    halves = {
        (i, j): f"± {half(found[name]):.1f}"
        for i, name in enumerate(rows)
        for j, found in enumerate(maps.values())
        if name in found
    }
    return charts.heat_map(rows, [*maps], means, "points over FM", halves)


def of_clients(lines: Lines, data: str, case: str, measure: str) -> dict[str, list[float]]:
    """By scheme the difference of each client of each seed to its local model."""
    alone = lines.clients(Arm("grid", data, case, "local"))
    found = {}
    for scheme in ("FM", TUNED, "PHF"):
        pairs = zip(lines.clients(Arm("grid", data, case, scheme)), alone, strict=False)
        gains = [
            own[client].scores[measure] - others[client].scores[measure] for own, others in pairs for client in own
        ]
        if gains:
            found[scheme] = gains
    return found
