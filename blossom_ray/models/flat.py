"""A block as one vector, with a second one for its gradients: the memory of the module's parameters.

Sending, averaging and stepping a block then work on one array, whatever the module looks like inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from blossom_ray.errors import InputError
from blossom_ray.models.fusion import Prototype
from blossom_ray.models.options import NormStatistics


@dataclass(frozen=True)
class Entry:
    """One tensor's place in a block's vector: name in the module, shape, index of the first value."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def end(self) -> int:
        """The index after its last value."""
        return self.offset + math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """What lies where in a block's vector. Equal layouts mean that vectors can be averaged.

    Attributes:
        parameters: The parameters, in the order of `named_parameters()`; tied ones once.
        buffers: The averaged running statistics after them, in the order of `named_buffers()`.
    """

    parameters: tuple[Entry, ...]
    buffers: tuple[Entry, ...]

    @property
    def num_parameters(self) -> int:
        """Values that are parameters; they come first."""
        return self.parameters[-1].end if self.parameters else 0

    @property
    def size(self) -> int:
        """Values in all."""
        return self.buffers[-1].end if self.buffers else self.num_parameters


def block_layout(module: nn.Module, norm_statistics: NormStatistics) -> Layout:
    """The layout of a module's vector.

    Args:
        module: The block.
        norm_statistics: `local`: running statistics are no part of the vector; else they are, behind the parameters.

    Raises:
        InputError: A parameter or a shared buffer is not float32, or has no shape yet, or some parameters are
            frozen and others not: a step on the vector would move both.
    """
    parameters = dict(module.named_parameters())
    buffers = _shared_buffers(module, norm_statistics)
    for kind, tensors in (("parameter", parameters), ("buffer", buffers)):
        for name, tensor in tensors.items():
            if nn.parameter.is_lazy(tensor):
                raise InputError(f"{kind} {name!r} has no shape yet; expected one that is initialised")
            if tensor.dtype != torch.float32:
                raise InputError(f"{kind} {name!r} has type {tensor.dtype}; expected torch.float32")
    if len({parameter.requires_grad for parameter in parameters.values()}) > 1:
        name = next(name for name, parameter in parameters.items() if not parameter.requires_grad)
        raise InputError(
            f"parameter {name!r} is frozen and others are not; expected a block that is trained or frozen as "
            "a whole (constants can be buffers)"
        )
    entries: list[Entry] = []
    offset = 0
    for name, tensor in (*parameters.items(), *buffers.items()):
        entries.append(Entry(name, tuple(tensor.shape), offset))
        offset = entries[-1].end
    return Layout(tuple(entries[: len(parameters)]), tuple(entries[len(parameters) :]))


class FlatBlock:
    """One contiguous float32 vector that is the memory of a module, on the device where the module lies.

    What changes the module in place changes the vector, and the other way round. Moving the module to another
    device, or calling `flatten_parameters` of a recurrent layer on a GPU, breaks the bond; `read` notices.

    Args:
        module: The block. Its parameters, and its running statistics unless these are `local`, become views of
            `values`.
        norm_statistics: Whether running statistics are the client's own state (`local`) or part of the vector, whoever
            they are averaged over. All other buffers (counters, constants of own code) are always the client's own.
        trained: Whether the block is trained; if not, its parameters get no gradients. A block that comes
            with frozen parameters is not trained in any case.

    Attributes:
        values: (size,) float32: first the parameters, then the shared buffers, as `layout` says.
        gradient: (num_parameters,) float32, the memory of the parameters' gradients: `backward` adds to it.
            (0,) where the block is not trained.
        layout: Names, shapes and offsets.
        trained: Whether the block is trained.

    Raises:
        InputError: As `block_layout`.
    """

    def __init__(self, module: nn.Module, norm_statistics: NormStatistics, *, trained: bool = True) -> None:
        self.module = module
        self.layout = block_layout(module, norm_statistics)
        parameters = dict(module.named_parameters())
        buffers = _shared_buffers(module, norm_statistics)
        tensors = (*parameters.values(), *buffers.values())
        device = tensors[0].device if tensors else torch.device("cpu")
        self.values = torch.empty(self.size, dtype=torch.float32, device=device)
        self._bonds: list[tuple[nn.Module, str, Tensor]] = []
        for entry, tensor in zip((*self.layout.parameters, *self.layout.buffers), tensors, strict=True):
            view = self.values[entry.offset : entry.end].view(entry.shape)
            view.copy_(tensor.detach())
            tensor.data = view
            self._bonds.append((*_place(module, entry.name), view))
        self._local_places = {name: _place(module, name) for name, _ in module.named_buffers() if name not in buffers}

        self.trained = trained and all(parameter.requires_grad for parameter in parameters.values())
        self.gradient = torch.zeros(self.num_parameters, dtype=torch.float32, device=device)
        for entry, parameter in zip(self.layout.parameters, parameters.values(), strict=True):
            parameter.grad = self.gradient[entry.offset : entry.end].view(entry.shape)
        if not self.trained:
            self.freeze()

    @property
    def size(self) -> int:
        """Values in the vector."""
        return self.layout.size

    @property
    def num_parameters(self) -> int:
        """Values of the vector that are parameters; they come first."""
        return self.layout.num_parameters

    @property
    def parameters(self) -> Tensor:
        """The block's parameters, without its averaged buffers; a view."""
        return self.values[: self.num_parameters]

    def freeze(self) -> None:
        """Train this block no more: its parameters lose their gradients and get no new ones."""
        self.trained = False
        self.gradient = self.gradient.new_empty(0)
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None

    def zero_gradient(self) -> None:
        """Set the gradient to zero in place. `zero_grad` of a module or optimizer would drop the views."""
        self.gradient.zero_()

    def load(self, vector: npt.NDArray[np.float32]) -> None:
        """Copy a vector into the block.

        Args:
            vector: (size,) float32. May be read-only memory that processes share; not kept, not modified.

        Raises:
            ValueError: Another shape or type.
        """
        if vector.shape != (self.size,) or vector.dtype != np.float32:
            raise ValueError(f"vector is {vector.dtype}{vector.shape}; expected float32{(self.size,)}")
        _copy_into(self.values, vector)

    def read(self) -> npt.NDArray[np.float32]:
        """A copy of the vector, (size,) float32.

        Raises:
            InputError: The module replaced a parameter or a shared buffer, so the vector is stale.
        """
        for owner, attribute, view in self._bonds:
            if getattr(owner, attribute).data_ptr() != view.data_ptr():
                raise InputError(f"{attribute!r} of {type(owner).__name__} is a new tensor; expected changes in place")
        copy: npt.NDArray[np.float32] = self.values.cpu().numpy().copy()
        return copy

    def local_state(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of the buffers that are not in the vector, by name: what belongs to the client alone."""
        return {name: buffer.cpu().numpy().copy() for name, buffer in self._local_buffers().items()}

    def load_local_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Copy the result of `local_state` back in. The arrays may be read-only; they are not kept.

        Raises:
            ValueError: Other names, shapes or types than the block has.
        """
        buffers = self._local_buffers()
        if state.keys() != buffers.keys():
            found, known = ", ".join(sorted(state)) or "none", ", ".join(buffers) or "none"
            raise ValueError(f"local buffers are {found}; expected {known}")
        for name, values in state.items():
            own = buffers[name].cpu().numpy()
            if values.shape != own.shape or values.dtype != own.dtype:
                raise ValueError(
                    f"local buffer {name!r} is {values.dtype}{values.shape}; expected {own.dtype}{own.shape}"
                )
            _copy_into(buffers[name], values)

    def statistics(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of all that is no parameter: the local state, and by "" the averaged buffers where there are any."""
        averaged = self.values[self.num_parameters :].cpu().numpy().copy()
        return {**({"": averaged} if averaged.size else {}), **self.local_state()}

    def load_statistics(self, statistics: Mapping[str, npt.NDArray[Any]]) -> None:
        """Copy the result of `statistics` back in."""
        if "" in statistics:
            _copy_into(self.values[self.num_parameters :], statistics[""])
        self.load_local_state({name: values for name, values in statistics.items() if name})

    def load_first(self, vector: npt.NDArray[np.float32]) -> None:
        """Copy a vector into the first values: (num_parameters,) leaves the averaged buffers as they are."""
        _copy_into(self.values[: len(vector)], vector)

    def _local_buffers(self) -> dict[str, Tensor]:
        # Looked up each time: a module may replace its own buffers.
        return {name: getattr(owner, attribute) for name, (owner, attribute) in self._local_places.items()}


def _shared_buffers(module: nn.Module, norm_statistics: NormStatistics) -> dict[str, Tensor]:
    if norm_statistics == "local":
        return {}
    return {
        name: buffer
        for name, buffer in module.named_buffers()
        if buffer.is_floating_point() and _is_statistic(*_place(module, name))
    }


def _is_statistic(owner: nn.Module, attribute: str) -> bool:
    # The means of a prototype are one, too; of own code, what is named as PyTorch names its own.
    return isinstance(owner, _NormBase | Prototype) or attribute.startswith("running_")


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path), attribute


def _copy_into(target: Tensor, values: npt.NDArray[Any]) -> None:
    if target.device.type == "cpu":
        # Through NumPy: torch.from_numpy warns about read-only memory, which is the usual case here.
        np.copyto(target.detach().numpy(), values)
    else:
        target.copy_(torch.from_numpy(values.copy()))
