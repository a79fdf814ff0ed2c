"""The words in which a federated algorithm is written: what its author declares, is given, and returns.

An algorithm is an object of pure functions, all of them optional: `Algorithm`. It says what its paper adds to federated
averaging and nothing else. Scopes and who holds what, first values, batches and steps, sums, weights, versions, bytes,
state that survives kills: all of that is the simulator's.

A copy of the model is a tree, a map from block to vector that does arithmetic as one vector does. What an author is
given of a client is PyTorch, of one client; the stacked engine maps these functions over clients. What the server is
given is NumPy, float64, by block instance. Nothing here imports PyTorch: methods of tensors and arrays do.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from blossom_ray.core.blocks import Block, Scope
from blossom_ray.errors import OWN_CODE_RAISES, BlossomError, InputError, RunError, shown_error

MODEL = "model"
"""The copy that every algorithm has: the client's model."""

Value: TypeAlias = Any
"""A tensor or an array, or a tree of them."""


class Tree(dict[Any, Any]):
    """Arrays by block with the arithmetic of one vector. Two trees in one operation have the same blocks.

    On a client its keys are blocks, on the server pairs of a block and the key of its instance.
    """

    __array_ufunc__ = None  # an array times a tree is a tree

    def map(self, function: Callable[..., Any], *others: Tree) -> Tree:
        """A function of the arrays of each block, here and in other trees.

        Raises:
            InputError: A tree has other blocks.
        """
        for other in others:
            if other.keys() != self.keys():
                different = ", ".join(sorted(map(_key_text, self.keys() ^ other.keys())))
                raise InputError(f"trees with different blocks: {different} on one side alone; expected the same")
        return Tree({key: function(value, *(other[key] for other in others)) for key, value in self.items()})

    def only(self, blocks: Collection[Hashable]) -> Tree:
        """The part of these blocks."""
        return Tree({key: value for key, value in self.items() if key in blocks})

    def _apply(self, other: object, function: Callable[[Any, Any], Any]) -> Tree:
        return self.map(function, other) if isinstance(other, Tree) else self.map(lambda value: function(value, other))

    def __neg__(self) -> Tree:
        return self.map(operator.neg)

    def __add__(self, other: object) -> Tree:
        return self._apply(other, operator.add)

    def __sub__(self, other: object) -> Tree:
        return self._apply(other, operator.sub)

    def __mul__(self, other: object) -> Tree:
        return self._apply(other, operator.mul)

    def __truediv__(self, other: object) -> Tree:
        return self._apply(other, operator.truediv)

    def __radd__(self, other: object) -> Tree:
        return self.map(lambda value: other + value)

    def __rsub__(self, other: object) -> Tree:
        return self.map(lambda value: other - value)

    def __rmul__(self, other: object) -> Tree:
        return self.map(lambda value: other * value)


def pick(choice: Any, copies: Sequence[Tree]) -> Tree:
    """The copy with this number, as arithmetic: mapped over clients, each of them can have its own.

    Args:
        choice: () a whole number, 0 to the number of copies.
        copies: Trees with the same blocks.
    """
    picked: Tree = copies[0] * (choice == 0)
    for number, copy in enumerate(copies[1:], start=1):
        picked = picked + copy * (choice == number)
    return picked


@dataclass(frozen=True)
class Extra:
    """Something that clients or the server hold beside the model.

    With `blocks` alone it is a copy: a vector like the parameters of each of these blocks. With `blocks` and `shape` an
    array for each of them, with `shape` alone one array.

    Attributes:
        blocks: Names of blocks of the model; None: it is of no block.
        shape: Of an array; None: as the block's parameters.
        scope: "" that of the block, and `shared` for a single array; `private`: each client keeps its own; `shared`,
            `same-modalities`: averaged as blocks are; `server`: on the server alone, never sent; `client`: one for each
            client, on the server and sent to that client; `drawn`: fresh numbers for each client and round.
        initial: A number; "initial": the block's first value; "received": what the block is now, until the client keeps
            its own; "seeded": drawn as the block's first value is, but for this extra. Of an array with a shape of its
            own and of what is drawn: "uniform" in [0, 1) or "normal", from the seed.
        with_statistics: Of several models that a client trains one of (`Pass(start=...)`): whether each has running
            statistics of its own. Vectors of these blocks, also the model's, then have them behind the parameters.
    """

    blocks: Collection[str] | None = None
    shape: tuple[int, ...] | None = None
    scope: str = ""
    initial: float | str = 0.0
    with_statistics: bool = False


@dataclass(frozen=True)
class Pass:
    """Some epochs in which some copies are trained, along the gradient g + offset + mu (w - anchor).

    Attributes:
        train: The copies, of which the first is the one that `blocks`, `start`, `offset` and `anchor` are about.
        blocks: The blocks that are trained; None: all that can be.
        epochs: Passes over the training split; None: `training.local_epochs`.
        start: Values to start from, in place of those that the copy has.
        offset: Added to the gradient.
        anchor: What `mu` pulls towards.
        mu: How strongly.
        model: From the copies by name to the blocks that compute; None: the first copy's, and the client's own ones for
            what it lacks.
        rate: By copy a factor of the learning rate.
    """

    train: tuple[str, ...] = (MODEL,)
    blocks: Collection[str] | None = None
    epochs: int | None = None
    start: Tree | None = None
    offset: Tree = field(default_factory=Tree)
    anchor: Tree = field(default_factory=Tree)
    mu: float = 0.0
    model: Callable[[Mapping[str, Any]], Tree] | None = None
    rate: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sent:
    """What leaves a client, to be added up over clients as weight times value.

    Attributes:
        value: A tree, or an array of shape `Extra.shape`.
        weight: None: the client's own weight in averages, with which what others make of it is a mean. Sums and counts
            are sent with 1. A number, or a tree of them by block. Where it is 0, nothing is sent.
    """

    value: Value
    weight: Value | None = None


@dataclass(frozen=True)
class Layout:
    """What clients of one kind have.

    Attributes:
        modalities: Those that they own, sorted.
        sizes: Number of parameters of each block of theirs, with statistics where an extra has them.
        scopes: The scope of each block.
        outputs: Number of classes, or of targets, by task; without `tasks` its name is "".
        width: Width of the fused representation; where each task has a fusion, of one of them.
        embedding_dims: Width of the embeddings by modality, of all modalities.
        num_clients: Clients of the whole federation.
    """

    modalities: tuple[str, ...]
    sizes: Mapping[Block, int]
    scopes: Mapping[Block, Scope]
    outputs: Mapping[str, int]
    width: int
    embedding_dims: Mapping[str, int]
    num_clients: int

    @property
    def num_classes(self) -> int:
        """Number of classes, or of targets, of the only task.

        Raises:
            InputError: There are several.
        """
        if len(self.outputs) > 1:
            raise InputError(f"num_classes of {', '.join(self.outputs)} are several numbers; expected layout.outputs")
        return next(iter(self.outputs.values()))

    @property
    def encoders(self) -> tuple[Block, ...]:
        """The encoders."""
        return tuple(block for block in self.sizes if block.kind == "encoder")

    @property
    def trained(self) -> tuple[Block, ...]:
        """The blocks that clients train: all but frozen ones."""
        return tuple(block for block in self.sizes if self.scopes[block] is not Scope.FROZEN)

    @property
    def private(self) -> tuple[Block, ...]:
        """Those of them that each client keeps."""
        return tuple(block for block in self.trained if self.scopes[block] is Scope.PRIVATE)

    @property
    def averaged(self) -> tuple[Block, ...]:
        """Those of them that the server averages."""
        return tuple(block for block in self.trained if self.scopes[block] is not Scope.PRIVATE)


@dataclass(frozen=True)
class Client:
    """One client, as `passes` and `finish` see it. Tensors; numbers are tensors of shape ().

    Attributes:
        layout: What clients of its kind have.
        round: The round.
        learning_rate: The round's learning rate.
        received: The averaged blocks of the model as the client received them.
        extras: By name, before training. `k["name"]` is one of them, or for "model" what was received.
        client: Its id.
        num_samples: Of its training split.
        weight: Its weight in averages, w_k.
        before: Sums over its training split of what `before` gave, with the values received.
        after: The same of `after`, with the values trained; in `finish`.
        trained: All copies as training left them; in `finish`.
        num_steps: By averaged block, the steps of the model that its training took; in `finish`. A batch whose samples
            lack an encoder's modality is one along a gradient of zero.
        rates: By averaged block its learning rate; None with momentum or Adam, whose steps are no gradients.
    """

    layout: Layout
    round: int
    learning_rate: float
    received: Tree
    extras: Mapping[str, Value]
    client: Any
    num_samples: Any
    weight: Any
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    trained: Mapping[str, Value] = field(default_factory=dict)
    num_steps: Tree = field(default_factory=Tree)
    rates: Mapping[Any, float] | None = None

    def __getitem__(self, name: str) -> Any:
        return self.received if name == MODEL else self.extras[name]

    @property
    def new(self) -> Tree:
        """The averaged blocks of the model as training left them."""
        return Tree(self.trained[MODEL]).only(self.layout.averaged)

    @property
    def stepped(self) -> Tree:
        """By averaged block 1 where it took a step, else 0: an encoder rests where its modality is dropped."""
        return self.num_steps.map(lambda steps: (steps > 0).float())

    @property
    def mean_step(self) -> Tree:
        """By averaged block (received - new) / (steps times learning rate): what plain SGD followed on average.

        0 for a block that took no step.

        Raises:
            InputError: With momentum or Adam a step is no gradient.
        """
        if self.rates is None:
            raise InputError("mean_step has no meaning with this optimizer; expected sgd with a momentum of 0")
        change = self.received - self.new
        lengths = {block: steps.clamp(min=1) * self.rates[block] for block, steps in self.num_steps.items()}
        return change / Tree(lengths)


def _by_name() -> dict[str, Tree]:
    return _Trees()


class _Trees(dict[str, Tree]):
    def __missing__(self, name: str) -> Tree:
        return self.setdefault(name, Tree())


@dataclass
class ServerView:
    """The server as `select`, `admit` and `server` see it: by copy, trees by (block, key) in float64.

    A single array has the key ("", ""), or ("", key) where its scope has one.

    Attributes:
        round: The round.
        clients: The round's cohort, (n,) int64, ascending; in `select` empty.
        current: Values before the round, of what somebody contributed to, and of what only the server has.
        all: The same of everything.
        total: Sums of weight times value over contributors.
        weight: Sums of their weights.
        contributors: How many they are.
        num_holders: How many clients hold the instance, drawn or not.
        rows: Of copies in the algorithm's `rows`: the contributions one by one, (n, *shape) float32.
        members: Whose they are, (n,) int64, ascending.
        row_weights: What they weigh, (n,).
    """

    round: int
    clients: Any
    current: dict[str, Tree] = field(default_factory=_by_name)
    all: dict[str, Tree] = field(default_factory=_by_name)
    total: dict[str, Tree] = field(default_factory=_by_name)
    weight: dict[str, Tree] = field(default_factory=_by_name)
    contributors: dict[str, Tree] = field(default_factory=_by_name)
    num_holders: dict[str, Tree] = field(default_factory=_by_name)
    rows: dict[str, Tree] = field(default_factory=_by_name)
    members: dict[str, Tree] = field(default_factory=_by_name)
    row_weights: dict[str, Tree] = field(default_factory=_by_name)
    held_weights: dict[str, Tree] | None = field(default_factory=_by_name)

    @property
    def holders(self) -> dict[str, Tree]:
        """Sums of the weights w_k of all clients that hold the instance, drawn or not.

        Raises:
            InputError: `server.weighting` gives weights that are not known before training.
        """
        if self.held_weights is None:
            raise InputError("holders have no weight before they train; expected server.weighting samples or uniform")
        return self.held_weights

    def average(self, name: str) -> Tree:
        """The weighted averages of a copy's contributions."""
        return self.total[name] / self.weight[name]


class Algorithm(Protocol):
    """A federated algorithm: pure functions, all optional; it need not inherit from anything.

    It keeps nothing in itself: what is to last is an extra. Examples stand beside this module, one to a file.
    """

    rows: Collection[str]
    """Copies whose contributions the server sees one by one."""

    def extras(self, layout: Layout) -> Mapping[str, Extra]:
        """What clients of this kind, and the server for them, hold beside the model, by name."""

    def select(self, s: ServerView, candidates: Any, size: int, draw: Any) -> Iterable[int]:
        """Who trains in round `s.round`.

        Args:
            s: The server after the round before.
            candidates: (N,) int64, ids of clients that could be drawn.
            size: How many to draw.
            draw: A NumPy generator of this round.
        """

    def before(self, batch: Any) -> Mapping[str, Any]:
        """Numbers per sample, (B, ...), with the values received; `k.before` has their sums."""

    def passes(self, k: Client) -> list[Pass]:
        """How the client trains; left out: as `training` says."""

    def loss(self, batch: Any) -> Any:
        """A number per sample, (B,), that is added to the task's loss."""

    def after(self, batch: Any) -> Mapping[str, Any]:
        """Numbers per sample, (B, ...), with the values trained; `k.after` has their sums."""

    def local(self, c: Any) -> Mapping[str, Any]:
        """All of a client's training, in place of `passes` and `loss`: the copies that it changed, by name.

        Args:
            c: Its copies as tensors, its batches, and the model as a function: `clients.copies.LocalClient`. Clients
                are then computed one after the other.
        """

    def finish(self, k: Client) -> Mapping[str, Any]:
        """By name of an extra what the client keeps (a plain value) or what leaves it (`Sent`); also "model".

        Copies that a pass trained and that are left out here are kept or sent as they are.
        """

    def admit(self, s: ServerView) -> Mapping[str, Mapping[Any, Collection[int]]]:
        """By copy and instance the clients whose contributions count, once the cohort has reported."""

    def server(self, s: ServerView) -> Mapping[str, Tree]:
        """The next values by copy; what is left out is averaged."""

    def scored(self, x: Mapping[str, Any]) -> Tree:
        """The blocks of the model that a client is scored with, from its copies by name."""


METHODS = tuple(name for name in vars(Algorithm) if not name.startswith("_"))
"""The names of an algorithm's methods, in the order of a round."""


def has(algorithm: object, method: str) -> bool:
    """Whether an algorithm has one of the methods of `Algorithm`."""
    return callable(getattr(algorithm, method, None))


@contextmanager
def naming(method: str) -> Iterator[None]:
    """What an author's method raises within, as an error that names the method.

    Raises:
        InputError: As raised, by the author or by what the author was given.
        RunError: Anything else was raised.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"algorithm: {method}: {error}") from error
    except BlossomError:
        raise
    except OWN_CODE_RAISES as error:
        raise RunError(f"algorithm: {method} raised {shown_error(error)}") from error


def _key_text(key: object) -> str:
    return "/".join(filter(None, key)) if isinstance(key, tuple) else str(key)
