"""A comparison as tables of texts: for a terminal, in panels for a page, in one table for a paper."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from blossom_ray.studies.comparison.choosing import BUDGET, Choice
from blossom_ray.studies.comparison.comparing import Comparison
from blossom_ray.studies.comparison.entries import key_labels
from blossom_ray.studies.comparison.notes import BEST_NOTES, MARK
from blossom_ray.studies.comparison.scores import ALL, SUMMARIES, Summary
from blossom_ray.studies.tables import format_bytes, format_count, line, plain_table

_WIDE = 100
BELOW = "  "
"""What the first cell of a modality set begins with, which stands below its setting."""
HEADINGS = {"final": "final", "last5": "last 5", "best": "best"}
_Row = Mapping[str, Any]
_Settings = Mapping[str, Sequence[_Row]]
_Text = Callable[[float], str]


@dataclass(frozen=True)
class _Column:
    """A column of a table: its heading, and its cell in a row of one of the comparison's frames.

    A narrow terminal has no room for one that `is_extra`.
    """

    heading: str
    cell: Callable[[_Row], str]
    is_extra: bool = False


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
    parts: list[RenderableType] = []
    if (choice := comparison.choice) is not None:
        header, chosen = choice_table(choice, joined=True)
        table = plain_table(*header)
        for cells in chosen:
            table.add_row(*cells)
        parts += [line(choice_title(choice), "bold"), table]
        parts += [*(line(f"note: {note}") for note in choice.notes), line("")]
    parts.append(line(", ".join([comparison_title(comparison, gain_of), *fixed]), "bold"))
    if not rows:
        parts.append(line("no run has finished, so there is nothing to compare"))
    columns = [*_seed_columns(comparison), *_score_columns(comparison, gain_of, brief=True)]
    columns = [column for column in columns if width >= _WIDE or not column.is_extra]
    for title, settings in grouping.panels(rows, dict).items():
        if title:
            parts += [line(""), line(title, "bold")]
        parts.append(_table(comparison, columns, settings))
        if comparison.target is not None:
            parts.append(_table(comparison, _target_columns(comparison), settings))
    if rows:
        parts.append(_compute_table(comparison, rows))
    parts += [line(text) for text in remarks(comparison, gain_of, note="note: ")]
    return Group(*parts)


def choice_title(choice: Choice) -> str:
    """What values were chosen by, with its unit."""
    unit = " in %" if choice.is_share else ""
    return f"chosen by {choice.metric}{unit}, {HEADINGS[choice.summary]}, mean over seeds"


def choice_table(choice: Choice, *, joined: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what was chosen, a row per setting: its score on validation, and what was tried.

    Args:
        choice: What was chosen.
        joined: Whether the values of a setting share one cell.
    """
    labels = [*key_labels((*choice.settings, *choice.keys)).values()]
    num, score = len(choice.settings) if joined else 0, _score_text(choice)
    rows = []
    for row in choice.table.to_dicts():
        words = [row[key] or "-" for key in (*choice.settings, *choice.keys)]
        first = [", ".join(words[:num]) or "for all"] if joined else []
        rows.append([*first, *words[num:], _with_interval(row, "validation", score), *(str(row[n]) for n in BUDGET)])
    first = [", ".join(labels[:num]) or "chosen"] if joined else []
    return [*first, *labels[num:], "validation", "values", "runs", "rounds"], rows


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


def remarks(comparison: Comparison, gain_of: Summary, note: str = "") -> list[str]:
    """What stands below a table: runs that are not used, notes of the runs with their numbers, notes on the numbers.

    Args:
        comparison: What was compared.
        gain_of: The score whose gains are shown.
        note: What the notes on the numbers begin with.
    """
    unused = [f"not used: {place}: {status}" for place, status in comparison.unused]
    numbered = [f"[{number}] {text}" for number, text in enumerate(comparison.run_notes, 1)]
    shown = [text for text in comparison.notes if gain_of == "best" or not text.startswith(BEST_NOTES)]
    return [*unused, *numbered, *(f"{note}{text}" for text in shown)]


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
    columns = [*_score_columns(comparison, gain_of, brief=False), _LAST_ROUNDS, *_seed_columns(comparison)]
    header = [grouping.heading or comparison.part, *(column.heading for column in (*columns, *_COMPUTE))]
    run_columns = _run_columns(comparison, gain_of)
    runs = grouping.panels((row for row in comparison.runs.to_dicts() if row["final"] is not None), dict)

    def with_compute(settings: _Settings) -> Iterator[list[str]]:
        for name, rows in settings.items():
            first, *others = _nested(comparison, {name: rows}, columns)
            yield first + [""] * (1 + len(columns) - len(first)) + [column.cell(rows[0]) for column in _COMPUTE]
            yield from others

    def run_rows(title: str) -> Iterator[list[str]]:
        for name, members in runs.get(title, {}).items():
            is_whole = any(row[comparison.part] == ALL for row in members)
            for row in members:
                if not is_whole or row[comparison.part] == ALL:
                    own = [] if is_whole else [row[comparison.part]]
                    words = [*filter(None, (name, f"seed {row['seed']}", *own))]
                    yield [", ".join(words), *(column.cell(row) for column in run_columns)]

    run_header = ["run", *(column.heading for column in run_columns)]
    return [
        PanelTables(title, header, [*with_compute(settings)], run_header, [*run_rows(title)])
        for title, settings in grouping.panels(comparison.table.to_dicts(), dict).items()
    ]


def flat_table(comparison: Comparison, gain_of: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one table of all settings."""
    labels = comparison.labels
    columns = [_SEEDS, *_score_columns(comparison, gain_of, brief=False), *_COMPUTE, *_target_columns(comparison)]
    if comparison.run_notes:
        columns.append(_Column("notes", partial(_marks, comparison)))
    header = [*(labels[key] for key in comparison.keys), comparison.part, *(column.heading for column in columns)]
    return header, [
        [*(str(row[key]) for key in comparison.keys), row[comparison.part], *(column.cell(row) for column in columns)]
        for row in comparison.table.to_dicts()
    ]


def interval_text(row: _Row, name: str, text: _Text) -> str:
    """The interval of one of a row's numbers: ± over seeds, in brackets over clients or where it was cut at a bound."""
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if low is None:
        return ""
    if row["interval"] == "seeds" and _is_symmetric(value, low, high):
        return f"± {text(high - value).lstrip('+')}"
    return f"[{text(low)}, {text(high)}]"


def _seed_columns(comparison: Comparison) -> list[_Column]:
    """How many seeds a row has, where not all have as many."""
    return [_SEEDS] if comparison.table["num_seeds"].n_unique() > 1 else []


def _score_columns(comparison: Comparison, gain_of: Summary, *, brief: bool) -> list[_Column]:
    """Scores, points and gain of a row; if brief, with intervals of one score and of its points alone."""
    score, points, gain = _score_text(comparison), f"points_{gain_of}", f"gain_{gain_of}"
    usual = next(iter(Counter(comparison.table["last5_rounds"].drop_nulls()).most_common(1)), (None,))[0]

    def score_cell(name: str, row: _Row) -> str:
        text = _with_interval(row, name, score, shows_interval=not brief or name == gain_of, brief=brief)
        return f"{text} {MARK}" if name == "last5" and row["last5_rounds"] not in (usual, None) else text

    def gain_cell(row: _Row) -> str:
        text = _with_interval(row, gain, "{:+.1f}".format, shows_interval=not brief)
        return text if row[gain] is None else text + _gain_mark(row, gain_of)

    columns = [_Column(HEADINGS[name], partial(score_cell, name), is_extra=name != gain_of) for name in _shown(gain_of)]
    columns.append(_Column("unweighted", _plain_cell(f"unweighted_{gain_of}", score), is_extra=True))
    if comparison.baseline:
        text = _points_text(comparison)
        columns.append(
            _Column(_difference(comparison), lambda row: _with_interval(row, points, text) + _gain_mark(row, gain_of))
        )
        if comparison.table[f"p_{gain_of}"].count():
            words = {"p": f"p_{gain_of}", "Holm": f"p_holm_{gain_of}"}
            columns += [_Column(heading, _plain_cell(name, _p_text)) for heading, name in words.items()]
        columns.append(_Column("gain %", gain_cell))
    return columns


def _run_columns(comparison: Comparison, gain_of: Summary) -> list[_Column]:
    """The columns of single runs."""
    score = _score_text(comparison)

    def marked(name: str, text: _Text) -> Callable[[_Row], str]:
        return lambda row: "-" if row[name] is None else text(row[name]) + _gain_mark(row, gain_of)

    columns = [_Column(HEADINGS[name], _plain_cell(name, score)) for name in _shown(gain_of)]
    columns.append(_Column("unweighted", _plain_cell(f"unweighted_{gain_of}", score)))
    if comparison.baseline:
        columns.append(_Column(_difference(comparison), marked(f"points_{gain_of}", _points_text(comparison))))
        columns.append(_Column("gain %", marked(f"gain_{gain_of}", "{:+.1f}".format)))
    return [*columns, _LAST_ROUNDS, _Column("folder", lambda row: Path(row["run"]).name)]


def _target_columns(comparison: Comparison) -> list[_Column]:
    """What it took to reach the target; none where none was asked for."""
    if comparison.target is None:
        return []
    target = _score_text(comparison)(comparison.target)
    return [
        _Column(f"rounds to {target}", _plain_cell("rounds_to_target", "{:g}".format)),
        _Column("down to it", _plain_cell("bytes_down_to_target", format_bytes)),
        _Column("up to it", _plain_cell("bytes_up_to_target", format_bytes)),
        _Column("reached", lambda row: f"{row['num_reached']}/{row['num_seeds']}"),
    ]


def _plain_cell(name: str, text: _Text) -> Callable[[_Row], str]:
    return lambda row: "-" if row[name] is None else text(row[name])


_SEEDS = _Column("seeds", lambda row: str(row["num_seeds"]))
_LAST_ROUNDS = _Column("rounds", lambda row: row["last5_rounds"] or "-")
_COMPUTE = [
    _Column("samples", _plain_cell("num_examples", format_count)),
    _Column("steps", _plain_cell("num_steps", format_count)),
    _Column("down", _plain_cell("bytes_down", format_bytes)),
    _Column("up", _plain_cell("bytes_up", format_bytes)),
]


def _compute_table(comparison: Comparison, rows: Sequence[_Row]) -> Table:
    """What each setting took, which is the same for all its modality sets."""
    grouping = comparison.grouping
    varied = [key for key in comparison.keys if key in (*grouping.above, *grouping.beside)]
    grouping = replace(grouping, above=(), beside=varied)
    table = plain_table(grouping.heading, *(column.heading for column in _COMPUTE))
    table.padding = (0, 1, 0, 0)
    for setting, members in grouping.panels(rows, dict)[""].items():
        table.add_row(setting or ALL, *(column.cell(members[0]) for column in _COMPUTE))
    return table


def _table(comparison: Comparison, columns: Sequence[_Column], settings: _Settings) -> Table:
    table = plain_table(comparison.grouping.heading or comparison.part, *(column.heading for column in columns))
    table.padding = (0, 1, 0, 0)
    for cells in _nested(comparison, settings, columns):
        if not cells[0].startswith(BELOW):
            table.add_section()
        table.add_row(*cells)
    return table


def _nested(comparison: Comparison, settings: _Settings, columns: Sequence[_Column]) -> list[list[str]]:
    """Lines of a table whose first column has the setting, in the line of all clients, and modality sets below it."""
    lines = []
    for setting, rows in settings.items():
        marked = " ".join(filter(None, (setting or ALL, _marks(comparison, rows[0]))))
        if setting and rows[0][comparison.part] != ALL:
            lines.append([marked])
        for row in rows:
            first = marked if row[comparison.part] == ALL else f"{BELOW}{row[comparison.part]}"
            lines.append([first, *(column.cell(row) for column in columns)])
    return lines


def _marks(comparison: Comparison, row: _Row) -> str:
    """The numbers of the runs' notes that concern a row."""
    return " ".join(f"[{number}]" for number in comparison.notes_of(row))


def _gain_mark(row: _Row, gain_of: Summary) -> str:
    return f" {MARK}" if row[f"gain_{gain_of}_rounds"] else ""


def _shown(gain_of: Summary) -> list[Summary]:
    """The scores of a table; the best one, which is chosen on test scores, where it is asked for alone."""
    return [name for name in SUMMARIES if name != "best" or gain_of == "best"]


def _difference(comparison: Comparison) -> str:
    return "points" if comparison.is_share else "difference"


def _p_text(p: float) -> str:
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def _with_interval(row: _Row, name: str, text: _Text, *, shows_interval: bool = True, brief: bool = False) -> str:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if value is None:
        return "-"
    if low is None or not shows_interval:
        return text(value)
    if brief and row["interval"] == "seeds" and not _is_symmetric(value, low, high):
        # Cut at 0 or 100 %: so wide that decimals say nothing.
        return f"{text(value)} [{100 * low:.0f}, {100 * high:.0f}]"
    return f"{text(value)} {interval_text(row, name, text)}"


def _is_symmetric(value: float, low: float, high: float) -> bool:
    return math.isclose(high - value, value - low, rel_tol=1e-6, abs_tol=1e-12)


def _score_text(comparison: Comparison | Choice) -> _Text:
    return (lambda value: f"{100 * value:.1f}") if comparison.is_share else "{:.3f}".format


def _points_text(comparison: Comparison) -> _Text:
    return ("{:+.1f}" if comparison.is_share else "{:+.3f}").format
