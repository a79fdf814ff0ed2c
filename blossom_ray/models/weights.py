"""A block's first values from a file: where it lies, which file it is, and into the module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from safetensors import SafetensorError

from blossom_ray.core.blocks import Block
from blossom_ray.core.locations import local_path
from blossom_ray.core.phrases import one_of
from blossom_ray.errors import InputError
from blossom_ray.models.block_options import Pretrained, Weights
from blossom_ray.models.options import Model
from blossom_ray.storage import checksum

if TYPE_CHECKING:
    from torch import Tensor, nn

_Kind = TypeVar("_Kind", bound=Pretrained)
_EXPORTED = "model.safetensors"
_EXPECTED = "a safetensors file, or a folder that `blossom-ray export` has written"


def checked_sum(section: Weights) -> str:
    """SHA-256 (hex) of the file.

    Raises:
        InputError: It cannot be read, or is not the one that the section means. Begins with what was found.
    """
    try:
        found = checksum(_file(section))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}); expected {_EXPECTED}") from error
    if section.sha256 not in (None, found):
        raise InputError(f"has the checksum {found}; expected {section.sha256}, as weights.sha256 says")
    return found


def with_sums(model: Model) -> Model:
    """The section with the checksum of each file in it; errors as `checked_sum`."""
    if not model.pretrained:
        return model

    def summed(section: _Kind) -> _Kind:
        if section.weights is None:
            return section
        known = section.weights.model_copy(update={"sha256": checked_sum(section.weights)})
        return section.model_copy(update={"weights": known})

    encoders = {name: summed(section) for name, section in model.encoders.items()}
    return model.model_copy(update={"encoders": encoders, "fusion": summed(model.fusion), "head": summed(model.head)})


def load_weights(module: nn.Module, section: Weights, block: Block, where: str) -> None:
    """Put a file's values in the place of a block's own; with `frozen` nobody trains them.

    Args:
        module: The block's module.
        section: Names the file.
        block: The block.
        where: Its place in the scenario, for messages.

    Raises:
        InputError: The file is not to be had, or has other tensors; a line for each.
    """
    from safetensors.torch import load_file

    try:
        checked_sum(section)
        tensors = load_file(_file(section))
    except SafetensorError as error:
        raise InputError(
            f"{where}.weights.path is {section.path!r}, which cannot be read ({error}); expected {_EXPECTED}"
        ) from error
    except InputError as error:
        raise InputError(f"{where}.weights.path is {section.path!r}, which {error}") from error
    start = f"{section.block or block}/"
    own = {name.removeprefix(start): values for name, values in tensors.items() if name.startswith(start)}
    if not own:
        if section.block is not None:
            known = one_of(sorted({name.rpartition("/")[0] for name in tensors} - {""})) or "null"
            raise InputError(f"{where}.weights.block is {section.block!r}, not in {section.path!r}; expected {known}")
        own = tensors
    expected = module.state_dict()
    differing = []
    for name in sorted({*own, *expected}):
        there, here = (_described(found.get(name)) for found in (own, expected))
        if there != here:
            differing.append(f"  {name}: {there} in the file, {here} in the block")
    if differing:
        of_block = f"tensors of {section.block} in" if section.block else "tensors of"
        raise InputError(f"{where}.weights: the {of_block} {section.path!r} are not those of {block}:", *differing)
    if wrong := [name for name, values in own.items() if not values.isfinite().all()]:
        found = f"{where}.weights: {wrong[0]} of {section.path!r} has a value that is not finite"
        raise InputError(f"{found}; expected finite numbers")
    module.load_state_dict(own)
    if section.frozen:
        module.requires_grad_(False)


def _described(values: Tensor | None) -> str:
    """Shape of a tensor, and its type where it is none of floats: these are converted into each other."""
    if values is None:
        return "missing"
    return f"{list(values.shape)}" if values.is_floating_point() else f"{list(values.shape)} {values.dtype}"


def _file(section: Weights) -> Path:
    """The file that a section names, in a folder that of an export."""
    path = local_path(section.path, "the path")
    if not path.exists():
        raise InputError(f"does not exist; expected {_EXPECTED}")
    if not path.is_dir():
        return path
    if not (path / _EXPORTED).exists():
        is_run = (path / "manifest.json").exists()
        found = "is a run: blossom-ray export takes a model out of it" if is_run else f"has no {_EXPORTED}"
        raise InputError(f"{found}; expected {_EXPECTED}")
    return path / _EXPORTED
