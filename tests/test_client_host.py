from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from blossom_ray.algorithms.selection import Chunk
from blossom_ray.clients.host import ClientHost
from blossom_ray.clients.plan import ChunkTraining, SentBlock
from blossom_ray.core.blocks import BlockInstance
from blossom_ray.core.records import Scoring
from blossom_ray.core.sums import weighted_sum
from blossom_ray.errors import ClientError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runtime.preparation import Preparation, prepare
from blossom_ray.server import initial_server

ACC = Chunk(0, (0, 1))


class Bench:
    """One host with all clients of a scenario, and the initial blocks."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.preparation: Preparation = prepare(scenario, folder)
        plan, population = self.preparation.plan, self.preparation.population
        self.host = ClientHost(plan, population.profiles, self.preparation.open_shards())
        self.blocks = initial_server(plan, population.representatives(), scenario.server.optimizer).sent

    def train(self, chunk: Chunk = ACC, round_index: int = 1, **changes: Any) -> ChunkTraining:
        arguments: dict[str, Any] = {"learning_rate": 0.05, "whole": True}
        return self.host.train(chunk, self.blocks, round_index=round_index, **arguments | changes)

    def private(self, client: int) -> str:
        return self.host.private_digest()[client]


@pytest.fixture
def make(tmp_path: Path, small_scenario: Scenario) -> Iterator[Any]:
    benches: list[Bench] = []

    def bench(**changes: Any) -> Bench:
        scenario = small_scenario.override({name.replace("__", "."): value for name, value in changes.items()})
        benches.append(Bench(scenario, tmp_path / str(len(benches))))
        return benches[-1]

    yield bench
    for made in benches:
        made.host.close()


def test_only_blocks_that_are_not_private_are_sent_back(make: Any) -> None:
    part = make(sharing="private-head-fusion").train()
    assert [str(instance) for instance in part.sent] == ["encoder/acc"]
    part = make(sharing="full-model").train(Chunk(3, (3, 4)))
    assert [str(instance) for instance in part.sent] == ["encoder/acc", "encoder/gyro", "fusion", "head"]
    local = make(sharing="local").train()
    assert local.sent == {}


def test_a_whole_chunk_comes_back_as_one_sum_and_a_part_as_each_client_s_values(make: Any) -> None:
    bench = make(sharing="full-model")
    whole, parts = bench.train(), bench.train(whole=False)
    weights = [record.num_examples for record in whole.records]
    for instance, total in whole.sent.items():
        own = parts.sent[instance]
        assert (own.clients, list(own.weights)) == ((0, 1), weights)
        stacked = own.values
        assert stacked.dtype == np.float32
        assert stacked.shape == (2, bench.blocks[instance].values.size)
        np.testing.assert_array_equal(total.total, weighted_sum(zip(weights, stacked, strict=True)).total)
        assert total.weight == sum(weights)


def test_a_round_that_is_trained_again_gives_the_same_bits(make: Any) -> None:
    bench = make(sharing="private-head")
    first, again = bench.train(), bench.train()
    for instance, total in first.sent.items():
        np.testing.assert_array_equal(total.total, again.sent[instance].total)
    assert first.bytes_down == again.bytes_down


def test_private_blocks_go_on_from_round_to_round(make: Any) -> None:
    bench = make(sharing="private-head")
    bench.train()
    after_one = bench.private(0)
    bench.train(round_index=2)
    assert bench.private(0) != after_one
    fresh = make(sharing="private-head")
    fresh.train(round_index=2)
    assert fresh.private(0) != bench.private(0)


def test_what_is_received_is_never_written(make: Any) -> None:
    bench = make(sharing="full-model")
    before = {instance: block.values.copy() for instance, block in bench.blocks.items()}
    for block in bench.blocks.values():
        block.values.flags.writeable = False
    bench.train()
    bench.host.evaluate(ACC, bench.blocks, round_index=1, scoring=Scoring.OWN_TEST)
    for instance, values in before.items():
        np.testing.assert_array_equal(bench.blocks[instance].values, values)


def test_bytes_are_counted_once_per_version(make: Any) -> None:
    bench = make(sharing="private-head")
    size = {str(instance): block.values.nbytes for instance, block in bench.blocks.items()}
    per_client = size["encoder/acc"] + size["fusion"]
    first = bench.train()
    assert {str(instance): count for instance, count in first.bytes_down.items()} == {
        "encoder/acc": 2 * size["encoder/acc"],
        "fusion": 2 * size["fusion"],
    }
    assert [record.bytes_down for record in first.records] == [per_client, per_client]
    assert [record.bytes_up for record in first.records] == [per_client, per_client]
    # Nothing new since: nothing to send. Then one block changes, and only that one is sent again.
    assert bench.host.evaluate(ACC, bench.blocks, round_index=1, scoring=Scoring.OWN_TEST).bytes_down == {}
    fusion = next(instance for instance in bench.blocks if instance.name == "fusion")
    bench.blocks[fusion] = SentBlock(1, bench.blocks[fusion].values)
    assert bench.train(round_index=2).bytes_down == {fusion: 2 * size["fusion"]}


def test_a_frozen_block_is_sent_once_and_never_comes_back(make: Any) -> None:
    scheme = {"encoder/*": "frozen", "fusion": "shared", "head": "shared"}
    bench = make(sharing=scheme)
    part = bench.train()
    assert {instance.name for instance in part.sent} == {"fusion", "head"}
    assert "encoder/acc" in {instance.name for instance in part.bytes_down}
    assert "encoder/acc" not in {instance.name for instance in bench.train(round_index=2).bytes_down}


def test_a_client_holds_an_encoder_that_it_does_not_own_only_under_zero_input(make: Any) -> None:
    owned = {"encoder/acc", "fusion", "head"}
    for missing, held in (("mask", owned), ("zero-embedding", owned), ("zero-input", owned | {"encoder/gyro"})):
        bench = make(sharing="full-model", model__missing=missing)
        part = bench.train()
        assert {instance.name for instance in part.bytes_down} == held
        assert {instance.name for instance in part.sent} == owned


def test_scores_come_from_the_client_s_own_private_head(make: Any) -> None:
    bench = make(sharing="private-head")
    both = bench.host.evaluate(ACC, bench.blocks, round_index=0, scoring=Scoring.HELD_OUT)
    assert both.records[0].loss == both.records[1].loss
    bench.train()
    after = bench.host.evaluate(ACC, bench.blocks, round_index=1, scoring=Scoring.HELD_OUT)
    assert after.records[0].loss != after.records[1].loss
    assert after.records[0].num_examples == 30
    assert after.tallies[""].counts["confusion"].sum() == 60


def test_own_code_that_raises_is_named_with_client_and_round(make: Any) -> None:
    class Broken(nn.Module):
        def forward(self, fused: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise RuntimeError("no such thing")
            return fused[:, :3]

    bench = make(model__head={"kind": "custom", "factory": lambda *_: Broken()}, sharing="full-model")
    with pytest.raises(ClientError, match="client 0, round 4: RuntimeError: no such thing") as caught:
        bench.train(round_index=4)
    assert "in forward" in caught.value.details


def test_an_update_that_is_not_finite_is_caught_before_it_is_averaged(make: Any) -> None:
    bench = make(sharing="full-model", training__optimizer={"kind": "sgd", "lr": 1.0})
    instance: BlockInstance = next(iter(bench.blocks))
    bench.blocks[instance] = SentBlock(0, np.full_like(bench.blocks[instance].values, 1e30))
    with pytest.raises(ClientError, match="is not finite after local training") as caught:
        bench.train(learning_rate=1e30)
    assert "training.optimizer.lr" in caught.value.hint
