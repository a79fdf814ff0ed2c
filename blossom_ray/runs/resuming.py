"""As what a run may go on, and from where: the same simulation, or the same with another number of rounds."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from blossom_ray.checkpoint import CheckpointStore, differences
from blossom_ray.errors import BlossomError, RunFolderError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.reading.writer import written_tree
from blossom_ray.rounds import scorings_due
from blossom_ray.runs.folder import CHECKPOINTS, Run, lock_folder


def unfinished_run(out: Path, scenario: Scenario) -> Path | None:
    """The newest run of a scenario that has not finished and whose process is gone; None if there is none.

    Args:
        out: Folder of all runs.
        scenario: What the run must have been given; where it runs, checkpoints and failures may differ. With
            `training.engine: auto`, a run that has chosen its engines is taken.
    """
    free = {"execution", "checkpoint", "failures"}
    for folder in sorted((out / scenario.name).glob("*/"), reverse=True):
        with suppress(BlossomError):
            run = Run.open(folder)
            given = _with_engines_of(run, scenario)
            if run.status != "finished" and run.scenario.model_dump(exclude=free) == given.model_dump(exclude=free):
                os.close(lock_folder(folder))
                return folder
    return None


def check_resumption(scenario: Scenario, folder: Path) -> tuple[Scenario, int | None]:
    """Find out before anything starts whether a run may go on as a scenario.

    Returns:
        The scenario with the engines that the run has chosen, and the last of its rounds that stays as it is; None
        where all do.

    Raises:
        RunFolderError: There is no run, or it belongs to another scenario; or its rounds are not those of a run that
            had the new number of rounds from the start.
    """
    run = Run.open(folder)
    scenario = _with_engines_of(run, scenario)
    _check_same(run, scenario)
    if scenario.rounds == run.scenario.rounds:
        return scenario, None
    return scenario, _last_same_round(run, scenario, folder / CHECKPOINTS)


def _with_engines_of(run: Run, scenario: Scenario) -> Scenario:
    """What a run goes on as: where a scenario leaves the engines to the run, with those that it has chosen."""
    chosen = run.scenario.training.engine
    if scenario.training.engine != "auto" or isinstance(chosen, str):
        return scenario
    return scenario.with_engines(chosen)


def _check_same(run: Run, scenario: Scenario) -> None:
    """Refuse a scenario whose numbers are other ones than the run's; its number of rounds aside.

    Raises:
        RunFolderError: With every difference.
    """
    # Neither its number of rounds nor what no number follows from. Own code that a run was given in Python is known by
    # its name alone.
    free = {"rounds": None, "checkpoint": None, "failures": None}
    recorded, present = (
        {**written_tree(each), **free, "execution": {"chunk_size": each.execution.chunk_size}}
        for each in (run.scenario, scenario)
    )
    if found := differences(recorded, present, where="run"):
        raise RunFolderError(f"{run.path}: is of another scenario:", *(f"  {difference}" for difference in found))


def _last_same_round(run: Run, scenario: Scenario, checkpoints: Path) -> int | None:
    """Whether a run can go on to another number of rounds with the bits of a run that had it from the start.

    Args:
        run: The run, in a folder.
        scenario: What it goes on as, the same as its own.
        checkpoints: The folder of its checkpoints.

    Returns:
        The last of its rounds that such a run would have as well; None where that is so of all of them. -1 where
        the run is younger than its first checkpoint but the last: it begins anew.

    Raises:
        RunFolderError: It cannot.
    """
    before = run.scenario
    rounds = run.rounds
    done = rounds.height - 1
    if scenario.rounds < done:
        raise RunFolderError(
            f"{run.path}: has {done} rounds; expected rounds to be at least that, not {scenario.rounds}"
        )
    base, schedule = scenario.training.optimizer.lr, scenario.training.schedule
    for number in range(1, done + 1):
        rates = [schedule.learning_rate(base, number, each.rounds) for each in (before, scenario)]
        if rates[0] != rates[1]:
            raise RunFolderError(
                f"{run.path}: had the learning rate {rates[0]:g} in round {number}, and with {scenario.rounds} rounds "
                f"the {schedule.kind} schedule has {rates[1]:g} there; expected a new run of {scenario.rounds} rounds"
            )
    has_held_out, has_validation = (
        any(name.startswith(prefix) for name in rounds.columns) for prefix in ("held_out/", "validation/")
    )
    ends = sorted({before.rounds, scenario.rounds} & set(range(1, done + 1)))
    due = {
        end: [
            scorings_due(each, end, has_held_out=has_held_out, has_validation=has_validation)
            for each in (before, scenario)
        ]
        for end in ends
    }
    same = next((end - 1 for end in ends if due[end][0] != due[end][1]), None)
    at_most = done if same is None else same
    newest, _ = CheckpointStore(checkpoints, scenario.checkpoint.keep).newest(range(at_most + 1))
    if newest is None and same is not None and done <= before.checkpoint.every:
        return -1
    if newest is None and (same is not None or run.status == "finished"):
        reason = "" if same is None else f", since round {same + 1} was scored as the last one"
        raise RunFolderError(
            f"{run.path}: cannot go on to {scenario.rounds} rounds: it has no whole checkpoint of round {at_most} or "
            f"before{reason}; expected a run whose checkpoint.every and checkpoint.keep leave one"
        )
    return same
