"""The code published with the paper, driven in one process, with some of its faults mended from outside.

Its server strategy, clients, training and scores are those of a checkout of github.com/DaSH-Lab-CSIS/blossom, its
partition that of flwr-datasets. In the place of Flower's engine its jobs are done one after the other, each by one of
some workers, drawn at random, which remember private blocks as its processes do. Initial blocks, batches, dropout and
who has which part are drawn as ours are, so that its runs can be laid beside ours.

It needs flwr 1.17.0, flwr-datasets 0.5.0 and torchmultimodal-nightly 2024.4.1.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from blossom_ray.core.seeding import Purpose, generator, torch_seed
from blossom_ray.data.dataset import Dataset

MODALITIES, NUM_CLIENTS = ("acc", "gyro"), 10
PLACES = {
    "encoder/acc": "encoders.acc.",
    "encoder/gyro": "encoders.gyro.",
    "fusion": "fusion_module.",
    "head": "head_module.",
}
"""By block of ours what its parameters begin with there; they come in the same order."""
STORES = ("CLIENT_PRIVATE_HEAD_STORE", "CLIENT_PRIVATE_FUSION_STORE", "CLIENT_SCHEDULER_STATE_STORE")
SCORES = ("accuracy", "macro_f1_all", "macro_f1_present")


class Mended(NamedTuple):
    """Which faults are mended; the defaults are as published.

    Attributes:
        workers: Processes, each with private blocks of its own; of one, these are the client's.
        current_encoder: Whether a missing modality's encoder is the server's in training, too, and in evaluation mode;
            else it is the one that the client has drawn.
        masked: Whether the fusion goes without a missing modality; else it gets what the encoder makes of zeros.
    """

    workers: int = 4
    current_encoder: bool = False
    masked: bool = False


class Round(NamedTuple):
    """What a round gave.

    Attributes:
        index: The round, from 1.
        scores: By name as shares of 1; nan where it was not scored.
        shared: The server's blocks as vectors, by our names.
        digest: SHA-256 (hex) of them.
    """

    index: int
    scores: Mapping[str, float]
    shared: Mapping[str, np.ndarray]
    digest: str


class Checkout:
    """A checkout with UCI-HAR divided as it divides it, Dirichlet(0.5) over ten clients.

    Args:
        path: Its folder.
        data: The official training part; `inputs` has (128, 3) by modality. It stands for the hosted data set.
    """

    def __init__(self, path: Path, data: Dataset) -> None:
        sys.path.insert(0, str(path))
        import datasets
        from flwr_datasets.partitioner import DirichletPartitioner

        partitioner = DirichletPartitioner(num_partitions=NUM_CLIENTS, alpha=0.5, partition_by="label")
        rows = datasets.Dataset.from_dict({"row": np.arange(len(data.labels)), "label": data.labels})
        # As a FederatedDataset does it; it goes through the classes as they first appear in the file, and that of the
        # hosted file is not known.
        as_they_appear = datasets.Dataset.unique
        datasets.Dataset.unique = lambda *found: sorted(as_they_appear(*found))
        partitioner.dataset = rows.shuffle(seed=42)
        loader = import_module("blossom.dataloader")
        loader.fds = partitioner
        windows = partial(Windows, data.inputs)
        self._parts = [loader.load_data(part, "", windows, partitioner, 0.3, 16) for part in range(NUM_CLIENTS)]

    def rounds(
        self,
        mended: Mended,
        *,
        seed: int,
        is_private: bool,
        counts: Sequence[int],
        initial: Mapping[str, np.ndarray],
        num_rounds: int,
        scored: Container[int],
    ) -> Iterator[Round]:
        """The rounds of a run.

        Args:
            mended: Its faults.
            seed: Fixes what it leaves to chance, as our scenario's seed does.
            is_private: Whether fusion and head are private.
            counts: Clients with the accelerometer alone, the gyroscope alone, both.
            initial: The blocks' first values, (size,) float32 by our names, in the order of `PLACES`.
            num_rounds: Rounds.
            scored: Those whose blocks are scored.
        """
        from flwr.common import parameters_to_ndarrays
        from flwr.server.client_manager import SimpleClientManager

        jobs, manager = _Jobs(self._parts, mended, seed, is_private, counts, initial), SimpleClientManager()
        for client in range(NUM_CLIENTS):
            manager.register(SimpleNamespace(cid=str(client)))
        strategy = jobs.strategy
        parameters = strategy.initialize_parameters(manager)
        for index in range(1, num_rounds + 1):
            tasks = sorted(strategy.configure_fit(index, parameters, manager), key=_client_of)
            fitted = [(task[0], jobs.fit(*task, index)) for task in tasks]
            parameters, _ = strategy.aggregate_fit(index, fitted, [])
            scores: Mapping[str, float] = dict.fromkeys(SCORES, math.nan)
            if index in scored:
                tasks = sorted(strategy.configure_evaluate(index, parameters, manager), key=_client_of)
                evaluated = [(task[0], jobs.evaluate(*task)) for task in tasks]
                scores = strategy.aggregate_evaluate(index, evaluated, [])[1]
            values = dict(zip(strategy._parameter_keys, parameters_to_ndarrays(parameters), strict=True))
            shared = _vectors(values)
            digest = sha256(b"".join(own.astype(np.float32).tobytes() for own in shared.values())).hexdigest()
            yield Round(index, {name: scores[name] for name in SCORES}, shared, digest)


class _Jobs:
    """The server's strategy, and what its clients are asked to do."""

    def __init__(
        self,
        parts: Sequence[tuple[Any, Any]],
        mended: Mended,
        seed: int,
        is_private: bool,
        counts: Sequence[int],
        initial: Mapping[str, np.ndarray],
    ) -> None:
        import torch

        self._app = import_module("blossom.client_app")
        task = with_scores(import_module("blossom.benchmarks.ucihar.task").get_task())
        self._mended, self._seed = mended, seed
        order = np.argsort(generator(seed, Purpose.MATCHING).permutation(NUM_CLIENTS))
        self._app.load_data = lambda partition_id, **_: parts[order[partition_id]]
        self._worker = generator(seed, Purpose.BOOTSTRAP)
        self._memories: list[tuple[dict[str, Any], ...]] = [({}, {}, {}) for _ in range(mended.workers)]
        server, clients = _modules(0), _modules(torch_seed(seed, Purpose.BOOTSTRAP))
        encoders = [server["encoders_dict"][name] for name in MODALITIES]
        for module, values in zip((*encoders, *list(server.values())[1:]), initial.values(), strict=True):
            torch.nn.utils.vector_to_parameters(torch.tensor(values), module.parameters())
        build_server, build_client = import_module("blossom.server_app").build_server_fn, self._app.build_client_fn
        everyone = dict.fromkeys(("min_fit_clients", "min_evaluate_clients", "min_avail_clients"), NUM_CLIENTS)
        client_config = {own: n for own, n in zip((("acc",), ("gyro",), MODALITIES), counts, strict=True) if n}
        # After the round that it takes for the last it would write figures.
        usual = {"num_rounds": 0, "results_dir": "", "fraction_fit": 1, "fraction_evaluate": 1, **everyone, **server}
        served = build_server(private_head=is_private, private_fusion=is_private, client_config=client_config, **usual)
        self.strategy = served(None).strategy
        data = {"dataset_name": "", "dataset_class": Windows, "test_split_ratio": 0.3, "batch_size": 16}
        division = {"niid": True, "alpha": 0.5, "partition_by": "label"}
        self._client = build_client(task=task, local_epochs=1, device="cpu", **data, **division, **clients)

    def fit(self, proxy: Any, asked: Any, round_index: int) -> Any:
        """One client's training."""
        import torch
        from flwr.common import parameters_to_ndarrays
        from torch.utils.data import DataLoader

        client, owned = self._asked(proxy, asked)
        model, windows = client.numpy_client.model, client.numpy_client.trainloader.dataset
        if self._mended.current_encoder:
            values = parameters_to_ndarrays(self.strategy._current_parameters)
            server = {key: torch.tensor(own) for key, own in zip(self.strategy._parameter_keys, values, strict=True)}
            for name in set(MODALITIES) - set(owned):
                encoder, place = model.encoders[name].eval(), f"encoders.{name}."
                encoder.load_state_dict({k.removeprefix(place): v for k, v in server.items() if k.startswith(place)})
                encoder.train = partial(_as_it_is, encoder)
        draw = generator(self._seed, Purpose.TRAINING, round_index, int(proxy.cid))
        order = np.argsort(windows.rows)[draw.permutation(len(windows))].tolist()
        # A generator of its own: the loader would draw a number from the one that dropout draws from.
        loader = DataLoader(windows, batch_size=16, sampler=order, generator=torch.Generator())
        client.numpy_client.trainloader = loader
        torch.manual_seed(torch_seed(self._seed, Purpose.TRAINING, round_index, int(proxy.cid)))
        return client.fit(asked)

    def evaluate(self, proxy: Any, asked: Any) -> Any:
        """One client's scores."""
        return self._asked(proxy, asked)[0].evaluate(asked)

    def _asked(self, proxy: Any, asked: Any) -> tuple[Any, list[str]]:
        """The client in some worker's process, and the modalities that it owns."""
        memory = self._memories[self._worker.integers(len(self._memories))]
        for name, store in zip(STORES, memory, strict=True):
            setattr(self._app, name, store)
        node = {"partition-id": int(proxy.cid), "num-partitions": NUM_CLIENTS}
        client, owned = self._client(SimpleNamespace(node_config=node)), asked.config["modality"].split("+")
        if self._mended.masked:
            client.numpy_client.model.forward = partial(masked_forward, client.numpy_client.model, owned)
        return client, owned


class Windows:
    """Rows of the data, as the reference's data sets give them, in memory."""

    def __init__(self, inputs: Mapping[str, np.ndarray], dataset: Any, train_split: bool) -> None:  # noqa: ARG002
        import torch

        columns = dataset.with_format("numpy")[:]
        self.rows = columns["row"]
        values = {"label": columns["label"], **{name: own[self.rows] for name, own in inputs.items()}}
        self._columns = {name: torch.from_numpy(own) for name, own in values.items()}

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: `acc`, `gyro` and `label`."""
        return {name: values[index] for name, values in self._columns.items()}


def with_scores(task: Any) -> Any:
    """The reference's task, which then gives accuracy and both macro-F1, as shares of 1, besides what it gives."""
    computed = task.compute_aggregated_metrics

    def scores(sums: Mapping[str, float], num_samples: int, total_loss: float) -> dict[str, float]:
        found = computed(sums, num_samples, total_loss)
        of_class = [[sums[f"{kind}_class_{c}"] for kind in ("tp", "fp", "fn")] for c in range(task.num_classes)]
        f1 = [2 * tp / (2 * tp + fp + fn) for tp, fp, fn in of_class if tp + fn]
        own = {"accuracy": sums["correct"] / num_samples, "macro_f1_all": found["val_f1"] / 100}
        return {**found, **own, "macro_f1_present": math.fsum(f1) / len(f1)}

    task.compute_aggregated_metrics = scores
    return task


def masked_forward(model: Any, owned: Sequence[str], inputs: Mapping[str, Any]) -> Any:
    """The logits of the reference's model without the modalities that a client does not own.

    As in our models the fusion's parameters for these have a gradient of zeros, so weight decay reaches them.
    """
    import torch

    fusion, names = model.fusion_module, sorted(model.encoders)
    embeddings = {name: model.encoders[name](inputs[name]) for name in owned}
    zeros = torch.zeros_like(embeddings[owned[0]])
    logits = fusion.attention[0](torch.cat([embeddings.get(name, zeros) for name in names], dim=-1))
    weights = torch.softmax(logits[:, [names.index(name) for name in owned]], dim=-1)
    projected = [fusion.encoding_projection[name](embeddings[name]) for name in owned]
    nothing = 0 * sum(parameter.sum() for parameter in fusion.parameters())
    return model.head_module(sum(weights[:, i : i + 1] * each for i, each in enumerate(projected)) + nothing)


def _modules(seed: int) -> dict[str, Any]:
    """Encoders, fusion and head as the reference draws them, in the order of `PLACES`."""
    import torch

    torch.manual_seed(seed)
    models = import_module("blossom.benchmarks.ucihar.models")
    drawn = models.get_encoders_dict(), models.get_fusion_module(), models.get_head_module()
    return dict(zip(("encoders_dict", "fusion_module", "head_module"), drawn, strict=True))


def _vectors(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our blocks from arrays by the reference's names."""
    return {
        block: np.concatenate([own.ravel() for name, own in values.items() if name.startswith(place)])
        for block, place in PLACES.items()
    }


def _as_it_is(module: Any, mode: bool = True) -> Any:  # noqa: ARG001  # in the place of nn.Module.train
    return module


def _client_of(task: tuple[Any, Any]) -> int:
    return int(task[0].cid)
