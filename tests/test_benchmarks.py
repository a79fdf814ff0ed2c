"""The benchmarks that need no peers and no data still run, on a few clients, and say what they should."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from torch.nn.utils import vector_to_parameters

pytestmark = pytest.mark.slow


def output(script: str, *arguments: str) -> str:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / script), *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_overhead(warm_processes: None) -> None:
    text = output("overhead.py", "--runtime", "local", "--clients", "4", "--rounds", "5")
    expected = (
        r"4 clients, packed per actor, local: [\d.]+ ms a client \(.+, 2 rounds\), [\d.]+ ms of processor time.+\n"
    )
    assert re.fullmatch(expected, text)


def test_report_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    report = import_module("report")
    parts = [("W1: first", ["-c", "print('a table')"]), ("W2: second", ["-c", "raise SystemExit('stops')"])]
    monkeypatch.setattr(report, "parts", lambda _arguments: parts)
    monkeypatch.setattr(sys, "argv", ["report.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="W2: second failed:"):
        report.main()
    parts[:] = [("W1: first", ["-c", "raise SystemExit('again')"]), ("W2: second", ["-c", "print('more')"])]
    report.main()
    (file,) = tmp_path.glob("*.md")
    text = file.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line in ("a table", "more")] == ["a table", "more"]
    assert text.count("## W") == 2


def test_round_profile_covers_the_phases_of_a_round() -> None:
    changes = ("--set", "clients.0.count=8", "--set", "data.samples=1288", "--set", "evaluation.clients=0.2")
    text = output("round_profile.py", str(REPOSITORY / "benchmarks" / "w1.yaml"), "--rounds", "4", *changes)
    assert text.startswith("16 clients trained, ")
    parts = re.findall(r"^\| (.+) \| [\d.]+ \| ([\d.]+)% \|$", text, re.MULTILINE)
    assert sum(float(part) for _, part in parts) == pytest.approx(100, abs=2)
    steps = {"steps in C"} if shutil.which("cc") else {"backward", "optimizer"}
    assert {*steps, "open shards", "sums within chunks", "server step"} <= {name for name, _ in parts}


def test_own_modules(warm_processes: None) -> None:
    text = output("own_modules.py", "--clients", "4", "--rounds", "1")
    assert re.match(r"4 clients, 1 rounds; after round 1 blocks differ by [\d.]+e-\d+\n", text)
    assert len(re.findall(r"^\| .+ \| [\d.]+ \| [\d.]+ \| [\d.]+ to [\d.]+ \|$", text, re.MULTILINE)) == 3


def test_gpu_script_on_a_cpu(tmp_path: Path) -> None:
    options = (
        "--device",
        "cpu",
        "--scale",
        "0.002",
        "--stack",
        "2",
        "--only",
        "W1",
        "--out",
        str(tmp_path / "gpu.json"),
    )
    # On a machine with PyTorch, NumPy, pydantic and safetensors alone.
    missing = (
        "ray",
        "polars",
        "pyarrow",
        "psutil",
        "scipy",
        "typer",
        "rich",
        "ruamel",
        "fsspec",
        "filelock",
        "matplotlib",
    )
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in missing)
    (tmp_path / "bare.py").write_text(
        f"import runpy, sys; {blocked}; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    text = output(str(tmp_path / "bare.py"), str(REPOSITORY / "benchmarks" / "gpu.py"), *options)
    assert "no GPU: one thread of the processor" in text
    found = {(name, what): value for name, what, value, _ in json.loads((tmp_path / "gpu.json").read_text())["rows"]}
    assert found["W1", "largest difference from the CPU, stacked"] < 1e-5
    assert {"stack of 2", "FedAvg, 2 clients a round", "SCAFFOLD, 20 clients a round"} <= {what for _, what in found}


def test_scaffold_of_the_gpu_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    gpu = import_module("gpu")
    space = gpu.workspace(gpu.SET_UPS[0], torch.device("cpu"))
    training = gpu.Training.model_validate({"batch_size": 16, "optimizer": {"kind": "sgd"}})
    job = gpu.LocalJob(training, gpu.RATE, (gpu.LocalPass(1, frozenset(space.trained)),), seed=0, round_index=1)
    tasks, engine = gpu.make_tasks(gpu.SET_UPS[0], space, 3), gpu.StackedEngine(space)
    averaging, scaffold = gpu.FedAvg(space), gpu.Scaffold(space)
    for each in (averaging, scaffold):
        each.round(engine, tasks, job, 2)
    for name, size in space.num_parameters.items():
        # Without controls yet it is FedAvg. All clients take part, so the common control is the mean of their own, that
        # is the mean step: what the server moved by, for equal clients.
        np.testing.assert_allclose(scaffold._blocks[name], averaging._blocks[name], rtol=0, atol=1e-7)
        moved = (space.initial_blocks[name] - scaffold._blocks[name])[:size] / (10 * gpu.RATE)
        np.testing.assert_allclose(scaffold._common[name], moved, rtol=0, atol=1e-5)
    scaffold.round(engine, tasks, job, 3)
    for name, common in scaffold._common.items():
        mean = np.mean([own[name] for own in scaffold._own.values()], axis=0)
        np.testing.assert_allclose(common, mean, rtol=0, atol=1e-5)


def test_what_peers_are_given_is_what_ours_train_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = output("peers/scaffold.py", str(tmp_path), "--seeds", "1", "--rounds", "2")
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks" / "peers")
    federation = import_module("federation")
    given, folder = federation.Federation.load(tmp_path / "seed-0" / "federation.npz"), tmp_path / "seed-0"
    ours = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    current, visits = given.initial, iter(given.visits)
    for cohort, after in zip(given.cohorts, ours["samples our fedavg"], strict=True):
        sums = np.zeros(current.shape)
        for client in cohort:
            (visited, orders), model = next(visits), federation.Mlp()
            assert visited == client
            vector_to_parameters(torch.tensor(current), model.parameters())
            optimizer = torch.optim.SGD(model.parameters(), lr=given.learning_rate)
            features, labels = given.samples(client)
            for order in orders:
                for rows in torch.split(order, given.batch_size):
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(model(features[rows]), labels[rows]).backward()
                    optimizer.step()
            sums += len(labels) * federation.flat(model).astype(np.float64)
        current = (sums / given.sizes[cohort].sum()).astype(np.float32)
        np.testing.assert_allclose(after, current, atol=1e-6)
    # With equal weights what peers do otherwise with weights makes no difference; the sign always does.
    mended, fluke = ours["uniform ours as pfl's, sign mended"], ours["uniform ours as fluke's"]
    np.testing.assert_allclose(mended, ours["uniform our scaffold"], atol=1e-6)
    np.testing.assert_allclose(fluke, ours["uniform our scaffold"], atol=1e-6)
    assert np.abs(ours["uniform ours as pfl's"] - ours["uniform our scaffold"]).max() > 0.01
    assert np.abs(ours["samples ours as fluke's"] - ours["samples our scaffold"]).max() > 1e-4
    assert re.search(r"^\| samples \| our fedavg \| our scaffold \| [\d.]+e-\d+ \|", text, re.MULTILINE)
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == 1 + 2 * 5 * 2


def test_decoding_gives_what_a_plain_loop_gives(warm_processes: None) -> None:
    text = output("decoding.py", "--files", "20", "--rounds", "1")
    assert len(re.findall(r"^\| .+ \| \d+ \| [\d,]+ \| [\d,]+ \| [\d,]+ \| [\d.]+ \|$", text, re.MULTILINE)) == 7
