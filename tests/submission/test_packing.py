"""What a job takes along, and what not."""

import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from blossom_ray import Scenario
from blossom_ray.errors import InputError
from blossom_ray.scenario.writer import scenario_yaml
from blossom_ray.submission.packing import SCENARIO, Package, pack

HEAD = """\
import torch
from own_neighbour import WIDTH


def build(input_dim, num_outputs):
    return torch.nn.Linear(input_dim, num_outputs)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with own code, from which nothing has been imported yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def packed(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory, **options: object) -> Package:
    chosen = {"with_package": False} | options
    return pack(scenario, tmp_path_factory.mktemp("package"), **chosen)  # type: ignore[arg-type]


def names(package: Package) -> set[str]:
    found = {path.relative_to(package.folder).as_posix() for path in package.folder.rglob("*") if path.is_file()}
    assert found == {path.as_posix() for path in package.files}
    return found


def test_a_scenario_alone_is_one_file(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    package = packed(small_scenario, tmp_path_factory)
    assert names(package) == {SCENARIO}
    text = (package.folder / SCENARIO).read_text(encoding="utf-8")
    assert text == scenario_yaml(small_scenario)
    assert package.num_bytes == len(text.encode())


def test_own_code_travels_with_what_it_imports(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (here / "own_neighbour.py").write_text("WIDTH = 3\n", encoding="utf-8")
    (here / "own_stranger.py").write_text("raise SystemExit\n", encoding="utf-8")
    (here / "own_package").mkdir()
    (here / "own_package" / "__init__.py").write_text("", encoding="utf-8")
    (here / "own_package" / "heads.py").write_text(HEAD, encoding="utf-8")
    (here / "own_package" / "lazy.py").write_text("", encoding="utf-8")
    importlib.invalidate_caches()
    importlib.import_module("own_package.heads")
    scenario = small_scenario.override({"model.head": {"kind": "custom", "factory": "own_package.heads:build"}})
    package = packed(scenario, tmp_path_factory)
    assert names(package) == {
        SCENARIO, "own_neighbour.py", "own_package/__init__.py", "own_package/heads.py", "own_package/lazy.py",
    }  # fmt: skip
    assert package.files[Path("own_neighbour.py")] == "own code"


def test_data_keep_their_place(small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (here / "files").mkdir()
    (here / "files" / "table.parquet").write_bytes(b"12345")
    (here / "files" / "runs").mkdir()
    (here / "files" / "runs" / "x").write_bytes(b"1")
    scenario = small_scenario.override({"data": {"dataset": "table", "path": "files"}})
    package = packed(scenario, tmp_path_factory)
    assert names(package) == {SCENARIO, "files/table.parquet", "files/runs/x"}
    assert package.sizes["data"] == 6
    on_the_nodes = small_scenario.override({"data": {"dataset": "table", "path": f"file://{here}/files"}})
    assert names(packed(on_the_nodes, tmp_path_factory)) == {SCENARIO}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "/usr",
            r"^data.path is '/usr'; to travel with a job, expected a path below .*, a link there, or file:///usr ",
        ),
        ("..", r"^data.path is '\.\.'; to travel with a job, expected a path below"),
    ],
)
def test_data_elsewhere_do_not_travel(
    path: str, message: str, small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    scenario = small_scenario.override({"data": {"dataset": "table", "path": path}})
    with pytest.raises(InputError, match=message):
        packed(scenario, tmp_path_factory)


def test_a_link_to_data_is_followed(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "table.parquet"
    elsewhere.write_bytes(b"12345")
    (here / "data.parquet").symlink_to(elsewhere)
    package = packed(small_scenario.override({"data": {"dataset": "table", "path": "data.parquet"}}), tmp_path_factory)
    assert (package.folder / "data.parquet").read_bytes() == b"12345"
    assert not (package.folder / "data.parquet").is_symlink()


def test_what_is_included_and_what_is_left_out(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in ("more/a.txt", "more/b.bin", "more/__pycache__/c.pyc", "more/.git/config", "more/runs/r", "one.txt"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("1", encoding="utf-8")
    package = packed(small_scenario, tmp_path_factory, includes=[Path("more"), Path("one.txt")], excludes=["*.bin"])
    assert names(package) == {SCENARIO, "more/a.txt", "one.txt"}
    with pytest.raises(InputError, match=r"^--include is 'none', which does not exist"):
        packed(small_scenario, tmp_path_factory, includes=[Path("none")])


def test_this_package_travels_with_its_version(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    package = packed(small_scenario, tmp_path_factory, with_package=True)
    assert {"blossom_ray/__main__.py", "blossom_ray/reporting/page.html.j2"} <= names(package)
    metadata = package.folder / f"blossom_ray-{version('blossom-ray')}.dist-info" / "METADATA"
    assert f"\nVersion: {version('blossom-ray')}\n" in metadata.read_text(encoding="utf-8")
    assert not [name for name in names(package) if "__pycache__" in name]


def test_too_much_is_refused_with_numbers(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (here / "large.bin").write_bytes(bytes(3 * 2**20))
    with pytest.raises(InputError, match=r"takes 3\.0 MiB along \(scenario 0\.0, included 3\.0\); expected at most 2 "):
        packed(small_scenario, tmp_path_factory, includes=[Path("large.bin")], limit_mib=2)
