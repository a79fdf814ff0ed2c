"""What the package exports, and that asking for it stays cheap."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version

import pytest
from conftest import REPOSITORY

import blossom_ray

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


def test_version() -> None:
    assert blossom_ray.__version__ == version("blossom-ray")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", blossom_ray.__version__)
    done = python("-m", "blossom_ray", "--version")
    assert (done.returncode, done.stdout) == (0, f"blossom-ray {blossom_ray.__version__}\n")
