"""The `training` section: what a client does with its shard in a round."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from blossom_ray.algorithms.seam import has
from blossom_ray.clients.losses import Loss, TaskLoss
from blossom_ray.clients.transforms import Transform
from blossom_ray.core.blocks import ANY_ENCODER, Block
from blossom_ray.core.phrases import did_you_mean, listed
from blossom_ray.core.section import Finding, ModalityName, NonNegative, Positive, Probability, Rate, Section
from blossom_ray.core.structure import Hint, section_fields
from blossom_ray.models.options import Precision

if TYPE_CHECKING:
    from torch import Tensor

    Tensors: TypeAlias = Sequence[Tensor]

FusedStep: TypeAlias = "Callable[[Tensors, Tensors, Sequence[Tensors], Tensors], None]"
"""One step of all parameters in place, by one call of PyTorch's fused kernel.

From `parameters`, float32 of any shapes; `gradients` of the same shapes, their values in the same order in memory, not
modified; `moments`, for each of an optimizer's `moments` a tensor for each parameter, zeros at first, updated; and
`counters`, where it has some the steps so far of each parameter, () float32, updated.
"""


class BlockOptions(Section):
    """What is otherwise for one block; the keys that its kind of optimizer has."""

    kind: Literal["sgd", "adam", "adamw"] | None = None
    """Another optimizer, which takes nothing from the section around it: its other keys are here, or at their defaults.
    null: the one around, with all that is not said here."""
    lr: Rate | None = None
    """Learning rate; a schedule and `fine_tune.lr` change it by the factor by which they change that of the others."""
    momentum: Probability | None = None
    """As above."""
    weight_decay: NonNegative | None = None
    """As above."""
    nesterov: bool | None = None
    """As above."""
    beta1: Probability | None = None
    """As above."""
    beta2: Probability | None = None
    """As above."""
    eps: Rate | None = None
    """As above."""


_Blocks = Annotated[
    dict[str, BlockOptions],
    Field(
        description="What is otherwise for single blocks: `encoder/<modality>`, `fusion`, `head`; `encoder/*` stands "
        "for every encoder without an entry of its own."
    ),
]


class _Optimizer(Section):
    if TYPE_CHECKING:
        kind: str
        lr: float
        blocks: _Blocks  # last in each kind

    def of(self, block: str) -> ClientOptimizer:
        """The optimizer of a block, as a section without `blocks`."""
        own, kind = self.blocks.get(block), Block.named(block).kind
        if own is None:
            own = self.blocks.get(ANY_ENCODER if kind == "encoder" else kind)
        given = {} if own is None else {key: value for key, value in own if value is not None}
        if "kind" in given:
            section: ClientOptimizer = Hint.of(ClientOptimizer).kinds[given["kind"]](**given)
            return section
        return self.model_copy(update={**given, "blocks": {}})  # type: ignore[return-value]  # every kind is in the union

    def alike(self, blocks: Iterable[str], learning_rate: float) -> list[tuple[ClientOptimizer, float, list[str]]]:
        """The blocks that are stepped in the same way, with their optimizer and their learning rate.

        Args:
            blocks: Names.
            learning_rate: What stands for `lr` at present. A block with a rate of its own keeps its ratio to it.
        """
        groups: list[tuple[ClientOptimizer, float, list[str]]] = []
        for block in blocks:
            own = self.of(block)
            names = next((names for section, _, names in groups if section == own), None)
            if names is None:
                rate = learning_rate if own.lr == self.lr else own.lr * (learning_rate / self.lr)
                groups.append((own, rate, names := []))
            names.append(block)
        return groups

    @property
    def is_plain(self) -> bool:
        """Whether a step is the learning rate times the gradient: SGD without momentum."""
        return self.kind == "sgd" and not getattr(self, "momentum", 0.0)

    def conflicts(self) -> Iterator[Finding]:
        """What no optimizer of a block has, or cannot have together."""
        for block, own in self.blocks.items():
            kind = own.kind or self.kind
            known = [key for key in section_fields(Hint.of(ClientOptimizer).kinds[kind]) if key != "blocks"]
            unknown = [key for key, value in own if value is not None and key not in known]
            for key in unknown:
                expected = f"one of {listed(known)}, which {kind!r} has" + did_you_mean(key, known)
                yield Finding(f"blocks.{block}.{key}", f"is not a key of {kind!r}", expected)
            if not unknown:
                yield from (f._replace(path=f"blocks.{block}.{f.path}") for f in self.of(block).conflicts())


class Sgd(_Optimizer):
    """Stochastic gradient descent."""

    kind: Literal["sgd"]
    lr: Rate = 0.05
    """Learning rate."""
    momentum: Probability = 0.0
    """Momentum."""
    weight_decay: NonNegative = 0.0
    """L2 penalty."""
    nesterov: bool = False
    """Nesterov momentum (needs momentum > 0)."""
    blocks: _Blocks = Field(default_factory=dict)

    def conflicts(self) -> Iterator[Finding]:
        """Nesterov momentum without momentum, and those of single blocks."""
        yield from super().conflicts()
        if self.nesterov and self.momentum == 0:
            yield Finding("nesterov", "is true, while momentum is 0", "false, or a momentum above 0")

    counters: ClassVar[tuple[str, ...]] = ()
    """What it remembers as one number per block."""

    @property
    def moments(self) -> tuple[str, ...]:
        """What it remembers in the shape of the parameters."""
        return ("momentum",) if self.momentum else ()

    def fused_step(self, learning_rate: float) -> FusedStep:
        """The step at a learning rate."""
        from torch.optim.sgd import sgd

        def step(parameters: Tensors, gradients: Tensors, moments: Sequence[Tensors], _: Tensors) -> None:
            buffers: list[Tensor | None] = [*moments[0]] if moments else [None] * len(parameters)
            sgd(
                list(parameters),
                list(gradients),
                buffers,
                fused=True,
                weight_decay=self.weight_decay,
                momentum=self.momentum,
                lr=learning_rate,
                dampening=0.0,
                nesterov=self.nesterov,
                maximize=False,
            )

        return step


class _AdamLike(_Optimizer):
    lr: Rate = 1e-3
    """Learning rate."""
    beta1: Probability = 0.9
    """Decay of the first moment."""
    beta2: Probability = 0.999
    """Decay of the second moment."""
    eps: Rate = 1e-8
    """Added to the denominator."""

    if TYPE_CHECKING:
        weight_decay: float  # each kind has its own default
    is_decoupled: ClassVar[bool]
    moments: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")
    """What it remembers in the shape of the parameters."""
    counters: ClassVar[tuple[str, ...]] = ("step",)
    """What it remembers as one number per block."""

    def fused_step(self, learning_rate: float) -> FusedStep:
        """The step at a learning rate."""
        from torch.optim.adam import adam

        def step(parameters: Tensors, gradients: Tensors, moments: Sequence[Tensors], counters: Tensors) -> None:
            first_moments, second_moments = moments
            adam(
                list(parameters),
                list(gradients),
                list(first_moments),
                list(second_moments),
                [],
                list(counters),
                fused=True,
                decoupled_weight_decay=self.is_decoupled,
                amsgrad=False,
                beta1=self.beta1,
                beta2=self.beta2,
                lr=learning_rate,
                weight_decay=self.weight_decay,
                eps=self.eps,
                maximize=False,
            )

        return step


class Adam(_AdamLike):
    """Adam (Kingma and Ba 2015)."""

    is_decoupled: ClassVar[bool] = False

    kind: Literal["adam"]
    weight_decay: NonNegative = 0.0
    """L2 penalty."""
    blocks: _Blocks = Field(default_factory=dict)


class AdamW(_AdamLike):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    is_decoupled: ClassVar[bool] = True

    kind: Literal["adamw"]
    weight_decay: NonNegative = 1e-2
    """Decoupled weight decay."""
    blocks: _Blocks = Field(default_factory=dict)


ClientOptimizer = Annotated[Sgd | Adam | AdamW, Field(discriminator="kind")]


class _Schedule(Section):
    def learning_rate(self, base: float, round_index: int, num_rounds: int) -> float:
        """The learning rate of one round.

        Args:
            base: The learning rate of the clients' optimizer, > 0.
            round_index: The round t, 1..num_rounds.
            num_rounds: Number of rounds T of the whole run.
        """
        assert 1 <= round_index <= num_rounds, f"round {round_index} of {num_rounds}"
        return self._rate(base, round_index, num_rounds)

    @abstractmethod
    def _rate(self, base: float, round_index: int, num_rounds: int) -> float: ...


class ConstantSchedule(_Schedule):
    """The same learning rate in every round."""

    kind: Literal["constant"]

    def _rate(self, base: float, round_index: int, num_rounds: int) -> float:  # noqa: ARG002  # as every schedule
        return base


class CosineSchedule(_Schedule):
    """From the optimizer's learning rate in round 1 to `min_lr` in the last round, along half a cosine."""

    kind: Literal["cosine"]
    min_lr: NonNegative = 0.0
    """Learning rate of the last round."""

    def _rate(self, base: float, round_index: int, num_rounds: int) -> float:
        # Loshchilov and Hutter 2017 (arXiv:1608.03983), equation 5, without restarts; base where T is 1.
        progress = (round_index - 1) / max(num_rounds - 1, 1)
        remaining = (1 + math.cos(math.pi * progress)) / 2
        # As a mixture both ends come out exactly; min + (base - min) * remaining may miss base by a bit.
        return remaining * base + (1 - remaining) * self.min_lr


class StepSchedule(_Schedule):
    """The learning rate is multiplied by `factor` after every `every` rounds."""

    kind: Literal["step"]
    every: Positive
    """Rounds between two steps."""
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of each step."""

    def _rate(self, base: float, round_index: int, num_rounds: int) -> float:  # noqa: ARG002  # as every schedule
        return base * self.factor ** ((round_index - 1) // self.every)


EngineName = Literal["sequential", "vectorized", "compiled"]
Schedule = Annotated[ConstantSchedule | CosineSchedule | StepSchedule, Field(discriminator="kind")]


class Alternate(Section):
    """FedRep (Collins et al. 2021): private blocks first, then the others; one part stands still for the other."""

    private_epochs: Positive = 1
    """Epochs in which the private blocks are trained."""
    shared_epochs: Positive = 1
    """Epochs in which all other blocks are trained."""


class Training(Section):
    """What a client does with its shard in a round."""

    local_epochs: Positive = 1
    """Passes over the training split per round; not used with `alternate`."""
    alternate: Alternate | None = None
    """Train private and other blocks in turns, instead of together for `local_epochs`; null: together."""
    batch_size: Positive = 16
    """Samples per optimizer step; the last batch of an epoch may be smaller."""
    min_batch_size: Positive = 1
    """Batches with fewer samples are left out; the only batch of an epoch never is. 2: as the paper's code."""
    optimizer: ClientOptimizer = Sgd(kind="sgd")
    """The clients' optimizer. Its state is new in each round unless `keep_optimizer_state`."""
    loss: Loss = TaskLoss(kind="task")
    """What training makes small; scoring keeps the task's own."""
    transform: dict[ModalityName, Transform] = Field(default_factory=dict)
    """What becomes of a modality's batches before a client trains on them: augmentation. Scoring sees samples as they
    are."""
    schedule: Schedule = ConstantSchedule(kind="constant")
    """The learning rate as a function of the round."""
    engine: Literal["auto", "sequential", "vectorized", "compiled"] | dict[str, EngineName] = "sequential"
    """How the clients of a chunk are computed: one after the other (`sequential`), at once on stacked blocks
    (`vectorized`), or as that with local training in C (`compiled`). A step agrees within rounding; over rounds the
    difference grows as it does between processors. Stacking pays with many clients and small dense, recurrent or
    attention models. `compiled` needs a C compiler, CPUs and built-in blocks without normalisation and `conv2d`, and is
    the fastest there. What cannot be computed as asked is computed as the one before in this list, and the manifest's
    notes say why. A stacked chunk stays in one actor. `auto` times all of them before round 1; the run folder's
    `scenario.yaml` says what was chosen, as a map from modality set (`acc+gyro`) to engine, which is accepted here
    too."""
    precision: Precision = "float32"
    """In what the forward pass computes matrix products and convolutions, in training and in evaluation. `bfloat16`
    (automatic mixed precision) is for GPUs; parameters, gradients, optimizers and averages stay float32."""
    proximal_mu: NonNegative = 0.0
    """FedProx (Li et al. 2020): mu/2 times the squared distance of the blocks that are not private from the values
    received is added to the loss. 0: FedAvg."""
    modality_dropout: Probability = 0.0
    """Probability that a batch does without a modality of a client that owns several; one of them always stays."""
    keep_optimizer_state: bool = False
    """Whether each client keeps its own optimizer state (momentum, moments) from round to round."""

    @property
    def may_stack(self) -> bool:
        """Whether the clients of some modality set may be stacked."""
        engines = {self.engine} if isinstance(self.engine, str) else set(self.engine.values())
        return not engines <= {"sequential"}

    @property
    def asked_to_stack(self) -> EngineName | None:
        """An engine that computes clients together and is asked for, for all clients or for some; None: none is."""
        engines = [self.engine] if isinstance(self.engine, str) else self.engine.values()
        return next((engine for engine in engines if engine != "auto" and engine != "sequential"), None)

    def conflicts(self) -> Iterator[Finding]:
        """A schedule that ends above where it begins, smallest batches above the batch size, what stacks cannot do."""
        if self.min_batch_size > self.batch_size:
            expected = f"at most {self.batch_size}, the batch size"
            yield Finding("min_batch_size", f"is {self.min_batch_size}", expected)
        if isinstance(self.schedule, CosineSchedule) and self.schedule.min_lr > self.optimizer.lr:
            expected = f"at most {self.optimizer.lr}, the learning rate of the optimizer"
            yield Finding("schedule.min_lr", f"is {self.schedule.min_lr}", expected)
        for key, plain in (("modality_dropout", 0), ("min_batch_size", 1)):
            if (asked := self.asked_to_stack) and (value := getattr(self, key)) > plain:
                found = f"asks for {asked!r}, while training.{key} is {value}"
                yield Finding("engine", found, f"'sequential' or 'auto', or a {key} of {plain}")

    def num_examples(self, num_samples: int) -> int:
        """The training samples that a client sees in a round in which all of its blocks are trained as it says here.

        Args:
            num_samples: Of its training split.
        """
        left_out = num_samples % self.batch_size
        if left_out == num_samples or left_out >= self.min_batch_size:
            left_out = 0
        phases = self.alternate
        epochs = self.local_epochs if phases is None else phases.private_epochs + phases.shared_epochs
        return (num_samples - left_out) * epochs

    def engine_of(self, modality_set: str) -> EngineName:
        """The engine of the clients of one modality set.

        Raises:
            ValueError: It is still to be chosen (`auto`).
        """
        if self.engine == "auto":
            raise ValueError("training.engine is 'auto'; expected one that has been chosen")
        return self.engine if isinstance(self.engine, str) else self.engine[modality_set]


UnseenStart = Literal["initial", "group-average"]


class FineTune(Section):
    """Every scored client also trains a copy of its model on its own training split, and is scored with that copy too.

    The run goes on as if it had not.
    """

    epochs: Positive = 1
    """Passes over the training split."""
    blocks: Literal["all", "fusion-head", "head"] = "all"
    """Blocks that are tuned; frozen ones never are."""
    lr: Rate | None = None
    """Learning rate; null: that of `training.optimizer`. Batch size and the rest of the optimizer are those of
    `training`."""
    every: Positive | None = None
    """Rounds between two such scorings, a multiple of `evaluation.every`; null: at the end alone, as `last` says."""
    last: Positive = 1
    """How many rounds at the end are scored so in any case, those of them that are scored at all. With `stop` it is the
    best round alone."""


def ignored_keys(algorithm: object, training: Training) -> Iterator[Finding]:
    """The keys of `training` that say how a client trains, beside an algorithm that says it itself."""
    if not has(algorithm, "passes") and not has(algorithm, "local"):
        return
    beside = "while the algorithm has its own passes"
    if training.proximal_mu:
        yield Finding("training.proximal_mu", f"is {training.proximal_mu:g}, {beside}", "0")
    if training.alternate is not None:
        yield Finding("training.alternate", f"is there, {beside}", "null")
