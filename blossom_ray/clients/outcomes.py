"""What a client keeps of a round and what leaves it, sorted and checked from what an algorithm's `finish` gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from blossom_ray.algorithms.extras import ExtraPart
from blossom_ray.algorithms.seam import MODEL, Sent, Tree
from blossom_ray.clients.job import LocalResult
from blossom_ray.clients.plan import ClientPlan
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import NO_BLOCK, BlockInstance, ClientProfile, Scope
from blossom_ray.errors import RunError


@dataclass(frozen=True)
class Outcome:
    """What a client keeps of a round, and what leaves it.

    Attributes:
        extras: New values of what it keeps, by copy and block.
        sent: By block instance the weight, not 0, and the value; float32.
    """

    extras: Mapping[str, Mapping[str, np.ndarray]]
    sent: Mapping[BlockInstance, tuple[float, np.ndarray]]


class Sorting:
    """Sorts what `finish` gives into what stays with each client and what leaves it, and checks it.

    Args:
        plan: What every client goes by.
        profile: One of the clients, which are of one kind.
        workspace: A model of this kind.
        results: What training left, by client.
        weights: The clients' weights in averages.
        observed: As in `ClientTraining.num_observed`, by client.
        trained: The copies that passes trained: what of them is shared leaves without a word.
    """

    def __init__(
        self,
        plan: ClientPlan,
        profile: ClientProfile,
        workspace: Workspace,
        results: Sequence[LocalResult],
        weights: Sequence[float],
        observed: Sequence[Mapping[str, int]],
        trained: Iterable[str],
    ) -> None:
        self._plan, self._profile, self._workspace, self._layout = plan, profile, workspace, plan.layout(profile)
        self._results, self._weights, self._observed, self._trained = results, weights, observed, set(trained)
        self._extras: list[dict[str, dict[str, np.ndarray]]] = [{} for _ in results]
        self._sent: list[dict[BlockInstance, tuple[float, np.ndarray]]] = [{} for _ in results]
        self._parts: dict[str, dict[str, ExtraPart]] = {}
        for part in plan.extra_parts(profile):
            self._parts.setdefault(part.instance.copy, {})[part.instance.name] = part

    def outcomes(self, found: Mapping[str, Any]) -> list[Outcome]:
        """The outcome of each client.

        Args:
            found: By copy a tree of rows (K, n), or rows of a single array, plain or `Sent`.

        Raises:
            RunError: It names what there is not, has another shape, is not finite, or stays where it should leave.
        """
        for name, value in found.items():
            if name == MODEL:
                self._model(value)
            elif name in self._parts:
                self._extra(name, value)
            elif (value.value if isinstance(value, Sent) else value) != {}:  # a copy of no blocks
                known = ", ".join(sorted({MODEL, *self._parts}))
                raise RunError(f"algorithm: finish gave {name!r}, which is no extra; expected some of {known}")
        self._measured()
        return [Outcome(extras, sent) for extras, sent in zip(self._extras, self._sent, strict=True)]

    def _model(self, value: Any) -> None:
        """The averaged blocks of the model as the algorithm sends them."""
        if not isinstance(value, Sent):
            value = Sent(value)
        if not isinstance(value.value, Tree):
            raise RunError("algorithm: finish gave a model that is no tree of blocks; expected Sent(k.new, ...)")
        sizes = self._layout.sizes
        new: dict[str, np.ndarray] = {}
        weights: dict[str, np.ndarray] = {}
        for block, rows in value.value.items():
            if block not in self._layout.averaged:
                known = ", ".join(self._layout.averaged)
                raise RunError(f"algorithm: finish sends {block} of model; expected averaged blocks: {known}")
            new[block] = self._checked(MODEL, block, rows, (sizes[block],))
            weights[block] = self._weights_of(value.weight, block, block)
        for instance in self._plan.returned_blocks(self._profile):
            block = instance.name
            if instance.copy or block not in new:
                continue
            for k, own in enumerate(weights[block]):
                if own != 0:
                    values, rest = new[block][k], self._results[k].blocks[block][sizes[block] :]
                    is_whole = block in self._plan.split_blocks or not rest.size
                    self._sent[k][instance] = float(own), values if is_whole else np.concatenate([values, rest])

    def _measured(self) -> None:
        """What is measured in place of trained weighs what its client does, whatever becomes of parameters."""
        kinds = ("prototype", "statistics") if MODEL in self._trained else ("prototype",)
        instances = [i for i in self._plan.returned_blocks(self._profile) if i.name.kind in kinds]
        for k, (result, weight) in enumerate(zip(self._results, self._weights, strict=True)):
            for instance, values in self._plan.cut(instances, result.blocks, self._workspace.num_parameters).items():
                self._sent[k][instance] = self._plan.block_weight(instance, weight, self._observed[k]), values

    def _extra(self, name: str, value: Any) -> None:
        parts = self._parts[name]
        is_sent, weight = isinstance(value, Sent), value.weight if isinstance(value, Sent) else None
        value = value.value if isinstance(value, Sent) else value
        is_single = NO_BLOCK in parts
        if is_single is isinstance(value, dict):
            found, expected = ("a tree", "one array") if is_single else ("one array", "a tree of blocks")
            raise RunError(f"algorithm: finish gave {found} for {name}; expected {expected}")
        for block, rows in [(NO_BLOCK, value)] if is_single else value.items():
            if block not in parts:
                raise RunError(f"algorithm: finish gave {name} for {block}; expected {', '.join(parts)}")
            part = parts[block]
            values = self._checked(name, block, rows, part.shape)
            if part.instance.is_private:
                if is_sent:
                    raise RunError(
                        f"algorithm: finish sends {name}, which is private; expected a plain value, for it stays"
                    )
                for k, extras in enumerate(self._extras):
                    extras.setdefault(name, {})[block] = values[k].copy()
                continue
            if not is_sent and name not in self._trained:
                scope = part.instance.scope
                raise RunError(f"algorithm: finish gave {name}, which is {scope}; expected Sent(...), for it leaves")
            if part.instance.scope is Scope.DRAWN:
                raise RunError(f"algorithm: finish gave {name}, which is drawn anew; expected another extra")
            weights = self._weights_of(weight, block, name if is_single else block)
            instance = part.instance._replace(key="") if part.instance.scope is Scope.CLIENT else part.instance
            for k, sent in enumerate(self._sent):
                if weights[k] != 0:
                    sent[instance] = float(weights[k]), values[k]

    def _checked(self, name: str, block: str, rows: Any, shape: tuple[int, ...]) -> np.ndarray:
        where = f"algorithm: finish: {name} {block}".rstrip()
        expected = (len(self._results), *shape)
        if not isinstance(rows, Tensor) or tuple(rows.shape) != expected:
            found = tuple(rows.shape[1:]) if isinstance(rows, Tensor) else type(rows).__name__
            raise RunError(f"{where} has shape {found}; expected {shape}")
        values: np.ndarray = rows.detach().cpu().numpy().astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            finite = math.isfinite(float(np.vdot(values, values))) or np.isfinite(values).all()
        if not finite:
            raise RunError(f"{where} is not finite", "a smaller training.optimizer.lr, or a guard in the algorithm")
        return values

    def _weights_of(self, weight: Any, block: str, what: str) -> np.ndarray:
        """The clients' weights for one block, (K,) float64; `what` is sent with them, for messages."""
        if weight is None:
            return np.array(self._weights, np.float64)
        if isinstance(weight, Tree):
            if block not in weight:
                raise RunError(f"algorithm: finish sends {what} without a weight; expected one for each block")
            weight = weight[block]
        numbers = np.asarray(weight.detach().cpu() if isinstance(weight, Tensor) else weight, np.float64)
        if numbers.ndim > 1:
            raise RunError(f"algorithm: finish sends {what} with a weight of shape {numbers.shape[1:]}; expected ()")
        if not np.isfinite(numbers).all() or (numbers < 0).any():
            raise RunError(f"algorithm: finish sends {what} with a weight of {numbers}; expected 0 or more")
        return np.broadcast_to(numbers, (len(self._results),))
