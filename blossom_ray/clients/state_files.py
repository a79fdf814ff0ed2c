"""What a host keeps of its clients between rounds, and the file with it that is its part of a checkpoint.

What clients have at the same place of their states in the same shape stands in one tensor, in a row of each:

    clients, rounds_trained   (n,) int64: ids, ascending; rounds in which each has trained, -1 where that is not known
    versions                  (n, i) int64: of the `instances` of the metadata; -1 of one that a client was never sent
    0/rows, 0/values          (m,) int64: which of the n clients, ascending; (m, *shape): what these have at the first
                              of the `places` of the metadata; 1/rows and 1/values at the next, and so on

Checksums, which `checkpoint.py` looks after, find damage; `state_problem` finds files that are whole and hold something
else than this run could have written.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from safetensors import safe_open

from blossom_ray.clients.options import ClientOptimizer
from blossom_ray.clients.plan import ClientPlan, ClientState
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import BlockInstance, ClientProfile
from blossom_ray.storage import refuse_foreign, save_synced, writing

INITIAL_STATE = ClientState()
"""The state of a client that has done nothing yet; one for all of them."""
_DIGEST_OF_NOTHING = sha256().hexdigest()

_Place: TypeAlias = tuple[str, str, str]
"""Which part of a state, which block or copy, and the name in that."""
_Stored: TypeAlias = tuple[int, _Place, np.ndarray]
"""A client, and what it has at a place."""

# Shape and dtype by name.
_Kinds = dict[str, tuple[tuple[int, ...], np.dtype]]


class ClientStates:
    """The states of a host's clients, final and staged.

    What a client has after a round waits until the run goes on, so that a chunk can be trained again: a state that was
    staged in round 3 is final once somebody names 3 as the last round that stands (scoring after round 3, training in
    round 4), and is dropped where only round 2 stands (round 3 is trained again, after an actor was lost).
    """

    def __init__(self) -> None:
        self._final: dict[int, ClientState] = {}
        self._staged: dict[int, tuple[int, ClientState]] = {}
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None

    def settle(self, client: int, *, standing: int) -> ClientState:
        """A client's state, where `standing` is the last round that stands."""
        if client in self._staged:
            round_index, state = self._staged.pop(client)
            if round_index <= standing:
                self._final[client] = state
        return self._final.get(client, INITIAL_STATE)

    def stage(self, client: int, round_index: int, state: ClientState) -> None:
        """Keep what a client has after a round until it is known whether that round stands."""
        self._staged[client] = (round_index, state)

    def put(self, client: int, state: ClientState) -> None:
        """Make a state final at once."""
        self._final[client] = state

    def digest(self, client: int) -> str:
        """SHA-256 (hex) of a client's private blocks and normalisation state, staged ones where there are any."""
        state = self._staged[client][1] if client in self._staged else self._final.get(client, INITIAL_STATE)
        if not state.private and not state.local_state and not state.extras:
            return _DIGEST_OF_NOTHING
        digest = sha256()
        for name, values in sorted(state.private.items()):
            digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
        for kept in (state.local_state, state.extras):
            for name, buffers in sorted(kept.items()):
                for key, values in sorted(buffers.items()):
                    digest.update(f"{name}/{key}".encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def begin_writing(self, path: Path, *, standing: int) -> None:
        """Write all states after a round into a file, in the background.

        States are never changed in place, so what is trained meanwhile does not touch what is written.
        """
        for client in list(self._staged):
            self.settle(client, standing=standing)
        self._writing = self._writer.submit(write_clients, path, dict(self._final))

    def finish_writing(self) -> None:
        """Wait until the file is on disk.

        Raises:
            StorageError: The disk is full.
        """
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def replace(self, states: Mapping[int, ClientState]) -> None:
        """Take these for all that there is."""
        self._final = dict(states)
        self._staged.clear()

    def close(self) -> None:
        """End the thread that writes."""
        self._writer.shutdown()


def write_clients(path: Path, states: Mapping[int, ClientState]) -> None:
    """Write clients' states into one file.

    Args:
        path: The file, in a folder of `CheckpointStore.begin`.
        states: State by client id.

    Raises:
        StorageError: The disk is full.
    """
    clients = sorted(states)
    # Clients that were sent the same share a map of versions.
    maps = {id(state.versions): state.versions for state in states.values()}
    instances = sorted({instance for versions in maps.values() for instance in versions})
    version_rows = {key: [versions.get(instance, -1) for instance in instances] for key, versions in maps.items()}
    rows: dict[tuple[_Place, tuple[int, ...], np.dtype], list[int]] = {}
    arrays: dict[tuple[_Place, tuple[int, ...], np.dtype], list[np.ndarray]] = {}
    for row, client in enumerate(clients):
        for place, values in _arrays(states[client]):
            kind = place, values.shape, values.dtype
            rows.setdefault(kind, []).append(row)
            arrays.setdefault(kind, []).append(values)
    trained = [states[client].rounds_trained for client in clients]
    tensors = {
        "clients": np.array(clients, dtype=np.int64),
        "versions": np.array([version_rows[id(states[client].versions)] for client in clients], dtype=np.int64),
        "rounds_trained": np.array([-1 if number is None else number for number in trained], dtype=np.int64),
    }
    for number, kind in enumerate(arrays):
        tensors[f"{number}/rows"] = np.array(rows[kind], dtype=np.int64)
        tensors[f"{number}/values"] = np.stack(arrays[kind])
    described = {
        "instances": json.dumps([[i.label, str(i.scope), i.key] for i in instances]),
        "places": json.dumps([place for place, _, _ in arrays]),
    }
    with writing(path):
        save_synced(path, tensors, described)


def read_clients(paths: Iterable[Path], clients: Sequence[int]) -> dict[int, ClientState]:
    """Read the states of some clients, whichever files they are in.

    Args:
        paths: All client files of a checkpoint, of this format or of the one before, which has a tensor for each client
            and block.
        clients: Ids; a client that no file has gets no entry.

    Raises:
        RunFolderError: A file is damaged, or nothing that `write_clients` writes.
    """
    wanted, states = set(clients), {}
    for path in paths:
        with refuse_foreign(path), safe_open(path, framework="numpy") as file:
            described = file.metadata()
            instances = [BlockInstance.of_column(*words) for words in json.loads(described["instances"])]
            all_clients, versions = file.get_tensor("clients").tolist(), file.get_tensor("versions")
            trained = [-1] * len(all_clients)
            if "rounds_trained" in file.keys():  # noqa: SIM118  # no mapping
                trained = file.get_tensor("rounds_trained").tolist()
            maps: dict[bytes, dict[BlockInstance, int]] = {}  # one for clients that were sent the same
            here = {row: client for row, client in enumerate(all_clients) if client in wanted}
            arrays: dict[int, dict[_Place, np.ndarray]] = {client: {} for client in here.values()}
            places = [*map(tuple, json.loads(described["places"]))] if "places" in described else None
            stored = _of_single_clients(file, arrays) if places is None else _of_places(file, places, here)
            for client, place, values in stored:
                arrays[client][place] = values
            for row, client in here.items():
                if (key := versions[row].tobytes()) not in maps:
                    own = zip(instances, versions[row].tolist(), strict=True)
                    maps[key] = {instance: version for instance, version in own if version >= 0}
                number = None if trained[row] < 0 else trained[row]
                states[client] = _client_state(arrays[client], maps[key], number)
    return states


def _of_places(file: Any, places: Sequence[_Place], here: Mapping[int, int]) -> Iterator[_Stored]:
    """What a file has of clients, by the rows in which these are told."""
    for number, place in enumerate(places):
        rows = file.get_tensor(f"{number}/rows")
        found = np.flatnonzero(np.isin(rows, [*here]))
        if len(found):
            first, last = int(found[0]), int(found[-1])
            values = file.get_slice(f"{number}/values")[first : last + 1]
            for position in found.tolist():
                # A copy: one client alone is not to hold on to what all have.
                yield here[int(rows[position])], place, np.array(values[position - first])


def _of_single_clients(file: Any, clients: Container[int]) -> Iterator[_Stored]:
    """What a file of the format before has of clients."""
    for name in file.keys():  # noqa: SIM118  # no mapping
        client, *place = name.split("\0")
        if place and int(client) in clients:
            kind, block, *rest = place
            yield int(client), (kind, block, *(rest or [""])), file.get_tensor(name)


def state_problem(state: ClientState, plan: ClientPlan, profile: ClientProfile, workspace: Workspace) -> str | None:
    """What is wrong with a client's state, as one phrase; None if nothing is.

    Args:
        state: From a checkpoint.
        plan: What every client goes by.
        profile: The client.
        workspace: A model of its modality set.
    """
    trained = plan.trained_blocks(profile)
    private = {str(name): workspace.initial_blocks[name] for name, instance in trained.items() if instance.is_private}
    kept = trained.keys() & workspace.trained.keys() if plan.training.keep_optimizer_state else set()
    optimizer: dict[str, _Kinds] = {
        name: _optimizer_kinds(plan.training.optimizer.of(name), workspace.flat[name].num_parameters) for name in kept
    }
    local = {name: _kinds(buffers) for name, buffers in workspace.initial_state.items()}
    own_optimizer = {name: kept for name, kept in state.optimizer_state.items() if ":" not in name}
    own_state = {name: buffers for name, buffers in state.local_state.items() if ":" not in name}
    return (
        _differs("private blocks", _kinds(private), _kinds(state.private))
        or _differs("blocks with normalisation state", local.keys(), own_state.keys())
        or _nested_differ("normalisation state", local, own_state)
        or _extras_differ(state, plan, profile, workspace)
        or _differs("blocks with optimizer state", optimizer.keys(), own_optimizer.keys())
        or _nested_differ("optimizer state", optimizer, own_optimizer)
        or _unknown_versions(state, plan, profile)
    )


def _arrays(state: ClientState) -> Iterator[tuple[_Place, np.ndarray]]:
    for block, values in state.private.items():
        yield ("private", block, ""), values
    for kind, nested in (("local", state.local_state), ("optimizer", state.optimizer_state), ("extra", state.extras)):
        for block, arrays in nested.items():
            for name, values in arrays.items():
                yield (kind, block, name), values


def _client_state(
    arrays: Mapping[_Place, np.ndarray], versions: Mapping[BlockInstance, int], rounds_trained: int | None
) -> ClientState:
    private: dict[str, np.ndarray] = {}
    nested: dict[str, dict[str, dict[str, np.ndarray]]] = {"local": {}, "optimizer": {}, "extra": {}}
    for (kind, block, name), values in arrays.items():
        if kind == "private":
            private[block] = values
        else:
            nested[kind].setdefault(block, {})[name] = values
    return ClientState(private, nested["local"], nested["optimizer"], versions, rounds_trained, extras=nested["extra"])


def _kinds(arrays: Mapping[str, np.ndarray]) -> _Kinds:
    return {name: (values.shape, values.dtype) for name, values in arrays.items()}


def _optimizer_kinds(section: ClientOptimizer, num_parameters: int) -> _Kinds:
    single = np.dtype(np.float32)
    moments = dict.fromkeys(section.moments, ((num_parameters,), single))
    return moments | dict.fromkeys(section.counters, ((), single))


def _differs(what: str, expected: object, found: object) -> str | None:
    # A client that never trained has nothing yet.
    return None if not found or found == expected else f"{what} {_text(found)}; expected {_text(expected)}"


def _nested_differ(
    what: str, expected: Mapping[str, _Kinds], found: Mapping[str, Mapping[str, np.ndarray]]
) -> str | None:
    problems = (_differs(f"{what} of {name}", expected[name], _kinds(arrays)) for name, arrays in found.items())
    return next((problem for problem in problems if problem), None)


def _extras_differ(state: ClientState, plan: ClientPlan, profile: ClientProfile, workspace: Workspace) -> str | None:
    """What an algorithm keeps with a client, and the statistics of its copies."""
    expected: dict[str, _Kinds] = {}
    for part in plan.extra_parts(profile):
        if part.instance.is_private:
            kinds = expected.setdefault(part.instance.copy, {})
            kinds[str(part.instance.name)] = (part.shape, np.dtype(np.float32))
    if unknown := state.extras.keys() - expected.keys():
        return f"the extra {min(unknown)}, which its algorithm does not keep"
    for label in state.local_state:
        copy, _, name = label.rpartition(":")
        if copy and name not in workspace.flat:
            return f"normalisation state of {label}, which it does not hold"
    return _nested_differ("extra", expected, state.extras)


def _unknown_versions(state: ClientState, plan: ClientPlan, profile: ClientProfile) -> str | None:
    unknown = state.versions.keys() - set(plan.sent_blocks(profile))
    return f"a version of {min(map(str, unknown))}, which it does not hold" if unknown else None


def _text(kinds: object) -> str:
    if not isinstance(kinds, Mapping):
        return "{" + ", ".join(sorted(map(str, kinds))) + "}"  # type: ignore[call-overload]  # names of blocks
    return "{" + ", ".join(f"{name}: {dtype}{list(shape)}" for name, (shape, dtype) in sorted(kinds.items())) + "}"
