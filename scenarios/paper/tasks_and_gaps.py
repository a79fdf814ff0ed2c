"""Runs the sweeps of docs/results/tasks.md, and prints the page's tables from a line per run.

    python scenarios/paper/tasks_and_gaps.py run DATA SWEEPS      # goes on where it stopped; leaves SWEEPS/tasks.csv
    python scenarios/paper/tasks_and_gaps.py tables               # of docs/results/tasks.csv

DATA is a folder with `UCI-HAR/`, `AV-MNIST/`, `PTB-XL-subset/` and `MELD/`, as docs/data.md says where they come from.
SWEEPS gets a sweep per plan. Plans and comparisons were fixed before the first run.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from grid import DATA
from points import p_text, with_interval

from blossom_ray import BlossomError, Run, Sweep, compare, sweep, write_table
from blossom_ray.data.options import SECTIONS
from blossom_ray.data.sets.base import Download
from blossom_ray.studies.comparison.intervals import holm, t_test
from blossom_ray.studies.comparison.scores import run_scores

SCENARIOS = Path(__file__).parents[1]
LINES = SCENARIOS.parent / "docs" / "results" / "tasks.csv"
SEEDS, TUNING_SEEDS = (0, 1, 2, 3, 4), (100,)
PATHS = {**DATA, "meld": "MELD"}
OVER_TASKS = {
    "shared": {"encoder/*": "shared", "fusion": "same-task", "head": "same-task"},
    "same-task": {"encoder/*": "same-task", "fusion": "same-task", "head": "same-task"},
    "local": "local",
}
TASKS = {
    "uci-har-body": {"activity": "accuracy", "who": "accuracy"},
    "uci-har": {"activity": "accuracy", "who": "accuracy"},
    "av-mnist": {"digit": "accuracy", "speaker": "accuracy"},
    "ptb-xl": {"superclasses": "macro_auroc", "normal": "accuracy"},
    "meld": {"emotion": "accuracy", "sentiment": "accuracy"},
}
"""By data set the tasks, each with the score that judges it. `-body`: without gravity and amplitudes."""
RULES = ("mask", "zero-embedding", "zero-input")
SMALL = {name: {"kind": "conv1d", "channels": [8, 16]} for name in ("acc", "gyro")}
"""Encoders of UCI-HAR that cost a tenth of the paper's."""
BOTH = ("accuracy", "macro_f1_present", "accuracy@{0}", "accuracy@{0}+{1}")
SCHEMES = ("full-model", "local", "local-100", "private-head-average", "private-head", "private-head-fusion")
RATES = (0.002, 0.01, 0.05)


class Plan(NamedTuple):
    """A sweep: the scenario, the data, values in all cells, keys that vary, scores, over which rounds, seeds."""

    scenario: str
    data: str
    overrides: Mapping[str, Any]
    vary: Mapping[str, Sequence[Any]]
    scores: Sequence[str]
    summary: str = "last5"
    seeds: Sequence[int] = SEEDS


class Side(NamedTuple):
    """A score of a setting."""

    sweep: str
    setting: str
    score: str


class Compared(NamedTuple):
    """In words, a side, and what it is measured against."""

    text: str
    own: Side
    base: Side


Lines = Mapping[tuple[str, str], Mapping[str, Mapping[str, float]]]
"""By sweep and setting, then by seed, the scores."""


def main() -> None:
    """Run what is not there yet, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("data", type=Path)
    run.add_argument("sweeps", type=Path)
    run.add_argument("--only", nargs="+", default=[""], help="how names of sweeps begin")
    commands.add_parser("tables")
    arguments = parser.parse_args()
    if arguments.command == "tables":
        print("\n".join(tables(read(LINES))))
    else:
        run_all(arguments.data, arguments.sweeps, tuple(arguments.only))


def plans(sweeps: Path) -> Iterator[tuple[str, Plan]]:
    """Each sweep's name and plan, in the order in which they are run."""
    common: dict[str, Any] = {"execution.runtime": "local", "training.engine": "vectorized", "rounds": 15}
    common |= {"evaluation.held_out": "never"}
    small = {**common, "model.encoders": SMALL}

    def over_tasks(name: str) -> tuple[str, Plan]:
        scores = [f"{task}/{score}" for task, judge in TASKS[name].items() for score in (judge, "macro_f1_present")]
        data = name.removesuffix("-body")
        given = small if data == "uci-har" else common
        given = given if data == name else {**given, "data.acceleration": "body", "data.zscore": True}
        return f"tasks-{name}", Plan(f"tasks/{data}", data, given, {"sharing": [*OVER_TASKS.values()]}, scores)

    file, scores = "sparse/uci-har-fails-later", [score.format("acc", "gyro") for score in BOTH]
    for start, rounds, shares in (("sparse", 10, [1.0, 0.5, 0.2]), ("longer", 30, [1.0, 0.2])):
        gaps, train = {**small, "rounds": rounds, "data.split": "recording"}, {"data.observed.gyro.train": shares}
        for rule in RULES:
            yield f"{start}-{rule}", Plan(file, "uci-har", {**gaps, "model.missing": rule}, train, scores)
        dropping = {**gaps, "data.observed.gyro.train": 1.0, "training.engine": "sequential"}
        dropout = {"training.modality_dropout": [0.3]}
        yield f"{start}-dropout", Plan(file, "uci-har", dropping, dropout, scores)

    own = ["accuracy", *(f"unseen/{kind}accuracy{owned}" for kind in ("", "fine_tuned/") for owned in OWNED)]
    for scheme in SCHEMES:
        sharing = scheme.removesuffix("-average").removesuffix("-100")
        given = {**small, "rounds": 20, "sharing": sharing, "evaluation.fine_tune": {"epochs": 5}}
        given |= {"evaluation.unseen.start": "group-average"} if scheme.endswith("-average") else {}
        # Alone, nobody waits for others: one round, and one of those that train is tuned, too.
        alone = {"rounds": 1, "evaluation.clients": 0.1, "evaluation.fine_tune": {"epochs": 100}}
        given |= alone if scheme == "local-100" else {}
        rates, others = {"evaluation.fine_tune.lr": [*RATES]}, {**given, "clients": GROUPS}
        yield f"tune-{scheme}", Plan("unseen/uci-har", "uci-har", others, rates, own, "final", TUNING_SEEDS)
        chosen = {"evaluation.fine_tune.lr": [chosen_rate(sweeps / f"tune-{scheme}", sweeps / f"unseen-{scheme}")]}
        yield f"unseen-{scheme}", Plan("unseen/uci-har", "uci-har", given, chosen, own, "final")

    table = {"dataset": "table", "split": "recording", "partition": {"kind": "dirichlet", "alpha": 0.5}}
    whole = {**small, "rounds": 10, "data": table, "evaluation.held_out": "final"}
    for pattern in PATTERNS:
        of_all = [*scores, "held_out/accuracy/acc+gyro"]
        yield f"sparse-{pattern}", Plan("sparse/uci-har", pattern, whole, {"model.missing": [*RULES[:2]]}, of_all)
    for name in TASKS:
        yield over_tasks(name)


ANY = "*"
"""The setting of a sweep that has one alone."""
PATTERNS = ("by-class", "at-random")
OWNED = ("", "/acc", "/gyro", "/acc+gyro")
GROUPS = [
    {"count": count, "modalities": modalities, **who}
    for who, counts in (({}, (2, 2, 3)), ({"role": "unseen", "shots": 20}, (2, 2, 2)))
    for count, modalities in zip(counts, (["acc"], ["gyro"], ["acc", "gyro"]), strict=True)
]
"""Rates of fine-tuning are chosen on six other people, of the 21 of the official training part."""


def chosen_rate(tuned: Path, reported: Path) -> float:
    """The rate with the highest accuracy of clients that never trained, of those at which no reported run failed."""

    def runs(folder: Path) -> Iterator[tuple[float, Run]]:
        for run in Sweep.open(folder).runs.values() if folder.exists() else ():
            if run.scenario.evaluation.fine_tune is not None:
                yield run.scenario.evaluation.fine_tune.lr or 0.0, run

    failed = {rate for rate, run in runs(reported) if run.status == "failed"}
    scores = {
        rate: run.final["unseen/fine_tuned/accuracy"] or 0.0
        for rate, run in runs(tuned)
        if run.status == "finished" and rate not in failed
    }
    return max(scores, key=scores.__getitem__, default=min(RATES))


def run_all(data: Path, sweeps: Path, only: tuple[str, ...]) -> None:
    """The sweeps whose names begin so, one after the other; cells that have finished are skipped."""
    for pattern in PATTERNS:
        write_gaps(data / PATHS["uci-har"], sweeps / f"{pattern}.arrow", pattern)
    for name, plan in plans(sweeps):
        if name.startswith(only):
            path = sweeps / f"{plan.data}.arrow" if plan.data in PATTERNS else data / PATHS[plan.data]
            file, given = SCENARIOS / f"{plan.scenario}.yaml", with_path(plan, str(path.resolve()))
            for done in sweep(file, vary=plan.vary, seeds=plan.seeds, overrides=given, out=sweeps / name, jobs=1):
                print(name, done.cell.name, done.error or "", file=sys.stderr, flush=True)
    with (sweeps / "tasks.csv").open("w", encoding="utf-8", newline="") as found:
        writer = csv.DictWriter(found, ["sweep", "setting", "seed", "scores", "digest", "command"], lineterminator="\n")
        writer.writeheader()
        for name, plan in plans(sweeps):
            if (sweeps / name).exists():
                writer.writerows(lines(name, plan, sweeps / name))


def with_path(plan: Plan, path: str) -> dict[str, Any]:
    """The values in all cells, with the path of the data."""
    given = {**plan.overrides}
    if "data" in given:
        given["data"] = {**given["data"], "path": path}
        return given
    return {"data.path": path, **given}


def write_gaps(archive: Path, path: Path, pattern: str) -> None:
    """UCI-HAR as a table whose gyroscope is off in 80 % of rows at rest and 10 % of others, or in as many at random.

    The official test part has no gaps.
    """
    if path.exists():
        return
    section = SECTIONS["uci-har"].model_validate({"dataset": "uci-har", "path": str(archive), "zscore": True})
    assert isinstance(section, Download)
    dataset = section.open(("acc", "gyro"), 0, "classification").load()
    draw = np.random.default_rng(0)
    rests = np.isin(dataset.labels, [dataset.class_names.index(name) for name in ("SITTING", "STANDING", "LAYING")])
    observed = draw.random(dataset.num_samples) >= np.where(rests, 0.8, 0.1)
    if pattern == "at-random":
        observed = draw.permutation(observed)
    gyro = np.where(observed[:, None, None], dataset.inputs["gyro"], np.float32(0))
    write_table(replace(dataset, inputs={**dataset.inputs, "gyro": gyro}, observed={"gyro": observed}), path)


def lines(name: str, plan: Plan, folder: Path) -> Iterator[dict[str, object]]:
    """A line per finished run of a sweep."""
    lost = losers(folder, plan) if plan.scenario.startswith("tasks/") else {}
    found = Sweep.open(folder)
    for cell in found.cells:
        path = folder / cell.folder
        if not path.exists() or (run := Run.open(path)).status != "finished":
            continue
        scores = {score: value for score in plan.scores if (value := score_of(run, score, plan.summary)) is not None}
        setting = " ".join(f"{key.rpartition('.')[2]}={named(value)}" for key, value in cell.setting.items())
        given = [
            f"--set {shlex.quote(f'{key}={value if isinstance(value, str) else json.dumps(value)}')}"
            for key, value in {**with_path(plan, "PATH"), **cell.setting}.items()
            if key != "execution.runtime"
        ]
        yield {
            "sweep": name,
            "setting": setting,
            "seed": cell.seed,
            "scores": " ".join(f"{key}={value:.6f}" for key, value in {**scores, **lost.get(path.name, {})}.items()),
            "digest": run.manifest["digest"]["shared"][:16],
            "command": " ".join([f"blossom-ray simulate {plan.scenario}", *given, f"--seed {cell.seed}"]),
        }


def score_of(run: Run, score: str, summary: str) -> float | None:
    """A score as `compare` summarises it."""
    if score not in run.rounds.columns:
        return None
    return run_scores(run, score, lower_is_better=False, target=None).own.values[summary]


def named(value: object) -> str:
    """A value in a word."""
    return next((name for name, sharing in OVER_TASKS.items() if sharing == value), str(value))


def losers(folder: Path, plan: Plan) -> dict[str, dict[str, float]]:
    """By run, for each task the share of its clients that score less than they do alone."""
    found: dict[str, dict[str, float]] = {}
    for score in plan.scores[::2]:
        try:
            runs = compare(folder, metric=score, baseline={"sharing": "local"}).runs
        except BlossomError:  # nobody has trained alone yet
            return {}
        for row in runs.filter(modalities="all clients").drop_nulls("lost_last5").to_dicts():
            share = row["lost_last5"] / row["compared_last5"]
            found.setdefault(Path(row["run"]).name, {})[f"lost:{score.partition('/')[0]}"] = share
    return found


def read(path: Path) -> Lines:
    """The data file."""
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            pairs = (word.rpartition("=") for word in row["scores"].split())
            scores = {name: float(value) for name, _, value in pairs}
            found.setdefault((row["sweep"], row["setting"]), {})[row["seed"]] = scores
    return found


def comparisons() -> dict[str, list[Compared]]:
    """By question what is compared."""
    tasks = [
        versus(f"{name}, {task}", f"tasks-{name}", "sharing={}", f"{task}/{score}", "shared", base)
        for name, judged in TASKS.items()
        for task, score in judged.items()
        for base in ("same-task", "local")
    ]
    gaps = of_gaps("sparse")
    gaps += [
        versus(f"gaps {pattern}, {rows}", f"sparse-{pattern}", "missing={}", score, "zero-embedding", "mask")
        for pattern in PATTERNS
        for rows, score in (("own test", "accuracy"), ("held out, no gaps", "held_out/accuracy/acc+gyro"))
    ]
    before, after = "unseen/accuracy", "unseen/fine_tuned/accuracy"
    schemes = [scheme for scheme in SCHEMES if not scheme.startswith("local")]
    unseen = [versus("tuned", "unseen-{}", ANY, after, "full-model", "local-100")]
    unseen += [versus("tuned", "unseen-{}", ANY, after, scheme, "local") for scheme in schemes]
    unseen += [versus("tuned", "unseen-{}", ANY, after, scheme, "full-model") for scheme in schemes[1:]]
    unseen += [
        Compared(f"{scheme}: tuned - as they are", *(Side(f"unseen-{scheme}", ANY, score) for score in (after, before)))
        for scheme in ("full-model", "private-head-average")
    ]
    return {"tasks": tasks, "gaps": gaps, "gaps, 30 rounds": of_gaps("longer"), "unseen": unseen}


def of_gaps(start: str) -> list[Compared]:
    """What is compared of sweeps whose names begin so: rules, shares of training rows, and modality dropout."""
    where = {"with": "accuracy@acc+gyro", "without": "accuracy@acc"}
    found = [
        versus(f"train {train}, tested {has} gyro", f"{start}-{{}}", f"train={train}", score, rule, "mask")
        for train in ("1.0", "0.5", "0.2")
        for has, score in where.items()
        for rule in RULES[1:]
        if (train, has) != ("1.0", "with")  # where all rules are the same
    ]
    found += [
        versus(f"{rule}, tested without gyro, train", f"{start}-{rule}", "train={}", where["without"], own, "1.0")
        for rule in RULES
        for own in ("0.5", "0.2")
    ]
    for has, score in where.items():
        sides = Side(f"{start}-dropout", ANY, score), Side(f"{start}-mask", "train=1.0", score)
        found += [Compared(f"mask, train 1.0, tested {has} gyro: modality dropout - none", *sides)]
    return found


def versus(text: str, sweep: str, setting: str, score: str, own: str, base: str) -> Compared:
    """Two sides that differ in the word at `{}`."""
    sides = (Side(sweep.format(word), setting.format(word), score) for word in (own, base))
    return Compared(f"{text}: {own} - {base}", *sides)


def tables(found: Lines) -> Iterator[str]:
    """For each question its comparisons, with Holm's correction for those of the question, then all scores."""
    for question, sides in comparisons().items():
        known = [
            (text, values) for text, own, base in sides if len(values := differences(found, own, base)) == len(SEEDS)
        ]
        p_values = [t_test(values) for _, values in known]
        yield f"| {question}: {len(known)} comparisons, {len(SEEDS)} seeds | points | p | Holm |\n|---|---:|---:|---:|"
        for (text, values), p, adjusted in zip(known, p_values, holm(p_values), strict=True):
            yield f"| {text} | {with_interval(values)} | {p_text(p)} | {p_text(adjusted)} |"
        yield ""
    scored: dict[tuple[str, ...], list[str]] = {}
    for name in dict.fromkeys(name for name, _ in found):
        rows = {setting: seeds for (sweep, setting), seeds in found.items() if sweep == name}
        columns = tuple(dict.fromkeys(score for seeds in rows.values() for each in seeds.values() for score in each))
        for setting, seeds in rows.items():
            few = "" if len(seeds) == len(SEEDS) else f" ({len(seeds)} seed{'s' * (len(seeds) > 1)})"
            cells = [[100 * each[score] for each in seeds.values() if score in each] for score in columns]
            texts = [with_interval(cell).lstrip("+") if cell else "-" for cell in cells]
            scored.setdefault(columns, []).append(f"| {name}, {setting}{few} | {' | '.join(texts)} |")
    for columns, lines_of_all in scored.items():
        yield f"| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}"
        yield from lines_of_all
        yield ""


def differences(found: Lines, own: Side, base: Side) -> list[float]:
    """By seed the difference in percent points, of seeds that both sides have."""
    last = {sweep: setting for sweep, setting in found}  # noqa: C416  # `dict` of a mapping copies it
    ours, theirs = (
        found.get((side.sweep, last.get(side.sweep, "") if side.setting == ANY else side.setting), {})
        for side in (own, base)
    )
    return [
        100 * (ours[seed][own.score] - theirs[seed][base.score])
        for seed in sorted(ours.keys() & theirs.keys())
        if own.score in ours[seed] and base.score in theirs[seed]
    ]


if __name__ == "__main__":
    main()
