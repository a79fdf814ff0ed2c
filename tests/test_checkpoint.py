import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
    with pytest.raises(RunFolderError, match="has format 99; expected 1"):
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
