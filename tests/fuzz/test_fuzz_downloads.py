"""Files of KU-HAR and PTB-XL with changed bytes: a `Dataset`, or an error of ours."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from data_sets import opened
from downloads import DOWNLOADS
from hypothesis import given
from hypothesis import strategies as st
from mutations import LONGEST_CASE_S, ByteEdit, byte_edits, damaged, few, outcome

from blossom_ray.data.dataset import Dataset
from blossom_ray.data.files.cache import FOLDER_VARIABLE
from blossom_ray.data.sets.ptb_xl import LEADS
from blossom_ray.errors import DataError

DATABASE = b"""ecg_id,patient_id,scp_codes,strat_fold,filename_lr
1,15709.0,"{'NORM': 100.0, 'SR': 0.0}",1,records100/00000/00001_lr
2,8.0,"{'IMI': 0.0}",10,records100/00000/00002_lr
"""
STATEMENTS = b",diagnostic,diagnostic_class\nNORM,1.0,NORM\nIMI,1.0,MI\nSR,,\n"


def official_ptb_xl() -> dict[str, bytes]:
    files = {"ptbxl_database.csv": DATABASE, "scp_statements.csv": STATEMENTS}
    for number in (1, 2):
        name = f"{number:05d}_lr"
        lines = [f"{name} 12 100 1000", *(f"{name}.dat 16 1000.0(0)/mV 16 0 0 0 0 {lead}" for lead in LEADS)]
        files[f"records100/00000/{name}.hea"] = "\n".join(lines).encode() + b"\n"
        files[f"records100/00000/{name}.dat"] = np.arange(12_000, dtype="<i2").tobytes()
    return files


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@cache
def originals() -> Mapping[str, Mapping[str, bytes]]:
    """By data set, its files by name."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("ku-har", "ptb-xl"):
            DOWNLOADS[name](Path(folder))
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    table = next(name for name in files if name.endswith(".csv"))
    rows = files[table].splitlines(keepends=True)
    return {
        "ku-har": {table: b"".join(rows[::60])},
        "ptb-xl prepared": {"own.npz": files["own.npz"]},
        "ptb-xl official": official_ptb_xl(),
    }


def reader(name: str, folder: Path) -> Callable[[], Dataset]:
    if name == "ku-har":
        return opened("ku-har", folder).load
    return opened("ptb-xl", folder / "own.npz" if name == "ptb-xl prepared" else folder, labels="multi").load


def check(name: str, files: Mapping[str, bytes], which: int, edits: tuple[ByteEdit, ...], folder: Path) -> None:
    """Read one damaged data set; raises what no user may see, or AssertionError."""
    target = sorted(files)[which % len(files)]
    for member, content in files.items():
        path = folder / member
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damaged(content, edits) if member == target else content)
    started = time.process_time()
    found = outcome(reader(name, folder))
    assert isinstance(found, Dataset | DataError)
    assert time.process_time() - started < LONGEST_CASE_S


@pytest.mark.parametrize("name", ["ku-har", "ptb-xl prepared", "ptb-xl official"])
@given(which=st.integers(0, 5), edits=byte_edits)
@few(25)
def test_any_bytes_are_a_data_set_or_a_data_error(
    name: str, tmp_path_factory: pytest.TempPathFactory, which: int, edits: tuple[ByteEdit, ...]
) -> None:
    check(name, originals()[name], which, edits, tmp_path_factory.mktemp("case"))


@pytest.mark.parametrize("name", ["ku-har", "ptb-xl prepared", "ptb-xl official"])
def test_the_undamaged_files_are_read(name: str, tmp_path: Path) -> None:
    for member, content in originals()[name].items():
        (tmp_path / member).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / member).write_bytes(content)
    with warnings.catch_warnings(action="error"):
        assert reader(name, tmp_path)().num_samples > 0
