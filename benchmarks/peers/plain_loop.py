"""The bare PyTorch loop on W1: one process per core, each with its part of the clients, averaged at the round's end.

    python benchmarks/peers/plain_loop.py FOLDER OUTCOME.npz --rounds 3

No framework: parameters are copied in, ten steps are taken, parameters are added to a sum.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from workload import NUM_STEPS, Outcome, TwoModalityMlp, Watch, Workload, parser_of_contender, train_client

NUM_PROCESSES = 2


def main() -> None:
    arguments = parser_of_contender(__doc__).parse_args()
    context = multiprocessing.get_context("spawn")
    pipes = []
    for number in range(NUM_PROCESSES):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(arguments.folder, number, theirs), daemon=True)
        process.start()
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()

    workload = Workload.open(arguments.folder)
    names, values = list(workload.initial), list(workload.initial.values())
    watch, loss, first_average = Watch(), 0.0, values
    for round_index in range(1, arguments.rounds + 1):
        for pipe in pipes:
            pipe.send((round_index, values))
        parts = [pipe.recv() for pipe in pipes]
        sums = [sum(arrays) for arrays in zip(*(total for total, _ in parts), strict=True)]
        values = [(array / workload.num_clients).astype(np.float32) for array in sums]
        watch.lap()
        if round_index == 1:
            loss, first_average = sum(part for _, part in parts) / workload.num_clients, values
    for pipe in pipes:
        pipe.send(None)
    num_steps = NUM_STEPS * workload.num_clients
    average = dict(zip(names, first_average, strict=True))
    Outcome(watch.seconds, watch.cpu_seconds, loss, num_steps, average).save(arguments.outcome)


def work(folder: Path, number: int, pipe: Connection) -> None:
    """Every second client, on one thread."""
    torch.set_num_threads(1)
    workload, model = Workload.open(folder), TwoModalityMlp()
    parameters = list(model.parameters())
    pipe.send("ready")
    while (message := pipe.recv()) is not None:
        round_index, arrays = message
        current = [torch.from_numpy(array) for array in arrays]
        totals = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in current]
        loss_sum = 0.0
        for client in range(number, workload.num_clients, NUM_PROCESSES):
            with torch.no_grad():
                for parameter, value in zip(parameters, current, strict=True):
                    parameter.copy_(value)
            loss_sum += train_client(model, workload, client, round_index)
            for total, parameter in zip(totals, parameters, strict=True):
                total += parameter.detach()
        pipe.send(([total.numpy() for total in totals], loss_sum))


if __name__ == "__main__":
    main()
