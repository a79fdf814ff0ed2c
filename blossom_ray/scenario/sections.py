"""The sections of a scenario: what each key means, its unit and what it accepts.

A section checks its own fields; checks across sections stand in `checks.py`. The JSON Schema and the scenario
reference in the docs are generated from the descriptions here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

ModalityName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Factory = str | Callable[..., Any]


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True, use_attribute_docstrings=True
    )


def _check_factory(value: Factory) -> Factory:
    if isinstance(value, str) and not all(part.isidentifier() for part in value.replace(":", ".").split(".")):
        raise ValueError("a factory is written as module:attribute")
    if isinstance(value, str) and value.count(":") != 1:
        raise ValueError("a factory is written as module:attribute")
    return value


class Custom(Section):
    """Own code. Naming it here runs it: use scenarios from people whose code you would run."""

    kind: Literal["custom"]
    factory: Factory
    """`module:attribute` of a callable that builds the module, or, from Python, the callable itself."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the factory."""

    _factory = field_validator("factory")(_check_factory)


# --- data ---------------------------------------------------------------------------------------------------------


class IidPartition(Section):
    """Samples are dealt at random; client sizes differ by at most one."""

    kind: Literal["iid"]


class DirichletPartition(Section):
    """Label skew: class proportions over clients are drawn from a symmetric Dirichlet distribution."""

    kind: Literal["dirichlet"]
    alpha: Rate = 0.5
    """Concentration. Small values give each client few classes; large values approach `iid`."""
    min_samples: Annotated[int, Field(ge=2)] = 10
    """Fewest samples a client may end with; the draw is repeated until every client has them."""
    equal_sizes: bool = False
    """False: proportions per class over clients, so sizes differ (Yurochkin et al. 2019, the paper's choice).
    True: a class mix per client and equal sizes (Hsu et al. 2019)."""


class SubjectPartition(Section):
    """Each client gets the whole recordings of one or more subjects."""

    kind: Literal["subject"]


class QuantityPartition(Section):
    """Quantity skew: client sizes are drawn from a symmetric Dirichlet distribution, labels are dealt at random."""

    kind: Literal["quantity"]
    alpha: Rate = 1.0
    """Concentration. Small values give a few large clients; large values approach equal sizes."""
    min_samples: Annotated[int, Field(ge=2)] = 10
    """Fewest samples a client may end with; the draw is repeated until every client has them."""


Partition = Annotated[
    IidPartition | DirichletPartition | SubjectPartition | QuantityPartition, Field(discriminator="kind")
]


class _Data(Section):
    partition: Partition = IidPartition(kind="iid")
    """How samples are divided over clients."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Part of each client's samples kept for its own test split."""
    split: Literal["sample", "subject"] = "sample"
    """`sample`: rows are drawn at random, so overlapping windows of one recording may fall on both sides and test
    scores are optimistic. `subject`: a client's test split holds whole subjects that its training split has not."""


class SyntheticModality(Section):
    """Shape of one synthetic modality and how much it alone tells about the label."""

    kind: Literal["sequence", "image", "vector"] = "sequence"
    """Shape family: `sequence` (time, channels), `image` (channels, height, width), `vector` (features)."""
    shape: Annotated[tuple[Positive, ...], Field(strict=False)] | None = None
    """Shape of one sample. Default: (64, 3) for a sequence, (1, 16, 16) for an image, (32,) for a vector."""
    distinguishable_classes: Positive | None = None
    """How many groups of classes this modality tells apart; classes of one group look alike in it. Equal to
    `classes` (default): sufficient alone. 1: tells nothing. Best accuracy from it alone: this number / `classes`."""
    signal: NonNegative = 1.0
    """Root mean square of the class pattern, in units of the noise's standard deviation."""


class SyntheticData(_Data):
    """Generated samples; the formula stands in `blossom_ray/data/synthetic.py` and in the docs."""

    dataset: Literal["synthetic"]
    path: None = None
    """Not used: synthetic data need no file."""
    samples: Positive = 2000
    """Samples over all clients."""
    classes: Annotated[int, Field(ge=2)] = 6
    """Number of classes, equally likely."""
    modalities: dict[ModalityName, SyntheticModality] = Field(default_factory=dict)
    """Modality by name. A modality that clients own and that is not listed gets the defaults."""
    subjects: Positive | None = None
    """Number of subjects that samples are attributed to, or null for none."""
    subject_shift: NonNegative = 0.0
    """Root mean square of a pattern that each subject adds to all of its samples, in units of the noise."""
    held_out_samples: Annotated[int, Field(ge=0)] = 500
    """Samples of the held-out global test set that no client trains on."""


class UciHarData(_Data):
    """Human Activity Recognition Using Smartphones 1.0 (Anguita et al. 2013): 6 activities, 30 subjects.

    Modalities `acc` and `gyro`, windows of (128, 3). Clients share the official training part; the official test
    part (9 other subjects) is the held-out global test set.
    """

    dataset: Literal["uci-har"]
    path: str | None = None
    """The official `UCI HAR Dataset.zip`, or the folder it unpacks to. Relative to the working directory."""
    acceleration: Literal["body", "total"] = "body"
    """Which acceleration: `body` (gravity removed) or `total`, in g. Angular velocity is in rad/s."""
    zscore: bool = False
    """Whether each axis of each window is brought to mean 0 and deviation 1."""


class CustomData(_Data):
    """Own data: a callable that returns a `blossom_ray.Dataset`."""

    dataset: Literal["custom"]
    factory: Factory
    """`module:attribute` of a callable that returns a `Dataset`, or, from Python, the callable itself."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the factory."""

    _factory = field_validator("factory")(_check_factory)


Data = Annotated[SyntheticData | UciHarData | CustomData, Field(discriminator="dataset")]


# --- clients ------------------------------------------------------------------------------------------------------


class ClientGroup(Section):
    """Clients that own the same modalities. Ids are given in the order of the groups."""

    count: Positive
    """Number of clients."""
    modalities: Annotated[tuple[ModalityName, ...], Field(strict=False, min_length=1)]
    """Modalities that each of them owns."""
    group: str = ""
    """Label for blocks of scope `group`: a cluster, a site, a task."""

    @field_validator("modalities")
    @classmethod
    def _once(cls, modalities: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(modalities)) != len(modalities):
            raise ValueError("each modality once")
        return modalities


# --- model --------------------------------------------------------------------------------------------------------

Widths = Annotated[tuple[Positive, ...], Field(strict=False)]


class MlpEncoder(Section):
    """Flatten, then linear layers with ReLU and dropout. Any shape."""

    kind: Literal["mlp"]
    hidden: Widths = (64,)
    """Widths of the hidden layers."""
    dim: Positive = 64
    """Width of the embedding."""
    dropout: Probability = 0.0
    """Dropout after each hidden layer."""


class Conv1dEncoder(Section):
    """Convolution over time (ReLU, max-pooling by 2, dropout in each layer), mean over time. Sequences."""

    kind: Literal["conv1d"]
    channels: Annotated[Widths, Field(min_length=1)] = (32, 64, 128)
    """Channels of the layers; the time axis is halved by each."""
    kernel_size: Positive = 5
    """Kernel size (odd keeps the length)."""
    dim: Positive | None = None
    """Width of the embedding through a last linear layer; null: the last channels as they are."""
    dropout: Probability = 0.1
    """Dropout after each layer."""


class ConvGruEncoder(Section):
    """Convolution over time as in `conv1d`, then a GRU, mean over time. Sequences. The paper's HAR and ECG encoder."""

    kind: Literal["conv-gru"]
    channels: Annotated[Widths, Field(min_length=1)] = (32, 64, 128)
    """Channels of the layers; the time axis is halved by each."""
    kernel_size: Positive = 5
    """Kernel size (odd keeps the length)."""
    dim: Positive = 128
    """Width of the GRU and of the embedding."""
    dropout: Probability = 0.1
    """Dropout after each convolution."""


class GruEncoder(Section):
    """A GRU, mean over time. Sequences. The paper's text encoder."""

    kind: Literal["gru"]
    dim: Positive = 64
    """Width of the GRU and of the embedding."""


class Conv2dEncoder(Section):
    """Convolution (ReLU, normalisation, optional max-pooling by 2 in each layer), then a linear layer. Images."""

    kind: Literal["conv2d"]
    channels: Annotated[Widths, Field(min_length=1)] = (8, 16, 32)
    """Channels of the layers."""
    kernel_size: Positive | Annotated[tuple[Positive, ...], Field(strict=False)] = 3
    """Kernel size, one for all layers or one for each."""
    stride: Positive = 1
    """Stride of each convolution."""
    max_pool: bool = True
    """Whether each layer ends with max-pooling by 2."""
    norm: Literal["batch", "group", "none"] = "batch"
    """Normalisation after the ReLU of each layer."""
    global_pool: bool = False
    """Whether the last map is averaged over space (true) or flattened (false)."""
    dim: Positive = 32
    """Width of the embedding."""
    dropout: Probability = 0.0
    """Dropout after each layer."""


class CustomEncoder(Custom):
    """Own encoder: `factory(input_shape, **options)` gives a module that maps (batch, *input_shape) to (batch, dim)."""


Encoder = Annotated[
    MlpEncoder | Conv1dEncoder | ConvGruEncoder | GruEncoder | Conv2dEncoder | CustomEncoder,
    Field(discriminator="kind"),
]


class AttentionFusion(Section):
    """One weight per modality from a softmax over all embeddings; the weighted sum of their projections."""

    kind: Literal["attention"]
    dim: Positive = 256
    """Width of the fused representation."""


class ConcatFusion(Section):
    """A linear layer over the concatenated embeddings."""

    kind: Literal["concat"]
    dim: Positive = 256
    """Width of the fused representation."""


class MeanFusion(Section):
    """The mean of the embeddings' projections."""

    kind: Literal["mean"]
    dim: Positive = 256
    """Width of the fused representation."""


class GatedFusion(Section):
    """Gated multimodal units (Arevalo et al. 2017): a sigmoid gate per modality and unit, from all embeddings."""

    kind: Literal["gated"]
    dim: Positive = 256
    """Width of the fused representation."""


class CustomFusion(Custom):
    """Own fusion: `factory(embedding_dims, **options)` gives a module from a dict of (batch, dim) to (batch, d)."""


Fusion = Annotated[
    AttentionFusion | ConcatFusion | MeanFusion | GatedFusion | CustomFusion, Field(discriminator="kind")
]


class MlpHead(Section):
    """Linear layers with ReLU and dropout, then a linear layer to the classes."""

    kind: Literal["mlp"]
    hidden: Widths = (64,)
    """Widths of the hidden layers."""
    dropout: Probability = 0.1
    """Dropout after each hidden layer."""
    norm: Literal["batch", "none"] = "none"
    """Normalisation before the ReLU of each hidden layer."""


class LinearHead(Section):
    """One linear layer to the classes."""

    kind: Literal["linear"]


class CustomHead(Custom):
    """Own head: `factory(input_dim, num_outputs, **options)` gives a module from (batch, d) to (batch, outputs)."""


Head = Annotated[MlpHead | LinearHead | CustomHead, Field(discriminator="kind")]


class Model(Section):
    """A late-fusion model: an encoder per modality, a fusion, a head."""

    encoders: Annotated[dict[ModalityName, Encoder], Field(min_length=1)]
    """Encoder by modality. The modalities here are all that the federation has."""
    fusion: Fusion = AttentionFusion(kind="attention")
    """How embeddings become one representation."""
    head: Head = MlpHead(kind="mlp")
    """From the fused representation to the outputs."""
    missing: Literal["mask", "zero-embedding", "zero-input"] = "mask"
    """What stands for a modality that a client does not own, in training and evaluation alike. `mask`: the fusion
    sees only what is there. `zero-embedding`: an embedding of zeros. `zero-input`: an input of zeros through the
    current encoder, which the client then holds without training it."""
    norm_statistics: Literal["local", "shared"] = "shared"
    """Running statistics of normalisation layers: averaged with their block (`shared`) or kept by each client."""


# --- training, server, evaluation, execution ----------------------------------------------------------------------


class Sgd(Section):
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


class _AdamLike(Section):
    lr: Rate = 1e-3
    """Learning rate."""
    beta1: Probability = 0.9
    """Decay of the first moment."""
    beta2: Probability = 0.999
    """Decay of the second moment."""
    eps: Rate = 1e-8
    """Added to the denominator."""


class Adam(_AdamLike):
    """Adam (Kingma and Ba 2015)."""

    kind: Literal["adam"]
    weight_decay: NonNegative = 0.0
    """L2 penalty."""


class AdamW(_AdamLike):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    kind: Literal["adamw"]
    weight_decay: NonNegative = 1e-2
    """Decoupled weight decay."""


ClientOptimizer = Annotated[Sgd | Adam | AdamW, Field(discriminator="kind")]


class ConstantSchedule(Section):
    """The same learning rate in every round."""

    kind: Literal["constant"]


class CosineSchedule(Section):
    """From the optimizer's learning rate in round 1 to `min_lr` in the last round, along half a cosine."""

    kind: Literal["cosine"]
    min_lr: NonNegative = 0.0
    """Learning rate of the last round."""


class StepSchedule(Section):
    """The learning rate is multiplied by `factor` after every `every` rounds."""

    kind: Literal["step"]
    every: Positive
    """Rounds between two steps."""
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of each step."""


Schedule = Annotated[ConstantSchedule | CosineSchedule | StepSchedule, Field(discriminator="kind")]


class Training(Section):
    """What a client does with its shard in a round."""

    local_epochs: Positive = 1
    """Passes over the training split per round."""
    batch_size: Positive = 16
    """Samples per optimizer step; the last batch of an epoch may be smaller."""
    optimizer: ClientOptimizer = Sgd(kind="sgd")
    """The clients' optimizer. Its state is new in each round unless `keep_optimizer_state`."""
    schedule: Schedule = ConstantSchedule(kind="constant")
    """The learning rate as a function of the round."""
    engine: Literal["sequential", "vectorized"] = "sequential"
    """How the clients of a chunk are computed: one after the other, or at once on stacked blocks. The results agree
    within rounding. Stacking pays with many clients and small dense, recurrent or attention models. A stacked chunk
    stays in one actor."""
    keep_optimizer_state: bool = False
    """Whether each client keeps its own optimizer state (momentum, moments) from round to round."""


class FedAvg(Section):
    """New value = old + lr (average - old) (McMahan et al. 2017 for lr = 1)."""

    kind: Literal["fedavg"]
    lr: Rate = 1.0
    """Server learning rate; 1 takes the average itself."""


class FedAvgM(Section):
    """Server momentum (Hsu et al. 2019)."""

    kind: Literal["fedavgm"]
    lr: Rate = 1.0
    """Server learning rate."""
    momentum: Probability = 0.9
    """Server momentum."""


class FedAdagrad(Section):
    """FedAdagrad (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["fedadagrad"]
    lr: Rate = 0.01
    """Server learning rate (eta)."""
    beta1: Probability = 0.0
    """Decay of the first moment."""
    tau: Rate = 1e-3
    """Degree of adaptivity, added to the denominator; the second moment starts at tau^2."""


class _FedAdamLike(Section):
    lr: Rate = 0.01
    """Server learning rate (eta)."""
    beta1: Probability = 0.9
    """Decay of the first moment."""
    beta2: Probability = 0.99
    """Decay of the second moment."""
    tau: Rate = 1e-3
    """Degree of adaptivity, added to the denominator; the second moment starts at tau^2."""


class FedAdam(_FedAdamLike):
    """FedAdam (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["fedadam"]


class FedYogi(_FedAdamLike):
    """FedYogi (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["fedyogi"]


ServerOptimizer = Annotated[FedAvg | FedAvgM | FedAdagrad | FedAdam | FedYogi, Field(discriminator="kind")]


class Server(Section):
    """Who takes part in a round, and how averages become new blocks."""

    optimizer: ServerOptimizer = FedAvg(kind="fedavg")
    """The server optimizer; each block instance has its own state."""
    clients_per_round: Fraction | Positive = 1.0
    """Clients drawn for each round: a fraction (written with a point: 0.1, 1.0) or a number of clients (10)."""


class Evaluation(Section):
    """When and on what the new blocks are scored."""

    every: Positive = 1
    """Rounds between two evaluations; the last round and the untrained model (round 0) are always scored."""
    clients: Fraction = 1.0
    """Fraction of all clients that score the new blocks on their own test split, drawn anew each time."""
    held_out: Literal["never", "final", "every"] = "final"
    """When the held-out global test set, if the data set has one, is scored besides."""
    batch_size: Positive = 256
    """Samples per forward pass."""


class Checkpoint(Section):
    """What a run keeps so that it can be resumed. Only runs with a run folder have checkpoints."""

    every: Annotated[int, Field(ge=0)] = 5
    """Rounds between two checkpoints; 0: none."""
    keep: Positive = 2
    """Checkpoints that are kept, the newest ones."""


class Failures(Section):
    """What happens when a client or its actor fails in training."""

    max_retries: Annotated[int, Field(ge=0)] = 3
    """How often the same work is tried again in a new actor after one was lost. Its clients are restored and its work
    is repeated, with the same results. An error that a client's own code raises is not tried again."""
    on_failure: Literal["stop", "drop"] = "stop"
    """What follows. `stop`: the run ends. `drop`: the round goes on without these clients, and says so."""
    min_clients: Positive = 1
    """Fewest clients that a round may be left with; with fewer the run ends."""


class ClientResources(Section):
    """What Ray reserves for one client that has an actor of its own."""

    num_cpus: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.2
    """Fraction of a CPU core."""
    num_gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Fraction of a GPU; also the cap on its memory. 0: the CPU is used."""


class Execution(Section):
    """Where and how the clients run. Nothing here but `chunk_size` touches the numbers."""

    runtime: Literal["ray", "local"] = "ray"
    """`ray`: actors. `local`: a loop in this process, for breakpoints and tests."""
    clients_per_actor: Literal["auto"] | Positive = "auto"
    """Clients that share an actor process. `auto`: one while the cluster has room, packed beyond that."""
    client_resources: ClientResources = ClientResources()
    """What Ray reserves per client that has an actor of its own."""
    chunk_size: Positive = 16
    """Clients whose updates are summed together before the sums are added up. It fixes the order of the sums, and
    so the last bits of the results."""
    shards: Literal["auto", "memory-map", "object-store"] = "auto"
    """How clients' data reach the actors. `auto`: memory-mapped files on one machine, the object store on several."""
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1800.0
    """Seconds that one chunk of clients may take before the run is stopped."""
