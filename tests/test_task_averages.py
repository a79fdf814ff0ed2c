"""What tasks count in the blocks that they share, and who of them takes part: numbers computed by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from without_data import prepared, untrained

from blossom_ray import Scenario, simulate
from blossom_ray.algorithms.selection import Population
from blossom_ray.clients.plan import SentBlock
from blossom_ray.core.blocks import Block, BlockInstance, ClientProfile, Scope
from blossom_ray.core.records import RoundRecord
from blossom_ray.core.sums import Contributions, PartialSum
from blossom_ray.runtime.fake import FakeClient, FakeRuntime
from blossom_ray.server import Server, ServerBlock, mean_of_tasks, sums_by_task, task_cosine
from blossom_ray.simulation import run_rounds

ENCODER, HEAD = (
    BlockInstance(Block("encoder", "acc"), Scope.SHARED),
    BlockInstance(Block("head", "activity"), Scope.SHARED),
)
TASKS = {"activity": {"labels": "class"}, "who": {"labels": "class"}}
ACTIVITY, WHO = (FakeClient(1, 30), FakeClient(3, 10)), FakeClient(7, 20)


def run(scenario: Scenario, *clients: FakeClient, **server: Any) -> list[tuple[RoundRecord, Server]]:
    """A round of two clients of `activity`, one of `who`, maybe one of both, from two values of 0, at a rate of 1."""
    groups = [
        {"count": 2, "task": "activity", "modalities": ["acc", "gyro"]},
        {"count": 1, "task": "who", "modalities": ["acc", "gyro"]},
        {"count": 1, "task": ["who", "activity"], "modalities": ["acc", "gyro"]},
    ][: len(clients) - 1]
    scenario = scenario.override(
        {
            "rounds": 1,
            "tasks": TASKS,
            "clients": groups,
            "training.optimizer": {"kind": "sgd", "lr": 1.0},
            "sharing": {"encoder/*": "shared", "fusion": "same-task", "head": "same-task"},
            **{f"server.{name}": value for name, value in server.items()},
        }
    )
    preparation = prepared(scenario)
    runtime = FakeRuntime(preparation.plan, preparation.population.profiles, clients)
    return [*run_rounds(preparation, runtime, untrained(preparation))]


def value(rounds: list[tuple[RoundRecord, Server]], instance: BlockInstance) -> float:
    return float(rounds[-1][1].blocks[instance].sent.values[0])


def cosine(rounds: list[tuple[RoundRecord, Server]], instance: BlockInstance) -> float | None:
    return next(block.task_cosine for block in rounds[-1][0].blocks if block.instance == instance)


def test_a_shared_block_weighs_tasks_by_samples_or_alike(small_scenario: Scenario) -> None:
    # (30 * 1 + 10 * 3 + 20 * 7) / 60, and the mean of (30 * 1 + 10 * 3) / 40 = 1.5 and 7.
    assert value(run(small_scenario, *ACTIVITY, WHO), ENCODER) == pytest.approx(200 / 60)
    equal = run(small_scenario, *ACTIVITY, WHO, task_weights="equal")
    assert value(equal, ENCODER) == pytest.approx(4.25)
    assert value(equal, HEAD) == pytest.approx(1.5)


def test_a_client_with_two_tasks_counts_in_each_with_its_labelled_samples(small_scenario: Scenario) -> None:
    both = FakeClient(5, 20, num_labelled={"activity": 20, "who": 10})
    # 300 / 80, and the mean of (30 * 1 + 10 * 3 + 20 * 5) / 60 and (20 * 7 + 10 * 5) / 30.
    assert value(run(small_scenario, *ACTIVITY, WHO, both), ENCODER) == pytest.approx(3.75)
    equal = run(small_scenario, *ACTIVITY, WHO, both, task_weights="equal")
    assert value(equal, ENCODER) == pytest.approx(4.5)
    assert value(equal, HEAD) == pytest.approx(160 / 60)
    parts = sums_by_task(Contributions((3,), (1.0,), np.ones((1, 2), np.float32)), (), ("who",), "uniform")
    assert parts["who"].weight == 1.0


@pytest.mark.parametrize("weights", ["samples", "equal"])
def test_a_task_that_is_absent_counts_for_nothing(small_scenario: Scenario, weights: str) -> None:
    absent = FakeClient(7, 20, fails_in=(1,))
    rounds = run(small_scenario, *ACTIVITY, absent, task_weights=weights)
    assert value(rounds, ENCODER) == pytest.approx(1.5)
    assert cosine(rounds, ENCODER) is None
    head = BlockInstance(Block("head", "who"), Scope.SHARED)
    assert value(rounds, head) == 0
    assert rounds[-1][1].blocks[head].sent.version == 0


def test_the_cosine_tells_whether_tasks_pull_the_same_way(small_scenario: Scenario) -> None:
    together = run(small_scenario, *ACTIVITY, WHO)
    assert cosine(together, ENCODER) == pytest.approx(1.0)
    assert cosine(together, HEAD) is None
    assert cosine(run(small_scenario, *ACTIVITY, FakeClient(-7, 20)), ENCODER) == pytest.approx(-1.0)
    assert cosine(run(small_scenario, *ACTIVITY, FakeClient(0, 20)), ENCODER) is None


def test_the_cosine_is_between_steps_over_parameters_mean_over_pairs() -> None:
    # Steps of (1, 0), (1, 1), (0, -1) from (1, 2); the third value is a statistic.
    values = {"a": (2, 2, 9), "b": (2, 3, 9), "c": (1, 1, 9)}
    sums = {task: PartialSum(np.array(x, float) * 4, 4.0) for task, x in values.items()}
    block = ServerBlock(SentBlock(3, np.array([1, 2, 0], np.float32)), 2, {})
    half = math.sqrt(0.5)
    assert task_cosine(sums, block) == pytest.approx((half + 0 - half) / 3, abs=1e-12)
    assert task_cosine({task: sums[task] for task in "ab"}, block) == pytest.approx(half)
    assert mean_of_tasks(sums).tolist() == pytest.approx([5 / 3, 2, 9])


def test_a_cohort_has_as_many_clients_of_each_task_as_it_says() -> None:
    clients = [ClientProfile(k, ("acc",), tasks=("who" if k % 3 == 0 else "activity",)) for k in range(30)]
    population = Population(clients, 4, {"activity": 0.25, "who": 3})
    assert population.cohort_size == 8
    cohorts = [population.cohort(0, number) for number in range(1, 40)]
    assert {sum(client % 3 == 0 for client in cohort) for cohort in cohorts} == {3}
    assert {len(cohort) for cohort in cohorts} == {8}
    assert set().union(*cohorts) == set(range(30))
    # The draw of one task does not depend on how many another has.
    other = Population(clients, 4, {"activity": 9, "who": 3})
    for number, cohort in enumerate(cohorts, start=1):
        own = [client for client in cohort if client % 3 == 0]
        assert [client for client in other.cohort(0, number) if client % 3 == 0] == own


def test_a_run_draws_and_weighs_by_task_and_says_where_tasks_pull(small_scenario: Scenario) -> None:
    groups = [{"count": 3, "task": task, "modalities": ["acc", "gyro"]} for task in ("shape", "size")]
    scenario = small_scenario.override(
        {
            "tasks": {"shape": {"labels": "class"}, "size": {"kind": "regression", "labels": "amplitude"}},
            "clients": groups,
            "sharing": {"encoder/*": "shared", "fusion": "same-task", "head": "same-task"},
            "server.clients_per_round": {"shape": 2, "size": 1},
            "server.task_weights": "equal",
        }
    )
    found = simulate(scenario)
    trained = found.clients.filter(round=1).drop_nulls("train_loss")
    assert trained["task"].to_list() == ["shape", "shape", "size"]
    cosines = found.blocks.filter(round=1).select("block", "task_cosine").rows()
    assert [block for block, number in cosines if number is not None] == ["encoder/acc", "encoder/gyro"]
    assert all(number is None or -1 <= number <= 1 for _, number in cosines)
    assert found.blocks.filter(round=0)["task_cosine"].null_count() == 6
    again = simulate(scenario.override({"execution.chunk_size": 1}))
    assert again.final == pytest.approx(found.final, rel=1e-4, abs=1e-4)


def test_without_tasks_there_is_no_such_column(small_scenario: Scenario) -> None:
    assert "task_cosine" not in simulate(small_scenario.override({"rounds": 1})).blocks.columns
