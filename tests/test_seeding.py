import itertools

import numpy as np

from blossom_ray.core.seeding import Purpose, generator, generators, stable_number, torch_seed, torch_seeds


def test_every_part_of_the_key_counts() -> None:
    keys = [(0, Purpose.DATA, 0, 0), (1, Purpose.DATA, 0, 0), (0, Purpose.COHORT, 0, 0)]
    keys += [(0, Purpose.DATA, 1, 0), (0, Purpose.DATA, 0, 1)]
    draws = [generator(*key).integers(2**62) for key in keys]
    assert all(a != b for a, b in itertools.combinations(draws, 2))
    assert draws == [generator(*key).integers(2**62) for key in keys]


def test_draws_are_the_same_on_every_machine() -> None:
    # Written down once: a change here changes every published run.
    assert generator(7, Purpose.COHORT, 3, 0).integers(1000, size=3).tolist() == [125, 335, 55]
    assert torch_seed(7, Purpose.TRAINING, 3, 11) == 2434048363468625868
    assert stable_number("encoder/acc") == 1727193962


def test_generators_of_many_clients_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    seeds = [0, 1, 7, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**64, 2**100 + 3]  # of one 32-bit word and of several
    for seed, round_index in itertools.product(seeds, (0, 3, 2**32 + 1)):
        clients = np.concatenate([[0, 1, 2**32 - 1], rng.integers(2**32, size=60)])
        for client, found in zip(
            clients.tolist(), generators(seed, Purpose.TRAINING, clients, round_index), strict=True
        ):
            expected = np.random.default_rng([seed, int(Purpose.TRAINING), round_index, client])
            assert found.bit_generator.state == expected.bit_generator.state
            assert found.permutation(9).tolist() == expected.permutation(9).tolist()


def test_of_few_clients_or_none_too() -> None:
    for number in (0, 1, 5, 15, 16, 17):
        clients = [*range(3, 3 + number)]
        expected = [torch_seed(5, Purpose.TRANSFORM, 2, client) for client in clients]
        assert torch_seeds(5, Purpose.TRANSFORM, clients, 2) == expected
        drawn = [draw.normal() for draw in generators(5, Purpose.SPLIT, clients)]
        assert drawn == [generator(5, Purpose.SPLIT, 0, client).normal() for client in clients]
