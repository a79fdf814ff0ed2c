"""Runs the code published with the paper beside ours, its faults mended one by one: docs/results/reference.md.

    python scenarios/paper/reference.py check CHECKOUT PATH       # some rounds of both, from the same draws
    python scenarios/paper/reference.py run CHECKOUT PATH LINES   # goes on where it stopped
    python scenarios/paper/reference.py tables                    # of docs/results/reference.csv

PATH is the official archive of UCI-HAR; what CHECKOUT is, and what it needs, stands in reference_code.py.
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from points import with_interval
from reference_code import MODALITIES, PLACES, Checkout, Mended, Round

from blossom_ray import Scenario

HERE = Path(__file__).parent
LINES = HERE.parents[1] / "docs" / "results" / "reference.csv"
GRID = LINES.with_name("paper-grid.csv")
SCHEMES = {"full-model": "FM", "private-head-fusion": "PHF"}
SPLITS = {"5-5-0": (5, 5, 0), "3-3-4": (3, 3, 4)}
SEEDS, ROUNDS = (0, 1, 2), 60
REFERENCE = {
    "as published": Mended(),
    "state per client": Mended(workers=1),
    "current encoder": Mended(workers=1, current_encoder=True),
    "masked": Mended(workers=1, current_encoder=True, masked=True),
}
OURS = {
    "compat": {"compat": "blossom-reference", "model.missing": "zero-input"},
    "compat, masked": {"data.draws": "reference", "training.min_batch_size": 2},
}
"""By step what is set besides in the paper's scenario file, in which absent modalities are masked."""
STEPS = {
    "as published": "as published, 4 workers",
    "state per client": "state per client",
    "current encoder": "current encoder",
    "compat": "current encoder: ours, `compat`",
    "masked": "masked",
    "compat, masked": "masked: ours",
    "grid": "the paper's grid (ours)",
}
SCORES = {"accuracy": "accuracy", "macro_f1_all": "macro-F1, all classes", "macro_f1_present": "macro-F1, own classes"}
GRID_CASE = "uci-har_dirichlet_"
Scores = dict[str, Mapping[str, str]]
"""Lines by seed."""


def main() -> None:
    """Check, run, or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("check", check), ("run", run)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        for argument in ("checkout", "path"):
            command.add_argument(argument, type=Path)
        command.add_argument("--only", nargs="*", default=[], help="names such as 'compat; full-model; 5-5-0; 0'")
        command.add_argument("--rounds", type=int, default=ROUNDS if name == "run" else 3)
    commands.choices["run"].add_argument("lines", type=Path)
    commands.add_parser("tables").set_defaults(function=lambda _: print("\n".join(tables(read(LINES), read(GRID)))))
    arguments = parser.parse_args()
    arguments.function(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Add a line for every run that has none."""
    checkout = checkout_of(arguments)
    done = {name_of(line) for line in read(arguments.lines)} if arguments.lines.exists() else set[str]()
    for split, seed, step, scheme in product(SPLITS, SEEDS, (*REFERENCE, *OURS), SCHEMES):
        line: dict[str, Any] = {"step": step, "scheme": scheme, "split": split, "seed": seed}
        name = name_of(line)
        if name in done or (arguments.only and name not in arguments.only):
            continue
        started = time.process_time()
        last = list(rounds_of(checkout, arguments, line))[-5:]
        means = {score: f"{math.fsum(each.scores[score] for each in last) / len(last):.4f}" for score in SCORES}
        finals = {f"{score}_final": f"{last[-1].scores[score]:.4f}" for score in SCORES}
        seconds = round(time.process_time() - started)
        line |= means | finals | {"rounds": arguments.rounds, "digest": last[-1].digest}
        add_line(arguments.lines, line | {"seconds": seconds, "command": command(line)})


def check(arguments: argparse.Namespace) -> None:
    """Print by round how far our parameters and scores are from those of the reference with the same faults."""
    checkout = checkout_of(arguments)
    pairs = {"current encoder": "compat", "masked": "compat, masked"}
    for (theirs, ours), split, scheme in product(pairs.items(), SPLITS, SCHEMES):
        line = {"scheme": scheme, "split": split, "seed": 0}
        if arguments.only and name_of({"step": ours, **line}) not in arguments.only:
            continue
        both = (rounds_of(checkout, arguments, {"step": step, **line}, every=1) for step in (theirs, ours))
        for one, other in zip(*both, strict=True):
            apart = max(float(np.abs(one.shared[name] - other.shared[name]).max()) for name in other.shared)
            scores = {score: round(other.scores[score] - one.scores[score], 6) for score in SCORES}
            print(f"{ours} - {theirs}; {scheme}; {split}; round {one.index}: {apart:.2g}", scores, flush=True)


def checkout_of(arguments: argparse.Namespace) -> Checkout:
    """The reference, with the windows of the paper's file."""
    file = HERE / "uci-har_dirichlet_5-5-0.yaml"
    section = Scenario.load(file, {"data.path": str(arguments.path)}).data
    return Checkout(arguments.checkout, section.open(MODALITIES, 0, section.facts.tasks[0]).load())


def rounds_of(
    checkout: Checkout, arguments: argparse.Namespace, line: Mapping[str, Any], every: int = 20
) -> Iterator[Round]:
    """The rounds of a run; of the reference's, one in so many and the last five are scored."""
    from blossom_ray.clients.workspace import client_workspace
    from blossom_ray.runtime.local import LocalRuntime
    from blossom_ray.runtime.preparation import prepare
    from blossom_ray.server import initial_server
    from blossom_ray.simulation import run_rounds

    file = HERE / f"uci-har_dirichlet_{line['split']}.yaml"
    settings = OURS.get(line["step"], OURS["compat"]) | {"data.path": str(arguments.path), "seed": line["seed"]}
    settings |= {"sharing": line["scheme"], "rounds": arguments.rounds, "evaluation.fine_tune": None}
    scenario = Scenario.load(file, settings)
    with tempfile.TemporaryDirectory() as folder:
        preparation = prepare(scenario, Path(folder))
        profiles = preparation.population.profiles
        if line["step"] in REFERENCE:
            # With zeros in the place of a missing input a client holds all blocks.
            initial = client_workspace(preparation.plan, profiles[0]).initial_blocks
            yield from checkout.rounds(
                REFERENCE[line["step"]],
                seed=line["seed"],
                is_private=line["scheme"] == "private-head-fusion",
                counts=SPLITS[line["split"]],
                initial={block: initial[block] for block in PLACES},
                num_rounds=arguments.rounds,
                scored={*range(every, arguments.rounds, every), *range(arguments.rounds - 4, arguments.rounds + 1)},
            )
            return
        start = initial_server(preparation.plan, profiles, scenario.server.optimizer)
        for record, server in run_rounds(preparation, LocalRuntime(preparation), start):
            shared = {str(instance.name): block.sent.values for instance, block in server.blocks.items()}
            if record.round_index:
                yield Round(record.round_index, record.metrics, shared, server.digest())


def tables(lines: Sequence[Mapping[str, str]], grid: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """By score the walk; how far each step is from the first; what a federation of its own for each scheme does.

    Args:
        lines: Of reference.csv.
        grid: Of paper-grid.csv, where the walk ends.
    """
    found: dict[tuple[str, str, str], Scores] = {}
    for line in lines:
        found.setdefault((line["split"], line["step"], line["scheme"]), {})[line["seed"]] = line
    for line in grid:
        if line["fusion"] == "attention" and line["case"].startswith(GRID_CASE):
            key = line["case"].removeprefix(GRID_CASE), "grid", line["sharing"]
            found.setdefault(key, {})[line["seed"]] = line
    walk = [(split, step) for split, step in product(SPLITS, STEPS) if (split, step, "private-head-fusion") in found]

    def both(split: str, step: str, score: str) -> list[dict[str, float]]:
        return [points_of(found.get((split, step, scheme), {}), score) for scheme in SCHEMES]

    for score, name in SCORES.items():
        yield f"\n| {name} | FM | PHF | PHF - FM | round 60: FM | PHF | PHF - FM |\n|---|{'---:|' * 6}"
        for split, step in walk:
            sides = [both(split, step, score), both(split, step, f"{score}_final")]
            if sides[0][1]:
                texts = [each for full, own in sides for each in (shown(full), shown(own), shown(less(own, full), "+"))]
                yield f"| {split}, {STEPS[step]} | {' | '.join(texts)} |"
    names = [f"{scheme}, {score}" for score, scheme in product(SCORES.values(), SCHEMES.values())]
    yield f"\n| points over as published | {' | '.join(names)} |\n|---|{'---:|' * len(names)}"
    for split, step in walk:
        if step not in ("as published", "grid"):
            pairs = (zip(both(split, step, score), both(split, "as published", score), strict=True) for score in SCORES)
            texts = [shown(less(*pair), "+") for of_score in pairs for pair in of_score]
            yield f"| {split}, {STEPS[step]} | {' | '.join(texts)} |"
    yield f"\n| accuracy by seed | {' | '.join(map(str, SEEDS))} |\n|---|{'---:|' * len(SEEDS)}"
    for (split, step), (place, scheme) in product(walk, enumerate(SCHEMES.values())):
        own = both(split, step, "accuracy")[place]
        if own and step != "grid":
            texts = [f"{own[seed]:.1f}" if seed in own else "-" for seed in map(str, SEEDS)]
            yield f"| {split}, {STEPS[step]}, {scheme} | {' | '.join(texts)} |"
    yield "\n| PHF - FM as published, points of accuracy | on the same federation | each on its own |\n|---|---:|---:|"
    for split in dict(walk):
        full, own = both(split, "as published", "accuracy")
        pairs_of_seeds = list(product(own, full))
        ranges = ([own[i] - full[j] for i, j in pairs_of_seeds if (i == j) == is_same] for is_same in (True, False))
        yield f"| {split} | {' | '.join(f'{min(each):+.1f} to {max(each):+.1f}' for each in ranges)} |"


def points_of(scores: Scores, score: str) -> dict[str, float]:
    """Percent points by seed, of the seeds that have the score."""
    return {seed: 100 * float(line[score]) for seed, line in scores.items() if line.get(score)}


def less(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Differences by seed."""
    return {seed: one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())}


def shown(values: Mapping[str, float], sign: str = "") -> str:
    """Mean and half of the interval, with the number of seeds where it is not all; a dash where there is none."""
    if not values:
        return "-"
    text = with_interval(list(values.values()))
    few = f" ({len(values)})" if len(values) < len(SEEDS) else ""
    return (text if sign else text.removeprefix("+")) + few


def name_of(line: Mapping[str, Any]) -> str:
    """Which run a line is of."""
    return "; ".join(str(line[key]) for key in ("step", "scheme", "split", "seed"))


def command(line: Mapping[str, Any]) -> str:
    """What repeats a run; capitals stand for where things lie."""
    if line["step"] in REFERENCE:
        return f"python scenarios/paper/reference.py run CHECKOUT PATH LINES --only '{name_of(line)}'"
    settings = {"data.path": "PATH", "sharing": line["scheme"], "evaluation.fine_tune": "null", **OURS[line["step"]]}
    words = [f"--set {key}={value}" for key, value in settings.items()]
    file = f"scenarios/paper/uci-har_dirichlet_{line['split']}.yaml"
    return " ".join(["blossom-ray simulate", file, *words, f"--seed {line['seed']}"])


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def add_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line, after the names of the columns where it is the first."""
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(line), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(line)


if __name__ == "__main__":
    main()
