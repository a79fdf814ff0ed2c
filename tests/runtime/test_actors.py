"""What is particular to Ray: what crosses process boundaries, and what happens when a process fails."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray import cloudpickle
from torch import nn

from blossom_ray import RunError, Scenario, simulate
from blossom_ray.clients.host import ClientHost
from blossom_ray.errors import ActorLostError, ActorTimeoutError, ClientError
from blossom_ray.runtime import actors
from blossom_ray.runtime.preparation import Preparation, prepare
from blossom_ray.server import initial_server
from blossom_ray.simulation import run_rounds

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def on_ray(small_scenario: Scenario) -> Scenario:
    return small_scenario.override({"execution.runtime": "ray", "execution.clients_per_actor": 3})


def start(scenario: Scenario, folder: Path) -> tuple[Preparation, actors.ActorRuntime]:
    preparation = prepare(scenario, folder)
    handles = actors.spawn_clients(scenario, stacks=scenario.training.may_stack)
    return preparation, actors.ActorRuntime(preparation, handles)


def values_after_one_round(scenario: Scenario, folder: Path, block: str) -> list[bytes]:
    """Each client's values of a block after one round, from a host in this process: the same bits as in the actors."""
    preparation = prepare(scenario, folder)
    plan, population = preparation.plan, preparation.population
    host = ClientHost(plan, population.profiles, preparation.open_shards())
    server = initial_server(plan, population.representatives(), scenario.server.optimizer)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    values = []
    for chunk in population.chunks:
        part = host.train(chunk, server.sent, round_index=1, learning_rate=0.05, whole=False)
        sent = [own.values for instance, own in part.sent.items() if instance.name == block]
        values += [row.tobytes() for stacked in sent for row in stacked]
    torch.set_num_threads(threads)
    if not values:
        states = [host._states.settle(client, standing=1) for client in host.clients]
        values = [state.private[block].tobytes() for state in states]
    host.close()
    return values


def received_by_the_driver(scenario: Scenario, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Everything that the process with the loop gets from Ray during a run."""
    received: list[bytes] = []
    get = ray.get

    def watched_get(refs: Any, **options: Any) -> Any:
        value = get(refs, **options)
        # In band, so that the bytes of arrays stand in the pickle as they are.
        received.append(cloudpickle.dumps(value, protocol=4))
        return value

    monkeypatch.setattr(ray, "get", watched_get)
    preparation, runtime = start(scenario, folder)
    server = initial_server(preparation.plan, preparation.population.representatives(), scenario.server.optimizer)
    for _ in run_rounds(preparation, runtime, server):
        pass
    runtime.close()
    return b"".join(received)


def test_no_private_block_ever_reaches_the_driver(
    on_ray: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = on_ray.override({"sharing": "private-head-fusion", "rounds": 1, "execution.clients_per_actor": 1})
    secrets = [
        values for block in ("fusion", "head") for values in values_after_one_round(scenario, tmp_path / block, block)
    ]
    assert len(secrets) == 2 * scenario.num_clients
    everything = received_by_the_driver(scenario, tmp_path / "run", monkeypatch)
    assert not [secret for secret in secrets if secret in everything]


def test_the_same_search_finds_a_head_that_is_shared(
    on_ray: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = on_ray.override({"sharing": "full-model", "rounds": 1, "execution.clients_per_actor": 1})
    heads = values_after_one_round(scenario, tmp_path / "copy", "head")
    assert len(heads) == scenario.num_clients
    everything = received_by_the_driver(scenario, tmp_path / "run", monkeypatch)
    assert all(head in everything for head in heads)


def test_a_client_s_own_error_arrives_as_it_was(on_ray: Scenario) -> None:
    class Broken(nn.Module):
        def forward(self, fused: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise RuntimeError("no such thing")
            return fused[:, :3]

    scenario = on_ray.override({"model.head": {"kind": "custom", "factory": lambda *_: Broken()}})
    with pytest.raises(ClientError, match="client 0, round 1: RuntimeError: no such thing") as caught:
        simulate(scenario)
    assert "in forward" in caught.value.details


def test_an_actor_that_is_lost_too_often_is_named_and_ends_the_run(on_ray: Scenario) -> None:
    class Deadly(nn.Module):
        def forward(self, fused: torch.Tensor) -> torch.Tensor:
            if self.training:
                os.kill(os.getpid(), signal.SIGKILL)
            return fused[:, :3]

    scenario = on_ray.override(
        {"model.head": {"kind": "custom", "factory": lambda *_: Deadly()}, "failures.max_retries": 1}
    )
    with pytest.raises(ActorLostError, match=r"round 1, training: actor [01] with client . .*was lost 2 times"):
        simulate(scenario)


def test_a_client_that_hangs_is_given_up(on_ray: Scenario) -> None:
    class Hanging(nn.Module):
        def forward(self, fused: torch.Tensor) -> torch.Tensor:
            if self.training:
                time.sleep(60)
            return fused[:, :3]

    scenario = on_ray.override(
        {
            "model.head": {"kind": "custom", "factory": lambda *_: Hanging()},
            "execution.timeout_s": 2.0,
            "failures.max_retries": 0,
        }
    )
    with pytest.raises(ActorTimeoutError, match=r"actor [01] .* gave no result for 2 s"):
        simulate(scenario)


def test_closing_a_stream_ends_its_actors(on_ray: Scenario) -> None:
    stream = simulate(on_ray.override({"rounds": 1000}), stream=True)
    assert isinstance(stream, Iterator)
    assert next(stream).round_index == 0
    stream.close()  # type: ignore[attr-defined]  # the iterator of a stream is a generator
    deadline = time.monotonic() + 120
    while busy_cores() > 0:
        assert time.monotonic() < deadline, "actors of a closed run still hold cores"
        time.sleep(0.2)


def busy_cores() -> float:
    return float(ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0.0))


def test_more_actors_than_fit_are_refused_before_anything_starts(on_ray: Scenario) -> None:
    scenario = on_ray.override({"execution.clients_per_actor": 1, "execution.client_resources": {"num_cpus": 1.0}})
    with pytest.raises(Exception, match="takes 5 actors for 5 clients; 2 with 1 CPU cores") as caught:
        simulate(scenario)
    assert caught.value.exit_code == 2  # type: ignore[attr-defined]  # an InputError, whatever its class
    assert not isinstance(caught.value, RunError)


def test_what_an_actor_receives_cannot_be_written() -> None:
    reference = ray.put(np.zeros(200_000, dtype=np.float32))
    assert not ray.get(reference).flags.writeable
