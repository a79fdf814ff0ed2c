"""A federation without data or models: what the loop makes of its clients' answers can be computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from blossom_ray import Scenario
from blossom_ray.algorithms.selection import Population
from blossom_ray.clients.plan import ClientPlan, SentBlock, TaskPlan
from blossom_ray.data.shards import ShardIndex
from blossom_ray.runtime.loading import TaskFacts
from blossom_ray.runtime.preparation import Preparation
from blossom_ray.server import Server, ServerBlock


def prepared(scenario: Scenario) -> Preparation:
    """Five samples to test, and none to validate, for each client of a scenario with `acc` and `gyro`."""
    profiles = tuple(scenario.profiles())
    numbers = np.zeros(len(profiles), np.int64)
    plan = ClientPlan(
        model=scenario.model,
        training=scenario.training,
        scheme=scenario.scheme,
        seed=0,
        input_shapes={"": {"acc": (8, 2), "gyro": (8, 2)}},
        tasks={name: TaskPlan("classification", 3) for name in scenario.learned},
        evaluation_batch_size=10,
    )
    return Preparation(
        scenario=scenario,
        plan=plan,
        population=Population(profiles, scenario.execution.chunk_size, scenario.server.clients_per_round),
        shards=ShardIndex(Path(), {}, numbers + 5, numbers, numbers + 5, {}, numbers),
        num_held_out={"": 0},
        fingerprint="",
        task_facts={name: TaskFacts((), "", "") for name in scenario.learned},
        partition="",
    )


def untrained(preparation: Preparation) -> Server:
    """Blocks of two values, all 0."""
    section = preparation.scenario.server.optimizer
    instances = {i for profile in preparation.population.profiles for i in preparation.plan.sent_blocks(profile)}
    zeros = SentBlock(0, np.zeros(2, np.float32))
    return Server({instance: ServerBlock(zeros, 2, section.init(2)) for instance in sorted(instances)})
