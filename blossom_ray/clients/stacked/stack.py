"""A stack: the blocks of several clients, row by row, one model that computes on all of them, and its memory."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from blossom_ray.clients.plan import LocalState
from blossom_ray.clients.samples import read_only_tensor
from blossom_ray.clients.stacked.batches import Lanes, StackedBatch
from blossom_ray.clients.stacked.descent import Descent
from blossom_ray.clients.stacked.layers import (
    LayerTensors,
    MappedModule,
    OutOfMap,
    StackedBatchNorm,
    StackedDropout,
)
from blossom_ray.clients.stacked.masks import Masks
from blossom_ray.clients.stacked.support import is_known, stacked_layer
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import Block
from blossom_ray.core.sums import Vector
from blossom_ray.data.targets import FloatArray
from blossom_ray.models.flat import Entry
from blossom_ray.models.late_fusion import LateFusionModel

_VALUES_AT_ONCE = 2**17
"""Of the values of which norms are taken so many (float64: 1 MiB) have room in a core's own cache."""


class BlockRows:
    """One block of several clients, or what goes with its parameters: an optimizer's moments.

    A tensor per entry, and not one matrix with a vector in each row: batched products and the optimizers' kernels
    are faster on matrices that follow each other without gaps.

    Args:
        entries: Part of the block's layout, without gaps.
        capacity: Number of rows.
        device: Where the tensors lie.

    Attributes:
        tensors: (capacity, *shape) float32 by name of the entry, zeros at first.
    """

    def __init__(self, entries: Sequence[Entry], capacity: int, device: torch.device) -> None:
        self._entries, self._device = tuple(entries), device
        self.tensors = {entry.name: torch.zeros(capacity, *entry.shape, device=device) for entry in entries}

    def write(self, vectors: FloatArray, *, first_row: int = 0, num_rows: int | None = None) -> None:
        """Copy vectors (K, size) into the rows from `first_row` on, or one vector (1, size) into `num_rows` of them.

        Shorter vectors leave the entries behind their end as they are.
        """
        values = read_only_tensor(vectors).to(self._device)
        rows = slice(first_row, first_row + (len(vectors) if num_rows is None else num_rows))
        start = self._entries[0].offset if self._entries else 0
        for entry in self._entries:
            if entry.end - start > values.shape[1]:
                break
            part = values[:, entry.offset - start : entry.end - start]
            self.tensors[entry.name][rows] = part.reshape(len(vectors), *entry.shape)

    def distances(self, vectors: FloatArray, num_clients: int, num_values: int) -> Tensor:
        """L2 distances of the first rows from other vectors, (num_clients,) float64.

        Args:
            vectors: (K, size), or (1, size): the same for all rows.
            num_clients: K.
            num_values: Of each row the first ones count, up to the end of an entry: those that are parameters.
        """
        values = read_only_tensor(vectors).to(self._device)
        parts = []
        for entry in self._entries:
            if entry.end <= num_values:
                own = self.tensors[entry.name][:num_clients].reshape(num_clients, -1)
                others = values[:, entry.offset : entry.end].expand_as(own)
                # In pieces: what is made for a row stays in the processor's caches until it is summed.
                at_once = max(1, _VALUES_AT_ONCE // max(1, own.shape[1])) if self._device.type == "cpu" else num_clients
                pieces = [slice(first, first + at_once) for first in range(0, num_clients, at_once)]
                norms = [torch.linalg.vector_norm(own[at] - others[at], dim=1, dtype=torch.float64) for at in pieces]
                parts.append(torch.cat(norms))
        if not parts:
            return torch.zeros(num_clients, dtype=torch.float64)
        distances: Tensor = torch.linalg.vector_norm(torch.stack(parts), dim=0)
        return distances

    def read(self, num_clients: int) -> FloatArray:
        """A copy of the first rows as vectors (K, size)."""
        parts = [tensor[:num_clients].reshape(num_clients, -1) for tensor in self.tensors.values()]
        if not parts:
            return np.zeros((num_clients, 0), np.float32)
        copy: FloatArray = torch.cat(parts, dim=1).cpu().numpy()
        return copy


class Stack:
    """Room for several clients with the same model.

    The model is a copy of the workspace's, with its layers exchanged for stacked ones: the forward pass, and with it
    the rule for missing modalities, is the same code.

    Args:
        workspace: What the clients' model looks like, and which of its blocks are trained. It is not changed.
        capacity: The most clients that the stack can hold.

    Attributes:
        capacity: As given.
        device: Where the tensors lie.
        model: Takes owned modality to (K * B, *shape) and gives logits (K * B, O), as `batches.py` describes.
        lanes: The batch that it computes on; its encoders see as much of it as has their modality, fusion and head of a
            task the clients that have a label of it.
        parameters: The parameters that are trained now, of the clients that take part, (K, *shape) each, in a fixed
            order.
        parameter_blocks: The block of each of them.
        trained_blocks: Names of the blocks that are trained now.
        num_parameters: Values of each block's vector that are parameters.
        has_dropout: Whether training draws dropout masks.
    """

    def __init__(self, workspace: Workspace, capacity: int) -> None:
        self._flat, self._trained, self._initial_state = workspace.flat, workspace.trained, workspace.initial_state
        self.capacity, self.device, self.lanes = capacity, workspace.device, Lanes()
        own = [Block("encoder", modality) for modality in workspace.model.owned]
        if workspace.learned.has_several:
            own += [block for pair in workspace.model.fusion_of.items() for block in pair if block.of]
        self._own_lanes = {name: Lanes() for name in own}
        self._rows, self._local = {}, {}
        self._kept_rows: dict[tuple[str, str, str], FloatArray] = {}
        for name, flat in self._flat.items():
            self._rows[name] = BlockRows((*flat.layout.parameters, *flat.layout.buffers), capacity, self.device)
            self._local[name] = {
                key: torch.zeros(capacity, *buffer.shape, dtype=buffer.dtype, device=self.device)
                for key, buffer in flat.module.named_buffers()
                if key not in self._rows[name].tensors
            }
        self.trained_blocks = tuple(self._trained)
        self.num_parameters = {name: flat.num_parameters for name, flat in self._flat.items()}
        self._active: dict[str, dict[str, Tensor]] = {name: {} for name in self._flat}
        self.parameters: list[Tensor] = []
        self.parameter_blocks: list[str] = []
        self.model = self._stacked_model(workspace.model)
        self.has_dropout = any(isinstance(layer, StackedDropout) for layer in self.model.modules())

    def new_rows(self, capacity: int, names: Iterable[str] | None = None) -> dict[str, BlockRows]:
        """Zeros in the shape of the parameters, by block: of these, or of all that are trained now."""
        layouts = {name: self._trained[name].layout.parameters for name in names or self.trained_blocks}
        return {name: BlockRows(entries, capacity, self.device) for name, entries in layouts.items()}

    def rows_like(self, name: str, vectors: Sequence[Vector], use: str) -> list[Tensor | None]:
        """Vectors in the shape of a block's parameters, one tensor (K, *shape) for each; None where there are none.

        They stay as they are until the next ones for the same use.
        """
        entries = self._flat[name].layout.parameters
        if not vectors:
            return [None] * len(entries)
        first, tensors = vectors[0], list[Tensor | None]()
        is_shared = all(vector is first for vector in vectors)
        for each in entries:
            part, shape = slice(each.offset, each.end), (len(vectors), *each.shape)
            if is_shared:
                rows = read_only_tensor(first[part]).reshape(each.shape).expand(shape)
            else:
                # Kept: fresh memory of this size costs more, page by page, than what is written to it.
                place = use, name, each.name
                if place not in self._kept_rows:
                    self._kept_rows[place] = np.empty((self.capacity, each.end - each.offset), np.float32)
                out = self._kept_rows[place][: len(vectors)]
                rows = torch.from_numpy(np.stack([vector[part] for vector in vectors], out=out)).reshape(shape)
            tensors.append(rows.to(self.device))
        return tensors

    def load(self, blocks: Sequence[Mapping[str, Vector]], states: Sequence[LocalState]) -> None:
        """Copy clients in, one after the other from the first row on. The arrays are not modified or kept.

        Args:
            blocks: Each client's blocks by name.
            states: Each client's local normalisation state; empty for the initial one.

        Raises:
            ValueError: A block has another shape or type than the workspace's.
        """
        for name, flat in self._flat.items():
            vectors = _together([client[name] for client in blocks])
            if vectors.shape[1:] != (flat.size,) or vectors.dtype != np.float32:
                found = f"{vectors.dtype}{vectors.shape[1:]}"
                raise ValueError(f"vectors of {name} are {found}; expected float32{(flat.size,)}")
            self._rows[name].write(vectors, num_rows=len(blocks))
            for key, buffer in self._local[name].items():
                values = [(state or self._initial_state)[name][key] for state in states]
                buffer[: len(states)] = torch.from_numpy(np.stack(values))
        self._embed_zeros(len(blocks))

    def read(self, num_clients: int) -> tuple[list[dict[str, Vector]], list[LocalState]]:
        """Copies of the first clients' trained blocks, and of their local normalisation state.

        The vectors are rows of one matrix per block: whoever keeps one for long copies it.
        """
        blocks: list[dict[str, Vector]] = [{} for _ in range(num_clients)]
        states: list[LocalState] = [{} for _ in range(num_clients)]
        for name in self._trained:
            for own, vector in zip(blocks, self._rows[name].read(num_clients), strict=True):
                own[name] = vector
        for name, buffers in self._local.items():
            values = {key: buffer[:num_clients].cpu().numpy() for key, buffer in buffers.items()}
            for client, state in enumerate(states if values else ()):
                state[name] = {key: np.array(rows[client]) for key, rows in values.items()}
        return blocks, states

    def distances(self, blocks: Sequence[Mapping[str, Vector]]) -> list[dict[str, float]]:
        """How far the first clients' trained blocks are from these: L2 norm of the change of parameters, by name."""
        num_clients = len(blocks)
        found = {
            name: self._rows[name]
            .distances(_together([client[name] for client in blocks]), num_clients, self.num_parameters[name])
            .tolist()
            for name in self._trained
        }
        return [{name: distances[k] for name, distances in found.items()} for k in range(num_clients)]

    def start(self, values: Sequence[Mapping[str, Vector]]) -> None:
        """Put other vectors, float32 by block, in the place of the first clients': parameters alone, or all of it."""
        for name in values[0]:
            self._rows[name].write(np.stack([own[name] for own in values]))

    def parameters_of(self, name: str, num_clients: int) -> FloatArray:
        """A copy of the first clients' parameters of a block, (K, n)."""
        return self._rows[name].read(num_clients)[:, : self.num_parameters[name]]

    def statistics(self, name: str, num_clients: int) -> list[dict[str, np.ndarray]]:
        """Copies of the first clients' running statistics and counters of a block; "" for those averaged with it."""
        averaged = self._rows[name].read(num_clients)[:, self.num_parameters[name] :]
        local = {key: buffer[:num_clients].cpu().numpy() for key, buffer in self._local[name].items()}
        return [
            {**({"": averaged[k]} if averaged.shape[1] else {}), **{key: np.array(v[k]) for key, v in local.items()}}
            for k in range(num_clients)
        ]

    def load_block(
        self, name: str, parameters: Iterable[Vector], statistics: Sequence[Mapping[str, np.ndarray]]
    ) -> None:
        """Copy the first clients' parameters of a block in, and its running statistics as `statistics` gives them.

        Those that stand behind the parameters go before.
        """
        size = self.num_parameters[name]
        vectors = [
            np.concatenate([own, kept[""][len(own) - size :]]) if "" in kept else own
            for own, kept in zip(parameters, statistics, strict=True)
        ]
        self._rows[name].write(np.stack(vectors))
        for key, buffer in self._local[name].items():
            buffer[: len(vectors)] = torch.from_numpy(np.stack([kept[key] for kept in statistics]))

    def compose(self, blocks: Mapping[str, Tensor]) -> None:
        """Have the layers compute with other parameters, (K, n) by block, until the next batch is entered."""
        for name, vectors in blocks.items():
            for entry in self._flat[name].layout.parameters:
                part = vectors[:, entry.offset : entry.end]
                self._active[name][entry.name] = part.reshape(len(vectors), *entry.shape)

    def decompose(self) -> None:
        """Have the layers compute with the stack's own parameters again."""
        self._activate(self.lanes.num_clients)

    def enter(self, batch: StackedBatch) -> None:
        """Make `batch` the one that the model computes on, and its clients those that take part."""
        if len(batch.counts) != self.lanes.num_clients:
            self._activate(len(batch.counts))
        self.lanes.enter(batch)
        for name, lanes in self._own_lanes.items():
            own = batch.encoded.get(name.of) if name.kind == "encoder" else None
            seen = batch if name.kind == "encoder" else batch.of_task(name.of)
            lanes.enter(seen if own is None or own.batch is None else own.batch)

    def train_with(self, *, masks: Masks | None, descent: Descent | None) -> None:
        """What layers have dropout masks from, and the steps that they take themselves."""
        for lanes in (self.lanes, *self._own_lanes.values()):
            lanes.dropout_masks, lanes.descent = masks, descent

    def train_only(self, names: Collection[str]) -> None:
        """Enter training mode; of the blocks that can be trained, these are, and the others stand still."""
        self.trained_blocks = tuple(name for name in self._trained if name in names)
        # A block without parameters cannot be frozen: its dropout is at work in any phase.
        still = {name for name in self._trained if name not in names and self.num_parameters[name]}
        for name, block in self.model.blocks.items():
            block.train(name in self._training_blocks and name not in still)
        self._activate(self.lanes.num_clients)

    def _stacked_model(self, model: LateFusionModel) -> LateFusionModel:
        model.train()
        self._training_blocks = {name for name, block in model.blocks.items() if block.training}
        model.eval()
        # What deepcopy finds in its memo it takes for a copy already made: a layer's stacked form takes its place.
        exchanged: dict[int, object] = {}
        for name in model.blocks:
            for module, layer in self._stacked_layers(name):
                exchanged[id(module)] = layer
        self._constants: list[tuple[nn.Module, tuple[int, ...], _Constant]] = []
        for modality in model.embedding_dims:
            name = Block("encoder", modality)
            if name in model.unowned_blocks:
                constant = _Constant(self.lanes)
                encoder = copy.deepcopy(model.blocks[name], exchanged).eval()
                self._constants.append((encoder, model.input_shapes[modality], constant))
                exchanged[id(model.blocks[name])] = constant
        stacked = copy.deepcopy(model, exchanged)
        # Own code of known layers alone did all that it can do when it was tried.
        stacked.own_modules = {
            name: own for name, own in stacked.own_modules.items() if isinstance(stacked.blocks[name], MappedModule)
        }
        return stacked

    def _stacked_layers(self, name: str) -> list[tuple[nn.Module, nn.Module]]:
        """What is exchanged in a block, and for what: its known layers one by one, or with another layer all of it."""
        block, layers = self._flat[name].module, []
        lanes = self._own_lanes.get(Block.named(name), self.lanes)
        names = {id(tensor): key for key, tensor in (*block.named_parameters(), *block.named_buffers())}
        for module in block.modules():
            own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            tensors = LayerTensors({key: names[id(tensor)] for key, tensor in own}, self._active[name])
            layer = stacked_layer(module, tensors, lanes) if is_known(module) else None
            if layer is not None:
                layers.append((module, layer))
        if all(is_known(module) for module in block.modules()):
            return layers
        kept: dict[int, object] = {
            id(module): OutOfMap(layer, lanes)
            for module, layer in layers
            if isinstance(layer, StackedBatchNorm | StackedDropout)
        }
        mapped = copy.deepcopy(block, kept)
        own = (*mapped.named_parameters(), *mapped.named_buffers())
        tensors = LayerTensors({key: key for key, _ in own}, self._active[name])
        return [(block, MappedModule(mapped, tensors, lanes))]

    def _activate(self, num_clients: int) -> None:
        """Let the layers see the first rows."""
        self.model.num_stacked = num_clients
        for lanes in (self.lanes, *self._own_lanes.values()):
            lanes.num_clients = num_clients
        self.parameters, self.parameter_blocks = [], []
        for name, rows in self._rows.items():
            tensors = rows.tensors | self._local[name]
            self._active[name].update((key, tensor[:num_clients].detach()) for key, tensor in tensors.items())
            if name in self.trained_blocks:
                own = [self._active[name][entry.name] for entry in self._flat[name].layout.parameters]
                self.parameters += [parameter.requires_grad_() for parameter in own]
                self.parameter_blocks += [name] * len(own)

    @torch.no_grad()
    def _embed_zeros(self, num_clients: int) -> None:
        """Set the embeddings that stand for missing modalities; nothing changes them until the next `load`."""
        self._activate(num_clients)
        for encoder, shape, constant in self._constants:
            constant.embeddings = encoder(torch.zeros(num_clients, *shape, device=self.device))


def _together(vectors: Sequence[Vector]) -> FloatArray:
    """The vectors as rows, (K, size), or (1, size) where all are the same object: a block as it was sent."""
    first = vectors[0]
    return first[np.newaxis] if all(vector is first for vector in vectors) else np.stack(vectors)


class _Constant(nn.Module):
    """Stands for an encoder whose input is zeros and that is not trained: gives what was computed for each client."""

    def __init__(self, lanes: Lanes) -> None:
        super().__init__()
        self._lanes = lanes
        self.embeddings = torch.zeros(0)

    def forward(self, inputs: Tensor) -> Tensor:
        num_clients = self._lanes.num_clients
        return self.embeddings[:num_clients].repeat_interleave(len(inputs) // num_clients, dim=0)


# Part of the free memory that a stack may take: clients of one chunk differ, and so do batches.
_USED_PART = 0.8


class CudaMemory:
    """A GPU's memory, which other processes may share."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reset_peak(self) -> None:
        """Begin to watch."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> int:
        """The most bytes that tensors of this process have taken since."""
        return torch.cuda.max_memory_allocated(self._device)

    def free_bytes(self) -> int:
        """The part that this process is capped at, whatever others have taken; without a cap all that they left."""
        free, total = torch.cuda.mem_get_info(self._device)
        share = torch.cuda.get_per_process_memory_fraction(self._device)
        return int(share * total) if share < 1 else free + torch.cuda.memory_reserved(self._device)

    def release(self) -> None:
        """Give memory back that is kept for further tensors."""
        torch.cuda.empty_cache()


class StackSize:
    """The most clients of a stack.

    Args:
        first: What to begin with.
        memory: Of the device; None where it is not watched, as on a CPU.

    Attributes:
        limit: The most clients at present.
    """

    def __init__(self, first: int, memory: CudaMemory | None) -> None:
        self.limit, self._memory = first, memory
        self._is_settled = memory is None

    def watch(self) -> None:
        """A stack is about to be computed."""
        if self._memory is not None and not self._is_settled:
            self._memory.reset_peak()

    def learn(self, num_clients: int) -> None:
        """A stack of so many clients has been trained: the first one tells what a client takes."""
        if self._memory is None or self._is_settled:
            return
        bytes_per_client = self._memory.peak_bytes() / num_clients
        self.limit = max(1, int(_USED_PART * self._memory.free_bytes() / max(1.0, bytes_per_client)))
        self._is_settled = True

    def halve(self, num_clients: int) -> None:
        """A stack of so many clients, more than one, did not fit; it never gets larger again than half of that."""
        self.limit, self._is_settled = num_clients // 2, True
        if self._memory is not None:
            self._memory.release()
