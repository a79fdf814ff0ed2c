"""A client's model: the encoders that it holds, fusion and head of its tasks, and the rule for lacking modalities.

Shape suffixes: B batch, E embedding, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Self, TypeAlias

import torch
from torch import Tensor, nn

from blossom_ray.core.blocks import HEAD, Block, held_blocks, model_blocks
from blossom_ray.errors import InputError
from blossom_ray.models.options import MissingRule, Precision
from blossom_ray.models.own_code import OwnModule, output_problem


@dataclass(frozen=True)
class Presence:
    """Which samples of a batch have a modality that others of it lack. Its encoder is given those that have it alone.

    Attributes:
        mask: (B, 1) bool.
        place: (B,) int64, where a sample's embedding stands among those; any place for one that lacks the modality.
    """

    mask: Tensor
    place: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> Self:
        """From (B,) bool: the embeddings stand in the order of the samples."""
        return cls(mask.unsqueeze(1), (mask.cumsum(0) - 1).clamp(min=0))

    def spread(self, embeddings: Tensor) -> Tensor:
        """From the embeddings of the samples that have it to (B, E), zeros for those that lack it."""
        return torch.where(self.mask, embeddings.index_select(0, self.place), 0.0)


_FusionInputs: TypeAlias = tuple[dict[str, Tensor], Tensor] | tuple[dict[str, Tensor], Tensor, Mapping[str, Tensor]]

EVERYWHERE: Mapping[str, Presence] = {}
"""No sample of the batch lacks a modality that others of it have."""


@dataclass(frozen=True)
class Forward:
    """What a forward pass gives.

    Attributes:
        outputs: (B, O) float32; those of several heads stand side by side.
        representation: What the fusion gave, (B, F); the same where each task has one.
        embeddings: What the encoders of owned modalities gave, (B, E) by modality; zeros where a sample lacks it.
    """

    outputs: Tensor
    representation: Tensor
    embeddings: Mapping[str, Tensor]


Later: TypeAlias = Literal["fusion", "head"]
"""Kinds of blocks that compute after the encoders."""


@dataclass(frozen=True)
class BegunForward:
    """A forward pass that stands before the fusions or before the heads.

    Attributes:
        embeddings: As in `Forward`; empty before the heads.
        present: Of modalities that some samples lack, which have it.
        fused: What each fusion gave, (B, F); empty before the fusions.
    """

    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    present: Mapping[str, Presence] = field(default_factory=dict)
    fused: Mapping[Block, Tensor] = field(default_factory=dict)

    def repeated(self, times: int) -> BegunForward:
        """The same for so many clients, one behind the other, in fresh memory: a module may work in place."""
        return BegunForward(
            {name: values.repeat(times, 1) for name, values in self.embeddings.items()},
            {name: Presence(own.mask.repeat(times, 1), own.place.repeat(times)) for name, own in self.present.items()},
            {name: values.repeat(times, 1) for name, values in self.fused.items()},
        )


class LateFusionModel(nn.Module):
    """Encoders, fusion and head of one client, as named blocks. It starts in evaluation mode.

    Of several tasks each has a head, and all of them one fusion, or each one of its own.

    What stands for a modality that the client does not own: `mask`: the fusion gets owned embeddings alone.
    `zero-embedding`: an embedding of zeros. `zero-input`: an input of zeros through the modality's encoder,
    which the client then holds but never trains; under the other rules it does not hold it. `prototype`: the mean
    embedding of clients that own it, a block that the client holds instead. The same stands for an owned modality in
    samples that lack it, of which the encoder computes nothing.

    Args:
        blocks: Module by block name: the held encoders, fusions, heads, and the prototypes of missing modalities.
        owned: Modalities of the client.
        missing: The rule above.
        input_shapes: Shape of one sample by modality, for all modalities that the model knows.
        embedding_dims: Width of the embedding by modality, for all modalities that the model knows.
        num_outputs: Width of the outputs by head; needed where there are several.
        own_modules: The blocks that are the user's code; what they give is checked in each batch.
        sparse: Modalities that samples of owners may lack; under `prototype` these hold theirs, too.

    Attributes:
        blocks: The modules by block name, encoders in sorted order, then fusions, heads, and prototypes.
        fusion_of: By name of a head the name of its fusion.
        owned: The modalities of the client, sorted.
        unowned_blocks: Names of the blocks that it holds for modalities that it does not own.
        precision: In what matrix products and convolutions compute; parameters, gradients and logits are float32
            whatever it is.
        num_stacked: Clients whose samples stand one behind the other in a batch; 1 but in a stack.

    Raises:
        ValueError: `owned` is empty or unknown, or `blocks` are not those that the rule asks for.
    """

    def __init__(
        self,
        blocks: Mapping[Block, nn.Module],
        *,
        owned: Iterable[str],
        missing: MissingRule,
        input_shapes: Mapping[str, tuple[int, ...]],
        embedding_dims: Mapping[str, int],
        num_outputs: Mapping[Block, int] = MappingProxyType({}),
        own_modules: Mapping[Block, OwnModule] | None = None,
        sparse: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.owned = tuple(sorted(owned))
        self.missing = missing
        self.input_shapes = dict(input_shapes)
        self.embedding_dims = dict(sorted(embedding_dims.items()))
        self.own_modules = dict(own_modules or {})
        heads = [name for name in map(Block.named, blocks) if name.kind == "head"] or [HEAD]
        own_fusions = [name.of for name in map(Block.named, blocks) if name.kind == "fusion"] or [""]
        tasks = [name.of for name in heads]
        names = held_blocks(self.owned, self.embedding_dims, missing, sparse, tasks, own_fusions)
        if set(blocks) != set(names):
            raise ValueError(f"blocks are {', '.join(sorted(blocks))}; expected {', '.join(names)}")
        self.blocks: dict[Block, nn.Module] = {name: blocks[name] for name in names}
        self._own_encoders = {modality: Block("encoder", modality) for modality in self.owned}
        # nn.ModuleDict refuses names with a dot, which modalities may have; so modules register by position.
        self._registered = nn.ModuleList(self.blocks.values())
        of_task = own_fusions != [""]
        self.fusion_of = {head: Block("fusion", head.of if of_task else "") for head in heads}
        self._num_outputs, self._resting = dict(num_outputs), frozenset[Block]()
        own = model_blocks(self.owned, tasks, own_fusions)
        self.unowned_blocks = tuple(name for name in names if name not in own)
        for name in self.unowned_blocks:
            self.blocks[name].requires_grad_(False)
        self._trained_norms: list[tuple[str, nn.Module]] = []
        self.precision: Precision = "float32"
        self.num_stacked = 1
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode.

        Blocks of modalities that the client does not own, and blocks whose parameters are all frozen, stay in
        evaluation mode: no dropout, and normalisation statistics are used but not updated.
        """
        super().train(mode)
        self._trained_norms, self._resting = [], frozenset()
        for name, block in self.blocks.items():
            if name in self.unowned_blocks or _is_frozen(block):
                block.eval()
            else:
                norms = (module for module in block.modules() if _has_running_statistics(module))
                self._trained_norms += [(name.of, norm) for norm in norms]
        return self

    def training_mode(
        self,
        *,
        batch_size: int,
        inputs: Mapping[str, Tensor] = MappingProxyType({}),
        resting: frozenset[Block] = frozenset(),
    ) -> None:
        """Set training mode for one batch of this size.

        One sample has no variance over the batch, so normalisation layers with running statistics use these
        for it, as in evaluation, and no sample need be skipped. Cheap enough to call before each step.

        Args:
            batch_size: Samples of the batch.
            inputs: By modality those of them that its encoder sees; all where it is not here.
            resting: Heads, and fusions of theirs alone, that do not compute in this batch: a head's outputs are 0.
        """
        if not self.training:
            self.train()
        self._resting = resting
        for modality, norm in self._trained_norms:
            norm.train((len(inputs[modality]) if modality in inputs else batch_size) > 1)

    def forward(self, inputs: Mapping[str, Tensor], present: Mapping[str, Presence] = EVERYWHERE) -> Tensor:
        """Logits (B, O).

        Args:
            inputs: Owned modality to (B, *shape), float32; at least one. An owned modality that is not here is missing
                for this batch, as those are that the client does not own; these are not looked at.
            present: Of modalities that some samples lack, which have it: `inputs` has those alone.
        """
        return self.traced(inputs, present).outputs

    def traced(self, inputs: Mapping[str, Tensor], present: Mapping[str, Presence] = EVERYWHERE) -> Forward:
        """The same with what comes on the way."""
        with self._precision(inputs.values()):
            return self._fused(self._encoded(inputs, present), present)

    def begun(self, inputs: Mapping[str, Tensor], present: Mapping[str, Presence], until: Later) -> BegunForward:
        """A forward pass up to the blocks of a kind: what is the same for clients that share all before these.

        Args:
            inputs: As in `forward`.
            present: As in `forward`.
            until: The kind.
        """
        with self._precision(inputs.values()):
            embeddings = self._encoded(inputs, present)
            if until == "fusion":
                return BegunForward(embeddings=embeddings, present=present)
            given = self._fusion_inputs(embeddings, present)
            return BegunForward(
                fused={name: self._output(name, *given) for name in dict.fromkeys(self.fusion_of.values())}
            )

    def ended(self, begun: BegunForward) -> Tensor:
        """The logits (B, O) that a forward pass comes to with the blocks that the model has now."""
        with self._precision((begun.fused or begun.embeddings).values()):
            return self._fused(dict(begun.embeddings), begun.present, begun.fused).outputs

    def fused(self, embeddings: Mapping[str, Tensor], present: Mapping[str, Presence] = EVERYWHERE) -> Forward:
        """What fusions and heads make of the embeddings (B, E) of some owned modalities, of at least one."""
        with self._precision(embeddings.values()):
            return self._fused(dict(embeddings), present)

    def _precision(self, tensors: Iterable[Tensor]) -> AbstractContextManager[object]:
        if self.precision == "float32":
            return nullcontext()
        # For each forward pass anew: within a context, autocast keeps its copies of weights, which a step changes.
        return torch.autocast(next(iter(tensors)).device.type, torch.bfloat16)

    def _encoded(self, inputs: Mapping[str, Tensor], present: Mapping[str, Presence]) -> dict[str, Tensor]:
        """The embeddings of owned modalities, (B, E); zeros where a sample lacks it."""
        embeddings = {
            name: self._output(encoder, inputs[name], inputs[name])
            for name, encoder in self._own_encoders.items()
            if name in inputs
        }
        for name, own in present.items():
            embeddings[name] = own.spread(embeddings[name])
        return embeddings

    def _fusion_inputs(self, owned: Mapping[str, Tensor], present: Mapping[str, Presence]) -> _FusionInputs:
        """What a fusion is given: the embeddings, one of them for its rows, and masks where it needs them."""
        embeddings, any_BE = dict(owned), next(iter(owned.values()))
        masks = {name: own.mask for name, own in present.items()}
        if self.missing != "mask":
            for name in self.embedding_dims:
                if name not in embeddings:
                    embeddings[name] = self._stand_in(name, any_BE)
                elif name in masks and self.missing != "zero-embedding":  # zeros are there
                    embeddings[name] = torch.where(masks[name], embeddings[name], self._stand_in(name, any_BE))
        return (embeddings, any_BE, masks) if masks and self.missing == "mask" else (embeddings, any_BE)

    def _fused(
        self,
        owned: dict[str, Tensor],
        present: Mapping[str, Presence],
        known: Mapping[Block, Tensor] = MappingProxyType({}),
    ) -> Forward:
        """What fusions and heads make of embeddings; of fusions that are known already, heads alone."""
        any_BE, fused, outputs = next(iter((known or owned).values())), dict(known), list[Tensor]()
        given = None if known else self._fusion_inputs(owned, present)
        for head, fusion in self.fusion_of.items():
            if head in self._resting:
                outputs.append(any_BE.new_zeros(len(any_BE), self._num_outputs[head], dtype=torch.float32))
                continue
            if fusion not in fused:
                assert given is not None, "all fusions are known, or none"
                fused[fusion] = self._output(fusion, *given)
            outputs.append(self._output(head, fused[fusion], any_BE).float())
        if len(outputs) == 1:
            return Forward(outputs[0], next(iter(fused.values())), owned)
        fusions = dict.fromkeys(self.fusion_of.values())
        width = next((values.shape[1] for values in fused.values()), 0)
        parts = [fused[name] if name in fused else any_BE.new_zeros(len(any_BE), width) for name in fusions]
        return Forward(torch.cat(outputs, dim=1), torch.cat(parts, dim=1), owned)

    def _stand_in(self, modality: str, like: Tensor) -> Tensor:
        """What stands for a modality that samples lack, unless these are masked: (B, E), as many rows as `like` has."""
        if self.missing == "zero-embedding":
            return like.new_zeros(len(like), self.embedding_dims[modality])
        if self.missing == "prototype":
            prototype: Tensor = self.blocks[Block("prototype", modality)](len(like))
            return prototype
        return self._embedding_of_zeros(modality, like).repeat_interleave(len(like) // self.num_stacked, dim=0)

    def _output(self, block: Block, inputs: Tensor | dict[str, Tensor], like: Tensor, *masks: object) -> Tensor:
        """What a block gives for a batch with the rows and on the device of `like`; own code's is checked."""
        module, own = self.blocks[block], self.own_modules.get(block)
        output: Tensor = module(inputs, *masks)
        if own is None:
            return output
        dtypes = {torch.float32, getattr(torch, self.precision)}
        problem = output_problem(output, len(like), own.width, like.device, dtypes)
        if problem is None and torch.is_grad_enabled() and not output.requires_grad:
            given = inputs.values() if isinstance(inputs, dict) else (inputs,)
            if any(tensor.requires_grad for tensor in (*module.parameters(), *given)):
                problem = "an output without a gradient while it is trained; expected one that is not detached"
        if problem is not None:
            raise InputError(f"{own.name}: the module gives {problem}")
        return output

    def _embedding_of_zeros(self, modality: str, like: Tensor) -> Tensor:
        encoder = self.blocks[Block("encoder", modality)]
        was_training = encoder.training
        encoder.eval()
        # Constant in evaluation mode, so one sample stands for a client's batch.
        with torch.no_grad():
            zeros = like.new_zeros(self.num_stacked, *self.input_shapes[modality])
            embedding_KE = self._output(Block("encoder", modality), zeros, zeros)
        encoder.train(was_training)
        return embedding_KE


def _is_frozen(block: nn.Module) -> bool:
    parameters = list(block.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _has_running_statistics(module: nn.Module) -> bool:
    return getattr(module, "running_mean", None) is not None
