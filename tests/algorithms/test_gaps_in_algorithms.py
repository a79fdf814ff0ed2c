"""What algorithms make of samples that lack a modality: the same on both engines, right where samples are counted."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import torch
from plain_loops import Simulated, simulated

from blossom_ray import Scenario, from_arrays
from blossom_ray.algorithms.flism import Flism
from blossom_ray.algorithms.mfedmc import MFedMC
from blossom_ray.algorithms.options import AlgorithmOption, CustomAlgorithm, FederatedAveraging
from blossom_ray.clients.workspace import client_workspace
from blossom_ray.data.sets.base import Dataset

pytestmark = pytest.mark.usefixtures("one_thread")

CHOOSES = ("ifca", "mfedmc", "oort", "harmony")
"""What they choose by is measured, and can fall otherwise on the other engine."""
KINDS = [
    get_args(each.model_fields["kind"].annotation)[0]
    for each in get_args(get_args(AlgorithmOption)[0])
    if each not in (FederatedAveraging, CustomAlgorithm)
]


def data() -> Dataset:
    """Three clients with two modalities; a third of the samples lacks gyro, and some others acc."""
    draw = np.random.default_rng(1)
    clients = np.repeat([0, 1, 2], 16)
    splits = np.where(np.arange(48) % 8 == 7, "test", "train")
    inputs = {name: draw.normal(size=(48, size)) for name, size in (("acc", 3), ("gyro", 2))}
    gyro = np.arange(48) % 3 > 0
    observed = {"gyro": gyro, "acc": ~gyro | (draw.random(48) < 0.6)}
    return from_arrays(inputs, draw.integers(0, 3, 48), clients=clients, splits=splits, observed=observed)


def run(algorithm: dict[str, Any], **changes: Any) -> Simulated:
    encoder = {"kind": "mlp", "hidden": [4], "dim": 3}
    tree = {
        "rounds": 2,
        "data": {"dataset": "custom", "factory": data, "partition": {"kind": "given"}},
        "clients": [{"count": 3, "modalities": ["acc", "gyro"]}],
        "algorithm": algorithm,
        "model": {
            "encoders": {"acc": encoder, "gyro": encoder},
            "fusion": {"kind": "attention", "dim": 4},
            "head": {"kind": "linear"},
        },
        "sharing": "full-model",
        "training": {"batch_size": 4, "optimizer": {"kind": "sgd", "lr": 0.05}},
        "execution": {"runtime": "local"},
    }
    return simulated(Scenario.model_validate(tree).override(changes))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in CHOOSES])
def test_both_engines_agree(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        apart, stacked = (run({"kind": kind}, **{"training.engine": engine}) for engine in ("sequential", "vectorized"))
    assert "one after the other" not in caplog.text
    assert apart.server.blocks.keys() == stacked.server.blocks.keys()
    for instance, block in apart.server.blocks.items():
        expected = block.sent.values
        np.testing.assert_allclose(
            stacked.server.blocks[instance].sent.values, expected, rtol=1e-3, atol=1e-4, err_msg=str(instance)
        )
    scored = zip(stacked.records[-1].evaluation, apart.records[-1].evaluation, strict=True)
    assert all(one.loss == pytest.approx(other.loss, rel=1e-3) for one, other in scored)


def test_prototypes_of_classes_are_means_over_the_samples_that_have_the_modality() -> None:
    """A zero that stands for an absent embedding is no sample: with one, the means would be nearer to zero."""
    found = run({"kind": "pmcmfl", "weight": 0.0}, rounds=1, sharing="local")
    samples, sums = data(), np.zeros((3, 4))
    for profile in found.preparation.population.profiles:
        space = client_workspace(found.preparation.plan, profile)
        space.load({**space.initial_blocks, **found.kept[profile.index]["model"]}, space.initial_state)
        own = (samples.clients == profile.index) & (np.arange(48) % 8 < 7) & samples.observed["gyro"]
        with torch.inference_mode():
            embeddings = space.model.eval().blocks["encoder/gyro"](torch.from_numpy(samples.inputs["gyro"][own]))
        for label, embedding in zip(samples.labels[own], embeddings.numpy(), strict=True):
            sums[label] += [*embedding, 1]
    np.testing.assert_allclose(found.value("", copy="prototypes of gyro"), sums / sums[:, -1:], rtol=1e-4)


class TwoSamples:
    """One with both modalities, one with gyro alone; whatever is looked at gives each of two classes 1/2."""

    present: ClassVar = {"acc": torch.tensor([1.0, 0.0]), "gyro": torch.ones(2)}
    targets, outputs, losses = torch.tensor([0, 1]), torch.zeros(2, 2), torch.full((2,), 2.0)

    def through(self, modalities: Any) -> Any:
        assert set(modalities) <= self.present.keys()
        return self


def test_mfedmc_ranks_by_the_samples_that_have_a_modality() -> None:
    """What an encoder's own loss is divided by, and what a subset is worth to a sample that has none of it."""
    after = MFedMC(kind="mfedmc").after(TwoSamples())
    assert after["samples of encoder/acc"].tolist() == [1.0, 0.0]
    assert after["loss of encoder/acc"].tolist() == [2.0, 0.0]
    # Of the second sample, which has gyro alone, all of p = 1/2 is gyro's, and nothing acc's.
    assert after["encoder/acc"][1] == 0
    assert after["encoder/gyro"][1] == pytest.approx(0.5)


def test_a_view_that_a_sample_does_not_have_is_nobodys_negative() -> None:
    batch = SimpleNamespace(representation=torch.eye(3, 4), targets=torch.tensor([0, 0, 1]), real=torch.ones(3))
    has_view, view = torch.tensor([1.0, 0.0, 1.0]), torch.ones(3, 4)
    other = view.clone()
    other[1] = torch.tensor([-5.0, 3.0, 0.0, 7.0])
    one, two = (Flism(kind="flism")._contrast(batch, each, has_view) for each in (view, other))
    np.testing.assert_array_equal(one[[0, 2]], two[[0, 2]])
