"""What a run of many registered clients costs in one process: processor seconds and memory by event.

    python benchmarks/many_clients.py --clients 100000 --per-round 1000

`scenarios/ten-thousand.yaml` with more clients of fewer samples, without Ray, a checkpoint after every round; about
1,000 clients are scored in the first and the last round, and all of them on the held-out set after the last one.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from blossom_ray import Scenario
from blossom_ray.core.records import RoundRecord
from blossom_ray.runs.session import events

SCENARIO = Path(__file__).parents[1] / "scenarios" / "ten-thousand.yaml"


def main() -> None:
    """Run it, and print a row for each event."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100_000)
    parser.add_argument("--per-round", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=10, help="of each client, for training and testing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--held-out", default="final", choices=["never", "final"])
    arguments = parser.parse_args()
    scenario = many_clients(arguments)
    print("| event | processor seconds | peak memory, MiB |\n|---|---:|---:|")
    with TemporaryDirectory() as folder:
        before = time.process_time()
        for event in events(scenario, Path(folder) / "checkpoints"):
            name = f"round {event.round_index}" if isinstance(event, RoundRecord) else type(event).__name__
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(f"| {name} | {time.process_time() - before:.2f} | {peak} |", flush=True)
            before = time.process_time()


def many_clients(arguments: argparse.Namespace) -> Scenario:
    """The scenario, with as many clients as are asked for in the same shares."""
    groups = Scenario.load(SCENARIO).clients
    total = sum(group.count for group in groups)
    changes: dict[str, Any] = {
        f"clients.{place}.count": group.count * arguments.clients // total for place, group in enumerate(groups)
    }
    num_clients = sum(changes.values())
    changes |= {
        "data.samples": num_clients * arguments.samples,
        "server.clients_per_round": arguments.per_round,
        "rounds": arguments.rounds,
        "evaluation.clients": min(1.0, 1000 / num_clients),
        "evaluation.held_out": arguments.held_out,
        "checkpoint.every": 1,
        "execution.runtime": "local",
    }
    return Scenario.load(SCENARIO, changes)


if __name__ == "__main__":
    main()
