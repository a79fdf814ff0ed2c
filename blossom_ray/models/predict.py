"""Predictions for samples of your own, as CSV: `python predict.py TABLE`.

TABLE is a Parquet or Arrow (Feather) file with a row per sample, or an .npz archive with an array per modality. What is
null (in an archive NaN throughout) is missing in that row. Printed are row, prediction, and each class's probability,
of several tasks side by side; nothing behind the number of a row that has none of the model's modalities.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blossom_ray.models.standalone import StandaloneModel, load, tasks_of

Samples = dict[str, tuple[np.ndarray, np.ndarray]]
"""By modality which rows have it, (N,) bool, and values (N, *shape) float32, zeros where a row lacks it."""


def read_samples(path: Path, told: Mapping[str, Any]) -> Samples:
    """The samples of a file, in the units of the data; modalities that it does not have are left out.

    Args:
        path: The file.
        told: What `model.json` says.

    Raises:
        ValueError: It has none, or values of another shape or that are not finite.
    """
    found: Samples = {}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            for name in [name for name in told["modalities"] if name in arrays]:
                rows = arrays[name].reshape(len(arrays[name]), -1)
                present = ~np.isnan(rows).all(axis=1)
                found[name] = _filled(name, present, rows[present], told)
    else:
        table = _table(path)
        for name, section in told["modalities"].items():
            if set(section["columns"]) <= set(table.column_names):
                if "decoding" in section:
                    made = f"decoded as {section['decoding']['kind']}"
                    made += ", then given to a frozen model" if "features" in section else ""
                    raise ValueError(
                        f"{name} is {made}, which this code does not do; expected an .npz archive with its arrays, of "
                        f"shape {told['input_shapes'][name]}"
                    )
                columns = [table[column].combine_chunks() for column in section["columns"]]
                present = np.logical_and.reduce([each.is_valid().to_numpy(zero_copy_only=False) for each in columns])
                rows = np.concatenate([_numbers(each, present) for each in columns], axis=1)
                found[name] = _filled(name, present, rows, told)
    if not found:
        raise ValueError(f"{path} has none of the modalities {', '.join(told['modalities'])}")
    return found


def outputs(model: StandaloneModel, samples: Samples, batch_size: int) -> dict[str, np.ndarray]:
    """What the model gives for each row by task, (N, O) float32: logits, or values in a regression; else NaN.

    Args:
        model: The model.
        samples: In the units of the data.
        batch_size: Rows per forward pass; another one can change last bits.

    Raises:
        ValueError: No row has a modality, or nothing can stand for one that a row lacks.
    """
    names = list(samples)
    has = np.stack([samples[name][0] for name in names], axis=1)
    if not has.any():
        raise ValueError(f"no row has any of {', '.join(names)}")
    inputs = {name: torch.from_numpy(model.prepared(name, samples[name][1])) for name in names}
    observed = {name: torch.from_numpy(samples[name][0]) for name in names}
    tasks = tasks_of(model.description)
    found = {task: np.full((len(has), len(told["outputs"])), np.nan, np.float32) for task, told in tasks.items()}
    # A fusion of the author's own sees batches whose rows have the same modalities.
    is_own = any("factory" in made for name, made in model.description["blocks"].items() if name[:6] == "fusion")
    kinds = np.unique(has, axis=0, return_inverse=True)[1].reshape(-1) if is_own else np.zeros(len(has), np.int64)
    with torch.inference_mode():
        for kind in np.unique(kinds):
            rows = np.flatnonzero((kinds == kind) & has.any(axis=1))
            for start in range(0, len(rows), batch_size):
                own = rows[start : start + batch_size]
                batch, present = ({name: given[own] for name, given in of.items()} for of in (inputs, observed))
                given_outputs = model(batch, present)
                for task, values in ({"": given_outputs} if "" in found else given_outputs).items():
                    found[task][own] = values.numpy()
    return found


def all_predictions(told: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> Iterator[list[Any]]:
    """Header and rows of what is printed, from `outputs`; of several tasks the columns begin with the task's name."""
    parts = [
        [[f"{task}/{each}" if task and row == 0 and each != "row" else each for each in cells] for row, cells in listed]
        for task, own in tasks_of(told).items()
        for listed in [enumerate(predictions(own, values[task]))]
    ]
    for first, *others in zip(*parts, strict=True):
        yield [*first, *(cell for cells in others for cell in cells[1:])]


def predictions(told: Mapping[str, Any], values: np.ndarray) -> Iterator[list[Any]]:
    """The same of one task. Cells are empty where a row has nothing to predict from."""
    task, names = told["task"], told["outputs"]
    has_none = np.isnan(values).all(axis=1)
    if task == "regression":
        yield ["row", *names]
        yield from ([row, *([""] * len(own) if has_none[row] else own)] for row, own in enumerate(values.tolist()))
        return
    logits = torch.from_numpy(values)
    probabilities = logits.softmax(dim=1) if task == "classification" else logits.sigmoid()
    yield ["row", "prediction", *names]
    for row, own in enumerate(probabilities.tolist()):
        if has_none[row]:
            yield [row, "", *[""] * len(own)]
            continue
        chosen = [int(values[row].argmax())] if task == "classification" else np.flatnonzero(values[row] > 0)
        yield [row, " ".join(names[index] for index in chosen), *own]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(",")[0])
    parser.add_argument("table", type=Path, help="Parquet, Arrow (Feather) or .npz")
    parser.add_argument("--batch-size", type=int, help="rows per forward pass; that of the run unless given")
    given = parser.parse_args()
    torch.set_num_threads(1)  # as the run computed: how many there are can change the order of sums
    try:
        model = load(Path(__file__).parent)
        told = model.description
        samples = read_samples(given.table, told)
        for name in [name for name in told["modalities"] if name not in samples]:
            print(f"note: {given.table} has no {name}, which is missing in all rows", file=sys.stderr)
        values = outputs(model, samples, given.batch_size or told["batch_size"])
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    csv.writer(sys.stdout).writerows(all_predictions(told, values))


def _table(path: Path) -> Any:
    from pyarrow import feather, parquet

    if path.is_dir():
        return parquet.read_table(path)
    with path.open("rb") as file:  # what it is called says nothing
        is_parquet = file.read(4) == b"PAR1"
    return (parquet if is_parquet else feather).read_table(path)


def _numbers(column: Any, present: np.ndarray) -> np.ndarray:
    """The numbers of the rows of an Arrow column that are present, (n, numbers of a row)."""
    import pyarrow as pa

    shape, order = (), None
    if isinstance(column.type, pa.FixedShapeTensorType):
        shape, order, column = column.type.shape, column.type.permutation, column.storage
    column = column.filter(pa.array(present))
    number = len(column)
    while hasattr(column, "flatten") and pa.types.is_nested(column.type):
        column = column.flatten()
    values = (column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column).to_numpy(zero_copy_only=False)
    if order is not None:
        values = values.reshape(number, *shape).transpose(0, *(1 + axis for axis in order))
    found: np.ndarray = values.reshape(number, -1)
    return found


def _filled(name: str, present: np.ndarray, rows: np.ndarray, told: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """An entry of `Samples` from the rows (n, numbers of a row) that are present."""
    shape = told["input_shapes"][name]
    if len(rows) and rows.shape[1] != math.prod(shape):
        raise ValueError(f"{name} has {rows.shape[1]} values in a row; expected {math.prod(shape)}, of shape {shape}")
    if told["modalities"][name]["nan"] == "unobserved":
        is_torn = np.isnan(rows.astype(np.float32)).any(axis=1)
        present, rows = present.copy(), rows[~is_torn]
        present[present] = ~is_torn
    values = np.zeros((len(present), *shape), np.float32)
    values[present] = rows.reshape(-1, *shape)
    if not np.isfinite(values).all():
        row = int((~np.isfinite(values.reshape(len(values), -1)).all(axis=1)).argmax())
        raise ValueError(f"{name}, row {row}: a value is not finite")
    return present, values


if __name__ == "__main__":
    main()
