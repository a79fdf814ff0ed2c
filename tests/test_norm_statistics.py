"""Running statistics by modality set: what is averaged over whom, against numbers by hand and a plain PyTorch loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from blossom_ray import Run, Scenario, simulate
from blossom_ray.checkpoint import CheckpointStore
from blossom_ray.core.seeding import Purpose, generator
from blossom_ray.models.build import build_client_model
from blossom_ray.rounds import held_out_clients
from blossom_ray.runs.session import resume_run
from blossom_ray.runtime.preparation import Preparation, prepare

BATCH_NORM: dict[str, Any] = {"kind": "mlp", "hidden": [8], "norm": "batch", "dropout": 0.1}
BY_SET = "same-modalities"


@pytest.fixture
def scenario(small_scenario: Scenario) -> Scenario:
    """Two clients with acc, one with gyro, two with both; a head with batch normalisation that all of them share."""
    changes = {"sharing": "full-model", "model.head": BATCH_NORM, "model.norm_statistics": BY_SET, "rounds": 2}
    return small_scenario.override(changes)


class Counting(nn.Linear):
    """A head whose running statistic is the number of training samples that it has seen."""

    running_samples: Tensor

    def __init__(self, input_dim: int, num_outputs: int) -> None:
        super().__init__(input_dim, num_outputs)
        self.register_buffer("running_samples", torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self.running_samples += len(features)
        return super().forward(features)


def server_values(folder: Path, round_index: int) -> dict[str, np.ndarray]:
    """The server's block instances after a round, from its checkpoint."""
    checkpoint, notes = CheckpointStore(folder / "checkpoints", keep=100).newest([round_index])
    assert checkpoint is not None, notes
    tensors = load_file(checkpoint.folder / "server.safetensors")
    return {
        f"{entry['name']}[{entry['key']}]" if entry["key"] else entry["name"]: tensors[f"{number}/values"]
        for number, entry in enumerate(checkpoint.index["blocks"])
    }


def kept(scenario: Scenario, folder: Path) -> Run:
    """A run with a checkpoint of every round."""
    run = simulate(scenario.override({"checkpoint.every": 1, "checkpoint.keep": 100}), out=folder)
    assert run.path is not None
    return run


def test_a_set_averages_over_its_own_contributors_and_keeps_its_value_without_any(
    scenario: Scenario, tmp_path: Path
) -> None:
    head = {"kind": "custom", "factory": Counting}
    # Shards of different sizes, so that weights matter, and two of five clients a round.
    changes = {"data.partition": {"kind": "quantity"}, "server.clients_per_round": 2, "rounds": 4, "model.head": head}
    run = kept(scenario.override(changes), tmp_path)
    assert run.path is not None
    sets, expected, idle = ["acc", "gyro", "acc+gyro"], dict.fromkeys(["acc", "gyro", "acc+gyro"], 0.0), 0
    for round_index in range(1, 5):
        cohort = run.clients.filter((pl.col("round") == round_index) & pl.col("num_train_examples").is_not_null())
        values = server_values(run.path, round_index)
        for name in sets:
            sizes = cohort.filter(pl.col("modalities") == name)["num_train_examples"].to_numpy()
            if len(sizes):
                # Each client has the average that it was sent plus the samples that it has seen, and they weigh it.
                expected[name] = float(np.sum(sizes * (expected[name] + sizes)) / np.sum(sizes))
            idle += len(sizes) == 0
            found = values[f"statistics/head[{name}]"]
            assert found.shape == (1,)
            assert found[0] == pytest.approx(expected[name], rel=1e-6)
        assert values["head"].shape == (8 * 3 + 3,)
    assert 0 < idle < 12


def flat(module: nn.Module) -> np.ndarray:
    return np.concatenate([parameter.detach().numpy().ravel() for parameter in module.parameters()])


def statistics(module: nn.Module) -> np.ndarray:
    buffers = (buffer for name, buffer in module.named_buffers() if "running" in name)
    return np.concatenate([buffer.numpy().ravel() for buffer in buffers])


class PlainFederation:
    """Federated averaging in plain PyTorch: modules, `torch.optim.SGD`, state dicts, and a dict of sums."""

    def __init__(self, preparation: Preparation, scenario: Scenario) -> None:
        self.preparation, self.scenario = preparation, scenario
        self.profiles = preparation.population.profiles
        self.models = {profile.modalities: self.model(profile.modalities) for profile in self.profiles}

    def model(self, owned: tuple[str, ...]) -> Any:
        plan = self.preparation.plan
        return build_client_model(plan.model, plan.input_shapes[""], plan.tasks[""].num_outputs, owned, plan.seed)

    def samples(self, client: int, split: str) -> tuple[dict[str, Tensor], Tensor]:
        with self.preparation.open_shards() as shards:
            inputs, labels, _ = getattr(shards.shard(client), split)()
            return {name: torch.tensor(values) for name, values in inputs.items()}, torch.tensor(labels)

    def trained(self, client: int, round_index: int) -> tuple[Any, int]:
        model, training = self.model(self.profiles[client].modalities), self.scenario.training
        for name, block in model.blocks.items():
            block.load_state_dict(self.models[self.profiles[client].modalities].blocks[name].state_dict())
        inputs, labels = self.samples(client, "train")
        optimizer = torch.optim.SGD(model.parameters(), lr=training.optimizer.lr, momentum=0.9)
        order = generator(self.scenario.seed, Purpose.TRAINING, round_index, client).permutation(len(labels))
        model.train()
        for start in range(0, len(order), training.batch_size):
            rows = torch.tensor(order[start : start + training.batch_size])
            optimizer.zero_grad()
            F.cross_entropy(model({name: x[rows] for name, x in inputs.items()}), labels[rows]).backward()
            optimizer.step()
        return model, len(labels)

    def round(self, round_index: int) -> None:
        results = {profile: self.trained(profile.index, round_index) for profile in self.profiles}
        for owned, model in self.models.items():
            for name, block in model.blocks.items():
                holders = [(p, m.blocks[name], n) for p, (m, n) in results.items() if name in m.blocks]
                own = [(b, n) for p, b, n in holders if p.modalities == owned]
                state = {}
                for key, value in block.state_dict().items():
                    of_set = "running" in key
                    pairs = own if of_set else [(b, n) for _, b, n in holders]
                    if value.is_floating_point():
                        total = sum(n * b.state_dict()[key].double() for b, n in pairs)
                        state[key] = (total / sum(n for _, n in pairs)).float()
                    else:
                        state[key] = value
                block.load_state_dict(state)

    def loss(self, client: int) -> float:
        inputs, labels = self.samples(client, "test")
        model = self.models[self.profiles[client].modalities].eval()
        with torch.no_grad():
            return float(F.cross_entropy(model(inputs), labels))


def test_a_plain_loop_has_the_same_parameters_statistics_and_scores(scenario: Scenario, tmp_path: Path) -> None:
    images = {"acc": {"shape": (1, 8, 8), "kind": "image"}, "gyro": {"shape": (1, 8, 8), "kind": "image"}}
    encoder = {"kind": "conv2d", "channels": [4], "dim": 6}
    changes = {
        "data.modalities": images,
        "model.encoders": {"acc": encoder, "gyro": encoder},
        "model.head": {**BATCH_NORM, "dropout": 0.0},
        "model.fusion": {"kind": "mean", "dim": 8, "norm": "batch"},
    }
    scenario = scenario.override(changes)
    run = kept(scenario, tmp_path / "runs")
    assert run.path is not None
    (tmp_path / "shards").mkdir()
    plain = PlainFederation(prepare(scenario, tmp_path / "shards"), scenario)
    for round_index in range(1, 3):
        plain.round(round_index)
        values = server_values(run.path, round_index)
        expected: dict[str, np.ndarray] = {}
        for owned, model in plain.models.items():
            for name, block in model.blocks.items():
                expected[name] = flat(block)
                expected[f"statistics/{name}[{'+'.join(owned)}]"] = statistics(block)
        assert values.keys() == expected.keys()
        for name, vector in expected.items():
            np.testing.assert_allclose(values[name], vector, rtol=2e-4, atol=2e-5, err_msg=f"{round_index} {name}")
        losses = run.clients.filter(pl.col("round") == round_index).sort("client")["loss"].to_list()
        assert losses == pytest.approx([plain.loss(client) for client in range(5)], rel=1e-3)


def test_training_does_not_ask_whose_the_statistics_are(scenario: Scenario, tmp_path: Path) -> None:
    names = ("local", BY_SET, "shared")
    runs = [kept(scenario.override({"model.norm_statistics": name}), tmp_path / name) for name in names]
    columns = ["round", "client", "train_loss", "num_train_examples"]
    expected, *others = (run.clients.select(columns) for run in runs)
    assert all(other.equals(expected) for other in others)
    parameters, *others_values = (server_values(run.path, 2) for run in runs if run.path is not None)
    for values in others_values:
        for name, vector in parameters.items():
            assert values[name][: vector.size].tobytes() == vector.tobytes(), name
    scores = [run.clients.filter(pl.col("round") == 2)["loss"].to_list() for run in runs]
    assert len({tuple(losses) for losses in scores}) == 3


def test_with_one_modality_set_all_clients_are_averaged_as_ever(scenario: Scenario) -> None:
    one_set = scenario.override({"clients": [{"count": 3, "modalities": ["acc", "gyro"]}]})
    shared = simulate(one_set.override({"model.norm_statistics": "shared"}))
    by_set = simulate(one_set)
    assert by_set.manifest["digest"] == shared.manifest["digest"]
    assert by_set.blocks.drop_nulls().equals(shared.blocks.drop_nulls())


def test_the_tables_count_statistics_by_set(scenario: Scenario) -> None:
    run = simulate(scenario)
    blocks = run.blocks.filter((pl.col("round") == 1) & pl.col("block").is_in(["head", "statistics/head"]))
    columns = ["block", "scope", "key", "contributors", "bytes_down", "bytes_up", "update_norm"]
    head, *sets = blocks.select(columns).rows()
    parameters = 8 * 8 + 8 + 8 + 8 + 8 * 3 + 3
    assert head[:-1] == ("head", "shared", "", 5, 5 * 4 * parameters, 5 * 4 * parameters)
    # Eight means and eight variances of four bytes; everyone fetches the new ones for evaluation.
    assert sets == [
        ("statistics/head", "same-modalities", "acc", 2, 128, 128, 0.0),
        ("statistics/head", "same-modalities", "acc+gyro", 2, 128, 128, 0.0),
        ("statistics/head", "same-modalities", "gyro", 1, 64, 64, 0.0),
    ]
    drift = run.blocks.filter(pl.col("block") == "statistics/head")["client_drift"]
    assert drift.null_count() == drift.len()
    shared = simulate(scenario.override({"model.norm_statistics": "shared"}))
    for name in ("bytes_up", "bytes_down"):
        assert run.rounds[name].to_list() == shared.rounds[name].to_list()
    assert run.manifest["notes"] == []


def test_blocks_that_sets_do_not_share_keep_their_statistics_inside(scenario: Scenario) -> None:
    scheme = {"encoder/*": "shared", "fusion": "shared", "head": "same-modalities"}
    for sharing in (scheme, "private-head", "local"):
        runs = [
            simulate(scenario.override({"sharing": sharing, "model.norm_statistics": name}))
            for name in (BY_SET, "shared")
        ]
        assert runs[0].manifest["digest"] == runs[1].manifest["digest"]


def test_groups_have_statistics_of_their_own(scenario: Scenario) -> None:
    scheme = {"encoder/*": "shared", "fusion": "shared", "head": "group"}
    groups = {"clients.0.group": "a", "clients.1.group": "a", "clients.2.group": "b"}
    run = simulate(scenario.override({"sharing": scheme, **groups}))
    rows = run.blocks.filter((pl.col("round") == 1) & (pl.col("block") == "statistics/head"))
    assert rows.select("scope", "key", "contributors").rows() == [
        ("group", "a/acc", 2),
        ("group", "a/gyro", 1),
        ("group", "b/acc+gyro", 2),
    ]


def test_a_set_has_no_statistics_of_encoders_that_it_does_not_train(scenario: Scenario) -> None:
    images = {"acc": {"shape": (1, 8, 8), "kind": "image"}, "gyro": {"shape": (1, 8, 8), "kind": "image"}}
    encoder = {"kind": "conv2d", "channels": [4], "dim": 6}
    changes = {"data.modalities": images, "model.encoders": {"acc": encoder, "gyro": encoder}}
    run = simulate(scenario.override({**changes, "model.missing": "zero-input"}))
    rows = run.blocks.filter((pl.col("round") > 0) & (pl.col("block") == "statistics/encoder/gyro"))
    assert rows.group_by("key").agg(pl.col("contributors").sum()).sort("key").rows() == [
        ("acc", 0),
        ("acc+gyro", 4),
        ("gyro", 2),
    ]


def test_prototypes_are_one_for_all(scenario: Scenario) -> None:
    more = {"data.modalities.mag": {"shape": (8, 2)}, "model.encoders.mag": {"kind": "mlp", "dim": 6}}
    clients = [{"count": 1, "modalities": [name]} for name in ("acc", "gyro", "mag")]
    run = simulate(scenario.override({**more, "clients": clients, "model.missing": "prototype", "rounds": 1}))
    # Each prototype is there for two modality sets, and measured by the third.
    prototypes = run.blocks.filter((pl.col("round") == 1) & pl.col("block").str.contains("prototype"))
    assert prototypes.select("block", "key", "contributors").rows() == [
        (f"prototype/{name}", "", 1) for name in ("acc", "gyro", "mag")
    ]


def test_one_client_of_each_set_scores_the_held_out_set(scenario: Scenario, tmp_path: Path) -> None:
    found = {}
    for name in (BY_SET, "local"):
        (tmp_path / name).mkdir()
        preparation = prepare(scenario.override({"model.norm_statistics": name}), tmp_path / name)
        found[name] = held_out_clients(preparation)
    assert found == {BY_SET: (0, 2, 3), "local": (0, 1, 2, 3, 4)}


@pytest.mark.parametrize("optimizer", [{"kind": "fedadam"}, {"kind": "fedavg", "lr": 0.5}])
def test_a_server_optimizer_steps_parameters_alone(
    scenario: Scenario, tmp_path: Path, optimizer: Mapping[str, Any]
) -> None:
    counting = scenario.override({"model.head": {"kind": "custom", "factory": Counting}, "rounds": 1})
    run = kept(counting.override({"server.optimizer": optimizer}), tmp_path)
    assert run.path is not None
    sizes = run.clients.filter((pl.col("round") == 1) & (pl.col("client") == 2))["num_train_examples"]
    assert server_values(run.path, 1)["statistics/head[gyro]"].tolist() == [float(sizes[0])]


def test_a_resumed_run_goes_on_with_each_sets_statistics(scenario: Scenario, tmp_path: Path) -> None:
    changes = {"checkpoint.every": 1, "server": {"optimizer": {"kind": "fedadam"}, "clients_per_round": 3}, "rounds": 3}
    scenario = scenario.override(changes)
    whole = simulate(scenario, out=tmp_path / "whole")
    part = simulate(scenario.override({"rounds": 2}), out=tmp_path / "part")
    assert part.path is not None
    list(resume_run(scenario, part.path))
    run = Run.open(part.path)
    assert run.manifest["digest"] == whole.manifest["digest"]
    for name in ("rounds", "blocks"):
        frame, expected = getattr(run, name), getattr(whole, name)
        timed = [column for column in expected.columns if "seconds" in column]
        assert frame.drop(timed).equals(expected.drop(timed)), name


def test_the_engines_agree_within_rounding_on_whose_statistics_are_whose(scenario: Scenario) -> None:
    changes = {"model.fusion": {"kind": "gated", "dim": 8, "norm": "batch"}, "clients.0.count": 5, "data.samples": 300}
    scenario = scenario.override({**changes, "evaluation.fine_tune": {"every": 1}})
    sequential, stacked = (
        simulate(scenario.override({"training.engine": name})) for name in ("sequential", "vectorized")
    )
    for metric in ("train_loss", "loss", "loss/acc", "loss/acc+gyro", "fine_tuned/loss"):
        expected = sequential.rounds[metric].drop_nulls().to_list()
        assert stacked.rounds[metric].drop_nulls().to_list() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "ifca"])
def test_a_mixture_over_modality_sets_is_noted_whatever_the_algorithm(scenario: Scenario, algorithm: str) -> None:
    """Also where statistics are no part of their block, since an algorithm says what leaves a client."""
    plain = {"kind": "sgd", "lr": 0.05}
    changes = {"model.norm_statistics": "shared", "algorithm": {"kind": algorithm}, "training.optimizer": plain}
    run = simulate(scenario.override({**changes, "rounds": 1}))
    told = [note.partition(":")[0] for note in run.manifest["notes"] if "averaged over clients of different" in note]
    assert told == ["head"]
    assert ("statistics/head" in run.blocks["block"].to_list()) is (algorithm == "scaffold")
