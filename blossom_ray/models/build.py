"""From a scenario's `model` section to modules: single blocks, and the model of one client.

A block's initial values follow from the seed and its name alone, so they are the same in every process, for
every sharing scheme, and whatever other blocks are built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from blossom_ray.core.blocks import Block, held_blocks, model_blocks
from blossom_ray.core.factories import shown_factory
from blossom_ray.core.section import Custom
from blossom_ray.core.seeding import Purpose, stable_number, torch_seed
from blossom_ray.errors import InputError
from blossom_ray.models.block_options import BuiltIn, Pretrained, Shape
from blossom_ray.models.flat import block_layout
from blossom_ray.models.fusion import Prototype
from blossom_ray.models.late_fusion import LateFusionModel
from blossom_ray.models.options import Model, place_of
from blossom_ray.models.own_code import OwnModule, torch_seeded, try_own
from blossom_ray.models.weights import load_weights


def build_client_model(
    model: Model,
    input_shapes: Mapping[str, Shape],
    num_outputs: int | Mapping[str, int],
    owned: Iterable[str],
    seed: int,
    sparse: Iterable[str] = (),
    fusions: Iterable[str] = ("",),
) -> LateFusionModel:
    """The model of a client that owns the modalities `owned`.

    Args:
        model: The scenario's `model` section.
        input_shapes: Shape of one sample by modality, for all modalities that the model knows.
        num_outputs: Number of outputs (classes); of a scenario with `tasks` by the names of the client's.
        owned: Modalities of the client.
        seed: The scenario's seed.
        sparse: Modalities that samples of owners may lack.
        fusions: The tasks that have a fusion each; "" is one for all.

    Raises:
        InputError: A block does not fit its input, or own code does not do what it should.
        ValueError: `owned` is empty, or holds a modality that the model has no encoder for.
    """
    owned, sparse = tuple(owned), tuple(sparse)
    dims = model.embedding_dims(input_shapes)
    by_task = num_outputs if isinstance(num_outputs, Mapping) else {"": num_outputs}
    names = held_blocks(owned, dims, model.missing, sparse, by_task, fusions)
    # Of all blocks, a head alone asks for it.
    blocks = {name: build_block(name, model, input_shapes, by_task.get(name.of, 0), seed, dims) for name in names}
    own_modules = {name: own for name in names if (own := _own_module(name, model, dims, by_task)) is not None}
    for name in (name for name in own_modules if name.kind == "fusion" and model.missing == "mask"):
        present = {modality: (dims[modality],) for modality in sorted(owned)}
        try_own(blocks[name], "model.fusion", present, own_modules[name].width)
    return LateFusionModel(
        blocks,
        owned=owned,
        missing=model.missing,
        input_shapes=input_shapes,
        embedding_dims=dims,
        num_outputs={Block("head", task): number for task, number in by_task.items()},
        own_modules=own_modules,
        sparse=sparse,
    )


def build_block(
    block: Block,
    model: Model,
    input_shapes: Mapping[str, Shape],
    num_outputs: int,
    seed: int,
    embedding_dims: Mapping[str, int] | None = None,
    *,
    is_drawn: bool = False,
) -> nn.Module:
    """One block with its initial values: PyTorch's default initialisation, or what `weights` names.

    Heads of all tasks draw the same numbers, and so do their fusions.

    Args:
        block: `encoder/<modality>`, `fusion`, `head`, one of a task behind a slash, or `prototype/<modality>`.
        model: The scenario's `model` section.
        input_shapes: Shape of one sample by modality, for all modalities that the model knows.
        num_outputs: Number of outputs (classes).
        seed: The scenario's seed.
        embedding_dims: Those of the model, where they are known already.
        is_drawn: Whether it is drawn even where there is a file with its values.

    Raises:
        InputError: The block does not fit its input or the file with its values, or own code does not do what it
            should.
        ValueError: The model has no block of this name.
    """
    dims = embedding_dims or model.embedding_dims(input_shapes)
    if block.kind == "prototype" and block.of in dims:
        return Prototype(dims[block.of])
    if block.kind not in ("fusion", "head") and block not in model_blocks(model.encoders):
        names = ", ".join(model_blocks(model.encoders))
        raise ValueError(f"block is {str(block)!r}; expected one of {names}")
    where, of_all = place_of(block), block if block.kind == "encoder" else Block(block.kind)
    with torch_seeded(torch_seed(seed, Purpose.INITIAL_BLOCK, 0, stable_number(of_all))):
        if block.kind == "encoder":
            module = model.encoders[block.of].build(input_shapes[block.of], block.of)
        elif block.kind == "fusion":
            module = model.fusion.build(dims)
        else:
            module = model.head.build(model.fusion.fused_dim(dims), num_outputs)
    if (weights := model.pretrained.get(of_all)) is not None and not is_drawn:
        load_weights(module, weights, of_all, where)
    try:
        block_layout(module, model.norm_statistics)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return module


def describe_block(
    block: Block, model: Model, input_shapes: Mapping[str, Shape], num_outputs: int, dims: Mapping[str, int]
) -> dict[str, Any]:
    """How a block's module is made, as JSON values: its class or the user's factory, and what that is called with.

    Args:
        block: As `build_block` has it.
        model: The scenario's `model` section.
        input_shapes: Shape of one sample by modality, for all modalities that the model knows.
        num_outputs: Number of outputs (classes).
        dims: Width of the embedding by modality.
    """
    section: Pretrained
    arguments: tuple[Any, ...]
    if block.kind == "prototype":
        return {"class": Prototype.__name__, "arguments": [dims[block.of]], "options": {}}
    if block.kind == "encoder":
        section, arguments = model.encoders[block.of], (input_shapes[block.of],)
    elif block.kind == "fusion":
        section, arguments = model.fusion, (dict(dims),)
    else:
        section, arguments = model.head, (model.fusion.fused_dim(dims), num_outputs)
    if isinstance(section, Custom):
        return {"factory": shown_factory(section), "arguments": [*arguments], "options": section.options}
    assert isinstance(section, BuiltIn), "all others are own code"
    made = section.module(*arguments)
    return {"class": made.func.__name__, "arguments": [*made.args], "options": made.keywords}


def _own_module(
    block: Block, model: Model, dims: Mapping[str, int], num_outputs: Mapping[str, int]
) -> OwnModule | None:
    """What a block of own code has to give; None for any other block."""
    if block.kind == "encoder":
        section, width = model.encoders[block.of], dims[block.of]
        return OwnModule.of(section, f"model.encoders.{block.of}", width) if isinstance(section, Custom) else None
    if block.kind == "fusion" and isinstance(model.fusion, Custom):
        return OwnModule.of(model.fusion, "model.fusion", model.fusion.fused_dim(dims))
    if block.kind == "head" and isinstance(model.head, Custom):
        return OwnModule.of(model.head, "model.head", num_outputs[block.of])
    return None
