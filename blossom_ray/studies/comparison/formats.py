"""A comparison as text: tables for a terminal and for papers, CSV and JSON with every digit."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Group, RenderableType
from rich.table import Table

from blossom_ray.runs.log import json_line
from blossom_ray.studies.comparison.choosing import BUDGET, Choice, Summary
from blossom_ray.studies.comparison.comparing import BEST_NOTES, MARK, Comparison
from blossom_ray.studies.comparison.grouping import key_labels
from blossom_ray.studies.comparison.run_scores import ALL, SUMMARIES
from blossom_ray.studies.tables import format_bytes, format_count, line, plain_table
from blossom_ray.text import printable

_WIDE = 100
_COMPUTE = ("samples", "steps", "down", "up")
BELOW = "  "
"""What the first cell of a modality set begins with, which stands below its setting."""
HEADINGS = {"final": "final", "last5": "last 5", "best": "best"}
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
}  # fmt: skip

# An underscore inside a word is none of them, nor is a bracket that no link follows.
_MARKUP = re.compile(r"[\\`*<>|~$]|\](?=[(\[:])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_FORMULA = ("=", "+", "-", "@")


def terminal(comparison: Comparison, gain_of: Summary, width: int = 100) -> RenderableType:
    """Tables for a terminal: one per setting of all keys but the baseline's, then the notes.

    Args:
        comparison: What was compared.
        gain_of: The score whose gains are shown.
        width: Of the terminal; below 100, other scores than this one are left out.
    """
    labels, grouping = comparison.labels, comparison.grouping
    rows = comparison.table.to_dicts()
    fixed = [
        f"{labels[key]} {rows[0][key]}"
        for key in comparison.keys
        if rows and key not in (*grouping.above, *grouping.beside)
    ]
    parts: list[RenderableType] = _choice_section(comparison)
    parts += [line(", ".join([comparison_title(comparison, gain_of), *fixed]), "bold")]
    if not rows:
        parts.append(line("no run has finished, so there is nothing to compare"))
    several_counts = comparison.table["num_seeds"].n_unique() > 1
    headings = [*(["seeds"] if several_counts else []), *_headings(comparison, gain_of)]
    left_out = {HEADINGS[name] for name in SUMMARIES if name != gain_of} | {"unweighted"} if width < _WIDE else set()
    kept = [heading not in left_out for heading in headings]
    for title, settings in grouping.panels(rows, dict).items():
        if title:
            parts += [line(""), line(title, "bold")]
        lines = _nested(
            comparison,
            settings,
            lambda row: compress(_cells(comparison, row, gain_of, brief=True, several_counts=several_counts), kept),
        )
        parts.append(_table(comparison, compress(headings, kept), lines))
        if comparison.target is not None:
            parts.append(_table(comparison, _target_headings(comparison), _nested(comparison, settings, _target_cells)))
    if rows:
        parts.append(_compute_table(comparison, rows))
    parts += [line(f"not used: {place}: {status}") for place, status in comparison.unused]
    parts += [line(text) for text in _numbered(comparison)]
    parts += [line(f"note: {note}") for note in _shown_notes(comparison, gain_of)]
    return Group(*parts)


def markdown(comparison: Comparison, gain_of: Summary) -> str:
    """A Markdown table of all settings and modality sets, and the notes under it; before it, one of what was chosen."""
    title, notes = comparison_title(comparison, gain_of), remarks(comparison, gain_of)
    tables = [_markdown_table(title, *flat_table(comparison, gain_of), notes)]
    if (choice := comparison.choice) is not None:
        tables.insert(0, _markdown_table(choice_title(choice), *choice_table(choice), choice.notes))
    return "\n".join(tables)


def _markdown_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join("| " + " | ".join(map(_markdown_text, cells)) + " |" for cells in lines)
    parts = [f"{_markdown_text(title)}\n", table, "", *(f"- {_markdown_text(note)}" for note in notes)]
    return "\n".join(parts) + "\n"


def latex(comparison: Comparison, gain_of: Summary) -> str:
    r"""A LaTeX `tabular` for the package booktabs; title and notes are comments before it; first one of choices."""
    num_words = sum(key in comparison.table.columns for key in (*comparison.keys, comparison.part))
    title, notes = comparison_title(comparison, gain_of), remarks(comparison, gain_of)
    tables = [_latex_table([title, *notes], *flat_table(comparison, gain_of), num_words)]
    if (choice := comparison.choice) is not None:
        remarks_on_it = [choice_title(choice), *choice.notes]
        tables.insert(0, _latex_table(remarks_on_it, *choice_table(choice), len(choice.settings)))
    return "\n".join(tables)


def _latex_table(comments: Iterable[str], header: Sequence[str], rows: Iterable[Sequence[str]], num_words: int) -> str:
    lines = [f"% {printable(comment)}" for comment in comments]
    lines += [rf"\begin{{tabular}}{{{'l' * num_words}{'r' * (len(header) - num_words)}}}", r"\toprule"]
    lines += [_latex_row(header), r"\midrule", *(_latex_row(row) for row in rows), r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def csv(comparison: Comparison) -> str:
    """The frame `table` as CSV, every digit. A name that a spreadsheet would take for a formula begins with `'`."""
    texts = pl.selectors.string()
    return comparison.table.with_columns(texts.map_elements(_csv_text, return_dtype=pl.String)).write_csv()


def json_text(comparison: Comparison) -> str:
    """Everything that the comparison holds, on one line."""
    tree = {
        "metric": comparison.metric,
        "lower_is_better": comparison.lower_is_better,
        "is_share": comparison.is_share,
        "keys": list(comparison.keys),
        "baseline": dict(comparison.baseline),
        "target": comparison.target,
        "up_to": comparison.up_to,
        "part": comparison.part,
        "table": comparison.table.to_dicts(),
        "runs": comparison.runs.to_dicts(),
        "run_notes": [{"note": note.text, "runs": dict(note.runs)} for note in comparison.run_notes],
        "unused": [{"run": place, "status": status} for place, status in comparison.unused],
        "notes": list(comparison.notes),
    }
    if (choice := comparison.choice) is not None:
        tree["choice"] = {
            "metric": choice.metric,
            "summary": choice.summary,
            "keys": list(choice.keys),
            "table": choice.table.to_dicts(),
            "tried": choice.tried.to_dicts(),
            "notes": list(choice.notes),
        }
    return json_line(tree)


def choice_title(choice: Choice) -> str:
    """What values were chosen by, with its unit."""
    unit = " in %" if choice.is_share else ""
    return f"chosen by {choice.metric}{unit}, {HEADINGS[choice.summary]}, mean over seeds"


def choice_table(choice: Choice) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what was chosen, a row per setting: its score on validation, and what was tried."""
    labels = key_labels((*choice.settings, *choice.keys))
    score = _score_text(choice)
    rows = []
    for row in choice.table.to_dicts():
        words = [row[key] or "-" for key in (*choice.settings, *choice.keys)]
        scored = _with_interval(row, "validation", score, over_seeds=row["interval"] == "seeds")
        rows.append([*words, scored, *(str(row[name]) for name in BUDGET)])
    return [*labels.values(), "validation", "values", "runs", "rounds"], rows


def _choice_section(comparison: Comparison) -> list[RenderableType]:
    choice = comparison.choice
    if choice is None:
        return []
    header, rows = choice_table(choice)
    num = len(choice.settings)
    table = plain_table(", ".join(header[:num]) or "chosen", *header[num:])
    for row in rows:
        table.add_row(", ".join(row[:num]) or "for all", *row[num:])
    notes = [line(f"note: {note}") for note in choice.notes]
    return [line(choice_title(choice), "bold"), table, *notes, line("")]


def comparison_title(comparison: Comparison, gain_of: Summary) -> str:
    """What is compared, with its unit and what gains are measured against."""
    unit = " in %" if comparison.is_share else ""
    text = f"{comparison.metric}{unit}"
    if comparison.baseline:
        labels = comparison.labels
        against = ", ".join(f"{labels.get(key, key)} {value}" for key, value in comparison.baseline.items())
        text += f"; {_difference(comparison)} and gain in % of {HEADINGS[gain_of]} over {against}"
    seeds = sorted(set(comparison.table["num_seeds"].to_list()))
    if len(seeds) == 1:
        text += f"; {seeds[0]} seed{'s' * (seeds[0] > 1)}"
    if comparison.up_to is not None:
        text += f"; up to round {comparison.up_to}"
    return text


def remarks(comparison: Comparison, gain_of: Summary) -> list[str]:
    """What stands below a table: runs that are not used, notes of the runs with their numbers, notes on the numbers."""
    unused = [f"not used: {place}: {status}" for place, status in comparison.unused]
    return [*unused, *_numbered(comparison), *_shown_notes(comparison, gain_of)]


def _shown_notes(comparison: Comparison, gain_of: Summary) -> list[str]:
    return [note for note in comparison.notes if gain_of == "best" or not note.startswith(BEST_NOTES)]


def _numbered(comparison: Comparison) -> list[str]:
    return [f"[{number}] {note}" for number, note in enumerate(comparison.run_notes, 1)]


def _marks(comparison: Comparison, row: Mapping[str, Any]) -> str:
    """The numbers of the runs' notes that concern a row."""
    return " ".join(f"[{number}]" for number in comparison.notes_of(row))


def _compute_table(comparison: Comparison, rows: Sequence[Mapping[str, Any]]) -> Table:
    """What each setting took, which is the same for all its modality sets."""
    grouping = comparison.grouping
    varied = [key for key in comparison.keys if key in (*grouping.above, *grouping.beside)]
    grouping = replace(grouping, above=(), beside=varied)
    table = plain_table(grouping.heading, *_COMPUTE)
    table.padding = (0, 1, 0, 0)
    for setting, members in grouping.panels(rows, dict)[""].items():
        table.add_row(setting or ALL, *_compute_cells(members[0]))
    return table


def _nested(
    comparison: Comparison,
    settings: Mapping[str, Sequence[Mapping[str, Any]]],
    cells: Callable[[Mapping[str, Any]], Iterable[str]],
) -> list[list[str]]:
    """Lines of a table whose first column has the setting, in the line of all clients, and modality sets below it."""
    lines = []
    for setting, rows in settings.items():
        marked = " ".join(filter(None, (setting or ALL, _marks(comparison, rows[0]))))
        if setting and rows[0][comparison.part] != ALL:
            lines.append([marked])
        lines += [
            [marked if row[comparison.part] == ALL else f"{BELOW}{row[comparison.part]}", *cells(row)] for row in rows
        ]
    return lines


def _table(comparison: Comparison, headings: Iterable[str], lines: Sequence[Sequence[str]]) -> Table:
    table = plain_table(comparison.grouping.heading or comparison.part, *headings)
    table.padding = (0, 1, 0, 0)
    for cells in lines:
        if not cells[0].startswith(BELOW):
            table.add_section()
        table.add_row(*cells)
    return table


@dataclass(frozen=True)
class PanelTables:
    """One of the tables that `terminal` shows, for a page: every number with its interval, scores before all else.

    Attributes:
        title: What its settings have in common; "" where there is one table alone.
        header: Of `rows`; `rounds` is what the mean of the last scores is over, and the last columns, which lines of
            modality sets lack, are what a run took.
        rows: By setting; the first cell of a modality set begins with `BELOW`.
        run_header: Of `runs`.
        runs: A row per run, over all clients where it was scored over them.
    """

    title: str
    header: list[str]
    rows: Sequence[list[str]]
    run_header: list[str]
    runs: Sequence[list[str]]


def panel_tables(comparison: Comparison, gain_of: Summary) -> list[PanelTables]:
    """The tables of `terminal`, in order, each with its single runs."""
    grouping = comparison.grouping
    end = ["rounds", "seeds"] if comparison.table["num_seeds"].n_unique() > 1 else ["rounds"]
    header = [grouping.heading or comparison.part, *_headings(comparison, gain_of), *end, *_COMPUTE]
    run_header = ["run", *(HEADINGS[name] for name in _shown(gain_of)), "unweighted"]
    run_header += [_difference(comparison), "gain %"] if comparison.baseline else []
    run_header += ["rounds", "folder"]
    runs = grouping.panels((row for row in comparison.runs.to_dicts() if row["final"] is not None), dict)

    def cells(row: Mapping[str, Any]) -> Iterator[str]:
        yield from _cells(comparison, row, gain_of, brief=False, several_counts=False)
        yield from (row["last5_rounds"] or "-", str(row["num_seeds"]))[: len(end)]

    def with_compute(settings: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[list[str]]:
        for name, rows in settings.items():
            first, *others = _nested(comparison, {name: rows}, cells)
            yield first + [""] * (len(header) - len(_COMPUTE) - len(first)) + _compute_cells(rows[0])
            yield from others

    def run_rows(title: str) -> Iterator[list[str]]:
        for name, members in runs.get(title, {}).items():
            is_whole = any(row[comparison.part] == ALL for row in members)
            for row in members:
                if not is_whole or row[comparison.part] == ALL:
                    own = [] if is_whole else [row[comparison.part]]
                    words = [*filter(None, (name, f"seed {row['seed']}", *own))]
                    yield [", ".join(words), *_run_cells(comparison, row, gain_of)]

    return [
        PanelTables(title, header, [*with_compute(settings)], run_header, [*run_rows(title)])
        for title, settings in grouping.panels(comparison.table.to_dicts(), dict).items()
    ]


def _run_cells(comparison: Comparison, row: Mapping[str, Any], gain_of: Summary) -> Iterator[str]:
    score, points = _score_text(comparison), _points_text(comparison)
    for name in (*_shown(gain_of), f"unweighted_{gain_of}"):
        yield "-" if row[name] is None else score(row[name])
    if comparison.baseline:
        mark = f" {MARK}" if row[f"gain_{gain_of}_rounds"] else ""
        difference, gain = row[f"points_{gain_of}"], row[f"gain_{gain_of}"]
        yield "-" if difference is None else points(difference) + mark
        yield "-" if gain is None else f"{gain:+.1f}{mark}"
    yield from (row["last5_rounds"] or "-", Path(row["run"]).name)


def flat_table(comparison: Comparison, gain_of: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one table of all settings."""
    labels = comparison.labels
    header = [*(labels[key] for key in comparison.keys), comparison.part, "seeds"]
    header += [*_headings(comparison, gain_of), *_COMPUTE, *_target_headings(comparison)]
    header += ["notes"] if comparison.run_notes else []
    rows = []
    for row in comparison.table.to_dicts():
        cells = [*(str(row[key]) for key in comparison.keys), row[comparison.part]]
        cells += _cells(comparison, row, gain_of, brief=False, several_counts=True)
        cells += _compute_cells(row)
        cells += _target_cells(row) if comparison.target is not None else []
        rows.append(cells + ([_marks(comparison, row)] if comparison.run_notes else []))
    return header, rows


def _cells(
    comparison: Comparison, row: Mapping[str, Any], gain_of: Summary, *, brief: bool, several_counts: bool
) -> Iterator[str]:
    """Seeds, scores and gain of a row; a brief one has intervals of one score and of its points alone."""
    over_seeds = row["interval"] == "seeds"
    usual = next(iter(Counter(comparison.table["last5_rounds"].drop_nulls()).most_common(1)), (None,))[0]
    score = _score_text(comparison)
    if several_counts:
        yield str(row["num_seeds"])
    for name in _shown(gain_of):
        text = _with_interval(
            row, name, score, over_seeds=over_seeds, shows_interval=not brief or name == gain_of, brief=brief
        )
        yield f"{text} {MARK}" if name == "last5" and row["last5_rounds"] not in (usual, None) else text
    unweighted = row[f"unweighted_{gain_of}"]
    yield "-" if unweighted is None else score(unweighted)
    if comparison.baseline:
        mark = f" {MARK}" if row[f"gain_{gain_of}_rounds"] else ""
        yield _with_interval(row, f"points_{gain_of}", _points_text(comparison), over_seeds=over_seeds) + mark
        for name in _p_columns(comparison, gain_of):
            yield _p_text(row[name])
        yield _with_interval(
            row, f"gain_{gain_of}", lambda value: f"{value:+.1f}", over_seeds=over_seeds, shows_interval=not brief
        ) + (mark if row[f"gain_{gain_of}"] is not None else "")


def _shown(gain_of: Summary) -> list[str]:
    """The scores of a table; the best one, which is chosen on test scores, where it is asked for alone."""
    return [name for name in SUMMARIES if name != "best" or gain_of == "best"]


def _headings(comparison: Comparison, gain_of: Summary) -> list[str]:
    headings = [*(HEADINGS[name] for name in _shown(gain_of)), "unweighted"]
    if comparison.baseline:
        with_p = ["p", "Holm"][: len(_p_columns(comparison, gain_of))]
        headings += [_difference(comparison), *with_p, "gain %"]
    return headings


def _p_columns(comparison: Comparison, gain_of: Summary) -> list[str]:
    """The columns of p, where there is any."""
    return [f"{name}_{gain_of}" for name in ("p", "p_holm")] if comparison.table[f"p_{gain_of}"].count() else []


def _difference(comparison: Comparison) -> str:
    return "points" if comparison.is_share else "difference"


def _p_text(p: float | None) -> str:
    return "-" if p is None else "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def _with_interval(
    row: Mapping[str, Any],
    name: str,
    text: Callable[[float], str],
    *,
    over_seeds: bool,
    shows_interval: bool = True,
    brief: bool = False,
) -> str:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if value is None:
        return "-"
    if low is None or not shows_interval:
        return text(value)
    if over_seeds and brief and not _is_symmetric(value, low, high):
        # Cut at 0 or 100 %: so wide that decimals say nothing.
        return f"{text(value)} [{100 * low:.0f}, {100 * high:.0f}]"
    return f"{text(value)} {interval_text(row, name, text)}"


def interval_text(row: Mapping[str, Any], name: str, text: Callable[[float], str]) -> str:
    """The interval of one of a row's numbers: ± over seeds, in brackets over clients or where it was cut at a bound."""
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if low is None:
        return ""
    if row["interval"] == "seeds" and _is_symmetric(value, low, high):
        return f"± {text(high - value).lstrip('+')}"
    return f"[{text(low)}, {text(high)}]"


def _is_symmetric(value: float, low: float, high: float) -> bool:
    return math.isclose(high - value, value - low, rel_tol=1e-6, abs_tol=1e-12)


def _compute_cells(row: Mapping[str, Any]) -> list[str]:
    counts = ("-" if row[name] is None else format_count(row[name]) for name in ("num_examples", "num_steps"))
    return [*counts, *(format_bytes(row[name]) for name in ("bytes_down", "bytes_up"))]


def _target_headings(comparison: Comparison) -> list[str]:
    if comparison.target is None:
        return []
    return [f"rounds to {_score_text(comparison)(comparison.target)}", "down to it", "up to it", "reached"]


def _target_cells(row: Mapping[str, Any]) -> list[str]:
    reached = f"{row['num_reached']}/{row['num_seeds']}"
    if row["rounds_to_target"] is None:
        return ["-", "-", "-", reached]
    traffic = [format_bytes(row[f"bytes_{way}_to_target"]) for way in ("down", "up")]
    return [f"{row['rounds_to_target']:g}", *traffic, reached]


def _score_text(comparison: Comparison | Choice) -> Callable[[float], str]:
    return (lambda value: f"{100 * value:.1f}") if comparison.is_share else (lambda value: f"{value:.3f}")


def _points_text(comparison: Comparison) -> Callable[[float], str]:
    return (lambda value: f"{value:+.1f}") if comparison.is_share else (lambda value: f"{value:+.3f}")


def _latex_row(cells: Sequence[str]) -> str:
    texts = ("".join(_LATEX.get(character, character) for character in printable(cell)) for cell in cells)
    return " & ".join(texts) + r" \\"


def _markdown_text(text: str) -> str:
    """A text without the characters that would make markup, a link or a formula of a name."""
    return _MARKUP.sub(r"\\\g<0>", printable(text))


def _csv_text(text: str) -> str:
    shown = printable(text)
    is_number = re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", shown) is not None
    return f"'{shown}" if shown[:1] in _FORMULA and not is_number else shown
