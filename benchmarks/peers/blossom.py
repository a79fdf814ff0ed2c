"""blossom-ray on W1 (`benchmarks/w1.yaml`), and the files of W1 for the peers.

    python benchmarks/peers/blossom.py FOLDER OUTCOME.npz --rounds 7 --clients 1000

Training steps are compiled, on two actors of one CPU core each, as `simulate` runs it, checkpoints included. A round is
timed from one record's arrival to the next one's: without the first, and without the last, with which a score comes.
`--write` writes the workload into the folder, and runs nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from blossom_ray import Scenario
from blossom_ray.clients.workspace import client_workspace
from blossom_ray.core.records import RoundRecord
from blossom_ray.core.seeding import Purpose, generator
from blossom_ray.reading.overrides import parse_assignment
from blossom_ray.runs import loop
from blossom_ray.runs.session import events
from blossom_ray.runtime.local import LocalRuntime
from blossom_ray.runtime.preparation import Preparation, prepare
from blossom_ray.server import Server, initial_server
from blossom_ray.simulation import run_rounds
from workload import NUM_SAMPLES, Outcome, TwoModalityMlp, Watch, Workload, parser_of_contender

W1 = Path(__file__).parents[1] / "w1.yaml"


def main() -> None:
    parser = parser_of_contender(__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--write", action="store_true", help="write the workload for this number of rounds, no more")
    arguments = parser.parse_args()
    scenario = w1_scenario(arguments)
    with tempfile.TemporaryDirectory() as folder:
        preparation = prepare(scenario, Path(folder))
        if arguments.write:
            workload_of(preparation).save(arguments.folder)
            return
        average, digest = first_average(preparation)
    record, found = run_round_one(scenario)
    if found != digest:
        raise SystemExit("the run on actors and the local one have other bits")
    num_steps = sum(client.num_steps for client in record.training)
    watch, loss = timed_rounds(scenario), record.metrics["train_loss"]
    Outcome(watch.seconds, watch.cpu_seconds, loss, num_steps, average).save(arguments.outcome)


def w1_scenario(arguments: argparse.Namespace) -> Scenario:
    """W1 with the number of clients and rounds asked for."""
    num_clients = arguments.clients
    changes = {
        "rounds": arguments.rounds,
        "clients.0.count": num_clients,
        "data.samples": num_clients * (NUM_SAMPLES + 1),
        "evaluation.clients": 1 / num_clients,
        # At least two chunks, one for each actor.
        "execution.chunk_size": min(125, num_clients // 2),
    }
    return Scenario.load(W1, changes | dict(map(parse_assignment, arguments.changes)))


def workload_of(preparation: Preparation) -> Workload:
    """The clients' shards, the order of their samples in each round, and the initial parameters."""
    scenario, shards = preparation.scenario, preparation.open_shards()
    parts = [shards.shard(client).train() for client in range(scenario.num_clients)]
    orders = [
        [generator(scenario.seed, Purpose.TRAINING, r, c).permutation(NUM_SAMPLES) for c in range(len(parts))]
        for r in range(1, scenario.rounds + 1)
    ]
    return Workload(
        first=np.stack([part.inputs["first"] for part in parts]),
        second=np.stack([part.inputs["second"] for part in parts]),
        labels=np.stack([part.labels for part in parts]),
        orders=np.array(orders),
        initial=named_parameters(preparation, server_of(preparation)),
    )


def server_of(preparation: Preparation) -> Server:
    """The untrained server."""
    section = preparation.scenario.server.optimizer
    return initial_server(preparation.plan, preparation.population.representatives(), section)


def named_parameters(preparation: Preparation, server: Server) -> dict[str, np.ndarray]:
    """The server's blocks as parameters, by the names of the peers' model."""
    plan = preparation.plan
    space = client_workspace(plan, preparation.population.profiles[0])
    space.load({instance.name: block.sent.values for instance, block in server.blocks.items()}, {})
    blocks = [space.model.blocks[name] for name in ("encoder/first", "encoder/second", "fusion", "head")]
    parameters = [parameter for block in blocks for parameter in block.parameters()]
    names = [name for name, _ in TwoModalityMlp().named_parameters()]
    return {name: parameter.detach().numpy().copy() for name, parameter in zip(names, parameters, strict=True)}


def first_average(preparation: Preparation) -> tuple[dict[str, np.ndarray], str]:
    """Parameters after round 1, computed without Ray, and the digest of their bits."""
    runtime = LocalRuntime(preparation)
    rounds = run_rounds(preparation, runtime, server_of(preparation), first_round=1)
    _, server = next(rounds)
    runtime.close()
    return named_parameters(preparation, server), server.digest()


def run_round_one(scenario: Scenario) -> tuple[RoundRecord, str]:
    """One round on actors: its record, and the digest of the blocks after it."""
    seen = list(events(scenario.override({"rounds": 1})))
    records = [event for event in seen if isinstance(event, RoundRecord)]
    facts = [event for event in seen if isinstance(event, loop.Outcome)]
    digest = facts[-1].digest
    assert isinstance(digest, dict)
    return records[-1], str(digest["shared"])


def timed_rounds(scenario: Scenario) -> Watch:
    """Time of the rounds between the first and the last, with everything that happens in them."""
    watch = Watch()
    for event in events(scenario):
        if isinstance(event, RoundRecord) and 0 < event.round_index < scenario.rounds:
            watch.lap()
    return watch


if __name__ == "__main__":
    main()
