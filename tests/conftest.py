"""Shared by all tests: a small scenario, the real data where they are, one Ray session."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from warm import Server

from blossom_ray import Run, simulate
from blossom_ray.cli import main
from blossom_ray.reading.scenario import Scenario

REPOSITORY = Path(__file__).parent.parent
UCI_HAR_ZIP = REPOSITORY.parent / "shared" / "data" / "UCI-HAR" / "UCI HAR Dataset.zip"

# A shell without job control starts what it puts into the background with Ctrl-C ignored, and children inherit that:
# the commands that tests interrupt would not hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Where a machine has no C compiler, compiled kernels fall back to what others test.
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
compiled = pytest.param("compiled", marks=needs_compiler)

# A machine that has other work may take longer than Ray's 30 s to start a node.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "240")


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    out: str
    err: str


Command = Callable[..., Outcome]

SMALL: dict[str, Any] = {
    "name": "small",
    "rounds": 2,
    "data": {
        "dataset": "synthetic",
        "samples": 150,
        "classes": 3,
        "modalities": {"acc": {"shape": (8, 2)}, "gyro": {"shape": (8, 2)}},
        "held_out_samples": 30,
    },
    "clients": [
        {"count": 2, "modalities": ["acc"]},
        {"count": 1, "modalities": ["gyro"]},
        {"count": 2, "modalities": ["acc", "gyro"]},
    ],
    "model": {
        "encoders": {
            "acc": {"kind": "mlp", "hidden": [8], "dim": 6, "dropout": 0.1},
            "gyro": {"kind": "mlp", "hidden": [8], "dim": 6, "dropout": 0.1},
        },
        "fusion": {"kind": "attention", "dim": 8},
        "head": {"kind": "mlp", "hidden": [8], "dropout": 0.1},
    },
    "training": {"optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9}},
    "execution": {"runtime": "local", "chunk_size": 2},
}


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded data go into a folder of these tests, not into the user's cache."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("BLOSSOM_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The console script ends its process, and leaves signals to what is then left of it."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch in one thread, as clients compute: for small tensors a second one does nothing but wait."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def small_scenario() -> Scenario:
    """Five clients over two modalities that run in a fraction of a second, in this process."""
    return Scenario.model_validate(SMALL)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the console script's function in an empty folder, off a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["blossom-ray", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def uci_har_zip() -> Path:
    """The official UCI-HAR archive."""
    if not UCI_HAR_ZIP.exists():
        pytest.skip(f"the real recordings are not at {UCI_HAR_ZIP}")
    return UCI_HAR_ZIP


@pytest.fixture(scope="session")
def small_uci_har(uci_har_zip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every 20th window of the official archive, in the official layout."""
    target = tmp_path_factory.mktemp("uci-har") / "small.zip"
    with zipfile.ZipFile(uci_har_zip) as source, zipfile.ZipFile(target, "w") as small:
        for member in source.namelist():
            if "Inertial Signals" in member or Path(member).name.startswith(("y_", "subject_")):
                lines = io.BytesIO(source.read(member)).readlines()
                small.writestr(member, b"".join(lines[::20]))
    return target


@pytest.fixture(scope="session")
def warm_server() -> Iterator[Server]:
    """Forks processes that have imported PyTorch already."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def warm_processes(warm_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test starts with `sys.executable` is forked from a warm process, the cells of a sweep included."""
    monkeypatch.setattr(sys, "executable", str(warm_server.launcher))


@pytest.fixture(scope="session")
def ray_session(warm_server: Server) -> Iterator[None]:
    """One Ray session of two cores for all tests that ask for it; the process that forks its workers is a fork too."""
    import ray

    from blossom_ray.runtime import forks

    # Metrics each second instead of every ten, for the test that waits for them.
    often = {"metrics_report_interval_ms": 1000}
    options = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(warm_server.launcher))
        with forks.launching() as resources:
            ray.init("local", num_cpus=2, resources=resources, _system_config=often, **options)
    yield
    ray.shutdown()


TINY_SCENARIO = {
    "name": "tiny",
    "rounds": 2,
    "data": {"dataset": "synthetic", "samples": 200, "classes": 2},
    "clients": [{"count": 2, "modalities": ["a"]}, {"count": 2, "modalities": ["a", "b"]}],
    "model": {"encoders": {"a": {"kind": "mlp", "dim": 4}, "b": {"kind": "mlp", "dim": 4}}},
    "execution": {"runtime": "local"},
}


@pytest.fixture(scope="session")
def tiny() -> Scenario:
    return Scenario.model_validate(TINY_SCENARIO)


@pytest.fixture(scope="session")
def runs(tiny: Scenario) -> list[Run]:
    return [simulate(tiny.override({"seed": seed})) for seed in (0, 1)]
