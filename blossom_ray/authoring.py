"""The server's side of an algorithm: what it sees of a round, and what follows from what it says."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from blossom_ray.algorithms.extras import declared_copies
from blossom_ray.algorithms.options import AlgorithmOption
from blossom_ray.algorithms.seam import MODEL, ServerView, Tree, has, naming
from blossom_ray.algorithms.selection import Population
from blossom_ray.clients.options import ignored_keys
from blossom_ray.clients.plan import ClientPlan, ModelSizes
from blossom_ray.core.blocks import NO_BLOCK, Block, BlockInstance, Scope, model_blocks
from blossom_ray.core.seeding import Purpose, generator
from blossom_ray.core.sums import Contributions, PartialSum, Total
from blossom_ray.errors import OWN_CODE_RAISES, BlossomError, InputError, RunError, shown_error
from blossom_ray.server import Server
from blossom_ray.text import brief

Instance = tuple[str, str]
"""What a tree of the server is keyed by: a block and the key of its instance."""


@dataclass(frozen=True)
class Holding:
    """Who holds a block instance, drawn or not.

    Attributes:
        num_clients: How many clients.
        weight: The sum of their weights; None where these are known after training alone.
    """

    num_clients: int
    weight: float | None


def holdings(
    plan: ClientPlan, population: Population, num_train: npt.NDArray[np.integer[Any]]
) -> dict[BlockInstance, Holding]:
    """Who holds each instance that clients may send something for.

    Args:
        plan: What every client goes by.
        population: The clients.
        num_train: Training samples by client.
    """
    clients: defaultdict[BlockInstance, list[int]] = defaultdict(list)
    for members in population.signatures.values():
        for instance in plan.returned_blocks(population.profiles[members[0]]):
            if instance.scope is Scope.CLIENT:
                for client in members:
                    clients[instance._replace(key=str(client))].append(client)
            else:
                clients[instance] += members
    weights = [plan.client_weight(int(count)) for count in num_train]
    found = {}
    for instance, holders in clients.items():
        own = [weights[client] for client in holders]
        known = [weight for weight in own if weight is not None]
        found[instance] = Holding(len(holders), sum(known) if len(known) == len(own) else None)
    return found


@dataclass(frozen=True)
class Reports:
    """What a cohort reported.

    Attributes:
        clients: The cohort, ascending.
        sums: By block instance what contributors sent, added up.
        rows: The same one by one, of what the algorithm wants so.
    """

    clients: Sequence[int] = ()
    sums: Mapping[BlockInstance, PartialSum] = field(default_factory=dict)
    rows: Mapping[BlockInstance, Contributions] = field(default_factory=dict)


class AlgorithmServer:
    """An algorithm, as it acts on the server.

    Args:
        plan: What every client goes by; it has an algorithm.
        population: The clients.
        holders: As `holdings` has it.
    """

    def __init__(self, plan: ClientPlan, population: Population, holders: Mapping[BlockInstance, Holding]) -> None:
        self._author, self._holders = plan.author, holders
        kinds = (*population.representatives(), *population.unseen_representatives())
        sizes = ((one, block, size) for one in kinds for block, size in plan.layout(one).sizes.items())
        self._sizes = {plan.scheme.instance(block, one): size for one, block, size in sizes}
        self.has_admit = has(self._author, "admit")
        self._has_weights = plan.weighting != "entropy"

    def select(self, server: Server, population: Population, seed: int, round_index: int) -> tuple[int, ...] | None:
        """The cohort of a round, ascending; None where the algorithm leaves it to the simulator."""
        if not has(self._author, "select"):
            return None
        view = self._view(server, round_index, Reports())
        draw, candidates = generator(seed, Purpose.SELECTION, round_index), np.arange(len(population.trained))
        size = population.cohort_size
        with naming("select"):
            found = [*map(int, self._author.select(view, candidates, size, draw))]
        chosen = sorted({*found})
        if len(chosen) != len(found) or len(chosen) != size or chosen[0] < 0 or chosen[-1] >= len(candidates):
            expected = f"{size} clients between 0 and {len(candidates) - 1}, each once"
            raise RunError(f"algorithm: select gave {brief(str(found))}; expected {expected}")
        return tuple(chosen)

    def admitted(
        self, server: Server, round_index: int, reports: Reports
    ) -> Callable[[BlockInstance], Collection[int] | None]:
        """Whose contributions to an instance count, once the cohort has reported; None: everybody's."""
        view = self._view(server, round_index, reports)
        with naming("admit"):
            found = self._author.admit(view)
        admitted = dict(_trees("admit", found, view.members))
        for copy, tree in admitted.items():
            for key, clients in tree.items():
                with naming("admit"):
                    strangers = sorted(set(map(int, clients)) - set(view.members[copy][key].tolist()))
                if strangers:
                    expected = f"some of {view.members[copy][key].tolist()}, who sent it"
                    raise RunError(f"algorithm: admit names {strangers} for {copy} {key}; expected {expected}")

        def of(instance: BlockInstance) -> Collection[int] | None:
            block = instance.name.of if instance.name.kind == "statistics" else instance.name
            own: Collection[int] | None = admitted.get(instance.copy or MODEL, {}).get((block, instance.key))
            return own

        return of

    def next_values(self, server: Server, round_index: int, reports: Reports) -> dict[BlockInstance, Total]:
        """What block instances become, float64: for the model what the server's optimizer steps towards.

        Averages, and in their place what the algorithm says. What only the server has is never averaged.
        """
        sums = reports.sums
        found = {instance: part.average for instance, part in sums.items() if instance.scope is not Scope.SERVER}
        if not has(self._author, "server"):
            return found
        view = self._view(server, round_index, reports)
        with naming("server"):
            said = self._author.server(view)
        instances = {(i.copy or MODEL, str(i.name), i.key): i for i in server.blocks if _is_seen(i)}
        for name, tree in _trees("server", said, view.all):
            for key, value in tree.items():
                instance = instances[name, str(key[0]), key[1]]
                found[instance] = self._whole(server, instance, value, found.get(instance))
        return found

    def _whole(self, server: Server, instance: BlockInstance, value: Any, average: Total | None) -> Total:
        """A value of `server`, checked, with the running statistics of its block behind it."""
        old = self._seen(server, instance)
        array = np.asarray(value, np.float64)
        if array.shape != old.shape or not np.isfinite(array).all():
            found = f"shape {array.shape}" if array.shape != old.shape else "values that are not finite"
            raise RunError(f"algorithm: server gave {instance} with {found}; expected finite ones of {old.shape}")
        if instance.copy:
            return array
        behind = server.blocks[instance].sent.values if average is None else average
        return np.concatenate([array, behind[len(array) :]])

    def _seen(self, server: Server, instance: BlockInstance) -> np.ndarray:
        """The values of an instance that authors see."""
        values = server.blocks[instance].sent.values
        return values if instance.copy else values[: self._sizes[instance]]

    def _view(self, server: Server, round_index: int, reports: Reports) -> ServerView:
        clients, sums, rows = reports.clients, reports.sums, reports.rows
        view = ServerView(round_index, np.array(clients, np.int64))
        if not self._has_weights:
            view.held_weights = None
        touched = {(instance.name, instance.key) for instance in sums}
        for instance in server.blocks:
            if not _is_seen(instance):
                continue
            name, key = instance.copy or MODEL, (instance.name, instance.key)
            value = _locked(self._seen(server, instance).astype(np.float64))
            view.all[name][key] = value
            is_beside = instance.scope is Scope.SERVER and (instance.name == NO_BLOCK or key in touched)
            if instance in sums or is_beside:
                view.current[name][key] = value
                held = self._holders[instance]
                view.num_holders[name][key] = held.num_clients
                if view.held_weights is not None:
                    view.held_weights[name][key] = held.weight
            if instance in sums:
                part = sums[instance]
                view.total[name][key] = _locked(part.total[: len(value)] if value.ndim else part.total)
                view.weight[name][key], view.contributors[name][key] = part.weight, part.contributors
            if instance in rows:
                own = rows[instance]
                view.members[name][key] = np.array(own.clients, np.int64)
                view.row_weights[name][key] = np.array(own.weights)
                view.rows[name][key] = _locked(own.values[:, : len(value)] if value.ndim else own.values)
        return view


def _locked(values: np.ndarray) -> np.ndarray:
    """The array, not to be written to."""
    view = np.asarray(values).view()
    view.flags.writeable = False
    return view


def _trees(method: str, found: Any, known: Mapping[str, Tree]) -> Iterator[tuple[str, Mapping[Instance, Any]]]:
    """What a method gave for each copy.

    Raises:
        RunError: It is no dict of trees, or names what there is not.
    """
    if not isinstance(found, Mapping):
        raise RunError(f"algorithm: {method} gave {type(found).__name__}; expected a dict by copy")
    for name, tree in found.items():
        if tree == {}:  # a copy of no blocks
            continue
        if name not in known:
            raise RunError(f"algorithm: {method} gave {name!r}; expected some of {', '.join(map(repr, known))}")
        if not isinstance(tree, Mapping):
            raise RunError(f"algorithm: {method} gave {type(tree).__name__} for {name}; expected a tree")
        own = {key if isinstance(key, tuple) else (key, ""): value for key, value in tree.items()}
        if unknown := [key for key in own if key not in known[name]]:
            keys = ", ".join(str(tuple(map(str, one))) for one in known[name])
            raise RunError(f"algorithm: {method} gave {unknown[0]!r} of {name}; expected some of {keys}")
        yield name, own


MOST_ROW_BYTES = 2 * 2**30
"""What contributions one by one may take on the server in a round."""


def rows_bytes(plan: ClientPlan, population: Population) -> dict[str, int]:
    """By copy the bytes of contributions that the server keeps one by one, should all of a cohort contribute.

    Args:
        plan: What every client goes by.
        population: The clients.
    """
    holders: Counter[BlockInstance] = Counter()
    sizes: dict[BlockInstance, int] = {}
    for members in population.signatures.values():
        profile = population.profiles[members[0]]
        extras = {part.instance: part.size for part in plan.extra_parts(profile)}
        keyed = {i._replace(key=""): size for i, size in extras.items() if i.scope is Scope.CLIENT}
        for instance in plan.returned_blocks(profile):
            if plan.keeps_rows(instance):
                holders[instance] += len(members)
                sizes[instance] = (extras | keyed).get(instance) or plan.layout(profile).sizes.get(instance.name, 0)
    found: Counter[str] = Counter()
    for instance, number in holders.items():
        found[instance.copy or MODEL] += 4 * sizes[instance] * min(number, population.cohort_size)
    return dict(found)


def _check_rows(plan: ClientPlan, population: Population) -> None:
    """Whether there is room for what an algorithm wants one by one.

    Raises:
        InputError: There is not, with numbers.
    """
    kinds = population.representatives()
    known = {MODEL} | {part.instance.copy for one in kinds for part in plan.extra_parts(one)}
    known |= {name for one in kinds for name in declared_copies(plan.author, plan.layout(one))}
    rows = getattr(plan.author, "rows", ())
    if isinstance(rows, str) or not set(rows) <= known:
        raise InputError(f"algorithm: rows is {rows!r}; expected a tuple of some of {', '.join(sorted(known))}")
    found = rows_bytes(plan, population)
    if (num_bytes := sum(found.values())) > MOST_ROW_BYTES:
        fitting = population.cohort_size * MOST_ROW_BYTES // num_bytes
        what = f"contributions of {', '.join(sorted(found))} one by one, of {population.cohort_size:,} clients"
        raise InputError(
            f"algorithm: keeps {what}, {num_bytes / 2**30:.1f} GiB a round; expected at most "
            f"{MOST_ROW_BYTES / 2**30:.0f} GiB: server.clients_per_round of about {fitting:,}, or sums in place of rows"
        )


def by_instance(
    sent: Iterable[tuple[BlockInstance, PartialSum | Contributions]],
) -> Iterator[tuple[BlockInstance, PartialSum | Contributions]]:
    """What clients sent, and of what the server has one of for each client, each client's to its own."""
    for instance, part in sent:
        if instance.scope is Scope.CLIENT and isinstance(part, Contributions):
            for client in part.clients:
                yield instance._replace(key=str(client)), part.only((client,))
        else:
            yield instance, part


def _is_seen(instance: BlockInstance) -> bool:
    """Whether authors see an instance: blocks of the model, also those without parameters, and extras."""
    return instance.name.kind not in ("prototype", "statistics", "average")


def with_algorithm(plan: ClientPlan, section: AlgorithmOption, population: Population) -> ClientPlan:
    """The plan with an algorithm, and with what its author is told of the model.

    What an algorithm sends of the parameters need not say how running statistics are averaged. So where it sends
    anything they are block instances of their own, but for those that its models have behind the parameters.

    Args:
        plan: Without one.
        section: The scenario's `algorithm` section.
        population: The clients.

    Raises:
        InputError: The algorithm is own code that cannot be found, or declares what cannot be.
    """
    import torch

    from blossom_ray.models.build import build_block
    from blossom_ray.models.flat import Layout, block_layout

    model = plan.model
    layouts: dict[str, dict[Block, Layout]] = {}
    sizes: dict[str, ModelSizes] = {}
    for data_set, samples in plan.input_shapes.items():
        dims = model.embedding_dims(samples)
        layouts[data_set] = own = {
            block: block_layout(
                build_block(block, model, samples, task.num_outputs, plan.seed, dims), model.norm_statistics
            )
            for name, task in plan.tasks.items()
            if task.data == data_set
            for block in model_blocks(samples, (name,), plan.scheme.fusions((name,)))
        }
        blocks = {block: layout.num_parameters for block, layout in own.items()}
        sizes[data_set] = ModelSizes(blocks, model.fusion.fused_dim(dims), dims)
    plan = replace(plan, algorithm=section, sizes=sizes, num_clients=len(population.trained))
    for path, found, expected in ignored_keys(plan.author, plan.training):
        raise InputError(f"{path} {found}; expected {expected}")
    kinds = (*population.representatives(), *population.unseen_representatives())
    declared = (part for profile in kinds for part in plan.extra_parts(profile))
    behind = {part.instance.name for part in declared if part.has_statistics} - plan.split_blocks
    apart = {block for own in layouts.values() for block, layout in own.items() if layout.buffers} - behind
    apart = {block for block in apart if plan.scheme.scope(block) not in (Scope.PRIVATE, Scope.FROZEN)}
    for data_set, own in layouts.items():
        whole = {block: layout.size for block, layout in own.items() if block in behind}
        sizes[data_set] = replace(sizes[data_set], blocks={**sizes[data_set].blocks, **whole})
    plan = replace(
        plan,
        sizes=sizes,
        split_blocks=plan.split_blocks | (apart if has(plan.author, "finish") else set()),
    )
    shapes: dict[BlockInstance, tuple[int, ...]] = {}
    scored = set[str]()
    for profile in kinds:
        layout, parts = plan.layout(profile), plan.extra_parts(profile)
        copies: dict[str, Any] = {name: Tree() for name in declared_copies(plan.author, layout)}
        copies[MODEL] = Tree({b: torch.zeros(size) for b, size in layout.sizes.items()})
        for part in parts:
            if profile.is_unseen and part.is_on_server and part.instance not in shapes:
                found = f"has {part.instance} for clients with {profile.modality_set} alone, and none of them trains"
                raise InputError(f"algorithm: {found}; expected unseen clients of a kind that others which train are")
            shape = shapes.setdefault(part.instance, part.shape)
            if shape != part.shape:
                found = f"{shape} and {part.shape} for clients of different kinds"
                raise InputError(f"algorithm: extra {part.instance} has shapes {found}; expected one for all")
            if part.instance.scope is not Scope.SERVER:
                value = torch.zeros(part.shape)
                if part.instance.name == NO_BLOCK:
                    copies[part.instance.copy] = value
                else:
                    copies.setdefault(part.instance.copy, Tree())[part.instance.name] = value
        if has(plan.author, "scored"):
            watched = _Watched(copies)
            try:
                plan.author.scored(watched)
            except BlossomError as error:
                raise InputError(f"algorithm: scored: {error}") from error
            except OWN_CODE_RAISES as error:
                raise InputError(f"algorithm: scored raised {shown_error(error)}") from error
            scored |= watched.touched
    _check_rows(plan, population)
    if population.size_of_task and has(plan.author, "select"):
        found = "server.clients_per_round is a number for each task, while the algorithm selects the clients of a round"
        raise InputError(f"{found}; expected one number for all")
    return replace(plan, scored_copies=frozenset(scored - {MODEL}))


class _Watched(dict[str, Any]):
    """Copies that note which of them were looked at: the others need not be sent for scoring."""

    def __init__(self, copies: Mapping[str, Any]) -> None:
        super().__init__(copies)
        self.touched = set[str]()

    def __getitem__(self, name: str) -> Any:
        self.touched.add(name)
        return super().__getitem__(name)
