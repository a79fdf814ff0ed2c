"""Scores that a run with `stop` makes at its end of its best round's blocks: into that round's rows, and out again.

A run that goes on to more rounds must have the rows with which its checkpoints were written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.core.records import RoundRecord, Scoring
from blossom_ray.core.scores import is_of_training
from blossom_ray.runs.table_files import table_schema, widen
from blossom_ray.runs.tables import (
    CLIENT_COLUMNS,
    OBSERVED,
    ROUND_COLUMNS,
    SOME_COLUMNS,
    TABLES,
    Columns,
    Value,
    table_rows,
)

if TYPE_CHECKING:
    import pyarrow as pa

_Row = dict[str, Value]
_Change = Callable[[list[_Row]], list[_Row]]
_TEST = ("num_test_examples", "loss")
# Tables with rows for each scoring.
_BY_SCORING = ("classes", "confusion")
_UNSEEN = "num_unseen_examples"
_ORIGINS = ("num_train_examples", "num_test_examples", "num_validation_examples", _UNSEEN)


def describe_late_scores(late: RoundRecord) -> dict[str, Any]:
    """What `without_late_scores` must know, as JSON values."""
    found = {Scoring.of_column(name) for name in late.metrics}
    return {
        "round": late.round_index,
        "prefixes": [scoring.prefix for scoring in Scoring if scoring in found],
        "classes": [*dict.fromkeys(entry.scoring for entry in late.classes)],
    }


def with_late_scores(
    tables: Mapping[str, pa.Table], late: RoundRecord, profiles: Sequence[ClientProfile]
) -> dict[str, pa.Table]:
    """Tables with scores in the rows of an earlier round; a client that was not scored in it gets a row.

    Args:
        tables: All tables of the run.
        late: The round, with these scores and nothing else.
        profiles: All clients in the order of their ids.
    """
    rows = {name: _rows(columns) for name, columns in table_rows(late, profiles).items()}
    by_client = {row["client"]: row for row in rows["clients"]}

    def clients(found: list[_Row]) -> list[_Row]:
        there = {row["client"]: {**row, **_scores(by_client.get(row["client"], {}), CLIENT_COLUMNS)} for row in found}
        return [row for _, row in sorted({**by_client, **there}.items(), key=lambda pair: int(pair[0] or 0))]

    def rounds(found: list[_Row]) -> list[_Row]:
        return [{**row, **_scores(rows["rounds"][0], ROUND_COLUMNS)} for row in found]

    changes: dict[str, _Change] = {"clients": clients, "rounds": rounds}
    changes |= {name: _adding(rows[name]) for name in _BY_SCORING}
    more = {name: [*dict.fromkeys(column for row in found for column in row)] for name, found in rows.items()}
    return _changed(tables, late.round_index, changes, more)


def without_late_scores(tables: Mapping[str, pa.Table], entry: Mapping[str, Any]) -> dict[str, pa.Table]:
    """The tables as they were before `with_late_scores`.

    Args:
        tables: All tables of the run, whether or not the scores are in each of them.
        entry: From `describe_late_scores`.
    """
    own = {*ROUND_COLUMNS, *CLIENT_COLUMNS, *SOME_COLUMNS} - {*_TEST}
    prefixes, scorings = entry["prefixes"], entry["classes"]

    def stays(name: str) -> bool:
        is_no_score = name in own or name.startswith(OBSERVED) or is_of_training(name)
        return is_no_score or Scoring.of_column(name).prefix not in prefixes

    def without(found: list[_Row]) -> list[_Row]:
        return [{name: value if stays(name) else None for name, value in row.items()} for row in found]

    def clients(found: list[_Row]) -> list[_Row]:
        kept = []
        for row in without(found):
            scores = (name for name, value in row.items() if name not in own and value is not None)
            if _UNSEEN in row and not any(Scoring.of_column(name).is_unseen for name in scores):
                row[_UNSEEN] = None
            if any(row.get(origin) is not None for origin in _ORIGINS):
                kept.append(row)
        return kept

    def classes(found: list[_Row]) -> list[_Row]:
        return [row for row in found if row["scoring"] not in scorings]

    changes: dict[str, _Change] = {"clients": clients, "rounds": without, **dict.fromkeys(_BY_SCORING, classes)}
    return _changed(tables, entry["round"], changes, {})


def _rows(columns: Columns) -> list[_Row]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _adding(more: list[_Row]) -> _Change:
    return lambda found: [*found, *more]


def _scores(row: _Row, own: Mapping[str, str]) -> _Row:
    """What of a row are scores, those that there are."""
    return {name: value for name, value in row.items() if value is not None and (name not in own or name in _TEST)}


def _changed(
    tables: Mapping[str, pa.Table],
    number: int,
    changes: Mapping[str, _Change],
    more: Mapping[str, Sequence[str]],
) -> dict[str, pa.Table]:
    """Tables with other rows in one round, and `num_evaluated` as these say; `more` are columns that they may lack."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = dict(tables)
    num_evaluated = 0
    for name, change in changes.items():
        table = tables[name]
        rows = change(table.filter(pc.field("round") == number).to_pylist())
        if name == "clients":
            num_evaluated = sum(any(row.get(origin) is not None for origin in _ORIGINS[1:3]) for row in rows)
        elif name == "rounds":
            rows = [{**row, "num_evaluated": num_evaluated} for row in rows]
        schema = table_schema([*table.schema.names, *more.get(name, ())], TABLES[name])
        before, after = table.filter(pc.field("round") < number), table.filter(pc.field("round") > number)
        parts = [widen(before, schema), pa.Table.from_pylist(rows, schema), widen(after, schema)]
        found[name] = pa.concat_tables(parts)
    return found
