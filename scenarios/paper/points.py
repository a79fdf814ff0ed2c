"""Prints the tables of points of docs/results/paper-grid.md from docs/results/paper-grid.csv.

    python scenarios/paper/points.py > points.md

Per case and scheme: the difference to full-model aggregation in percent points, paired by seed, as mean and half of its
95 % interval (Student t), the p of its t test, and p adjusted for all of them (Holm 1979).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from blossom_ray.studies.comparison.intervals import holm, t_interval, t_test

CELLS = Path(__file__).parents[2] / "docs" / "results" / "paper-grid.csv"
METRICS = {"accuracy": "accuracy", "macro_f1_present": "macro-F1"}
BASE = "full-model"
SCHEMES = {"private-head": "PH", "private-head-fusion": "PHF", "local": "local"}
USUAL = {"fusion": "attention", "norm_statistics": "shared", "rounds": "60"}
"""What a case is not named after."""
LEVEL = 0.05

Points = tuple[str, str, str, list[float]]


def main() -> None:
    """Print a table per score, and in how far their differences say anything."""
    found = list(points(CELLS))
    p_values = [t_test(values) for *_, values in found]
    adjusted = holm(p_values)
    cells: dict[str, dict[str, dict[str, list[str]]]] = {}
    for (metric, case, scheme, values), p, p_holm in zip(found, p_values, adjusted, strict=True):
        cells.setdefault(metric, {}).setdefault(case, {})[scheme] = [
            with_interval(values), p_text(p), p_text(p_holm)
        ]  # fmt: skip
    for metric, cases in cells.items():
        columns = [word for name in SCHEMES.values() for word in (name, "p", "Holm")]
        print(f"| {metric}, points over FM | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
        for case, schemes in cases.items():
            numbers = [text for name in SCHEMES.values() for text in schemes.get(name, ["-"] * 3)]
            print(f"| {case} | {' | '.join(numbers)} |")
        print()
    alike = sum(len({value > 0 for value in values}) == 1 for *_, values in found)
    excluding, surviving = (sum(p is not None and p < LEVEL for p in each) for each in (p_values, adjusted))
    print(f"{len(found)} differences: {alike} of one sign, {excluding} with p below .05, {surviving} after Holm")


def points(path: Path) -> Iterator[Points]:
    """By score, case and scheme: the differences to full-model aggregation in percent points, in order of seeds."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for metric, metric_name in METRICS.items():
        scores: dict[str, dict[str, dict[str, float]]] = {}
        for row in rows:
            scores.setdefault(case_name(row), {}).setdefault(row["sharing"], {})[row["seed"]] = float(row[metric])
        for case, schemes in scores.items():
            for scheme, name in SCHEMES.items():
                pairs = {seed: (score, schemes[BASE][seed]) for seed, score in schemes.get(scheme, {}).items()}
                if pairs:
                    yield metric_name, case, name, [100 * (own - base) for _, (own, base) in sorted(pairs.items())]


def case_name(row: Mapping[str, str]) -> str:
    """The case, and what it has that most have not."""
    dataset, partition, owned = row["case"].split("_")
    unusual = [row[key] for key, value in USUAL.items() if row[key] != value]
    words = {"local": "own statistics", "200": "200 rounds"}
    return " ".join([dataset, partition, owned, *(words.get(value, value) for value in unusual)])


def with_interval(values: list[float]) -> str:
    """Mean and half of the interval."""
    limits = t_interval(values)
    half = "" if limits is None else f" ± {(limits[1] - limits[0]) / 2:.1f}"
    return f"{math.fsum(values) / len(values):+.1f}{half}"


def p_text(p: float | None) -> str:
    """Three digits, `-` where there is none."""
    return "-" if p is None else "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


if __name__ == "__main__":
    main()
