"""A frozen model as a function from samples to features. This imports PyTorch, so it is imported when a model runs.

The model is a factory's, with values from a file, or one that the `transformers` library saved. Nothing is downloaded.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blossom_ray.core.factories import resolve_factory
from blossom_ray.core.phrases import did_you_mean
from blossom_ray.data.modalities.features import Features, weights_file
from blossom_ray.data.modalities.saved_models import model_folder, read_saved
from blossom_ray.data.targets import FloatArray
from blossom_ray.errors import OWN_CODE_RAISES, DataError, first_line, shown_error
from blossom_ray.storage import read_file
from blossom_ray.text import brief

_MOST_NAMES = 4
_NESTED = ("state_dict", "model")
"""Under which names programs that train keep a model's values in a larger file."""
_BYTE = 255
_OFFLINE = "HF_HUB_OFFLINE"

_Call = Callable[[Tensor], tuple[Any, Tensor | None]]
"""From samples (B, *shape) to what a model returns and, of texts, which positions (B, positions) are tokens."""
_Scale = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Extractor:
    """A model in evaluation mode, and what is taken from it.

    Attributes:
        features: What is asked of it.
        where: The place of that section in the scenario, for messages.
        module: The model, on a GPU where there is one.
        call: How it is called.
        scale: From a sample to what the model gets: minus the first, divided by the second; or None.
    """

    features: Features
    where: str
    module: nn.Module
    call: _Call
    scale: _Scale | None

    def __call__(self, samples: FloatArray) -> FloatArray:
        """The features of some samples.

        Args:
            samples: (B, *shape) float32. Not modified.

        Returns:
            (B, dim) or (B, positions, dim) float32.

        Raises:
            DataError: The model refuses the samples, or gives something else than features for each of them.
        """
        device = next(self.module.parameters(), torch.empty(0)).device
        try:
            with _reproducible(), torch.inference_mode():
                output, is_token = self._output(self._scaled(torch.tensor(samples, device=device)))
                return np.asarray(self._arranged(output, is_token, len(samples)).cpu())
        except DataError:
            raise
        except OWN_CODE_RAISES as error:
            found = brief(" ".join(shown_error(error).split()))
            raise DataError(
                f"{self.where}: the model refuses {len(samples)} samples of shape {samples.shape[1:]} ({found}); "
                "expected samples of a shape that it takes, or a smaller batch_size where memory ends"
            ) from error

    def release(self) -> None:
        """Leave the GPU to others, if the model was on one."""
        self.module.cpu()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def checksum(self) -> str:
        """SHA-256 (hex) of the model's layers and values."""
        digest = hashlib.sha256(repr(self.module).encode())
        for name, value in self.module.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(np.ascontiguousarray(value.cpu()).data)
        return digest.hexdigest()

    def _scaled(self, samples: Tensor) -> Tensor:
        if self.scale is None:
            return samples
        channels = samples.shape[1 if samples.ndim == 4 else -1]
        if len(self.scale[0]) not in (1, channels) or len(self.scale[1]) not in (1, channels):
            found = f"have {len(self.scale[0])} and {len(self.scale[1])} numbers"
            raise DataError(
                f"{self.where}.mean and std {found}; expected {channels} each, as samples have channels, or one"
            )
        shape = (-1, 1, 1) if samples.ndim == 4 else (-1,)
        mean, deviation = (samples.new_tensor(numbers).reshape(shape) for numbers in self.scale)
        return (samples - mean) / deviation

    def _output(self, samples: Tensor) -> tuple[Any, Tensor | None]:
        """What the model, or its layer, gives for scaled samples, and which positions are tokens."""
        name = self.features.layer
        if name is None:
            return self.call(samples)
        outputs: list[Any] = []
        hook = self.module.get_submodule(name).register_forward_hook(lambda *given: outputs.append(given[-1]))
        try:
            _, is_token = self.call(samples)
        finally:
            hook.remove()
        if not outputs:
            raise DataError(f"{self.where}.layer is {name!r}, which no sample passes; expected another layer")
        output = outputs[-1]
        return (output[0] if isinstance(output, tuple) and output else output), is_token

    def _arranged(self, output: Any, is_token: Tensor | None, num_rows: int) -> Tensor:
        """Features as they were asked for, float32: (B, dim) or (B, positions, dim)."""
        if not isinstance(output, Tensor) or not output.is_floating_point():
            found = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise DataError(f"{self.where}: the model gives {found}; expected a tensor of floats, or a layer with one")
        if output.ndim not in (2, 3, 4) or len(output) != num_rows or not output.numel():
            raise DataError(
                f"{self.where}: the model gives {tuple(output.shape)} for {num_rows} samples; expected (samples, dim), "
                "(samples, positions, dim) or (samples, dim, height, width)"
            )
        states: Tensor = output.float()
        if states.ndim == 2:
            if self.features.output == "sequence":
                raise DataError(
                    f"{self.where}.output is 'sequence', while the model gives a vector of {states.shape[1]}; "
                    "expected vector, or a layer that gives a sequence or a map"
                )
            return states
        if states.ndim == 4:
            states = states.flatten(2).transpose(1, 2)
        num_positions: Tensor | int = states.shape[1]
        if is_token is not None and is_token.shape[1] == num_positions:
            states = torch.where(is_token[:, :, None], states, 0)
            num_positions = is_token.sum(1, keepdim=True).clamp(min=1)
        return states if self.features.output == "sequence" else states.sum(1) / num_positions


def open_extractor(features: Features, where: str, *, kind: str, rate: int | None = None) -> Extractor:
    """The model that a section describes, ready to run.

    Args:
        features: The section.
        where: Its place in the scenario, for messages.
        kind: What samples are: `image` (channels, height, width), `audio` (time, 1), `text` (positions,), numbers of
            tokens from 1 on, with `transformers` one more than the model's, and 0 for padding; or another.
        rate: Of sounds, in Hz.

    Raises:
        InputError: The factory cannot be found.
        DataError: The model cannot be built or read, its values are not those of a file, or it has no such layer.
    """
    scale: _Scale | None = None if features.mean is None or features.std is None else (features.mean, features.std)
    if features.transformers is None:
        module = _built(features, where)
        if features.weights is not None:
            _load_values(module, features, where)
        call: _Call = (
            (lambda samples: (module(samples.long()), None))
            if kind == "text"
            else (lambda samples: (module(samples), None))
        )
    else:
        folder = model_folder(features.transformers, f"{where}.transformers")
        module = _saved(features, folder, f"{where}.transformers")
        call = _call_of(module, folder, f"{where}.transformers", kind, rate)
        if kind == "image" and scale is None:
            scale = _processor_scale(folder, where)
    layers = dict(module.named_modules())
    if features.layer is not None and features.layer not in layers:
        known = _some([name for name, _ in module.named_children()])
        near = did_you_mean(features.layer, [name for name in layers if name])
        raise DataError(
            f"{where}.layer is {brief(features.layer)!r}, not in the model; expected one of {known}, or within{near}"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Extractor(features, where, module.float().eval().requires_grad_(False).to(device), call, scale)


def _built(features: Features, where: str) -> nn.Module:
    assert features.module is not None
    factory = resolve_factory(features.module, f"{where}.module")
    with torch.random.fork_rng(devices=[]), _offline():
        torch.default_generator.manual_seed(0)  # not `torch.manual_seed`, which would seed GPUs for good
        try:
            module = factory(**features.options)
        except OWN_CODE_RAISES as error:
            raise DataError(f"{where}.module raised {first_line(shown_error(error))}") from error
    if not isinstance(module, nn.Module):
        raise DataError(f"{where}.module returned {type(module).__name__}; expected a torch.nn.Module")
    # What a program holds is not to be changed.
    return module if isinstance(features.module, str) else copy.deepcopy(module)


def _load_values(module: nn.Module, features: Features, where: str) -> None:
    """Put a file's values in the place of the module's own; all of them, and no others."""
    path = weights_file(features, where)
    tensors = {
        name.removeprefix(features.prefix): value
        for name, value in _tensors(path, where).items()
        if name.startswith(features.prefix)
    }
    own = module.state_dict()
    # Files of old versions of PyTorch lack these counts, which nothing in evaluation mode looks at.
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in tensors if name not in own]
    shapes = [
        f"{name} {list(tensors[name].shape)} instead of {list(value.shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    found = {"missing are": missing, "unexpected are": unexpected, "of another shape are": shapes}
    if any(found.values()):
        parts = "; ".join(f"{what} {_some(names)}" for what, names in found.items() if names)
        begin = (
            next((name.removesuffix(missing[0]) for name in unexpected if name.endswith(missing[0])), "")
            if missing
            else ""
        )
        hint = f"; is {begin!r} the prefix?" if begin else ""
        raise DataError(f"{where}.weights: {path.name} is not of this model: {parts}; expected its tensors{hint}")
    module.load_state_dict(tensors, strict=False)


def _tensors(path: Path, where: str) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file, or of a state dict; code in a file is not run."""
    from safetensors.torch import load_file

    expected = "a safetensors file, or a state dict that torch.save wrote"
    try:
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"
        if is_safetensors:
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = f"{where}.weights: {path} is no state dict, or holds more than tensors"
        raise DataError(f"{found}; expected {expected}: torch.save(model.state_dict(), path)") from error
    except Exception as error:  # damaged files lead both libraries to errors of many types
        reason = brief(first_line(f"{type(error).__name__}: {error}"))
        raise DataError(f"{where}.weights: {path} cannot be read ({reason}); expected {expected}") from error
    for name in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    tensors = (
        {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
        if isinstance(found, Mapping)
        else {}
    )
    if not tensors:
        raise DataError(f"{where}.weights: {path} holds no tensors by name; expected {expected}")
    return tensors


def _saved(features: Features, folder: Path, where: str) -> nn.Module:
    """The model of a folder; of one with a decoder, its encoder."""
    module, told = read_saved("AutoModel", folder, where, output_loading_info=True)
    # Models that were trained without a pooler lack its values, and are used without it.
    is_used = (features.layer or "").startswith("pooler")
    missing = [name for name in sorted(told["missing_keys"]) if is_used or not name.startswith("pooler.")]
    if missing:
        raise DataError(f"{where} {folder} lacks values of {_some(missing)}; expected a model with all of its values")
    found: nn.Module = module.get_encoder() if getattr(module.config, "is_encoder_decoder", False) else module
    return found


def _call_of(module: nn.Module, folder: Path, where: str, kind: str, rate: int | None) -> _Call:
    """How samples of a kind are given to a model of `transformers`."""

    def hidden(**inputs: Tensor) -> Any:
        output = module(**inputs)
        return getattr(output, "last_hidden_state", output)

    if kind == "text":

        def call(samples: Tensor) -> tuple[Any, Tensor | None]:
            longest = getattr(module.config, "max_position_embeddings", None)
            if isinstance(longest, int) and 0 < longest < samples.shape[1]:
                found = f"{where} takes texts of {longest} tokens, which the modality has of {samples.shape[1]}"
                raise DataError(f"{found}; expected max_length: {longest}, or less")
            is_token = samples > 0
            numbers = (samples.long() - 1).clamp(min=0)
            return hidden(input_ids=numbers, attention_mask=is_token.long()), is_token

    elif kind == "image":

        def call(samples: Tensor) -> tuple[Any, Tensor | None]:
            return hidden(pixel_values=samples), None

    elif kind == "audio":
        prepare = read_saved("AutoFeatureExtractor", folder, where)
        if rate != prepare.sampling_rate:
            found = f"{where} is for sounds of {prepare.sampling_rate} Hz, which the modality has at {rate}"
            raise DataError(f"{found}; expected rate: {prepare.sampling_rate}")

        def call(samples: Tensor) -> tuple[Any, Tensor | None]:
            if samples.ndim != 3 or samples.shape[2] != 1:
                found = f"{where} takes signals, not samples of shape {tuple(samples.shape[1:])}"
                raise DataError(f"{found}; expected (time, 1), which raw sounds of one channel have")
            signals = list(samples[:, :, 0].cpu().numpy())
            return hidden(**prepare(signals, sampling_rate=rate, return_tensors="pt").to(samples.device)), None

    else:
        raise DataError(f"{where} is for pictures, sounds and texts, not for {kind}; expected module in its place")
    return call


def _processor_scale(folder: Path, where: str) -> _Scale | None:
    """What the processor of pictures in a folder does to values from 0 to 1, as `Extractor.scale`."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if not (folder / name).is_file():
            continue
        try:
            said = json.loads(read_file(folder / name))
            said = said.get("image_processor", said)
            # The processor multiplies bytes, by default so that they become 0 to 1.
            factor = _BYTE * said.get("rescale_factor", 1 / _BYTE) if said.get("do_rescale", True) else _BYTE
            is_normalized = said.get("do_normalize", True) and "image_mean" in said
            means, deviations = (said["image_mean"], said["image_std"]) if is_normalized else ([0.0], [1.0])
            return [mean / factor for mean in means], [deviation / factor for deviation in deviations]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
            found = f"{where}.transformers: {folder / name} cannot be read ({brief(first_line(error))})"
            raise DataError(f"{found}; expected it whole, or mean and std beside transformers") from error
    return None


def _some(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return f"{', '.join(brief(name) for name in names[:_MOST_NAMES])}{more}"


@contextmanager
def _reproducible() -> Iterator[None]:
    """Meanwhile float32 is float32, no algorithm is chosen by the clock, and all cores of this process compute."""
    num_threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(num_threads)
        torch.set_float32_matmul_precision(precision)


@contextmanager
def _offline() -> Iterator[None]:
    """Meanwhile the hubs of PyTorch and Hugging Face refuse to download what a factory asks them for."""

    def refuse(url: str, *_: object, **__: object) -> None:
        raise ValueError(f"it would download {url}, and nothing is downloaded; expected its values in weights")

    constants = sys.modules.get("huggingface_hub.constants")
    before = torch.hub.download_url_to_file, os.environ.get(_OFFLINE), getattr(constants, _OFFLINE, None)
    torch.hub.download_url_to_file, os.environ[_OFFLINE] = refuse, "1"
    if constants is not None:
        setattr(constants, _OFFLINE, True)
    try:
        yield
    finally:
        torch.hub.download_url_to_file = before[0]
        if before[1] is None:
            del os.environ[_OFFLINE]
        else:
            os.environ[_OFFLINE] = before[1]
        if constants is not None:
            setattr(constants, _OFFLINE, before[2])
