"""SCAFFOLD and FedAvg of blossom-ray, of pfl-research and of fluke on the same federations, round by round.

    python benchmarks/peers/scaffold.py FOLDER --pfl .pfl/bin/python --fluke .fluke/bin/python

The peers run in environments of their own, which docs/results/scaffold-peers.md makes.

Everything that is drawn is common to all: shards (20 clients of unequal size, Dirichlet 0.3), cohorts of 5, order of
samples in each epoch, initial parameters. So federated averaging must agree within rounding, which is checked first;
what differs in SCAFFOLD is the algorithm. For each difference there is an algorithm of ours with the peer's line for
ours. Run it again to go on where it stopped; the table is printed of what is there. Without `--pfl` and `--fluke` ours
run alone.

FOLDER gets the parameters after each round (`seed-*/`), `curves.csv` with accuracy and loss of the global model on the
common test set, and `table.json`.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import vector_to_parameters

from blossom_ray import Scenario
from blossom_ray.algorithms.scaffold import Scaffold
from blossom_ray.algorithms.seam import Client, Sent, ServerView, Tree
from blossom_ray.core.seeding import Purpose, generator
from blossom_ray.errors import ClientError
from blossom_ray.rounds import cohort
from blossom_ray.runtime.local import LocalRuntime
from blossom_ray.runtime.preparation import Preparation, prepare
from blossom_ray.server import Server, initial_server
from blossom_ray.simulation import run_rounds
from federation import NUM_CLASSES, NUM_FEATURES, WEIGHTINGS, Federation, Mlp, record

SCENARIO = {
    "data": {
        "dataset": "synthetic",
        "samples": 1600,
        "classes": NUM_CLASSES,
        "modalities": {"vector": {"kind": "vector", "shape": [NUM_FEATURES], "signal": 0.5}},
        "held_out_samples": 2000,
        "partition": {"kind": "dirichlet", "alpha": 0.3},
    },
    "clients": [{"count": 20, "modalities": ["vector"]}],
    "model": {
        "encoders": {"vector": {"kind": "mlp", "hidden": [32], "dim": 12}},
        "fusion": {"kind": "concat", "dim": 16},
        "head": {"kind": "linear"},
    },
    "sharing": "full-model",
    "server": {"clients_per_round": 5},
    "training": {"batch_size": 10, "local_epochs": 3, "optimizer": {"kind": "sgd", "lr": 0.1}},
    "evaluation": {"every": 1_000_000, "clients": 1},
}


class PflScaffold:
    """SCAFFOLD with what pfl-research does otherwise.

    The change of c is the mean over the cohort by weight, times cohort over population, so it depends on who is drawn
    how heavy that client is: `algorithm/scaffold.py`, `process_aggregated_statistics`.

    Args:
        sign: Of the mean step in a client's new control; -1 as in pfl 0.6, where the model's difference is new minus
            received and the paper's is received minus new: `train_one_user`.
    """

    extras, passes = Scaffold.extras, Scaffold.passes

    def __init__(self, sign: float = -1.0) -> None:
        self.sign = sign

    def finish(self, k: Client) -> dict[str, Any]:
        change = (self.sign * k.mean_step - k["c"]) * k.stepped
        return {"own": k["own"] + change, "c": Sent(change)}

    def server(self, s: ServerView) -> dict[str, Tree]:
        return {"c": s.current["c"] + s.average("c") * s.contributors["c"] / s.num_holders["c"]}


class FlukeScaffold:
    """SCAFFOLD with what fluke does otherwise: every control weighs the same, whatever weighs a model."""

    extras, passes = Scaffold.extras, Scaffold.passes

    def finish(self, k: Client) -> dict[str, Any]:
        change = (k.mean_step - k["c"]) * k.stepped
        return {"own": k["own"] + change, "c": Sent(change, weight=1)}

    def server(self, s: ServerView) -> dict[str, Tree]:
        return {"c": s.current["c"] + s.total["c"] / s.num_holders["c"]}


OURS: dict[str, dict[str, Any]] = {
    "our fedavg": {"kind": "fedavg"},
    "our scaffold": {"kind": "scaffold"},
    "ours as pfl's": {"kind": "custom", "factory": PflScaffold},
    "ours as pfl's, sign mended": {"kind": "custom", "factory": PflScaffold, "options": {"sign": 1.0}},
    "ours as fluke's": {"kind": "custom", "factory": FlukeScaffold},
}
PAIRS = (
    ("pfl fedavg", "our fedavg"),
    ("fluke fedavg", "our fedavg"),
    ("our fedavg", "our scaffold"),
    ("pfl scaffold", "our scaffold"),
    ("pfl scaffold", "ours as pfl's"),
    ("pfl scaffold, sign mended", "our scaffold"),
    ("pfl scaffold, sign mended", "ours as pfl's, sign mended"),
    ("fluke scaffold", "our scaffold"),
    ("fluke scaffold", "ours as fluke's"),
)
FIRST_ROUNDS, LARGEST_DIFFERENCE = 5, 1e-6
"""Of FedAvg's parameters between two simulators, relative to their length: sums are rounded in other orders. In later
rounds a hidden unit within rounding of 0 may be on in one simulator and off in the other."""
DIVERGED = 1e3
"""Length of the parameters from which on a run has diverged; it is some 6 before the first round."""
Cell: TypeAlias = tuple[int, str, str]
"""Seed, weighting, contender."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pfl", help="Python of an environment with pfl and torch")
    parser.add_argument("--fluke", help="Python of an environment with fluke-fl and torch")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(arguments.seeds):
        run_ours(arguments.folder / f"seed-{seed}", Scenario(**SCENARIO, seed=seed, rounds=arguments.rounds))
    for peer in ("pfl", "fluke"):
        if python := getattr(arguments, peer):
            script = Path(__file__).with_name(f"{peer}_scaffold.py")
            subprocess.run([python, str(script), str(arguments.folder)], check=True)
    report(arguments.folder)


def run_ours(folder: Path, scenario: Scenario) -> None:
    """Ours on one federation, whose file is written first."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as shards:
        path = folder / "federation.npz"
        if not path.exists():
            federation_of(prepare(scenario, Path(shards))).save(path)
    for weighting in WEIGHTINGS:
        for name, algorithm in OURS.items():
            changed = scenario.override({"algorithm": algorithm})
            record(folder / f"{weighting} {name}.npy", rounds_of, changed, weighting)


def federation_of(preparation: Preparation) -> Federation:
    """What peers are given: all that is drawn, as it is drawn here."""
    scenario, server = preparation.scenario, untrained(preparation)
    with preparation.open_shards() as shards:
        parts = [shards.shard(client).train() for client in range(scenario.num_clients)]
        held_out = shards.held_out(0)
        assert held_out is not None
        test_inputs, test_labels, _ = held_out.test()
        cohorts = [cohort(preparation, server, number) for number in range(1, scenario.rounds + 1)]
        orders = []
        for number, members in enumerate(cohorts, start=1):
            for client in members:
                draw = generator(scenario.seed, Purpose.TRAINING, number, client)
                orders += [draw.permutation(len(parts[client].labels)) for _ in range(scenario.training.local_epochs)]
        return Federation(
            features=np.concatenate([part.inputs["vector"] for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            sizes=np.array([len(part.labels) for part in parts]),
            cohorts=np.array(cohorts),
            orders=np.concatenate(orders),
            initial=parameters_of(server),
            test_features=np.array(test_inputs["vector"]),
            test_labels=np.array(test_labels),
            epochs=scenario.training.local_epochs,
            batch_size=scenario.training.batch_size,
            learning_rate=scenario.training.optimizer.lr,
        )


def rounds_of(scenario: Scenario, weighting: str) -> Iterator[np.ndarray]:
    """Parameters after each round; NaN from where training diverged, at which ours stop with an error."""
    with tempfile.TemporaryDirectory() as folder:
        preparation = prepare(scenario.override({"server.weighting": weighting}), Path(folder))
        runtime, rounds_left = LocalRuntime(preparation), scenario.rounds
        try:
            for _, server in run_rounds(preparation, runtime, untrained(preparation), first_round=1):
                yield parameters_of(server)
                rounds_left -= 1
        except ClientError:
            for _ in range(rounds_left):
                yield np.full_like(parameters_of(untrained(preparation)), np.nan)
        runtime.close()


def untrained(preparation: Preparation) -> Server:
    """The server before the first round."""
    section = preparation.scenario.server.optimizer
    return initial_server(preparation.plan, preparation.profiles_on_server(), section)


def parameters_of(server: Server) -> np.ndarray:
    """(P,) in the order of the peers' model: encoder, fusion, head."""
    blocks = {instance.name: block.sent.values for instance, block in server.blocks.items() if not instance.copy}
    return np.concatenate([blocks[name] for name in ("encoder/vector", "fusion", "head")])


def report(folder: Path) -> None:
    """Write curves and tables of what is there, print the tables."""
    parameters, curves = dict[Cell, np.ndarray](), dict[Cell, np.ndarray]()
    for path in sorted(folder.glob("seed-*/*.npy")):
        weighting, _, name = path.stem.partition(" ")
        cell = (int(path.parent.name.removeprefix("seed-")), weighting, name)
        parameters[cell] = np.load(path)
        curves[cell] = curve_of(Federation.load(path.with_name("federation.npz")), parameters[cell])
    with (folder / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("seed", "weighting", "contender", "round", "accuracy", "loss"))
        for cell, curve in curves.items():
            writer.writerows((*cell, number, *row) for number, row in enumerate(curve.tolist(), start=1))
    tables = {"scores": [*final_scores(parameters, curves)], "differences": [*differences(parameters, curves)]}
    (folder / "table.json").write_text(json.dumps(tables, indent=1, ensure_ascii=False))
    for rows in tables.values():
        print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
        print("\n".join("| " + " | ".join(row.values()) + " |" for row in rows), end="\n\n")
    for (seed, weighting, name), values in parameters.items():
        distance = distance_of(values[:FIRST_ROUNDS], parameters[seed, weighting, "our fedavg"])
        if name.endswith("fedavg") and not distance < LARGEST_DIFFERENCE:
            raise SystemExit(f"{name} is {distance:.2g} away from ours (seed {seed}, weighting {weighting})")


def curve_of(federation: Federation, parameters: np.ndarray) -> np.ndarray:
    """(rounds, 2): accuracy and mean cross-entropy of the global model on the common test set after each round."""
    model, rows = Mlp().double(), []
    features, labels = torch.from_numpy(federation.test_features).double(), torch.from_numpy(federation.test_labels)
    for values in parameters:
        vector_to_parameters(torch.from_numpy(values).double(), model.parameters())
        with torch.no_grad():
            logits = model(features)
        rows.append((float((logits.argmax(dim=1) == labels).double().mean()), float(cross_entropy(logits, labels))))
    return np.array(rows)


def num_sane(parameters: np.ndarray) -> int:
    """Rounds before the parameters (rounds, P) diverged."""
    is_sane = np.linalg.norm(parameters.astype(np.float64), axis=1) < DIVERGED
    return int(np.argmin(is_sane)) if not is_sane.all() else len(is_sane)


def distance_of(one: np.ndarray, other: np.ndarray) -> float:
    """Largest distance of parameters (rounds, P) in a round, relative to their length, before either diverged."""
    rounds = slice(min(num_sane(one), num_sane(other)))
    lengths = np.linalg.norm(other[rounds], axis=1)
    return float((np.linalg.norm(one[rounds] - other[rounds], axis=1) / lengths).max(initial=0.0))


def final_scores(parameters: dict[Cell, np.ndarray], curves: dict[Cell, np.ndarray]) -> Iterator[dict[str, str]]:
    """Scores after the last round: mean over seeds and standard deviation."""
    for weighting, name in sorted({cell[1:] for cell in curves}):
        cells = [cell for cell in curves if cell[1:] == (weighting, name)]
        accuracy, loss = np.stack([curves[cell][-1] for cell in cells]).T
        diverged = [num_sane(parameters[cell]) for cell in cells if num_sane(parameters[cell]) < len(parameters[cell])]
        yield {
            "weighting": weighting,
            "contender": name,
            "seeds": str(len(cells)),
            "accuracy": f"{accuracy.mean():.4f} ± {accuracy.std():.4f}",
            "loss": "" if diverged else f"{loss.mean():.4f} ± {loss.std():.4f}",
            "diverged": f"{len(diverged)}, after {min(diverged)} to {max(diverged)} rounds" if diverged else "0",
        }


def differences(parameters: dict[Cell, np.ndarray], curves: dict[Cell, np.ndarray]) -> Iterator[dict[str, str]]:
    """How far pairs lie apart on the same seeds: parameters relative to their length, accuracy as one minus other."""
    for weighting in WEIGHTINGS:
        for one, other in PAIRS:
            pairs = [
                (cell, (cell[0], weighting, other))
                for cell in curves
                if cell[1:] == (weighting, one) and (cell[0], weighting, other) in curves
            ]
            if pairs:
                accuracy = np.stack([curves[first][:, 0] - curves[second][:, 0] for first, second in pairs])
                values = [(parameters[first], parameters[second]) for first, second in pairs]
                yield {
                    "weighting": weighting,
                    "one": one,
                    "other": other,
                    f"{FIRST_ROUNDS} rounds": f"{max(distance_of(a[:FIRST_ROUNDS], b) for a, b in values):.1e}",
                    "all rounds": f"{max(distance_of(a, b) for a, b in values):.1e}",
                    "accuracy, last round": f"{accuracy[:, -1].mean():+.4f} ± {accuracy[:, -1].std():.4f}",
                    "accuracy, most in any round": f"{np.abs(accuracy).max():.4f}",
                }


if __name__ == "__main__":
    main()
