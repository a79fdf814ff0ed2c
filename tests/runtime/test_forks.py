"""Ray's workers as forks of a warm process: whose children they are, what is left, and what happens without it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from clusters import PATIENCE_S, blossom, cluster_of

from blossom_ray import Scenario
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runtime import forks
from blossom_ray.runtime.placement import ACTOR_MEMORY_BYTES, actor_memory_bytes
from blossom_ray.scenario.sections import ClientResources

WARM = "blossom_ray.runtime.zygote"


def workers(of: str = "ray::") -> Iterator[psutil.Process]:
    """Processes whose title begins so and whose parent is a warm one."""
    for process in psutil.process_iter():
        try:
            parent = process.parent()
            if process.cmdline()[:1] and process.cmdline()[0].startswith(of) and parent and is_warm(parent):
                yield process
        except psutil.Error:
            continue


def is_warm(process: psutil.Process) -> bool:
    return any(WARM in word for word in process.cmdline())


def until(condition: Any) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.1)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_worker_is_a_fork_and_outlives_the_process_that_forked_it_unless_it_was_stopped() -> None:
    import ray

    class Where:
        def __init__(self) -> None:
            self.loaded = {*sys.modules}

        def place(self) -> tuple[int, bool, int]:
            return os.getppid(), "blossom_ray.clients.host" in self.loaded, psutil.Process().memory_full_info().uss

        def groups(self) -> tuple[int, bool, bool]:
            """This process; whether it has a group of its own, and the session of the one that forked it."""
            return os.getpid(), os.getpgid(0) == os.getpid(), os.getsid(0) == os.getsid(os.getppid())

    where: Any = ray.remote(num_cpus=0.1)(Where)
    first, stopped = where.remote(), where.remote()
    warm, has_imported, own_bytes = ray.get(first.place.remote())
    assert has_imported
    number, *groups = ray.get(stopped.groups.remote())
    assert groups == [True, True]
    os.kill(number, signal.SIGSTOP)
    # All of its threads: until the last one has stopped, Linux takes it for a process that is running.
    tasks = Path(f"/proc/{number}/task")
    until(lambda: {each.read_text().rpartition(")")[2].split()[0] for each in tasks.glob("*/stat")} == {"T"})
    assert own_bytes < 1.2 * actor_memory_bytes(ClientResources()), "it has imported something itself"
    os.kill(warm, signal.SIGKILL)
    second = where.remote()
    other, has_imported, _ = ray.get(second.place.remote())
    assert has_imported
    assert other != warm
    assert ray.get(first.place.remote())[1]
    until(lambda: not psutil.pid_exists(number) or psutil.Process(number).status() != psutil.STATUS_STOPPED)
    for actor in (first, second, stopped):
        ray.kill(actor)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_session_that_forks_needs_no_environment_for_it_and_spares_gpus() -> None:
    from blossom_ray.runtime.cluster import client_environment

    assert client_environment(ClientResources()) == {}
    assert client_environment(ClientResources(num_gpus=1)) == {"py_executable": sys.executable}


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_that_is_joined_forks_client_actors_and_none_is_left_when_the_run_is_killed(
    small_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scenario = small_scenario.override({"rounds": 10_000, "execution": {"runtime": "ray", "clients_per_actor": 1}})
    Path("scenario.yaml").write_text(scenario_yaml(scenario), encoding="utf-8")
    with cluster_of({"num_cpus": 2}) as (address, _), blossom("simulate", "scenario.yaml", address=address) as process:
        assert process.stdout is not None
        assert any(re.match(r"round +1/", line) for line in process.stdout)
        actors = [*workers("ray::ClientActor")]
        (warm,) = {actor.parent() for actor in actors}
        assert len(actors) == 5
        assert warm is not None
        process.kill()
        until(lambda: not any(each.is_running() for each in [*actors, warm]))


def test_the_first_worker_of_a_session_is_forked_from_the_process_that_stood_by(tmp_path: Path) -> None:
    script, printed = tmp_path / "default_worker.py", tmp_path / "printed"
    script.write_text(
        "import os, sys\n"
        "told = os.environ['RAY_JOB_ID'], 'torch' in sys.modules, open(f'/proc/{os.getppid()}/cmdline').read()\n"
        f"open({str(printed)!r} + '.new', 'w').write(' '.join(map(str, told)))\n"
        f"os.rename({str(printed)!r} + '.new', {str(printed)!r})\n",
        encoding="utf-8",
    )
    with forks.launching():
        command = [sys.executable, str(script), "--node-id=of-no-cluster"]
    job = f"standing-by-{os.getpid()}"
    subprocess.run(command, env={**os.environ, "RAY_JOB_ID": job, "RAY_RAYLET_PID": f"{os.getpid()}"}, check=True)
    until(printed.exists)
    told = printed.read_text(encoding="utf-8")
    assert told.startswith(f"{job} True ")
    assert "stand_by" in told


def test_a_run_that_will_start_ray_has_its_warm_process_stand_by_before_it_imports_ray(
    small_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it stands by already when the folder is begun: the process and Ray start together."""
    path = tmp_path / "scenario.yaml"
    path.write_text(scenario_yaml(small_scenario), encoding="utf-8")
    code = (
        "import os, sys, psutil\n"
        "from blossom_ray import Scenario, simulate\n"
        "import blossom_ray.runs.session as session\n"
        "class Writer:\n"
        "    def __init__(self, *_):\n"
        "        print(len(psutil.Process().children()), 'ray' in sys.modules, flush=True)\n"
        "        os._exit(0)\n"
        "session.RunWriter = Writer\n"
        f"next(simulate(Scenario.load({str(path)!r}, {{'execution.runtime': sys.argv[1]}}), out='runs', stream=True))\n"
    )
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def told(runtime: str, **more: str) -> str:
        command = [sys.executable, "-c", code, runtime]
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | more, capture_output=True, text=True, check=True
        ).stdout

    assert told("ray") == "1 False\n"
    assert told("local") == "0 False\n"
    assert told("auto") == "0 False\n"
    assert told("ray", RAY_ADDRESS="127.0.0.1:1") == "0 False\n"
    assert told("ray", **{forks.SWITCH: "0"}) == "0 False\n"


def test_a_launcher_whose_warm_process_fails_is_python(tmp_path: Path) -> None:
    script = tmp_path / "default_worker.py"
    script.write_text("print('as ever')", encoding="utf-8")
    node, job = "--node-id=of-no-cluster", f"{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(f"\0blossom-ray {os.getuid()} {node} {job}")
        other.listen()
        with forks.launching() as resources:
            command = [sys.executable, str(script), node]
        process = subprocess.Popen(command, env={**os.environ, "RAY_JOB_ID": job}, stdout=subprocess.PIPE, text=True)
        for _ in range(2):
            other.accept()[0].close()
        assert process.communicate(timeout=PATIENCE_S)[0] == "as ever\n"
    assert resources == {forks.RESOURCE: 1}


def test_forks_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert actor_memory_bytes(ClientResources()) < ACTOR_MEMORY_BYTES
    assert actor_memory_bytes(ClientResources(num_gpus=0.5)) == ACTOR_MEMORY_BYTES
    monkeypatch.setenv(forks.SWITCH, "0")
    assert actor_memory_bytes(ClientResources()) == ACTOR_MEMORY_BYTES
    before = sys.executable
    with forks.launching() as resources:
        assert (resources, sys.executable) == ({}, before)
