"""Trackers: what they get, what stands where they wrote it, and what becomes of a run whose tracker fails."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import Command
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from blossom_ray import Run, Scenario, simulate
from blossom_ray.core.blocks import BlockInstance, Scope
from blossom_ray.core.records import BlockRound, Failure, Progress, RoundRecord
from blossom_ray.errors import InputError
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.session import record_run, resume_run
from blossom_ray.runs.tracking import Target, Tracking, parse_target
from blossom_ray.runs.tracking.following import check_target
from blossom_ray.runs.tracking.mlflow import RUN_TAG, metric_name
from blossom_ray.runs.tracking.trackers import Value, tracked_values

pytestmark = [pytest.mark.usefixtures("warm_processes"), pytest.mark.slow]


@pytest.fixture
def scenario_file(small_scenario: Scenario, tmp_path: Path) -> Callable[..., str]:
    """Writes the small scenario, with changes, where a command finds it."""

    def write(**changes: Any) -> str:
        path = tmp_path / "small.yaml"
        path.write_text(scenario_yaml(small_scenario.override(changes)), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An MLflow store that needs no server: the old one of files, which MLflow opens on request alone."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return f"file:{tmp_path / 'mlruns'}"


def the_run(folder: Path) -> Run:
    (path,) = folder.glob("*/*/")
    return Run.open(path)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value by tag, of all event files of a folder."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def texts(folder: Path, name: str) -> list[str]:
    events = EventAccumulator(str(folder)).Reload()
    return [event.tensor_proto.string_val[0].decode() for event in events.Tensors(f"{name}/text_summary")]


def assert_tracked(run: Run, found: dict[str, list[tuple[int, float]]]) -> None:
    """The run's tables say the same, in 32-bit numbers."""
    encoder = run.blocks.filter(pl.col("block") == "encoder/acc")
    tables = {name: (run.rounds, name) for name in ("accuracy", "loss", "accuracy/acc+gyro", "train_loss")}
    tables |= {"learning_rate": (run.rounds, "learning_rate"), "seconds/train": (run.rounds, "seconds_train")}
    columns = ("bytes_up", "bytes_down", "update_norm", "client_drift")
    tables |= {f"{column}/encoder/acc": (encoder, column) for column in columns}
    for name, (table, column) in tables.items():
        rows = table.select("round", column).drop_nulls().rows()
        assert [step for step, _ in found[name]] == [step for step, _ in rows], name
        assert dict(found[name]) == pytest.approx(dict(rows)), name
    assert found["failures"] == [(0, 0), (1, 0), (2, 0)]


def test_values_by_hand() -> None:
    block = BlockRound(BlockInstance("fusion", Scope.SAME_MODALITIES, "acc+gyro"), 2, 9.0, 30, 20, 0.5, 0.25)
    untrained = BlockRound(BlockInstance("head", Scope.PRIVATE), 0, 0.0, 0, 0, 0.0, None)
    failures = (Failure("training", (1,), 0, "died", "repeated"),) * 2
    record = RoundRecord(
        4, 0.1, (), (), (), {"accuracy/acc": 0.5}, (block, untrained), {"train": 2.0, "total": 3.0}, failures
    )
    assert [*tracked_values(Progress.of(record))] == [
        ("", "accuracy/acc", 0.5), ("", "learning_rate", 0.1), ("", "failures", 2),
        ("seconds", "train", 2.0), ("seconds", "total", 3.0),
        ("bytes_down", "fusion[acc+gyro]", 30), ("bytes_up", "fusion[acc+gyro]", 20),
        ("update_norm", "fusion[acc+gyro]", 0.5), ("client_drift", "fusion[acc+gyro]", 0.25),
        ("bytes_down", "head", 0), ("bytes_up", "head", 0), ("update_norm", "head", 0.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tensorboard", Target("tensorboard")), ("tensorboard:/tmp/tb", Target("tensorboard", "/tmp/tb")),
        ("mlflow", Target("mlflow")), ("mlflow:http://host:5000", Target("mlflow", "http://host:5000")),
    ],
)  # fmt: skip
def test_a_target_reads_as_it_is_written(text: str, expected: Target) -> None:
    assert parse_target(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize("text", ["", "wandb", "tensorboard:", "mlflow:", "TensorBoard", ":x", "mlflow http://host"])
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(InputError, match=r"--track is '.*'; expected tensorboard, tensorboard:FOLDER, mlflow or"):
        parse_target(text)


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_a_package_that_is_missing_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(InputError, match=rf"--track {kind}: needs {kind}.*pip install 'blossom-ray\[tracking\]'"):
        check_target(parse_target(kind))


def test_tensorboard_reads_what_the_run_says(
    command: Command, scenario_file: Callable[..., str], tmp_path: Path
) -> None:
    outcome = command("simulate", scenario_file(), "--track", "tensorboard")
    assert (outcome.exit_code, outcome.err) == (0, "")
    run = the_run(tmp_path / "runs")
    assert run.path is not None
    assert_tracked(run, scalars(run.path / "tensorboard"))
    (text,) = texts(run.path / "tensorboard", "scenario")
    assert "\n".join(line.removeprefix("    ") for line in text.split("\n")) + "\n" == scenario_yaml(run.scenario)
    assert texts(run.path / "tensorboard", "status") == ["finished"]


def test_tensorboard_elsewhere(command: Command, scenario_file: Callable[..., str], tmp_path: Path) -> None:
    assert command("simulate", scenario_file(), "--json", "--track", "tensorboard:boards").exit_code == 0
    run = the_run(tmp_path / "runs")
    assert run.path is not None
    assert_tracked(run, scalars(tmp_path / "boards" / "small" / run.path.name))
    assert not (run.path / "tensorboard").exists()


def test_mlflow_reads_what_the_run_says(
    command: Command, scenario_file: Callable[..., str], tmp_path: Path, store: str
) -> None:
    outcome = command("simulate", scenario_file(), "--track", f"mlflow:{store}", "--track", f"mlflow:{store}")
    assert (outcome.exit_code, outcome.err) == (0, "")
    run = the_run(tmp_path / "runs")
    assert run.path is not None
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("small")
    (kept,) = client.search_runs([experiment.experiment_id])
    assert (kept.info.run_name, kept.info.status) == (run.path.name, "FINISHED")
    assert kept.data.tags[RUN_TAG] == run.path.name

    def history(name: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in client.get_metric_history(kept.info.run_id, name)]

    names = {tag: metric_name(Value("", tag, 0)) for tag in ("accuracy", "loss", "accuracy/acc+gyro", "train_loss")}
    names |= {"learning_rate": "learning_rate", "failures": "failures", "seconds/train": "seconds/train"}
    groups = ("bytes_up", "bytes_down", "update_norm", "client_drift")
    names |= {f"{group}/encoder/acc": f"{group}/encoder.acc" for group in groups}
    assert_tracked(run, {tag: history(name) for tag, name in names.items()})
    assert kept.data.params["training.optimizer.lr"] == "0.05"
    assert kept.data.params["sharing"] == "private-head-fusion"
    assert kept.data.params["model.encoders.acc.hidden"] == "[8]"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Value("", "accuracy/acc+gyro", 0), "accuracy.acc gyro"),
        (Value("", "held_out/loss/acc", 0), "held_out.loss.acc"),
        (Value("bytes_up", "fusion[acc+gyro]", 0), "bytes_up/fusion:acc gyro"),
        (Value("bytes_up", "fusion[Süd, 1/2]", 0), "bytes_up/fusion:S_d_ 1.2"),
    ],
)
def test_names_in_the_letters_of_mlflow(value: Value, expected: str) -> None:
    assert metric_name(value) == expected


def test_a_resumed_run_goes_on_where_it_was_tracked(small_scenario: Scenario, tmp_path: Path, store: str) -> None:
    scenario, folder = small_scenario.override({"rounds": 4, "checkpoint.every": 1}), tmp_path / "a-run"
    targets = [Target("tensorboard"), Target("mlflow", store)]
    client, warnings = MlflowClient(store), list[str]()

    def kept() -> Any:
        (run,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])
        return run

    with (
        Tracking(targets, scenario, folder, warnings.append) as tracking,
        closing(record_run(scenario, folder)) as first,
    ):
        for _ in range(3):
            tracking.write(next(first))
    assert kept().info.status == "KILLED"
    assert texts(folder / "tensorboard", "status") == ["interrupted"]
    with Tracking(targets, scenario, folder, warnings.append) as tracking:
        for record in resume_run(scenario, folder):
            tracking.write(record)
    assert kept().info.status == "FINISHED"
    assert warnings == []
    expected = dict(Run.open(folder).rounds.select("round", "accuracy").rows())
    history = [(m.step, m.value) for m in client.get_metric_history(kept().info.run_id, "accuracy")]
    for found in (history, scalars(folder / "tensorboard")["accuracy"]):
        assert dict(found) == pytest.approx(expected)
        assert len(expected) <= len(found) <= len(expected) + 1  # a round that was repeated may stand there twice


def test_the_cells_of_a_sweep_are_tracked_each_for_itself(
    command: Command, scenario_file: Callable[..., str], tmp_path: Path, store: str
) -> None:
    arguments = ("--vary", "sharing=full-model,local", "--out", "grid", "--track", f"mlflow:{store}")
    outcome = command("sweep", scenario_file(rounds=1), *arguments, "--track", "tensorboard")
    assert (outcome.exit_code, outcome.err) == (0, "")
    client = MlflowClient(store)
    tracked = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    assert {run.info.status for run in tracked} == {"FINISHED"}
    found = {run.data.params["sharing"]: run for run in tracked}
    assert found.keys() == {"full-model", "local"}
    for path in (tmp_path / "grid").rglob("manifest.json"):
        run = Run.open(path.parent)
        kept = found[str(run.scenario.sharing)]
        assert kept.info.run_name == path.parent.name
        assert kept.data.metrics["accuracy"] == run.final["accuracy"]
        assert dict(scalars(path.parent / "tensorboard")["accuracy"])[1] == pytest.approx(run.final["accuracy"])
    assert command("sweep", scenario_file(rounds=1), *arguments).exit_code == 0
    assert len(client.search_runs([client.get_experiment_by_name("small").experiment_id])) == 2


def test_a_run_that_fails_is_tracked_as_failed(command: Command, scenario_file: Callable[..., str], store: str) -> None:
    path = scenario_file(rounds=5, **{"training.optimizer.lr": 1e30})
    assert command("simulate", path, "--track", f"mlflow:{store}").exit_code == 1
    client = MlflowClient(store)
    (kept,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    assert kept.info.status == "FAILED"


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("wandb", "error: --track is 'wandb'; expected tensorboard, "),
        (
            "mlflow:http://127.0.0.1:{port}",
            "error: --track mlflow:http://127.0.0.1:{port}: MLflow cannot be used there",
        ),
        ("mlflow:nowhere://x", "error: --track mlflow:nowhere://x: MLflow cannot be used there: "),
    ],
)
@pytest.mark.parametrize("verb", ["simulate", "sweep"])
def test_a_target_that_cannot_be_written_to_is_refused_before_the_run(
    command: Command,
    scenario_file: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    target: str,
    message: str,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port = closed_port()
    outcome = command(verb, scenario_file(), "--track", target.format(port=port))
    assert outcome.exit_code == 2
    assert outcome.err.startswith(message.format(port=port))
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "sweeps").exists()


@pytest.mark.parametrize("arguments", [("simulate",), ("sweep",)])
def test_a_tracker_that_fails_is_given_up_once_and_the_run_goes_on(
    command: Command, scenario_file: Callable[..., str], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "board").write_text("a file")
    outcome = command(*arguments, scenario_file(), "--track", "tensorboard:board")
    assert outcome.exit_code == 0
    (line,) = outcome.err.splitlines()
    assert line.startswith("--track tensorboard:board was given up at round 0, the run goes on: ")


def test_tracking_from_python_as_the_page_has_it(small_scenario: Scenario, tmp_path: Path) -> None:
    with Tracking([parse_target("tensorboard")], small_scenario, tmp_path / "mine", print) as tracking:
        for record in simulate(small_scenario, stream=True):
            tracking.write(record)
    assert [step for step, _ in scalars(tmp_path / "mine" / "tensorboard")["accuracy"]] == [0, 1, 2]
