"""The paper's UCI-HAR settings: FM and PHF, exclusive and incomplete modalities, two rules for missing ones.

    python benchmarks/uci_har.py "UCI HAR Dataset.zip" --seeds 1 4 --out runs

Runs what is not there yet (one run after another, each as the command line would), then prints a Markdown table from
the run folders: mean over the last five rounds of macro-F1 over all classes and of accuracy, median seconds per round.
Interrupt it at any time; it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl

from blossom_ray import Run
from blossom_ray.data.division.federation import build_federation

SETTINGS = {"5-5-0": "uci-har-exclusive", "3-3-4": "uci-har-incomplete"}
RULES = ("mask", "zero-input")
SCHEMES = {"FM": "full-model", "PHF": "private-head-fusion"}
Case = tuple[str, str, str, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the official archive")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--out", type=Path, default=Path("runs"))
    arguments = parser.parse_args()

    cases: list[Case] = list(product(SETTINGS, RULES, SCHEMES, arguments.seeds))
    for case in cases:
        if case not in finished_runs(arguments.out):
            simulate(case, arguments.data, arguments.out)
    print(table(finished_runs(arguments.out), arguments.seeds))


def simulate(case: Case, data: Path, out: Path) -> None:
    setting, rule, scheme, seed = case
    command = [sys.executable, "-m", "blossom_ray", "simulate", f"scenarios/{SETTINGS[setting]}.yaml", "--resume"]
    for assignment in (f"data.path={data}", f"sharing={SCHEMES[scheme]}", f"model.missing={rule}"):
        command += ["--set", assignment]
    subprocess.run([*command, "--seed", str(seed), "--out", str(out)], check=True, stdout=sys.stderr)


def finished_runs(out: Path) -> dict[Case, Run]:
    """The newest finished run of each case."""
    runs: dict[Case, Run] = {}
    for setting, name in SETTINGS.items():
        for folder in sorted((out / name).glob("*/manifest.json")):
            run = Run.open(folder.parent)
            scenario = run.scenario
            scheme = next((short for short, long in SCHEMES.items() if long == scenario.sharing), None)
            if run.status == "finished" and scheme is not None and scenario.rounds == 60:
                runs[setting, scenario.model.missing, scheme, scenario.seed] = run
    return runs


def ceiling(run: Run) -> float:
    """The macro-F1 over all classes that a perfect classifier would reach: absent classes count 0."""
    scenario = run.scenario
    targets = scenario.data.open(scenario.modalities, scenario.seed, scenario.task).targets()
    federation = build_federation(scenario.data, targets, scenario.num_clients, scenario.seed)
    present = [
        len(np.unique(targets.labels[federation.test.of(client)])) / targets.num_classes
        for client in range(federation.num_clients)
    ]
    return float(np.average(present, weights=federation.test.counts))


def table(runs: dict[Case, Run], seeds: list[int]) -> str:
    lines = [
        "| setting | missing | seed | ceiling | FM F1 | PHF F1 | FM acc. | PHF acc. | FM s/round | PHF s/round |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for setting, rule, seed in product(SETTINGS, RULES, seeds):
        pair = [runs.get((setting, rule, scheme, seed)) for scheme in SCHEMES]
        if None in pair:
            continue
        found = [run for run in pair if run is not None]
        f1 = [100 * last_five(run, "macro_f1_all") for run in found]
        accuracy = [100 * last_five(run, "accuracy") for run in found]
        seconds = [float(np.median(run.rounds.filter(pl.col("round") > 0)["seconds"].to_numpy())) for run in found]
        cells = [setting, f"`{rule}`", str(seed), f"{100 * ceiling(found[0]):.1f}"]
        cells += [f"{value:.1f}" for value in (*f1, *accuracy)] + [f"{value:.2f}" for value in seconds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def last_five(run: Run, metric: str) -> float:
    return float(run.rounds[metric].tail(5).to_numpy().mean())


if __name__ == "__main__":
    main()
