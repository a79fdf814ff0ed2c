"""What is installed: the content of the wheel and of the sdist, their metadata, and how fast help answers."""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from blossom_ray.reading.reference import json_schema

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = ("torch", "ray", "polars", "matplotlib", "numpy", "pyarrow", "rich", "ruamel.yaml")  # Typer loads pydantic


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist, built from the working tree without any network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=300)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def repository_files(folder: str, pattern: str) -> set[str]:
    return {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / folder).rglob(pattern)}


def test_the_wheel_holds_the_package_and_its_files_and_nothing_else(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[0]) as wheel:
        assert wheel.testzip() is None
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    scenarios = {f"blossom_ray/{name}" for name in repository_files("scenarios", "*.yaml")}
    others = ("py.typed", "clients/compiled/kernels.c", "studies/reports/page.html.j2", "scenario/scenario.schema.json")
    files = {f"blossom_ray/{name}" for name in others}
    modules = repository_files("blossom_ray", "*.py")
    assert "blossom_ray/__main__.py" in modules
    assert "blossom_ray/scenarios/quickstart.yaml" in scenarios
    assert names - modules - scenarios - files == set(), "add a file of the package to this test"
    assert (modules | scenarios | files) - names == set()


def test_the_schema_in_the_wheel_is_current(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[0]) as wheel:
        schema = json.loads(wheel.read("blossom_ray/scenario/scenario.schema.json"))
    assert schema == json_schema(), "renew it: make docs"


def test_the_metadata_are_valid_and_name_the_command(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[0]) as wheel:
        folder = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
        raw = wheel.read(f"{folder}/METADATA")
        commands = wheel.read(f"{folder}/entry_points.txt").decode()
        tags = email.message_from_bytes(wheel.read(f"{folder}/WHEEL")).get_all("Tag")
        assert f"{folder}/licenses/LICENSE" in wheel.namelist()
    metadata = Metadata.from_email(raw, validate=True)
    assert metadata.name == PROJECT["name"]
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description == (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert metadata.requires_python is not None
    assert [minor for minor in range(10, 15) if f"3.{minor}" in metadata.requires_python] == [11, 12, 13, 14]
    assert commands == "[console_scripts]\nblossom-ray = blossom_ray.cli:main\n"
    assert tags == ["py3-none-any"]


def test_the_sdist_holds_what_a_wheel_and_the_tests_need(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[1]) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt"} <= names
    for folder, pattern in (("blossom_ray", "*.py"), ("scenarios", "*"), ("tests", "*.py"), ("docs", "*.md")):
        files = {name for name in repository_files(folder, pattern) if (REPOSITORY / name).is_file()}
        assert {name for name in files if "__pycache__" not in name} - names == set()


@pytest.mark.long
@pytest.mark.slow
def test_the_tests_of_the_sdist_find_what_they_import(archives: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(archives[1]) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTEST_ADDOPTS": ""}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout[-5000:]
    assert "tests/test_packaging.py::test_python_m_is_the_command" in ended.stdout


def test_help_of_every_command_imports_nothing_heavy() -> None:
    code = f"""
import sys
import typer
from blossom_ray.cli import app

def helped(command, words):
    try:
        command([*words, "--help"], prog_name="blossom-ray")
    except SystemExit as ended:
        assert ended.code == 0, words
    for name in getattr(commands.get(tuple(words)), "commands", ()):
        helped(command, [*words, name])

root = typer.main.get_command(app)
commands = {{(): root, **{{(name,): group for name, group in root.commands.items()}}}}
helped(root, [])
print("LOADED", *sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    usages = {line.split(" [OPTIONS]")[0] for line in ended.stdout.splitlines() if line.startswith("Usage: ")}
    some = ("", " simulate", " attach", " stop", " submit", " jobs fetch", " data list")
    assert {f"Usage: blossom-ray{words}" for words in some} <= usages
    assert ended.stdout.splitlines()[-1] == "LOADED"


def test_python_m_is_the_command() -> None:
    command = [sys.executable, "-m", "blossom_ray", "validate", "quickstart"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert ended.stdout == "quickstart: valid; 10 clients, 20 rounds, modalities acc, gyro\n"
