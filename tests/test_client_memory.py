"""Clients are cheap while they are idle: a row in a table, their private blocks, and little more."""

import gc
import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from blossom_ray import Scenario
from blossom_ray.clients.host import ClientHost
from blossom_ray.core.records import Scoring
from blossom_ray.runtime.preparation import prepare
from blossom_ray.server import initial_server

pytestmark = pytest.mark.slow

NUM_CLIENTS = 800
MODALITY = {"kind": "vector", "shape": [2]}
ENCODER = {"kind": "mlp", "hidden": [2], "dim": 2}


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def in_use() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def scenario(num_clients: int) -> Scenario:
    tree = {
        "rounds": 1,
        "data": {"dataset": "synthetic", "samples": 3 * num_clients, "modalities": {"a": MODALITY, "b": MODALITY}},
        "clients": [{"count": num_clients, "modalities": ["a", "b"]}],
        "model": {"encoders": {"a": ENCODER, "b": ENCODER}, "fusion": {"kind": "mean", "dim": 2}},
        "sharing": "private-head",
        "training": {"engine": "vectorized"},
        "execution": {"runtime": "local", "chunk_size": 100},
    }
    return Scenario.model_validate(tree)


def size_received(num_clients: int, runs: Path) -> int:
    """Bytes that a preparation takes in the process that receives it."""
    sent = pickle.dumps(prepare(scenario(num_clients), runs / str(num_clients)))
    before = in_use()
    received = pickle.loads(sent)
    size = in_use() - before
    del received
    return size


def test_a_client_more_takes_230_bytes_of_what_a_process_receives(tmp_path: Path, traced: None) -> None:
    size_received(NUM_CLIENTS // 2, tmp_path)  # the first load fills caches that stay
    half, all_of_them = size_received(NUM_CLIENTS // 2, tmp_path), size_received(NUM_CLIENTS, tmp_path)
    assert (all_of_them - half) / (NUM_CLIENTS // 2) < 230


def test_an_idle_client_costs_its_private_blocks_and_less_than_a_kilobyte(tmp_path: Path, traced: None) -> None:
    preparation = prepare(scenario(NUM_CLIENTS), tmp_path)
    plan, profiles = preparation.plan, preparation.population.profiles
    server = initial_server(plan, profiles[:1], preparation.scenario.server.optimizer)
    chunks = preparation.population.chunks
    host = ClientHost(plan, profiles, pickle.loads(pickle.dumps(preparation)).open_shards())
    host.evaluate(chunks[0], server.sent, round_index=0, scoring=Scoring.OWN_TEST)
    before = in_use()
    for chunk in chunks:
        host.evaluate(chunk, server.sent, round_index=0, scoring=Scoring.OWN_TEST)
    assert (in_use() - before) / NUM_CLIENTS < 250
    for chunk in chunks:
        host.train(chunk, server.sent, round_index=1, learning_rate=0.1, whole=True)
        host.evaluate(chunk, server.sent, round_index=1, scoring=Scoring.OWN_TEST)
    private_bytes = sum(values.nbytes for values in host._states.settle(0, standing=1).private.values())
    assert private_bytes > 0
    assert (in_use() - before) / NUM_CLIENTS < private_bytes + 1000
    host.close()
