"""`training.transform`: what becomes of batches before clients train on them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from blossom_ray import Scenario, simulate
from blossom_ray.clients.job import ClientTask, LocalJob, LocalPass
from blossom_ray.clients.local_training import SequentialEngine
from blossom_ray.clients.options import Training
from blossom_ray.clients.stacked.engine import StackedEngine
from blossom_ray.clients.transforms import Transformation, build_transforms
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.seeding import Purpose, torch_seed
from blossom_ray.errors import InputError, ScenarioError
from blossom_ray.models.options import Model
from blossom_ray.tasks.learned import one_task

SEQUENCES = torch.arange(1.0, 4 * 10 * 2 + 1).view(4, 10, 2)


def build(tree: dict[str, Any], shape: tuple[int, ...]) -> Transformation:
    section = Training.model_validate({"transform": {"acc": tree}}).transform
    return build_transforms(section, {"acc": shape}, ("acc",))["acc"]


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_kind_does_what_its_formula_says() -> None:
    noisy = build({"kind": "noise", "std": 0.5}, (10, 2))(SEQUENCES, draw())
    assert torch.equal(noisy, SEQUENCES + 0.5 * torch.randn(4, 10, 2, generator=draw()))
    scaled = build({"kind": "scale", "std": 0.5}, (10, 2))(SEQUENCES, draw())
    assert torch.equal(scaled, SEQUENCES * (1 + 0.5 * torch.randn(4, 1, 1, generator=draw())))
    images = torch.arange(24.0).view(4, 1, 2, 3)
    assert torch.equal(build({"kind": "flip", "probability": 1.0}, (1, 2, 3))(images, draw()), images.flip(3))
    some = build({"kind": "flip"}, (1, 2, 3))(images.repeat(100, 1, 1, 1), draw()).view(100, 4, 1, 2, 3)
    is_flipped = (some == images.flip(3)).all(dim=4).all(dim=3).all(dim=2)
    assert ((some == images).all(dim=4).all(dim=3).all(dim=2) ^ is_flipped).all()
    assert 0.4 < is_flipped.float().mean() < 0.6


def test_masks_of_time_have_every_length_and_place() -> None:
    many = build({"kind": "time-mask", "fraction": 0.3}, (10, 2))(torch.ones(4000, 10, 2), draw())
    masked = many[:, :, 0] == 0
    assert torch.equal(masked, many[:, :, 1] == 0)
    lengths = masked.sum(dim=1)
    np.testing.assert_allclose([(lengths == n).float().mean() for n in range(4)], 0.25, atol=0.03)
    assert (masked.int().diff(dim=1) == 1).sum(dim=1).max() == 1, "one stretch"
    of_one = masked[lengths == 1].float().mean(dim=0)
    np.testing.assert_allclose(of_one, 0.1, atol=0.03)


MODEL = {
    "encoders": {name: {"kind": "mlp", "hidden": [], "dim": 4} for name in ("acc", "camera")},
    "fusion": {"kind": "concat", "dim": 6},
    "head": {"kind": "linear"},
}
SHAPES = {"acc": (6, 2), "camera": (1, 3, 3)}


class Rotated:
    """Own transform: works in place, and gives a view."""

    def __call__(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        batch += torch.rand(len(batch), 1, 1, 1, generator=generator)
        return batch.transpose(2, 3)


@pytest.mark.parametrize("camera", [{"kind": "flip"}, {"kind": "custom", "factory": Rotated}], ids=["built in", "own"])
def test_both_engines_train_on_the_same_inputs(camera: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training.model_validate({"batch_size": 4, "transform": {"camera": camera, "acc": {"kind": "noise"}}})
    workspace = Workspace(
        Model.model_validate(MODEL), SHAPES, one_task("classification", 3), owned=tuple(SHAPES), seed=0,
        transforms=training.transform,
    )  # fmt: skip
    tasks = []
    for client, size in enumerate((9, 6, 1)):
        rng = np.random.default_rng(client)
        inputs = {name: rng.normal(size=(size, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
        for values in inputs.values():
            values.flags.writeable = False
        tasks.append(ClientTask(client, workspace.initial_blocks, inputs, rng.integers(0, 3, size)))
    job = LocalJob(training, 0.1, (LocalPass(2, frozenset(workspace.trained)),), seed=0, round_index=1)
    seen: list[dict[str, Tensor]] = []
    forward = type(workspace.model).forward

    def spy(model: nn.Module, inputs: dict[str, Tensor], *present: Any) -> Tensor:
        seen.append({name: values.clone() for name, values in inputs.items()})
        outputs: Tensor = forward(model, inputs, *present)
        return outputs

    monkeypatch.setattr(type(workspace.model), "forward", spy)
    expected = SequentialEngine(workspace).train(tasks, job)
    apart, seen[:] = list(seen), []
    found = StackedEngine(workspace).train(tasks, job)
    assert (len(apart), len(seen)) == (2 * (3 + 2 + 1), 2 * 3)
    # Client by client: the first has three batches an epoch (4, 4, 1), the second two (4, 2), the third one.
    own = [apart[0:6], apart[6:10], apart[10:12]]
    for step, batch in enumerate(seen):
        active = [batches[step] for batches in own if step < len(batches)]
        for name, values in batch.items():
            rows = values.unflatten(0, (len(active), -1))
            for client, one in enumerate(active):
                assert torch.equal(rows[client, : len(one[name])], one[name]), (step, name, client)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.blocks["head"], other.blocks["head"], rtol=1e-4, atol=1e-6)
    # What a client draws follows from seed, round and client, modality after modality by name.
    generator = draw(torch_seed(0, Purpose.TRANSFORM, 1, 2))
    given = torch.from_numpy(tasks[2].inputs["acc"])
    assert torch.equal(own[2][0]["acc"], given + 0.05 * torch.randn(1, 6, 2, generator=generator))


@pytest.mark.parametrize("sharing", ["full-model", "central"])
def test_training_and_fine_tuning_are_transformed_and_scoring_is_not(small_scenario: Scenario, sharing: str) -> None:
    changes = {"sharing": sharing, "rounds": 1, "evaluation.fine_tune": {"epochs": 1}}
    plain, noisy = (
        simulate(small_scenario.override({**changes, "training.transform": transform}))
        for transform in ({}, {"acc": {"kind": "noise", "std": 3.0}, "gyro": {"kind": "scale"}})
    )
    assert noisy.rounds["loss"][0] == plain.rounds["loss"][0]
    for column in ("train_loss", "fine_tuned/loss"):
        assert noisy.final[column] != plain.final[column]
    frozen = {"encoder/*": "frozen", "fusion": "frozen", "head": "frozen"}
    if sharing != "central":
        still = simulate(small_scenario.override({"sharing": frozen, "training.transform": {"acc": {"kind": "noise"}}}))
        assert still.rounds["loss"].n_unique() == 1


def test_dropped_modalities_are_left_alone(small_scenario: Scenario) -> None:
    changes = {"training.transform": {"acc": {"kind": "noise"}, "gyro": {"kind": "noise"}}, "rounds": 1}
    run = simulate(small_scenario.override({**changes, "training.modality_dropout": 0.5}))
    assert np.isfinite(run.final["train_loss"])


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"acd": {"kind": "noise"}}, "acd is of a modality without an encoder; expected a modality with an "
         "encoder: acc, gyro; did you mean 'acc'?"),
        ({"acc": {"kind": "nois"}}, "acc.kind is 'nois'; expected one of noise, scale, flip, time-mask, custom; did "),
        ({"acc": {"kind": "flip"}}, "acc.kind is 'flip', while the samples of acc have shape [8, 2]; expected 'flip' "
         "for an image"),
        ({"acc": {"kind": "noise", "std": 0}}, "acc.std is 0; expected a number above 0"),
        ({"acc": {"kind": "noise", "sdt": 1}}, "acc.sdt is not a known key; expected one of kind, std; did you mean"),
        ({"acc": {"kind": "custom", "factory": "no_such_module:f"}}, "acc.factory"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(small_scenario: Scenario, transform: dict[str, Any], message: str) -> None:
    with pytest.raises((ScenarioError, InputError)) as raised:
        simulate(small_scenario.override({"training.transform": transform}))
    assert f"training.transform.{message}" in str(raised.value)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, _: x.mean(dim=0), "the batch becomes torch.float32 of shape (8, 2) on cpu; expected a "),
        (lambda x, _: x.numpy(), "the batch becomes ndarray; expected a torch.float32 tensor of shape (2, 8, 2)"),
        (lambda x, _: x + torch.randn(x.shape), "draws other numbers with the same seed; expected the generator "),
        (lambda x, _: x + np.random.normal(), "draws other numbers with the same seed; expected the generator "),
        (lambda x, _: x.no_such_method(), "raised on a batch of shape (2, 8, 2): AttributeError"),
    ],
)  # fmt: skip
def test_an_own_transform_is_tried(
    small_scenario: Scenario, function: Callable[[Tensor, torch.Generator], object], message: str
) -> None:
    own = {"kind": "custom", "factory": lambda: function}
    with pytest.raises(InputError) as raised:
        simulate(small_scenario.override({"training.transform": {"acc": own}}))
    assert "training.transform.acc (" in str(raised.value)
    assert message in str(raised.value)
