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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from blossom_ray.core.locations import local_path
from blossom_ray.errors import BlossomError, RunFolderError
from blossom_ray.reading.read_back import ReadBack, read_back
from blossom_ray.runs.folder import MANIFEST_FILE, Run, lock_folder
from blossom_ray.scenario.identity import identity
from blossom_ray.scenario.tree import Seeds
from blossom_ray.storage import own_folder, read_file, replacing
from blossom_ray.studies.sweeps.grid import Cell

SWEEP_FILE = "sweep.json"
FORMAT = 1
CellStatus = Literal["not begun", "running", "finished", "failed", "interrupted"]
# Processes of a sweep that was killed may need a moment to notice it.
_LOCK_PATIENCE_S = 15.0
_MOST_NAME_BYTES = 255


class SweepCell(ReadBack):
    """A cell as `sweep.json` has it."""

    folder: Annotated[str, Field(min_length=1)]
    """Name of its run folder inside the sweep's folder."""
    identity: Annotated[str, Field(min_length=1)]
    """Equal for scenarios that give the same numbers."""
    setting: dict[str, Any]
    """Value by path of the keys that the sweep varies, as JSON values; `name` where scenarios differ."""
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    """The seed."""
    training_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """The seed of training, where it is another one."""
    rounds: Annotated[int, Field(ge=1)]
    """Number of rounds."""

    @property
    def seeds(self) -> Seeds:
        """The seed of the federation and the seed of training."""
        return Seeds(self.seed, self.seed if self.training_seed is None else self.training_seed)

    @field_validator("folder")
    @classmethod
    def _is_plain(cls, name: str) -> str:
        if "/" in name or "\0" in name or name in (".", "..") or len(name.encode()) > _MOST_NAME_BYTES:
            raise ValueError(f"a plain name of at most {_MOST_NAME_BYTES} bytes")
        return name


class _SweepFile(ReadBack):
    """What `sweep.json` says."""

    format: int
    """How it is written."""
    cells: Annotated[tuple[SweepCell, ...], Field(strict=False)]
    """All cells."""

    @model_validator(mode="after")
    def _are_apart(self) -> Self:
        for values in ([cell.folder for cell in self.cells], [cell.identity for cell in self.cells]):
            if len(set(values)) < len(values):
                raise ValueError("cells of which each has a folder and an identity of its own")
        return self


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
        except (OSError, ValueError, RecursionError) as error:
            raise RunFolderError(f"{file}: cannot be read ({type(error).__name__}: {error})") from error
        version = tree.get("format", FORMAT) if isinstance(tree, dict) else FORMAT
        if version != FORMAT:
            raise RunFolderError(f"{file}: has format {version!r}; expected {FORMAT}")
        return cls(folder, read_back(_SweepFile, tree, file).cells)

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
                    folder=folder,
                    identity=cell.identity,
                    setting=dict(cell.setting),
                    seed=cell.scenario.seed,
                    training_seed=cell.scenario.training_seed,
                    rounds=cell.scenario.rounds,
                )
        sweep = cls(path, tuple(known.values()))
        tree = {"format": FORMAT, "cells": [cell.model_dump(exclude_defaults=True) for cell in sweep.cells]}
        try:
            for added in sweep.cells:
                own_folder(path / added.folder)
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
        return Run.open(folder).status if (folder / MANIFEST_FILE).exists() else "not begun"

    @property
    def runs(self) -> dict[str, Run]:
        """The runs that have begun, by identity of their cell."""
        begun = [cell for cell in self.cells if (self.path / cell.folder / MANIFEST_FILE).exists()]
        return {cell.identity: Run.open(self.path / cell.folder) for cell in begun}

    def __repr__(self) -> str:
        return f"Sweep({str(self.path)!r}, {len(self.cells)} cells)"


def is_sweep(path: Path) -> bool:
    """Whether this is the folder of a sweep."""
    return os.path.isfile(path / SWEEP_FILE)  # False for what is no path at all, too


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
            lock = lock_folder(path, "sweep")
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
    is_free = cell.name not in taken
    if is_free and (path / cell.name / MANIFEST_FILE).exists():
        try:
            is_free = identity(Run.open(path / cell.name).scenario) == cell.identity
        except BlossomError:
            is_free = False
    return cell.name if is_free else f"{cell.name}-{cell.identity[:6]}"
