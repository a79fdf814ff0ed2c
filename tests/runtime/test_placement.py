from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray.algorithms.selection import Chunk
from blossom_ray.errors import InputError
from blossom_ray.runtime.placement import Room, actor_memory_bytes, actor_of_client, largest_load, num_actors
from blossom_ray.scenario.sections import ClientResources, Execution

LAPTOP = Room(num_cpus=2, num_gpus=0, memory_bytes=16 * 2**30)
GPU_BOX = Room(num_cpus=16, num_gpus=2, memory_bytes=128 * 2**30)


def execution(setting: Any = "auto", num_cpus: float = 0.2, num_gpus: float = 0.0) -> Execution:
    resources = {"num_cpus": num_cpus, "num_gpus": num_gpus}
    return Execution.model_validate({"clients_per_actor": setting, "client_resources": resources})


@pytest.mark.parametrize(
    ("setting", "num_clients", "expected"),
    [
        (execution(), 10, 10),  # 2 / 0.2: just room for ten
        (execution(), 11, 2),  # no room for eleven: one actor per core
        (execution(1), 10, 10),
        (execution(4), 10, 3),
        (execution(num_cpus=1), 10, 2),
    ],
)
def test_number_of_actors_on_two_cores(setting: Execution, num_clients: int, expected: int) -> None:
    assert num_actors(setting, num_clients, LAPTOP) == expected


def test_fractions_of_a_gpu_do_not_straddle_two() -> None:
    # 0.3 of a GPU: three actors on each of two GPUs, not 2 / 0.3 = 6.67.
    assert GPU_BOX.num_actors(execution(num_gpus=0.3).client_resources) == 6
    assert num_actors(execution(num_gpus=0.3), 100, GPU_BOX) == 6


def test_memory_limits_the_number_of_actors() -> None:
    small = Room(num_cpus=64, num_gpus=0, memory_bytes=3.5 * actor_memory_bytes(ClientResources()))
    assert small.num_actors(execution().client_resources) == 3


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(
        InputError, match=r"takes 11 actors for 11 clients; 10 with 0.2 CPU cores .* at least 2, or auto"
    ):
        num_actors(execution(1), 11, LAPTOP)
    with pytest.raises(InputError, match="4 CPU cores per actor; not one fits into 2 CPU cores"):
        num_actors(execution(num_cpus=4), 1, LAPTOP)


def test_a_fixed_number_per_actor_fills_them_in_the_order_of_the_chunks() -> None:
    chunks = [Chunk(0, (1, 3)), Chunk(1, (0, 2, 4))]
    assert actor_of_client(execution(2), chunks, [1.0] * 5, 3) == (1, 0, 1, 0, 2)


def test_whole_chunks_stay_together_where_that_is_even() -> None:
    chunks = [Chunk(0, (0, 1)), Chunk(1, (2, 3))]
    assert actor_of_client(execution(), chunks, [3.0, 1.0, 2.0, 2.0], 2) in [(0, 0, 1, 1), (1, 1, 0, 0)]


def test_a_chunk_is_divided_where_keeping_it_whole_is_uneven() -> None:
    placed = actor_of_client(execution(), [Chunk(0, (0, 1, 2, 3))], [4.0, 3.0, 2.0, 1.0], 2)
    assert placed in [(0, 1, 1, 0), (1, 0, 0, 1)]


def test_stacked_chunks_stay_together_and_the_others_fill_up() -> None:
    chunks = [Chunk(0, (0, 1)), Chunk(1, (2, 3, 4))]
    # 8 in one piece, then 3, 3 and 1: the single clients go where least is to be done.
    costs = [4.0, 4.0, 3.0, 3.0, 1.0]
    placed = actor_of_client(execution(), chunks, costs, 2, stacked={0})
    assert placed in [(0, 0, 1, 1, 1), (1, 1, 0, 0, 0)]
    assert largest_load(placed, costs) == 8
    everywhere = actor_of_client(execution(2), chunks, costs, 3, stacked={0, 1})
    assert everywhere in [(0, 0, 1, 1, 1), (1, 1, 0, 0, 0), (0, 0, 2, 2, 2), (2, 2, 0, 0, 0)]


@given(st.lists(st.floats(0.1, 100), min_size=3, max_size=40), st.integers(1, 7), st.integers(2, 3))
@settings(deadline=None, max_examples=50)
def test_no_actor_has_more_than_its_share_and_the_largest_client(
    costs: list[float], chunk_size: int, actors: int
) -> None:
    ids = tuple(range(len(costs)))
    chunks = [Chunk(n, ids[i : i + chunk_size]) for n, i in enumerate(range(0, len(ids), chunk_size))]
    loads: Counter[int] = Counter()
    for client, actor in enumerate(actor_of_client(execution(), chunks, costs, actors)):
        loads[actor] += costs[client]
    fair = sum(costs) / actors
    assert max(loads.values()) <= max(1.05 * fair, fair + max(costs)) + 1e-9
    assert set(loads) <= set(range(actors))
