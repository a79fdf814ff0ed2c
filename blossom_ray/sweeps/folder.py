"""The folder of a sweep: `sweep.json` says which cells there are, a run folder per cell says how far each one is.

    sweeps/quickstart/
        sweep.json                        cells: folder, identity, settings, seed
        sharing=full-model,seed=0/        a run folder like any other
        sharing=private-head,seed=0/

`sweep.json` changes only when cells are added; what became of a cell stands in its own run folder.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from blossom_ray.errors import BlossomError, RunFolderError
from blossom_ray.locations import local_path
from blossom_ray.results.run import MANIFEST_FILE, Run, locked
from blossom_ray.scenario.identity import identity
from blossom_ray.storage import own_folder, read_file, replacing
from blossom_ray.sweeps.grid import Cell

SWEEP_FILE = "sweep.json"
FORMAT = 1
CellStatus = Literal["not begun", "running", "finished", "failed", "interrupted"]
# Processes of a sweep that was killed may need a moment to notice it.
_LOCK_PATIENCE_S = 15.0


@dataclass(frozen=True)
class SweepCell:
    """A cell as `sweep.json` has it.

    Attributes:
        folder: Name of its run folder inside the sweep's folder.
        identity: Equal for scenarios that give the same numbers.
        setting: Value by path of the keys that the sweep varies, as JSON values; `name` where scenarios differ.
        seed: The seed.
        rounds: Number of rounds.
    """

    folder: str
    identity: str
    setting: Mapping[str, Any]
    seed: int
    rounds: int


class Sweep:
    """A sweep's folder. Made by `open`, or by `create`, which adds cells to what is there.

    Attributes:
        path: The folder.
        cells: All cells, those of earlier commands first.
    """

    def __init__(self, path: Path, cells: tuple[SweepCell, ...]) -> None:
        self.path = path
        self.cells = cells

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the folder of a sweep.

        Raises:
            RunFolderError: There is none, or its `sweep.json` is damaged.
        """
        folder = local_path(path, "the sweep")
        if not is_sweep(folder):
            found = "has no sweep.json" if folder.is_dir() else "does not exist"
            raise RunFolderError(f"{folder}: {found}; expected the folder of a sweep")
        file = folder / SWEEP_FILE
        try:
            tree = json.loads(read_file(file))
            if tree["format"] != FORMAT:
                raise RunFolderError(f"{file}: has format {tree['format']!r}; expected {FORMAT}")
            cells = tuple(SweepCell(**cell) for cell in tree["cells"])
            if any(Path(cell.folder).name != cell.folder for cell in cells):
                raise RunFolderError(f"{file}: a cell's folder leads out of the sweep; expected plain names")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunFolderError(f"{file}: cannot be read ({type(error).__name__}: {error})") from error
        return cls(folder, cells)

    @classmethod
    def create(cls, path: Path, cells: Sequence[Cell]) -> Self:
        """Add cells to the sweep in a folder, which is made where it is missing; cells that it has are kept.

        Raises:
            RunFolderError: The folder cannot be written, or holds something else.
        """
        _make_folder(path)
        if (path / MANIFEST_FILE).exists():
            raise RunFolderError(f"{path}: is a run folder; expected a new folder, or that of a sweep")
        known = {cell.identity: cell for cell in cls.open(path).cells} if is_sweep(path) else {}
        taken = {cell.folder for cell in known.values()}
        for cell in cells:
            if cell.identity not in known:
                folder = _folder_of(path, cell, taken)
                taken.add(folder)
                known[cell.identity] = SweepCell(
                    folder, cell.identity, cell.setting, cell.scenario.seed, cell.scenario.rounds
                )
        sweep = cls(path, tuple(known.values()))
        tree = {"format": FORMAT, "cells": [asdict(cell) for cell in sweep.cells]}
        try:
            for cell in sweep.cells:
                own_folder(path / cell.folder)
            with replacing(path / SWEEP_FILE) as temporary:
                temporary.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise RunFolderError(f"{path}: {error.strerror or error}; expected a folder that can be written") from error
        return sweep

    def folder(self, identity: str) -> Path:
        """The run folder of the cell with this identity; it may not be there yet."""
        (cell,) = (cell for cell in self.cells if cell.identity == identity)
        return self.path / cell.folder

    def status(self, identity: str) -> CellStatus:
        """How far a cell is; `running` also where its process was killed.

        Raises:
            RunFolderError: Its manifest is damaged.
        """
        folder = self.folder(identity)
        if not (folder / MANIFEST_FILE).exists():
            return "not begun"
        found = Run.open(folder).status
        if found in ("running", "finished", "failed", "interrupted"):
            return found  # type: ignore[return-value]  # mypy does not narrow to the literals
        raise RunFolderError(f"{folder / MANIFEST_FILE}: has the status {found!r}; expected that of a run")

    @property
    def runs(self) -> dict[str, Run]:
        """The runs that have begun, by identity of their cell."""
        begun = [cell for cell in self.cells if (self.path / cell.folder / MANIFEST_FILE).exists()]
        return {cell.identity: Run.open(self.path / cell.folder) for cell in begun}

    def __repr__(self) -> str:
        return f"Sweep({str(self.path)!r}, {len(self.cells)} cells)"


def is_sweep(path: Path) -> bool:
    """Whether this is the folder of a sweep."""
    return (path / SWEEP_FILE).is_file()


@contextmanager
def sweep_lock(path: Path) -> Iterator[int]:
    """Hold a sweep's folder, so that one command at a time works in it; yields the descriptor that has the lock.

    Raises:
        RunFolderError: Another sweep works in it.
    """
    _make_folder(path)
    give_up = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            lock = locked(path, "sweep")
            break
        except RunFolderError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.2)
    try:
        yield lock
    finally:
        os.close(lock)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{path}: {error.strerror or error}; expected a folder that can be made") from error


def _folder_of(path: Path, cell: Cell, taken: set[str]) -> str:
    """A cell's name, or with a part of its identity where that folder is another cell's."""
    unique = f"{cell.name}-{cell.identity[:6]}"
    if cell.name in taken:
        return unique
    if (path / cell.name / MANIFEST_FILE).exists() and not _is_run_of(path / cell.name, cell):
        return unique
    return cell.name


def _is_run_of(folder: Path, cell: Cell) -> bool:
    try:
        return identity(Run.open(folder).scenario) == cell.identity
    except BlossomError:
        return False
