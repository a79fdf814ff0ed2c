"""Each check against machines that have it, have little of it, or lack it."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from blossom_ray.cli import app, doctor
from blossom_ray.runtime.placement import Room

GIB = 2**30


def usage(free: float, total: float):
    return lambda _: SimpleNamespace(free=free * GIB, total=total * GIB)


@pytest.mark.parametrize(
    ("found", "level"),
    [(("3", "10"), "refused"), (("3", "11"), "good"), (("3", "14"), "good"), (("3", "15"), "refused")],
)
def test_python_versions(found: tuple[str, str], level: str) -> None:
    assert doctor.python_check(found).level == level


def test_every_required_package_is_looked_at() -> None:
    names = {check.name for check in doctor.package_checks()}
    assert {"ray", "torch", "polars", "typer", "pydantic"} <= names
    assert "pytest" not in names
    assert {check.level for check in doctor.package_checks()} == {"good"}


def test_memory_is_told_as_the_clients_that_get_an_actor_of_their_own() -> None:
    # 2 cores at 0.2 each: ten actors; 16 cores: 80; 70 % of 2.1 GiB for actors of 30 MiB: 50.
    assert "up to 10 clients" in doctor.memory_check(Room(2, 0, 16 * GIB)).advice
    assert "up to 50 clients" in doctor.memory_check(Room(16, 0, 2.1 * GIB)).advice
    assert doctor.memory_check(Room(2, 0, GIB)).level == "refused"


@pytest.mark.parametrize(
    ("free", "total", "level"), [(50, 100, "good"), (4, 100, "refused"), (1, 10, "warning"), (0.1, 10, "refused")]
)
def test_disks(tmp_path: Path, free: float, total: float, level: str) -> None:
    assert doctor.disk_check("disk", tmp_path, usage(free, total)).level == level


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    import shutil

    check = doctor.disk_check("disk", tmp_path / "none", shutil.disk_usage)
    assert (check.level, "No such file" in check.found) == ("refused", True)


def test_descriptors() -> None:
    assert doctor.descriptor_check(1024, 65536).level == "warning"
    assert "about 24 actors" in doctor.descriptor_check(1024, 65536).advice
    assert doctor.descriptor_check(65536, 65536).level == "good"
    assert doctor.descriptor_check(resource.RLIM_INFINITY, resource.RLIM_INFINITY).level == "good"


def test_a_long_temporary_folder_leaves_no_room_for_sockets() -> None:
    assert doctor.socket_path_check(Path("/tmp/ray")).level == "good"
    assert doctor.socket_path_check(Path("/scratch") / ("x" * 60)).level == "refused"


def test_shared_memory(tmp_path: Path) -> None:
    assert doctor.shared_memory_check(tmp_path / "none", GIB).level == "warning"
    assert doctor.shared_memory_check(tmp_path, 1).level == "good"
    assert "--shm-size" in doctor.shared_memory_check(tmp_path, 10**18).advice


def test_loopback_answers() -> None:
    assert doctor.loopback_check().level == "good"


def test_the_command_prints_a_line_of_json_per_check() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert {"Python", "ray", "memory", "GPU", "loopback"} <= {check["name"] for check in found}
    assert result.exit_code == (1 if any(check["level"] == "refused" for check in found) else 0)


def test_the_command_prints_a_table_without_colour_codes() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert "\x1b" not in result.stdout
    assert "loopback" in result.stdout


def test_a_c_compiler_is_looked_for_as_kernels_look_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/bin/sh -c")
    assert doctor.compiler_check() == doctor.Check("C compiler", "good", "/bin/sh")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert doctor.compiler_check().level == "warning"
