"""Tables as people with data of their own bring them: clients, subjects, recordings and gaps as they are, raw units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

ACTIONS = {"acc": ((24, 3), 9.8), "gyro": ((24, 3), 120.0), "skeleton": ((12, 12), 1.5)}
"""Shape and size in raw units of the modalities of `actions`, like those of UTD-MHAD."""
OWNERS: Mapping[str, tuple[str, ...]] = {
    "s1": ("acc", "gyro"),
    "s2": ("acc", "gyro", "skeleton"),
    "s3": ("skeleton",),
    "s4": ("acc", "gyro"),
    "s5": ("acc", "gyro", "skeleton"),
    "s6": ("skeleton",),
}


def actions(
    path: Path,
    *,
    column: str = "client",
    num_classes: int = 4,
    num_trials: int = 8,
    shapes: Mapping[str, tuple[tuple[int, ...], float]] = ACTIONS,
    noise: float = 0.5,
) -> None:
    """Actions of six subjects with some of the modalities each, and of two others, held out, with all of them.

    A trial is a row; the whole number `trial` is no modality. Rows are in no order.
    """
    draw = np.random.default_rng(0)
    people = {**OWNERS, "s7": tuple(shapes), "s8": tuple(shapes)}
    waves = {(name, label): _wave(draw, shape) for name, (shape, _) in shapes.items() for label in range(num_classes)}
    rows = []
    for person, owned in people.items():
        style = {name: 0.3 * _wave(draw, shape) for name, (shape, _) in shapes.items()}
        for label in range(num_classes):
            for trial in range(num_trials):
                values = {
                    name: size * (1 + waves[name, label] + style[name] + noise * draw.normal(size=shape))
                    for name, (shape, size) in shapes.items()
                }
                rows.append(
                    {column: person, "label": f"a{label + 1}", "trial": trial + 1}
                    | {"split": "held-out" if person in ("s7", "s8") else "train"}
                    | {name: value.tolist() if name in owned else None for name, value in values.items()}
                )
    _write(path, rows, draw)


def falls(
    path: Path,
    *,
    num_clients: int = 6,
    num_recordings: int = 24,
    steps: int = 32,
    classes: Sequence[float] = (0.5, 0.3, 0.2),
    noise: float = 0.5,
) -> None:
    """Activities of people, some of whom wear both sensors; three windows of a recording overlap by half.

    Classes are imbalanced, and half of the people never do the last one, a fall. Two more people are held out.
    """
    draw = np.random.default_rng(0)
    kinds = {"acc": ((2 * steps, 3), 1000.0), "gyro": ((2 * steps, 3), 30.0)}
    waves = {(name, label): _wave(draw, shape) for name, (shape, _) in kinds.items() for label in range(len(classes))}
    owned = [("acc",), ("gyro",), ("acc", "gyro")]
    rows = []
    for person in range(num_clients + 2):
        is_held_out = person >= num_clients
        names = owned[2 if is_held_out else person % 3]
        style = {name: 0.3 * _wave(draw, shape) for name, (shape, _) in kinds.items()}
        for recording in range(num_recordings):
            never_falls = person % 2 == 1 and not is_held_out
            shares = np.array([*classes[:-1], 0.0 if never_falls else classes[-1]])
            label = int(draw.choice(len(classes), p=shares / shares.sum()))
            whole = {
                name: size * (waves[name, label] + style[name] + noise * draw.normal(size=shape)) + size
                for name, (shape, size) in kinds.items()
            }
            rows += [
                {"client": person, "recording": f"p{person}-r{recording}", "label": label}
                | {"split": "held-out" if is_held_out else "train"}
                | {n: v[start : start + steps].tolist() if n in names else None for n, v in whole.items()}
                for start in (0, steps // 2, steps)
            ]
    _write(path, rows, draw)


def patients(path: Path, *, num_rows: int = 600) -> None:
    """Patients as rows of plain numbers, in units from years to thousandths; nobody says whose they are."""
    draw = np.random.default_rng(0)
    is_ill = draw.integers(0, 2, num_rows)
    hidden = is_ill[:, np.newaxis] + 0.7 * draw.normal(size=(num_rows, 6))
    units = {"age": 15, "weight": 12, "income": 20_000, "sodium": 3, "troponin": 0.002, "albumin": 0.4}
    offsets = {"age": 55, "weight": 75, "income": 50_000, "sodium": 139, "troponin": 0.01, "albumin": 4.1}
    columns = {name: offsets[name] + unit * hidden[:, place] for place, (name, unit) in enumerate(units.items())}
    lab = 200 + 40 * (is_ill[:, np.newaxis] * np.linspace(-1, 1, 12) + draw.normal(size=(num_rows, 12)))
    frame = pl.DataFrame({**columns, "lab": lab.tolist(), "room": draw.integers(0, 90, num_rows), "label": is_ill})
    frame.write_parquet(path)


def _wave(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A smooth curve per channel, of root mean square 1."""
    steps = np.arange(shape[0])[:, np.newaxis] / shape[0]
    phases, speeds = draw.uniform(0, 2 * np.pi, shape[1]), draw.integers(1, 4, shape[1])
    wave: np.ndarray = np.sqrt(2) * np.sin(2 * np.pi * speeds * steps + phases)
    return wave


def _write(path: Path, rows: Sequence[Mapping[str, object]], draw: np.random.Generator) -> None:
    order = draw.permutation(len(rows))
    pl.DataFrame([rows[row] for row in order.tolist()], infer_schema_length=None).write_parquet(path)
