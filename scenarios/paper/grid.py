"""Runs the grid of docs/results/paper-plan.md, stage after stage; the same command again goes on where it stopped.

    python scenarios/paper/grid.py DATA SWEEPS

DATA is a folder with `UCI-HAR/`, `AV-MNIST/` and `PTB-XL-subset/`, as docs/data.md says where they come from. SWEEPS
gets a sweep per case: `tune/` with rates and `grid/` with the runs that are reported.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from blossom_ray import Run, Sweep

HERE = Path(__file__).parent
DATA = {"uci-har": "UCI-HAR/UCI HAR Dataset.zip", "av-mnist": "AV-MNIST", "ptb-xl": "PTB-XL-subset"}
PAPER_RATE = {"uci-har": 0.05, "av-mnist": 0.001, "ptb-xl": 0.05}
FACTORS = (1 / 3, 1, 3)
FINE_TUNE_FACTORS = (1, 0.1, 0.01)
SCHEMES = ("full-model", "private-head", "private-head-fusion", "local")
STATISTICS = ("shared", "same-modalities")
TUNING_SEEDS, SEEDS = "100,101", "0,1,2,3,4"
CASES = ("dirichlet_5-5-0", "dirichlet_3-3-4", "iid_5-5-0", "iid_3-3-4", "dirichlet_0-0-10", "iid_0-0-10")


def main() -> None:
    """Tune, then run the cases, the data sets in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("sweeps", type=Path)
    arguments = parser.parse_args()
    for name in DATA:
        tune(name, arguments.data, arguments.sweeps / "tune")
    for case in CASES:
        for name in DATA:
            run_case(name, case, arguments.data, arguments.sweeps)


def tune(name: str, data: Path, out: Path) -> None:
    """The rates of training and, for the full model, of fine-tuning, on validation splits of other seeds."""
    validation = ["data.validation_fraction=0.2", "evaluation.split=validation", "evaluation.fine_tune=null"]
    rates = _values(PAPER_RATE[name], FACTORS)
    for scheme, statistic in _schemes("3-3-4"):
        settings = [*validation, f"sharing={scheme}", f"model.norm_statistics={statistic}"]
        vary = [f"training.optimizer.lr={rates}"]
        _sweep(name, "dirichlet_3-3-4", data, out / _label(name, scheme, statistic), settings, vary, TUNING_SEEDS)
    for statistic in STATISTICS:
        rate = chosen_rate(out / _label(name, "full-model", statistic))
        settings = [*validation[:2], f"training.optimizer.lr={rate}", "sharing=full-model"]
        settings += [f"model.norm_statistics={statistic}", "evaluation.fine_tune.every=5"]
        vary = [f"evaluation.fine_tune.lr={_values(rate, FINE_TUNE_FACTORS)}"]
        folder = out / f"{_label(name, 'full-model', statistic)}_fine-tuned"
        _sweep(name, "dirichlet_3-3-4", data, folder, settings, vary, TUNING_SEEDS)


def run_case(name: str, case: str, data: Path, sweeps: Path) -> None:
    """All schemes of a case, each at its own rate."""
    for scheme, statistic in _schemes(case.rpartition("_")[2]):
        label = _label(name, scheme, statistic)
        rate = chosen_rate(sweeps / "tune" / label)
        settings = [f"sharing={scheme}", f"model.norm_statistics={statistic}", f"training.optimizer.lr={rate}"]
        if scheme == "full-model":
            fine_tuned = chosen_rate(sweeps / "tune" / f"{label}_fine-tuned", fine_tuning=True)
            settings += [f"evaluation.fine_tune.lr={fine_tuned}", "evaluation.fine_tune.every=1"]
        else:
            settings.append("evaluation.fine_tune=null")
        _sweep(name, case, data, sweeps / "grid" / f"{label}_{case}", settings, [], SEEDS)


def chosen_rate(folder: Path, *, fine_tuning: bool = False) -> float:
    """The rate with the highest mean accuracy on validation splits; a rate at which a run failed is not chosen."""
    scores: dict[float, list[float]] = {}
    runs = Sweep.open(folder).runs.values()
    for run in runs:
        scores.setdefault(_rate(run, fine_tuning=fine_tuning), []).append(
            _validation_score(run, fine_tuning=fine_tuning)
        )
    whole = {
        rate: statistics.mean(found) for rate, found in scores.items() if len(found) == len(TUNING_SEEDS.split(","))
    }
    return max(whole, key=lambda rate: whole[rate])


def _rate(run: Run, *, fine_tuning: bool) -> float:
    tuning = run.scenario.evaluation.fine_tune
    rate = tuning.lr if fine_tuning and tuning is not None else run.scenario.training.optimizer.lr
    assert rate is not None
    return rate


def _validation_score(run: Run, *, fine_tuning: bool) -> float:
    column = "validation/fine_tuned/accuracy" if fine_tuning else "validation/accuracy"
    return float(run.rounds[column].drop_nulls().tail(5).mean())


def _schemes(split: str) -> Iterator[tuple[str, str]]:
    """Schemes with the statistics that make a difference to them: among equal clients, and alone, none does."""
    for scheme in SCHEMES:
        for statistic in STATISTICS[:1] if split == "0-0-10" or scheme == "local" else STATISTICS:
            yield scheme, statistic


def _label(name: str, scheme: str, statistic: str) -> str:
    return f"{name}_{scheme}_{statistic}"


def _values(rate: float, factors: tuple[float, ...]) -> str:
    return ",".join(f"{rate * factor:.4g}" for factor in factors)


def _sweep(name: str, case: str, data: Path, out: Path, settings: list[str], vary: list[str], seeds: str) -> None:
    words = [f"data.path={(data / DATA[name]).resolve()}", "execution.runtime=local", *settings]
    command = [
        "blossom-ray",
        "sweep",
        str(HERE / f"{name}_{case}.yaml"),
        "--seeds",
        seeds,
        "--out",
        str(out),
        "--jobs",
        "1",
    ]
    command += [part for word in words for part in ("--set", word)]
    command += [part for word in vary for part in ("--vary", word)]
    print(*command, flush=True)
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in (0, 1):  # 1: a cell failed, which the sweep notes
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
