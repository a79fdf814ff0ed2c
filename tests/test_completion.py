"""What the shells offer at the Tab key, asked for as their scripts do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from blossom_ray.core.blocks import SCHEME_NAMES

pytestmark = [pytest.mark.usefixtures("warm_processes"), pytest.mark.slow]

BLOSSOM_RAY = Path(sys.executable).with_name("blossom-ray")
NEEDS_COMMAND = pytest.mark.skipif(not BLOSSOM_RAY.exists(), reason="the console script is not beside this Python")
OWN = """\
rounds: 2
data: {dataset: synthetic}
clients: [{count: 2, modalities: [acc]}]
model: {encoders: {acc: {kind: gru}}, fusion: {kind: mean}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with scenarios, a run and a sweep."""
    (tmp_path / "own.yaml").write_text(OWN, encoding="utf-8")
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "other.yml").write_text(OWN, encoding="utf-8")
    going_on = "runs/own/20261123T130000Z-0002"
    for path in (
        "runs/own/20261123T120000Z-0001/manifest.json", f"{going_on}/manifest.json", f"{going_on}/process.json",
        "sweeps/grid/sweep.json", "runs/empty/x",
    ):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("{}", encoding="utf-8")
    return tmp_path


def offered(folder: Path, variables: dict[str, str]) -> str:
    environment = {**os.environ, **variables, "_BLOSSOM_RAY_COMPLETE": f"complete_{variables['SHELL']}"}
    command = [sys.executable, "-c", "from blossom_ray.cli import main; main()"]
    # The name of the command stands in the variable that asks for a completion.
    command[2] = f"import sys; sys.argv = ['blossom-ray']; {command[2]}"
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.stderr == ""
    return ended.stdout


def bash(folder: Path, *words: str) -> list[str]:
    """What bash is offered for a line whose last word the cursor is in; `=` is a word of its own there."""
    line = ("blossom-ray", *words)
    variables = {"SHELL": "bash", "COMP_WORDS": "\n".join(line), "COMP_CWORD": str(len(line) - 1)}
    return offered(folder, variables).split()


def zsh(folder: Path, line: str) -> str:
    return offered(folder, {"SHELL": "zsh", "_TYPER_COMPLETE_ARGS": f"blossom-ray {line}"})


def fish(folder: Path, line: str) -> dict[str, str]:
    variables = {"_TYPER_COMPLETE_ARGS": f"blossom-ray {line}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    lines = offered(folder, {"SHELL": "fish", **variables}).splitlines()
    return {value: meaning for value, _, meaning in (line.partition("\t") for line in lines)}


def test_scenarios_are_files_below_and_packaged_names(folder: Path) -> None:
    assert bash(folder, "simulate", "own.") == ["own.yaml"]
    assert bash(folder, "simulate", "more/") == ["more/other.yml"]
    found = bash(folder, "validate", "")
    assert found[:2] == ["own.yaml", "more/other.yml"]
    assert {"quickstart", "baselines/fedprox"} <= set(found)
    assert "notes.txt" not in found
    assert bash(folder, "sweep", "own.yaml", "quicks") == ["quickstart"]


def test_folders_of_runs_and_sweeps(folder: Path) -> None:
    runs, sweep = ["runs/own/20261123T120000Z-0001", "runs/own/20261123T130000Z-0002"], "sweeps/grid"
    assert bash(folder, "report", "") == [*runs, sweep]
    assert bash(folder, "resume", "") == runs
    assert bash(folder, "attach", "runs/o") == runs
    assert bash(folder, "stop", "") == runs[1:]
    assert bash(folder, "compare", runs[0], "sw") == [sweep]
    assert bash(folder, "report", "no/such/") == []


def test_keys_follow_from_the_scenario_that_is_typed(folder: Path) -> None:
    assert bash(folder, "simulate", "own.yaml", "--set", "model.fu") == [
        "model.fusion.kind=",
        "model.fusion.weights=",
        "model.fusion.dim=",
        "model.fusion.norm=",
    ]
    keys = bash(folder, "simulate", "own.yaml", "--set", "")
    assert {"rounds=", "clients.0.count=", "model.encoders.acc.dim=", "training.optimizer.lr="} <= set(keys)
    assert not any(key.startswith(("clients.1", "model.encoders.gyro", "runs")) for key in keys)
    assert "clients.2.count=" in bash(folder, "simulate", "quickstart", "--set", "clients.2")
    # One key alone comes with the value that it has, the scenario's own or the default.
    assert bash(folder, "simulate", "own.yaml", "--set", "clients.0.c") == ["clients.0.count=2"]
    assert bash(folder, "simulate", "own.yaml", "--set", "training.optimizer.l") == ["training.optimizer.lr=0.05"]
    # Without a readable scenario there are the keys that all of them have.
    for scenario in ("no-such.yaml", "notes.txt", "more"):
        assert bash(folder, "plan", scenario, "--set", "training.optimizer.l") == ["training.optimizer.lr=0.05"]


def test_values_are_those_that_the_key_accepts(folder: Path) -> None:
    set_sharing = ("simulate", "own.yaml", "--set", "sharing", "=")
    assert bash(folder, *set_sharing) == [*SCHEME_NAMES]
    assert bash(folder, *set_sharing, "private-head-") == ["private-head-fusion"]
    assert bash(folder, "sweep", "own.yaml", "--vary", "model.fusion.kind", "=", "ga") == ["gated"]
    assert bash(folder, "validate", "own.yaml", "--set", "training.keep_optimizer_state", "=", "t") == ["true"]
    assert bash(folder, "validate", "own.yaml", "--set", "no.such.key", "=", "t") == []


def test_what_submit_takes(folder: Path) -> None:
    assert bash(folder, "submit", "own.") == ["own.yaml"]
    assert bash(folder, "submit", "own.yaml", "--set", "sharing", "=", "private-head-") == ["private-head-fusion"]
    assert bash(folder, "submit", "own.yaml", "--package", "") == ["here", "nodes"]


def test_where_a_run_runs_and_is_tracked(folder: Path) -> None:
    assert bash(folder, "simulate", "own.yaml", "--address", "") == ["auto", "local"]
    assert bash(folder, "simulate", "own.yaml", "--track", "t") == ["tensorboard"]


def test_choices_of_init(folder: Path) -> None:
    assert bash(folder, "init", "--sharing", "f") == ["full-model"]
    assert bash(folder, "init", "--sharing", "=", "f") == ["full-model"]
    assert bash(folder, "init", "--dataset", "uci") == ["uci-har"]
    assert bash(folder, "init", "--partition", "d") == ["dirichlet"]
    assert bash(folder, "data", "inspect", "meld") == ["meld"]


def test_commands_and_options(folder: Path) -> None:
    assert bash(folder, "simul") == ["simulate"]
    assert "--seed" in bash(folder, "simulate", "own.yaml", "--s")
    assert bash(folder, "simulate", "own.yaml", "--det") == ["--detach"]
    assert bash(folder, "jobs", "") == ["list", "logs", "stop", "fetch"]
    assert bash(folder, "jobs", "fetch", "--ch") == ["--checkpoints"]


def test_zsh_is_offered_the_same(folder: Path) -> None:
    assert zsh(folder, "simulate own.") == "_arguments '*: :((\"own.yaml\"))'\n"
    assert '"sharing=private-head-fusion"' in zsh(folder, "simulate own.yaml --set sharing=private-head-")
    assert '"model.fusion.dim="' in zsh(folder, "simulate own.yaml --set model.fu")


def test_fish_is_offered_the_same_with_meanings(folder: Path) -> None:
    assert list(fish(folder, "stop r")) == ["runs/own/20261123T130000Z-0002"]
    assert list(fish(folder, "simulate own.yaml --set sharing=f")) == ["sharing=full-model"]
    assert fish(folder, "simulate own.yaml --set model.fu")["model.fusion.dim="] == "Width of the fused representation."


@NEEDS_COMMAND
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_name_the_command(shell: str) -> None:
    variables = {**os.environ, "_BLOSSOM_RAY_COMPLETE": f"source_{shell}"}
    ended = subprocess.run([BLOSSOM_RAY], env=variables, capture_output=True, text=True, check=True, timeout=300)
    assert "blossom-ray" in ended.stdout
    assert f"complete_{shell}" in ended.stdout


@NEEDS_COMMAND
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
@pytest.mark.parametrize(
    ("words", "completed"),
    [(["simulate", "own."], "own.yaml"), (["simulate", "own.yaml", "--set", "sharing", "=", "f"], "full-model")],
)
def test_a_real_bash_is_answered(words: list[str], completed: str, folder: Path) -> None:
    """Bash runs the function of its own script with the words that it makes of a line."""
    line = ["blossom-ray", *words]
    script = f"""
eval "$(_BLOSSOM_RAY_COMPLETE=source_bash blossom-ray)"
COMP_WORDS=({" ".join(line)})
COMP_CWORD={len(line) - 1}
_blossom_ray_completion blossom-ray
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    path = f"{BLOSSOM_RAY.parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.stdout.split() == [completed], ended.stderr
