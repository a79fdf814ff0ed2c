"""What an algorithm makes of the clients of a chunk: their copies as it sees them, its passes, what it keeps and sends.

Its functions are of one client. Where clients are stacked they are mapped over all of them at once.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from blossom_ray.algorithms.extras import ExtraPart, declared_copies
from blossom_ray.algorithms.seam import MODEL, Client, Pass, Tree, has, naming
from blossom_ray.clients.engines import Engine
from blossom_ray.clients.job import Affine, ClientTask, LocalPass, LocalResult, training_passes
from blossom_ray.clients.mapping import mapped, one_by_one
from blossom_ray.clients.outcomes import Outcome, Sorting
from blossom_ray.clients.plan import ClientPlan, ClientState, SentBlock
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import NO_BLOCK, Block, BlockInstance, ClientProfile, Scope
from blossom_ray.core.seeding import Purpose, generator, stable_number, torch_seed
from blossom_ray.core.sums import Vector
from blossom_ray.errors import OWN_CODE_RAISES, RunError, shown_error
from blossom_ray.models.build import build_block
from blossom_ray.models.flat import FlatBlock

_LOG = logging.getLogger(__name__)

Rows = dict[str, Any]
"""By copy a tree of (K, n) tensors, or where it is a single array a tensor (K, *shape): row k is client k's."""
Result = TypeVar("Result")


class Authored:
    """An algorithm, applied to clients of one kind.

    Args:
        plan: What every client goes by; it has an algorithm.
        workspace: A model of this kind of clients.
        profile: One of them.
        is_mapped: Whether functions are mapped over clients, instead of called for one after the other.

    Attributes:
        obstacles: Lines on what cannot be mapped, and why, as far as that is known.
    """

    def __init__(self, plan: ClientPlan, workspace: Workspace, profile: ClientProfile, *, is_mapped: bool) -> None:
        self.plan, self.workspace, self.profile, self._is_mapped = plan, workspace, profile, is_mapped
        self._author, self.layout = plan.author, plan.layout(profile)
        self._copies = declared_copies(self._author, self.layout)
        self._first_values: dict[tuple[str, Block], np.ndarray] = {}
        self.obstacles: dict[str, None] = {}

    def extras(
        self,
        profile: ClientProfile,
        blocks: Mapping[str, Vector],
        state: ClientState,
        sent: Mapping[BlockInstance, SentBlock],
        round_index: int,
    ) -> dict[str, dict[str, np.ndarray]]:
        """What a client has beside its model, by copy and block, before a round or for scoring.

        Args:
            profile: The client.
            blocks: Its blocks.
            state: What it kept.
            sent: What it was sent; what is not here is not needed.
            round_index: The round that numbers are drawn for.
        """
        found: defaultdict[str, dict[str, np.ndarray]] = defaultdict(dict, {name: {} for name in self._copies})
        for part in self.plan.extra_parts(profile):
            copy, block = part.instance.copy, part.instance.name
            if part.instance.is_private:
                kept = state.extras.get(copy, {}).get(block)
                if kept is None and part.initial == "received":
                    kept = blocks[block][: part.shape[0]]
                found[copy][block] = self.first_value(part) if kept is None else kept
            elif part.instance.scope is Scope.DRAWN:
                found[copy][block] = self._drawn(part, round_index, profile.index)
            elif part.instance in sent:
                found[copy][block] = sent[part.instance].values
        return dict(found)

    def first_value(self, part: ExtraPart) -> np.ndarray:
        """The first values of an extra, float32."""
        key = part.instance.copy, part.instance.name
        if key not in self._first_values:
            self._first_values[key] = first_value(part, self.plan, self.workspace)
        return self._first_values[key]

    @cached_property
    def has_extras(self) -> bool:
        """Whether there is anything beside the model."""
        return bool(self._copies or self.plan.extra_parts(self.profile))

    @cached_property
    def has_own_instances(self) -> bool:
        """Whether the server has something for each client alone."""
        return any(part.instance.scope is Scope.CLIENT for part in self.plan.extra_parts(self.profile))

    def scored(self, tasks: Sequence[ClientTask]) -> list[ClientTask]:
        """The clients with the blocks that the algorithm has them scored with."""
        if not has(self._author, "scored"):
            return list(tasks)
        blocks = self.call("scored", self._author.scored, self.rows(tasks), len(tasks))
        if not isinstance(blocks, dict):
            raise RunError(f"algorithm: scored gave {type(blocks).__name__}; expected a tree of blocks")
        sizes = self.layout.sizes
        for block, rows in blocks.items():
            if block not in sizes or tuple(rows.shape[1:]) != (sizes[block],):
                known = ", ".join(f"{name} ({size},)" for name, size in sizes.items())
                raise RunError(f"algorithm: scored gave {block} of shape {tuple(rows.shape[1:])}; expected of {known}")
        return [
            self._with_blocks(task, {block: rows[k].numpy() for block, rows in blocks.items()})
            for k, task in enumerate(tasks)
        ]

    def _with_blocks(self, task: ClientTask, parameters: Mapping[str, np.ndarray]) -> ClientTask:
        """A client with other parameters; running statistics are those of a trained copy that they come from."""
        blocks, local_state = dict(task.blocks), dict(task.local_state or self.workspace.initial_state)
        for block, values in parameters.items():
            labels = (f"{copy}:{block}" for copy in sorted(self.plan.scored_copies))
            kept = next((task.local_state[label] for label in labels if label in task.local_state), {})
            averaged = kept.get("", task.blocks[block][len(values) :])
            blocks[block] = np.concatenate([values, averaged])
            if own := {name: buffer for name, buffer in kept.items() if name}:
                local_state[block] = own
        return replace(task, blocks=blocks, local_state=local_state)

    def begin(
        self, tasks: Sequence[ClientTask], engine: Engine, round_index: int, learning_rate: float
    ) -> AuthoredRound:
        """The round of some clients: what is to be trained."""
        return AuthoredRound(self, tasks, engine, round_index, learning_rate)

    def rows(self, tasks: Sequence[ClientTask]) -> Rows:
        """The copies of some clients, parameters alone, in memory of their own."""
        copies: Rows = {
            MODEL: Tree({b: _stacked([task.blocks[b] for task in tasks], n) for b, n in self.layout.sizes.items()})
        }
        for name, held in tasks[0].extras.items():
            parts = {block: _stacked([task.extras[name][block] for task in tasks]) for block in held}
            copies[name] = parts[NO_BLOCK] if NO_BLOCK in parts else Tree(parts)
        return copies

    def call(self, method: str, function: Callable[[Any], Result], rows: Mapping[str, Any], count: int) -> Result:
        """A function of one client's part of `rows`, for each client: what it returns, with its tensors as rows.

        Raises:
            RunError: The author's code raised, changed what it was given, or differs in kind from client to client.
        """
        obstacle = ""
        if self._is_mapped:
            try:
                return mapped(function, rows)
            except OWN_CODE_RAISES as error:  # it is called in turn, and then says what is wrong with it
                obstacle = shown_error(error).splitlines()[0]
        with naming(method):
            found = one_by_one(method, function, rows, count)
        if obstacle:
            told = f"algorithm: {method} is called for one client after the other, for it cannot be mapped: {obstacle}"
            self.obstacles[told] = None
            _tell(told)
        return found

    def _drawn(self, part: ExtraPart, round_index: int, client: int) -> np.ndarray:
        name = stable_number(f"{part.instance.copy}\0{part.instance.name}")
        draw = np.random.default_rng([self.plan.seed, int(Purpose.DRAWN_EXTRA), round_index, client, name])
        return _numbers(part, draw)


class AuthoredRound:
    """A round of the clients of a chunk, as an algorithm has it.

    Args:
        authored: The algorithm and the kind of clients.
        tasks: The clients, with their extras.
        engine: Measures what `before` and `after` ask for.
        round_index: The round.
        learning_rate: The round's learning rate.

    Attributes:
        tasks: The clients, with what of each pass is their own.
        passes: What is trained.
    """

    def __init__(
        self, authored: Authored, tasks: Sequence[ClientTask], engine: Engine, round_index: int, learning_rate: float
    ) -> None:
        self._authored, self._engine = authored, engine
        self._author, self._plan, self._layout = authored.plan.author, authored.plan, authored.layout
        self._round, self._learning_rate = round_index, learning_rate
        self._rows = authored.rows(tasks)
        self._own: dict[str, Any] = {
            "received": self._rows[MODEL].only(self._layout.averaged),
            "extras": {name: value for name, value in self._rows.items() if name != MODEL},
            "client": torch.tensor([task.client for task in tasks]),
            "num_samples": torch.tensor([float(len(task.labels)) for task in tasks]),
        }
        weights = [self._plan.client_weight(len(task.labels)) for task in tasks]
        if None not in weights:
            self._own["weight"] = torch.tensor(weights, dtype=torch.float32)
        if has(self._author, "before"):
            self._own["before"] = self._measured(tasks, "before")
        self.passes, self.tasks = self._passes(tasks)

    def finish(
        self, results: Sequence[LocalResult], weights: Sequence[float], observed: Sequence[Mapping[str, int]]
    ) -> list[Outcome]:
        """What each client keeps and sends, once it has been trained.

        Args:
            results: What training left.
            weights: The clients' weights in averages.
            observed: As in `ClientTraining.num_observed`.
        """
        layout = self._layout
        if not any(has(self._author, method) for method in ("after", "finish", "local")):
            return self._as_trained(results, weights, observed)
        after = [task.after(result) for task, result in zip(self.tasks, results, strict=True)]
        trained = self._authored.rows(after)
        self._own["trained"] = trained
        self._own["weight"] = torch.tensor(weights, dtype=torch.float32)
        self._own["num_steps"] = Tree(
            {b: torch.tensor([float(result.steps.get(b, 0)) for result in results]) for b in layout.averaged}
        )
        if has(self._author, "after"):
            self._own["after"] = self._measured(after, "after")
        copies = {name for each in self.passes for name in each.copies}
        if has(self._author, "local"):
            copies = {MODEL, *results[0].extras}
        outcome: dict[str, Any] = {name: trained[name] for name in copies}
        if MODEL in copies:
            outcome[MODEL] = trained[MODEL].only(layout.averaged)
        if has(self._author, "finish"):
            outcome |= self._authored.call("finish", self._finish, self._own, len(results))
        kind = self._authored
        return Sorting(self._plan, kind.profile, kind.workspace, results, weights, observed, copies).outcomes(outcome)

    def _as_trained(
        self, results: Sequence[LocalResult], weights: Sequence[float], observed: Sequence[Mapping[str, int]]
    ) -> list[Outcome]:
        """What is kept and sent where the algorithm leaves it to its passes: what they trained."""
        copies = {name for each in self.passes for name in each.copies}
        plan, profile, workspace = self._plan, self._authored.profile, self._authored.workspace
        parts = [part for part in plan.extra_parts(profile) if part.instance.copy in copies]
        instances = [instance for instance in plan.returned_blocks(profile) if not instance.copy]
        if MODEL not in copies:
            instances = [instance for instance in instances if instance.name.kind == "prototype"]
        outcomes = []
        for result, weight, num_observed in zip(results, weights, observed, strict=True):
            kept: defaultdict[str, dict[str, np.ndarray]] = defaultdict(dict)
            sent = plan.cut(instances, result.blocks, workspace.num_parameters)
            for part in parts:
                instance, values = part.instance, result.extras[part.instance.copy].get(part.instance.name)
                if values is None:
                    continue
                if instance.is_private:
                    kept[instance.copy][instance.name] = values
                else:
                    sent[instance._replace(key="") if instance.scope is Scope.CLIENT else instance] = values
            weighed = {i: (plan.block_weight(i, weight, num_observed), values) for i, values in sent.items()}
            outcomes.append(Outcome(dict(kept), weighed))
        return outcomes

    def _client(self, own: Mapping[str, Any]) -> Client:
        alike = self._plan.training.optimizer.alike(self._layout.averaged, self._learning_rate)
        is_plain = all(own.is_plain for own, _, _ in alike)
        rates = {block: rate for _, rate, names in alike for block in names} if is_plain else None
        return Client(
            layout=self._layout,
            round=self._round,
            learning_rate=self._learning_rate,
            rates=rates,
            **{"weight": None, **own},
        )

    def _finish(self, own: Mapping[str, Any]) -> dict[str, Any]:
        found = self._author.finish(self._client(own))
        if not isinstance(found, Mapping):
            raise RunError(f"algorithm: finish gave {type(found).__name__}; expected a dict by name")
        return dict(found)

    def _asked(self, own: Mapping[str, Any]) -> list[Any]:
        found = self._author.passes(self._client(own))
        if not isinstance(found, list | tuple):
            raise RunError(f"algorithm: passes gave {type(found).__name__}; expected a list of Pass")
        return [*found]

    def _measured(self, tasks: Sequence[ClientTask], method: str) -> dict[str, Tensor]:
        """What `before` or `after` adds up, float32 rows."""
        function = getattr(self._author, method)
        sums = self._engine.measure(tasks, function, self._plan.evaluation_batch_size, round_index=self._round)
        return {name: torch.stack([own[name] for own in sums]).float().cpu() for name in sums[0]}

    def _passes(self, tasks: Sequence[ClientTask]) -> tuple[tuple[LocalPass, ...], list[ClientTask]]:
        trainable = self._plan.trained_blocks(self._authored.profile)
        if has(self._author, "local") or not has(self._author, "passes"):
            return training_passes(self._plan.training, trainable), list(tasks)
        asked = self._authored.call("passes", self._asked, self._own, len(tasks))
        passes, affine = [], []
        for each in asked:
            local = self._local_pass(each)
            if local.blocks or (local.model is not None and any(_is_held(self._rows[name]) for name in each.train)):
                passes.append(local)
                affine.append(each)
        if not passes:
            raise RunError("algorithm: passes gave none with a block to train; expected at least one")
        if not any(each.is_recorded for each in passes):
            passes = [replace(each, is_recorded=True) for each in passes]
        own = zip(*(_affine(each, len(tasks)) for each in affine), strict=True)
        return tuple(passes), [replace(task, affine=each) for task, each in zip(tasks, own, strict=True)]

    def _local_pass(self, each: Pass) -> LocalPass:
        """A pass as the engines have it.

        Raises:
            RunError: It names what there is not, or gives values of another shape.
        """
        if not isinstance(each, Pass):
            raise RunError(f"algorithm: passes gave {type(each).__name__}; expected a list of Pass")
        known = self._rows.keys() - {"received"}
        if unknown := sorted(set(each.train) - known):
            listed = ", ".join(sorted(known))
            raise RunError(f"algorithm: passes trains {', '.join(map(repr, unknown))}; expected some of {listed}")
        first = each.train[0]
        held = self._rows[first]
        allowed = set(held) & set(self._layout.trained) if isinstance(held, Tree) else set()
        blocks = allowed if each.blocks is None else allowed & set(each.blocks)
        trees: tuple[tuple[str, Mapping[str, Any]], ...]
        trees = (("offset", each.offset), ("anchor", each.anchor), ("start", each.start or {}))
        for what, tree in trees:
            for block, values in tree.items():
                expected = tuple(held[block].shape[1:]) if isinstance(held, Tree) and block in held else None
                found = tuple(values.shape[1:])
                if found != expected:
                    raise RunError(
                        f"algorithm: passes: {what} of {first} for {block} has shape {found}; "
                        + (f"expected {expected}" if expected else f"expected blocks of {', '.join(held)}")
                    )
        longer = {b for b, size in self._layout.sizes.items() if size > self._authored.workspace.num_parameters[b]}
        is_plain = each.train == (MODEL,) and each.model is None
        if longer.intersection(held if not is_plain and isinstance(held, Tree) else (*each.offset, *each.anchor)):
            raise RunError(
                f"algorithm: passes: {', '.join(sorted(longer))} have running statistics behind the parameters; "
                "expected passes of the model, from a start, without offset, anchor and model="
            )
        epochs = self._plan.training.local_epochs if each.epochs is None else each.epochs
        return LocalPass(
            num_epochs=epochs,
            blocks=frozenset(blocks),
            anchored=frozenset(each.anchor) & blocks if each.mu else frozenset(),
            mu=each.mu,
            has_offset=bool(each.offset),
            copies=tuple(each.train),
            model=each.model,
            rates=each.rate,
            is_recorded=MODEL in each.train,
        )


@cache
def _tell(text: str) -> None:
    """Log it, once in this process."""
    _LOG.info("%s", text)


def first_value(part: ExtraPart, plan: ClientPlan, workspace: Workspace) -> np.ndarray:
    """The first values of an extra, float32."""
    block = part.instance.name
    if not isinstance(part.initial, str):
        return np.full(part.shape, part.initial, np.float32)
    if part.instance.scope is Scope.DRAWN:
        return np.zeros(part.shape, np.float32)
    if part.initial in ("uniform", "normal"):
        number = stable_number(f"{part.instance.copy}\0{block}")
        return _numbers(part, generator(plan.seed, Purpose.INITIAL_BLOCK, 1, number))
    if part.initial == "seeded":
        seed = torch_seed(plan.seed, Purpose.INITIAL_BLOCK, 1, stable_number(part.instance.copy))
        shapes, num_outputs = workspace.model.input_shapes, workspace.learned.outputs.get(block.of, 0)
        module = build_block(block, plan.model, shapes, num_outputs, seed, is_drawn=True)
        return FlatBlock(module, plan.model.norm_statistics).read()[: part.shape[0]]
    return workspace.initial_blocks[block][: part.shape[0]]


def _numbers(part: ExtraPart, draw: np.random.Generator) -> np.ndarray:
    numbers = draw.random(part.shape) if part.initial == "uniform" else draw.standard_normal(part.shape)
    return numbers.astype(np.float32)


def _is_held(rows: Any) -> bool:
    """Whether a copy is more than a tree of no blocks."""
    return rows != {} if isinstance(rows, Mapping) else True


def _affine(each: Pass, count: int) -> list[Affine]:
    """What of a pass is each client's own."""

    def own(tree: Mapping[str, Any] | None) -> list[dict[str, Vector]]:
        found: list[dict[str, Vector]] = [{} for _ in range(count)]
        for block, rows in (tree or {}).items():
            values = rows.detach().numpy()
            # Where all rows are one, so is the object: by that a stack knows that there is nothing to copy.
            parts = [values[0]] * count if values.strides[0] == 0 else values
            for client, part in zip(found, parts, strict=True):
                client[block] = part
        return found

    return [
        Affine(*parts)
        for parts in zip(own(each.start), own(each.offset), own(each.anchor if each.mu else {}), strict=True)
    ]


def _stacked(values: Sequence[np.ndarray], size: int | None = None) -> Tensor:
    """Arrays, or their first values, as rows of one tensor; where all are one object, a copy that all rows show."""
    first = values[0]
    if size is not None:
        values = [first[:size]] * len(values) if all(v is first for v in values) else [v[:size] for v in values]
        first = values[0]
    if all(array is first for array in values):
        return torch.from_numpy(np.array(first, np.float32)).expand(len(values), *first.shape)
    return torch.from_numpy(np.stack(values).astype(np.float32, copy=False))
