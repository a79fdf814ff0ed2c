"""The algorithm: rounds of local training, block-wise averaging and evaluation.

The loop yields records; printing, saving and stopping early are what its caller does with them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from blossom_ray.preparation import Preparation, prepare
from blossom_ray.records import RoundRecord
from blossom_ray.rounds import evaluate_round, round_record, train_round
from blossom_ray.runtime.base import Runtime
from blossom_ray.scenario import Scenario
from blossom_ray.schedule import learning_rate
from blossom_ray.server import Server, initial_server, server_step


@dataclass(frozen=True)
class RunInfo:
    """Facts for the run's manifest: once before the first round, once after the last."""

    entries: dict[str, object]


Event = RunInfo | RoundRecord


def run(scenario: Scenario, folder: Path, start: Callable[[Preparation], Runtime]) -> Iterator[Event]:
    """Prepare a scenario, run its rounds, and report facts before and after.

    Args:
        scenario: The scenario.
        folder: An empty folder for the clients' shards; it must outlive the run.
        start: Makes the runtime from the prepared federation.

    Raises:
        DataError: The data cannot be read, or cannot be divided as the scenario asks.
        RunError: A client or an actor failed.
    """
    preparation = prepare(scenario, folder)
    runtime = start(preparation)
    try:
        server = initial_server(preparation.plan, preparation.population.representatives(), scenario.server.optimizer)
        parameters = {str(instance): block.num_parameters for instance, block in server.blocks.items()}
        yield RunInfo({**preparation.describe(), **runtime.describe(), "parameters": parameters})
        server = yield from run_rounds(preparation, runtime, server)
        private = {str(client): digest for client, digest in runtime.private_digests().items()}
        yield RunInfo({"digest": {"shared": server.digest(), "private": private}, **runtime.describe()})
    finally:
        runtime.close()


def run_rounds(preparation: Preparation, runtime: Runtime, server: Server) -> Generator[RoundRecord, None, Server]:
    """Federated averaging, block by block.

    Per round t and block instance b with contributors S_b: A_b = sum n_k x_k / sum n_k over k in S_b, n_k the
    training samples seen; then the server optimizer steps from the old value to the new one. A block without
    contributors keeps its value.

    Args:
        preparation: The prepared federation.
        runtime: Executes the clients.
        server: The untrained server.

    Yields:
        A record per round, beginning with round 0, the untrained model.

    Returns:
        The server after the last round.

    Source: McMahan et al. 2017 (arXiv:1602.05629), algorithm 1, per block as in BLOSSOM (arXiv:2603.27552).
    """
    scenario = preparation.scenario
    base_rate, schedule = scenario.training.optimizer.lr, scenario.training.schedule

    evaluation = evaluate_round(preparation, runtime, server, 0)
    yield round_record(preparation, server, 0, training=None, evaluation=evaluation, update_norms={})
    for round_index in range(1, scenario.rounds + 1):
        rate = learning_rate(schedule, base_rate, round_index, scenario.rounds)
        training = train_round(preparation, runtime, server, round_index, rate)
        server, norms = server_step(server, training.averages, scenario.server.optimizer)
        evaluation = evaluate_round(preparation, runtime, server, round_index)
        yield round_record(
            preparation, server, round_index, training=training, evaluation=evaluation, update_norms=norms
        )
    return server
