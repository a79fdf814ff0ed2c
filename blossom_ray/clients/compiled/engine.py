"""Training of clients with the compiled kernels; everything else of a client is computed on stacks."""

from __future__ import annotations

import ctypes
import math
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from blossom_ray.algorithms.seam import MODEL, has
from blossom_ray.clients.compiled.library import library
from blossom_ray.clients.compiled.program import (
    LOSSES,
    BlockFields,
    BufferFields,
    Client,
    Dropout,
    Kind,
    OpFields,
    Program,
)
from blossom_ray.clients.job import Affine, ClientTask, LocalJob, LocalPass, LocalResult
from blossom_ray.clients.stacked.engine import StackedEngine
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import NO_BLOCK
from blossom_ray.core.sums import Vector
from blossom_ray.data.targets import IntArray
from blossom_ray.errors import RunError


class CompiledEngine(StackedEngine):
    """An `Engine` that takes the steps of local training in C, client by client, and is a `StackedEngine` for the rest.

    What a client's training leaves does not depend on who else is in the chunk. Whatever the kernels lack trains on
    stacks, and `obstacles` say why.

    Args:
        workspace: What the clients' model looks like; it has no `program.compiling_obstacle`.

    Raises:
        RunError: There are no compiled kernels on this machine.
    """

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self._steps = CompiledSteps(workspace)

    def _train_stack(self, tasks: Sequence[ClientTask], job: LocalJob) -> list[LocalResult]:
        if (reason := _obstacle(tasks, job)) is None:
            return self._steps.train(tasks, job)
        owned = "+".join(self._workspace.model.owned)
        self.obstacles[f"clients with {owned} trained on stacks and not with compiled kernels, since {reason}"] = None
        return super()._train_stack(tasks, job)


def _obstacle(tasks: Sequence[ClientTask], job: LocalJob) -> str | None:
    """What in these clients' samples or in the passes of an algorithm the kernels lack; None: nothing."""
    if has(job.author, "loss"):
        return "the algorithm adds to the loss"
    for each in job.passes:
        if each.model is not None or len(each.copies) > 1 or NO_BLOCK in tasks[0].extras.get(each.copies[0], {}):
            return "the algorithm has a pass over more than one copy of the model's blocks"
    if any(task.observed for task in tasks):
        return "samples lack modalities"
    if not all(isinstance(values, np.ndarray) for task in tasks for values in task.inputs.values()):
        return "samples are not in memory"
    return None


@dataclass(frozen=True)
class _Pass:
    """A pass as the kernels have it.

    Attributes:
        local: The pass.
        ops: Its operations: without dropout in blocks that stand still.
        blocks: How each block is stepped.
        dropouts: The masks that it draws.
        has_moments: Whether an optimizer remembers anything.
    """

    local: LocalPass
    ops: ctypes.Array[OpFields]
    blocks: ctypes.Array[BlockFields]
    dropouts: Sequence[Dropout]
    has_moments: bool


class CompiledSteps:
    """Trains clients of one model, one after the other.

    Args:
        workspace: Its model.

    Raises:
        RunError: There are no compiled kernels on this machine.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._program = Program(workspace)
        try:
            self._library = library()
        except RunError as error:
            where = f"training.engine is 'compiled', for which {platform.node()} has no kernels"
            raise RunError(f"{where}: {error}", hint="a C compiler on every node, or another engine") from error
        self._trained, self._most_samples = tuple(workspace.trained), 0
        self._client, program = Client(), self._program
        like_parameters = ("parameters", "gradients", "first_moments", "second_moments", "anchors", "offsets")
        self._arrays = {name: np.zeros(program.num_parameters, np.float32) for name in like_parameters}
        self._arrays["turned"] = np.zeros(program.num_turned, np.float32)
        self._set_pointers(self._arrays)
        self._received = np.zeros(program.num_parameters, np.float32)
        self._loaded: dict[str, Vector] = {}
        self._places = {name: values.ctypes.data for name, values in program.places.items()}
        [part] = workspace.learned.parts
        self._client.loss, self._client.num_outputs = LOSSES[part.kind], part.num_outputs
        self._client.output, self._client.num_blocks = program.output, len(program.blocks)
        self._label_type = np.int64 if part.kind == "classification" else np.float32

    def train(self, tasks: Sequence[ClientTask], job: LocalJob) -> list[LocalResult]:
        """Train each client on its shard; `job` has nothing but plain passes over the blocks."""
        self._batch_size = job.training.batch_size
        self._make_room(min(self._batch_size, max(len(task.labels) for task in tasks)))
        self._loaded.clear()  # the arrays of another round may lie where those of this one do
        clients, passes = [task.client for task in tasks], [self._pass(each, job) for each in job.passes]
        seeds = job.dropout_seeds(clients) if self._program.dropouts else [0] * len(tasks)
        parts = zip(tasks, job.order_generators(clients), seeds, strict=True)
        return [self._train(task, passes, orders, seed) for task, orders, seed in parts]

    def _set_pointers(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, values in arrays.items():
            setattr(self._client, name, values.ctypes.data)

    def _make_room(self, batch_size: int) -> None:
        """Lay out the buffers for batches of so many samples."""
        if batch_size <= self._most_samples:
            return
        program, self._most_samples = self._program, batch_size
        self._buffers, place = (BufferFields * len(program.buffers))(), 0
        for fields, buffer in zip(self._buffers, program.buffers, strict=True):
            fields.place = place if buffer.given is None else -1 - buffer.given
            fields.steps, fields.width, fields.pad = buffer.steps, buffer.width, buffer.pad
            fields.is_given = buffer.is_given
            place += batch_size * buffer.num_values
        num_rows = batch_size * max(buffer.steps for buffer in program.buffers)
        self._room: dict[str, np.ndarray] = {
            "values": np.zeros(place, np.float32),
            "slopes": np.zeros(place, np.float32),
            "zeros": np.zeros(max(buffer.width for buffer in program.buffers), np.float32),
            "sources": np.zeros(num_rows, np.uintp),
            "targets": np.zeros(num_rows, np.uintp),
            "masks": np.zeros(batch_size * sum(each.num_values for each in program.dropouts), np.float32),
        }
        self._set_pointers(self._room)
        self._client.buffers, self._client.num_buffers = self._buffers, len(self._buffers)

    def _pass(self, each: LocalPass, job: LocalJob) -> _Pass:
        program, optimizer = self._program, job.training.optimizer
        stepped = [name for name in self._trained if name in each.blocks]
        blocks, has_moments = (BlockFields * len(program.blocks))(), False
        for fields, name in zip(blocks, program.blocks, strict=True):
            fields.begin, fields.end = program.extents[name]
            fields.is_trained, fields.mu = name in stepped, each.mu if name in each.anchored else 0.0
        for own, rate, names in optimizer.alike(stepped, job.learning_rate * each.rates.get(each.copies[0], 1.0)):
            has_moments |= bool(own.moments)
            for fields in (blocks[program.blocks.index(name)] for name in names):
                fields.rate, fields.decay = rate, own.weight_decay
                fields.is_adam, fields.is_decoupled = own.kind != "sgd", own.kind == "adamw"
                for key in ("momentum", "is_nesterov", "beta1", "beta2", "eps"):
                    setattr(fields, key, getattr(own, key.removeprefix("is_"), 0))
        kept = [op for op in program.ops if op["kind"] != Kind.DROPOUT or program.blocks[op["block"]] in stepped]
        dropouts = [dropout for dropout in program.dropouts if dropout.block in stepped]
        return _Pass(each, (OpFields * len(kept))(*(OpFields(**op) for op in kept)), blocks, dropouts, has_moments)

    def _train(self, task: ClientTask, passes: Sequence[_Pass], orders: np.random.Generator, seed: int) -> LocalResult:
        started, client, size = time.perf_counter(), self._client, len(task.labels)
        self._load(task.blocks)
        samples = [np.ascontiguousarray(task.inputs[name], np.float32) for name in self._program.inputs]
        labels = np.ascontiguousarray(task.labels, self._label_type)
        pointers = np.array([values.ctypes.data for values in samples], np.uintp)
        client.samples, client.labels = pointers.ctypes.data, labels.ctypes.data
        generator = torch.Generator().manual_seed(seed) if self._program.dropouts else None
        loss_sum, num_epochs, per_epoch, steps = 0.0, 0, -(-size // self._batch_size), Counter[str]()
        extras = dict[str, dict[str, Vector]]()
        for number, each in enumerate(passes):
            copy, model = each.local.copies[0], self._arrays["parameters"]
            if copy != MODEL:  # it computes in the model's place
                model = model.copy()
                for name, vector in (held := {**task.extras[copy], **extras.get(copy, {})}).items():
                    self._scatter(name, vector, self._arrays["parameters"])
            self._enter(each, task.own(number))
            losses = [self._epoch(orders.permutation(size), each, generator) for _ in range(each.local.num_epochs)]
            if copy != MODEL:
                extras[copy] = {name: self._read(name, vector)[0] for name, vector in held.items()}
                np.copyto(self._arrays["parameters"], model)
            if each.local.is_recorded:
                loss_sum += math.fsum(losses)
                num_epochs += len(losses)
                steps.update(dict.fromkeys(each.local.blocks, per_epoch * len(losses)))
        found = {name: self._read(name, task.blocks[name]) for name in self._trained}
        return LocalResult(
            blocks={name: vector for name, (vector, _) in found.items()},
            local_state={},
            optimizer_state={},
            num_examples=size * num_epochs,
            num_steps=per_epoch * num_epochs,
            loss=loss_sum / (size * num_epochs),
            drift={name: drift for name, (_, drift) in found.items()},
            seconds=time.perf_counter() - started,
            steps=steps,
            extras=extras,
        )

    def _load(self, blocks: Mapping[str, Vector]) -> None:
        """Put a client's blocks in place; those that it has in common with the one before it are there already."""
        for name in self._program.blocks:
            if self._loaded.get(name) is not blocks[name]:
                self._scatter(name, blocks[name], self._received)
                self._loaded[name] = blocks[name]
        np.copyto(self._arrays["parameters"], self._received)

    def _scatter(self, name: str, vector: Vector, target: np.ndarray) -> None:
        vector = np.ascontiguousarray(vector, np.float32)
        self._library.scatter(vector.ctypes.data, self._places[name], len(vector), target.ctypes.data)

    def _read(self, name: str, received: Vector) -> tuple[Vector, float]:
        """A block's vector now, and how far it went."""
        vector, received = np.empty(len(received), np.float32), np.ascontiguousarray(received, np.float32)
        squared = self._library.gather(
            self._client.parameters, self._places[name], len(vector), received.ctypes.data, vector.ctypes.data
        )
        return vector, math.sqrt(squared)

    def _enter(self, each: _Pass, own: Affine) -> None:
        """Train the blocks of a pass from now on, with an optimizer of their own."""
        client, arrays = self._client, self._arrays
        client.ops, client.num_ops, client.blocks = each.ops, len(each.ops), each.blocks
        for name, vector in own.start.items():
            self._scatter(name, vector, arrays["parameters"])
        if each.has_moments:
            for name in ("first_moments", "second_moments"):
                arrays[name].fill(0)
        if each.local.mu:
            np.copyto(arrays["anchors"], self._received)
        for name, vector in own.anchor.items():
            self._scatter(name, vector, arrays["anchors"])
        for name, vector in own.offset.items():
            self._scatter(name, vector, arrays["offsets"])
        if each.has_moments or each.local.has_offset:
            for fields, name in zip(each.blocks, self._program.blocks, strict=True):
                fields.num_steps, fields.has_offset = 0, name in own.offset

    def _epoch(self, order: IntArray, each: _Pass, generator: torch.Generator | None) -> float:
        """Steps on all samples in this order; returns the sum of their losses."""
        client, size = ctypes.byref(self._client), self._batch_size
        if not each.dropouts:
            return float(self._library.train(client, order.ctypes.data, len(order), size))
        total, masks = 0.0, torch.from_numpy(self._room["masks"])
        for batch in np.split(order, range(size, len(order), size)):
            place = 0
            for dropout in each.dropouts:
                end = place + len(batch) * dropout.num_values
                masks[place:end].bernoulli_(dropout.keep, generator=generator)
                place = end
            total += self._library.train(client, batch.ctypes.data, len(batch), size)
        return total
