"""Runs the sweeps of docs/results/paper-plan.md and writes a line per finished run; goes on where it stopped.

    python scenarios/paper/grid.py run DATA SWEEPS [--only tune/av-mnist ...] [--jobs 2]
    python scenarios/paper/grid.py lines SWEEPS > docs/results/claim.csv

DATA is a folder with `UCI-HAR/`, `AV-MNIST/` and `PTB-XL-subset/`, as docs/data.md says where they come from. SWEEPS
gets a sweep per plan: `tune/`, whose validation scores choose rates, and `grid/`, `blocks/` and so on, which are
reported.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shlex
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from blossom_ray import Run, Sweep, sweep
from blossom_ray.studies.comparison.scores import ALL, client_scores, run_compute, run_scores

HERE = Path(__file__).parent
DATA = {"av-mnist": "AV-MNIST", "uci-har": "UCI-HAR/UCI HAR Dataset.zip", "ptb-xl": "PTB-XL-subset"}
PAPER_RATE = {"uci-har": 0.05, "av-mnist": 0.001, "ptb-xl": 0.05}
FACTORS = {"uci-har": (1 / 3, 1, 3), "av-mnist": (1 / 3, 1, 3, 9), "ptb-xl": (1 / 3, 1, 3)}
FINE_TUNE_FACTORS = (1, 0.1, 0.01)
SEEDS, TUNING_SEEDS = (0, 1, 2, 3, 4), (100, 101)
SCHEMES = ("full-model", "private-head-fusion", "local", "private-head")
RUNNING_STATISTICS = ("av-mnist",)
"""The data sets whose models have any."""
MAPPED = ("av-mnist", "uci-har")
"""Where each block is private and shared."""
TUNED_ON = "dirichlet_3-3-4"
CASES = ("dirichlet_5-5-0", "dirichlet_3-3-4", "iid_5-5-0", "iid_3-3-4")
EQUAL_CLIENTS = ("dirichlet_0-0-10", "iid_0-0-10")
PRIVATE = {
    "encoders": ("encoder/*",),
    "fusion": ("fusion",),
    "encoders+fusion": ("encoder/*", "fusion"),
    "encoders+head": ("encoder/*", "head"),
}
"""The maps of private blocks that no scheme is: none is FM, head PH, fusion+head PHF, all of them local."""
SCORES = ("accuracy", "macro_f1_present")
COLUMNS = (
    "sweep", "sharing", "statistics", "fusion", "lr", "fine_tune_lr", "seed", *SCORES,
    *(f"fine_tuned/{score}" for score in SCORES), "parameters", "examples", "steps", "bytes", "clients", "own",
    "started", "seconds", "processor", "shared_digest", "private_digest", "command",
)  # fmt: skip


class Plan(NamedTuple):
    """A sweep: a scenario of this folder, values in all cells, and values and seeds that vary."""

    scenario: str
    given: Mapping[str, Any]
    vary: Mapping[str, Sequence[Any]]
    seeds: Sequence[int]


def main() -> None:
    """Run what is not there yet, or print the lines of what is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("data", type=Path)
    run.add_argument("sweeps", type=Path)
    run.add_argument("--only", nargs="+", default=[""], help="how names of sweeps begin")
    run.add_argument("--jobs", type=int, default=1)
    commands.add_parser("lines").add_argument("sweeps", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "run":
        run_all(arguments.data, arguments.sweeps, tuple(arguments.only), arguments.jobs)
    else:
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name, plan in plans(arguments.sweeps):
            if (arguments.sweeps / name).exists():
                writer.writerows(lines(name, plan, arguments.sweeps / name))


def plans(sweeps: Path) -> Iterator[tuple[str, Plan]]:
    """Each sweep's name and plan, in the order in which they are run; none whose rates are not chosen yet."""
    for data in DATA:
        yield from tuning(data, sweeps)
    for case in CASES:
        for data in DATA:
            for scheme, norm in arms(data, case):
                if scheme != "private-head" or case.startswith("dirichlet") or data in RUNNING_STATISTICS:
                    yield from reported("grid", data, case, scheme, norm, sweeps)
    for case in CASES[:2]:
        for data in MAPPED:
            yield from block_maps(data, case, sweeps)
    for split in ("recording", "common-subject"):
        for scheme in SCHEMES[:3]:
            yield from reported(f"{split}s", "uci-har", CASES[0], scheme, "shared", sweeps, {"data.split": split})
    for case in EQUAL_CLIENTS:
        for data in DATA:
            for scheme in SCHEMES[:3]:
                yield from reported("grid", data, case, scheme, "shared", sweeps)
    for case in CASES[:2]:
        for data in DATA:
            for scheme, norm in arms(data, case):
                if scheme in SCHEMES[:2]:
                    yield from reported("concat", data, case, scheme, norm, sweeps, {"model.fusion.kind": "concat"})


def arms(data: str, case: str) -> Iterator[tuple[str, str]]:
    """Schemes with the kinds of statistics that make a difference to them."""
    for scheme in SCHEMES:
        kinds = dict.fromkeys(distinct(data, case, scheme, norm) for norm in ("same-modalities", "shared"))
        yield from ((scheme, norm) for norm in kinds)


def distinct(data: str, case: str, scheme: str, norm: str) -> str:
    """The kind of statistics whose runs stand for those of another kind, too, where a scheme has the same with both.

    That is so where a model has none, among clients of the same modalities, for who is alone, and for a private head
    where each encoder is held by one modality set: no other block has statistics.
    """
    if data not in RUNNING_STATISTICS or scheme == "local" or case in EQUAL_CLIENTS:
        return "shared"
    is_private = scheme.startswith("private-head") and case.endswith("5-5-0")
    return "same-modalities" if is_private else norm


def tuning(data: str, sweeps: Path) -> Iterator[tuple[str, Plan]]:
    """The rates of training and, for the full model, of fine-tuning, on validation splits of other seeds."""
    validation = {"execution.runtime": "local", "data.validation_fraction": 0.2, "evaluation.split": "validation"}
    for scheme, norm in arms(data, TUNED_ON):
        given = {**validation, "evaluation.fine_tune": None, "sharing": scheme, "model.norm_statistics": norm}
        rates = {"training.optimizer.lr": _values(PAPER_RATE[data], FACTORS[data])}
        yield f"tune/{data}_{scheme}_{norm}", Plan(f"{data}_{TUNED_ON}", given, rates, TUNING_SEEDS)
    for scheme, norm in arms(data, TUNED_ON):
        rate = chosen_rate(sweeps / f"tune/{data}_{scheme}_{norm}")
        if scheme == "full-model" and rate is not None:
            given = {**validation, "sharing": scheme, "model.norm_statistics": norm, "training.optimizer.lr": rate}
            given |= {"evaluation.fine_tune.every": None, "evaluation.fine_tune.last": 5}
            rates = {"evaluation.fine_tune.lr": _values(rate, FINE_TUNE_FACTORS)}
            yield f"tune/{data}_fine-tuned_{norm}", Plan(f"{data}_{TUNED_ON}", given, rates, TUNING_SEEDS)


def reported(
    stage: str, data: str, case: str, scheme: str, norm: str, sweeps: Path, given: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, Plan]]:
    """A scheme at its own rate; the full model is scored after fine-tuning, too."""
    rate = chosen_rate(sweeps / f"tune/{data}_{scheme}_{norm}")
    tuned = chosen_rate(sweeps / f"tune/{data}_fine-tuned_{norm}", "evaluation.fine_tune.lr")
    if rate is None or (scheme == "full-model" and tuned is None):
        return
    tuning = {"evaluation.fine_tune": {"epochs": 1, "lr": tuned, "last": 5}} if scheme == "full-model" else {}
    plan = _plan(data, case, scheme, norm, rate, {**(given or {}), **tuning})
    yield f"{stage}/{data}_{case}_{scheme}_{norm}", plan


def block_maps(data: str, case: str, sweeps: Path) -> Iterator[tuple[str, Plan]]:
    """The maps of private blocks that are no scheme, and the learned mixture, at the rate of PHF."""
    norm = distinct(data, case, "full-model", "same-modalities")
    rate = chosen_rate(sweeps / f"tune/{data}_private-head-fusion_{norm}")
    if rate is None:
        return
    for name, private in PRIVATE.items():
        sharing = {block: "private" if block in private else "shared" for block in ("encoder/*", "fusion", "head")}
        yield f"blocks/{data}_{case}_{name}", _plan(data, case, sharing, norm, rate, {})
    mixed = {"algorithm": {"kind": "mixed"}}
    yield f"blocks/{data}_{case}_mixed", _plan(data, case, "full-model", norm, rate, mixed)


_CHOSEN: dict[tuple[Path, str], float | None] = {}
"""Rates by folder and key: each is asked for by many plans, and runs that have ended do not change."""


def chosen_rate(folder: Path, key: str = "training.optimizer.lr") -> float | None:
    """The rate with the highest mean accuracy on validation splits; a rate at which a run failed is not chosen.

    None where a run is missing.
    """
    if (folder, key) in _CHOSEN:
        return _CHOSEN[folder, key]
    score = "validation/fine_tuned/accuracy" if "fine_tune" in key else "validation/accuracy"
    found: dict[float, list[float]] = {}
    if not folder.exists():
        return None
    cells = Sweep.open(folder)
    for cell in cells.cells:
        path = folder / cell.folder
        run = Run.open(path) if path.exists() else None
        if run is None or run.status not in ("finished", "failed"):
            return None
        if run.status == "finished":
            found.setdefault(cell.setting[key], []).append(_last5(run, score))
    whole = {rate: statistics.mean(values) for rate, values in found.items() if len(values) == len(TUNING_SEEDS)}
    rate = _CHOSEN[folder, key] = max(whole, key=whole.__getitem__, default=None)
    return rate


def run_all(data: Path, sweeps: Path, only: tuple[str, ...], jobs: int) -> None:
    """The sweeps whose names begin so, one after the other; cells that have ended are skipped.

    A run whose numbers are no longer finite fails again each time; it is not repeated.
    """
    done: set[str] = set()
    while pending := [(name, plan) for name, plan in plans(sweeps) if name not in done and name.startswith(only)]:
        name, plan = pending[0]
        done.add(name)
        path = (data / DATA[plan.scenario.partition("_")[0]]).resolve()
        if not _has_ended(sweeps / name, plan):
            given = {**plan.given, "data.path": str(path)}
            scenario = HERE / f"{plan.scenario}.yaml"
            cells = sweep(scenario, vary=plan.vary, seeds=plan.seeds, overrides=given, out=sweeps / name, jobs=jobs)
            for cell in cells:
                print(datetime.now().strftime("%H:%M"), name, cell.cell.name, cell.error or "", flush=True)


def lines(name: str, plan: Plan, folder: Path) -> Iterator[dict[str, object]]:
    """A line per finished run: what it is, what came out, how long it took, and how to repeat it.

    Scores are shares of 1, means of the last five scored rounds; `clients` has them by client, in the order of
    `SCORES`, then after fine-tuning, and last the client's test samples; `own` has what the learned mixture has of a
    client's own copy, by block. `steps` is what a model goes through.
    """
    found = Sweep.open(folder)
    scores = [f"validation/{score}" for score in SCORES] if name.startswith("tune/") else [*SCORES]
    scores += [f"{score.rpartition('/')[0]}/fine_tuned/{score.rpartition('/')[2]}".lstrip("/") for score in scores]
    for cell in found.cells:
        path = folder / cell.folder
        if not path.exists() or (run := Run.open(path)).status != "finished":
            continue
        scenario, digest, compute = run.scenario, run.manifest["digest"], run_compute(run)
        known = [score for score in scores if score in run.rounds.columns]
        begun, ended = (datetime.fromisoformat(run.manifest[key]) for key in ("started_at", "ended_at"))
        tuned = scenario.evaluation.fine_tune
        settings = {"data.path": "PATH", **plan.given, **cell.setting}
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
        words = [f"--set {shlex.quote(f'{key}={text}')}" for key, text in texts.items() if key != "execution.runtime"]
        yield {
            "sweep": name,
            "sharing": name.rpartition("_")[2] if name.startswith("blocks/") else scenario.sharing,
            "statistics": scenario.model.norm_statistics,
            "fusion": scenario.model.fusion.kind,
            "lr": scenario.training.optimizer.lr,
            "fine_tune_lr": "" if tuned is None else tuned.lr,
            "seed": cell.seed,
            **{column: f"{_last5(run, score):.5f}" if score in known else ""
               for column, score in zip((*SCORES, *(f"fine_tuned/{score}" for score in SCORES)), scores, strict=True)},
            "parameters": sum(run.manifest["parameters"].values()),
            "examples": compute.num_examples,
            "steps": compute.num_steps,
            "bytes": (compute.bytes_down or 0) + (compute.bytes_up or 0),
            "clients": json.dumps(_by_client(run, known), separators=(",", ":")),
            "own": json.dumps(_own_shares(run), separators=(",", ":")) if name.endswith("_mixed") else "",
            "started": f"{begun:%Y-%m-%d %H:%M}",
            "seconds": round((ended - begun).total_seconds()),
            "processor": " ".join(f"{kind['processor']} {kind['cpu_capability']}" for kind in run.manifest["kernels"]),
            "shared_digest": digest["shared"][:16],
            "private_digest": digest["private"][:16],
            "command": " ".join([f"blossom-ray simulate paper/{plan.scenario}", *words, f"--seed {cell.seed}"]),
        }  # fmt: skip


def _by_client(run: Run, scores: Sequence[str]) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    samples: dict[int, float] = {}
    for score in scores:
        rounds = tuple(run.rounds.drop_nulls(score)["round"].to_list()[-5:])
        for client, (value, weight) in client_scores(run, score, ALL, rounds).items():
            found.setdefault(client, []).append(round(value, 5))
            samples[client] = weight
    return {client: [*values, round(samples[client])] for client, values in found.items()}


def _own_shares(run: Run) -> dict[int, dict[str, float]]:
    leans = {client: run.extras(client)["lean"] for client in range(run.scenario.num_clients)}
    return {
        client: {block: round(1 / (1 + math.exp(-float(lean))), 4) for block, lean in blocks.items()}
        for client, blocks in leans.items()
    }


def _last5(run: Run, score: str) -> float:
    value = run_scores(run, score, lower_is_better=False, target=None).own.values["last5"]
    assert value is not None
    return value


def _plan(data: str, case: str, sharing: object, norm: str, rate: float, given: dict[str, Any]) -> Plan:
    common = {"execution.runtime": "local", "evaluation.held_out": "never", "evaluation.fine_tune": None}
    settings = {"sharing": sharing, "model.norm_statistics": norm, "training.optimizer.lr": rate}
    return Plan(f"{data}_{case}", {**common, **settings, **given}, {}, SEEDS)


def _has_ended(folder: Path, plan: Plan) -> bool:
    cells = Sweep.open(folder).cells if folder.exists() else ()
    paths = [folder / cell.folder for cell in cells]
    has_all = len(paths) == len(plan.seeds) * math.prod(map(len, plan.vary.values()))
    return has_all and all(path.exists() and Run.open(path).status in ("finished", "failed") for path in paths)


def _values(rate: float, factors: Sequence[float]) -> list[float]:
    return [float(f"{rate * factor:.4g}") for factor in factors]


if __name__ == "__main__":
    main()
