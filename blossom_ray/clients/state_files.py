"""What a host keeps of its clients between rounds, and the file with it that is its part of a checkpoint.

Checksums, which `checkpoint.py` looks after, find damage; `state_problem` finds files that are whole and hold something
else than this run could have written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
from safetensors import safe_open

from blossom_ray.clients.options import ClientOptimizer
from blossom_ray.clients.plan import ClientPlan, ClientState
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import BlockInstance, ClientProfile
from blossom_ray.storage import refuse_foreign, save_synced, writing

INITIAL_STATE = ClientState()
"""The state of a client that has done nothing yet; one for all of them."""

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
    instances = sorted({instance for state in states.values() for instance in state.versions})
    versions = np.full((len(clients), len(instances)), -1, dtype=np.int64)
    tensors: dict[str, np.ndarray] = {}
    for row, client in enumerate(clients):
        state = states[client]
        for column, instance in enumerate(instances):
            versions[row, column] = state.versions.get(instance, -1)
        tensors |= {f"{client}\0private\0{name}": values for name, values in state.private.items()}
        kept = (("local", state.local_state), ("optimizer", state.optimizer_state), ("extra", state.extras))
        for kind, nested in kept:
            tensors |= {
                f"{client}\0{kind}\0{block}\0{name}": values
                for block, arrays in nested.items()
                for name, values in arrays.items()
            }
    trained = [states[client].rounds_trained for client in clients]
    tensors |= {
        "clients": np.array(clients, dtype=np.int64),
        "versions": versions,
        "rounds_trained": np.array([-1 if number is None else number for number in trained], dtype=np.int64),
    }
    described = json.dumps([[i.label, str(i.scope), i.key] for i in instances])
    with writing(path):
        save_synced(path, tensors, {"instances": described})


def read_clients(paths: Iterable[Path], clients: Sequence[int]) -> dict[int, ClientState]:
    """Read the states of some clients, whichever files they are in.

    Args:
        paths: All client files of a checkpoint.
        clients: Ids; a client that no file has gets no entry.

    Raises:
        RunFolderError: A file is damaged, or nothing that `write_clients` writes.
    """
    wanted, states = set(clients), {}
    for path in paths:
        with refuse_foreign(path), safe_open(path, framework="numpy") as file:
            described = json.loads(file.metadata()["instances"])
            instances = [BlockInstance.of_column(*words) for words in described]
            versions = file.get_tensor("versions")
            rows = {int(client): row for row, client in enumerate(file.get_tensor("clients"))}
            names = file.keys()
            trained = file.get_tensor("rounds_trained") if "rounds_trained" in names else np.full(len(rows), -1)
            here = wanted & rows.keys()
            parts: dict[int, list[str]] = {client: [] for client in here}
            for name in names:
                client = name.partition("\0")[0]
                if "\0" in name and int(client) in here:
                    parts[int(client)].append(name)
            for client in here:
                held = {i: int(v) for i, v in zip(instances, versions[rows[client]], strict=True) if v >= 0}
                number = int(trained[rows[client]])
                tensors = {name: file.get_tensor(name) for name in parts[client]}
                states[client] = _client_state(tensors, held, None if number < 0 else number)
    return states


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


def _client_state(
    tensors: Mapping[str, np.ndarray], versions: Mapping[BlockInstance, int], rounds_trained: int | None
) -> ClientState:
    private: dict[str, np.ndarray] = {}
    nested: dict[str, dict[str, dict[str, np.ndarray]]] = {"local": {}, "optimizer": {}, "extra": {}}
    for name, values in tensors.items():
        _, kind, block, *rest = name.split("\0")
        if kind == "private":
            private[block] = values
        else:
            nested[kind].setdefault(block, {})[rest[0]] = values
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
