import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from blossom_ray.algorithms.server_optimizers import FedAdam
from blossom_ray.checkpoint import (
    CheckpointStore,
    check_compatible,
    differences,
)
from blossom_ray.clients.plan import ClientState, SentBlock
from blossom_ray.clients.state_files import read_clients, write_clients
from blossom_ray.core.blocks import BlockInstance, Scope
from blossom_ray.errors import RunFolderError
from blossom_ray.server import Server, ServerBlock

SHARED = BlockInstance("encoder/acc", Scope.SHARED)
GROUP = BlockInstance("fusion", Scope.GROUP, "hôme/1")
FACTS: dict[str, Any] = {"scenario": {"seed": 0, "training": {"batch_size": 4}}, "data_fingerprint": "abc"}


def server(version: int) -> Server:
    section = FedAdam(kind="fedadam")
    blocks = {
        instance: ServerBlock(SentBlock(version, np.arange(3, dtype=np.float32) * version + number), 2, section.init(2))
        for number, instance in enumerate((SHARED, GROUP))
    }
    return Server(blocks)


def state(number: int) -> ClientState:
    return ClientState(
        private={"head": np.full(3, number, dtype=np.float32)},
        local_state={"head": {"norm.running_mean": np.full(2, number / 3, dtype=np.float32)}},
        optimizer_state={"head": {"step": np.array(7.0, dtype=np.float32)}},
        versions={SHARED: number, GROUP: 0},
    )


def commit(store: CheckpointStore, round_index: int, clients: int = 2) -> Path:
    folder = store.begin(round_index)
    write_clients(folder / "clients-0.safetensors", {client: state(client) for client in range(clients)})
    return store.commit(round_index, server(round_index), FACTS).folder


def test_server_and_clients_come_back_as_they_were(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    commit(store, 4)
    checkpoint, messages = store.newest()
    assert checkpoint is not None
    assert (checkpoint.round_index, messages) == (4, ())
    restored = checkpoint.restore(server(0))
    assert restored.digest() == server(4).digest()
    assert restored.blocks[GROUP].sent.version == 4
    second_moment = restored.blocks[GROUP].optimizer_state["second_moment"]
    assert second_moment is not None
    assert second_moment.tolist() == [1e-6, 1e-6]
    states = read_clients(checkpoint.client_files, [1])
    assert set(states) == {1}
    assert states[1].versions == {SHARED: 1, GROUP: 0}
    np.testing.assert_array_equal(states[1].private["head"], state(1).private["head"])
    np.testing.assert_array_equal(
        states[1].local_state["head"]["norm.running_mean"], np.full(2, 1 / 3, dtype=np.float32)
    )
    assert states[1].optimizer_state["head"]["step"].shape == ()


def test_clients_are_found_whichever_file_they_are_in(tmp_path: Path) -> None:
    paths = [tmp_path / "clients-0.safetensors", tmp_path / "clients-1.safetensors"]
    write_clients(paths[0], {0: state(0), 2: state(2)})
    write_clients(paths[1], {1: state(1)})
    states = read_clients(paths, [1, 2, 9])
    assert {client: found.versions[SHARED] for client, found in states.items()} == {1: 1, 2: 2}


def various() -> dict[int, ClientState]:
    """Clients of which some have a block in another shape, some one that others lack, and some nothing."""
    draw = np.random.default_rng(0)

    def values(*shape: int) -> np.ndarray:
        return draw.normal(size=shape).astype(np.float32)

    shared = {SHARED: 4, GROUP: 1}
    return {
        3: ClientState({"head": values(4), "fusion": values(2)}, versions=shared, rounds_trained=2),
        4: ClientState(versions={}, rounds_trained=0),
        7: ClientState(
            {"head": values(4)},
            {"head": {"norm.num_batches_tracked": np.array(5), "norm.running_mean": values(2)}},
            {"head": {"momentum": values(4), "step": np.array(7, np.float32)}},
            shared,
            extras={"prox": {"head": values(4), "": values(2, 3)}, "cloud": {"": np.array(0.5, np.float32)}},
        ),
        12: ClientState({"head": values(6)}, {}, {"head": {"momentum": values(6)}}, {GROUP: 0}, None),
        13: ClientState({"head": values(4)}, {}, {"head": {"step": np.array(9, np.float32)}}, shared, 1),
    }


def plain(state: ClientState) -> dict[str, Any]:
    """A state as something that can be compared, with shapes and types."""

    def of(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.shape, value.dtype.str, value.tolist()
        return {key: of(each) for key, each in value.items()} if isinstance(value, dict) else value

    return {field.name: of(getattr(state, field.name)) for field in fields(state)}


def write_format_1(path: Path, states: dict[int, ClientState]) -> None:
    """The file of clients as it was: a tensor for each client and block."""
    instances = sorted({instance for state in states.values() for instance in state.versions})
    trained = [-1 if own.rounds_trained is None else own.rounds_trained for own in states.values()]
    tensors: dict[str, np.ndarray] = {
        "clients": np.array([*states]),
        "versions": np.array([[own.versions.get(each, -1) for each in instances] for own in states.values()]),
        "rounds_trained": np.array(trained),
    }
    for client, own in states.items():
        tensors |= {f"{client}\0private\0{name}": values for name, values in own.private.items()}
        for kind, nested in (("local", own.local_state), ("optimizer", own.optimizer_state), ("extra", own.extras)):
            for block, arrays in nested.items():
                tensors |= {f"{client}\0{kind}\0{block}\0{name}": values for name, values in arrays.items()}
    save_file(tensors, path, {"instances": json.dumps([[i.label, str(i.scope), i.key] for i in instances])})


@pytest.mark.parametrize("write", [write_clients, write_format_1])
def test_all_that_clients_keep_comes_back_from_either_format(tmp_path: Path, write: Any) -> None:
    path, states = tmp_path / "clients-0.safetensors", various()
    write(path, states)
    for wanted in ([3, 4, 7, 12, 13], [12], [4], [13, 7, 99]):
        found = read_clients([path], wanted)
        assert found.keys() == set(wanted) & states.keys()
        for client, state in found.items():
            assert plain(state) == plain(states[client]), client
    both = read_clients([path], [3, 13])
    assert both[3].versions is both[13].versions


def test_a_file_has_no_more_tensors_for_more_clients(tmp_path: Path) -> None:
    path = tmp_path / "clients-0.safetensors"
    for number in (1, 700):
        write_clients(path, {client: state(client) for client in range(number)})
        with safe_open(path, framework="numpy") as file:
            assert len([*file.keys()]) == 9
        content = path.read_bytes()
        assert int.from_bytes(content[:8], "little") < 1500  # bytes of the header, which has a limit
    last = read_clients([path], [5, 699])[699].private["head"]
    assert last.tolist() == [699] * 3
    assert last.base is None  # it does not hold on to the heads of all


def test_no_clients_are_no_states(tmp_path: Path) -> None:
    write_clients(tmp_path / "clients-0.safetensors", {})
    assert read_clients([tmp_path / "clients-0.safetensors"], [0, 1]) == {}


def test_the_newest_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for round_index in (1, 2, 3):
        commit(store, round_index)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000002", "000003"]


def test_later_checkpoints_than_asked_for_are_passed_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    commit(store, 2)
    commit(store, 4)
    checkpoint, _ = store.newest(range(4))
    assert checkpoint is not None
    assert checkpoint.round_index == 2
    assert store.newest(range(2)) == (None, ())


@pytest.mark.parametrize("file", ["server.safetensors", "clients-0.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_used(tmp_path: Path, file: str, damage: str) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    commit(store, 2)
    path = commit(store, 4) / file
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-5])
    else:
        path.write_bytes(b"\0" + content[1:])
    checkpoint, messages = store.newest()
    assert checkpoint is not None
    assert checkpoint.round_index == 2
    assert len(messages) == 1
    assert "000004: damaged" in messages[0]


def test_a_checkpoint_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    commit(store, 2)
    write_clients(store.begin(4) / "clients-0.safetensors", {0: state(0)})
    checkpoint, messages = store.newest()
    assert checkpoint is not None
    assert (checkpoint.round_index, messages) == (2, ())


def test_another_scenario_or_other_data_are_refused_with_the_difference(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    commit(store, 2)
    checkpoint, _ = store.newest()
    assert checkpoint is not None
    check_compatible(checkpoint, FACTS)
    changed = {**FACTS, "scenario": {"seed": 0, "training": {"batch_size": 8}}, "data_fingerprint": "xyz"}
    with pytest.raises(RunFolderError) as caught:
        check_compatible(checkpoint, changed)
    text = str(caught.value)
    assert "scenario.training.batch_size is 4 in the checkpoint and 8 now" in text
    assert "data_fingerprint is 'abc' in the checkpoint and 'xyz' now" in text
    assert "seed" not in text


def test_another_format_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    path = commit(store, 2) / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(RunFolderError, match="has format 99; expected 1 or 2"):
        store.newest()


def test_differences_name_their_path() -> None:
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 1}, "c": 2}) == []
    assert differences({"a": {"b": 1}}, {"a": {}}) == ["a.b is 1 in the checkpoint and None now"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "checkpoint.json has no format"),
        ("[" * 100_000, "checkpoint.json is nested too deeply"),
        ('{"format": 1, "round": 4, "files": {}, "blocks": []}', "checkpoint.json does not have its checksum"),
    ],
)
def test_an_index_that_is_none_is_damage(tmp_path: Path, text: str, message: str) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    commit(store, 2)
    (commit(store, 4) / "checkpoint.json").write_text(text)
    checkpoint, messages = store.newest()
    assert checkpoint is not None
    assert checkpoint.round_index == 2
    assert len(messages) == 1
    assert message in messages[0]


def test_a_round_that_was_changed_in_the_index_is_damage(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    path = commit(store, 4) / "checkpoint.json"
    path.write_text(path.read_text().replace('"round": 4', '"round": 5'))
    assert store.newest()[0] is None


def test_a_checkpoint_under_the_name_of_another_round_is_damage(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    commit(store, 4).rename(tmp_path / "000003")
    checkpoint, messages = store.newest()
    assert checkpoint is None
    assert "is of round 4" in messages[0]


def test_folders_that_only_look_like_numbers_are_no_checkpoints(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    commit(store, 2)
    (tmp_path / "²").mkdir()
    checkpoint, messages = store.newest()
    assert checkpoint is not None
    assert (checkpoint.round_index, messages) == (2, ())


def test_a_whole_checkpoint_of_other_blocks_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    commit(store, 2)
    checkpoint, _ = store.newest()
    assert checkpoint is not None
    fewer = Server({SHARED: server(0).blocks[SHARED]})
    with pytest.raises(RunFolderError, match="is no checkpoint of this run"):
        checkpoint.restore(fewer)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\xff" * 100])
def test_a_client_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clients-0.safetensors").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"clients-0\.safetensors: is no checkpoint of this run"):
        read_clients([tmp_path / "clients-0.safetensors"], [0])
