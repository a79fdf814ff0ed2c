import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray.algorithms.selection import Population, cohort_size
from blossom_ray.core.blocks import ClientProfile

ACC, GYRO = ("acc",), ("gyro",)


def profiles(*modalities: tuple[str, ...]) -> list[ClientProfile]:
    return [ClientProfile(index, owned) for index, owned in enumerate(modalities)]


@pytest.mark.parametrize(("setting", "expected"), [(1.0, 10), (0.5, 5), (0.29, 2), (0.3, 3), (0.01, 1), (7, 7), (1, 1)])
def test_cohort_size_of_ten_clients(setting: float | int, expected: int) -> None:
    assert cohort_size(setting, 10) == expected


def test_chunks_are_cut_by_modality_set_then_id() -> None:
    population = Population(profiles(GYRO, ACC, GYRO, ACC, ACC), chunk_size=2, clients_per_round=1.0)
    assert [chunk.clients for chunk in population.chunks] == [(1, 3), (4,), (0, 2)]


def test_groups_are_not_mixed_in_a_chunk() -> None:
    clients = [ClientProfile(0, ACC, "b"), ClientProfile(1, ACC, "a"), ClientProfile(2, ACC, "b")]
    assert [chunk.clients for chunk in Population(clients, 16, 1.0).chunks] == [(1,), (0, 2)]


def test_chunks_are_wide_enough_for_partial_participation() -> None:
    population = Population(profiles(*[ACC] * 40), chunk_size=2, clients_per_round=0.1)
    assert [len(chunk.clients) for chunk in population.chunks] == [20, 20]


def test_a_cohort_keeps_its_chunks_numbers() -> None:
    population = Population(profiles(ACC, ACC, GYRO), chunk_size=1, clients_per_round=1.0)
    assert [(chunk.index, chunk.clients) for chunk in population.cut([0, 2])] == [(0, (0,)), (2, (2,))]


@given(st.integers(1, 60), st.integers(1, 9), st.floats(0.05, 1.0), st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_every_client_is_in_exactly_one_chunk(count: int, chunk_size: int, fraction: float, seed: int) -> None:
    population = Population(profiles(*[ACC if i % 3 else GYRO for i in range(count)]), chunk_size, fraction)
    assert sorted(c for chunk in population.chunks for c in chunk.clients) == list(range(count))
    cohort = population.cohort(seed, 1)
    assert len(set(cohort)) == len(cohort) == cohort_size(fraction, count)
    assert sorted(c for chunk in population.cut(cohort) for c in chunk.clients) == list(cohort)


def test_cohorts_differ_between_rounds_and_seeds_and_reach_everybody() -> None:
    population = Population(profiles(*[ACC] * 20), chunk_size=4, clients_per_round=5)
    cohorts = [population.cohort(0, t) for t in range(1, 60)]
    assert len(set(cohorts)) > 50
    assert set().union(*cohorts) == set(range(20))
    assert population.cohort(0, 1) == cohorts[0]
    assert population.cohort(1, 1) != cohorts[0]
