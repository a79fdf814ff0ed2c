"""From a scenario's `model` section to modules: single blocks, and the model of one client.

A block's initial values follow from the seed and its name alone, so they are the same in every process, for
every sharing scheme, and whatever other blocks are built. Own code comes in here, and is checked here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import assert_never

import torch
from torch import Tensor, nn

from blossom_ray.core.blocks import FUSION, HEAD, block_names, encoder_block, prototype_block
from blossom_ray.core.factories import resolve_factory
from blossom_ray.core.section import Custom, Factory
from blossom_ray.core.seeding import Purpose, stable_number, torch_seed
from blossom_ray.errors import OWN_CODE_RAISES, InputError, shown_error
from blossom_ray.models import encoders, fusion
from blossom_ray.models.flat import block_layout
from blossom_ray.models.late_fusion import LateFusionModel, OwnModule, Prototype, held_blocks, output_problem
from blossom_ray.models.options import (
    AttentionFusion,
    ConcatFusion,
    Conv1dEncoder,
    Conv2dEncoder,
    ConvGruEncoder,
    CustomEncoder,
    CustomFusion,
    CustomHead,
    Encoder,
    Fusion,
    GatedFusion,
    GruEncoder,
    Head,
    LinearHead,
    MeanFusion,
    MlpEncoder,
    MlpHead,
    Model,
)

_PROBE_SIZE = 2
"""Samples in the batch of zeros that own code is tried with."""

Shapes = Mapping[str, tuple[int, ...]]


def build_client_model(
    model: Model, input_shapes: Shapes, num_outputs: int, owned: Iterable[str], seed: int
) -> LateFusionModel:
    """The model of a client that owns the modalities `owned`.

    Args:
        model: The scenario's `model` section.
        input_shapes: Shape of one sample by modality, for all modalities of the federation.
        num_outputs: Number of outputs (classes).
        owned: Modalities of the client.
        seed: The scenario's seed.

    Raises:
        InputError: A block does not fit its input, or own code does not do what it should.
        ValueError: `owned` is empty, or holds a modality that the model has no encoder for.
    """
    owned = tuple(owned)
    dims = embedding_dims(model, input_shapes)
    names = held_blocks(owned, model.encoders, model.missing)
    blocks = {name: _build(name, model, input_shapes, dims, num_outputs, seed) for name in names}
    own_modules = _own_modules(model, dims, num_outputs)
    if FUSION in own_modules and model.missing == "mask":
        present = {name: torch.zeros(_PROBE_SIZE, dims[name]) for name in sorted(owned)}
        _probe(blocks[FUSION], present, "model.fusion", width=own_modules[FUSION].width)
    return LateFusionModel(
        blocks,
        owned=owned,
        missing=model.missing,
        input_shapes=input_shapes,
        embedding_dims=dims,
        own_modules={name: own_modules[name] for name in names if name in own_modules},
    )


def build_block(name: str, model: Model, input_shapes: Shapes, num_outputs: int, seed: int) -> nn.Module:
    """One block with its initial values (PyTorch's default initialisation).

    Args:
        name: Block name: `encoder/<modality>`, `fusion`, `head` or `prototype/<modality>`.
        model: The scenario's `model` section.
        input_shapes: Shape of one sample by modality, for all modalities of the federation.
        num_outputs: Number of outputs (classes).
        seed: The scenario's seed.

    Raises:
        InputError: The block does not fit its input, or own code does not do what it should.
        ValueError: The model has no block of this name.
    """
    return _build(name, model, input_shapes, embedding_dims(model, input_shapes), num_outputs, seed)


def embedding_dims(model: Model, input_shapes: Shapes) -> dict[str, int]:
    """Width of each encoder's embedding by modality, sorted; own encoders are built and tried to find out.

    Raises:
        InputError: The data lack a modality of the model, or an own encoder does not do what it should.
    """
    dims = {}
    for modality, section in sorted(model.encoders.items()):
        where = f"model.encoders.{modality}"
        if modality not in input_shapes:
            known = ", ".join(sorted(input_shapes))
            raise InputError(f"{where} is for a modality that the data do not have; expected one of {known}")
        match section:
            case CustomEncoder():
                shape = input_shapes[modality]
                with _initial_values(encoder_block(modality), 0):
                    module = _custom(section, where, shape)
                    dims[modality] = _probe(module, torch.zeros(_PROBE_SIZE, *shape), where)
            case Conv1dEncoder():
                dims[modality] = section.dim or section.channels[-1]
            case _:
                dims[modality] = section.dim
    return dims


def _own_modules(model: Model, dims: Mapping[str, int], num_outputs: int) -> dict[str, OwnModule]:
    """What the blocks of own code have to give, by block name."""
    parts: dict[str, tuple[str, object, int]] = {
        encoder_block(name): (f"model.encoders.{name}", section, dims[name]) for name, section in model.encoders.items()
    }
    parts[FUSION] = ("model.fusion", model.fusion, _fusion_dim(model.fusion, dims))
    parts[HEAD] = ("model.head", model.head, num_outputs)
    return {
        name: OwnModule(f"{where} ({_factory_name(section.factory)})", width)
        for name, (where, section, width) in parts.items()
        if isinstance(section, Custom)
    }


def _build(
    name: str,
    model: Model,
    input_shapes: Shapes,
    dims: Mapping[str, int],
    num_outputs: int,
    seed: int,
) -> nn.Module:
    for lacked, dim in dims.items():
        if prototype_block(lacked) == name:
            return Prototype(dim)
    modality = next((modality for modality in model.encoders if encoder_block(modality) == name), None)
    with _initial_values(name, seed):
        if modality is not None:
            where = f"model.encoders.{modality}"
            module = _encoder(model.encoders[modality], input_shapes[modality], where)
        elif name == FUSION:
            where, module = "model.fusion", _fusion(model.fusion, dims)
        elif name == HEAD:
            where, module = "model.head", _head(model.head, _fusion_dim(model.fusion, dims), num_outputs)
        else:
            names = ", ".join(block_names(model.encoders))
            raise ValueError(f"block is {name!r}; expected one of {names}")
    try:
        block_layout(module, model.norm_statistics)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return module


@contextmanager
def _initial_values(name: str, seed: int) -> Iterator[None]:
    # Module constructors draw from torch's global CPU generator; it is seeded for one block and put back. Not
    # torch.manual_seed, which would seed the generators of GPUs for good.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch_seed(seed, Purpose.INITIAL_BLOCK, 0, stable_number(name)))
        yield


def _encoder(section: Encoder, shape: tuple[int, ...], where: str) -> nn.Module:
    if isinstance(section, CustomEncoder):
        module = _custom(section, where, shape)
        _probe(module, torch.zeros(_PROBE_SIZE, *shape), where)
        return module
    options = section.model_dump(exclude={"kind"})
    try:
        match section:
            case MlpEncoder():
                return encoders.MlpEncoder(shape, **options)
            case Conv1dEncoder():
                return encoders.Conv1dEncoder(shape, **options)
            case ConvGruEncoder():
                return encoders.ConvGruEncoder(shape, **options)
            case GruEncoder():
                return encoders.GruEncoder(shape, **options)
            case Conv2dEncoder():
                return encoders.Conv2dEncoder(shape, **options)
            case _:
                assert_never(section)
    except InputError as error:
        raise InputError(f"{where} ({section.kind}): {error}") from error


def _fusion(section: Fusion, dims: Mapping[str, int]) -> nn.Module:
    match section:
        case AttentionFusion():
            return fusion.AttentionFusion(dims, section.dim, section.norm)
        case ConcatFusion():
            return fusion.ConcatFusion(dims, section.dim, section.norm)
        case MeanFusion():
            return fusion.MeanFusion(dims, section.dim, section.norm)
        case GatedFusion():
            return fusion.GatedFusion(dims, section.dim, section.norm)
        case CustomFusion():
            return _custom(section, "model.fusion", dict(dims))
        case _:
            assert_never(section)


def _fusion_dim(section: Fusion, dims: Mapping[str, int]) -> int:
    if not isinstance(section, CustomFusion):
        return section.dim
    with _initial_values(FUSION, 0):
        embeddings = {name: torch.zeros(_PROBE_SIZE, dim) for name, dim in dims.items()}
        return _probe(_fusion(section, dims), embeddings, "model.fusion")


def _head(section: Head, input_dim: int, num_outputs: int) -> nn.Module:
    match section:
        case MlpHead():
            return fusion.MlpHead(input_dim, num_outputs, **section.model_dump(exclude={"kind"}))
        case LinearHead():
            return nn.Linear(input_dim, num_outputs)
        case CustomHead():
            module = _custom(section, "model.head", input_dim, num_outputs)
            _probe(module, torch.zeros(_PROBE_SIZE, input_dim), "model.head", width=num_outputs)
            return module
        case _:
            assert_never(section)


def _factory_name(factory: Factory) -> str:
    return factory if isinstance(factory, str) else getattr(factory, "__qualname__", type(factory).__qualname__)


def _custom(section: Custom, where: str, *arguments: object) -> nn.Module:
    factory = resolve_factory(section.factory, f"{where}.factory")
    try:
        module = factory(*arguments, **section.options)
    except OWN_CODE_RAISES as error:
        raise InputError(f"{where}.factory raised {shown_error(error)}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{where}.factory returned {type(module).__name__}; expected a torch.nn.Module")
    return module


def _probe(module: nn.Module, inputs: Tensor | dict[str, Tensor], where: str, *, width: int | None = None) -> int:
    """Try own code on two samples of zeros, and return the width of what it gives."""
    was_training = module.training
    module.eval()
    shapes = (
        tuple(inputs.shape)
        if isinstance(inputs, Tensor)
        else {name: tuple(values.shape) for name, values in inputs.items()}
    )
    try:
        with torch.no_grad():
            output = module(inputs)
    except OWN_CODE_RAISES as error:
        cause = shown_error(error)
        raise InputError(f"{where}: the module raised on zeros of shape {shapes}: {cause}") from error
    module.train(was_training)
    problem = output_problem(output, _PROBE_SIZE, width, torch.device("cpu"))
    if problem is not None:
        found, _, expected = problem.partition("; expected ")
        raise InputError(f"{where}: the module gives {found} for zeros of shape {shapes}; expected {expected}")
    return int(output.shape[1])
