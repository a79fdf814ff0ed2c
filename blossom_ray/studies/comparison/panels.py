"""A comparison as tables of texts: for a terminal, in panels for a page, in one table for a paper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from blossom_ray.studies.comparison.choosing import BUDGET, Choice
from blossom_ray.studies.comparison.comparing import Comparison
from blossom_ray.studies.comparison.entries import key_labels
from blossom_ray.studies.comparison.notes import BEST_NOTES, MARK
from blossom_ray.studies.comparison.scores import ALL, SUMMARIES, Summary
from blossom_ray.studies.tables import TextTable, format_bytes, format_count, interval_text, line, plain_table

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

    Below a width of 100, other scores than the one whose gains are shown are left out.
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
        chosen = choice_table(choice, joined=True)
        table = plain_table(*chosen.columns)
        for cells in chosen.rows:
            table.add_row(*cells)
        parts += [line(chosen.title, "bold"), table]
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


def choice_table(choice: Choice, *, joined: bool = False) -> TextTable:
    """What was chosen, a row per setting, whose values may share one cell: its score on validation, what was tried."""
    labels = [*key_labels((*choice.settings, *choice.keys)).values()]
    num, score = len(choice.settings) if joined else 0, _score_text(choice)
    rows = []
    for row in choice.table.to_dicts():
        words = [row[key] or "-" for key in (*choice.settings, *choice.keys)]
        first = [", ".join(words[:num]) or "for all"] if joined else []
        rows.append([*first, *words[num:], _with_interval(row, "validation", score), *(str(row[n]) for n in BUDGET)])
    first = [", ".join(labels[:num]) or "chosen"] if joined else []
    unit = " in %" if choice.is_share else ""
    title = f"chosen by {choice.metric}{unit}, {HEADINGS[choice.summary]}, mean over seeds"
    return TextTable([*first, *labels[num:], "validation", "values", "runs", "rounds"], rows, title)


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

    `note` is what these begin with.
    """
    unused = [f"not used: {place}: {status}" for place, status in comparison.unused]
    numbered = [f"[{number}] {text}" for number, text in enumerate(comparison.run_notes, 1)]
    shown = [text for text in comparison.notes if gain_of == "best" or not text.startswith(BEST_NOTES)]
    return [*unused, *numbered, *(f"{note}{text}" for text in shown)]


def panel_tables(comparison: Comparison, gain_of: Summary) -> Iterator[TextTable]:
    """The tables of `terminal` for a page, each followed by its single runs: every number with its interval.

    `rounds` is what the mean of the last scores is over. The last columns, which lines of modality sets lack, are what
    a run took. Columns that say nothing, such as means over the clients of a held-out set, are left out.
    """
    grouping, part = comparison.grouping, comparison.part
    columns = [*_score_columns(comparison, gain_of, brief=False), _LAST_ROUNDS, *_seed_columns(comparison)]
    header = [grouping.heading or part, *(column.heading for column in (*columns, *_COMPUTE))]
    run_columns = _score_columns(comparison, gain_of, brief=False, of_runs=True)
    run_columns += [_LAST_ROUNDS, _Column("folder", lambda row: Path(row["run"]).name)]
    runs = grouping.panels((row for row in comparison.runs.to_dicts() if row["final"] is not None), dict)
    for title, settings in grouping.panels(comparison.table.to_dicts(), dict).items():
        lines = []
        for name, rows in settings.items():
            first, *others = _nested(comparison, {name: rows}, columns)
            gap = [""] * (1 + len(columns) - len(first))
            lines += [first + gap + [column.cell(rows[0]) for column in _COMPUTE], *others]
        yield _without_empty_columns(header, lines, title)
        lines = []
        for name, members in runs.get(title, {}).items():
            whole = [row for row in members if row[part] == ALL]
            for row in whole or members:
                words = filter(None, (name, f"seed {row['seed']}", "" if whole else row[part]))
                lines.append([", ".join(words), *(column.cell(row) for column in run_columns)])
        run_title = ", ".join(filter(None, (title, "single runs")))
        run_header = ["run", *(column.heading for column in run_columns)]
        yield replace(_without_empty_columns(run_header, lines, run_title), is_folded=True)


def _without_empty_columns(header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> TextTable:
    has_any = [any(cells[place : place + 1] not in ([], ["-"], [""]) for cells in rows) for place in range(len(header))]
    return TextTable([*compress(header, has_any)], [[*compress(cells, has_any)] for cells in rows], title)


def flat_table(comparison: Comparison, gain_of: Summary) -> TextTable:
    """One table of all settings."""
    labels = comparison.labels
    columns = [_SEEDS, *_score_columns(comparison, gain_of, brief=False), *_COMPUTE, *_target_columns(comparison)]
    if comparison.run_notes:
        columns.append(_Column("notes", partial(_marks, comparison)))
    header = [*(labels[key] for key in comparison.keys), comparison.part, *(column.heading for column in columns)]
    rows = [
        [*(str(row[key]) for key in comparison.keys), row[comparison.part], *(column.cell(row) for column in columns)]
        for row in comparison.table.to_dicts()
    ]
    return TextTable(header, rows, comparison_title(comparison, gain_of))


def _seed_columns(comparison: Comparison) -> list[_Column]:
    """How many seeds a row has, where not all have as many."""
    return [_SEEDS] if comparison.table["num_seeds"].n_unique() > 1 else []


def _difference(comparison: Comparison) -> str:
    return "points" if comparison.is_share else "difference"


def _score_columns(comparison: Comparison, gain_of: Summary, *, brief: bool, of_runs: bool = False) -> list[_Column]:
    """Scores, points and gain of a row; if brief, with intervals of one score and of its points alone.

    Rows of runs have neither intervals nor p.
    """
    score, points, gain = _score_text(comparison), f"points_{gain_of}", f"gain_{gain_of}"
    usual = next(iter(Counter(comparison.table["last5_rounds"].drop_nulls()).most_common(1)), (None,))[0]

    def score_cell(name: str, row: _Row) -> str:
        text = _with_interval(row, name, score, shows_interval=not brief or name == gain_of, brief=brief)
        is_apart = name == "last5" and not of_runs and row["last5_rounds"] not in (usual, None)
        return f"{text} {MARK}" if is_apart else text

    def difference_cell(row: _Row, name: str, text: _Text, *, shows_interval: bool = True) -> str:
        shown = _with_interval(row, name, text, shows_interval=shows_interval)
        return f"{shown} {MARK}" if row[name] is not None and row[f"gain_{gain_of}_rounds"] else shown

    # The best one, which is chosen on test scores, is shown where it is asked for alone.
    names = [name for name in SUMMARIES if name != "best" or gain_of == "best"]
    columns = [_Column(HEADINGS[name], partial(score_cell, name), is_extra=name != gain_of) for name in names]
    columns.append(_Column("unweighted", _plain_cell(f"unweighted_{gain_of}", score), is_extra=True))
    if comparison.baseline:
        text = ("{:+.1f}" if comparison.is_share else "{:+.3f}").format
        columns.append(_Column(_difference(comparison), partial(difference_cell, name=points, text=text)))
        if not of_runs and comparison.table[f"p_{gain_of}"].count():
            words = {"p": f"p_{gain_of}", "Holm": f"p_holm_{gain_of}"}
            columns += [_Column(heading, _plain_cell(name, _p_text)) for heading, name in words.items()]
        percent = partial(difference_cell, name=gain, text="{:+.1f}".format, shows_interval=not brief)
        columns.append(_Column("gain %", percent))
        if "local" in comparison.baseline.values():
            columns.append(_Column("lost", partial(_lost_cell, gain_of), is_extra=True))
    return columns


def _lost_cell(gain_of: Summary, row: _Row) -> str:
    """How many clients score less than in the baseline's run: `2 of 10`, `2 of 10 (1 tied)`."""
    lost, tied, compared = (row[f"{start}_{gain_of}"] for start in ("lost", "tied", "compared"))
    return "-" if compared is None else f"{lost} of {compared}" + (f" ({tied} tied)" if tied else "")


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


def _p_text(p: float) -> str:
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


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


def shown_interval(row: _Row, name: str, text: _Text, *, brief: bool = False) -> str:
    """The interval of one of a row's numbers, as `interval_text` shows it over seeds; in brackets over clients."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    if low is None or high is None:
        return ""
    if row["interval"] != "seeds":
        return f"[{text(low)}, {text(high)}]"
    shown = interval_text(row[name], (low, high), text)
    # One that was cut at 0 or 100 % is so wide that decimals say nothing.
    return f"[{100 * low:.0f}, {100 * high:.0f}]" if brief and shown.startswith("[") else shown


def _with_interval(row: _Row, name: str, text: _Text, *, shows_interval: bool = True, brief: bool = False) -> str:
    if row[name] is None:
        return "-"
    return f"{text(row[name])} {shown_interval(row, name, text, brief=brief) if shows_interval else ''}".rstrip()


def _score_text(comparison: Comparison | Choice) -> _Text:
    return (lambda value: f"{100 * value:.1f}") if comparison.is_share else "{:.3f}".format
