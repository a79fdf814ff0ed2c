"""Checkpoints: everything that a run needs to go on, as safetensors and JSON.

    checkpoints/000010/
        checkpoint.json        round, scenario, data fingerprint, the server's block instances, rows and checksums of
                               the run's tables up to this round, with `stop` the best round so far, checksums of all
                               files and of itself
        server.safetensors     values and optimizer state of every shared block instance
        clients-0.safetensors  states of the clients of one host, written by the host itself: `clients/state_files.py`

A checkpoint is written under a temporary name and gets its own once all of it is on disk, so it is whole or absent.
No pickles: reading a checkpoint runs no code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from safetensors.numpy import load_file

from blossom_ray.clients.plan import SentBlock
from blossom_ray.core.blocks import BlockInstance
from blossom_ray.errors import RunFolderError
from blossom_ray.reading.read_back import ReadBack, read_back
from blossom_ray.server import Server
from blossom_ray.storage import (
    own_folder,
    read_file,
    refuse_foreign,
    regular,
    remove,
    save_synced,
    sync,
    write_synced,
    writing,
)

FORMAT = 2
_READ_FORMATS = (1, FORMAT)  # in 1 the files of clients have a tensor for each client and block
TABLES = "tables"
"""The entry of an index that says what the run's tables hold up to its round, as `runs/table_sums.py` has it."""
STOP = "stop"
"""The entry of an index that says how far early stopping is, as `scenario/early_stopping.py` has it."""
_INDEX = "checkpoint.json"
_SERVER = "server.safetensors"
_DIGITS = 6


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        folder: Where it lies.
        index: What `checkpoint.json` says.
    """

    folder: Path
    index: Mapping[str, Any]

    @property
    def round_index(self) -> int:
        """The last round that it holds."""
        return int(self.index["round"])

    @property
    def client_files(self) -> tuple[Path, ...]:
        """Files with clients' states."""
        return tuple(self.folder / name for name in sorted(self.index["files"]) if name != _SERVER)

    @property
    def stop(self) -> Mapping[str, Any]:
        """How far early stopping was, as `scenario/early_stopping.py` has it.

        Raises:
            RunFolderError: It does not say so.
        """
        found: Mapping[str, Any] | None = self.index.get(STOP)
        if found is None:
            raise RunFolderError(f"{self.folder}: does not say how far early stopping was; expected it of this run")
        return found

    def restore(self, server: Server) -> Server:
        """The server as it was, from the untrained one, which gives the blocks' structure.

        Raises:
            RunFolderError: It does not hold these blocks, though its checksums say that it is whole.
        """
        with refuse_foreign(self.folder):
            return self._restored(server)

    def _restored(self, server: Server) -> Server:
        tensors = load_file(self.folder / _SERVER)
        blocks = dict(server.blocks)
        for number, entry in enumerate(self.index["blocks"]):
            instance = BlockInstance.of_column(entry["name"], entry["scope"], entry["key"])
            state = {
                name.rpartition("/")[2]: values
                for name, values in tensors.items()
                if name.startswith(f"{number}/optimizer/")
            }
            values = tensors[f"{number}/values"]
            _check_like(f"values of {instance}", values, blocks[instance].sent.values)
            before = blocks[instance].optimizer_state
            if state.keys() != before.keys():
                raise ValueError(f"optimizer state of {instance} is {sorted(state)}; expected {sorted(before)}")
            for name, moments in before.items():
                _check_like(f"{name} of {instance}", state[name], moments)
            blocks[instance] = replace(
                blocks[instance],
                sent=SentBlock(entry["version"], values),
                optimizer_state=state,
            )
        return Server(blocks)


class CheckpointStore:
    """The `checkpoints` folder of a run.

    Args:
        folder: The folder; made when the first checkpoint is.
        keep: Newest checkpoints that are kept, with those of the best rounds that they name.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def begin(self, round_index: int) -> Path:
        """A new temporary folder for the checkpoint of a round, for hosts to write their files into.

        Raises:
            StorageError: The disk is full.
        """
        temporary = self._folder / f".{_name(round_index)}.partial"
        with writing(temporary):
            own_folder(self._folder)
            self.abandon()
            temporary.mkdir(parents=True)
        return temporary

    def abandon(self) -> None:
        """Remove what was begun and not committed, in this process or by one that was killed."""
        if self._folder.is_symlink():
            return
        for partial in self._folder.glob(".*.partial"):
            remove(partial)

    def commit(self, round_index: int, server: Server, facts: Mapping[str, Any]) -> Checkpoint:
        """Write the server's part and the index, and give the checkpoint its name.

        Args:
            round_index: The round, from `begin`; all hosts have written their files.
            server: The server after that round.
            facts: What a run that resumes must agree with, JSON values.

        Raises:
            StorageError: The disk is full; the checkpoints before are as they were.
        """
        with writing(self._folder):
            return self._commit(round_index, server, facts)

    def _commit(self, round_index: int, server: Server, facts: Mapping[str, Any]) -> Checkpoint:
        temporary = self._folder / f".{_name(round_index)}.partial"
        final = self._folder / _name(round_index)
        save_synced(temporary / _SERVER, _server_tensors(server))
        blocks = [
            {"name": i.label, "scope": str(i.scope), "key": i.key, "version": block.sent.version}
            for i, block in server.blocks.items()
        ]
        paths = sorted(temporary.iterdir())
        files = {path.name: checksum(path) for path in paths}
        sizes = {path.name: path.stat().st_size for path in paths}
        index = {"format": FORMAT, "round": round_index, **facts, "blocks": blocks, "files": files, "bytes": sizes}
        index["checksum"] = _index_checksum(index)
        write_synced(temporary / _INDEX, json.dumps(index, indent=1).encode())
        sync(temporary)
        remove(final)
        temporary.rename(final)
        sync(self._folder)
        names = self._names()
        kept = {*names[-self._keep :], *(self._best(name) for name in names[-self._keep :])}
        for old in names:
            if old not in kept:
                remove(self._folder / old)
        return Checkpoint(final, index)

    def _best(self, name: str) -> str | None:
        """The checkpoint of the best round as another one has it."""
        try:
            best = (_read_index(self._folder / name).get(STOP) or {}).get("best_round")
        except (OSError, ValueError, RunFolderError):
            return None  # of a damaged one, which `newest` tells of
        return None if best is None else _name(best)

    def read(self, round_index: int) -> Checkpoint:
        """The checkpoint of a round.

        Raises:
            RunFolderError: There is none, or it is damaged.
        """
        folder = self._folder / _name(round_index)
        try:
            return _read(folder)
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise RunFolderError(f"{folder}: cannot be read ({error}); expected the best round's checkpoint") from error

    def newest(self, rounds: Container[int] | None = None) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """The newest checkpoint that is whole, and a message for each damaged one that was passed over.

        Args:
            rounds: Only checkpoints of these rounds are looked at; None: all.
        """
        messages: list[str] = []
        for name in reversed(self._names()):
            if rounds is not None and int(name) not in rounds:
                continue
            try:
                return _read(self._folder / name), tuple(messages)
            except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
                messages.append(f"{self._folder / name}: damaged ({error}); the one before it is used")
        return None, tuple(messages)

    def recorded_tables(self) -> dict[int, Mapping[str, Any] | None]:
        """What each checkpoint says of the run's tables, by its round, the newest first.

        None where it says nothing: one of an earlier version, or one that is damaged, which `newest` tells of.
        """
        found: dict[int, Mapping[str, Any] | None] = {}
        for name in reversed(self._names()):
            try:
                tables = _read_index(self._folder / name).get(TABLES)
            except (OSError, ValueError, RunFolderError):
                tables = None
            found[int(name)] = tables if isinstance(tables, Mapping) else None
        return found

    def _names(self) -> list[str]:
        with writing(self._folder):
            own_folder(self._folder)
        if not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.iterdir() if path.name.isascii() and path.name.isdigit())


def _name(round_index: int) -> str:
    return f"{round_index:0{_DIGITS}}"


def check_compatible(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another scenario or other data. The number of rounds may differ: a run may go on to more.

    Args:
        checkpoint: The checkpoint.
        facts: What the run agrees to: as given to `CheckpointStore.commit`.

    Raises:
        RunFolderError: With every difference.
    """
    recorded = {name: checkpoint.index.get(name) for name in facts}
    present = json.loads(json.dumps(facts))
    found = differences(_without_rounds(recorded), _without_rounds(present))
    if found:
        listed = (f"  {difference}" for difference in found)
        raise RunFolderError(f"{checkpoint.folder}: belongs to another run:", *listed)


def _without_rounds(facts: dict[str, Any]) -> dict[str, Any]:
    scenario = facts.get("scenario")
    return {**facts, "scenario": {**scenario, "rounds": None}} if isinstance(scenario, Mapping) else facts


def differences(
    recorded: Mapping[str, Any], present: Mapping[str, Any], path: str = "", *, where: str = "checkpoint"
) -> list[str]:
    """What differs between two trees of plain values, one phrase each; `where` says what holds the first one."""
    found = []
    for key in sorted({*recorded, *present}):
        place = f"{path}.{key}".lstrip(".")
        old, new = recorded.get(key), present.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, place, where=where)
        elif old != new:
            found.append(f"{place} is {old!r} in the {where} and {new!r} now")
    return found


def _check_like(what: str, values: np.ndarray, expected: np.ndarray) -> None:
    if (values.shape, values.dtype) != (expected.shape, expected.dtype):
        raise ValueError(
            f"{what} are {values.dtype}{list(values.shape)}; expected {expected.dtype}{list(expected.shape)}"
        )


def _server_tensors(server: Server) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for number, block in enumerate(server.blocks.values()):
        tensors[f"{number}/values"] = block.sent.values
        for name, values in block.optimizer_state.items():
            tensors[f"{number}/optimizer/{name}"] = values
    return tensors


class _IndexBlock(ReadBack):
    name: str
    scope: str
    key: str
    version: int


class _IndexStop(ReadBack):
    best_round: Annotated[int, Field(ge=1)] | None
    value: float | None
    num_waited: Annotated[int, Field(ge=0)]


class _Index(ReadBack):
    """What an index says, as far as it is relied on."""

    round: Annotated[int, Field(ge=0)]
    blocks: Annotated[tuple[_IndexBlock, ...], Field(strict=False)]
    files: dict[Annotated[str, Field(pattern=r"^[a-z0-9-]+\.safetensors$")], str]
    stop: _IndexStop | None = None


def _read(folder: Path) -> Checkpoint:
    index = _read_index(folder)
    sizes = index.get("bytes", {})
    for name, expected in index["files"].items():
        found = regular(folder / name).stat().st_size
        if found != sizes.get(name, found):  # told apart before a file without an end is read
            raise ValueError(f"{name} has {found} bytes; expected {sizes[name]}")
        if checksum(folder / name) != expected:
            raise ValueError(f"{name} does not have its checksum")
    return Checkpoint(folder, index)


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads(read_file(folder / _INDEX))
    except RecursionError as error:
        raise ValueError(f"{_INDEX} is nested too deeply") from error
    if not isinstance(index, dict) or "format" not in index:
        raise ValueError(f"{_INDEX} has no format")
    if index["format"] not in _READ_FORMATS:
        expected = " or ".join(map(str, _READ_FORMATS))
        raise RunFolderError(f"{folder}: has format {index['format']}; expected {expected}")
    if index.get("checksum") != _index_checksum(index):
        raise ValueError(f"{_INDEX} does not have its checksum")
    try:
        found = read_back(_Index, index, Path(_INDEX))
    except RunFolderError as error:
        raise ValueError(str(error)) from error
    if found.round != int(folder.name):
        raise ValueError(f"{_INDEX} is of round {found.round}")
    return index


def _index_checksum(index: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what an index says, however it is spaced."""
    content = {name: value for name, value in index.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def checksum(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
