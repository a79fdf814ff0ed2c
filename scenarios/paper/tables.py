"""Prints the tables of docs/results/paper-grid.md from the folders of the grid's sweeps.

    python scenarios/paper/tables.py SWEEPS --metric accuracy > tables.md

SWEEPS holds one folder per file of the grid, `SWEEPS/uci-har_dirichlet_5-5-0` and so on, each made by

    blossom-ray sweep scenarios/paper/uci-har_dirichlet_5-5-0.yaml --set data.path=PATH \
        --vary sharing=full-model,private-head,private-head-fusion,local --seeds 3 --out SWEEPS/uci-har_dirichlet_5-5-0

A cell that was not run is shown as a dash, one with fewer seeds than asked for says how many it has.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from write import BASES, CASES, PARTITIONS

from blossom_ray import BlossomError, compare

COLUMNS = {
    "FM": ("full-model", "plain"),
    "FM + fine-tuning": ("full-model", "fine-tuned"),
    "PH": ("private-head", "plain"),
    "PHF": ("private-head-fusion", "plain"),
    "local": ("local", "plain"),
}
"""Heading, and the sharing scheme and scoring that `compare` tells apart."""

NOT_RUN = "-"
ROUNDS = (20, 60)
"""The rounds up to which gains are shown."""

Rows = Mapping[tuple[str, str], Mapping[str, Any]]


def main() -> None:
    """Print the tables of every data set of which something was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", type=Path, help="folder with a folder per file of the grid")
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of a complete cell")
    arguments = parser.parse_args()
    for dataset in BASES:
        found = {
            case: tables
            for case in (f"{dataset}_{partition}_{name}" for partition in PARTITIONS for name in CASES)
            if (tables := rows_by_round(arguments.sweeps / case, arguments.metric))
        }
        if found:
            print(f"### {dataset}: {arguments.metric}\n")
            print_scores({case: tables[ROUNDS[-1]] for case, tables in found.items()}, arguments.seeds)
            print_gains(found, arguments.seeds)


def rows_by_round(sweep: Path, metric: str) -> dict[int, Rows]:
    """By round up to which it looks: the rows over all clients, by scheme and scoring; empty where nothing was run."""
    tables = {}
    for round_index in ROUNDS:
        try:
            table = compare(sweep, metric=metric, up_to=round_index).table
        except BlossomError:
            return {}
        rows = [row for row in table.to_dicts() if row["modalities"] == "all clients"]
        tables[round_index] = {(row["sharing"], row.get("scoring", "plain")): row for row in rows}
    return tables


def print_scores(found: Mapping[str, Rows], seeds: int) -> None:
    """A line per case: scores in percent, mean and half the width of the 95 % interval over seeds."""
    print(f"| case | {' | '.join(COLUMNS)} |\n|---|{'---:|' * len(COLUMNS)}")
    for case, rows in found.items():
        cells = [cell(rows.get(key), _summary(key[1]), 100, seeds) for key in COLUMNS.values()]
        print(f"| {_short(case)} | {' | '.join(cells)} |")
    print()


def print_gains(found: Mapping[str, Mapping[int, Rows]], seeds: int) -> None:
    """A line per case and number of rounds: gains over FM in percent, paired by seed."""
    others = list(COLUMNS)[1:]
    print(f"| gain over FM, % | rounds | {' | '.join(others)} |\n|---|---:|{'---:|' * len(others)}")
    for case, tables in found.items():
        for round_index, rows in tables.items():
            keys = [COLUMNS[name] for name in others]
            cells = [cell(rows.get(key), f"gain_{_summary(key[1])}", 1, seeds) for key in keys]
            print(f"| {_short(case)} | {round_index} | {' | '.join(cells)} |")
    print()


def cell(row: Mapping[str, Any] | None, name: str, scale: float, seeds: int) -> str:
    """A number of a row with its interval."""
    if row is None or row[name] is None:
        return NOT_RUN
    text = f"{scale * row[name]:+.1f}" if name.startswith("gain") else f"{scale * row[name]:.1f}"
    if row["interval"] == "seeds":
        text += f" ± {scale * (row[f'{name}_high'] - row[f'{name}_low']) / 2:.1f}"
    count = row["num_pairs"] if name.startswith("gain") else row["num_seeds"]
    return text if count == seeds else f"{text} ({count} seed{'s' * (count > 1)})"


def _summary(scoring: str) -> str:
    # Clients are fine-tuned in every 20th round only, so a mean over five of these would reach back to round 20.
    return "final" if scoring == "fine-tuned" else "last5"


def _short(case: str) -> str:
    return case.partition("_")[2].replace("_", " ")


if __name__ == "__main__":
    main()
