from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from blossom_ray.clients.job import ClientTask, LocalJob, LocalPass, LocalResult
from blossom_ray.clients.local_training import SequentialEngine
from blossom_ray.clients.options import Training
from blossom_ray.clients.plan import OptimizerState
from blossom_ray.clients.samples import kept_modalities
from blossom_ray.clients.workspace import Workspace
from blossom_ray.models.fusion_options import LinearHead
from blossom_ray.models.options import Model
from blossom_ray.tasks.learned import one_task

SHAPES = {"acc": (4,), "gyro": (3,)}
RNG = np.random.default_rng(0)
INPUTS = {"acc": RNG.normal(size=(10, 4)).astype(np.float32), "gyro": RNG.normal(size=(10, 3)).astype(np.float32)}
LABELS = RNG.integers(0, 3, size=10)


def model_section(**changes: Any) -> Model:
    encoder = {"kind": "mlp", "hidden": [5], "dim": 4, "dropout": changes.pop("dropout", 0.0)}
    tree = {
        "encoders": {"acc": encoder, "gyro": encoder},
        "fusion": {"kind": "concat", "dim": 6},
        "head": {"kind": "linear"},
    }
    return Model.model_validate(tree | changes)


def workspace(owned: tuple[str, ...] = ("acc", "gyro"), **changes: Any) -> Workspace:
    frozen = changes.pop("frozen", frozenset())
    return Workspace(
        model_section(**changes), SHAPES, one_task("classification", 3), owned=owned, frozen=frozen, seed=0
    )


def section(optimizer: dict[str, Any] | None = None, **changes: Any) -> Training:
    tree = {"batch_size": 4, "optimizer": optimizer or {"kind": "sgd", "momentum": 0.9}}
    return Training.model_validate(tree | changes)


def train(
    space: Workspace,
    training: Training,
    *,
    rows: int = 10,
    client: int = 0,
    inputs: dict[str, np.ndarray] = INPUTS,
    optimizer_state: OptimizerState | None = None,
    passes: tuple[LocalPass, ...] | None = None,
    **changes: Any,
) -> LocalResult:
    """Train the blocks that the workspace holds: all of them for `local_epochs`, unless there are phases."""
    names = frozenset(space.trained)
    passes = passes or (LocalPass(training.local_epochs, names, names, training.proximal_mu),)
    job = LocalJob(training, **{"learning_rate": 0.1, "passes": passes, "seed": 0, "round_index": 1} | changes)
    task = ClientTask(
        client,
        {name: flat.read() for name, flat in space.flat.items()},
        {name: inputs[name][:rows] for name in space.model.owned},
        LABELS[:rows],
        space.local_state(),
        optimizer_state or {},
    )
    (result,) = SequentialEngine(space).train([task], job)
    return result


def reference(space: Workspace, make_optimizer: Any, order: list[list[int]]) -> dict[str, np.ndarray]:
    """The plain PyTorch loop on the same module, over the same batches."""
    space.model.train()
    optimizer = make_optimizer(space.model.parameters())
    for rows in order:
        optimizer.zero_grad(set_to_none=False)
        outputs = space.model({name: torch.from_numpy(values[rows]) for name, values in INPUTS.items()})
        F.cross_entropy(outputs, torch.from_numpy(LABELS[rows])).backward()
        optimizer.step()
    return {name: flat.read() for name, flat in space.flat.items()}


@pytest.mark.parametrize(
    ("optimizer", "make"),
    [
        (
            {"kind": "sgd", "momentum": 0.9, "weight_decay": 0.01},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, fused=True),
        ),
        ({"kind": "adam"}, lambda p: torch.optim.Adam(p, lr=0.1, fused=True)),
        ({"kind": "adamw"}, lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01, fused=True)),
    ],
)
def test_training_equals_the_plain_loop(optimizer: dict[str, Any], make: Any) -> None:
    from blossom_ray.core.seeding import Purpose, generator

    order = generator(0, Purpose.TRAINING, 1, 0).permutation(10).tolist()
    batches = [order[0:4], order[4:8], order[8:10]]
    expected = reference(workspace(), make, batches)
    result = train(workspace(), section(optimizer))
    assert (result.num_examples, result.num_steps) == (10, 3)
    # The fused kernels round the tail of a vector otherwise than its middle, and a block's vector ends elsewhere than
    # its parameters do: where the tails lie depends on the processor's vectors.
    for name, values in expected.items():
        np.testing.assert_allclose(result.blocks[name], values, rtol=1e-6, atol=1e-6)


def test_the_result_follows_from_seed_round_and_client() -> None:
    space = workspace(dropout=0.5)
    results = {}
    for key in [(0, 1, 0), (0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1)]:
        space.load(space.initial_blocks, space.initial_state)
        result = train(space, section(), seed=key[0], round_index=key[1], client=key[2])
        values = result.blocks["head"].tobytes()
        assert results.setdefault(key, values) == values
    assert len(set(results.values())) == 4


def test_torch_s_own_generator_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    train(workspace(dropout=0.5), section())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_read_only_shard_is_neither_copied_nor_written() -> None:
    inputs = {name: values.copy() for name, values in INPUTS.items()}
    for values in inputs.values():
        values.flags.writeable = False
    train(workspace(), section(), inputs=inputs)
    for name, values in inputs.items():
        np.testing.assert_array_equal(values, INPUTS[name])


def test_local_epochs_multiply_samples_and_steps() -> None:
    result = train(workspace(), section(local_epochs=3))
    assert (result.num_examples, result.num_steps) == (30, 9)


def test_the_loss_is_the_mean_over_samples_before_each_step() -> None:
    space = workspace()
    space.model.eval()
    outputs = space.model({name: torch.from_numpy(values) for name, values in INPUTS.items()})
    expected = F.cross_entropy(outputs, torch.from_numpy(LABELS)).item()
    # With a learning rate of almost nothing every batch meets the initial model.
    result = train(space, section({"kind": "sgd"}), learning_rate=1e-12)
    assert result.loss == pytest.approx(expected, rel=1e-5)


def test_drift_is_the_distance_from_what_was_received() -> None:
    space = workspace()
    received = {name: values.copy() for name, values in space.initial_blocks.items()}
    result = train(space, section())
    for name, values in result.blocks.items():
        expected = np.linalg.norm(values.astype(np.float64) - received[name])
        assert result.drift[name] == pytest.approx(expected, rel=1e-6)


def test_a_frozen_block_is_not_trained() -> None:
    space = workspace(frozen=frozenset({"encoder/acc"}))
    result = train(space, section())
    assert set(result.blocks) == {"encoder/gyro", "fusion", "head"}
    np.testing.assert_array_equal(space.flat["encoder/acc"].read(), space.initial_blocks["encoder/acc"])


def test_a_missing_modality_never_touches_another_encoder() -> None:
    space = workspace(owned=("acc",), missing="zero-input")
    result = train(space, section())
    assert set(result.blocks) == {"encoder/acc", "fusion", "head"}
    np.testing.assert_array_equal(space.flat["encoder/gyro"].read(), space.initial_blocks["encoder/gyro"])


@pytest.mark.parametrize("rows", [1, 5])
def test_batches_of_one_sample_train_with_batch_normalisation(rows: int) -> None:
    head = {"kind": "mlp", "hidden": [4], "norm": "batch", "dropout": 0.0}
    result = train(workspace(head=head), section(), rows=rows)
    assert result.num_examples == rows
    assert np.isfinite(result.loss)


def test_kept_optimizer_state_goes_on_where_it_was() -> None:
    training = section({"kind": "adam"}, keep_optimizer_state=True)
    space = workspace()
    first = train(space, training)
    continued = train(space, training, optimizer_state=first.optimizer_state, round_index=2)
    space.load(first.blocks, first.local_state)
    fresh = train(space, training, round_index=2)
    assert first.optimizer_state["head"]["step"] == 3
    assert continued.optimizer_state["head"]["step"] == 6
    assert not np.array_equal(continued.blocks["head"], fresh.blocks["head"])


def test_an_own_module_with_dropout_of_the_global_generator_is_seeded_too() -> None:
    class Noisy(nn.Module):
        def __init__(self, input_dim: int, num_outputs: int) -> None:
            super().__init__()
            self.linear = nn.Linear(input_dim, num_outputs)

        def forward(self, fused: torch.Tensor) -> torch.Tensor:
            noisy: torch.Tensor = self.linear(fused + torch.randn_like(fused))
            return noisy

    head = {"kind": "custom", "factory": Noisy}
    first, again = train(workspace(head=head), section()), train(workspace(head=head), section())
    np.testing.assert_array_equal(first.blocks["head"], again.blocks["head"])
    assert not isinstance(model_section(head=head).head, LinearHead)


def test_the_first_step_knows_no_proximal_term_and_the_second_is_pulled_back() -> None:
    """One sample, two steps: w2 = w1 - lr (g + mu (w1 - w0)), so w2 is -lr mu (w1 - w0) from FedAvg's."""
    plain = section({"kind": "sgd"})
    first = train(workspace(), plain, rows=1)
    second = train(workspace(), plain.model_copy(update={"local_epochs": 2}), rows=1)
    pulled = train(workspace(), plain.model_copy(update={"local_epochs": 2, "proximal_mu": 0.5}), rows=1)
    for name, start in workspace().initial_blocks.items():
        expected = second.blocks[name] - 0.1 * 0.5 * (first.blocks[name] - start)
        np.testing.assert_allclose(pulled.blocks[name], expected, rtol=1e-5, atol=1e-7)
    assert pulled.loss == pytest.approx(second.loss)


def test_the_proximal_term_is_that_of_autograd() -> None:
    space, training = workspace(), section({"kind": "sgd"}, proximal_mu=0.3, local_epochs=2, batch_size=10)
    result = train(space, training)
    model = workspace().model.train()
    start = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        outputs = model({name: torch.from_numpy(values) for name, values in INPUTS.items()})
        distance = sum((now - then).square().sum() for now, then in zip(model.parameters(), start, strict=True))
        (F.cross_entropy(outputs, torch.from_numpy(LABELS)) + 0.3 / 2 * distance).backward()
        optimizer.step()
    for name, module in model.blocks.items():
        expected = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
        np.testing.assert_allclose(result.blocks[name], expected, rtol=1e-5, atol=1e-6)


def test_without_weight_the_proximal_term_changes_no_bit_and_with_much_nothing_moves() -> None:
    plain, zero = train(workspace(), section()), train(workspace(), section(proximal_mu=0.0))
    # lr mu = 1: each step ends at the received values minus lr times the gradient, whatever came before.
    held = train(workspace(), section({"kind": "sgd"}, proximal_mu=10.0, local_epochs=20))
    free = train(workspace(), section({"kind": "sgd"}, local_epochs=20))
    for name, values in plain.blocks.items():
        np.testing.assert_array_equal(zero.blocks[name], values)
        assert held.drift[name] < free.drift[name] / 5


def test_phases_train_their_blocks_one_after_the_other() -> None:
    """Full batches: head alone, then all others, each in a workspace where the rest is frozen for good."""
    training = section({"kind": "sgd", "momentum": 0.9}, batch_size=10)
    body = frozenset({"encoder/acc", "encoder/gyro", "fusion"})
    both = train(workspace(), training, passes=(LocalPass(2, frozenset({"head"})), LocalPass(3, body)))
    head_alone = train(workspace(frozen=body), training.model_copy(update={"local_epochs": 2}))
    space = workspace(frozen=frozenset({"head"}))
    space.load({**space.initial_blocks, **head_alone.blocks}, {})
    body_alone = train(space, training.model_copy(update={"local_epochs": 3}))
    assert (both.num_examples, both.num_steps) == (50, 5)
    for name, values in {**head_alone.blocks, **body_alone.blocks}.items():
        np.testing.assert_allclose(both.blocks[name], values, rtol=1e-5, atol=1e-7)


def test_a_block_that_stands_still_uses_its_statistics_and_draws_no_dropout() -> None:
    encoder = {"kind": "mlp", "hidden": [5], "dim": 4, "dropout": 0.5}
    head = {"kind": "mlp", "hidden": [4], "norm": "batch", "dropout": 0.5}
    space = workspace(encoders={"acc": encoder, "gyro": encoder}, head=head)
    before = space.initial_blocks["head"].copy()
    result = train(space, section(), passes=(LocalPass(1, frozenset({"fusion"})),))
    np.testing.assert_array_equal(result.blocks["head"], before)
    again = train(space, section(), passes=(LocalPass(1, frozenset(space.trained)),))
    assert not np.array_equal(again.blocks["head"], before)


def test_optimizer_state_is_kept_for_the_blocks_of_all_phases() -> None:
    training = section({"kind": "adam"}, keep_optimizer_state=True)
    body = frozenset({"encoder/acc", "encoder/gyro", "fusion"})
    passes = (LocalPass(1, frozenset({"head"})), LocalPass(2, body))
    first = train(workspace(), training, passes=passes)
    second = train(workspace(), training, passes=passes, optimizer_state=first.optimizer_state)
    steps = {name: float(state["step"]) for name, state in second.optimizer_state.items()}
    assert steps == {"head": 6.0, "encoder/acc": 12.0, "encoder/gyro": 12.0, "fusion": 12.0}


class Numbers:
    """Gives what it is told to, in the place of a `numpy.random.Generator`."""

    def __init__(self, *numbers: float, choice: int = 0) -> None:
        self._numbers, self._choice = numbers, choice

    def random(self, size: int) -> np.ndarray:
        assert size == len(self._numbers)
        return np.array(self._numbers)

    def integers(self, high: int) -> int:
        assert self._choice < high
        return self._choice


@pytest.mark.parametrize(
    ("numbers", "kept"),
    [
        (Numbers(0.3, 0.9, 0.8), ("acc", "gyro", "mag")),
        (Numbers(0.29, 0.9, 0.8), ("gyro", "mag")),
        (Numbers(0.0, 0.1, 0.3), ("mag",)),
        (Numbers(0.0, 0.1, 0.2, choice=1), ("gyro",)),
    ],
)
def test_modalities_go_by_their_numbers_and_one_always_stays(numbers: Any, kept: tuple[str, ...]) -> None:
    assert kept_modalities(("acc", "gyro", "mag"), 0.3, numbers) == kept


def test_nothing_is_drawn_where_nothing_can_be_dropped() -> None:
    assert kept_modalities(("acc",), 0.9, Numbers()) == ("acc",)
    assert kept_modalities(("acc", "gyro"), 0.0, Numbers()) == ("acc", "gyro")


@pytest.mark.parametrize("missing", ["mask", "zero-embedding", "zero-input"])
def test_the_encoder_of_a_dropped_modality_takes_no_step(missing: str) -> None:
    # With a probability of almost one a batch keeps one of two modalities; ten samples in one batch.
    training = section({"kind": "adamw", "weight_decay": 0.5}, modality_dropout=0.999999, batch_size=10)
    space = workspace(missing=missing, dropout=0.5)
    result = train(space, training)
    moved = {name for name, values in result.blocks.items() if not np.array_equal(values, space.initial_blocks[name])}
    assert moved in ({"encoder/acc", "fusion", "head"}, {"encoder/gyro", "fusion", "head"})
    assert space.model.blocks["encoder/acc"].training == space.model.blocks["encoder/gyro"].training


def test_without_modality_dropout_no_bit_changes() -> None:
    plain, zero = train(workspace(dropout=0.5), section()), train(workspace(dropout=0.5), section(modality_dropout=0.0))
    for name, values in plain.blocks.items():
        np.testing.assert_array_equal(zero.blocks[name], values)


@pytest.mark.parametrize(
    ("rows", "min_batch_size", "expected"),
    [(9, 1, (9, 3)), (9, 2, (8, 2)), (10, 2, (10, 3)), (8, 4, (8, 2)), (1, 2, (1, 1))],
)
def test_small_batches_are_left_out_unless_there_is_no_other(
    rows: int, min_batch_size: int, expected: tuple[int, int]
) -> None:
    result = train(workspace(), section(min_batch_size=min_batch_size), rows=rows)
    assert (result.num_examples, result.num_steps) == expected
