"""The command line: what it prints and writes, and how it says that something is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import Command
from ruamel.yaml import YAML

from blossom_ray import Run, Scenario
from blossom_ray.cli import app
from blossom_ray.cli.output import round_json
from blossom_ray.core.records import ActorRound, Failure, RoundRecord
from blossom_ray.runs.tables import TABLES

QUICKSTART = Path(__file__).parent.parent / "scenarios" / "quickstart.yaml"

# Line numbers matter to the tests below.
SMALL = """\
name: small
rounds: 2
data:
  dataset: synthetic
  samples: 150
  classes: 3
  modalities: {acc: {shape: [8, 2]}, gyro: {shape: [8, 2]}}
  held_out_samples: 30
  partition: {kind: dirichlet, alpha: 5.0}
  test_fraction: 0.3
clients:
  - {count: 2, modalities: [acc]}
  - {count: 1, modalities: [gyro]}
  - {count: 2, modalities: [acc, gyro]}
model:
  encoders:
    acc: {kind: mlp, hidden: [8], dim: 6}
    gyro: {kind: mlp, hidden: [8], dim: 6}
  fusion: {kind: attention, dim: 8}
  head: {kind: mlp, hidden: [8]}
training:
  batch_size: 16
execution: {runtime: local}
"""

# Raises in training once round 1 has moved its bias away from zero; fails scoring when told to.
OWN_HEAD = """\
import torch
from torch import nn


class Head(nn.Module):
    def __init__(self, input_dim, num_outputs, breaks=False, scores_nothing=False):
        super().__init__()
        self.linear = nn.Linear(input_dim, num_outputs)
        nn.init.zeros_(self.linear.bias)
        self.breaks, self.scores_nothing = breaks, scores_nothing

    def forward(self, fused):
        if self.breaks and self.training and self.linear.bias.any():
            raise ValueError("this head works once")
        outputs = self.linear(fused)
        return outputs if self.training or not self.scores_nothing else outputs * torch.nan
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Callable[..., str]:
    """Writes the small scenario with some text replaced; returns the file's name."""

    def write(*changes: tuple[str, str]) -> str:
        text = SMALL
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (tmp_path / "small.yaml").write_text(text, encoding="utf-8")
        return "small.yaml"

    return write


def the_run(folder: Path) -> Path:
    """The only run folder below `folder`."""
    (found,) = (folder / "small").iterdir()
    return found


def assert_nothing_written(folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == ["small.yaml"]


UCI_HAR = (
    ("dataset: synthetic", "dataset: uci-har\n  path: no/such.zip"),
    ("  samples: 150\n  classes: 3\n", ""),
    ("  modalities: {acc: {shape: [8, 2]}, gyro: {shape: [8, 2]}}\n  held_out_samples: 30\n", ""),
)
MISTAKES: dict[str, tuple[tuple[tuple[str, str], ...], str]] = {
    "unknown key": (
        (("batch_size: 16", "bach_size: 16"),),
        "small.yaml:22: training.bach_size is not a known key; expected one of local_epochs, alternate, batch_size, "
        "min_batch_size, optimizer, loss, transform, schedule, engine, precision, proximal_mu, modality_dropout, "
        "keep_optimizer_state; did you mean 'batch_size'?",
    ),
    "duplicate key": (
        (("batch_size: 16", "batch_size: 16\n  batch_size: 8"),),
        "small.yaml:23: training.batch_size is given 2 times, in lines 22 and 23; expected each key once",
    ),
    "wrong type": (
        (("samples: 150", "samples: many"),),
        "small.yaml:5: data.samples is 'many'; expected an integer of at least 1",
    ),
    "negative count": (
        (("count: 1,", "count: -1,"),),
        "small.yaml:13: clients.1.count is -1; expected an integer of at least 1",
    ),
    "client modality without an encoder": (
        (("[gyro]}", "[gyroo]}"),),
        r"small.yaml:13: clients.1.modalities.0 is 'gyroo'; expected .*acc.*gyro.*did you mean 'gyro'\?",
    ),
    "encoder that nobody owns": (
        (("  fusion:", "    mag: {kind: mlp}\n  fusion:"),),
        "small.yaml:19: model.encoders.mag is an encoder that no client can train; expected a modality that clients "
        "own: acc, gyro",
    ),
    "nothing left to train on": (
        (("test_fraction: 0.3", "test_fraction: 1"),),
        r"small.yaml:10: data.test_fraction is 1.*; expected a number above 0 and below 1",
    ),
    "a client without samples": (
        (("alpha: 5.0", "alpha: 0.001"),),
        r"small.yaml:9: data.partition.alpha is 0.001, which leaves \d of 5 clients with fewer than 10 samples .*; "
        r"expected a larger alpha, fewer clients or more samples",
    ),
    "no such data": (
        UCI_HAR,
        r"small.yaml:5: data.path is 'no/such.zip', which does not exist; expected the official 'UCI HAR Dataset.zip'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_validate_names_place_value_and_what_is_accepted(
    mistake: str, command: Command, scenario: Callable[..., str], tmp_path: Path
) -> None:
    changes, message = MISTAKES[mistake]
    outcome = command("validate", scenario(*changes))
    assert outcome.exit_code == 2
    assert outcome.out == ""
    assert re.match(message, outcome.err), outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize("mistake", ["unknown key", "a client without samples"])
def test_simulate_refuses_the_same_and_writes_nothing(
    mistake: str, command: Command, scenario: Callable[..., str], tmp_path: Path
) -> None:
    changes, message = MISTAKES[mistake]
    outcome = command("simulate", scenario(*changes))
    assert (outcome.exit_code, outcome.out) == (2, "")
    assert re.match(message, outcome.err), outcome.err
    assert_nothing_written(tmp_path)


def test_all_mistakes_come_at_once_in_the_order_of_lines(command: Command, scenario: Callable[..., str]) -> None:
    """A partition that cannot be met is found although a key elsewhere, and one in the model, are wrong."""
    name = scenario(
        ("alpha: 5.0", "alpha: 0.001"),
        ("  head: {kind: mlp,", "  head: {kind: mpl,"),
        ("batch_size: 16", "bach_size: 16"),
    )
    outcome = command("validate", name, "--set", "rounds", "--set", "training.local_epochs=0", "--seed", "-1")
    assert outcome.exit_code == 2
    assert "--set rounds: has no '='; expected KEY=VALUE" in outcome.err
    assert "--set training.local_epochs: training.local_epochs is 0; expected an integer" in outcome.err
    assert "--seed: seed is -1; expected" in outcome.err
    outcome = command("validate", name, "--set", "training.local_epochs=0")
    assert [message.split(" is ")[0] for message in outcome.err.splitlines()] == [
        "small.yaml:9: data.partition.alpha",
        "small.yaml:20: model.head.kind",
        "small.yaml:22: training.bach_size",
        "--set training.local_epochs: training.local_epochs",
    ]


def test_a_modality_that_the_data_lack_is_reported_once(command: Command, scenario: Callable[..., str]) -> None:
    name = scenario(*UCI_HAR, ("[gyro]}", "[mag]}"), ("[acc, gyro]}", "[acc, mag]}"), ("    gyro: {", "    mag: {"))
    outcome = command("validate", name, "--set", f"data.path={name}")
    encoder, path = outcome.err.splitlines()
    assert encoder == (
        "small.yaml:15: model.encoders.mag is an encoder of a modality that uci-har does not have; expected one of "
        "acc, gyro"
    )
    assert path.startswith("--set data.path: data.path is 'small.yaml', which cannot be used (")
    assert "mag" not in path


def test_validate_says_what_it_found(command: Command, scenario: Callable[..., str]) -> None:
    outcome = command("validate", scenario(), "--set", "rounds=7", "--set", "clients.0.count=4", "--seed", "3")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert outcome.out == "small.yaml: valid; 7 clients, 7 rounds, modalities acc, gyro\n"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_file_name_that_is_no_text(command: Command, scenario: Callable[..., str], encoding: str) -> None:
    odd = Path(scenario()).rename(os.fsdecode(b"\xff\xc3.yaml"))
    environment = os.environ | {"PYTHONIOENCODING": encoding}

    def blossom(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        ran = [sys.executable, "-m", "blossom_ray", *map(str, arguments)]
        return subprocess.run(ran, env=environment, capture_output=True, text=True, timeout=120)

    valid = blossom("validate", odd)
    assert (valid.returncode, valid.stderr) == (0, "")
    assert valid.stdout.startswith(r"\udcff\udcc3.yaml: valid; 5 clients")
    wrong = blossom("validate", odd, "--set", "data.path=" + "é" * 3)
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    refused = blossom("simulate", odd, "--out", odd.with_suffix(".d"))
    assert refused.returncode == 2
    assert "which is not UTF-8; expected a path on this machine" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_validate_as_json(command: Command, scenario: Callable[..., str]) -> None:
    outcome = command("validate", scenario(), "--json")
    assert outcome.exit_code == 0
    found = {"valid": True, "clients": 5, "rounds": 2, "modalities": ["acc", "gyro"], "notes": []}
    assert json.loads(outcome.out) == found
    outcome = command("validate", scenario(("batch_size: 16", "bach_size: 16")), "--json", "--set", "rounds=0")
    assert (outcome.exit_code, outcome.err) == (2, "")
    answer = json.loads(outcome.out)
    assert answer["valid"] is False
    key, rounds = answer["problems"]
    assert (key["path"], key["file"], key["line"]) == ("training.bach_size", "small.yaml", 22)
    assert (rounds["path"], rounds["source"], rounds["found"]) == ("rounds", "--set rounds", "is 0")
    assert rounds["message"] == "--set rounds: rounds is 0; expected an integer of at least 1"


@pytest.mark.parametrize("arguments", [("validate",), ("validate", "a.yaml", "--sed", "1"), ("simulat", "a.yaml")])
def test_a_command_that_is_no_command(arguments: tuple[str, ...], command: Command) -> None:
    outcome = command(*arguments)
    assert outcome.exit_code == 2
    assert re.match(r"Usage: .*blossom-ray", outcome.err)


def test_a_scenario_file_that_is_not_there(command: Command) -> None:
    outcome = command("validate", "nowhere.yaml")
    assert (outcome.exit_code, outcome.err) == (
        2,
        "nowhere.yaml: does not exist; expected a scenario file (YAML 1.2), or a name that `blossom-ray scenarios` "
        "lists\n",
    )


def test_simulate_prints_plain_lines_and_leaves_a_whole_run_folder(
    command: Command, scenario: Callable[..., str], tmp_path: Path
) -> None:
    outcome = command("simulate", scenario(), "--out", "kept")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert "\x1b" not in outcome.out
    lines = outcome.out.splitlines()
    assert lines[0] == "small, private-head-fusion, 5 clients, 2 rounds"
    assert [line.split()[:2] for line in lines[1:4]] == [["round", f"{index}/2"] for index in range(3)]
    assert lines[4] == "small, private-head-fusion, 5 clients, 2 rounds: finished"
    folder = the_run(tmp_path / "kept")
    assert lines[-1].strip() == str(folder.relative_to(tmp_path))
    assert sorted(path.name for path in folder.iterdir()) == [
        "blocks.parquet", "checkpoints", "classes.parquet", "clients.parquet", "confusion.parquet",
        "failures.parquet", "log.jsonl", "manifest.json", "rounds.parquet", "scenario.yaml",
    ]  # fmt: skip
    assert json.loads((folder / "manifest.json").read_text())["status"] == "finished"
    assert pl.read_parquet(folder / "rounds.parquet")["round"].to_list() == [0, 1, 2]
    assert pl.read_parquet(folder / "clients.parquet").height == 3 * 5


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_fails_before_the_run_begins_leaves_no_folder(
    options: tuple[str, ...], scenario: Callable[..., str], tmp_path: Path
) -> None:
    """A full disk for its files, standard output that cannot be written: no run folder without a run in it."""
    (tmp_path / "runs" / "other").mkdir(parents=True)
    code = (
        "import resource, signal, sys\n"
        "from blossom_ray.__main__ import main\n"
        "from blossom_ray.runs import writer as run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "make = run.new_run_folder\n"
        "def limited(*arguments):\n"
        "    folder = make(*arguments)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "    return folder\n"
        "run.new_run_folder = limited\n"
        "main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "simulate", scenario(), *options],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "File too large" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


def test_the_scenario_in_a_run_folder_gives_the_same_numbers(
    command: Command, scenario: Callable[..., str], tmp_path: Path
) -> None:
    command("simulate", scenario(), "--out", "first", "--seed", "4", "--set", "sharing=full-model")
    first = the_run(tmp_path / "first")
    assert (Run.open(first).scenario.seed, Run.open(first).scenario.sharing) == (4, "full-model")
    command("simulate", str(first / "scenario.yaml"), "--out", "again")
    command("simulate", str(first / "scenario.yaml"), "--out", "other", "--seed", "5")
    digests = [Run.open(the_run(tmp_path / out)).manifest["digest"] for out in ("first", "again", "other")]
    assert digests[0] == digests[1]
    assert digests[0]["shared"] != digests[2]["shared"]


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_simulate_as_json(command: Command, scenario: Callable[..., str], tmp_path: Path) -> None:
    outcome = command("simulate", scenario(), "--json")
    assert outcome.exit_code == 0
    *rounds, last = [json.loads(line, parse_constant=refuse_constant) for line in outcome.out.splitlines()]
    assert [entry["round"] for entry in rounds] == [0, 1, 2]
    run = Run.open(the_run(tmp_path / "runs"))
    assert last == {"run": str(Path("runs") / "small" / str(run.path.name)), "status": "finished"}
    assert rounds[-1]["accuracy"] == run.final["accuracy"]


def test_a_round_as_json_holds_its_whole_record_as_the_page_says(
    command: Command, scenario: Callable[..., str], tmp_path: Path
) -> None:
    evaluation = ("evaluation.fine_tune={every: 1}", "evaluation.per_class=every")
    settings = (*evaluation, "data.validation_fraction=0.2", "stop={patience: 2}")
    outcome = command("simulate", scenario(), "--json", *(word for key in settings for word in ("--set", key)))
    *rounds, _ = [json.loads(line) for line in outcome.out.splitlines()]
    run = Run.open(the_run(tmp_path / "runs"))
    summary = set(run.rounds.columns) - set(TABLES["rounds"])
    page = (QUICKSTART.parent.parent / "docs" / "watching.md").read_text(encoding="utf-8")
    listed = {
        name: set(re.findall(r"`(\w+)`", text)) - {"train_loss"}
        for names, text in re.findall(r"^\| (`.*`) \| (.*) \|$", page.split("## As JSON")[1], re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    }
    keys = {"round", "learning_rate", "seconds", "cohort", "blocks", "training", "evaluation", "fine_tuned"}
    keys |= {"validation", "fine_tuned_validation", "classes", "failures", "actors", "stopped"}
    last = rounds[-1]
    assert set(last) - summary == keys
    assert keys <= listed.keys()
    for key in ("blocks", "training", "evaluation", "validation", "fine_tuned", "fine_tuned_validation", "classes"):
        assert {name for entry in last[key] for name in entry} == listed[key], key
    assert set(last["seconds"]) == listed["seconds"]
    assert set(last["stopped"]) == listed["stopped"] - {"stop"}
    assert last["cohort"] == [0, 1, 2, 3, 4]
    rows = run.clients.filter(pl.col("round") == 2)
    assert [entry["loss"] for entry in last["training"]] == rows["train_loss"].to_list()
    assert [entry["scores"]["accuracy"] for entry in last["evaluation"]] == rows["accuracy"].to_list()
    assert [entry["loss"] for entry in last["fine_tuned"]] == rows["fine_tuned/loss"].to_list()
    blocks = run.blocks.filter(pl.col("round") == 2)
    assert [(b["block"], b["scope"], b["key"], b["bytes_up"]) for b in last["blocks"]] == blocks.select(
        "block", "scope", "key", "bytes_up"
    ).rows()
    assert (last["failures"], last["actors"]) == ([], [])


def test_failures_and_actors_as_json() -> None:
    failure = Failure("training", (3, 4), 1, "died: its process ended", "repeated")
    record = RoundRecord(
        5, 0.1, (3,), (), (), {"loss": float("nan")}, (), failures=(failure,), actors=(ActorRound(1, 2, 0.5, None, 1),)
    )
    values = round_json(record)
    assert values["failures"] == [
        {"phase": "training", "clients": (3, 4), "actor": 1, "cause": "died: its process ended", "action": "repeated"}
    ]
    assert values["actors"] == [
        {"actor": 1, "num_clients": 2, "seconds": 0.5, "memory_bytes": None, "times_replaced": 1}
    ]


def own_head(folder: Path, name: str, **options: bool) -> tuple[str, str]:
    """Put the module into `folder`; a change of the scenario that names it."""
    (folder / f"{name}.py").write_text(OWN_HEAD, encoding="utf-8")
    factory = json.dumps({"kind": "custom", "factory": f"{name}:Head", "options": options})
    return "head: {kind: mlp, hidden: [8]}", f"head: {factory}"


def test_numbers_that_json_does_not_have_become_null(
    command: Command, scenario: Callable[..., str], tmp_path: Path
) -> None:
    outcome = command("simulate", scenario(own_head(tmp_path, "nan_head", scores_nothing=True)), "--json")
    assert outcome.exit_code == 0
    first = json.loads(outcome.out.splitlines()[0], parse_constant=refuse_constant)
    assert (first["loss"], first["accuracy"]) == (None, None)


def test_a_client_that_raises_ends_the_run_and_keeps_complete_rounds(
    command: Command, scenario: Callable[..., str], tmp_path: Path
) -> None:
    changes = (own_head(tmp_path, "broken_head", breaks=True), ("batch_size: 16", "batch_size: 1000"))
    outcome = command("simulate", scenario(*changes), "--set", "rounds=4")
    assert outcome.exit_code == 1
    message, _, details = outcome.err.partition("\n\n")
    cause = r"error: client 0, round 2: ValueError: this head works once \(broken_head\.py:\d+, in forward\)"
    assert re.fullmatch(cause, message)
    assert details.startswith("Traceback")
    assert details.count("Traceback") == 1
    assert 'raise ValueError("this head works once")' in details
    run = Run.open(the_run(tmp_path / "runs"))
    assert run.status == "failed"
    assert run.rounds["round"].to_list() == [0, 1]
    error = run.manifest["error"]
    assert (error["type"], error["message"]) == ("ClientError", message.removeprefix("error: "))


def test_training_that_diverges_names_the_block_and_what_to_do(
    command: Command, scenario: Callable[..., str], tmp_path: Path
) -> None:
    outcome = command("simulate", scenario(), "--set", "training.optimizer.lr=1e30")
    assert outcome.exit_code == 1
    first, second = outcome.err.splitlines()
    assert re.fullmatch(
        r"error: client 0, round 1: block \S+ is not finite after local training \(mean loss .+\)", first
    )
    assert second == "hint: a smaller training.optimizer.lr, or inputs of smaller scale"
    assert Run.open(the_run(tmp_path / "runs")).status == "failed"


def test_own_code_that_is_not_there(command: Command, scenario: Callable[..., str]) -> None:
    factory = "{kind: custom, factory: no_such_module_here:Head}"
    outcome = command("simulate", scenario(("{kind: mlp, hidden: [8]}", factory)))
    assert outcome.exit_code == 2
    place = r"small\.yaml:\d+: model\.head\.factory is 'no_such_module_here:Head', but there is no module"
    assert re.match(place, outcome.err)


def test_out_that_is_a_file(command: Command, scenario: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    outcome = command("simulate", scenario(), "--out", "taken")
    assert (outcome.exit_code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: taken")
    assert outcome.err.endswith("; expected a folder that can be written\n")


def test_schema_accepts_what_the_reader_accepts(command: Command) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the independent reader of the schema")
    outcome = command("schema")
    schema = json.loads(outcome.out)
    jsonschema.validators.validator_for(schema).check_schema(schema)
    yaml = YAML(typ="safe", pure=True)
    tree: dict[str, Any] = yaml.load(QUICKSTART)
    jsonschema.validate(tree, schema)
    jsonschema.validate(yaml.load(SMALL), schema)
    for wrong in (tree | {"ronds": 3}, tree | {"rounds": 0}, {key: tree[key] for key in tree if key != "data"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    assert set(schema["properties"]) == set(Scenario.model_fields)


def test_the_reference_in_markdown_names_every_section(command: Command) -> None:
    outcome = command("schema", "--markdown")
    assert outcome.exit_code == 0
    for name in Scenario.model_fields:
        assert f"`{name}`" in outcome.out


@pytest.mark.parametrize("name", ["simulate", "validate", "schema"])
def test_help_has_an_example(name: str, command: Command) -> None:
    outcome = command(name, "--help")
    assert outcome.exit_code == 0
    assert f"Example: blossom-ray {name}" in outcome.out


JOBS = "http://127.0.0.1:1"
"""Where nothing answers."""


def test_submit_says_what_it_takes_along_before_it_asks_anybody(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("key.pem", *(f"{number:02}.txt" for number in range(30))):
        (tmp_path / "mine" / name).write_text("1", encoding="utf-8")
    ended = command("submit", "quickstart", "--include", "mine", "--package", "nodes", "--address", JOBS)
    first, *others = ended.out.splitlines()
    assert re.fullmatch(r"takes 31 files along, 0\.00 MiB \(scenario 0\.00, included 0\.00\)", first)
    assert others == [
        "  blossom-ray-job.yaml", *(f"  mine/{number:02}.txt" for number in range(19)), "  11 more",
        "left out: mine/key.pem (a secret's name: *.pem)",
    ]  # fmt: skip
    assert ended.exit_code == 1
    assert ended.err.startswith(f"error: no Jobs API of a Ray cluster answers at {JOBS}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("working_dir: .", "--runtime-env has working_dir; expected none"),
        ("py_modules: [mine]", "--runtime-env has py_modules that Ray would pack whole; expected URIs, or --include"),
        ("env_vars: {A: 1}", "--runtime-env: "),
        ("[a]", "--runtime-env is 'env.yaml', which is no mapping"),
        (
            "x" * (2**20 + 1),
            "--runtime-env is 'env.yaml', which cannot be read (is larger than 1 MiB); expected a file",
        ),
    ],
)
def test_a_runtime_environment_is_checked_before_anybody_is_asked(
    command: Command, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "env.yaml").write_text(text, encoding="utf-8")
    ended = command("submit", "quickstart", "--package", "nodes", "--address", JOBS, "--runtime-env", "env.yaml")
    assert (ended.exit_code, ended.err.startswith(f"error: {message}")) == (2, True), ended.err


SPECIAL = "is a pipe, a device or a socket; expected a regular file"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/dev/zero", SPECIAL),
        ("pipe", SPECIAL),
        ("none", "No such file or directory"),
        ("folder", "Is a directory"),
        ("to-zero", SPECIAL),
    ],
)
def test_a_runtime_environment_is_a_file(command: Command, tmp_path: Path, path: str, reason: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-zero").symlink_to("/dev/zero")
    ended = command("submit", "quickstart", "--package", "nodes", "--address", JOBS, "--runtime-env", path)
    assert ended.exit_code == 2
    assert ended.err == f"error: --runtime-env is {path!r}, which cannot be read ({reason}); expected a file\n"


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "quickstart"]])
def test_a_working_directory_that_is_gone(arguments: list[str], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'cd "$0" && rmdir "$0" && exec "$@"'
    words = ["sh", "-c", script, str(gone), sys.executable, "-m", "blossom_ray", *arguments]
    environment = os.environ | {"PYTHONPATH": str(QUICKSTART.parent.parent)}
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (2, "")
    message = "the working directory cannot be used (No such file or directory); expected one that is there: cd first"
    assert ended.stderr == f"error: {message}\n"


def test_help_lists_commands_in_the_order_in_which_one_meets_them() -> None:
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert names[:3] == ["init", "simulate", "resume"]
    assert names.index("validate") < names.index("sweep") < names.index("report") < names.index("submit")
