"""What a machine offers: the same answer for whoever asks, within the limits of containers and batch systems."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY, Command

from blossom_ray.cli import doctor
from blossom_ray.runtime.placement import Room, allowed_cpus, this_machine

GIB = 2**30
UNLIMITED_V1 = str(2**63 - 4096)
CPU = "cpu,cpuacct"
V2, V1 = "0::/batch.slice/job\n", "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n"


def machine(root: Path, groups: str, files: Mapping[str, str]) -> Path:
    """A folder with what a kernel says of a process's control groups."""
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": text for k, text in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores and 32 GiB free, whatever computes these tests."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 32 * GIB}))


def test_cores_that_a_process_may_not_run_on_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 5, 7})
    assert this_machine(tmp_path) == Room(3, 0, 32 * GIB)


@pytest.mark.parametrize(
    ("groups", "files", "num_cpus"),
    [
        (V2, {"batch.slice/job/cpu.max": "250000 100000\n"}, 2),
        (V2, {"batch.slice/job/cpu.max": "max 100000\n", "batch.slice/cpu.max": "400000 100000\n"}, 4),
        (V2, {"batch.slice/job/cpu.max": "50000 100000\n"}, 1),
        (V2, {"batch.slice/job/cpu.max": "6400000 100000\n"}, 8),
        (V2, {}, 8),
        (V1, {f"{CPU}/docker/abc/cpu.cfs_quota_us": "300000\n", f"{CPU}/docker/abc/cpu.cfs_period_us": "100000\n"}, 3),
        (V1, {f"{CPU}/docker/abc/cpu.cfs_quota_us": "-1\n", f"{CPU}/docker/abc/cpu.cfs_period_us": "100000\n"}, 8),
        # A container sees itself at the top, and is called by its name outside.
        (V1, {f"{CPU}/cpu.cfs_quota_us": "500000\n", f"{CPU}/cpu.cfs_period_us": "100000\n"}, 5),
        ("0::/../..\n", {"cpu.max": "300000 100000\n"}, 3),
    ],
)  # fmt: skip
def test_a_control_group_s_quota_of_cores(groups: str, files: dict[str, str], num_cpus: int, tmp_path: Path) -> None:
    root = machine(tmp_path, groups, files)
    assert allowed_cpus(root) == this_machine(root).num_cpus == num_cpus


@pytest.mark.parametrize(
    ("groups", "files", "gib"),
    [
        (V2, {"batch.slice/job/memory.max": f"{8 * GIB}\n", "batch.slice/job/memory.current": f"{3 * GIB}\n"}, 5),
        # 2 GiB of files that nobody uses are given back when they are wanted.
        (V2, {"batch.slice/job/memory.max": f"{8 * GIB}\n", "batch.slice/job/memory.current": f"{3 * GIB}\n",
              "batch.slice/job/memory.stat": f"anon {GIB}\ninactive_file {2 * GIB}\n"}, 7),
        (V2, {"batch.slice/memory.max": f"{4 * GIB}\n", "batch.slice/memory.current": f"{GIB}\n",
              "batch.slice/job/memory.max": "max\n", "batch.slice/job/memory.current": f"{GIB}\n"}, 3),
        (V2, {"batch.slice/job/memory.max": f"{GIB}\n", "batch.slice/job/memory.current": f"{2 * GIB}\n"}, 0),
        (V1, {"memory/docker/abc/memory.limit_in_bytes": f"{6 * GIB}\n",
              "memory/docker/abc/memory.usage_in_bytes": f"{4 * GIB}\n",
              "memory/docker/abc/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB}\n"}, 3),
        (V1, {"memory/memory.limit_in_bytes": f"{UNLIMITED_V1}\n", "memory/memory.usage_in_bytes": f"{GIB}\n"}, 32),
    ],
)  # fmt: skip
def test_a_control_group_s_limit_of_memory(groups: str, files: dict[str, str], gib: int, tmp_path: Path) -> None:
    assert this_machine(machine(tmp_path, groups, files)).memory_bytes == gib * GIB


def test_ray_keeps_a_part_of_the_memory_for_objects() -> None:
    assert Room(8, 1, 10 * GIB).on_ray() == Room(8, 1, 7 * GIB)


def test_plan_and_doctor_have_the_same_answer(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    Path("scenario.yaml").write_text((REPOSITORY / "scenarios" / "quickstart.yaml").read_text())
    room = json.loads(command("plan", "scenario.yaml", "--json", "--no-probe").out)["room"]
    assert doctor.processor_check(this_machine()).found == f"{room['num_cpus']:g} cores" == "3 cores"
