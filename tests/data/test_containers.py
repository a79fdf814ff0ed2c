"""The same rows in every container that can hold them are the same data set."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from blossom_ray.data.dataset import Dataset
from blossom_ray.data.sets.table import Table, TableData

ROWS: dict[str, Any] = {
    "acc": [[1.5, -2.0, 0.25], [0.0, 1e-3, 7.0], [3.0, 3.0, 3.0], [2**-20, 1.0, 5.0], [9.0, 8.0, 7.5]],
    "age": [20, 30, 41, 52, 63],
    "label": ["run", "sit", "run", "lie", "sit"],
    "subject": [4, 4, 7, 7, 9],
    "split": ["train", "train", "train", "test", "test"],
}


def load(path: Path, owned: tuple[str, ...] = ("acc", "age"), **values: Any) -> Dataset:
    return Table(
        TableData.model_validate({"dataset": "table", "path": str(path), **values}), owned, "classification"
    ).load()


def of_split(split: str) -> dict[str, Any]:
    chosen = [row for row, own in enumerate(ROWS["split"]) if own == split]
    return {name: [values[row] for row in chosen] for name, values in ROWS.items() if name != "split"}


def as_parquet(path: Path) -> None:
    path.mkdir()
    for split in ("train", "test"):
        table = pa.table({**of_split(split), "split": [split] * len(of_split(split)["age"])})
        pq.write_table(table, path / f"{'ab'[split == 'test']}.parquet")


def as_hive(path: Path) -> None:
    pyarrow.dataset.write_dataset(
        pa.table(ROWS), path, format="parquet", partitioning=["split"], partitioning_flavor="hive"
    )


def as_hub(path: Path) -> None:
    (path / "data").mkdir(parents=True)
    for split in ("train", "test"):
        pq.write_table(pa.table(of_split(split)), path / "data" / f"{split}-00000-of-00001.parquet")


def as_named_files(path: Path) -> None:
    as_hub(path)
    for file in (path / "data").iterdir():
        file.rename(path / file.name)
    (path / "data").rmdir()


def as_split_folders(path: Path) -> None:
    for split in ("train", "test"):
        (path / split).mkdir(parents=True)
        pq.write_table(pa.table(of_split(split)), path / split / "0.parquet")


def save_to_disk(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None, rows: int = 2) -> None:
    """As Hugging Face's `datasets` 5.2 does it: a stream per shard, in the order that `state.json` says."""
    path.mkdir(parents=True)
    table = pa.table(columns)
    starts = range(0, table.num_rows, rows)
    names = [f"data-{number:05d}-of-{len(starts):05d}.arrow" for number in range(len(starts))]
    for name, start in zip(names, starts, strict=True):
        part = table.slice(start, rows)
        with pa.OSFile(str(path / name), "wb") as sink, pa.ipc.new_stream(sink, part.schema) as writer:
            writer.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "b7", "_format_columns": None}
    (path / "state.json").write_text(json.dumps({**state, "_format_kwargs": {}, "_split": None}))
    (path / "dataset_info.json").write_text(json.dumps({"citation": "", "features": features or {}}))


def as_saved(path: Path) -> None:
    for split in ("train", "test"):
        save_to_disk(path / split, of_split(split))
    (path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))


def as_saved_alone(path: Path) -> None:
    save_to_disk(path, ROWS)


def flat() -> dict[str, list[Any]]:
    own = {name: values for name, values in ROWS.items() if name != "acc"}
    return {f"acc{place}": [row[place] for row in ROWS["acc"]] for place in range(3)} | own


def write_csv(path: Path, columns: dict[str, list[Any]], delimiter: str = ",", mark: str = "") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(mark)
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def as_csv(path: Path) -> None:
    write_csv(path.with_suffix(".csv"), flat())


def as_german_csv(path: Path) -> None:
    comma = {
        name: [str(value).replace(".", ",") if isinstance(value, float) else value for value in values]
        for name, values in flat().items()
    }
    write_csv(path.with_suffix(".csv"), comma, ";", "\ufeff")


def as_tabs(path: Path) -> None:
    path.mkdir()
    for split in ("train", "test"):
        chosen = [own == split for own in ROWS["split"]]
        columns = {
            name: [v for v, is_own in zip(values, chosen, strict=True) if is_own] for name, values in flat().items()
        }
        write_csv(path / f"{split}.tsv", {name: own for name, own in columns.items() if name != "split"}, "\t")


def records() -> list[dict[str, Any]]:
    return [dict(zip(ROWS, row, strict=True)) for row in zip(*ROWS.values(), strict=True)]


def as_json_lines(path: Path) -> None:
    path.with_suffix(".jsonl").write_text("\n".join(map(json.dumps, records())) + "\n\n")


def as_json_array(path: Path) -> None:
    path.with_suffix(".json").write_text(json.dumps(records(), indent=1))


def as_npz(path: Path, write: Callable[..., None] = np.savez) -> None:
    columns = {name: np.array(values) for name, values in ROWS.items()}
    write(path.with_suffix(".npz"), **columns | {"acc": np.asfortranarray(columns["acc"].astype(">f8"))})


def as_packed_npz(path: Path) -> None:
    as_npz(path, np.savez_compressed)


TOGETHER = {"modalities": {"acc": {"column": ["acc0", "acc1", "acc2"]}}}
CONTAINERS: dict[str, tuple[Callable[[Path], None], str, dict[str, Any]]] = {
    "hive": (as_hive, "", {}),
    "hub": (as_hub, "", {}),
    "named files": (as_named_files, "", {"split_column": "file_split"}),
    "folders of splits": (as_split_folders, "", {}),
    "saved": (as_saved, "", {}),
    "saved alone": (as_saved_alone, "", {}),
    "csv": (as_csv, ".csv", TOGETHER),
    "csv of a German spreadsheet": (as_german_csv, ".csv", TOGETHER),
    "folder of tabs": (as_tabs, "", TOGETHER),
    "json lines": (as_json_lines, ".jsonl", {}),
    "json array": (as_json_array, ".json", {}),
    "npz": (as_npz, ".npz", {}),
    "packed npz": (as_packed_npz, ".npz", {}),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_same_rows_are_the_same_data_set(container: str, tmp_path: Path) -> None:
    as_parquet(tmp_path / "parquet")
    expected = load(tmp_path / "parquet")
    assert expected.inputs["acc"].tolist() == np.float32(ROWS["acc"][:3]).tolist()
    write, suffix, values = CONTAINERS[container]
    write(tmp_path / "rows")
    found = load((tmp_path / "rows").with_suffix(suffix), **values)
    if container == "hive":  # files in the order of their paths: test first, which is held out
        assert [len(part.labels) for part in (found, found.held_out) if part is not None] == [3, 2]
    assert found.fingerprint() == expected.fingerprint()
    assert found.held_out is not None
    assert found.held_out.inputs["age"].tolist() == [[52.0], [63.0]]
    assert found.notes == ()
