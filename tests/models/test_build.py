"""The paper's models, initial values, and own code that does not do what it should."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blossom_ray.core.blocks import HEAD, Block
from blossom_ray.errors import InputError
from blossom_ray.models.build import build_block, build_client_model
from blossom_ray.models.options import Model

CONV_GRU = {"kind": "conv-gru"}
HAR: dict[str, Any] = {"encoders": {"acc": CONV_GRU, "gyro": CONV_GRU}, "head": {"kind": "mlp"}}
HAR_SHAPES = {"acc": (128, 3), "gyro": (128, 3)}
ECG: dict[str, Any] = {
    "encoders": {"limb": CONV_GRU | {"dim": 64}, "chest": CONV_GRU | {"dim": 64}},
    "fusion": {"kind": "attention", "dim": 128},
}
AV_MNIST: dict[str, Any] = {
    "encoders": {
        "image": {"kind": "conv2d"},
        "audio": {
            "kind": "conv2d",
            "channels": [8, 16, 32, 64],
            "kernel_size": [5, 3, 3, 3],
            "stride": 2,
            "max_pool": False,
            "global_pool": True,
            "dim": 256,
        },
    },
    "fusion": {"kind": "attention", "dim": 128},
    "head": {"kind": "mlp", "hidden": [256, 128], "dropout": 0.3, "norm": "batch"},
}
MELD: dict[str, Any] = {
    "encoders": {"audio": CONV_GRU | {"dim": 64}, "text": {"kind": "gru"}},
    "fusion": {"kind": "attention", "dim": 128},
}
SMALL: dict[str, Any] = {
    "encoders": {"acc": {"kind": "mlp", "hidden": [], "dim": 3}, "gyro": {"kind": "mlp", "hidden": [], "dim": 2}},
    "fusion": {"kind": "concat", "dim": 4},
    "head": {"kind": "linear"},
}
SHAPES = {"acc": (6,), "gyro": (5,)}


def values(module: nn.Module) -> list[float]:
    return torch.cat([tensor.detach().flatten() for tensor in module.parameters()]).tolist()


@pytest.mark.parametrize(
    ("tree", "shapes", "num_classes", "owned", "expected"),
    [
        (HAR, HAR_SHAPES, 6, ("acc", "gyro"), 385_352),
        (HAR, HAR_SHAPES, 6, ("acc",), 234_376),
        (HAR, HAR_SHAPES, 8, ("acc", "gyro"), 385_482),
        (ECG, {"limb": (1000, 6), "chest": (1000, 6)}, 5, ("limb", "chest"), 204_743),
        (ECG, {"limb": (1000, 6), "chest": (1000, 6)}, 5, ("limb",), 115_111),
        (AV_MNIST, {"image": (1, 28, 28), "audio": (2, 64, 141)}, 10, ("audio", "image"), 162_516),
        (MELD, {"audio": (1000, 80), "text": (32, 512)}, 4, ("audio", "text"), 237_862),
        (MELD, {"audio": (1000, 80), "text": (32, 512)}, 4, ("text",), 136_390),
    ],
)
def test_clients_have_the_papers_sizes(
    tree: dict[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    num_classes: int,
    owned: tuple[str, ...],
    expected: int,
) -> None:
    model = build_client_model(Model.model_validate(tree), shapes, num_classes, owned, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


# Two encoders, concat fusion and head as the paper's table of models has them.
@pytest.mark.parametrize(
    ("tree", "shapes", "num_classes", "expected"),
    [
        (HAR, HAR_SHAPES, 6, 2 * 150_976 + 65_792 + 16_838),
        (HAR, {"acc": (150, 3), "gyro": (150, 3)}, 8, 2 * 150_976 + 65_792 + 16_968),
        (ECG, {"limb": (1000, 6), "chest": (1000, 6)}, 5, 2 * 89_632 + 16_512 + 8_581),
        (AV_MNIST, {"image": (1, 28, 28), "audio": (2, 64, 141)}, 10, 41_592 + 15_248 + 36_992 + 67_978),
        (MELD, {"audio": (1000, 80), "text": (32, 512)}, 4, 101_472 + 110_976 + 16_512 + 8_516),
    ],
    ids=["uci-har", "ku-har", "ptb-xl", "av-mnist", "meld-iemocap"],
)
def test_clients_have_the_papers_sizes_with_concat_fusion(
    tree: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], num_classes: int, expected: int
) -> None:
    fusion = {"kind": "concat", "dim": tree.get("fusion", {"dim": 256})["dim"]}
    section = Model.model_validate(tree | {"fusion": fusion})
    model = build_client_model(section, shapes, num_classes, tuple(shapes), seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_initial_values_follow_from_seed_and_name_alone() -> None:
    section = Model.model_validate(SMALL)
    both = build_client_model(section, SHAPES, 2, ("gyro", "acc"), seed=3)
    alone = build_client_model(section, SHAPES, 2, ("gyro",), seed=3)
    for name, module in alone.blocks.items():
        assert values(module) == values(both.blocks[name])
        assert values(module) == values(build_block(name, section, SHAPES, 2, 3))
        assert values(module) != values(build_block(name, section, SHAPES, 2, 4))
    same_kind = Model.model_validate(HAR)
    acc, gyro = (build_block(Block("encoder", name), same_kind, HAR_SHAPES, 2, 3) for name in ("acc", "gyro"))
    assert values(acc) != values(gyro)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    build_client_model(Model.model_validate(own(head=OWN_HEAD)), SHAPES, 2, ("acc",), seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_initial_values_do_not_depend_on_the_global_generator() -> None:
    section = Model.model_validate(own(head=OWN_HEAD))
    first = values(build_block(HEAD, section, SHAPES, 2, 3))
    torch.rand(7)
    assert values(build_block(HEAD, section, SHAPES, 2, 3)) == first


def test_a_block_that_the_model_has_not() -> None:
    with pytest.raises(ValueError, match="block is 'encoder/acc2'; expected one of encoder/acc, encoder/gyro, fusion"):
        build_block(Block("encoder", "acc2"), Model.model_validate(SMALL), SHAPES, 2, 0)


def test_inputs_that_do_not_fit_name_the_scenario_path() -> None:
    section = Model.model_validate(HAR)
    expected = (
        r"^model\.encoders\.gyro\.kind is 'conv-gru', while gyro is an image of shape \[1, 28, 28\]; "
        "expected one of conv2d, mlp, custom$"
    )
    with pytest.raises(InputError, match=expected):
        build_block(Block("encoder", "gyro"), section, {"acc": (128, 3), "gyro": (1, 28, 28)}, 2, 0)


# --- own code -----------------------------------------------------------------------------------------------------


class SumFusion(nn.Module):
    """Needs all modalities: it does not work under `mask` for a client that lacks one."""

    def __init__(self, embedding_dims: dict[str, int], width: int) -> None:
        super().__init__()
        self.linears = nn.ModuleDict({name: nn.Linear(dim, width) for name, dim in embedding_dims.items()})

    def forward(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([linear(embeddings[name]) for name, linear in self.linears.items()]).sum(0)


OWN_ENCODER = {
    "kind": "custom",
    "factory": lambda input_shape, width: nn.Linear(input_shape[0], width),
    "options": {"width": 5},
}
OWN_FUSION = {"kind": "custom", "factory": SumFusion, "options": {"width": 7}}
OWN_HEAD = {"kind": "custom", "factory": nn.Linear, "options": {"bias": False}}


def own(**parts: Any) -> dict[str, Any]:
    """The small model with an own encoder for `acc`, and other own parts."""
    return SMALL | {"encoders": SMALL["encoders"] | {"acc": OWN_ENCODER}} | parts


def test_own_blocks_are_put_together_with_ours() -> None:
    section = Model.model_validate(own(fusion=OWN_FUSION, head=OWN_HEAD))
    assert section.embedding_dims(SHAPES) == {"acc": 5, "gyro": 2}
    model = build_client_model(section, SHAPES, 3, ("acc", "gyro"), seed=0)
    # 6 x 5 + 5, 5 x 2 + 2, 5 x 7 + 7 and 2 x 7 + 7, 7 x 3.
    assert [len(values(module)) for module in model.blocks.values()] == [35, 12, 63, 21]
    assert model({"acc": torch.zeros(4, 6), "gyro": torch.zeros(4, 5)}).shape == (4, 3)


def test_embedding_widths_of_our_kinds() -> None:
    tree = {
        "encoders": {
            "b": {"kind": "conv1d", "channels": [4, 6]},
            "a": {"kind": "conv1d", "dim": 9},
            "c": {"kind": "conv2d", "dim": 3},
        }
    }
    dims = Model.model_validate(tree).embedding_dims({"a": (9, 1), "b": (9, 1), "c": (1, 9, 9)})
    assert dims == {"a": 9, "b": 6, "c": 3}
    assert list(dims) == ["a", "b", "c"]


def test_own_fusion_that_needs_every_modality_is_refused_under_mask() -> None:
    tree = own(fusion=OWN_FUSION)
    build_client_model(Model.model_validate(tree | {"missing": "zero-embedding"}), SHAPES, 3, ("acc",), seed=0)
    with pytest.raises(InputError, match=r"model\.fusion: the module raised on zeros of shape \{'acc': .*KeyError"):
        build_client_model(Model.model_validate(tree), SHAPES, 3, ("acc",), seed=0)


def raises(*_: object, **__: object) -> nn.Module:
    raise RuntimeError("no weights here")


class Doubles(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.double()


class Pairs(nn.Module):
    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return inputs, inputs


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (raises, r"model\.encoders\.acc\.factory raised RuntimeError: no weights here"),
        (lambda _: 3, r"model\.encoders\.acc\.factory returned int; expected a torch\.nn\.Module"),
        (lambda _: nn.Linear(99, 1), r"model\.encoders\.acc: the module raised on zeros of shape \(2, 6\): RuntimeE"),
        (lambda _: nn.Flatten(0), r"gives torch\.float32 of shape \(12,\) for zeros .*expected a float32 .*\(2, dim\)"),
        (lambda _: Doubles(), r"gives torch\.float64 of shape \(2, 6\)"),
        (lambda _: Pairs(), r"model\.encoders\.acc: the module gives tuple for zeros"),
        (lambda _: nn.Sequential(nn.Linear(6, 1), nn.Linear(1, 1).requires_grad_(False)), "parameter '1.weight' is"),
        ("no.such.module:thing", r"model\.encoders\.acc\.factory"),
    ],
)  # fmt: skip
def test_own_encoders_that_do_not_do_what_they_should(factory: Any, message: str) -> None:
    tree = own()
    tree["encoders"] = tree["encoders"] | {"acc": {"kind": "custom", "factory": factory}}
    with pytest.raises(InputError, match=message):
        build_block(Block("encoder", "acc"), Model.model_validate(tree), SHAPES, 2, 0)


def test_own_head_of_the_wrong_width() -> None:
    head = {"kind": "custom", "factory": lambda input_dim, num_outputs: nn.Linear(input_dim, num_outputs + 1)}
    with pytest.raises(InputError, match=r"model\.head: the module gives shape \(2, 4\) .*expected .*\(2, 3\)"):
        build_block(HEAD, Model.model_validate(own(head=head)), SHAPES, 3, 0)


def test_own_lazy_modules_get_their_shape() -> None:
    tree = own()
    tree["encoders"] = {"acc": {"kind": "custom", "factory": lambda _: nn.LazyLinear(4)}}
    block = build_block(Block("encoder", "acc"), Model.model_validate(tree), SHAPES, 2, 0)
    assert len(values(block)) == 28
