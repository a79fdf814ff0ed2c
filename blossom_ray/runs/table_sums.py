"""What the tables of a run hold, in a few bytes: per table, how many rows there are and a checksum over them.

Sums grow with the rounds and follow from the rows alone, not from the files: the loop, which writes checkpoints, and
whoever writes or reads the tables get the same. A round whose tables contradict each other counts as lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from blossom_ray.errors import RunFolderError
from blossom_ray.runs.tables import TABLES

if TYPE_CHECKING:
    import pyarrow as pa

TableSums = Mapping[str, Mapping[str, int | str]]
"""By table: `rows`, their number up to a round, and `sha256` (hex) over them; JSON values."""
NO_ROWS: TableSums = {name: {"rows": 0, "sha256": ""} for name in TABLES}


def add_rows(sums: TableSums, rows: Mapping[str, pa.RecordBatch]) -> TableSums:
    """The sums with the rows of one more round."""
    return {name: _add_rows(entry, rows[name]) if name in rows else entry for name, entry in sums.items()}


def sums_by_round(tables: Mapping[str, pa.Table]) -> list[TableSums]:
    """The sums up to each round, from round 0 to the last one that is in `rounds`."""
    num_rounds = tables["rounds"].num_rows
    parts = {name: [*_by_round(table, num_rounds)] for name, table in tables.items()}
    found: list[TableSums] = []
    sums: TableSums = {name: NO_ROWS[name] for name in tables}
    for round_index in range(num_rounds):
        sums = {name: _add_rows(entry, parts[name][round_index]) for name, entry in sums.items()}
        found.append(sums)
    return found


def total_sums(table: pa.Table, name: str) -> Mapping[str, int | str]:
    """The sums of all rows of one table."""
    last = table["round"][-1].as_py() if table.num_rows else -1
    entry = NO_ROWS[name]
    for part in _by_round(table, last + 1):
        entry = _add_rows(entry, part)
    return entry


def lost_rows(tables: Mapping[str, pa.Table]) -> tuple[int, str] | None:
    """The first round in which `clients` or `blocks` do not have the rows that `rounds` speaks of, and what is wrong.

    None where all of them agree. It needs no sums: runs of earlier versions have none.
    """
    import polars as pl

    frames = {name: pl.DataFrame(tables[name]) for name in ("rounds", "clients", "blocks")}
    splits = [name for name in frames["clients"].columns if name in ("num_test_examples", "num_validation_examples")]
    num_evaluated = pl.any_horizontal(pl.col(splits).is_not_null()).sum().cast(pl.Int64)
    num_examples = pl.col("num_train_examples").sum()
    clients = frames["clients"].group_by("round").agg(num_evaluated=num_evaluated, num_examples=num_examples)
    blocks = frames["blocks"].group_by("round").agg(pl.col("bytes_down", "bytes_up").sum())
    for name, found in (("clients", clients), ("blocks", blocks)):
        kept = [column for column in found.columns if column != "round"]
        joined = frames["rounds"].select("round", *kept).join(found, on="round", how="left", suffix=" found")
        for row in joined.sort("round").iter_rows(named=True):
            for column in kept:
                there, told = row[f"{column} found"] or 0, row[column] or 0
                if there != told:
                    return row["round"], f"{name}: {column} of round {row['round']} adds up to {there}; expected {told}"
    return None


def describe_loss(found: Sequence[TableSums], expected: TableSums, round_index: int) -> str:
    """How the tables differ up to a round from what a checkpoint says: which of them, and what is missing.

    Args:
        found: Their sums up to each round.
        expected: What the checkpoint says.
        round_index: Its round.
    """
    told = []
    for name, entry in found[round_index].items():
        if entry == expected.get(name):
            continue
        counts = [0, *(int(sums[name]["rows"]) for sums in found[: round_index + 1])]
        empty = [number for number, (before, here) in enumerate(pairwise(counts)) if before == here]
        rows = expected.get(name, {}).get("rows")
        what = f"{counts[-1]} rows up to round {round_index}, expected {rows}"
        if counts[-1] == rows:
            what = f"other rows up to round {round_index} than were written"
        elif empty and name in ("rounds", "clients", "blocks"):  # the others have no rows in most rounds
            what += f", none of round {_ranges(empty)}"
        told.append(f"{name} has {what}")
    return "; ".join(told)


def check_sums(table: pa.Table, name: str, expected: object, place: object) -> None:
    """Refuse a table of a run that has ended whose rows are not those that were written.

    Args:
        table: The table.
        name: Its name.
        expected: What the manifest says of all tables; anything but a mapping where it says nothing.
        place: The run's folder, for the message.

    Raises:
        RunFolderError: It has others.
    """
    if not isinstance(expected, Mapping) or name not in expected:
        return
    found = total_sums(table, name)
    if found != expected[name]:
        rows = expected[name].get("rows") if isinstance(expected[name], Mapping) else None
        what = "other rows than were written" if found["rows"] == rows else f"{found['rows']} rows; expected {rows}"
        raise RunFolderError(f"{place}: the table {name!r} was damaged or changed: it has {what}")


def _ranges(numbers: list[int]) -> str:
    """Numbers in words: 1, 2, 5 to 9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)


def _by_round(table: pa.Table, num_rounds: int) -> Iterator[pa.RecordBatch]:
    """The rows of each round; rounds are in order."""
    batch = table.combine_chunks().to_batches()
    if not batch:
        empty = table.schema.empty_table().combine_chunks()
        yield from [empty] * num_rounds
        return
    (whole,) = batch
    ends = np.searchsorted(whole["round"].to_numpy(), np.arange(-1, num_rounds), side="right")
    for start, end in pairwise(ends.tolist()):
        yield whole.slice(start, end - start)


def _add_rows(entry: Mapping[str, int | str], rows: pa.RecordBatch) -> Mapping[str, int | str]:
    if not rows.num_rows:
        return entry
    digest = hashlib.sha256(str(entry["sha256"]).encode())
    # A column without values in this round may have come to the file later: it does not count, nor does its place.
    for name in sorted(rows.schema.names):
        column = rows.column(name)
        if column.null_count < rows.num_rows:
            digest.update(f"\0{name}\0{column.type}\0".encode())
            digest.update(_bytes(column))
    return {"rows": int(entry["rows"]) + rows.num_rows, "sha256": digest.hexdigest()}


def _bytes(column: pa.Array) -> bytes:
    """The values of a column, however they lie in memory."""
    import pyarrow as pa

    missing = bytes(np.packbits(column.is_null().to_numpy(zero_copy_only=False)) if column.null_count else b"")
    if pa.types.is_string(column.type):
        texts = [text.encode() for text in column.fill_null("").to_pylist()]
        lengths = np.array([len(text) for text in texts], dtype="<i8").tobytes()
        return b"".join((missing, lengths, *texts))
    return missing + bytes(column.fill_null(0).to_numpy(zero_copy_only=False))
