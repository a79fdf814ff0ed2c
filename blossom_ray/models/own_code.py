"""Own code in a model: built by the user's factory, tried once, and checked in each batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blossom_ray.core.factories import call_factory, shown_factory
from blossom_ray.core.section import Custom
from blossom_ray.errors import OWN_CODE_RAISES, InputError, shown_error

_NUM_ROWS = 2
"""Samples in the batch of zeros that own code is tried with."""

_Shape = tuple[int, ...]


@dataclass(frozen=True)
class OwnModule:
    """What a block of the user's code has to give.

    Attributes:
        name: Its place in the scenario and its factory, for messages.
        width: Width of its output.
    """

    name: str
    width: int

    @classmethod
    def of(cls, section: Custom, where: str, width: int) -> OwnModule:
        """What the code of a section has to give, which stands at `where` in the scenario."""
        return cls(f"{where} ({shown_factory(section)})", width)


def build_own(
    section: Custom,
    where: str,
    arguments: tuple[object, ...],
    *,
    inputs: _Shape | Mapping[str, _Shape],
    width: int | None = None,
    is_trial: bool = False,
) -> tuple[nn.Module, int]:
    """The module of the user's factory, tried on samples of zeros, and the width of what it gives.

    Args:
        section: Names the factory and its keyword arguments.
        where: Its place in the scenario, for messages.
        arguments: The factory's positional arguments.
        inputs: Shape of one sample of the module's input, or of each of a dict of inputs.
        width: Width of its output; None: any.
        is_trial: Whether the module is built for its width alone; torch's generator then stays as it is.

    Raises:
        InputError: The factory cannot be found, raises or gives no module; the module raises or gives something else
            than a row of `width` float32 values for each sample.
    """
    if is_trial:
        with torch_seeded(0):
            return build_own(section, where, arguments, inputs=inputs, width=width)
    module = call_factory(section, where, *arguments)
    if not isinstance(module, nn.Module):
        raise InputError(f"{where}.factory returned {type(module).__name__}; expected a torch.nn.Module")
    return module, try_own(module, where, inputs, width)


def try_own(module: nn.Module, where: str, inputs: _Shape | Mapping[str, _Shape], width: int | None = None) -> int:
    """The width of what own code gives for samples of zeros; arguments and errors as `build_own` has them."""
    shapes: object
    zeros: Tensor | dict[str, Tensor]
    if isinstance(inputs, Mapping):
        shapes = {name: (_NUM_ROWS, *shape) for name, shape in inputs.items()}
        zeros = {name: torch.zeros(_NUM_ROWS, *shape) for name, shape in inputs.items()}
    else:
        shapes, zeros = (_NUM_ROWS, *inputs), torch.zeros(_NUM_ROWS, *inputs)
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            output = module(zeros)
    except OWN_CODE_RAISES as error:
        cause = shown_error(error)
        raise InputError(f"{where}: the module raised on zeros of shape {shapes}: {cause}") from error
    module.train(was_training)
    problem = output_problem(output, _NUM_ROWS, width, torch.device("cpu"))
    if problem is not None:
        found, _, expected = problem.partition("; expected ")
        raise InputError(f"{where}: the module gives {found} for zeros of shape {shapes}; expected {expected}")
    return int(output.shape[1])


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Meanwhile torch's generator of the CPU, from which modules draw initial values, is seeded; then it is put back.

    Not `torch.manual_seed`, which would seed the generators of GPUs for good.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def output_problem(
    output: object,
    num_rows: int,
    width: int | None,
    device: torch.device,
    dtypes: Collection[torch.dtype] = (torch.float32,),
) -> str | None:
    """What is wrong with the output of own code for a batch, as "<found>; expected <expected>"; None if it is right.

    Args:
        output: What the module returned.
        num_rows: Rows of the batch.
        width: Values in each row; None: any number.
        device: Where the batch lies.
        dtypes: Accepted types; under autocast, layers give bfloat16.
    """
    expected = f"a float32 tensor of shape ({num_rows}, {width or 'dim'})"
    if not isinstance(output, Tensor):
        return f"{type(output).__module__}.{type(output).__name__}; expected {expected}".removeprefix("builtins.")
    if output.dtype not in dtypes or output.ndim != 2 or len(output) != num_rows:
        return f"{output.dtype} of shape {tuple(output.shape)}; expected {expected}"
    if width is not None and output.shape[1] != width:
        return f"shape {tuple(output.shape)}; expected {expected}"
    if output.device != device:
        return f"a tensor on {output.device}; expected one on {device}, where its input lies"
    return None
