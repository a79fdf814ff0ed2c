"""Whatever a table of one's own holds: a `Dataset`, or an error of ours."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import LONGEST_CASE_S, ByteEdit, byte_edits, damaged, few, outcome

from blossom_ray.data.dataset import Dataset
from blossom_ray.data.sets.table import Table, TableData
from blossom_ray.errors import BlossomError, DataError

ROWS: dict[str, Any] = {"acc": [0.5, 1.25, -3.0, 7.0], "label": ["a", "b", "a", "b"], "subject": [1, 1, 2, 2]}
RECORDS = [dict(zip(ROWS, row, strict=True)) for row in zip(*ROWS.values(), strict=True)]


def archive(write: Any) -> bytes:
    buffer = io.BytesIO()
    write(buffer, **{name: np.array(values) for name, values in ROWS.items()})
    return buffer.getvalue()


def stream() -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.table(ROWS).schema) as writer:
        writer.write_table(pa.table(ROWS))
    return bytes(sink.getvalue())


FEATURES = {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}
STATE = {"_data_files": [{"filename": "data.arrow"}], "_split": None}
SAVED = {
    "dataset_dict.json": b'{"splits": ["train"]}',
    "train/state.json": json.dumps(STATE).encode(),
    "train/dataset_info.json": json.dumps({"features": FEATURES}).encode(),
    "train/data.arrow": stream(),
}
FILES = {
    "photos/metadata.csv": b"file_name,acc,label\na/1.png,0.5,a\na/1.png,2,b\n",
    "photos/metadata.jsonl": b'{"file_name": "a/1.png", "acc": 0.5, "label": "b"}\n',
    "photos/a/1.txt": "caption é".encode(),
    "photos/a/1.png": b"picture",
}
TABLES = {
    "rows.csv": (
        "acc,label,subject,note\n"
        + "".join(f'{row["acc"]},"{row["label"]}",{row["subject"]},"two\nlines"\n' for row in RECORDS)
    ).encode(),
    "rows.jsonl": "\n".join(map(json.dumps, RECORDS)).encode(),
    "rows.json": json.dumps(RECORDS).encode(),
    "rows.npz": archive(np.savez),
    "packed.npz": archive(np.savez_compressed),
    "saved": SAVED,
    "photos": {name.removeprefix("photos/"): content for name, content in FILES.items()},
}


def check_table(name: str, member: int, edits: tuple[ByteEdit, ...], folder: Path) -> None:
    """Read one table; raises what no user may see, or AssertionError."""
    table = TABLES[name]
    files = (
        {name: table} if isinstance(table, bytes) else {f"{name}/{part}": content for part, content in table.items()}
    )
    hit = [*files][member % len(files)]
    for place, content in files.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damaged(content, edits) if place == hit else content)
    started = time.process_time()
    spec = TableData.model_validate({"dataset": "table", "path": str(folder / name)})
    found = outcome(lambda: Table(spec, ("acc",), "classification").load())
    assert time.process_time() - started < LONGEST_CASE_S
    if isinstance(found, BlossomError):
        assert isinstance(found, DataError)
        assert len(str(found)) < 2000
    else:
        assert isinstance(found, Dataset)
        assert np.isfinite(found.inputs["acc"][:]).all()


@pytest.mark.parametrize("name", TABLES)
@given(member=st.integers(0, 3), edits=byte_edits.map(tuple))
@few(25)
def test_any_table_is_a_data_set_or_a_data_error(
    name: str, member: int, edits: tuple[ByteEdit, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "tables"
    folder.mkdir(exist_ok=True)
    check_table(name, member, edits, folder)
