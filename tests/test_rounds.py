"""What the loop makes of its clients' answers: numbers that can be computed by hand, without models or data."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from without_data import prepared, untrained

from blossom_ray import RunError, Scenario
from blossom_ray.core.blocks import BlockInstance, Scope
from blossom_ray.core.records import BlockRound, RoundRecord
from blossom_ray.runtime.fake import FakeClient, FakeRuntime
from blossom_ray.server import Server
from blossom_ray.simulation import run_rounds

ACC, GYRO, FUSION, HEAD = (
    BlockInstance(name, Scope.SHARED) for name in ("encoder/acc", "encoder/gyro", "fusion", "head")
)
# acc: 0, 1; gyro: 2; both: 3, 4. Each sees as many samples as its number plus one.
CLIENTS = [FakeClient(step=step, num_examples=k + 1, num_correct=1, loss=k) for k, step in enumerate((6, -3, 1, 2, 10))]
Loop = Callable[..., list[tuple[RoundRecord, Server]]]


@pytest.fixture
def loop(small_scenario: Scenario) -> Loop:
    """Runs all rounds of the small scenario with changes: blocks of two values, all 0, a learning rate of 1."""

    def run(clients: Sequence[FakeClient] = CLIENTS, /, **changes: Any) -> list[tuple[RoundRecord, Server]]:
        plain = {"rounds": 1, "sharing": "full-model", "training.optimizer": {"kind": "sgd", "lr": 1.0}}
        scenario = small_scenario.override(
            {**plain, **{key.replace("__", "."): value for key, value in changes.items()}}
        )
        preparation = prepared(scenario)
        runtime = FakeRuntime(preparation.plan, preparation.population.profiles, clients)
        return [*run_rounds(preparation, runtime, untrained(preparation))]

    return run


def values(server: Server, instance: BlockInstance) -> list[float]:
    return [float(value) for value in server.blocks[instance].sent.values]


def block(record: RoundRecord, instance: BlockInstance) -> BlockRound:
    return next(each for each in record.blocks if each.instance == instance)


def test_each_block_is_averaged_over_the_clients_that_train_it(loop: Loop) -> None:
    (_, before), (record, server) = loop()
    assert values(before, HEAD) == [0.0, 0.0]
    # Clients 0, 1, 3, 4: (1 * 6 - 2 * 3 + 4 * 2 + 5 * 10) / 12; clients 2, 3, 4: (3 * 1 + 4 * 2 + 5 * 10) / 12.
    assert values(server, ACC) == pytest.approx([58 / 12] * 2)
    assert values(server, GYRO) == pytest.approx([61 / 12] * 2)
    # All: (6 - 6 + 3 + 8 + 50) / 15.
    assert values(server, FUSION) == values(server, HEAD) == pytest.approx([61 / 15] * 2)
    assert [(str(each.instance), each.contributors, each.weight) for each in record.blocks] == [
        ("encoder/acc", 4, 12), ("encoder/gyro", 3, 12), ("fusion", 5, 15), ("head", 5, 15),
    ]  # fmt: skip


def test_a_round_goes_on_from_the_one_before(loop: Loop) -> None:
    rounds = loop(rounds=3)
    assert [record.round_index for record, _ in rounds] == [0, 1, 2, 3]
    assert values(rounds[3][1], HEAD) == pytest.approx([3 * 61 / 15] * 2)
    assert [server.blocks[HEAD].sent.version for _, server in rounds] == [0, 1, 2, 3]


def test_the_learning_rate_follows_its_schedule(loop: Loop) -> None:
    rounds = loop(rounds=3, training__schedule={"kind": "step", "every": 1, "factor": 0.5})
    assert [record.learning_rate for record, _ in rounds] == [None, 1.0, 0.5, 0.25]
    assert values(rounds[3][1], HEAD) == pytest.approx([1.75 * 61 / 15] * 2)


def test_a_cohort_alone_trains_and_a_block_without_contributors_keeps_its_value(loop: Loop) -> None:
    rounds = loop(rounds=6, server__clients_per_round=1)
    for (_, before), (record, after) in pairwise(rounds):
        (client,) = record.cohort
        assert [entry.client for entry in record.training] == [client]
        assert values(after, HEAD) == pytest.approx([value + CLIENTS[client].step for value in values(before, HEAD)])
        untouched = {0: GYRO, 1: GYRO, 2: ACC}.get(client)
        if untouched is not None:
            assert after.blocks[untouched] == before.blocks[untouched]
            entry = block(record, untouched)
            assert (entry.contributors, entry.weight, entry.update_norm, entry.client_drift) == (0, 0, 0, None)
    assert len({record.cohort for record, _ in rounds[1:]}) > 1


def test_a_client_that_is_dropped_is_in_no_average_and_in_the_record(loop: Loop) -> None:
    clients = [*CLIENTS[:4], FakeClient(step=10, num_examples=5, num_correct=1, fails_in=(1,))]
    rounds = loop(clients, rounds=2, failures__on_failure="drop")
    first, second = rounds[1][0], rounds[2][0]
    assert first.cohort == (0, 1, 2, 3)
    assert [(failure.clients, failure.action) for failure in first.failures] == [((4,), "dropped")]
    assert values(rounds[1][1], HEAD) == pytest.approx([11 / 10] * 2)
    assert (second.cohort, second.failures) == ((0, 1, 2, 3, 4), ())


def test_too_few_clients_end_the_run(loop: Loop) -> None:
    clients = [FakeClient(fails_in=(2,)), *CLIENTS[1:]]
    changes = {"rounds": 2, "failures__on_failure": "drop", "failures__min_clients": 5}
    with pytest.raises(RunError, match=r"^round 2: 4 clients are left after failures; expected at least 5"):
        loop(clients, **changes)


def test_what_a_record_says_of_a_block(loop: Loop) -> None:
    record, _ = loop()[1]
    # Two values of 4 bytes to and from each; drift of client k: |step| sqrt(2), weighted by samples.
    entry = block(record, ACC)
    assert (entry.bytes_down, entry.bytes_up) == (4 * 8, 4 * 8)
    assert entry.client_drift == pytest.approx((1 * 6 + 2 * 3 + 4 * 2 + 5 * 10) / 12 * math.sqrt(2))
    assert entry.update_norm == pytest.approx(58 / 12 * math.sqrt(2))


def test_private_blocks_are_told_together_and_never_sent(loop: Loop) -> None:
    record, server = loop(sharing="private-head")[1]
    assert HEAD not in server.blocks
    entry = block(record, BlockInstance("head", Scope.PRIVATE))
    assert (entry.contributors, entry.weight, entry.bytes_down, entry.bytes_up, entry.update_norm) == (5, 15, 0, 0, 0.0)


def test_means_are_weighted_by_samples(loop: Loop) -> None:
    (start, _), (record, _) = loop()
    assert "train_loss" not in start.metrics
    # Loss k on k + 1 samples, one of them right: (0 + 2 + 6 + 12 + 20) / 15 and 5 / 15.
    assert record.metrics["train_loss"] == record.metrics["loss"] == start.metrics["loss"] == pytest.approx(40 / 15)
    assert record.metrics["accuracy"] == record.metrics["accuracy_pooled"] == pytest.approx(5 / 15)
    # Clients 0 and 1, 2, 3 and 4.
    sets = [record.metrics[f"accuracy/{owned}"] for owned in ("acc", "gyro", "acc+gyro")]
    assert sets == pytest.approx([2 / 3, 1 / 3, 2 / 9])


def test_only_rounds_that_are_due_are_scored_and_only_the_clients_drawn(loop: Loop) -> None:
    rounds = [record for record, _ in loop(rounds=5, evaluation__every=2, evaluation__clients=0.5)]
    assert [len(record.evaluation) for record in rounds] == [2, 0, 2, 0, 2, 2]
    assert ["accuracy" in record.metrics for record in rounds] == [True, False, True, False, True, True]


def test_clients_that_never_train_are_in_a_score_of_their_own_and_in_nothing_else(loop: Loop) -> None:
    """A step of 1,000 from one of them would show in every average; its loss of 9 and 100 samples in every mean."""
    groups = [{"count": 2, "modalities": ["acc"]}, {"count": 1, "modalities": ["gyro"]}]
    groups += [{"count": 2, "modalities": ["acc", "gyro"]}]
    unseen = [{"count": number, "modalities": [name], "role": "unseen"} for number, name in ((1, "acc"), (2, "gyro"))]
    others = [FakeClient(1000, 100, 80, 9.0), FakeClient(1000, 10, 2, 1.0), FakeClient(1000, 30, 21, 3.0)]
    _, (record, server) = loop([*CLIENTS, *others], clients=[*groups, *unseen], server__clients_per_round=1.0)
    assert values(server, ACC) == pytest.approx([58 / 12] * 2)
    assert values(server, HEAD) == pytest.approx([61 / 15] * 2)
    assert record.cohort == (0, 1, 2, 3, 4)
    assert [each.client for each in record.evaluation] == [0, 1, 2, 3, 4]
    assert [each.client for each in record.unseen] == [5, 6, 7]
    # One of each client's k + 1 samples is right: 5 of 15.
    assert record.metrics["accuracy"] == pytest.approx(5 / 15)
    assert record.metrics["accuracy/acc"] == pytest.approx(2 / 3)
    assert record.metrics["unseen/accuracy"] == pytest.approx((80 + 2 + 21) / 140)
    assert record.metrics["unseen/accuracy/gyro"] == pytest.approx(23 / 40)
    assert record.metrics["unseen/accuracy_p50"] == pytest.approx(0.7)
    assert record.metrics["unseen/loss"] == pytest.approx((100 * 9 + 10 * 1 + 30 * 3) / 140)
    assert block(record, HEAD).contributors == 5
