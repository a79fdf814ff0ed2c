"""Scores that a run with `stop` makes at its end of its best round's blocks: into that round's rows, and out again.

A run that goes on to more rounds must have the rows with which its checkpoints were written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.core.records import RoundRecord, Scoring
from blossom_ray.runs.table_files import table_schema, widened
from blossom_ray.runs.tables import CLIENT_COLUMNS, ROUND_COLUMNS, SOME_COLUMNS, TABLES, Columns, Value, table_rows

if TYPE_CHECKING:
    import pyarrow as pa

_Row = dict[str, Value]
_Change = Callable[[list[_Row]], list[_Row]]
_TEST = ("num_test_examples", "loss")
# Tables with rows for each scoring.
_BY_SCORING = ("classes", "confusion")
_ORIGINS = ("num_train_examples", "num_test_examples", "num_validation_examples")


def late_entry(late: RoundRecord) -> dict[str, Any]:
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
    number, rows = late.round_index, table_rows(late, profiles)
    scores = {name: _filled(rows[name], TABLES[name]) for name in ("rounds", "clients")}
    scored = {row["client"]: row for row in _rows(rows["clients"])}

    def clients(found: list[_Row]) -> list[_Row]:
        there = {row["client"]: row for row in found}
        changed = {client: {**row, **_only(scored.get(client, {}), scores["clients"])} for client, row in there.items()}
        added = {client: row for client, row in scored.items() if client not in there}
        return [row for _, row in sorted({**changed, **added}.items(), key=lambda pair: int(pair[0] or 0))]

    (summary,) = _rows(rows["rounds"])
    changes: dict[str, _Change] = {
        "clients": clients,
        "rounds": lambda found: [{**row, **_only(summary, scores["rounds"])} for row in found],
    }
    changes |= {name: _adding(_rows(rows[name])) for name in _BY_SCORING}
    return _changed(tables, number, changes, {name: list(columns) for name, columns in rows.items()})


def without_late_scores(tables: Mapping[str, pa.Table], entry: Mapping[str, Any]) -> dict[str, pa.Table]:
    """The tables as they were before `with_late_scores`.

    Args:
        tables: All tables of the run, whether or not the scores are in each of them.
        entry: From `late_entry`.
    """
    own = {*ROUND_COLUMNS, *CLIENT_COLUMNS, *SOME_COLUMNS} - {*_TEST}
    prefixes, scorings = entry["prefixes"], entry["classes"]

    def without(found: list[_Row]) -> list[_Row]:
        return [
            {
                name: value if name in own or Scoring.of_column(name).prefix not in prefixes else None
                for name, value in row.items()
            }
            for row in found
        ]

    def clients(found: list[_Row]) -> list[_Row]:
        return [row for row in without(found) if any(row.get(origin) is not None for origin in _ORIGINS)]

    def classes(found: list[_Row]) -> list[_Row]:
        return [row for row in found if row["scoring"] not in scorings]

    changes: dict[str, _Change] = {"clients": clients, "rounds": without, **dict.fromkeys(_BY_SCORING, classes)}
    return _changed(tables, entry["round"], changes, {})


def _filled(columns: Columns, own: Mapping[str, str]) -> list[str]:
    """Which columns of one round have scores."""
    kept = [name for name in columns if name not in own or name in _TEST]
    return [name for name in kept if any(value is not None for value in columns[name])]


def _rows(columns: Columns) -> list[_Row]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _adding(more: list[_Row]) -> _Change:
    return lambda found: [*found, *more]


def _only(row: _Row, names: Collection[str]) -> _Row:
    return {name: value for name, value in row.items() if name in names}


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
            num_evaluated = sum(any(row.get(origin) is not None for origin in _ORIGINS[1:]) for row in rows)
        elif name == "rounds":
            rows = [{**row, "num_evaluated": num_evaluated} for row in rows]
        schema = table_schema([*table.schema.names, *more.get(name, ())], TABLES[name])
        before, after = table.filter(pc.field("round") < number), table.filter(pc.field("round") > number)
        parts = [widened(before, schema), pa.Table.from_pylist(rows, schema), widened(after, schema)]
        found[name] = pa.concat_tables(parts)
    return found
