"""Writes the tables and figures of docs/results/claim.md, and README's table, from docs/results/claim.csv.

    python scenarios/paper/claim.py

A table stands between `<!-- table: name -->` and `<!-- end -->`; figures lie in docs/results/claim/. A case that lacks
the run of a seed is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

from claim_figures import figures
from claim_lines import (
    AGAINST,
    MEASURES,
    PRIVATE,
    SCHEMES,
    SHORT,
    TITLES,
    TUNED,
    Arm,
    Lines,
    arm_of,
    data_of,
    groups,
    title,
)
from grid import CASES, DATA, EQUAL_CLIENTS, MAPPED, RUNNING_STATISTICS, SEEDS, SKEWED, TUNING_SEEDS, distinct
from points import p_text, with_interval

from blossom_ray.studies.reports import charts

DOCS = Path(__file__).parents[2] / "docs"
LINES, AGAIN, PAGE, FIGURES = (
    DOCS / "results" / name for name in ("claim.csv", "claim-again.csv", "claim.md", "claim")
)
README = DOCS.parent / "README.md"

Rows = Iterator[str]


def main() -> None:
    """Write page, README and figures."""
    lines = Lines(LINES)
    for path in (PAGE, README):
        path.write_text(filled(path.read_text(encoding="utf-8"), lines), encoding="utf-8")
    FIGURES.mkdir(exist_ok=True)
    with charts.figure_style():
        for name, figure in figures(lines, MAPPED):
            figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})


def filled(page: str, lines: Lines) -> str:
    """A page with its tables made anew."""

    def table(found: re.Match[str]) -> str:
        text = "\n".join(TABLES[found[1]](lines))
        return f"<!-- table: {found[1]} -->\n\n{text}\n\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w-]+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def row(*cells: str) -> str:
    """A row."""
    return f"| {' | '.join(cells)} |"


def header(*names: str, texts: int = 1) -> Rows:
    """The names, and a rule below; so many columns of texts stand first."""
    yield row(*names)
    yield f"|{'---|' * texts}{'---:|' * (len(names) - texts)}"


def scored(values: Sequence[float]) -> str:
    """Mean of scores and half of its interval."""
    return with_interval([*values]).lstrip("+") if values else "-"


def primary_table(lines: Lines) -> Rows:
    """Points, p and Holm's p of all primary comparisons; what survives the correction is bold."""
    yield from header("points", "measure", *(w for base in AGAINST for w in (f"PHF - {base}", "p", "Holm")), texts=2)
    found: dict[tuple[str, str, str], list[str]] = {}
    for each in lines.primary():
        points = f"**{with_interval([*each.values])}**" if each.is_sure else with_interval([*each.values])
        cells = [points, p_text(each.p), p_text(each.adjusted)]
        found.setdefault((each.data, each.case, each.measure), []).extend(cells)
    for (data, case, measure), cells in found.items():
        yield row(title(data, case), MEASURES[measure], *cells)


def summary_table(lines: Lines) -> Rows:
    """How many primary comparisons there are, and how many say something."""
    names = ("PHF against", "measure", "cases", "ahead in the mean", "ahead after Holm", "behind after Holm")
    yield from header(*names, texts=2)
    found = lines.primary()
    for base in AGAINST:
        for measure, name in MEASURES.items():
            of_both = [each for each in found if (each.base, each.measure) == (base, measure)]
            sure = [fmean(each.values) for each in of_both if each.is_sure]
            ahead = sum(fmean(each.values) > 0 for each in of_both)
            counts = (len(of_both), ahead, sum(value > 0 for value in sure), sum(value < 0 for value in sure))
            yield row(base, name, *map(str, counts))


def score_table(measure: str) -> Callable[[Lines], Rows]:
    """The scores of all schemes in all cases."""

    def table(lines: Lines) -> Rows:
        yield from header(f"{MEASURES[measure]}, %", *SCHEMES)
        for data in DATA:
            for case in (*CASES, *EQUAL_CLIENTS):
                cells = [scored(lines.scores(Arm("grid", data, case, scheme), measure)) for scheme in SCHEMES]
                if {*cells} != {"-"}:
                    yield row(title(data, case), *cells)

    return table


def statistics_table(lines: Lines) -> Rows:
    """AV-MNIST with averaged statistics and with those of a modality set, by the modalities of clients."""
    yield from header("accuracy, %", "running statistics", "all clients", "audio", "image", "both", texts=2)
    for case in CASES:
        for scheme in ("FM", "PHF"):
            for norm, name in (("shared", "averaged over all"), ("same-modalities", "of each modality set")):
                arm = Arm("grid", "av-mnist", case, scheme, norm)
                if whole := lines.scores(arm, "accuracy"):
                    kinds = {kind: _means(lines, arm, group) for kind, group in groups(case).items()}
                    cells = (scored(kinds.get(kind, [])) for kind in ("first", "second", "both"))
                    yield row(f"{title('av-mnist', case)}, {scheme}", name, scored(whole), *cells)


def _means(lines: Lines, arm: Arm, group: range) -> list[float]:
    """By seed the accuracy of a group of clients, weighted by test samples."""
    found = []
    for clients in lines.clients(arm):
        known = [clients[client] for client in group if client in clients]
        total = sum(each.samples for each in known)
        found.append(sum(each.scores["accuracy"] * each.samples for each in known) / total)
    return found


def losers_table(lines: Lines) -> Rows:
    """Shares of clients below their local model."""
    schemes = SCHEMES[:-1]
    yield from header("clients below their local model, %", "measure", *schemes, texts=2)
    for data in DATA:
        for case in CASES:
            for measure, name in MEASURES.items():
                cells = [scored(lines.losers(Arm("grid", data, case, scheme), measure)) for scheme in schemes]
                if {*cells} != {"-"}:
                    yield row(title(data, case), name, *cells)


def rates_table(lines: Lines) -> Rows:
    """The rates that were tried, and their scores on validation splits."""
    yield from header("data set", "scheme", "rate: accuracy on validation, %", "chosen", texts=3)
    found: dict[str, dict[float, list[float]]] = {}
    reported = {data_of(each) for each in lines.rows if each["sweep"].startswith("grid/")}
    for each in lines.rows:
        if each["sweep"].startswith("tune/") and data_of(each) in reported:
            is_tuned = "_fine-tuned_" in each["sweep"]
            rate, score = (
                each[key] for key in (("fine_tune_lr", "fine_tuned/accuracy") if is_tuned else ("lr", "accuracy"))
            )
            found.setdefault(each["sweep"], {}).setdefault(float(rate), []).append(float(score))
    for name, rates in found.items():
        data, scheme, norm = name.removeprefix("tune/").split("_")
        kind = f", {norm}" if data in RUNNING_STATISTICS and scheme != "local" else ""
        whole = {
            rate: fmean(values) for rate, values in sorted(rates.items()) if len(values) == len(TUNING_SEEDS[data])
        }
        texts = ", ".join(f"{rate:g}: {100 * score:.1f}" for rate, score in whole.items())
        chosen = f"{max(whole, key=whole.__getitem__):g}" if whole else "-"
        yield row(TITLES[data], SHORT.get(scheme, TUNED) + kind, texts, chosen)


def cost_table(lines: Lines) -> Rows:
    """What a run takes at Dirichlet 5-5-0, and what its clients send and are sent."""
    names = (
        "Dirichlet 5-5-0, a run",
        "averaged parameters",
        "MB, both ways",
        "samples trained on",
        "steps of a client",
    )
    yield from header(*names, "seconds")
    for data in DATA:
        for scheme, short in SHORT.items():
            norm = distinct(data, SKEWED[0], scheme, "same-modalities")
            runs = [each for each in lines.rows if each["sweep"] == f"grid/{data}_{SKEWED[0]}_{scheme}_{norm}"]
            if len(runs) == len(SEEDS):
                sent, *means = (
                    fmean(float(run[key]) for run in runs) for key in ("bytes", "examples", "steps", "seconds")
                )
                cells = [f"{int(runs[0]['parameters']):,}", f"{sent / 1e6:,.0f}", *(f"{mean:,.0f}" for mean in means)]
                yield row(f"{TITLES[data]}, {short}", *cells)


def blocks_table(measure: str) -> Callable[[Lines], Rows]:
    """What each choice of private blocks does to FM."""

    def table(lines: Lines) -> Rows:
        found = {title(*case): lines.maps(*case, measure) for case in MAPPED}
        found = {name: maps for name, maps in found.items() if maps}
        yield from header(f"private: {MEASURES[measure]}, points over FM", *found)
        for name in list(PRIVATE)[1:]:
            yield row(name, *(with_interval(maps[name]) if name in maps else "-" for maps in found.values()))

    return table


def learned_table(lines: Lines) -> Rows:
    """How much of a block the learned mixture has of a client's own copy."""
    blocks = ("encoder", "fusion", "head")
    yield from header("a client's own share, %: mean (least to most)", "clients with", *blocks, texts=2)
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for each in lines.rows:
        for client, shares in json.loads(each["own"] or "{}").items():
            arm = arm_of(each)
            kind = next(name for name, group in groups(arm.case).items() if int(client) in group)
            for block, share in shares.items():
                of_kind = found.setdefault((title(arm.data, arm.case), kind), {})
                of_kind.setdefault(block.partition("/")[0], []).append(100 * share)
    for names, shares in found.items():
        yield row(*names, *(f"{fmean(v):.0f} ({min(v):.0f} to {max(v):.0f})" for v in map(shares.__getitem__, blocks)))


def leakage_table(lines: Lines) -> Rows:
    """UCI-HAR at Dirichlet 5-5-0 by what is kept on one side of the split."""
    stages = {"grid": "windows, as everywhere else", "recordings": "recordings"}
    columns = ("FM", TUNED, "PHF", "local")
    yield from header("whole on one side", "measure", *columns, *(f"PHF - {base}" for base in AGAINST), texts=2)
    for stage, name in stages.items():
        for measure, label in MEASURES.items():
            arms = {scheme: Arm(stage, "uci-har", SKEWED[0], scheme, "shared") for scheme in columns}
            if all(lines.scores(arm, measure) for arm in arms.values()):
                points = [with_interval(lines.points(arms["PHF"], arms[base], measure)) for base in AGAINST]
                yield row(name, label, *(scored(lines.scores(arm, measure)) for arm in arms.values()), *points)


def concat_table(lines: Lines) -> Rows:
    """PHF against FM with both fusions."""
    yield from header("PHF - FM, points", *(f"{f}: {m}" for f in ("attention", "concat") for m in MEASURES.values()))
    for data in DATA:
        for case in SKEWED:
            cells = [
                lines.points(Arm(stage, data, case, "PHF"), Arm(stage, data, case, "FM"), measure)
                for stage in ("grid", "concat")
                for measure in MEASURES
            ]
            if all(cells):
                yield row(title(data, case), *map(with_interval, cells))


def runs_table(lines: Lines) -> Rows:
    """What was run, where and how long."""
    yield from header("sweeps", "data set", "first began, UTC", "last began", "processor", "runs", "hours", texts=5)
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    for each in lines.rows:
        found.setdefault((each["sweep"].partition("/")[0], TITLES[data_of(each)]), []).append(each)
    for names, rows in found.items():
        begun, kinds = sorted(each["started"] for each in rows), sorted({each["processor"] for each in rows})
        yield row(*names, begun[0], begun[-1], ", ".join(kinds), str(len(rows)), _hours(rows))
    yield row("all", "", "", "", "", str(len(lines.rows)), _hours(lines.rows))


def _hours(rows: Sequence[dict[str, str]]) -> str:
    return f"{sum(float(each['seconds']) for each in rows) / 3600:.1f}"


def again_table(lines: Lines) -> Rows:
    """Runs that were repeated elsewhere."""
    names = [f"{measure} {place}" for measure in MEASURES.values() for place in ("first", "again")]
    yield from header("run", "first on", "again on", "same digests", *names, texts=4)
    first = {each["command"]: each for each in lines.rows}
    for own in Lines(AGAIN).rows:
        both, arm = (first[own["command"]], own), arm_of(own)
        is_same = all(both[0][key] == own[key] for key in ("shared_digest", "private_digest"))
        scores = (f"{100 * float(each[measure]):.1f}" for measure in MEASURES for each in both)
        name = f"{title(arm.data, arm.case)}, {arm.scheme}, seed {own['seed']}"
        yield row(name, *(each["processor"] for each in both), "yes" if is_same else "no", *scores)


def readme_table(lines: Lines) -> Rows:
    """Both measures where clients own different sensors."""
    yield from header("accuracy / macro-F1, %", *SCHEMES)
    for data in DATA:
        for case in CASES:
            arms = [Arm("grid", data, case, scheme) for scheme in SCHEMES]
            if lines.points(arms[3], arms[0], "accuracy"):
                pairs = ([scored(lines.scores(arm, measure)) for measure in MEASURES] for arm in arms)
                yield row(title(data, case), *("-" if "-" in pair else " / ".join(pair) for pair in pairs))


TABLES: dict[str, Callable[[Lines], Rows]] = {
    "summary": summary_table, "primary": primary_table, "losers": losers_table, "statistics": statistics_table,
    "learned": learned_table, "leakage": leakage_table, "concat": concat_table, "cost": cost_table,
    "rates": rates_table, "runs": runs_table, "again": again_table, "readme": readme_table,
    **{f"scores-{name}": score_table(measure) for measure, name in MEASURES.items()},
    **{f"blocks-{name}": blocks_table(measure) for measure, name in MEASURES.items()},
}  # fmt: skip


if __name__ == "__main__":
    main()
