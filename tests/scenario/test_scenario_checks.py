"""Values that are right in themselves and cannot stand together."""

from __future__ import annotations

from pathlib import Path

import pytest

from blossom_ray.reading.scenario import inspect_scenario
from blossom_ray.scenario.checks import cross_problems

BASE = """\
rounds: 2
data: {dataset: synthetic}
clients:
  - {count: 3, modalities: [acc]}
  - {count: 2, modalities: [acc, gyro], group: b}
model:
  encoders: {acc: {kind: gru}, gyro: {kind: gru}}
training:
  batch_size: 4
"""
UCI_HAR = {"data": {"dataset": "uci-har", "path": "."}}


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(BASE)

    def check(overrides):
        return [
            str(problem).replace(str(path), "a.yaml")
            for problem in inspect_scenario(path, overrides, dict.fromkeys(overrides, "set")).problems
        ]

    return check


def test_the_base_is_right(problems):
    assert problems({}) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"clients.1.modalities": ["acc", "gyro", "gyr"]},
            "set: clients.1.modalities.2 is 'gyr'; "
            "expected a modality with an encoder: acc, gyro; did you mean 'gyro'?",
        ),
        (
            {"training.engine": {"acc": "vectorized", "acc+gyr": "sequential"}},
            "set: training.engine.acc+gyr is not a modality set of the clients; "
            "expected one of acc, acc+gyro; did you mean 'acc+gyro'?",
        ),
        (
            {"data.observed": {"gyr": 0.5}},
            "set: data.observed.gyr is not one; "
            "expected a modality that these clients own: acc, gyro; did you mean 'gyro'?",
        ),
        (
            {"clients.0.observed": {"gyro": 0.5}},
            "set: clients.0.observed.gyro is not one; expected a modality that these clients own: acc",
        ),
        (
            {"clients.1.observed": {"gyro": 0}},
            "set: clients.1.observed.gyro is 0; expected more than 0, or clients without gyro in their modalities",
        ),
        (
            {"data.observed.gyro.train": 0},
            "set: data.observed.gyro.train is 0; expected more than 0, or clients without gyro in their modalities",
        ),
        (
            {"data.observed.gyro": 1.5},
            "set: data.observed.gyro is 1.5; expected a number of at least 0 and at most 1 or a mapping with the keys "
            "train, validation, test, held_out",
        ),
        (
            {"clients.1.observed.gyro.held_out": 0.5},
            "set: clients.1.observed.gyro.held_out is 0.5, while the held-out set is one for all clients; "
            "expected it under data.observed.gyro",
        ),
        (
            {"clients.1.observed.gyro": 0.5, "training.modality_dropout": 0.2},
            "set: training.modality_dropout is 0.2, while observed leaves modalities out of training rows already; "
            "expected 0, or no observed below 1 in training",
        ),
        (
            {"training.engine": {"acc": "vectorized"}},
            "set: training.engine says nothing about acc+gyro; expected an engine for every modality set",
        ),
        (
            {"training.engine": "vectorized", "execution.clients_per_actor": 1},
            "set: execution.clients_per_actor is 1, while training.engine is 'vectorized', which keeps a chunk of "
            "clients in one actor; expected auto or a larger number, or training.engine: sequential",
        ),
        (
            {"model.encoders.mag": {"kind": "gru"}},
            "set: model.encoders.mag is an encoder that no client can train; "
            "expected a modality that clients own: acc, gyro",
        ),
        (
            {"data.modalities.gyra": {}},
            "set: data.modalities.gyra is a modality without an encoder; "
            "expected a modality with an encoder: acc, gyro; did you mean 'gyro'?",
        ),
        (
            {"data.modalities.acc": {"shape": [3]}},
            "set: data.modalities.acc.shape is [3]; expected 2 numbers (time, channels) for the kind sequence",
        ),
        (
            {"data.modalities.acc": {"distinguishable_classes": 7}},
            "set: data.modalities.acc.distinguishable_classes is 7; expected at most 6, the number of classes",
        ),
        (
            {**UCI_HAR, "model.encoders.mag": {"kind": "gru"}, "clients.0.modalities": ["mag"]},
            "set: model.encoders.mag is an encoder of a modality that uci-har does not have; expected one of acc, gyro",
        ),
        (
            {"sharing": {"encoder/*": "shared", "fusion": "shared", "heat": "private", "head": "private"}},
            "set: sharing.heat is not a block of this model; expected one of encoder/*, encoder/acc, encoder/gyro, "
            "fusion, head; did you mean 'head'?",
        ),
        (
            {"sharing": {"encoder/acc": "shared", "fusion": "shared"}},
            "set: sharing says nothing about encoder/gyro, head; expected a scope for every block: "
            "encoder/acc, encoder/gyro, fusion, head (encoder/* stands for every encoder)",
        ),
        (
            {"sharing": {"encoder/*": "shared", "fusion": "group", "head": "group"}},
            "a.yaml:4: clients.0.group is empty, while sharing gives fusion, head the scope group; "
            "expected a label for every group of clients",
        ),
        (
            {"model.encoders.acc.kind": "conv2d"},
            "set: model.encoders.acc.kind is 'conv2d', while acc is a sequence of shape [64, 3]; "
            "expected one of conv1d, conv-gru, gru, mlp, custom",
        ),
        (
            {**UCI_HAR, "model.encoders.gyro.kind": "conv2d"},
            "set: model.encoders.gyro.kind is 'conv2d', while gyro is a sequence of shape [128, 3]; "
            "expected one of conv1d, conv-gru, gru, mlp, custom",
        ),
        (
            {"data.modalities.acc": {"kind": "image"}},
            "a.yaml:7: model.encoders.acc.kind is 'gru', while acc is an image of shape [1, 16, 16]; "
            "expected one of conv2d, mlp, custom",
        ),
        (
            {"data.modalities.acc": {"kind": "vector"}},
            "a.yaml:7: model.encoders.acc.kind is 'gru', while acc is a vector of shape [32]; "
            "expected one of embedding, mlp, custom",
        ),
        (
            {"data.modalities.acc": {"shape": [7, 3]}, "model.encoders.acc.kind": "conv-gru"},
            "set: model.encoders.acc.channels has so many layers that nothing is left of acc's shape [7, 3]; "
            "expected fewer layers or larger samples",
        ),
        (
            {
                "data.modalities.acc": {"kind": "image", "shape": [1, 16, 4]},
                "model.encoders.acc": {"kind": "conv2d", "channels": [2, 2, 2]},
            },
            "set: model.encoders.acc.channels has so many layers that nothing is left of acc's shape [1, 16, 4]; "
            "expected fewer layers or larger samples",
        ),
        (
            {
                "data.modalities.acc": {"kind": "image"},
                "model.encoders.acc": {"kind": "conv2d", "channels": [2, 2], "kernel_size": [3, 3, 3]},
            },
            "set: model.encoders.acc.kernel_size is [3, 3, 3]; expected one number, or 2 of them, as many as channels",
        ),
        (
            {"server.clients_per_round": 6},
            "set: server.clients_per_round is 6; expected at most 5, the number of clients",
        ),
        (
            {"training.optimizer.nesterov": True},
            "set: training.optimizer.nesterov is true, while momentum is 0; expected false, or a momentum above 0",
        ),
        (
            {"training.schedule": {"kind": "cosine", "min_lr": 0.1}},
            "set: training.schedule.min_lr is 0.1; expected at most 0.05, the learning rate of the optimizer",
        ),
        (
            {"data.dataset": "uci-har"},
            "set: data.path is null; expected the official 'UCI HAR Dataset.zip' or its unpacked folder; "
            "get it from the UCI Machine Learning Repository, data set 240 (doi:10.24432/C54S4K)",
        ),
        (
            {"data.dataset": "uci-har", "data.path": "no/where"},
            "set: data.path is 'no/where', which does not exist; "
            "expected the official 'UCI HAR Dataset.zip' or its unpacked folder",
        ),
        (
            {"data.split": "subject"},
            "set: data.split is 'subject', while data.subjects is null; "
            "expected a number of subjects in data.subjects, or another choice",
        ),
        (
            {"data.partition.kind": "subject"},
            "set: data.partition.kind is 'subject', while data.subjects is null; "
            "expected a number of subjects in data.subjects, or another choice",
        ),
        (
            {"data.partition.kind": "subject", "data.subjects": 4},
            "set: data.partition.kind is 'subject', while 4 subjects stand against 5 clients; "
            "expected at least 1 per client",
        ),
        (
            {"data.partition.kind": "subject", "data.subjects": 9, "data.split": "subject"},
            "set: data.partition.kind is 'subject', while 9 subjects stand against 5 clients; "
            "expected at least 2 per client, for data.split: subject puts whole subjects into each split",
        ),
        (
            {**UCI_HAR, "data.partition.kind": "subject", "clients.0.count": 20},
            "set: data.partition.kind is 'subject', while 21 subjects stand against 22 clients; "
            "expected at least 1 per client",
        ),
        ({"data.samples": 9}, "set: data.samples is 9; expected at least 10, 2 for each of 5 clients"),
        (
            {"data.samples": 14, "data.validation_fraction": 0.1},
            "set: data.samples is 14; expected at least 15, 3 for each of 5 clients",
        ),
        (
            {"data.test_fraction": 0.6, "data.validation_fraction": 0.4},
            "set: data.validation_fraction is 0.4, which beside data.test_fraction 0.6 leaves no samples to train on; "
            "expected two fractions that sum to less than 1",
        ),
        (
            {"data.validation_fraction": 0.1, "data.draws": "reference"},
            "set: data.validation_fraction is 0.1, while data.draws is 'reference', which has no validation split; "
            "expected 0, or data.draws: seed",
        ),
        (
            {"data.samples": 49, "data.partition": {"kind": "dirichlet"}},
            "set: data.partition.min_samples is 10 for each of 5 clients; expected at most 9, since data.samples is 49",
        ),
        (
            {"training.alternate": {}, "sharing": "full-model"},
            "set: training.alternate alternates between private blocks and others, while no block is private; "
            "expected a sharing scheme with private blocks and others, such as private-head, or null",
        ),
        (
            {"training.alternate": {}, "sharing": "local"},
            "set: training.alternate alternates between private blocks and others, while every block is private; "
            "expected a sharing scheme with private blocks and others, such as private-head, or null",
        ),
        (
            {"evaluation": {"every": 4, "fine_tune": {"every": 6}}},
            "set: evaluation.fine_tune.every is 6; expected a multiple of 4, since evaluation.every is 4",
        ),
        (
            {
                "evaluation.fine_tune.blocks": "head",
                "sharing": {"encoder/*": "shared", "fusion": "shared", "head": "frozen"},
            },
            "set: evaluation.fine_tune.blocks is 'head', while sharing freezes what it would tune; "
            "expected 'all', or blocks that are not frozen",
        ),
        (
            {"training.engine": "vectorized", "training.modality_dropout": 0.25},
            "set: training.engine asks for 'vectorized', while training.modality_dropout is 0.25; "
            "expected 'sequential' or 'auto', or a modality_dropout of 0",
        ),
        (
            {"sharing": "central", "training.proximal_mu": 0.1},
            "set: training.proximal_mu is 0.1, while sharing is 'central'; expected 0",
        ),
        (
            {"sharing": "central", "server.optimizer": {"kind": "fedadam"}},
            "set: server.optimizer is 'fedadam', while sharing is 'central'; "
            "expected 'fedavg' with a learning rate of 1",
        ),
        (
            {"sharing": "central", "server.clients_per_round": 2},
            "set: server.clients_per_round is 2, while sharing is 'central'; expected 1.0",
        ),
        (
            {"sharing": "central", "model.norm_statistics": "local"},
            "set: model.norm_statistics is 'local', while sharing is 'central'; expected 'shared'",
        ),
        (
            {"sharing": "central", "model.norm_statistics": "same-modalities"},
            "set: model.norm_statistics is 'same-modalities', while sharing is 'central'; expected 'shared'",
        ),
        (
            {"model.fusion": {"kind": "mean", "dim": 1, "norm": "layer"}},
            "set: model.fusion.dim is 1, while norm is 'layer'; expected at least 2 features, or another norm",
        ),
        (
            {"model.head": {"kind": "mlp", "hidden": [8, 1], "norm": "group"}},
            "set: model.head.hidden.1 is 1, while norm is 'group'; expected at least 2 features, or another norm",
        ),
        (
            {"sharing": "central", "model.missing": "prototype"},
            "set: model.missing is 'prototype', while sharing is 'central'; expected another rule",
        ),
        (
            {"task": "regression", "server.weighting": "entropy"},
            "set: server.weighting is 'entropy', while the task is 'regression', which has no probabilities of "
            "classes; expected 'samples' or 'uniform'",
        ),
        (
            {"model.missing": "prototype", "training.engine": "vectorized", "sharing": "full-model"},
            "set: training.engine asks for 'vectorized', while model.missing is 'prototype'; "
            "expected 'sequential' or 'auto'",
        ),
        (
            {"model.missing": "prototype", "training.modality_dropout": 0.5, "sharing": "full-model"},
            "set: training.modality_dropout is 0.5, while model.missing is 'prototype'; "
            "expected 0: a client is not sent the prototypes of its own modalities",
        ),
        (
            {"model.missing": "prototype", "sharing": "local"},
            "set: model.missing is 'prototype', while encoder/gyro has the scope private, so its copies embed "
            "differently; expected shared or frozen encoders, or another rule",
        ),
    ],
)
def test_what_does_not_fit_together(problems, overrides, message):
    assert problems(overrides) == [message]


@pytest.mark.parametrize(
    "overrides",
    [
        {"server.clients_per_round": 5},
        {"data.samples": 10},
        {"data.samples": 50, "data.partition": {"kind": "quantity"}},
        {"data.partition.kind": "subject", "data.subjects": 5},
        {"data.modalities.acc": {"shape": [8, 3]}, "model.encoders.acc.kind": "conv-gru"},
        {"training.schedule": {"kind": "cosine", "min_lr": 0.05}},
        {"sharing": {"encoder/*": "group", "fusion": "group", "head": "local"}, "clients.0.group": "a"}
        | {"sharing.head": "private"},
        {"sharing": {"encoder/gyro": "group", "encoder/acc": "shared", "fusion": "shared", "head": "private"}},
        {**UCI_HAR, "data.partition.kind": "subject", "clients.0.count": 19},
    ],
)
def test_what_just_fits(problems, overrides):
    assert problems(overrides) == []


def test_checks_run_on_the_sections_that_are_right(problems):
    found = problems({"rounds": 0, "server.clients_per_round": 9, "model.missing": "nothing"})
    assert [text.split(";")[0] for text in found] == [
        "set: rounds is 0",
        "set: model.missing is 'nothing'",
        "set: server.clients_per_round is 9",
    ]
    assert cross_problems({}) == []


@pytest.mark.data
def test_the_real_uci_har_path_is_accepted(problems):
    archive = Path(__file__).parents[3] / "shared" / "data" / "UCI-HAR" / "UCI HAR Dataset.zip"
    if not archive.exists():
        pytest.skip("../shared/data/UCI-HAR is not there")
    assert problems({"data": {"dataset": "uci-har", "path": str(archive)}}) == []


def test_known_shapes_agree_with_the_data_sources():
    from data_sets import synthetic_dataset

    from blossom_ray.data.sets.synthetic import SyntheticData, SyntheticModality

    data = SyntheticData(
        dataset="synthetic",
        samples=4,
        held_out_samples=0,
        modalities={"b": SyntheticModality(kind="image"), "c": SyntheticModality(kind="vector")},
    )
    dataset = synthetic_dataset(data, ("a", "b", "c"), 0)
    assert dataset.input_shapes == data.input_shapes(("a", "b", "c"))


@pytest.mark.parametrize("path", ["x" * 5000, "~nobody-has-this-name/x", "a\0b"])
def test_a_path_that_no_file_can_have(problems, path):
    (message,) = problems({"data": {"dataset": "uci-har", "path": path}})
    assert "which does not exist" in message


def test_a_path_in_the_home(problems, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "har").mkdir()
    assert problems({"data": {"dataset": "uci-har", "path": "~/har"}}) == []
