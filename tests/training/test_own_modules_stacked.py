"""Own modules in stacks: they train as one client after the other does, or the trial says why they do not."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blossom_ray import Scenario, simulate
from blossom_ray.clients.job import ClientTask, LocalJob, LocalPass
from blossom_ray.clients.local_training import SequentialEngine
from blossom_ray.clients.options import Training
from blossom_ray.clients.stacked.engine import StackedEngine
from blossom_ray.clients.stacked.trial import stacking_obstacle
from blossom_ray.clients.workspace import Workspace
from blossom_ray.models.options import Model
from blossom_ray.tasks.learned import one_task

SHAPES = {"seq": (8, 4), "image": (2, 6, 6), "vector": (10,)}
DIM, CLASSES = 6, 3
# One sample, fewer than a batch, whole batches, a last batch of one, a last batch of three.
SIZES = (1, 3, 8, 9, 11)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer, self.out = (
            nn.LayerNorm(10),
            nn.Linear(10, 7),
            nn.Linear(7, 10),
            nn.Linear(10, DIM),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.outer(F.gelu(self.inner(self.norm(x)))))


class ConvPool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.depthwise = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, groups=4)
        self.norm, self.out = nn.GroupNorm(2, 4), nn.LazyLinear(DIM)
        self(torch.zeros(1, *SHAPES["image"]))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.convolution(x)), inplace=True), 2, stride=1)
        return self.out(self.depthwise(x).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.gate, self.out = nn.Conv2d(2, 4, 3), nn.Linear(4, 4), nn.Linear(4, DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x)
        return self.out((x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]).amax((2, 3)))


class CellLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(4, DIM)

    def forward(self, x: Tensor) -> Tensor:
        state = (x.new_zeros(len(x), DIM), x.new_zeros(len(x), DIM))
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return state[0]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.layers = kind(4, DIM, batch_first=True, **options)
        self.out = nn.Linear(DIM * (2 if self.layers.bidirectional else 1), DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x)[0].mean(1))


class Attention(nn.Module):
    """Over time, with positions that are a buffer and a query that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positions", torch.linspace(-1, 1, 8)[:, None].repeat(1, 4))
        self.query = nn.Parameter(torch.randn(1, 1, 4))
        self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions
        return self.out(self.attention(self.query.expand(len(x), -1, -1), x, x)[0].squeeze(1))


class ScaledProducts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maps, self.out = nn.Linear(4, 12), nn.Linear(4, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.scaled_dot_product_attention(*self.maps(x).chunk(3, dim=-1)).mean(1))


class Words(nn.Module):
    """Numbers of words, as floats; a negative one has no embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.words(x.long()).mean(1)


class Bilinear(nn.Module):
    """Parameters without a layer, in products of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(8, 3) / 3), nn.Parameter(torch.randn(4, 2) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btc,td,ce->bde", x, self.left, self.right).flatten(1)


class Tied(nn.Module):
    """One weight for two layers, and once more as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.out = nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, DIM)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.linear(torch.tanh(self.other(torch.relu_(self.one(x)))), self.one.weight))


class Dropping(nn.Module):
    """Dropout in several places, of one module twice, and in time."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.inner, self.out = nn.Dropout(0.4), nn.Linear(4, 5), nn.Linear(5, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(torch.stack([F.relu(self.inner(self.drop(x[:, t]))) for t in range(3)], 1).amax(1)))


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.out = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.norm(self.convolution(x))).mean((2, 3)))


class Counting(nn.Module):
    """A buffer that changes in place, and is the client's own."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(10, DIM)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return self.out(x) / (1 + self.calls)


class Weighted(nn.Module):
    """A fusion: a gate per modality that is there."""

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({name: nn.Linear(width, DIM + 1) for name, width in dims.items()})

    def forward(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        mapped = torch.stack([self.maps[name](values) for name, values in embeddings.items()])
        return (torch.softmax(mapped[..., :1], dim=0) * mapped[..., 1:]).sum(0)


class Tempered(nn.Module):
    """A head: cosines over a temperature, which is learned."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.classes, self.temperature = nn.Parameter(torch.randn(outputs, dim)), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) @ F.normalize(self.classes, dim=1).T / self.temperature


MAPPED: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "residual, LayerNorm": ("vector", Residual),
    "conv, depthwise, GroupNorm, pooling": ("image", ConvPool),
    "squeeze and excite": ("image", SqueezeExcite),
    "loop of LSTMCell": ("seq", CellLoop),
    "LSTM of two layers": ("seq", lambda: Recurrent(nn.LSTM, num_layers=2)),
    "GRU in both directions": ("seq", lambda: Recurrent(nn.GRU, bidirectional=True)),
    "attention, positions, query": ("seq", Attention),
    "scaled dot products": ("seq", ScaledProducts),
    "embedding": ("vector", Words),
    "einsum": ("seq", Bilinear),
    "tied weights": ("vector", Tied),
    "dropout": ("seq", Dropping),
    "batch norm": ("image", Normalised),
    "buffer": ("vector", Counting),
    "ReLU in place": ("vector", lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(10, DIM))),
    "transformer layer": (
        "seq",
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), nn.Flatten(), nn.Linear(32, DIM)
        ),
    ),
}


def workspace(shape: str = "vector", encoder: Callable[[], nn.Module] | None = None, **changes: Any) -> Workspace:
    own: Any = {"kind": "mlp", "dim": DIM}
    if encoder is not None:
        own = {"kind": "custom", "factory": lambda _: encoder()}
    section = Model.model_validate(
        {
            "encoders": {"acc": own, "gyro": {"kind": "mlp", "hidden": [5], "dim": DIM}},
            "fusion": {"kind": "concat", "dim": DIM},
            "head": {"kind": "linear"},
        }
        | {key: changes.pop(key) for key in ("fusion", "head", "missing") if key in changes}
    )
    shapes = {"acc": SHAPES[shape], "gyro": (3,)}
    options = {"owned": ("acc", "gyro"), "seed": 0} | changes
    return Workspace(section, shapes, one_task("classification", CLASSES), **options)


def make_tasks(space: Workspace, sizes: Sequence[int] = SIZES) -> list[ClientTask]:
    tasks = []
    for client, size in enumerate(sizes):
        rng = np.random.default_rng([client, size])
        inputs = {
            name: rng.uniform(0, 5, (size, *space.model.input_shapes[name])).astype(np.float32)
            for name in space.model.owned
        }
        blocks = {
            name: (values * rng.uniform(0.9, 1.1, values.shape)).astype(np.float32)
            for name, values in space.initial_blocks.items()
        }
        tasks.append(ClientTask(client, blocks, inputs, rng.integers(0, CLASSES, size)))
    return tasks


def assert_engines_agree(
    space: Workspace, caplog: pytest.LogCaptureFixture, optimizer: Any = None, tolerance: float = 2e-4
) -> None:
    """Over an epoch of batches of 4, and in scores; and the stack has computed it itself."""
    section = Training.model_validate({"batch_size": 4, "optimizer": optimizer or {"kind": "sgd", "momentum": 0.9}})
    names = frozenset(space.trained)
    job = LocalJob(section, 0.05, (LocalPass(1, names),), seed=0, round_index=1)
    tasks = make_tasks(space)
    with caplog.at_level(logging.INFO):
        stacked, alone = (engine(space).train(tasks, job) for engine in (StackedEngine, SequentialEngine))
        assert not caplog.text, "computed one after the other"
    for found, expected in zip(stacked, alone, strict=True):
        assert_same(found.blocks, expected.blocks, tolerance)
        for name, state in expected.local_state.items():
            assert_same(found.local_state[name], state, tolerance)
        assert found.loss == pytest.approx(expected.loss, rel=tolerance)
    moved = [task.after(result) for task, result in zip(tasks, alone, strict=True)]
    scores, expected_scores = (
        [scored.by_task[""].loss for scored in engine(space).evaluate(moved, 4, round_index=1)]
        for engine in (StackedEngine, SequentialEngine)
    )
    assert scores == pytest.approx(expected_scores, rel=tolerance)


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], tolerance: float) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        scale = max(1.0, float(np.abs(values).max(initial=0.0)))
        np.testing.assert_allclose(found[name], values, rtol=tolerance, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize("kind", MAPPED)
def test_own_encoders_train_as_they_do_alone(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    space = workspace(*MAPPED[kind])
    assert stacking_obstacle(space) is None
    assert_engines_agree(space, caplog)


def test_dropout_and_batch_norm_under_every_step_of_an_optimizer(caplog: pytest.LogCaptureFixture) -> None:
    """Plain SGD steps linear layers of ours in the backward pass; what is mapped gets its gradients beside them."""
    for optimizer in ({"kind": "sgd", "weight_decay": 0.1}, {"kind": "adamw", "eps": 1e-3}):
        assert_engines_agree(workspace(*MAPPED["dropout"]), caplog, optimizer)


def test_own_fusions_and_heads_train_as_they_do_alone(caplog: pytest.LogCaptureFixture) -> None:
    parts: dict[str, Any] = {
        "fusion": {"kind": "custom", "factory": Weighted},
        "head": {"kind": "custom", "factory": Tempered},
    }
    for owned, missing in ((("acc",), "zero-embedding"), (("acc", "gyro"), "mask")):
        space = workspace(owned=owned, missing=missing, **parts)
        assert stacking_obstacle(space) is None
        assert_engines_agree(space, caplog)


def test_an_own_encoder_of_a_modality_that_is_missing_sees_zeros(caplog: pytest.LogCaptureFixture) -> None:
    space = workspace(*MAPPED["dropout"], owned=("gyro",), missing="zero-input")
    assert stacking_obstacle(space) is None
    assert_engines_agree(space, caplog)


def test_a_frozen_own_encoder_stands_still(caplog: pytest.LogCaptureFixture) -> None:
    space = workspace(*MAPPED["batch norm"], frozen=frozenset({"encoder/acc"}))
    assert stacking_obstacle(space) is None
    assert_engines_agree(space, caplog)


def test_in_bfloat16_own_modules_are_tried_as_they_compute(caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("dropout", "GRU in both directions"):
        space = workspace(*MAPPED[kind], precision="bfloat16")
        assert stacking_obstacle(space) is None
        assert_engines_agree(space, caplog, tolerance=0.02)


def test_a_trial_leaves_no_trace_in_random_numbers_or_kernels() -> None:
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    assert stacking_obstacle(workspace(*MAPPED["LSTM of two layers"])) is None
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert torch.backends.mkldnn.enabled
    assert torch.backends.mha.get_fastpath_enabled()


class Drawing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.3, self.training)


class Measuring(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * x.norm().item()


class Branching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean() > 0 else x[:, :3]


class Selecting(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x[x > 0].sum()


class Centred(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class AcrossSamples(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.softmax(x @ x.T, dim=1) @ x)


class OwnStatistics(nn.Linear):
    """A running mean of its own, in evaluation too where the batch is of one sample."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__(width, outputs)
        self.register_buffer("running_mean", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_mean.mul_(0.9).add_(0.1 * x.mean(0).detach())
        return super().forward(x - self.running_mean)


class Remembering(nn.Linear):
    last: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        outputs = super().forward(x) + self.last
        self.last = x.mean().detach()
        return outputs


class Reassigning(nn.Linear):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__(width, outputs)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return super().forward(x) * self.calls


class Outside(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.from_numpy(np.tanh(x.detach().numpy())).mean()


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradients[0]


class OwnGradient(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return Square.apply(super().forward(x))


class Unmapped(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clone().lerp_(torch.ones_like(x), 0.1))


class OfTimes(nn.Module):
    """Dropout of steps in time, whose rows are not those of the batch."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.out, self.drop = nn.Linear(width, outputs), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.out(x).T).T


class Filling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.zeros(len(x), CLASSES)
        outputs[:, 0] = super().forward(x)[:, 0]
        return outputs


class DroppingViews(nn.Module):
    """PyTorch draws in the order of memory, which is not that of the rows here."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.out, self.drop = nn.Linear(width, outputs), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(x.unflatten(1, (2, -1)).transpose(1, 2)).flatten(1))


class Hooked(nn.Linear):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__(width, outputs)
        self.register_forward_hook(lambda *_: None)


MIXES = "mixes the rows of a batch, of which some are padding in a stack"
KEEPS = (
    "computes something else in a stack, as when it keeps what is no buffer, assigns to one, or drops out a transpose"
)
REFUSED: dict[type[nn.Module], str] = {
    Drawing: "draws random numbers beside nn.Dropout",
    Measuring: "takes numbers out of tensors, as .item() does",
    Branching: "branches on values",
    Selecting: "makes tensors whose shape depends on values",
    Centred: MIXES,
    AcrossSamples: MIXES,
    OwnStatistics: MIXES,
    Remembering: KEEPS,
    Reassigning: KEEPS,
    Outside: "raises when it is tried: RuntimeError: Cannot access data pointer of Tensor that doesn't have storage",
    OwnGradient: "has an autograd.Function without setup_context",
    Unmapped: "uses aten::lerp_, which PyTorch does not map",
    OfTimes: "raises when it is tried: ValueError: 3 rows in a layer that needs the 4 of the batch",
    Filling: "writes into what torch.zeros has made, where x.new_zeros would do",
    DroppingViews: KEEPS,
    Hooked: "has hooks",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_stacked_is_named(kind: type[nn.Module]) -> None:
    space = workspace(head={"kind": "custom", "factory": kind})
    found = stacking_obstacle(space)
    assert found is not None
    assert found.startswith(f"head ({kind.__name__}) {REFUSED[kind]}")
    assert found == stacking_obstacle(space), "the same every time"
    assert "\n" not in found


def halved() -> Callable[[Tensor, Tensor], Tensor]:
    """An own loss."""
    return lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none") / 2


def shifted() -> Callable[[Tensor, torch.Generator], Tensor]:
    """An own transform."""
    return lambda batch, draw: batch + torch.rand(1, generator=draw)


def test_own_losses_and_transforms_see_one_client_alone_and_the_manifest_says_so(small_scenario: Scenario) -> None:
    own = {
        "training.loss": {"kind": "custom", "factory": halved},
        "training.transform": {"acc": {"kind": "custom", "factory": shifted}},
        "rounds": 1,
    }
    scenario = small_scenario.override(own)
    notes = simulate(scenario.override({"training.engine": "vectorized"})).manifest["notes"]
    one_by_one = "is called for one client after the other, so that it sees the samples of one alone"
    assert [note for note in notes if one_by_one in note] == [
        f"training.loss (halved) {one_by_one}",
        f"training.transform.acc (shifted) {one_by_one}",
    ]
    alone = simulate(scenario.override({"training.engine": "sequential"})).manifest["notes"]
    assert not any(one_by_one in note for note in alone)
