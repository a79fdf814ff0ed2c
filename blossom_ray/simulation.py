"""The algorithm: rounds of local training, block-wise averaging and evaluation.

The loop yields records; printing, saving, going on and stopping early are what its caller does with them: `runs/`.
"""

from __future__ import annotations

from collections.abc import Iterator

from blossom_ray.core.blocks import BlockInstance
from blossom_ray.core.records import RoundRecord
from blossom_ray.round_records import round_record
from blossom_ray.rounds import RoundTraining, evaluate_round, targets, train_round, trainer
from blossom_ray.runtime.base import Runtime
from blossom_ray.runtime.preparation import Preparation
from blossom_ray.server import Server, server_step, task_cosines


def run_rounds(
    preparation: Preparation, runtime: Runtime, server: Server, first_round: int = 0
) -> Iterator[tuple[RoundRecord, Server]]:
    """Federated averaging, block by block.

    Per round t and block instance b with contributors S_b: A_b = sum n_k x_k / sum n_k over k in S_b, n_k the
    training samples seen; then the server optimizer steps from the old value to the new one. A block without
    contributors keeps its value.

    Args:
        preparation: The prepared federation.
        runtime: Executes the clients.
        server: The server before `first_round`.
        first_round: The first round to run; 0 scores the untrained model.

    Yields:
        Each round's record with the server after it.

    Source: McMahan et al. 2017 (arXiv:1602.05629), algorithm 1, per block as in BLOSSOM (arXiv:2603.27552).
    """
    scenario = preparation.scenario
    base_rate, schedule = scenario.training.optimizer.lr, scenario.training.schedule
    train = trainer(preparation, runtime)
    for round_index in range(first_round, scenario.rounds + 1):
        training, norms, cosines = RoundTraining(), dict[BlockInstance, float](), dict[BlockInstance, float]()
        if round_index > 0:
            rate = schedule.learning_rate(base_rate, round_index, scenario.rounds)
            training = train_round(preparation, train, server, round_index, rate)
            cosines = task_cosines(server, training.by_task)
            next_values = targets(preparation, server, round_index, training)
            server, norms = server_step(server, next_values, scenario.server.optimizer)
        evaluation = evaluate_round(preparation, runtime, server, round_index)
        record = round_record(
            preparation,
            server,
            round_index,
            evaluation=evaluation,
            training=training,
            update_norms=norms,
            task_cosines=cosines,
            happened=runtime.take_round(),
        )
        yield record, server
