"""What the package exports, and that asking for it stays cheap."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import REPOSITORY

import blossom_ray

pytestmark = pytest.mark.slow

NAMES = {
    "BlockInstance", "BlossomError", "Comparison", "DataError", "Dataset", "RoundRecord", "Run", "RunError",
    "Scenario", "ScenarioError", "Scope", "SharingScheme", "Sweep", "compare", "from_arrays", "live_figure",
    "personalization_gain", "report", "simulate", "sweep", "write_table",
}  # fmt: skip
QUICKSTART = str(REPOSITORY / "scenarios" / "quickstart.yaml")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


def heavy_modules_after(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has imported after `code`."""
    done = python("-c", f"{code}\nimport sys\nprint('modules:', *sys.modules)")
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.rpartition("modules:")[2].split())
    assert "blossom_ray" in loaded
    return loaded & {"torch", "ray", "polars", "pyarrow"}


def test_all_is_the_documented_names() -> None:
    assert set(blossom_ray.__all__) == NAMES | {"__version__"}
    assert len(blossom_ray.__all__) == len(set(blossom_ray.__all__))
    assert dir(blossom_ray) == sorted(blossom_ray.__all__)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_is_what_its_module_calls_it(name: str) -> None:
    exported = getattr(blossom_ray, name)
    assert exported.__name__ == name
    assert exported.__module__.startswith("blossom_ray.")
    assert exported.__doc__


def test_an_unknown_name_is_refused_as_by_any_module() -> None:
    with pytest.raises(AttributeError, match="module 'blossom_ray' has no attribute 'simulat'"):
        blossom_ray.simulat  # noqa: B018 # the access is what is tested


@pytest.mark.parametrize("code", ["import blossom_ray", "import blossom_ray.cli", "from blossom_ray import Scenario"])
def test_importing_is_cheap(code: str) -> None:
    assert heavy_modules_after(code) == set()


def test_validate_needs_neither_torch_nor_ray() -> None:
    code = f"import sys\nfrom blossom_ray.cli import app\nsys.argv[1:] = ['validate', {QUICKSTART!r}]"
    assert not heavy_modules_after(f"{code}\napp(standalone_mode=False)") & {"torch", "ray"}


# Imports the modules that it is given without packages that it is given, as if these were not installed.
IMPORT_WITHOUT = """
import importlib, sys
from importlib.machinery import ModuleSpec

class Missing:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.partition(".")[0] in sys.argv[1].split(",") else None

    def create_module(self, spec):
        raise ModuleNotFoundError(f"{spec.name} is needed")

sys.meta_path.insert(0, Missing())
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(name, error)
"""
COMPUTES = (
    "clients",
    "data.modalities.extractors",
    "models",
    "runs.exporting",
    "runtime",
    "studies.algorithm_trial",
    "studies.plan",
    "tasks",
)
ON_RAY = ("runtime", "studies.jobs")


@pytest.mark.parametrize(("package", "users"), [("torch", COMPUTES), ("ray", ON_RAY)])
def test_who_watches_a_run_needs_neither_torch_nor_ray(package: str, users: tuple[str, ...]) -> None:
    modules = [found.name for found in pkgutil.walk_packages(blossom_ray.__path__, "blossom_ray.")]
    assert {"blossom_ray.simulation", "blossom_ray.runs.session", "blossom_ray.cli.commands"} < {*modules}
    parts = tuple(f"blossom_ray.{part}" for part in users)
    without = [name for name in modules if not f"{name}.".startswith(tuple(f"{part}." for part in parts))]
    done = python("-c", IMPORT_WITHOUT, package, *(name for name in without if not name.endswith("__main__")))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.ray
def test_a_run_on_ray_loads_no_torch_in_the_process_that_watches_it(tmp_path: Path) -> None:
    code = (
        "from blossom_ray import Scenario, simulate\n"
        f"scenario = Scenario.load({QUICKSTART!r}, {{'rounds': 1, 'execution.runtime': 'ray'}})\n"
        f"assert simulate(scenario, out={str(tmp_path)!r}).status == 'finished'"
    )
    assert "torch" not in heavy_modules_after(code)


def test_version() -> None:
    assert blossom_ray.__version__ == version("blossom-ray")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", blossom_ray.__version__)
    done = python("-m", "blossom_ray", "--version")
    assert (done.returncode, done.stdout) == (0, f"blossom-ray {blossom_ray.__version__}\n")
