"""Runs the sweeps of docs/results/paper-plan.md and writes a line per finished run; goes on where it stopped.

    python scenarios/paper/grid.py run DATA SWEEPS [--only tune/av-mnist ...] [--jobs 2] [--known LINES]
    python scenarios/paper/grid.py lines SWEEPS [--known LINES] > docs/results/claim.csv

DATA is a folder with `UCI-HAR/`, `AV-MNIST/` and `PTB-XL-subset/`, as docs/data.md says where they come from. SWEEPS
gets a sweep per plan: `tune/`, whose validation scores choose rates, and `grid/`, `blocks/` and so on, which are
reported. A run that has a line in the file LINES, from another day or machine, counts as one that has ended; with
`--again` that holds for `tune/` alone, to repeat reported runs elsewhere.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import shlex
import statistics
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from blossom_ray import Run, Sweep, sweep
from blossom_ray.errors import ClientError
from blossom_ray.studies.comparison.scores import ALL, client_scores, run_compute, run_scores

HERE = Path(__file__).parent
DATA = {"av-mnist": "AV-MNIST", "uci-har": "UCI-HAR/UCI HAR Dataset.zip", "ptb-xl": "PTB-XL-subset"}
PAPER_RATE = {"uci-har": 0.05, "av-mnist": 0.001, "ptb-xl": 0.05}
FACTORS = {"uci-har": (1 / 3, 1, 3), "av-mnist": (1 / 3, 1, 3, 9), "ptb-xl": (1 / 3, 1, 3)}
FINE_TUNE_FACTORS = (1, 0.1, 0.01)
SEEDS = (0, 1, 2, 3, 4)
TUNING_SEEDS = {"uci-har": (100, 101), "av-mnist": (100, 101), "ptb-xl": (100,)}
SCHEMES = ("full-model", "private-head-fusion", "local", "private-head")
VALIDATION = {"execution.runtime": "local", "data.validation_fraction": 0.2, "evaluation.split": "validation"}
RUNNING_STATISTICS = ("av-mnist",)
"""The data sets whose models have any; only there evenly divided samples, equal clients and concat fusion are run."""
SKEWED = ("dirichlet_5-5-0", "dirichlet_3-3-4")
CASES = (*SKEWED, "iid_5-5-0", "iid_3-3-4")
EQUAL_CLIENTS = ("dirichlet_0-0-10",)
MAPPED = (("av-mnist", SKEWED[0]), ("av-mnist", SKEWED[1]), ("uci-har", SKEWED[0]))
"""Where each block is private and shared."""
TUNED_ON = SKEWED[1]
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
    run.add_argument("--seeds", nargs="+", type=int, help="these alone")
    lines = commands.add_parser("lines")
    lines.add_argument("sweeps", type=Path)
    for command in (run, lines):
        command.add_argument("--known", type=Path, help="a file of lines")
        command.add_argument("--again", action="store_true", help="as if no line were of a reported run")
    arguments = parser.parse_args()
    ended = Ended(arguments.sweeps, arguments.known, again=arguments.again)
    if arguments.command == "run":
        run_all(arguments.data, ended, tuple(arguments.only), arguments.jobs, arguments.seeds)
    else:
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name, plan in plans(ended):
            if not (arguments.again and name.startswith("tune/")):
                writer.writerows(ended.lines(name, plan).values())


class Ended:
    """The lines of runs that have ended: from run folders, and from a file."""

    def __init__(self, sweeps: Path, known: Path | None = None, *, again: bool = False) -> None:
        self.sweeps = sweeps
        self._known: dict[str, Mapping[str, object]] = {}
        self._rates: dict[str, float | None] = {}
        if known is not None:
            with known.open(encoding="utf-8", newline="") as file:
                rows = (row for row in csv.DictReader(file) if row["sweep"].startswith("tune/") or not again)
                self._known = {row["command"]: row for row in rows}

    def lines(self, name: str, plan: Plan) -> dict[str, Mapping[str, object]]:
        """A sweep's lines by command, in the order of its cells; a run folder goes before the file."""
        folder = self.sweeps / name
        own = {str(line["command"]): line for line in lines_of(name, plan, folder)} if folder.exists() else {}
        found = {**self._known, **own}
        return {command: found[command] for command in commands(plan) if command in found}

    def missing(self, name: str, plan: Plan) -> Iterator[Plan]:
        """What of a sweep has not ended: seeds that miss the same values stand together."""
        found = self.lines(name, plan)
        values: dict[int, dict[str, list[Any]]] = {}
        for command, (setting, seed) in commands(plan).items():
            if command not in found:
                of_seed = values.setdefault(seed, {key: [] for key in setting})
                for key, value in setting.items():
                    of_seed[key].append(value)
        while values:
            vary = next(iter(values.values()))
            seeds = [seed for seed, others in values.items() if others == vary]
            yield plan._replace(vary=vary, seeds=seeds)
            for seed in seeds:
                del values[seed]

    def rate(self, name: str, plan: Plan) -> float | None:
        """The rate with the highest mean accuracy on validation splits; a rate at which a run failed is not chosen.

        None where a run is missing.
        """
        if name not in self._rates:
            found = self.lines(name, plan)
            if len(found) < len(commands(plan)):
                return None
            ((key, rates),) = plan.vary.items()
            score = "fine_tuned/accuracy" if "fine_tune" in key else "accuracy"
            texts = {rate: [found[c][score] for c, (setting, _) in commands(plan).items() if setting[key] == rate]
                     for rate in rates}  # fmt: skip
            whole = {rate: statistics.mean(map(float, each)) for rate, each in texts.items() if "" not in each}
            self._rates[name] = max(whole, key=whole.__getitem__, default=None)
        return self._rates[name]


def commands(plan: Plan) -> dict[str, tuple[dict[str, Any], int]]:
    """The settings and the seed of each cell of a sweep, by the command that repeats it."""
    found = {}
    for values in itertools.product(*plan.vary.values()):
        for seed in plan.seeds:
            setting = dict(zip(plan.vary, values, strict=True))
            found[_command(plan, setting, seed)] = setting, seed
    return found


def _command(plan: Plan, setting: Mapping[str, Any], seed: int) -> str:
    settings = {"data.path": "PATH", **plan.given, **setting}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    words = [f"--set {shlex.quote(f'{key}={text}')}" for key, text in texts.items() if key != "execution.runtime"]
    return " ".join([f"blossom-ray simulate paper/{plan.scenario}", *words, f"--seed {seed}"])


def plans(ended: Ended) -> Iterator[tuple[str, Plan]]:
    """Each sweep's name and plan, in the order in which they are run; none whose rates are not chosen yet."""
    for data in DATA:
        yield from tuning(data, ended)
    for case, data in itertools.product(CASES, DATA):
        if case in SKEWED or data in RUNNING_STATISTICS:
            for scheme, norm in arms(data, case):
                if scheme != "private-head" or data in RUNNING_STATISTICS or (data, case) in MAPPED:
                    yield from reported("grid", data, case, scheme, norm, ended)
    for data, case in MAPPED:
        yield from block_maps(data, case, ended)
    for scheme in SCHEMES[:3]:
        yield from reported("recordings", "uci-har", SKEWED[0], scheme, "shared", ended, {"data.split": "recording"})
    for case, data in itertools.product(EQUAL_CLIENTS, RUNNING_STATISTICS):
        for scheme in SCHEMES[:3]:
            yield from reported("grid", data, case, scheme, "shared", ended)
    for case, data in itertools.product(SKEWED, RUNNING_STATISTICS):
        for scheme, norm in arms(data, case):
            if scheme in SCHEMES[:2]:
                yield from reported("concat", data, case, scheme, norm, ended, {"model.fusion.kind": "concat"})


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


def tuning(data: str, ended: Ended) -> Iterator[tuple[str, Plan]]:
    """The rates of training and, for the full model, of fine-tuning, on validation splits of other seeds."""
    for scheme, norm in arms(data, TUNED_ON):
        if scheme != "private-head" or data in dict(MAPPED):
            yield _training_rates(data, scheme, norm)
    for scheme, norm in arms(data, TUNED_ON):
        rate = ended.rate(*_training_rates(data, scheme, norm))
        if scheme == "full-model" and rate is not None:
            yield _fine_tuning_rates(data, norm, rate)


def _training_rates(data: str, scheme: str, norm: str) -> tuple[str, Plan]:
    given = {**VALIDATION, "evaluation.fine_tune": None, "sharing": scheme, "model.norm_statistics": norm}
    rates = {"training.optimizer.lr": _values(PAPER_RATE[data], FACTORS[data])}
    return f"tune/{data}_{scheme}_{norm}", Plan(f"{data}_{TUNED_ON}", given, rates, TUNING_SEEDS[data])


def _fine_tuning_rates(data: str, norm: str, rate: float) -> tuple[str, Plan]:
    given = {**VALIDATION, "sharing": "full-model", "model.norm_statistics": norm, "training.optimizer.lr": rate}
    given |= {"evaluation.fine_tune.every": None, "evaluation.fine_tune.last": 5}
    rates = {"evaluation.fine_tune.lr": _values(rate, FINE_TUNE_FACTORS)}
    return f"tune/{data}_fine-tuned_{norm}", Plan(f"{data}_{TUNED_ON}", given, rates, TUNING_SEEDS[data])


def reported(
    stage: str, data: str, case: str, scheme: str, norm: str, ended: Ended, given: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, Plan]]:
    """A scheme at its own rate; the full model is scored after fine-tuning, too."""
    rate = ended.rate(*_training_rates(data, scheme, norm))
    if rate is None:
        return
    tuning = {}
    if scheme == "full-model":
        tuned = ended.rate(*_fine_tuning_rates(data, norm, rate))
        if tuned is None:
            return
        tuning = {"evaluation.fine_tune": {"epochs": 1, "lr": tuned, "last": 5}}
    plan = _plan(data, case, scheme, norm, rate, {**(given or {}), **tuning})
    yield f"{stage}/{data}_{case}_{scheme}_{norm}", plan


def block_maps(data: str, case: str, ended: Ended) -> Iterator[tuple[str, Plan]]:
    """The maps of private blocks that are no scheme, and the learned mixture, at the rate of PHF."""
    norm = distinct(data, case, "full-model", "same-modalities")
    rate = ended.rate(*_training_rates(data, "private-head-fusion", norm))
    if rate is None:
        return
    for name, private in PRIVATE.items():
        sharing = {block: "private" if block in private else "shared" for block in ("encoder/*", "fusion", "head")}
        yield f"blocks/{data}_{case}_{name}", _plan(data, case, sharing, norm, rate, {})
    mixed = {"algorithm": {"kind": "mixed"}}
    yield f"blocks/{data}_{case}_mixed", _plan(data, case, "full-model", norm, rate, mixed)


def run_all(data: Path, ended: Ended, only: tuple[str, ...], jobs: int, seeds: Collection[int] | None = None) -> None:
    """The sweeps whose names begin so, one after the other, of all seeds or some; cells that have ended are skipped.

    A run whose numbers are no longer finite fails again each time; it is not repeated.
    """
    done: set[str] = set()
    while pending := [(name, plan) for name, plan in plans(ended) if name not in done and name.startswith(only)]:
        name, plan = pending[0]
        done.add(name)
        path = (data / DATA[plan.scenario.partition("_")[0]]).resolve()
        chosen = plan if seeds is None else plan._replace(seeds=[seed for seed in plan.seeds if seed in seeds])
        for left in ended.missing(name, chosen):
            given = {**plan.given, "data.path": str(path)}
            scenario = HERE / f"{plan.scenario}.yaml"
            cells = sweep(
                scenario, vary=left.vary, seeds=left.seeds, overrides=given, out=ended.sweeps / name, jobs=jobs
            )
            for cell in cells:
                print(datetime.now().strftime("%H:%M"), name, cell.cell.name, cell.error or "", flush=True)


def lines_of(name: str, plan: Plan, folder: Path) -> Iterator[dict[str, object]]:
    """A line per run that has ended: what it is, what came out, how long it took, and how to repeat it.

    Scores are shares of 1, means of the last five scored rounds; `clients` has them by client, in the order of
    `SCORES`, then after fine-tuning, and last the client's test samples; `own` has what the learned mixture has of a
    client's own copy, by block. `steps` is what a model goes through. A run that failed has no scores.
    """
    found = Sweep.open(folder)
    scores = [f"validation/{score}" for score in SCORES] if name.startswith("tune/") else [*SCORES]
    scores += [f"{score.rpartition('/')[0]}/fine_tuned/{score.rpartition('/')[2]}".lstrip("/") for score in scores]
    for cell in found.cells:
        path = folder / cell.folder
        if not path.exists() or not _has_ended(run := Run.open(path)):
            continue
        is_whole = run.status == "finished"
        own = _own_shares(run) if is_whole and name.endswith("_mixed") else None
        scenario, digest, compute = run.scenario, run.manifest.get("digest", {}), run_compute(run)
        known = [score for score in scores if is_whole and score in run.rounds.columns]
        tuned = scenario.evaluation.fine_tune
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
            "own": "" if own is None else json.dumps(own, separators=(",", ":")),
            "started": f"{datetime.fromisoformat(run.manifest['started_at']):%Y-%m-%d %H:%M}",
            "seconds": round(run.rounds["seconds"].sum()),  # a run may have lain still and gone on
            "processor": " ".join(f"{kind['processor']} {kind['cpu_capability']}" for kind in run.manifest["kernels"]),
            "shared_digest": digest.get("shared", "")[:16],
            "private_digest": digest.get("private", "")[:16],
            "command": _command(plan, cell.setting, cell.seed),
        }  # fmt: skip


def _has_ended(run: Run) -> bool:
    """Whether it would end so again: not where it was interrupted, or its process killed."""
    return run.status == "finished" or run.manifest.get("error", {}).get("type") == ClientError.__name__


def _by_client(run: Run, scores: Sequence[str]) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    samples: dict[int, float] = {}
    for score in scores:
        rounds = tuple(run.rounds.drop_nulls(score)["round"].to_list()[-5:])
        for client, value, weight in client_scores(run, score, ALL, rounds).rows():
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


def _values(rate: float, factors: Sequence[float]) -> list[float]:
    return [float(f"{rate * factor:.4g}") for factor in factors]


if __name__ == "__main__":
    main()
