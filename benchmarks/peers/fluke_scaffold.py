"""fluke's FedAvg and SCAFFOLD on the federations of `scaffold.py`, which starts this script.

    python benchmarks/peers/fluke_scaffold.py FOLDER

The loop is that of fluke's `CentralizedFL`, with the federation's cohorts for its own draw. Batches of one sample,
which fluke's loader skips by default, are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

if torch.version.cuda is None:
    # fluke imports torchvision, which PyPI has for CUDA alone: without its operators it looks for two of them in vain.
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from fluke.algorithms.scaffold import SCAFFOLDClient, SCAFFOLDServer
from fluke.client import Client
from fluke.config import OptimizerConfigurator
from fluke.data import FastDataLoader
from fluke.server import Server
from torch import Tensor, nn

from federation import NUM_CLASSES, Federation, flat, run_contender


class Ordered(FastDataLoader):
    """A client's samples, in another given order in each epoch."""

    def __init__(self, samples: tuple[Tensor, ...], batch_size: int) -> None:
        super().__init__(*samples, num_labels=NUM_CLASSES, batch_size=batch_size, skip_singleton=False)
        self._samples, self.orders = samples, iter(())

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        order = next(self.orders)
        self.tensors = [each[order] for each in self._samples]
        return super().__iter__()


def run(
    of_client: type[Client], of_server: type[Server], federation: Federation, weighting: str
) -> Iterator[np.ndarray]:
    """The parameters after each round."""
    optimizer = OptimizerConfigurator({"name": "SGD", "lr": federation.learning_rate})
    clients = [
        of_client(
            index=client,
            train_set=Ordered(federation.samples(client), federation.batch_size),
            test_set=None,
            optimizer_cfg=optimizer,
            loss_fn=nn.CrossEntropyLoss(),
            local_epochs=federation.epochs,
        )
        for client in range(len(federation.sizes))
    ]
    server = of_server(federation.model(), None, clients, weighted=weighting == "samples")
    for client in clients:
        client.set_channel(server.channel)
    visits = iter(federation.visits)
    for round_index, cohort in enumerate(federation.cohorts, start=1):
        members = [clients[client] for client in cohort]
        server.broadcast_model(members)
        for member in members:
            _, orders = next(visits)
            member.train_set.orders = iter(orders)
            member.local_update(round_index)
        with torch.no_grad():
            server.aggregate(members, server.receive_client_models(members, state_dict=False))
        yield flat(server.model)


if __name__ == "__main__":
    run_contender(
        __doc__,
        {
            "fluke fedavg": partial(run, Client, Server),
            "fluke scaffold": partial(run, SCAFFOLDClient, SCAFFOLDServer),
        },
    )
