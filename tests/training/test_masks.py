"""Dropout masks of stacked clients."""

import math

import pytest
import torch

from blossom_ray.clients.stacked.masks import DrawnMasks, HashedMasks, masks_of

CPU = torch.device("cpu")
SEEDS = (3, 2**63 + 11, 2**64 - 1, 12)


def drawn(masks: HashedMasks, counts: list[tuple[int, ...]], width: int = 5, keep: float = 0.7) -> list[torch.Tensor]:
    return [masks.draw(torch.zeros(len(own), max(own), width), own, keep) for own in counts]


def test_on_a_cpu_they_are_those_of_functional_dropout() -> None:
    masks = masks_of(SEEDS, CPU)
    assert isinstance(masks, DrawnMasks)
    stacked = [masks.draw(torch.zeros(4, 3, 6), (3, 2, 1, 0), 0.6) for _ in range(2)]
    for client, (seed, count) in enumerate(zip(SEEDS, (3, 2, 1, 0), strict=True)):
        torch.manual_seed(seed)
        for own in stacked:
            expected = torch.nn.functional.dropout(torch.ones(count, 6), 0.4) * 0.6
            torch.testing.assert_close(own[client, :count], expected)


def test_elsewhere_they_are_hashed() -> None:
    assert isinstance(masks_of(SEEDS, torch.device("meta")), HashedMasks)


def test_splitmix64_by_its_published_numbers() -> None:
    # The first outputs of the reference implementation with seed 1234567 (prng.di.unimi.it/splitmix64.c).
    from blossom_ray.clients.stacked.masks import _GOLDEN, _mixed

    found = _mixed(torch.tensor([1234567]) + torch.arange(1, 4) * _GOLDEN)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [number % 2**64 for number in found.tolist()] == expected


def test_a_client_s_masks_depend_neither_on_the_stack_nor_on_padding() -> None:
    together = drawn(HashedMasks(SEEDS, CPU), [(4, 3, 2, 1), (4, 0, 2), (2, 2)])
    alone = drawn(HashedMasks(SEEDS[1:2], CPU), [(3,), (2,)])
    assert torch.equal(together[0][1, :3], alone[0][0])
    # In the second draw it had no row, and so drew nothing.
    assert torch.equal(together[2][1, :2], alone[1][0])


def test_clients_and_draws_have_masks_of_their_own() -> None:
    one, two = drawn(HashedMasks(SEEDS, CPU), [(100, 100, 100, 100)] * 2, width=100, keep=0.5)
    rows = torch.cat([one, two]).flatten(1) * 2 - 1
    correlations = rows @ rows.T / rows.shape[1] - torch.eye(8)
    assert correlations.abs().max() < 6 / math.sqrt(rows.shape[1])


@pytest.mark.parametrize("keep", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_as_many_values_are_kept_as_asked_for(keep: float) -> None:
    number = 1_000_000
    (masks,) = drawn(HashedMasks((5,), CPU), [(1000,)], width=number // 1000, keep=keep)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert abs(masks.mean().item() - keep) < 5 * math.sqrt(keep * (1 - keep) / number)
    # Neighbours in a row and in a column know nothing of each other.
    centred = masks[0] - keep
    for pairs in (centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1]):
        assert abs(pairs.mean().item()) < 5 * keep * (1 - keep) / math.sqrt(pairs.numel())


def test_a_layer_scales_what_is_kept() -> None:
    from torch import nn

    from blossom_ray.clients.stacked.batches import Lanes
    from blossom_ray.clients.stacked.layers import LayerTensors, StackedDropout

    lanes = Lanes(num_clients=2, num_rows=3, counts=(3, 3), dropout_masks=HashedMasks(SEEDS, CPU))
    layer = StackedDropout(nn.Dropout(0.2), LayerTensors({}, {}), lanes)
    expected = HashedMasks(SEEDS, CPU).draw(torch.zeros(2, 3, 4), (3, 3), 0.8) / 0.8
    torch.testing.assert_close(layer(torch.full((6, 4), 7.0)), 7 * expected.flatten(0, 1))
