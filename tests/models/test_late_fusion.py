"""The rules for missing modalities, modes of the blocks, and one-sample batches."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blossom_ray.core.blocks import held_blocks
from blossom_ray.models.build import build_client_model
from blossom_ray.models.fusion_options import AttentionFusion, ConcatFusion, Fusion, GatedFusion, MeanFusion
from blossom_ray.models.late_fusion import LateFusionModel
from blossom_ray.models.options import Model

SHAPES: Mapping[str, tuple[int, ...]] = {"acc.x": (8, 3), "gyro": (1, 8, 8), "text": (5,)}
FUSIONS = (
    AttentionFusion(kind="attention", dim=6),
    ConcatFusion(kind="concat", dim=6),
    MeanFusion(kind="mean", dim=6),
    GatedFusion(kind="gated", dim=6),
)


def section(missing: str = "mask", fusion: Fusion = FUSIONS[0]) -> Model:
    return Model.model_validate(
        {
            "encoders": {
                "acc.x": {"kind": "conv-gru", "channels": [4], "dim": 5},
                "gyro": {"kind": "conv2d", "channels": [4], "dim": 3, "dropout": 0.5},
                "text": {"kind": "mlp", "hidden": [4], "dim": 2},
            },
            "fusion": fusion,
            "head": {"kind": "mlp", "hidden": [4], "dropout": 0.0, "norm": "batch"},
            "missing": missing,
        }
    )


def client_model(owned: tuple[str, ...], missing: str = "mask", fusion: Fusion = FUSIONS[0]) -> LateFusionModel:
    return build_client_model(section(missing, fusion), SHAPES, 3, owned, seed=7)


def inputs(owned: tuple[str, ...], batch_size: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    everything = {name: torch.randn(batch_size, *shape, generator=generator) for name, shape in SHAPES.items()}
    return {name: everything[name] for name in owned}


@pytest.mark.parametrize("missing", ["mask", "zero-embedding", "zero-input"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("owned", [("acc.x",), ("gyro", "text"), ("acc.x", "gyro", "text")])
def test_logits_for_every_rule_and_modality_set(missing: str, fusion: Fusion, owned: tuple[str, ...]) -> None:
    model = client_model(owned, missing, fusion)
    model.train()
    assert model(inputs(owned)).shape == (4, 3)
    encoders = owned if missing != "zero-input" else tuple(SHAPES)
    assert tuple(model.blocks) == (*(f"encoder/{name}" for name in encoders), "fusion", "head")
    assert {id(p) for p in model.parameters()} == {id(p) for b in model.blocks.values() for p in b.parameters()}


@pytest.mark.parametrize("fusion", [FUSIONS[0], FUSIONS[2]])
def test_mask_output_depends_on_nothing_of_an_absent_modality(fusion: Fusion) -> None:
    model = client_model(("acc.x",), fusion=fusion)
    before = model(inputs(("acc.x",)))
    block: Any = model.blocks["fusion"]
    with torch.no_grad():
        for index in (1, 2):
            for parameter in block.projections[index].parameters():
                parameter.add_(1.0)
        if isinstance(fusion, AttentionFusion):
            block.scores.weight[:, 5:] += 1.0
            block.scores.bias[1:] += 1.0
    assert torch.equal(model(inputs(tuple(SHAPES))), before)


def test_concat_under_mask_equals_zero_embedding_exactly() -> None:
    batch = inputs(("acc.x", "text"))
    masked = client_model(("acc.x", "text"), "mask", FUSIONS[1])(batch)
    zeros = client_model(("acc.x", "text"), "zero-embedding", FUSIONS[1])(batch)
    assert torch.equal(masked, zeros)


def test_zero_embedding_gives_attention_to_absent_modalities() -> None:
    batch = inputs(("acc.x",))
    assert not torch.equal(client_model(("acc.x",), "zero-embedding")(batch), client_model(("acc.x",))(batch))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_zero_input_equals_a_client_that_owns_zeros(fusion: Fusion) -> None:
    batch = inputs(tuple(SHAPES)) | {name: torch.zeros(4, *SHAPES[name]) for name in ("gyro", "text")}
    stands_in = client_model(("acc.x",), "zero-input", fusion)({"acc.x": batch["acc.x"]})
    torch.testing.assert_close(stands_in, client_model(tuple(SHAPES), "mask", fusion)(batch))


def test_zero_input_never_trains_an_unowned_encoder() -> None:
    model = client_model(("acc.x",), "zero-input")
    assert model.unowned_blocks == ("encoder/gyro", "encoder/text")
    before = copy.deepcopy(model.blocks["encoder/gyro"].state_dict())
    for _ in range(2):
        model.training_mode(batch_size=4)
        model(inputs(("acc.x",))).square().sum().backward()
    for name, module in model.blocks.items():
        assert module.training is (name not in model.unowned_blocks)
        gradients = [parameter.grad is not None for parameter in module.parameters()]
        assert all(gradients) if name == "encoder/acc.x" else True
        assert not any(gradients) if name in model.unowned_blocks else True
    after = model.blocks["encoder/gyro"].state_dict()
    assert all(torch.equal(values, after[name]) for name, values in before.items())


def test_frozen_blocks_stay_in_evaluation_mode() -> None:
    model = client_model(("gyro",))
    model.blocks["encoder/gyro"].requires_grad_(False)
    model.training_mode(batch_size=4)
    assert not any(module.training for module in model.blocks["encoder/gyro"].modules())
    assert all(module.training for module in model.blocks["head"].modules())
    model.eval()
    assert not any(module.training for module in model.modules())


def test_a_batch_of_one_uses_running_statistics() -> None:
    model = client_model(("gyro",))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == 2
    model.training_mode(batch_size=1)
    model(inputs(("gyro",), batch_size=1)).sum().backward()
    assert not any(norm.training for norm in norms)
    assert [int(norm.num_batches_tracked) for norm in norms if norm.num_batches_tracked is not None] == [0, 0]
    assert any(module.training for module in model.modules() if isinstance(module, nn.Dropout))
    model.training_mode(batch_size=2)
    model(inputs(("gyro",), batch_size=2))
    assert all(norm.training for norm in norms)
    assert [int(norm.num_batches_tracked) for norm in norms if norm.num_batches_tracked is not None] == [1, 1]


def test_wrong_modalities_and_blocks_are_refused() -> None:
    assert held_blocks(["b"], ["b", "a"], "mask") == ("encoder/b", "fusion", "head")
    assert held_blocks(["b"], ["b", "a"], "zero-input") == ("encoder/a", "encoder/b", "fusion", "head")
    assert held_blocks(["b"], ["b", "a"], "prototype") == ("encoder/b", "fusion", "head", "prototype/a")
    with pytest.raises(ValueError, match=r"owned modalities are none; expected one or more of acc\.x, gyro, text"):
        client_model(())
    with pytest.raises(ValueError, match="owned modalities are image; expected"):
        client_model(("image",))
    with pytest.raises(ValueError, match="blocks are fusion; expected encoder/a, fusion, head"):
        LateFusionModel(
            {"fusion": nn.Identity()},
            owned=("a",),
            missing="mask",
            input_shapes={"a": (1,)},
            embedding_dims={"a": 1},
        )
