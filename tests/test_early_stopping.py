"""When a run ends by its validation scores, what is kept of its best round, and what is reported for it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import SMALL, Command

from blossom_ray import Run, Scenario, simulate
from blossom_ray.checkpoint import CheckpointStore
from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.core.records import RoundRecord, Stopped
from blossom_ray.errors import DriverLostError, RunFolderError, ScenarioError
from blossom_ray.runs.loop import Event, LateScores
from blossom_ray.runs.session import events, record_run, resume_run
from blossom_ray.runs.writer import RunWriter
from blossom_ray.scenario.early_stopping import EarlyStopping
from blossom_ray.studies.sweeps.folder import Sweep
from blossom_ray.studies.sweeps.grid import Axis, expand
from blossom_ray.studies.sweeps.sweeping import run_cells

pytestmark = pytest.mark.slow

SCORED = (ClientEvaluation(0, 4, 1.0, {}, 0, 0.0),)


def record(round_index: int, value: float | None, name: str = "accuracy") -> RoundRecord:
    """A scored round; None: its score is not defined."""
    metrics = {} if value is None else {f"validation/{name}": value}
    return RoundRecord(round_index, 0.1, (), (), (), metrics, (), validation=SCORED)


def watch(scenario: Scenario, values: list[float | None], every: int = 1, **stop: Any) -> tuple[Stopped | None, int]:
    """Where a run with these validation scores ends, and the last round that was asked about."""
    watched = EarlyStopping.of(scenario.override({"rounds": 100, "stop": stop}))
    assert watched is not None
    name = watched.metric.removeprefix("validation/")
    # The untrained model is never the best one, however good its score.
    watched = watched.after(record(0, -1e9 if watched.lower_is_better else 1e9, name))
    for number in range(1, len(values) * every + 1):
        scored = number % every == 0
        bare = RoundRecord(number, 0.1, (), (), (), {}, ())
        watched = watched.after(record(number, values[number // every - 1], name) if scored else bare)
        if (stopped := watched.end(number)) is not None:
            return stopped, number
    return None, len(values) * every


@pytest.mark.parametrize(
    ("values", "stop", "expected"),
    [
        # Best in round 3; rounds 4 and 5 are not better.
        ([0.2, 0.4, 0.6, 0.5, 0.5, 0.9], {"patience": 2}, (5, 3, 0.6)),
        # A tie is no improvement, and the first of equals is the best.
        ([0.5, 0.5, 0.5], {"patience": 2}, (3, 1, 0.5)),
        # A better value in time starts the count anew.
        ([0.5, 0.4, 0.6, 0.4, 0.3], {"patience": 2}, (5, 3, 0.6)),
        # Undefined and not finite scores are no improvement, and neither is infinity.
        ([0.5, None, math.nan, 0.9], {"patience": 2}, (3, 1, 0.5)),
        ([math.inf, 0.5, 0.4, 0.3], {"patience": 2}, (4, 2, 0.5)),
        # Nothing finite at all: no best round.
        ([None, math.nan, 0.5], {"patience": 2}, (2, None, None)),
        # Not before min_rounds, then at once.
        ([0.5, 0.4, 0.3, 0.2, 0.1], {"patience": 1, "min_rounds": 4}, (4, 1, 0.5)),
        # A score that gets better until then goes on.
        ([0.5, 0.4, 0.6, 0.7, 0.1], {"patience": 1, "min_rounds": 4}, (5, 4, 0.7)),
        # A loss is better when lower.
        ([0.9, 0.5, 0.7, 0.6], {"patience": 2, "metric": "loss"}, (4, 2, 0.5)),
        ([0.9, 0.5, 0.7, 0.6], {"patience": 2, "metric": "validation/loss_p90"}, (4, 2, 0.5)),
        # Never so long without a better one.
        ([0.1, 0.2, 0.1, 0.3], {"patience": 2}, None),
    ],
)
def test_sequences_by_hand(
    small_scenario: Scenario, values: list[float | None], stop: dict[str, Any], expected: tuple[Any, ...] | None
) -> None:
    for every in (1, 3):
        # Rounds without scores do not count: with a score in every third round everything happens at three times the
        # round, but for min_rounds, which counts rounds.
        if every > 1 and "min_rounds" in stop:
            continue
        stopped, asked = watch(small_scenario, values, every, **stop)
        if expected is None:
            assert (stopped, asked) == (None, len(values) * every)
            continue
        last, best, value = expected
        assert stopped is not None
        assert (stopped.round, stopped.best_round, stopped.value, stopped.reason) == (
            last * every, best and best * every, value, "patience",
        )  # fmt: skip


def test_the_score_and_its_direction_follow_from_task_and_own_metrics(small_scenario: Scenario) -> None:
    regression = small_scenario.override({"task": "regression", "stop": {"patience": 2}})
    watched = EarlyStopping.of(regression)
    assert watched is not None
    assert (watched.metric, watched.lower_is_better) == ("validation/rmse", True)
    own = {"evaluation.metrics": {"cost": {"function": "math:fsum", "lower_is_better": True}}}
    watched = EarlyStopping.of(small_scenario.override({**own, "stop": {"patience": 2, "metric": "cost/acc"}}))
    assert watched is not None
    assert (watched.metric, watched.lower_is_better) == ("validation/cost/acc", True)
    assert EarlyStopping.of(small_scenario) is None


def test_the_limit_of_rounds_ends_a_run_in_any_case(small_scenario: Scenario) -> None:
    watched = EarlyStopping.of(small_scenario.override({"rounds": 2, "stop": {"patience": 5}}))
    assert watched is not None
    watched = watched.after(record(1, 0.5))
    assert watched.end(1) is None
    stopped = watched.after(record(2, 0.4)).end(2)
    assert stopped == Stopped(2, 1, "validation/accuracy", 0.5, "rounds")


def test_a_state_says_all_that_a_run_needs_to_go_on(small_scenario: Scenario) -> None:
    fresh = EarlyStopping.of(small_scenario.override({"stop": {"patience": 3}}))
    assert fresh is not None
    watched = fresh
    for number, value in enumerate((0.3, 0.4, 0.2), start=1):
        watched = watched.after(record(number, value))
    assert watched.state == {"best_round": 2, "value": 0.4, "num_waited": 1}
    assert fresh.with_state(watched.state) == watched


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop": {"patience": 0}}, r"stop\.patience is 0; expected an integer of at least 1"),
        ({"stop": {"min_rounds": 3}}, r"stop\.patience is missing"),
        (
            {"stop": {"patience": 1, "min_rounds": 9}},
            r"stop\.min_rounds is 9; expected at most 2, the number of rounds",
        ),
        (
            {"stop": {"patience": 1, "metric": "acuracy"}},
            r"stop\.metric is 'acuracy'; expected a score on the clients' validation splits, such as loss, .*accuracy",
        ),
        ({"stop": {"patience": 1, "metric": "held_out/accuracy"}}, r"stop\.metric is 'held_out/accuracy'; expected a"),
        ({"stop": {"patience": 1, "metric": "train_loss"}}, r"stop\.metric is 'train_loss'; expected a score on the"),
        ({"stop": {"patience": 1, "metric": "accuracy/magn"}}, r"stop\.metric is 'accuracy/magn'; expected a score"),
        ({"stop": {"patience": 1, "metric": "rmse"}}, r"stop\.metric is 'rmse'; expected a score"),
        (
            {"evaluation.split": "validation", "evaluation.held_out": "every"},
            r"evaluation\.held_out is 'every', while evaluation\.split is 'validation', which scores the held-out set",
        ),
    ],
)
def test_what_is_refused(small_scenario: Scenario, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        small_scenario.override(changes)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """Scores that go up and down, partial participation, all kinds of client state; nobody stops it."""
    return Scenario.model_validate(SMALL).override(
        {
            "seed": 10,
            "rounds": 6,
            "data.validation_fraction": 0.2,
            "sharing": {"encoder/*": "shared", "fusion": "same-modalities", "head": "private"},
            "model.head": {"kind": "mlp", "hidden": [8], "norm": "batch"},
            "model.norm_statistics": "local",
            "training.optimizer": {"kind": "adam", "lr": 0.03},
            "training.keep_optimizer_state": True,
            "server": {"optimizer": {"kind": "fedadam"}, "clients_per_round": 3},
            "evaluation.clients": 0.8,
            "evaluation.held_out": "every",
            "evaluation.fine_tune": {"epochs": 1, "every": 1},
            "checkpoint.every": 4,
            "checkpoint.keep": 1,
        }
    )


@pytest.fixture(scope="module")
def whole(scenario: Scenario) -> Run:
    """The run that nobody stops: it scores everything in every round."""
    return simulate(scenario)


@pytest.fixture(scope="module")
def stopped(scenario: Scenario) -> Scenario:
    return scenario.override(STOPPED)


@pytest.fixture(scope="module")
def run(stopped: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that stops early, in a folder; what changes it takes a copy."""
    return simulate(stopped, out=tmp_path_factory.mktemp("stopped"))


@pytest.fixture
def copied(run: Run, tmp_path: Path) -> Path:
    """A copy of its folder."""
    assert run.path is not None
    return Path(shutil.copytree(run.path, tmp_path / "copy"))


STOPPED = {
    "stop": {"patience": 2},
    "evaluation.split": "validation",
    "evaluation.held_out": "final",
    "evaluation.fine_tune.every": None,
}


def expected_end(whole: Run, patience: int) -> tuple[int, int]:
    """The last and the best round, from the scores of a run that nobody stopped."""
    best, best_value, waited = 0, -math.inf, 0
    for number, value in whole.rounds.select("round", "validation/accuracy").rows()[1:]:
        if value > best_value:
            best, best_value, waited = number, value, 0
        else:
            waited += 1
        if waited == patience:
            return number, best
    raise AssertionError("this scenario's scores never fall for so long")


def without_times(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.drop([column for column in frame.columns if "seconds" in column])


def assert_same(run: Run, other: Run) -> None:
    assert run.status == other.status == "finished"
    assert run.manifest["digest"] == other.manifest["digest"]
    assert run.manifest["stopped"] == other.manifest["stopped"]
    for name in ("rounds", "clients", "blocks", "classes", "confusion"):
        frame, expected = (without_times(getattr(each, name)) for each in (run, other))
        assert frame.select(sorted(frame.columns)).equals(expected.select(sorted(expected.columns))), name


def test_the_best_round_is_reported_with_the_scores_that_it_had(whole: Run, run: Run) -> None:
    last, best = expected_end(whole, 2)
    assert 1 < best < last < whole.scenario.rounds
    run.check()
    assert run.rounds["round"].to_list() == list(range(last + 1))
    value = whole.rounds["validation/accuracy"][best]
    assert run.stopped == Stopped(last, best, "validation/accuracy", value, "patience")
    assert run.manifest["stopped"]["best_round"] == best
    row, truth = (
        without_times(each.rounds.filter(pl.col("round") == best)).drop("bytes_down") for each in (run, whole)
    )
    assert row.select(sorted(row.columns)).equals(truth.select(sorted(row.columns)))
    rows, truth = (
        without_times(each.clients.filter(pl.col("round") == best)).drop("bytes_down", "evaluate_bytes_down")
        for each in (run, whole)
    )
    assert rows.select(sorted(rows.columns)).equals(truth.select(sorted(rows.columns)))
    scorings = ["fine_tuned", "held_out", "test", "validation", "validation/fine_tuned"]
    classes = run.classes
    assert sorted(classes["scoring"].unique()) == scorings
    assert classes["round"].unique().to_list() == [best]
    everyone = classes.filter((pl.col("scoring") == "test") & (pl.col("modalities") == ""))
    tested = rows["num_test_examples"].sum()
    assert everyone["num_true"].sum() == tested
    assert everyone["num_correct"].sum() / tested == pytest.approx(run.final["accuracy_pooled"])
    # No other row has test scores.
    others = run.rounds.filter(pl.col("round") != best)
    for name in ("accuracy", "fine_tuned/accuracy", "validation/fine_tuned/accuracy", "held_out/accuracy/acc"):
        assert run.final[name] == whole.rounds[name][best]
        assert others[name].is_null().all()
    assert others["validation/accuracy"].is_not_null().all()


def test_with_test_scores_in_every_round_the_end_adds_what_the_last_round_would_have(
    stopped: Scenario, whole: Run, run: Run, tmp_path: Path
) -> None:
    last, best = expected_end(whole, 2)
    both = simulate(stopped.override({"evaluation.split": "test"}), out=tmp_path)
    both.check()
    assert both.rounds["accuracy"].to_list() == whole.rounds["accuracy"].to_list()[: last + 1]
    for name in ("fine_tuned/accuracy", "validation/fine_tuned/accuracy", "held_out/accuracy/acc"):
        expected = [whole.rounds[name][best] if number == best else None for number in range(last + 1)]
        assert both.rounds[name].to_list() == expected, name
    # Digests are those of the last round, whatever is scored.
    assert both.manifest["digest"] == run.manifest["digest"]


def test_what_is_scored_in_each_round_anyway_leaves_nothing_for_the_end(stopped: Scenario, whole: Run) -> None:
    changes = {"evaluation.split": "test", "evaluation.fine_tune": None, "evaluation.held_out": "never"}
    plain = simulate(stopped.override(changes))
    _, best = expected_end(whole, 2)
    assert plain.rounds["accuracy"].null_count() == 0
    assert plain.final["accuracy"] == whole.rounds["accuracy"][best]


def test_a_run_in_memory_is_the_run_of_a_folder(stopped: Scenario, run: Run) -> None:
    """Its best round is kept in temporary files, also where no other checkpoints are made."""
    assert_same(simulate(stopped.override({"checkpoint.every": 0})), run)


def test_a_limit_that_is_reached_reports_the_best_round_too(stopped: Scenario, whole: Run) -> None:
    _, best = expected_end(whole, 2)
    limited = simulate(stopped.override({"rounds": best + 1}))
    value = whole.rounds["validation/accuracy"][best]
    assert limited.stopped == Stopped(best + 1, best, "validation/accuracy", value, "rounds")
    assert limited.final["accuracy"] == whole.rounds["accuracy"][best]


@pytest.mark.parametrize("every", [0, 4])
def test_checkpoints_of_the_best_rounds_are_kept(
    stopped: Scenario, whole: Run, run: Run, tmp_path: Path, every: int
) -> None:
    last, best = expected_end(whole, 2)
    kept = run if every else simulate(stopped.override({"checkpoint.every": every}), out=tmp_path)
    assert kept.path is not None
    folder = kept.path / "checkpoints"
    assert {int(path.name) for path in folder.iterdir()} == ({best, last} if every else {best})
    state = {"best_round": best, "value": whole.rounds["validation/accuracy"][best], "num_waited": 0}
    assert CheckpointStore(folder, 1).read(best).stop == state


def begin(scenario: Scenario, folder: Path, rounds: int) -> None:
    """Run some rounds, round 0 included, and break off in the middle of the next."""
    records = record_run(scenario, folder)
    for _ in range(rounds):
        next(records)
    records.close()


def finish(scenario: Scenario, folder: Path) -> Run:
    for _ in resume_run(scenario, folder):
        pass
    return Run.open(folder)


@pytest.mark.parametrize("rounds", [2, 4, 5])
def test_resumed_equals_undisturbed(stopped: Scenario, run: Run, tmp_path: Path, rounds: int) -> None:
    """Broken off before the best round, after it, and before the last."""
    begin(stopped, tmp_path, rounds)
    interrupted = Run.open(tmp_path)
    assert (interrupted.status, interrupted.stopped) == ("interrupted", None)
    assert_same(finish(stopped, tmp_path), run)
    Run.open(tmp_path).check()


@pytest.mark.parametrize("is_written", [False, True])
def test_a_run_that_fails_over_its_last_scores_goes_on(
    stopped: Scenario, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    write_late = RunWriter.write_late

    def fails(writer: RunWriter, *arguments: Any) -> None:
        if is_written:
            write_late(writer, *arguments)
        raise OSError("the machine goes away")

    with monkeypatch.context() as patched:
        patched.setattr(RunWriter, "write_late", fails)
        with pytest.raises(OSError, match="goes away"):
            [*record_run(stopped, tmp_path)]
    broken = Run.open(tmp_path)
    assert broken.status == "failed"
    assert ("late_scores" in broken.manifest) == is_written
    assert_same(finish(stopped, tmp_path), run)


def test_a_driver_that_is_lost_at_the_very_end_is_replaced(
    stopped: Scenario, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[int] = []

    def lossy(*arguments: Any, **more: Any) -> Iterator[Event]:
        for event in events(*arguments, **more):
            yield event
            if isinstance(event, LateScores) and not losses:
                losses.append(event.record.round_index)
                raise DriverLostError("the driver actor died")

    monkeypatch.setattr("blossom_ray.runs.session.events", lossy)
    records = [*record_run(stopped, tmp_path)]
    assert [record.round_index for record in records] == run.rounds["round"].to_list()
    replaced = Run.open(tmp_path)
    replaced.check()
    assert_same(replaced, run)
    assert run.stopped is not None
    assert losses == [run.stopped.best_round]
    assert [loss["after_round"] for loss in replaced.manifest["driver_losses"]] == [run.stopped.round]


def test_a_damaged_newest_checkpoint_leads_back_to_one_with_its_own_best_round(
    stopped: Scenario, run: Run, tmp_path: Path
) -> None:
    often = stopped.override({"checkpoint.every": 1, "checkpoint.keep": 2})
    begin(often, tmp_path, 5)
    newest = max((tmp_path / "checkpoints").iterdir())
    (newest / "server.safetensors").write_bytes(b"")
    resumed_run = finish(often, tmp_path)
    assert_same(resumed_run, run)
    assert any("damaged" in note for note in resumed_run.manifest["notes"])


def test_a_best_round_without_its_checkpoint_is_said(stopped: Scenario, run: Run, copied: Path) -> None:
    assert run.stopped is not None
    shutil.rmtree(copied / "checkpoints" / f"{run.stopped.best_round:06}")
    with pytest.raises(RunFolderError, match=r"checkpoints/00000\d: cannot be read .*expected the best round's"):
        finish(stopped, copied)


def test_more_rounds_go_on_where_the_limit_ended_a_run(stopped: Scenario, run: Run, tmp_path: Path) -> None:
    shorter = simulate(stopped.override({"rounds": 4}), out=tmp_path)
    assert shorter.path is not None
    assert shorter.stopped is not None
    assert shorter.stopped.reason == "rounds"
    assert shorter.rounds["accuracy"].count() == 1
    assert_same(finish(stopped, shorter.path), run)


def test_resume_has_nothing_to_do_for_a_run_that_stopped_early(run: Run, copied: Path, command: Command) -> None:
    for settings in ([], ["--set", "rounds=30"]):
        outcome = command("resume", str(copied), *settings)
        assert outcome.exit_code == 0, outcome.err
        assert f"stopped early after round {run.rounds.height - 1} already; nothing to do" in outcome.out
    assert Run.open(copied).rounds.equals(run.rounds)


def test_a_cell_of_a_sweep_that_stopped_early_is_not_run_again(stopped: Scenario, tmp_path: Path) -> None:
    cells = expand([stopped], [Axis("stop.patience", (1,))], None, None)
    folder = Sweep.create(tmp_path, cells).folder(cells[0].identity)
    records = [*record_run(cells[0].scenario, folder)]
    assert records[-1].stopped is not None
    assert records[-1].round_index < stopped.rounds
    assert [event.kind for event in run_cells(tmp_path, cells)] == ["skipped"]


@pytest.mark.ray
def test_on_ray_as_in_this_process(stopped: Scenario, run: Run, tmp_path: Path, ray_session: None) -> None:
    placed = {"execution.runtime": "ray", "execution.clients_per_actor": 2}
    on_ray = simulate(stopped.override(placed), out=tmp_path)
    on_ray.check()
    assert_same(on_ray, run)
