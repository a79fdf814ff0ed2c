"""A model by itself computes what the client's model computes, to the bit: all kinds of blocks, rules and absences."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any, get_args

import numpy as np
import pytest
import torch
from test_kinds import OwnFusion, kinds, samples

from blossom_ray.clients.samples import gathered
from blossom_ray.data.sets.base import standardised
from blossom_ray.models.build import build_client_model, describe_block
from blossom_ray.models.encoder_options import EmbeddingEncoder, Encoder
from blossom_ray.models.fusion_options import Fusion, Head
from blossom_ray.models.options import MissingRule, Model
from blossom_ray.models.predict import outputs
from blossom_ray.models.standalone import StandaloneModel

SHAPES: dict[str, tuple[int, ...]] = {"acc": (40, 3), "image": (2, 24, 24), "mag.x": (11,)}

pytestmark = pytest.mark.usefixtures("one_thread")


def own_encoder(shape: tuple[int, ...]) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(int(np.prod(shape)), 4))


def own_fusion(dims: dict[str, int]) -> torch.nn.Module:
    return OwnFusion()


OWN = {"encoder": "test_standalone:own_encoder", "fusion": "test_standalone:own_fusion", "head": "torch.nn:Linear"}


def check_same(owned: tuple[str, ...], precision: Any = "float32", **blocks: Any) -> None:
    """Compare both for all sets of modalities that a batch can have, with statistics as after training."""
    encoders = {
        "acc": {"kind": "gru"},
        "image": {"kind": "conv2d"},
        "mag.x": {"kind": "mlp"},
        **blocks.pop("encoders", {}),
    }
    section = Model.model_validate({"encoders": encoders, **blocks})
    client, dims = build_client_model(section, SHAPES, 3, owned, 3, owned), section.embedding_dims(SHAPES)
    client.precision = precision
    for name, values in client.named_buffers():
        if values.is_floating_point():
            values.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    description = {
        "outputs": ["a", "b", "c"],
        "modalities": {name: {"columns": [name], "normalisation": None} for name in client.owned},
        "missing": section.missing,
        "input_shapes": SHAPES,
        "embedding_dims": dims,
        "precision": precision,
        "blocks": {name: describe_block(name, section, SHAPES, 3, dims) for name in client.blocks},
    }
    model = StandaloneModel(json.loads(json.dumps(description)))
    weights = {f"{b}/{name}": v for b, module in client.blocks.items() for name, v in module.state_dict().items()}
    model.load_weights(weights)
    assert not model.training
    assert model.weights().keys() == weights.keys()
    inputs = {name: samples(section.encoders[name], 7, SHAPES[name]) for name in owned}
    everyone = torch.arange(7)
    with torch.no_grad():
        for present in (names for size in range(1, len(owned) + 1) for names in combinations(owned, size)):
            batch = {name: inputs[name] for name in present}
            assert model(batch).numpy().tobytes() == client(batch).numpy().tobytes(), present
        if section.fusion.kind == "custom" and section.missing == "mask":
            return  # a fusion of the user's own is given no masks
        # Each row lacks one of them, or none; what stands in their place is not looked at.
        observed = {name: (everyone + number) % 4 > 0 for number, name in enumerate(owned)}
        if len(owned) > 1:
            expected = client(*gathered(inputs, observed, everyone))
            filled = {name: values.clone() for name, values in inputs.items()}
            for name, has in observed.items():
                filled[name][~has] = 1e30
            assert model(filled, observed).numpy().tobytes() == expected.numpy().tobytes()


@pytest.mark.parametrize("missing", get_args(MissingRule))
@pytest.mark.parametrize("fusion", kinds(Fusion, OWN["fusion"]), ids=lambda section: section.kind)
def test_every_fusion_under_every_rule(fusion: Any, missing: str) -> None:
    check_same(("acc", "mag.x"), fusion=fusion, missing=missing)


@pytest.mark.parametrize("section", kinds(Encoder, OWN["encoder"]), ids=lambda section: section.kind)
def test_every_encoder(section: Any) -> None:
    takes = [name for name, shape in SHAPES.items() if not list(section.misfits(shape, name))]
    for name in takes:
        check_same(tuple(SHAPES), encoders={name: section})
    assert takes


@pytest.mark.parametrize("section", kinds(Head, OWN["head"]), ids=lambda section: section.kind)
def test_every_head(section: Any) -> None:
    check_same(("acc",), head=section, missing="zero-input")


def test_what_the_defaults_leave_out() -> None:
    batch_norm = {"kind": "mlp", "hidden": [6], "norm": "batch"}
    check_same(("acc", "image"), head=batch_norm, fusion={"kind": "mean", "norm": "batch"}, missing="zero-input")
    check_same(("acc", "image"), "bfloat16", missing="zero-embedding")
    image = {"kind": "conv2d", "channels": [4, 4], "kernel_size": [5, 3], "norm": "group", "global_pool": True}
    check_same(("image",), encoders={"image": image, "acc": {"kind": "conv1d", "dim": 5}})


@pytest.mark.parametrize("fusion", [{"kind": "custom", "factory": OWN["fusion"]}, {"kind": "attention", "dim": 6}])
def test_rows_are_predicted_as_each_alone(fusion: dict[str, Any]) -> None:
    """A fusion of the user's own is never shown rows that have different modalities."""
    encoders = {"acc": {"kind": "gru"}, "mag.x": {"kind": "mlp"}}
    section = Model.model_validate({"encoders": encoders, "fusion": fusion})
    dims, shapes = section.embedding_dims(SHAPES), {name: SHAPES[name] for name in encoders}
    blocks = build_client_model(section, shapes, 3, shapes, 3).blocks
    description = {
        "outputs": ["a", "b", "c"], "modalities": {name: {"normalisation": None} for name in shapes},
        "missing": "mask", "embedding_dims": dims, "precision": "float32",
        "blocks": {name: describe_block(name, section, shapes, 3, dims) for name in blocks},
    }  # fmt: skip
    model, draw = StandaloneModel(description), np.random.default_rng(0)
    present = {"acc": np.arange(9) % 3 > 0, "mag.x": np.arange(9) % 3 < 2}
    samples = {name: (has, draw.normal(size=(9, *shapes[name])).astype(np.float32)) for name, has in present.items()}
    found = outputs(model, samples, batch_size=4)[""]
    for row in range(9):
        alone = {name: torch.from_numpy(v[row : row + 1]) for name, (has, v) in samples.items() if has[row]}
        with torch.no_grad():
            np.testing.assert_allclose(found[row], model(alone)[0].numpy(), rtol=1e-5, atol=1e-6)


def model_of(modality: dict[str, Any], missing: str = "mask") -> StandaloneModel:
    description = {
        "modalities": {"acc": modality}, "missing": missing, "embedding_dims": {"acc": 1, "gyro": 1}, "blocks": {},
        "precision": "float32",
    }  # fmt: skip
    return StandaloneModel(description)


def test_windows_are_brought_to_the_scale_of_the_loaders() -> None:
    windows = np.random.default_rng(0).normal(3, 5, (5, 20, 3)).astype(np.float32)
    windows[2, :, 1] = 0.1  # a constant channel
    found = model_of({"normalisation": {"kind": "window"}}).prepared("acc", windows)
    assert found.tobytes() == standardised(windows).tobytes()


def test_channels_are_brought_to_the_scale_of_the_training_rows() -> None:
    how = {"kind": "channel", "mean": [[1.0, 2.0]], "deviation": [[2.0, 4.0]]}
    found = model_of({"normalisation": how}).prepared("acc", np.array([[[3.0, 6.0], [1.0, 2.0]]], np.float32))
    assert found.dtype == np.float32
    assert found.tolist() == [[[1.0, 1.0], [0.0, 0.0]]]


def test_what_cannot_be_computed_is_said() -> None:
    model = model_of({"normalisation": None}, "prototype")
    model.blocks["encoder/acc"] = torch.nn.Flatten()
    with pytest.raises(ValueError, match="nothing of acc is there; expected some of them"):
        model({"gyro": torch.zeros(1, 1)})
    with pytest.raises(ValueError, match="nothing of acc is there"):
        model({"acc": torch.zeros(2, 1)}, {"acc": torch.tensor([False, False])})
    with pytest.raises(ValueError, match="gyro is missing, and nobody lacked it in training, so there is no prototype"):
        model({"acc": torch.zeros(2, 1)})


@pytest.mark.parametrize("pooling", ["mean", "gru"])
def test_what_is_no_token_is_said(pooling: str) -> None:
    model = model_of({"normalisation": None})
    section = EmbeddingEncoder(kind="embedding", vocabulary=5, pooling=pooling)
    model.blocks["encoder/acc"] = section.build((2,))
    tokens = np.array([[4.0, 0.0], [0.0, 0.0]], np.float32)
    assert model.prepared("acc", tokens).tolist() == tokens.tolist()
    with pytest.raises(ValueError, match="acc has the token 5, while vocabulary is 5; expected at least 6"):
        model.prepared("acc", tokens + 1)
    with pytest.raises(ValueError, match=r"acc has 3\.5 in row 0; expected whole numbers of tokens, 0 for padding"):
        model.prepared("acc", tokens - 0.5)
