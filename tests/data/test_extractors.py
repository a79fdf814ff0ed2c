"""Frozen models as functions of samples, against plain loops over PyTorch and `transformers`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from blossom_ray.data.modalities.extractors import Extractor, open_extractor
from blossom_ray.data.modalities.features import Features, features_key
from blossom_ray.errors import DataError, InputError

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


class SmallCnn(nn.Module):
    """Two convolutions, batch norm and dropout, a pooled map and a head, as pretrained models of pictures have them."""

    def __init__(self, width: int = 6, num_classes: int = 4) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3)]
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(width, num_classes)
        self.unused = nn.Linear(2, 2)
        self.count = nn.Identity()

    def forward(self, pictures: Tensor) -> Tensor:
        values: Tensor = self.head(self.dropout(self.avgpool(self.features(pictures)).flatten(1)))
        return values


def recurrent() -> nn.Module:
    """Gives a tuple: states of all positions, and the last one."""
    return nn.GRU(1, 5, batch_first=True)


def made(model: nn.Module) -> nn.Module:
    """With statistics of batch norm that are not those of a new module."""
    with torch.no_grad():
        for name, values in model.state_dict().items():
            if values.is_floating_point():
                values.copy_(torch.rand(values.shape, generator=torch.Generator().manual_seed(len(name))) + 0.1)
    return model.eval()


@pytest.fixture
def cnn() -> nn.Module:
    return made(SmallCnn())


@pytest.fixture
def weights(cnn: nn.Module, tmp_path: Path) -> Path:
    save_file(cnn.state_dict(), tmp_path / "cnn.safetensors")
    return tmp_path / "cnn.safetensors"


def extractor(kind: str = "image", rate: int | None = None, **options: Any) -> Extractor:
    options.setdefault("module", f"{__name__}:SmallCnn") if "transformers" not in options else None
    return open_extractor(Features.model_validate(options), "data.modalities.a.features", kind=kind, rate=rate)


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


def channels(*numbers: float) -> np.ndarray:
    return np.reshape(numbers, (3, 1, 1))


def test_layers_of_a_factory_s_model(cnn: Any, weights: Path) -> None:
    pictures = drawn(5, 3, 16, 12)
    normal = torch.tensor((pictures - channels(*IMAGENET["mean"])) / channels(*IMAGENET["std"]), dtype=torch.float32)
    with torch.no_grad():
        maps = cnn.features(normal)
    of_file = {"weights": str(weights), **IMAGENET}
    expected: dict[str, Tensor] = {
        "vector": maps.mean((2, 3)),
        "sequence": torch.stack([maps[:, :, y, x] for y in range(5) for x in range(3)], 1),
    }
    for output, values in expected.items():
        found = extractor(layer="features", output=output, **of_file)(pictures)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, values.numpy(), rtol=2e-6)
    np.testing.assert_allclose(extractor(layer="avgpool", **of_file)(pictures), expected["vector"], rtol=2e-6)
    with torch.no_grad():
        np.testing.assert_allclose(extractor(**of_file)(pictures), cnn(normal), rtol=2e-6)
        np.testing.assert_allclose(extractor(weights=str(weights))(pictures), cnn(torch.tensor(pictures)), rtol=2e-6)


def test_samples_do_not_see_each_other(weights: Path) -> None:
    model, pictures = extractor(weights=str(weights), layer="avgpool"), drawn(6, 3, 9, 9)
    alone = np.concatenate([model(pictures[row : row + 1]) for row in range(6)])
    np.testing.assert_allclose(model(pictures), alone, rtol=1e-5)
    np.testing.assert_array_equal(model(pictures), model(pictures))


class Settings(nn.Module):
    """Gives what it is computed with."""

    def forward(self, pictures: Tensor) -> Tensor:
        flags = torch.backends.cudnn
        told = [flags.allow_tf32, flags.benchmark, flags.deterministic, torch.is_inference_mode_enabled()]
        return torch.tensor([told] * len(pictures)).float()


def test_what_a_model_is_computed_with() -> None:
    """No rounding to TF32, no algorithm by the clock, no gradients: also where the program has set it otherwise."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
        assert extractor(module=Settings)(drawn(1, 3, 4, 4)).tolist() == [[0, 0, 1, 1]]
        assert torch.backends.cudnn.allow_tf32


def test_torch_is_as_it_was(weights: Path) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    extractor(weights=str(weights))(drawn(2, 3, 9, 9))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_of_the_program_s_own_stays_as_it_is() -> None:
    own = SmallCnn().double()
    found = extractor(module=lambda: own, layer="avgpool")(drawn(2, 3, 9, 9))
    assert found.shape == (2, 6)
    assert own.training
    assert {(value.dtype, value.requires_grad) for value in own.parameters()} == {(torch.float64, True)}


def test_without_a_file_values_are_drawn_from_seed_0() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = SmallCnn(num_classes=3).eval()
    pictures = drawn(2, 3, 9, 9)
    found = extractor(options={"num_classes": 3})(pictures)
    np.testing.assert_allclose(found, expected(torch.tensor(pictures)).detach(), rtol=1e-6)


def test_own_sounds_and_tokens() -> None:
    signal = drawn(3, 7, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = recurrent()
    states = expected(torch.tensor(signal))[0].detach()
    found = extractor("series", module="torch.nn:GRU", options={"input_size": 1, "hidden_size": 5, "batch_first": True})
    with pytest.raises(DataError, match=r"the model gives tuple; expected a tensor of floats, or a layer with one"):
        found(signal)
    wrapped = extractor("series", module=lambda: nn.Sequential(recurrent()), layer="0", output="sequence")
    np.testing.assert_allclose(wrapped(signal), states, rtol=1e-6)
    table = extractor("text", module="torch.nn:Embedding", options={"num_embeddings": 9, "embedding_dim": 4})
    tokens = np.array([[3, 8, 0]], np.float32)
    np.testing.assert_allclose(table(tokens), table.module.weight[[3, 8, 0]].mean(0)[None], rtol=1e-6)  # type: ignore[index]


@pytest.mark.parametrize("form", ["safetensors", "state dict", "checkpoint", "old", "prefixed"])
def test_forms_of_weights(cnn: nn.Module, tmp_path: Path, form: str) -> None:
    values, path = cnn.state_dict(), tmp_path / "values"
    match form:
        case "safetensors":
            save_file({name: value.half() for name, value in values.items()}, path)
        case "state dict":
            torch.save(values, path)
        case "checkpoint":
            torch.save({"epoch": 3, "state_dict": values}, path)
        case "old":
            del values["features.1.num_batches_tracked"]
            torch.save(values, path, _use_new_zipfile_serialization=False)
        case "prefixed":
            torch.save(
                {"model": {f"net.{name}": value for name, value in values.items()} | {"other": torch.ones(1)}}, path
            )
    pictures = drawn(2, 3, 9, 9)
    found = extractor(weights=str(path), **({"prefix": "net."} if form == "prefixed" else {}))(pictures)
    rounding = 5e-3 if form == "safetensors" else 2e-6
    np.testing.assert_allclose(found, cnn(torch.tensor(pictures)).detach(), rtol=rounding)


def without(values: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda own: without(own, "head.weight"), r"cnn.pt is not of this model: missing are head.weight; expected"),
        (lambda own: {**own, "x.y": torch.ones(1)}, r"unexpected are x.y; expected its tensors"),
        (lambda own: {**own, "head.bias": torch.ones(7)}, r"of another shape are head.bias \[7\] instead of \[4\];"),
        (
            lambda own: {f"module.{name}": value for name, value in own.items()},
            r"missing are .* and \d+ more; unexpected are module.*; expected its tensors; is 'module.' the prefix\?",
        ),
        (lambda own: {"epoch": 3}, r"holds no tensors by name; expected a safetensors file, or a state dict that"),
        (lambda own: SmallCnn(), r"is no state dict, or holds more than tensors; expected .*model.state_dict\(\)"),
    ],
)  # fmt: skip
def test_weights_of_another_model(cnn: nn.Module, tmp_path: Path, change: Callable[[Any], Any], error: str) -> None:
    torch.save(change(dict(cnn.state_dict())), tmp_path / "cnn.pt")
    with pytest.raises(DataError, match=error):
        extractor(weights=str(tmp_path / "cnn.pt"))


def test_a_file_that_is_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cnn.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DataError, match=r"features.weights: cnn.pt cannot be read \(.*\); expected a safetensors file"):
        extractor(weights="cnn.pt")
    with pytest.raises(
        DataError, match=rf"{tmp_path}/no.pt does not exist; expected .* there .* nothing is downloaded"
    ):
        extractor(weights="no.pt")
    with pytest.raises(DataError, match="is no file"):
        extractor(weights=".")


def downloads() -> nn.Module:
    torch.hub.load_state_dict_from_url("https://example.invalid/cnn.pth", model_dir="nowhere")
    return SmallCnn()


def test_downloads_are_refused_while_a_model_is_built_alone() -> None:
    before = torch.hub.download_url_to_file, os.environ.get("HF_HUB_OFFLINE"), huggingface_hub.constants.HF_HUB_OFFLINE
    with pytest.raises(DataError, match="nothing is downloaded; expected its values in weights"):
        extractor(module=downloads)
    extractor()
    after = torch.hub.download_url_to_file, os.environ.get("HF_HUB_OFFLINE"), huggingface_hub.constants.HF_HUB_OFFLINE
    assert after == before


def one_more() -> nn.Module:
    class OneMore(nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            return torch.ones(len(pictures) + 1, 2)

    return OneMore()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"module": "no_such_module:cnn"}, r"features.module is 'no_such_module:cnn', but there is no module"),
        ({"module": "torch.nn:NoSuch"}, "has no attribute 'NoSuch'"),
        ({"options": {"depth": 3}}, r"features.module raised TypeError: .*'depth'"),
        ({"module": "builtins:dict"}, r"features.module returned dict; expected a torch.nn.Module"),
        ({"layer": "avgpol"}, r"expected one of features, avgpool, dropout, head and 2 more.*you mean 'avgpool'"),
        ({"layer": "unused"}, r"features.layer is 'unused', which no sample passes; expected another layer"),
        ({"output": "sequence"}, r"is 'sequence', while the model gives a vector of 4; expected vector, or a layer"),
        ({"mean": [0.5, 0.5], "std": [1.0]}, r"mean and std have 2 and 1 numbers; expected 3 each"),
        ({"module": one_more}, r"the model gives \(3, 2\) for 2 samples; expected \(samples, dim\)"),
        ({"module": "torch.nn:Linear", "options": {"in_features": 7, "out_features": 2}},
         r"the model refuses 2 samples of shape \(3, 9, 9\) \(RuntimeError: mat1 and mat2"),
    ],
)  # fmt: skip
def test_models_that_do_not_fit(options: dict[str, Any], error: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=error):
        extractor(**options)(drawn(2, 3, 9, 9))


def saved(folder: Path, model: Any, *more: Any) -> str:
    for each in (model, *more):
        each.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def same_values() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


def bert(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "yes", "late"]))
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    config = transformers.BertConfig(vocab_size=8, max_position_embeddings=16, **sizes)
    return saved(folder, transformers.BertModel(config), tokenizer)


def test_texts_through_transformers(tmp_path: Path) -> None:
    """Padding is seen by nothing: each text gives what it gives alone, without any."""
    folder = bert(tmp_path)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokens = np.array([[3, 6, 8, 4, 0, 0], [3, 7, 4, 0, 0, 0], [0] * 6], np.float32)  # one more than the model's
    with torch.no_grad():
        alone = [model(torch.tensor([[int(number) - 1 for number in row if number]])) for row in tokens[:2]]
    vectors = extractor("text", transformers=folder)(tokens)
    sequences = extractor("text", transformers=folder, output="sequence")(tokens)
    for row, output in enumerate(alone):
        states = output.last_hidden_state[0]
        np.testing.assert_allclose(vectors[row], states.mean(0), atol=1e-6)
        np.testing.assert_allclose(sequences[row, : len(states)], states, atol=1e-6)
        assert not sequences[row, len(states) :].any()
    assert not vectors[2].any()
    with torch.no_grad():
        first = model(torch.tensor([[2, 5, 7, 3]]), output_hidden_states=True)
    layer = extractor("text", transformers=folder, layer="encoder.layer.0")(tokens)
    np.testing.assert_allclose(layer[0], first.hidden_states[1][0].mean(0), atol=1e-6)
    with pytest.raises(DataError, match=r"takes texts of 16 tokens, which .* has of 17; expected max_length: 16"):
        extractor("text", transformers=folder)(np.ones((1, 17), np.float32))
    pooled = extractor("text", transformers=folder, layer="pooler")(tokens)
    np.testing.assert_allclose(pooled[0], first.pooler_output[0], atol=1e-6)


def test_the_encoder_of_a_model_with_a_decoder(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    model = transformers.T5Model(config).eval()
    found = extractor("text", transformers=saved(tmp_path, model))(np.array([[4, 2, 0]], np.float32))
    with torch.no_grad():
        expected = model.encoder(torch.tensor([[3, 1]])).last_hidden_state.mean(1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def vit(folder: Path, **processor: Any) -> str:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(image_size=8, patch_size=4, **sizes)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return saved(folder, transformers.ViTModel(config))


@pytest.mark.parametrize(
    ("processor", "given"),
    [
        ({}, lambda bytes_: bytes_ / 255),
        ({"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.2, 0.1]},
         lambda bytes_: (bytes_ / 255 - channels(0.5, 0.4, 0.3)) / channels(0.5, 0.2, 0.1)),
        ({"do_normalize": False, "image_mean": [0.5], "image_std": [0.5]}, lambda bytes_: bytes_ / 255),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0], "image_std": [1.0]}, lambda bytes_: bytes_ / 127.5 - 1),
        ({"do_rescale": False, "image_mean": [128.0], "image_std": [64.0]}, lambda bytes_: (bytes_ - 128) / 64),
        ({"image_processor": {"image_mean": [0.25], "image_std": [2.0]}}, lambda bytes_: (bytes_ / 255 - 0.25) / 2),
    ],
)  # fmt: skip
def test_pictures_through_transformers(tmp_path: Path, processor: Any, given: Callable[[Any], Any]) -> None:
    folder = vit(tmp_path, **processor)
    bytes_ = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8))
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model(torch.tensor(given(bytes_), dtype=torch.float32)).last_hidden_state
    pictures = (bytes_ / 255).astype(np.float32)
    np.testing.assert_allclose(extractor(transformers=folder)(pictures), states.mean(1), atol=2e-5)
    np.testing.assert_allclose(extractor(transformers=folder, output="sequence")(pictures), states, atol=2e-5)


def wav2vec2(folder: Path) -> str:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.Wav2Vec2Config(
        conv_dim=(4, 4), conv_stride=(4, 2), conv_kernel=(8, 4), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, vocab_size=4, **sizes,
    )  # fmt: skip
    prepare = transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000, do_normalize=True)
    return saved(folder, transformers.Wav2Vec2Model(config), prepare)


def test_sounds_through_transformers(tmp_path: Path) -> None:
    folder = wav2vec2(tmp_path)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    sounds = 3 + 0.1 * drawn(2, 80, 1)
    normal = (sounds - sounds.mean(1, keepdims=True)) / np.sqrt(sounds.var(1, keepdims=True) + 1e-7)
    with torch.no_grad():
        states = model(torch.tensor(normal[:, :, 0])).last_hidden_state
    found = extractor("audio", 8000, transformers=folder, output="sequence")(sounds)
    np.testing.assert_allclose(found, states, atol=1e-5)
    with pytest.raises(
        DataError, match=r"is for sounds of 8000 Hz, which the modality has at 16000; expected rate: 8000"
    ):
        extractor("audio", 16000, transformers=folder)(sounds)
    with pytest.raises(DataError, match=r"takes signals, not samples of shape \(80, 4\); expected \(time, 1\)"):
        extractor("audio", 8000, transformers=folder)(drawn(2, 80, 4))
    with pytest.raises(DataError, match=r"is for pictures, sounds and texts, not for series; expected module"):
        extractor("series", transformers=folder)


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"features.transformers no/where is no folder; expected one with a model that"):
        extractor(transformers="no/where")
    with pytest.raises(DataError, match=r"has no config.json; expected a folder that save_pretrained wrote"):
        features_key(Features(transformers=str(tmp_path)), "features")
    folder = vit(tmp_path, image_mean=3)
    with pytest.raises(DataError, match=r"preprocessor_config.json cannot be read \(.*\); expected it whole, or mean"):
        extractor(transformers=folder)
    with pytest.raises(DataError, match=r"cannot be loaded \(ValueError: Unrec.*\); expected a saved model"):
        extractor("audio", 8000, transformers=folder)
    model = transformers.AutoModel.from_pretrained(folder)
    values = without(model.state_dict(), "pooler.dense.weight", "pooler.dense.bias")
    model.save_pretrained(folder, state_dict=values)
    (tmp_path / "preprocessor_config.json").unlink()
    extractor(transformers=folder)
    with pytest.raises(
        DataError, match=r"lacks values of pooler.dense.bias, pooler.dense.weight; expected a model with"
    ):
        extractor(transformers=folder, layer="pooler")
    model.save_pretrained(folder, state_dict=without(values, "layernorm.weight"))
    with pytest.raises(DataError, match=r"lacks values of layernorm.weight; expected a model with all of its values"):
        extractor(transformers=folder)


def test_what_the_key_follows_from(weights: Path, tmp_path: Path) -> None:
    """Content, not place: the same weights elsewhere are the same; other content, options or layers are not."""

    def key(**changes: Any) -> Any:
        options = {"module": f"{__name__}:SmallCnn", "weights": str(weights), **changes}
        return features_key(Features.model_validate(options), "features")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(weights.read_bytes())
    assert key(weights=str(elsewhere)) == key()
    elsewhere.write_bytes(weights.read_bytes() + b" ")
    others = [{"weights": str(elsewhere)}, {"layer": "head"}, {"options": {"width": 3}}, {"batch_size": 3}, IMAGENET]
    keys = [key(), *(key(**other) for other in others)]
    assert len({json.dumps(each) for each in keys}) == len(keys)
    (tmp_path / "bert").mkdir()
    folder = bert(tmp_path / "bert")
    before = features_key(Features(transformers=folder), "features")
    assert set(before["transformers"]) >= {"config.json", "model.safetensors", "tokenizer.json"}  # type: ignore[call-overload]
    (tmp_path / "bert" / "tokenizer.json").write_text("{}")
    assert features_key(Features(transformers=folder), "features") != before


def test_options_that_cannot_stand_together() -> None:
    def found(**options: Any) -> list[str]:
        return [finding.path for finding in Features.model_validate(options).conflicts()]

    assert found(module="a:b", weights="c") == found(transformers="a", mean=[0.5], std=[0.5]) == []
    assert found() == found(module="a:b", transformers="c") == ["module"]
    assert found(transformers="a", weights="b", prefix="c", options={"d": 1}) == ["options", "weights", "prefix"]
    assert found(module="a:b", mean=[0.5]) == ["std"]
    for wrong in ({"module": "a"}, {"std": [0.0]}, {"batch_size": 0}, {"mean": []}, {"output": "map"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Features.model_validate(wrong)
