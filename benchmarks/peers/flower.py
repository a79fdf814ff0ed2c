"""Flower on W1: its simulation engine and FedAvg, with the ClientApp of `flower_client.py`.

    python benchmarks/peers/flower.py FOLDER OUTCOME.npz --rounds 3

Two Ray actors of one CPU core each, no evaluation. A round is timed from one end of `aggregate_train` to the next.
Samples are mapped once per process, so no time goes into loading a client's shard.
"""

from __future__ import annotations

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from flower_client import client_app
from workload import NUM_STEPS, Outcome, Watch, Workload, parser_of_contender


class TimedFedAvg(FedAvg):
    """Flower's FedAvg, with a watch and a copy of the first average."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.watch = Watch()
        self.loss, self.average = 0.0, ArrayRecord()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the time of a round."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.watch.lap()
        assert arrays is not None, "a round without replies"
        assert metrics is not None, "a round without metrics"
        if server_round == 1:
            self.average, self.loss = arrays, float(metrics["loss"])
        return arrays, metrics


def main() -> None:
    arguments = parser_of_contender(__doc__).parse_args()
    workload = Workload.open(arguments.folder)
    server_app = ServerApp()
    strategy = TimedFedAvg(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=workload.num_clients,
        min_available_nodes=workload.num_clients,
    )

    @server_app.main()
    def serve(grid: Grid, _context: Context) -> None:
        initial = {name: torch.from_numpy(array) for name, array in workload.initial.items()}
        config = ConfigRecord({"folder": str(arguments.folder.resolve())})
        strategy.start(grid, ArrayRecord(initial), num_rounds=arguments.rounds, timeout=3600, train_config=config)

    run_simulation(
        server_app,
        client_app,
        num_supernodes=workload.num_clients,
        backend_config={
            "init_args": {"num_cpus": 2, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    average = {name: tensor.numpy() for name, tensor in strategy.average.to_torch_state_dict().items()}
    num_steps, watch = NUM_STEPS * workload.num_clients, strategy.watch
    Outcome(watch.seconds, watch.cpu_seconds, strategy.loss, num_steps, average).save(arguments.outcome)


if __name__ == "__main__":
    main()
