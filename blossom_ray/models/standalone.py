"""A model by itself: what a client is scored with, made of modules alone and described in JSON.

An export has this file's text in its `model.py`, with those of `time_layers.py`, `encoders.py` and `fusion.py`: what it
needs of this package stands in these three.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blossom_ray.models.encoders import (
    ImageConvolutions,
    MeanGru,
    Mlp,
    TimeConvolutions,
    TimeConvolutionsGru,
    TokenBag,
    TokenGru,
    token_problem,
)
from blossom_ray.models.fusion import Attention, Concatenation, GatedUnits, ProjectedMean, Prototype

DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"
_CLASSES = (
    Mlp, TimeConvolutions, TimeConvolutionsGru, MeanGru, TokenBag, TokenGru, ImageConvolutions, nn.Linear,
    Attention, Concatenation, ProjectedMean, GatedUnits, Prototype,
)  # fmt: skip


class StandaloneModel(nn.Module):
    """Encoders, fusion and head of one client, and what stands for a modality that is not there. In evaluation mode.

    Of several tasks each has a head, `head/<task>`, and maybe a fusion, `fusion/<task>`.

    Args:
        description: What `model.json` says; `blocks` has how each module is made. Own code is imported, and so run.

    Attributes:
        description: The same.
        blocks: Module by block name, such as `encoder/acc`.
        modalities: Those that it takes, sorted.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        super().__init__()
        self.description = dict(description)
        self.modalities = tuple(description["modalities"])
        self.blocks = {name: _module(made) for name, made in description["blocks"].items()}
        self._registered = nn.ModuleList(self.blocks.values())  # nn.ModuleDict refuses names with a dot
        self.eval()

    def forward(
        self, inputs: Mapping[str, Tensor], observed: Mapping[str, Tensor] | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Logits, or values in a regression, (B, O) float32; of several tasks by name.

        Args:
            inputs: Modality to (B, *shape) float32, as `prepared` gives them; at least one. What stands for another one
                is what `missing` says.
            observed: Of modalities that some rows lack, which have it, (B,) bool; of the others nothing is computed.

        Raises:
            ValueError: There is none, or nothing can stand for one that is missing.
        """
        missing, embeddings, masks = self.description["missing"], dict[str, Tensor](), dict[str, Tensor]()
        reduced = self.description["precision"] == "bfloat16"
        with torch.autocast(next(iter(inputs.values())).device.type, torch.bfloat16, enabled=reduced):
            for name in [name for name in self.modalities if name in inputs]:
                encoder, values, mask = self.blocks[f"encoder/{name}"], inputs[name], (observed or {}).get(name)
                if mask is None or mask.all():
                    embeddings[name] = encoder(values)
                elif mask.any():
                    masks[name], place = mask.unsqueeze(1), (mask.cumsum(0) - 1).clamp(min=0)
                    embeddings[name] = torch.where(masks[name], encoder(values[mask])[place], 0.0)
            if not embeddings:
                raise ValueError(f"nothing of {', '.join(self.modalities)} is there; expected some of them")
            like = next(iter(embeddings.values()))
            for name in () if missing == "mask" else self.description["embedding_dims"]:
                if name not in embeddings:
                    embeddings[name] = self._stand_in(name, like)
                elif name in masks and missing != "zero-embedding":
                    embeddings[name] = torch.where(masks[name], embeddings[name], self._stand_in(name, like))
            masked = (masks,) if masks and missing == "mask" else ()
            fused: dict[str, Tensor] = {}
            found: dict[str, Tensor] = {}
            for task in tasks_of(self.description):
                head = f"head/{task}" if task else "head"
                fusion = f"fusion/{task}" if f"fusion/{task}" in self.blocks else "fusion"
                if fusion not in fused:
                    fused[fusion] = self.blocks[fusion](embeddings, *masked)
                found[task] = self.blocks[head](fused[fusion]).float()
            return found.get("", found)

    def _stand_in(self, modality: str, like: Tensor) -> Tensor:
        """The embedding (B, E) of a modality that is missing, for as many rows as `like` has."""
        if self.description["missing"] == "zero-embedding":
            return like.new_zeros(len(like), self.description["embedding_dims"][modality])
        name = f"{'encoder' if self.description['missing'] == 'zero-input' else 'prototype'}/{modality}"
        if name not in self.blocks:
            raise ValueError(f"{modality} is missing, and nobody lacked it in training, so there is no {name} for it")
        if self.description["missing"] == "prototype":
            prototype: Tensor = self.blocks[name](len(like))
            return prototype
        encoder, shape = self.blocks[name], self.description["input_shapes"][modality]
        was_training = encoder.training
        with torch.no_grad():
            embedding_1E: Tensor = encoder.eval()(torch.zeros(1, *shape, device=like.device))
        encoder.train(was_training)
        return embedding_1E.expand(len(like), -1)

    def prepared(self, modality: str, values: np.ndarray) -> np.ndarray:
        """Samples (N, *shape) in the units of the data, as the model was given them in training: float32.

        Raises:
            ValueError: They are to be numbers of tokens, and are not.
        """
        how = self.description["modalities"][modality]["normalisation"]
        found: np.ndarray = values
        if how is not None and how["kind"] != "window":
            offset, divisor = ("low", "range") if how["kind"] == "range" else ("mean", "deviation")
            found = (values - np.array(how[offset])) / np.array(how[divisor])
        elif how is not None:  # each window by itself; a constant channel becomes 0
            windows = values.astype(np.float64)
            centred, deviation = windows - windows.mean(axis=1, keepdims=True), windows.std(axis=1, keepdims=True)
            constant = np.ptp(windows, axis=1, keepdims=True) == 0
            found = np.where(constant, 0, centred / np.where(constant, 1, deviation))
        encoder = self.blocks.get(f"encoder/{modality}")
        if isinstance(encoder, TokenBag | TokenGru):
            problem = token_problem([found], encoder.embedding.num_embeddings)
            if problem is not None:
                raise ValueError(f"{modality} {problem}")
        return found.astype(np.float32, copy=False)

    def weights(self) -> dict[str, Tensor]:
        """Copies of all parameters and buffers, by block and name: `encoder/acc/gru.weight_ih_l0`."""
        return {
            f"{block}/{name}": values.detach().clone()
            for block, module in self.blocks.items()
            for name, values in module.state_dict().items()
        }

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take the result of `weights`."""
        for block, module in self.blocks.items():
            start = f"{block}/"
            own = {name.removeprefix(start): values for name, values in weights.items() if name.startswith(start)}
            module.load_state_dict(own)


def tasks_of(description: Mapping[str, Any]) -> dict[str, Any]:
    """By name what each task is and what its outputs are called; "" is the name of a single one."""
    told = ("task", "outputs")
    found: dict[str, Any] = description.get("tasks") or {"": {name: description.get(name) for name in told}}
    return found


def load(folder: str | Path) -> StandaloneModel:
    """The model of an export's folder.

    Raises:
        ImportError: Own code that it consists of is not on Python's path.
    """
    from safetensors.torch import load_file

    model = StandaloneModel(json.loads((Path(folder) / DESCRIPTION).read_text(encoding="utf-8")))
    model.load_weights(load_file(Path(folder) / WEIGHTS))
    return model


def _module(made: Mapping[str, Any]) -> nn.Module:
    """A module from its class, or its factory, and their arguments."""
    arguments = [tuple(each) if isinstance(each, list) else each for each in made["arguments"]]
    found: Any
    if "factory" in made:
        module_name, _, attribute = made["factory"].partition(":")
        try:
            found = import_module(module_name)
        except ImportError as error:
            raise ImportError(f"{made['factory']} is own code of the model, and not at hand: {error}") from error
        for name in attribute.split("."):
            found = getattr(found, name)
    else:
        found = next(each for each in _CLASSES if each.__name__ == made["class"])
    module: nn.Module = found(*arguments, **made["options"])
    return module
