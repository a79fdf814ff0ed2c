"""fluke on W1: its FedAvg in one process, as it is meant to run.

    python benchmarks/peers/fluke_w1.py FOLDER OUTCOME.npz --rounds 3

Its clients take one tensor a sample, so both modalities lie side by side in it. The round is that of fluke's
`CentralizedFL` without its scoring, as in `fluke_scaffold.py`, which also makes fluke importable without CUDA.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fluke_scaffold import Client, OptimizerConfigurator, Ordered, Server
from workload import (
    BATCH_SIZE,
    INPUT_SIZES,
    LEARNING_RATE,
    NUM_STEPS,
    Outcome,
    TwoModalityMlp,
    Watch,
    Workload,
    parser_of_contender,
)


class OneTensorMlp(TwoModalityMlp):
    """The model on (B, 292): both modalities side by side."""

    def forward(self, both: Tensor) -> Tensor:  # type: ignore[override]  # fluke hands over one tensor
        """Logits (B, 10)."""
        return super().forward(*both.split([*INPUT_SIZES.values()], dim=1))


class Reporting(Client):
    """A client that keeps its mean training loss."""

    loss = 0.0

    def fit(self, override_local_epochs: int = 0) -> float:
        """As fluke's."""
        self.loss = super().fit(override_local_epochs)
        return self.loss


def main() -> None:
    arguments = parser_of_contender(__doc__).parse_args()
    torch.set_num_threads(1)
    workload = Workload.open(arguments.folder)
    optimizer = OptimizerConfigurator({"name": "SGD", "lr": LEARNING_RATE})
    clients = [
        Reporting(
            index=client,
            train_set=samples(workload, client),
            test_set=None,
            optimizer_cfg=optimizer,
            loss_fn=nn.CrossEntropyLoss(),
            local_epochs=1,
        )
        for client in range(workload.num_clients)
    ]
    model = OneTensorMlp()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in workload.initial.items()})
    server = Server(model, None, clients, weighted=True)
    for client in clients:
        client.set_channel(server.channel)
    watch, loss, average = Watch(), 0.0, dict(workload.initial)
    for round_index in range(1, arguments.rounds + 1):
        server.broadcast_model(clients)
        for number, client in enumerate(clients):
            client.train_set.orders = iter([torch.from_numpy(workload.orders[round_index - 1, number])])
            client.local_update(round_index)
        with torch.no_grad():
            server.aggregate(clients, server.receive_client_models(clients, state_dict=False))
        watch.lap()
        if round_index == 1:
            loss = float(np.mean([client.loss for client in clients]))
            average = {name: tensor.numpy().copy() for name, tensor in server.model.state_dict().items()}
    num_steps = NUM_STEPS * workload.num_clients
    Outcome(watch.seconds, watch.cpu_seconds, loss, num_steps, average).save(arguments.outcome)


def samples(workload: Workload, client: int) -> Ordered:
    """A client's samples, the modalities side by side."""
    first, second, labels = (
        torch.from_numpy(array[client]) for array in (workload.first, workload.second, workload.labels)
    )
    return Ordered((torch.cat([first, second], dim=1), labels), BATCH_SIZE)


if __name__ == "__main__":
    main()
