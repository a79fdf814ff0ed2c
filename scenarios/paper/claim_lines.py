"""What docs/results/claim.csv says: scores by scheme and case, what is compared, and who loses."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from grid import CASES, DATA, SEEDS, distinct

from blossom_ray.studies.comparison.intervals import holm, t_interval, t_test

MEASURES = {"accuracy": "accuracy", "macro_f1_present": "macro-F1"}
TITLES = {"uci-har": "UCI-HAR", "av-mnist": "AV-MNIST", "ptb-xl": "PTB-XL"}
SHORT = {"full-model": "FM", "private-head": "PH", "private-head-fusion": "PHF", "local": "local"}
TUNED = "FM + fine-tuning"
SCHEMES = ("FM", TUNED, "PH", "PHF", "local")
AGAINST = ("FM", TUNED, "local")
PRIVATE = {
    "nothing (FM)": "FM", "head (PH)": "PH", "fusion": "fusion", "fusion, head (PHF)": "PHF", "encoders": "encoders",
    "encoders, head": "encoders+head", "encoders, fusion": "encoders+fusion", "everything (local)": "local",
    "learned by client and block": "mixed",
}  # fmt: skip
"""What is private, in words, and the scheme of the grid, or of the blocks' sweeps, that it is."""


class Arm(NamedTuple):
    """A scheme in a case: of which sweeps, data set, partition with division, and with which running statistics."""

    stage: str
    data: str
    case: str
    scheme: str
    norm: str = "same-modalities"


class OfClient(NamedTuple):
    """A client's scores by measure, in percent, and its test samples."""

    scores: Mapping[str, float]
    samples: int


class Compared(NamedTuple):
    """Differences in percent points by seed, with their p and Holm's."""

    data: str
    case: str
    measure: str
    base: str
    values: Sequence[float]
    p: float | None
    adjusted: float | None

    @property
    def is_sure(self) -> bool:
        """Whether the difference survives Holm's correction."""
        return self.adjusted is not None and self.adjusted < 0.05


class Lines:
    """The runs of the data file that have scores, and their scores by arm; those after fine-tuning are an arm."""

    def __init__(self, path: Path) -> None:
        with path.open(encoding="utf-8", newline="") as file:
            ended = list(csv.DictReader(file))
        self.rows = [row for row in ended if row["accuracy"] or row["fine_tuned/accuracy"]]
        self._scores: dict[Arm, dict[int, dict[str, float]]] = {}
        self._clients: dict[Arm, dict[int, dict[int, OfClient]]] = {}
        for row in self.rows:
            if not row["sweep"].startswith("tune/"):
                self._add(row, arm_of(row), "", 0)
                if row["fine_tuned/accuracy"]:
                    self._add(row, arm_of(row)._replace(scheme=TUNED), "fine_tuned/", len(MEASURES))

    def _add(self, row: Mapping[str, str], arm: Arm, start: str, place: int) -> None:
        seed = int(row["seed"])
        scores = {measure: 100 * float(row[start + measure]) for measure in MEASURES}
        self._scores.setdefault(arm, {})[seed] = scores
        found = self._clients.setdefault(arm, {}).setdefault(seed, {})
        for client, (*values, samples) in json.loads(row["clients"]).items():
            own = values[place : place + len(MEASURES)]
            found[int(client)] = OfClient({m: 100 * v for m, v in zip(MEASURES, own, strict=True)}, samples)

    def scores(self, arm: Arm, measure: str) -> list[float]:
        """By seed, in percent; none where a seed is missing."""
        found = self._scores.get(_distinct(arm), {})
        return [found[seed][measure] for seed in SEEDS] if found.keys() >= {*SEEDS} else []

    def clients(self, arm: Arm) -> list[Mapping[int, OfClient]]:
        """By seed and client; none where a seed is missing."""
        found = self._clients.get(_distinct(arm), {})
        return [found[seed] for seed in SEEDS] if found.keys() >= {*SEEDS} else []

    def points(self, own: Arm, base: Arm, measure: str) -> list[float]:
        """By seed the difference in percent points; none where a run is missing."""
        return [a - b for a, b in zip(self.scores(own, measure), self.scores(base, measure), strict=False)]

    def primary(self) -> list[Compared]:
        """PHF against each base in all cases that have both, both measures; Holm's correction is over all of them."""
        found = [
            (data, case, measure, base, points)
            for data in DATA
            for case in CASES
            for measure in MEASURES
            for base in AGAINST
            if (points := self.points(Arm("grid", data, case, "PHF"), Arm("grid", data, case, base), measure))
        ]
        tests = [t_test(values) for *_, values in found]
        return [Compared(*each, p, q) for each, p, q in zip(found, tests, holm(tests), strict=True)]

    def losers(self, arm: Arm, measure: str) -> list[float]:
        """By seed the share of clients, in percent, whose score is below that of their local model."""
        own, alone = self.clients(arm), self.clients(arm._replace(scheme="local"))
        return [
            100 * fmean(clients[one].scores[measure] < others[one].scores[measure] for one in clients)
            for clients, others in zip(own, alone, strict=False)
        ]

    def maps(self, data: str, case: str, measure: str) -> dict[str, list[float]]:
        """By what is private, the difference to FM by seed."""
        found = {}
        for name, scheme in list(PRIVATE.items())[1:]:
            own = Arm("grid" if scheme in SCHEMES else "blocks", data, case, scheme)
            if points := self.points(own, Arm("grid", data, case, "FM"), measure):
                found[name] = points
        return found


def arm_of(row: Mapping[str, str]) -> Arm:
    """The arm that a row is of."""
    stage, _, rest = row["sweep"].partition("/")
    data, partition, split, scheme, *_ = rest.split("_")
    return Arm(stage, data, f"{partition}_{split}", SHORT.get(scheme, scheme), row["statistics"])


def data_of(row: Mapping[str, str]) -> str:
    """The data set that a row is of."""
    return row["sweep"].partition("/")[2].partition("_")[0]


def _distinct(arm: Arm) -> Arm:
    """The arm whose runs stand for it."""
    names = {short: scheme for scheme, short in SHORT.items()}
    return arm._replace(norm=distinct(arm.data, arm.case, names.get(arm.scheme, arm.scheme), arm.norm))


def groups(case: str) -> dict[str, range]:
    """The clients of each kind; they are counted in this order."""
    first, second, both = map(int, case.rpartition("_")[2].split("-"))
    ends = {"first": (0, first), "second": (first, first + second), "both": (first + second, first + second + both)}
    return {name: range(*limits) for name, limits in ends.items() if range(*limits)}


def half(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean."""
    low, high = t_interval(values) or (0.0, 0.0)
    return (high - low) / 2


def title(data: str, case: str) -> str:
    """A case in words."""
    return f"{TITLES[data]} {case.replace('_', ' ')}"
