"""Fusions by hand, their sizes, and that an absent modality takes no part."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from blossom_ray.models.fusion import Attention, Concatenation, GatedUnits, ProjectedMean

FUSIONS = (Attention, Concatenation, ProjectedMean, GatedUnits)
DIMS = {"acc": 3, "gyro": 2, "mag.x": 4}


def embeddings(names: tuple[str, ...] = tuple(DIMS), seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    everything = {name: torch.randn(5, dim, generator=generator) for name, dim in DIMS.items()}
    return {name: everything[name] for name in names}


def fill(module: nn.Module, **values: float) -> None:
    """Set all parameters whose name ends so."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.fill_(next(value for end, value in values.items() if name.replace(".", "_").endswith(end)))


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [
        (Attention({"acc": 128, "gyro": 128}, 256), 66_562),
        (Concatenation({"acc": 128, "gyro": 128}, 256), 65_792),
        (Attention({"a": 64, "b": 64}, 128), 16_898),
        (Concatenation({"a": 64, "b": 64}, 128), 16_512),
        (Attention({"audio": 256, "image": 32}, 128), 37_698),
        (Concatenation({"audio": 256, "image": 32}, 128), 36_992),
        # By hand: (3 + 1) x 2 + (2 + 1) x 2; the gates besides (5 + 1) x 2 twice.
        (ProjectedMean({"acc": 3, "gyro": 2}, 2), 14),
        (GatedUnits({"acc": 3, "gyro": 2}, 2), 38),
    ],
)
def test_fusions_have_the_papers_sizes(fusion: nn.Module, expected: int) -> None:
    assert sum(parameter.numel() for parameter in fusion.parameters()) == expected


def one_by_one(fusion: nn.Module, acc: float, gyro: float) -> float:
    return float(fusion({"acc": torch.tensor([[acc]]), "gyro": torch.tensor([[gyro]])}).detach())


def test_fusions_by_hand() -> None:
    dims = {"acc": 1, "gyro": 1}
    mean = ProjectedMean(dims, 1)
    fill(mean, projections_0_weight=2.0, projections_1_weight=3.0, bias=1.0)
    assert one_by_one(mean, 1.0, 2.0) == 5.0  # (2 + 1 + 6 + 1) / 2

    concat = Concatenation(dims, 1)
    fill(concat, weight=2.0, bias=1.0)
    assert one_by_one(concat, 1.0, 2.0) == 7.0

    attention = Attention(dims, 1)
    fill(
        attention,
        scores_weight=0.0,
        scores_bias=0.0,
        projections_0_weight=2.0,
        projections_1_weight=3.0,
        bias=1.0,
    )
    with torch.no_grad():
        attention.scores.bias.copy_(torch.tensor([math.log(3.0), 0.0]))
    assert one_by_one(attention, 1.0, 2.0) == pytest.approx(0.75 * 3.0 + 0.25 * 7.0)

    gated = GatedUnits(dims, 1)
    fill(
        gated,
        gates_0_weight=1.0,
        gates_1_weight=-1.0,
        projections_0_weight=2.0,
        projections_1_weight=3.0,
        bias=0.0,
    )
    expected = math.tanh(2.0) / (1 + math.exp(-3.0)) + math.tanh(6.0) / (1 + math.exp(3.0))
    assert one_by_one(gated, 1.0, 2.0) == pytest.approx(expected)


@given(
    present=st.sets(st.sampled_from(sorted(DIMS)), min_size=1).map(lambda names: tuple(sorted(names))),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=15)
def test_attention_weights_sum_to_one_over_the_present(present: tuple[str, ...], seed: int) -> None:
    weights = Attention(DIMS, 6).weights(embeddings(present, seed))
    assert weights.shape == (5, len(present))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(5))


@pytest.mark.parametrize("absent", DIMS)
def test_absent_modality_leaves_attention_as_its_logit_at_minus_infinity(absent: str) -> None:
    fusion = Attention(DIMS, 6)
    present = {name: values for name, values in embeddings().items() if name != absent}
    masked = fusion(present)
    zeros = {**present, absent: torch.zeros(5, DIMS[absent])}
    with torch.no_grad():
        fusion.scores.bias[list(DIMS).index(absent)] = -math.inf
    torch.testing.assert_close(masked, fusion(zeros))


def test_one_modality_alone_has_all_attention() -> None:
    fusion = Attention(DIMS, 6)
    only = embeddings(("gyro",))
    torch.testing.assert_close(fusion(only), fusion.projections[1](only["gyro"]), rtol=0, atol=0)


@pytest.mark.parametrize("kind", FUSIONS)
def test_absent_modality_does_not_touch_its_own_parameters(kind: type[nn.Module]) -> None:
    fusion = kind(DIMS, 6)
    fusion(embeddings(("acc", "mag.x"))).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in fusion.named_parameters()}
    for name in ("projections.1.weight", "projections.1.bias", "gates.1.weight", "gates.1.bias"):
        assert gradients.get(name) is None
    reader = {
        Attention: "scores.weight",
        Concatenation: "projection.weight",
        GatedUnits: "gates.0.weight",
    }
    if kind in reader:
        gradient = gradients[reader[kind]]
        assert gradient is not None
        assert not gradient[:, 3:5].any()
        assert gradient[:, :3].any()
        assert gradient[:, 5:].any()


@pytest.mark.parametrize("kind", FUSIONS)
def test_what_is_normalised_is_the_fused_representation(kind: type[nn.Module]) -> None:
    plain, layer, batch = (kind(DIMS, 6, norm) for norm in ("none", "layer", "batch"))
    for other in (layer, batch):
        other.load_state_dict(plain.state_dict(), strict=False)
    fused = plain(embeddings())
    torch.testing.assert_close(layer(embeddings()), nn.LayerNorm(6)(fused))
    torch.testing.assert_close(batch(embeddings()), nn.BatchNorm1d(6)(fused))


@pytest.mark.parametrize("kind", FUSIONS)
def test_order_of_embeddings_does_not_matter(kind: type[nn.Module]) -> None:
    fusion = kind(dict(reversed(DIMS.items())), 6)
    forward, backward = embeddings(), dict(reversed(embeddings().items()))
    assert torch.equal(fusion(forward), fusion(backward))


def test_concat_reads_an_absent_modality_as_zeros() -> None:
    fusion = Concatenation(DIMS, 6)
    present = embeddings(("acc",))
    zeros = {name: torch.zeros(5, dim) for name, dim in DIMS.items()}
    assert torch.equal(fusion(present), fusion({**zeros, **present}))


@pytest.mark.parametrize("kind", FUSIONS)
def test_nothing_present_and_unknown_modalities_are_refused(kind: type[nn.Module]) -> None:
    fusion = kind(DIMS, 6)
    with pytest.raises(ValueError, match=r"embeddings of none; expected one or more of acc, gyro, mag\.x"):
        fusion({})
    with pytest.raises(ValueError, match="embeddings of image; expected one or more of acc"):
        fusion({"image": torch.zeros(5, 3)})
