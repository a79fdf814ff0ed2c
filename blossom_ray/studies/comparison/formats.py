"""A comparison as text for other programs: Markdown and LaTeX for papers, CSV and JSON with every digit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from blossom_ray.runs.log import json_line
from blossom_ray.studies.comparison.choosing import Choice
from blossom_ray.studies.comparison.comparing import Comparison
from blossom_ray.studies.comparison.panels import choice_table, flat_table, remarks
from blossom_ray.studies.comparison.scores import Summary
from blossom_ray.studies.tables import TextTable
from blossom_ray.text import printable

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
}  # fmt: skip

# An underscore inside a word is none of them, nor is a bracket that no link follows.
_MARKUP = re.compile(r"[\\`*<>|~$]|\](?=[(\[:])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_FORMULA = ("=", "+", "-", "@")


def markdown(comparison: Comparison, gain_of: Summary) -> str:
    """A Markdown table of all settings and modality sets, and the notes under it; before it, one of what was chosen."""
    parts = []
    for table, notes, _ in _tables(comparison, gain_of):
        lines = (table.columns, ["---"] * len(table.columns), *table.rows)
        parts += [f"{_markdown_text(table.title)}\n"]
        parts += ["| " + " | ".join(map(_markdown_text, cells)) + " |" for cells in lines]
        parts += ["", *(f"- {_markdown_text(note)}" for note in notes), ""]
    return "\n".join(parts)


def latex(comparison: Comparison, gain_of: Summary) -> str:
    r"""A LaTeX `tabular` for the package booktabs; title and notes are comments before it; first one of choices."""
    parts = []
    for table, notes, num_words in _tables(comparison, gain_of):
        parts += [f"% {printable(comment)}" for comment in (table.title, *notes)]
        parts += [rf"\begin{{tabular}}{{{'l' * num_words}{'r' * (len(table.columns) - num_words)}}}", r"\toprule"]
        parts += [_latex_row(table.columns), r"\midrule", *map(_latex_row, table.rows)]
        parts += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(parts)


def _tables(comparison: Comparison, gain_of: Summary) -> Iterator[tuple[TextTable, Sequence[str], int]]:
    """What was chosen, if anything, and what is compared, each with notes and the number of its columns of words."""
    if (choice := comparison.choice) is not None:
        yield choice_table(choice), choice.notes, len(choice.settings)
    num_words = sum(key in comparison.table.columns for key in (*comparison.keys, comparison.part))
    yield flat_table(comparison, gain_of), remarks(comparison, gain_of), num_words


def csv(comparison: Comparison) -> str:
    """The frame `table` as CSV, every digit. A name that a spreadsheet would take for a formula begins with `'`."""
    texts = pl.selectors.string()
    return comparison.table.with_columns(texts.map_elements(_csv_text, return_dtype=pl.String)).write_csv()


def json_text(comparison: Comparison) -> str:
    """Everything that the comparison holds, on one line."""
    tree = _plain(comparison, "metric lower_is_better is_share keys baseline target up_to part table runs")
    tree["run_notes"] = [{"note": note.text, "runs": dict(note.runs)} for note in comparison.run_notes]
    tree["unused"] = [{"run": place, "status": status} for place, status in comparison.unused]
    tree["notes"] = comparison.notes
    if comparison.choice is not None:
        tree["choice"] = _plain(comparison.choice, "metric summary keys table tried notes")
    return json_line(tree)


def _plain(value: Comparison | Choice, names: str) -> dict[str, Any]:
    """Some attributes, frames as a list of their rows."""
    found = {name: getattr(value, name) for name in names.split()}
    return {name: each.to_dicts() if isinstance(each, pl.DataFrame) else each for name, each in found.items()}


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
