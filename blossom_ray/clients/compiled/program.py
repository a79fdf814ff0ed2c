"""A client's model as operations on buffers of activations: what `kernels.c` computes with.

Shape suffixes as in `models/encoders.py`. All structures mirror those of `kernels.c`, whose fields are explained there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from blossom_ray.clients.losses import TaskLoss
from blossom_ray.clients.options import Training
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import Block
from blossom_ray.core.scores import Task
from blossom_ray.models.encoders import MeanGru, Mlp, TimeConvolutions, TimeConvolutionsGru
from blossom_ray.models.flat import Entry, FlatBlock
from blossom_ray.models.fusion import Attention, Concatenation, GatedUnits, ProjectedMean
from blossom_ray.models.time_layers import Gru, HalvingMaxPool1d

PAD = 16
"""Floats that rows are filled up to."""


class Kind(IntEnum):
    """Kinds of operations."""

    LINEAR = 0
    CONVOLUTION = 1
    GRU = 2
    RELU = 3
    SIGMOID = 4
    TANH = 5
    DROPOUT = 6
    HALVE = 7
    MEAN = 8
    COPY = 9
    SOFTMAX = 10
    ADD = 11
    SCALED = 12
    GATED = 13


LOSSES: Mapping[Task, int] = {"classification": 0, "multilabel": 1, "regression": 2}


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class BufferFields(ctypes.Structure):
    """A buffer."""

    _fields_ = _fields(ctypes.c_int64, "place steps width pad is_given")


class OpFields(ctypes.Structure):
    """An operation."""

    _fields_ = [
        *_fields(ctypes.c_int64, "kind in out other block weights bias size extra"),
        ("factor", ctypes.c_double),
    ]


class BlockFields(ctypes.Structure):
    """A block and its optimizer."""

    _fields_ = [
        *_fields(ctypes.c_int64, "begin end is_trained is_adam is_decoupled is_nesterov has_offset num_steps"),
        *_fields(ctypes.c_double, "rate momentum decay mu beta1 beta2 eps"),
    ]


class Client(ctypes.Structure):
    """Where a client's numbers lie."""

    _fields_ = [
        ("ops", ctypes.POINTER(OpFields)),
        ("num_ops", ctypes.c_int64),
        ("buffers", ctypes.POINTER(BufferFields)),
        ("num_buffers", ctypes.c_int64),
        ("blocks", ctypes.POINTER(BlockFields)),
        *_fields(ctypes.c_int64, "num_blocks loss output num_outputs"),
        *_fields(ctypes.c_void_p, "values slopes parameters gradients first_moments second_moments anchors offsets"),
        *_fields(ctypes.c_void_p, "turned zeros sources targets samples labels masks"),
    ]


class UnknownError(Exception):
    """A model has something that the kernels lack; it says what, as the end of a sentence."""


@dataclass(frozen=True)
class Buffer:
    """Activations (samples, steps, width) of a batch.

    Attributes:
        steps: Steps in time; 1 where there is none.
        size: Values of a step.
        width: The same, filled up.
        pad: Steps of zeros before and after.
        given: Which of the inputs it is; None: a buffer of its own.
        is_given: Whether its values are those of samples, which need no gradient.
    """

    steps: int
    size: int
    width: int
    pad: int = 0
    given: int | None = None
    is_given: bool = False

    @property
    def num_values(self) -> int:
        """Values of a sample in memory."""
        return 0 if self.given is not None else (self.steps + 2 * self.pad) * self.width


@dataclass(frozen=True)
class Dropout:
    """A mask that is drawn for each batch: (channels,) or (channels, steps) of a sample, 1 with probability `keep`."""

    block: str
    num_values: int
    keep: float


def compiling_obstacle(workspace: Workspace, section: Training) -> str | None:
    """Why clients of a workspace cannot train with the kernels, as one line; None where they can.

    Args:
        workspace: Theirs.
        section: The scenario's `training` section.
    """
    learned = workspace.learned
    if not learned.is_plain or learned.has_rows:
        return "there are several tasks, weights of tasks, or labels that are not known"
    if section.keep_optimizer_state:
        return "training.keep_optimizer_state is true"
    if section.transform:
        return "training.transform is used"
    if section.precision != "float32":
        return f"training.precision is {section.precision!r}"
    if not isinstance(section.loss, TaskLoss):
        return f"training.loss is {section.loss.kind!r}"
    if workspace.device.type != "cpu":
        return f"clients compute on {workspace.device.type}"
    try:
        Program(workspace)
    except UnknownError as error:
        return str(error)
    return None


class Program:
    """The operations of a client's forward pass, in their order.

    Args:
        workspace: Its model. What it does is looked at, not what it holds.

    Attributes:
        buffers: What they compute on.
        ops: The operations; `in`, `out` and `other` are numbers of buffers, `weights` and `bias` places of parameters.
        blocks: The names of the blocks with parameters.
        extents: By block where its parameters begin and end.
        places: By block the place of each value of its vector, int32.
        inputs: The modalities, in the order of the inputs.
        output: The buffer with the model's outputs.
        dropouts: The masks, in the order in which they are drawn.
        num_parameters: Places of parameters in all.
        num_turned: The most values of weights that are turned at once.

    Raises:
        UnknownError: The kernels cannot compute it.
    """

    def __init__(self, workspace: Workspace) -> None:
        model = workspace.model
        if model.missing not in ("mask", "zero-embedding"):
            raise UnknownError(f"model.missing is {model.missing!r}")
        if model.own_modules:
            raise UnknownError(f"{next(iter(model.own_modules))} is own code")
        self.buffers: list[Buffer] = []
        self.ops: list[dict[str, Any]] = []
        self.dropouts: list[Dropout] = []
        self.blocks: list[str] = []
        self.places: dict[str, npt.NDArray[np.int32]] = {}
        self.extents: dict[str, tuple[int, int]] = {}
        self.inputs = model.owned
        self.num_parameters = self.num_turned = 0
        embeddings: dict[str, int] = {}
        for at, modality in enumerate(model.owned):
            shape = model.input_shapes[modality]
            self._enter(Block("encoder", modality), workspace.flat)
            embeddings[modality] = self._encoder(model.blocks[self._block], shape, at)
        if model.missing == "zero-embedding":
            for modality, dim in model.embedding_dims.items():
                embeddings.setdefault(modality, self._buffer(1, dim))
        [(head, fusion)] = model.fusion_of.items()
        self._enter(fusion, workspace.flat)
        fused = self._fusion(model.blocks[fusion], dict(sorted(embeddings.items())))
        self._enter(head, workspace.flat)
        self.output = self._layers(model.blocks[head], fused)

    def _enter(self, block: Block, flats: Mapping[str, FlatBlock]) -> None:
        """What comes is of this block."""
        flat = flats[block]
        if flat.size > flat.num_parameters or flat.local_state():
            raise UnknownError(f"{block} has a normalisation or another layer with statistics")
        self._block, parameters = block, flat.module.parameters()
        self._entries = {id(each): entry for entry, each in zip(flat.layout.parameters, parameters, strict=True)}
        self.blocks.append(block)
        self.places[block] = np.zeros(flat.size, dtype=np.int32)
        self.extents[block] = (self.num_parameters, self.num_parameters)

    def _buffer(self, steps: int, size: int, pad: int = 0) -> int:
        self.buffers.append(Buffer(steps, size, _filled(size), pad))
        return len(self.buffers) - 1

    def _given(self, buffer: Buffer) -> int:
        self.buffers.append(replace(buffer, is_given=True))
        return len(self.buffers) - 1

    def _add(self, kind: Kind, source: int, target: int, **fields: float) -> int:
        fields = {"other": -1, "extra": 0, **fields}
        self.ops.append({"kind": kind, "in": source, "out": target, "block": len(self.blocks) - 1, **fields})
        return target

    def _parameter(self, parameter: Any, width: int, num_rows: int, columns: Any, rows: Any = 0) -> int:
        """Give a parameter its places: that of a value is rows * width + columns, each of the parameter's shape.

        Returns where the first of all (num_rows, width) places is.
        """
        entry: Entry = self._entries[id(parameter)]
        begin, start = self.extents[self._block][0], self.num_parameters
        own = np.broadcast_to(start + rows * width + columns, entry.shape)
        self.places[self._block][entry.offset : entry.end] = own.ravel()
        self.num_parameters += num_rows * width
        self.extents[self._block] = begin, self.num_parameters
        return start

    def _rows_of(self, source: int) -> int:
        """Rows of the weights that a buffer is multiplied with: filled up where the product goes back, too."""
        buffer = self.buffers[source]
        return buffer.size if buffer.is_given else buffer.width

    def _linear(self, layer: Any, source: int) -> int:
        target = self._buffer(self.buffers[source].steps, layer.out_features)
        weights, bias = self._weights(layer, self._rows_of(source))
        return self._add(Kind.LINEAR, source, target, weights=weights, bias=bias, size=layer.in_features)

    def _weights(self, layer: Any, num_rows: int) -> tuple[int, int]:
        """Places of a linear layer's weight and bias."""
        width, outputs = _filled(layer.out_features), np.arange(layer.out_features)
        self.num_turned = max(self.num_turned, num_rows * width)
        weights = self._parameter(layer.weight, width, num_rows, outputs[:, np.newaxis], np.arange(layer.in_features))
        return weights, self._parameter(layer.bias, width, 1, outputs)

    def _convolution(self, layer: nn.Conv1d, source: int) -> int:
        taps, pad = layer.kernel_size[0], int(layer.padding[0])
        given = self.buffers[source] = replace(self.buffers[source], pad=pad)
        steps = given.steps + 2 * given.pad - taps + 1
        target = self._buffer(steps, layer.out_channels, pad=taps - 1)
        width, outputs = self.buffers[target].width, np.arange(layer.out_channels)[:, np.newaxis, np.newaxis]
        rows = np.arange(taps) * given.width + np.arange(layer.in_channels)[:, np.newaxis]
        weights = self._parameter(layer.weight, width, taps * given.width, outputs, rows)
        bias = self._parameter(layer.bias, width, 1, outputs.ravel())
        self.num_turned = max(self.num_turned, taps * given.width * width)
        return self._add(Kind.CONVOLUTION, source, target, weights=weights, bias=bias, size=taps)

    def _gru(self, layer: Gru, source: int) -> int:
        given, size = self.buffers[source], layer.hidden_size
        target = self._buffer(given.steps, size)
        width = self.buffers[target].width
        gates = self._buffer(given.steps, 3 * width)
        self._buffer(given.steps, 3 * width)
        thirds, num_rows = (np.arange(3)[:, np.newaxis] * width + np.arange(size)).ravel(), self._rows_of(source)
        input_weight, state_weight, input_bias, state_bias = layer._flat_weights
        column = thirds[:, np.newaxis]
        weights = self._parameter(input_weight, 3 * width, num_rows, column, np.arange(layer.input_size))
        bias = self._parameter(input_bias, 3 * width, 1, thirds)
        of_states = self._parameter(state_weight, 3 * width, width, column, np.arange(size))
        self._parameter(state_bias, 3 * width, 1, thirds)  # behind its weight, where the kernel looks for it
        self.num_turned = max(self.num_turned, max(num_rows, width) * 3 * width)
        fields = {"weights": weights, "bias": bias, "other": gates, "extra": of_states, "size": layer.input_size}
        return self._add(Kind.GRU, source, target, **fields)

    def _layers(self, module: nn.Module, source: int) -> int:
        """Layers one after the other; activations and dropout change what the layer before them gave."""
        layers = [each for each in module.modules() if not isinstance(each, Mlp | nn.Sequential | nn.Identity)]
        for layer in layers:
            # Exact types: a subclass may do anything in its forward pass.
            if type(layer) is nn.Linear:
                source = self._linear(layer, source)
            elif type(layer) is nn.Conv1d and layer.stride == (1,):
                source = self._convolution(layer, source)
            elif type(layer) is HalvingMaxPool1d:
                given = self.buffers[source]
                source = self._add(Kind.HALVE, source, self._buffer(given.steps // 2, given.size))
            elif type(layer) is nn.ReLU:
                self._add(Kind.RELU, source, source)
            elif type(layer) is nn.Dropout:
                given, keep = self.buffers[source], 1 - layer.p
                self._add(Kind.DROPOUT, source, source, size=given.size, factor=1 / keep if keep else 0.0)
                self.dropouts.append(Dropout(self._block, given.size * given.steps, keep))
            else:
                raise UnknownError(f"{self._block} has {type(layer).__name__}")
        return source

    def _encoder(self, module: nn.Module, shape: tuple[int, ...], at: int) -> int:
        if type(module) is Mlp:
            size = int(np.prod(shape))
            return self._layers(module, self._given(Buffer(1, size, size, given=at)))
        if type(module) not in (TimeConvolutions, TimeConvolutionsGru, MeanGru):
            raise UnknownError(f"{self._block} is {type(module).__name__}")
        steps, size = shape
        source = self._given(Buffer(steps, size, size, given=at))
        if isinstance(module, TimeConvolutions | TimeConvolutionsGru):
            source = self._add(Kind.COPY, source, self._given(Buffer(steps, size, size)), size=size)
            source = self._layers(module.convolutions, source)
        if isinstance(module, TimeConvolutionsGru | MeanGru):
            source = self._gru(module.gru, source)
        mean = self._add(Kind.MEAN, source, self._buffer(1, self.buffers[source].size))
        return self._layers(module.projection, mean) if isinstance(module, TimeConvolutions) else mean

    def _fusion(self, module: Any, embeddings: Mapping[str, int]) -> int:
        fusions: dict[type, Callable[[Any, Mapping[str, int]], int]] = {
            Attention: self._attention,
            Concatenation: self._concatenation,
            GatedUnits: self._gated_units,
            ProjectedMean: self._mean_of_projections,
        }
        if type(module) not in fusions:
            raise UnknownError(f"{self._block} is {type(module).__name__}")
        return self._layers(module.norm, fusions[type(module)](module, embeddings))

    def _concatenated(self, module: Any, embeddings: Mapping[str, int]) -> int:
        target, column = self._buffer(1, sum(module.embedding_dims.values())), 0
        for name, dim in module.embedding_dims.items():
            if name in embeddings:
                self._add(Kind.COPY, embeddings[name], target, size=dim, extra=column)
            column += dim
        return target

    def _projected(self, module: Any, layers: Iterable[Any], given: Mapping[str, int]) -> dict[str, int]:
        """By modality its layer's outputs. Layers of modalities that are not here have places, too."""
        found = {}
        for layer, name in zip(layers, module.embedding_dims, strict=True):
            if name in given:
                found[name] = self._linear(layer, given[name])
            else:
                self._weights(layer, layer.in_features)
        return found

    def _sum(self, kind: Kind, terms: Iterable[tuple[int, Mapping[str, float]]]) -> int:
        """The sum of buffers, each by an operation of this kind, with its fields."""
        [(first, fields), *others] = terms
        target = self._add(kind, first, self._buffer(1, self.buffers[first].size), **fields)
        for source, own in others:
            self._add(kind, source, target, extra=1, **own)
        return target

    def _concatenation(self, module: Concatenation, embeddings: Mapping[str, int]) -> int:
        return self._linear(module.projection, self._concatenated(module, embeddings))

    def _attention(self, module: Attention, embeddings: Mapping[str, int]) -> int:
        scores = self._linear(module.scores, self._concatenated(module, embeddings))
        columns = {name: at for at, name in enumerate(module.embedding_dims)}
        if len(columns) > 62:
            raise UnknownError(f"fusion has {len(columns)} modalities")
        present = sum(1 << columns[name] for name in embeddings)
        self._add(Kind.SOFTMAX, scores, scores, size=len(columns), extra=present)
        projected = self._projected(module, module.projections, embeddings)
        terms = ((source, {"other": scores, "size": columns[name]}) for name, source in projected.items())
        return self._sum(Kind.SCALED, terms)

    def _mean_of_projections(self, module: ProjectedMean, embeddings: Mapping[str, int]) -> int:
        projected = self._projected(module, module.projections, embeddings)
        return self._sum(Kind.ADD, ((source, {"factor": 1 / len(embeddings)}) for source in projected.values()))

    def _gated_units(self, module: GatedUnits, embeddings: Mapping[str, int]) -> int:
        everything = dict.fromkeys(embeddings, self._concatenated(module, embeddings))
        gates = self._projected(module, module.gates, everything)
        projected = self._projected(module, module.projections, embeddings)
        for name in embeddings:
            self._add(Kind.SIGMOID, gates[name], gates[name])
            self._add(Kind.TANH, projected[name], projected[name])
        return self._sum(Kind.GATED, ((source, {"other": gates[name]}) for name, source in projected.items()))


def _filled(size: int) -> int:
    return size + -size % PAD
