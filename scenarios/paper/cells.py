"""Prints docs/results/paper-grid.csv from the folders of the grid's sweeps: a line per run, with its command.

    python scenarios/paper/cells.py SWEEPS > cells.csv

SWEEPS holds sweeps of the grid's files, as for tables.py, under any name, those with `--set model.fusion.kind=concat`
or `--set rounds=200` among them. Scores are shares of 1: means of the last five rounds; `fine_tuned` is the last
accuracy after fine-tuning. The digests say of a run on the same kind of processor with the same versions whether it
computed the same bits.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from blossom_ray import Run, Scenario, Sweep
from blossom_ray.studies.comparison.scores import run_scores
from blossom_ray.studies.sweeps.folder import is_sweep

HERE = Path(__file__).parent
VARIED = ("rounds", "model.fusion.kind", "model.norm_statistics", "sharing")
"""What a cell may set to other values than its file, apart from the seed and the path of the data."""


def main() -> None:
    """Print every finished run of every sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", type=Path, help="folder of sweeps")
    folders = sorted(path for path in parser.parse_args().sweeps.iterdir() if is_sweep(path))
    runs = [run for folder in folders for run in Sweep.open(folder).runs.values() if run.status == "finished"]
    rows = [line(run) for run in runs]
    if rows:
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def line(run: Run) -> dict[str, object]:
    """One run: what it is, what came out, and how to repeat it."""
    scenario = run.scenario
    digest = run.manifest["digest"]
    return {
        "case": scenario.name,
        "fusion": scenario.model.fusion.kind,
        "norm_statistics": scenario.model.norm_statistics,
        "rounds": scenario.rounds,
        "sharing": scenario.sharing,
        "seed": scenario.seed,
        "accuracy": score(run, "accuracy", "last5"),
        "macro_f1_present": score(run, "macro_f1_present", "last5"),
        "fine_tuned": score(run, "fine_tuned/accuracy", "final"),
        "shared_digest": digest["shared"],
        "private_digest": digest["private"],
        "command": command(scenario),
    }


def score(run: Run, metric: str, summary: str) -> str:
    """A score as `compare` summarises it; empty where the run has none."""
    found = run_scores(run, metric, lower_is_better=False, target=None)
    return "" if found is None else f"{found.own.values[summary]:.4f}"


def command(scenario: Scenario) -> str:
    """The command that repeats a run; PATH stands for where the data set lies."""
    file = HERE / f"{scenario.name}.yaml"
    base = Scenario.load(file, {"data.path": value(scenario, "data.path"), "seed": scenario.seed})
    changed = [key for key in VARIED if value(base, key) != value(scenario, key)]
    repeated = base.override({key: value(scenario, key) for key in changed})
    if repeated.model_dump(exclude={"execution"}) != scenario.model_dump(exclude={"execution"}):
        raise SystemExit(f"{scenario.name}: differs from {file.name} in more than {', '.join(VARIED)}, seed and path")
    settings = [f"--set {key}={value(scenario, key)}" for key in changed]
    return " ".join(
        [f"blossom-ray simulate scenarios/paper/{file.name} --set data.path=PATH", *settings, f"--seed {scenario.seed}"]
    )


def value(scenario: Scenario, key: str) -> object:
    """The value at a dotted key."""
    found: object = scenario
    for name in key.split("."):
        found = getattr(found, name)
    return found


if __name__ == "__main__":
    main()
