"""From nothing to a run on a cluster, as a new user has it: a fresh virtual environment with the built wheel alone.

    python tests/end_to_end.py [--python PYTHON] [--wheel WHEEL] [--keep FOLDER]

Builds the wheel, installs it, and then: init, validate, plan, simulate, report; a cluster of two nodes (`ray start`,
loopback, behind a token); submit --follow, jobs fetch. The fetched run must equal the local one bit for bit. Ends with
0, or with 1 and what the failed step printed. Needs pip's registry, and hatchling unless a wheel is given; this
interpreter needs the extra `dev`, the one to be tested (`--python`) nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from started_cluster import started_cluster

REPOSITORY = Path(__file__).parent.parent
PATIENCE_S = 1800.0

# Two actors of one core each, on whatever nodes they are; private heads, so that checkpoints hold clients' states.
INIT = ("init", "--yes", "--clients", "2:acc 2:acc,gyro", "--sharing", "private-head", "--rounds", "4")

# Runs in the fresh environment: what the two runs computed, and whether it is the same.
COMPARE = """\
import sys
import polars.testing
from blossom_ray import Run

local, fetched = (Run.open(path) for path in sys.argv[1:])
assert local.status == fetched.status == "finished", (local.status, fetched.status)
assert local.manifest["digest"] == fetched.manifest["digest"], "digests of the blocks"
assert local.scenario == fetched.scenario, "scenarios"
for name in ("rounds", "clients", "blocks"):
    mine, other = getattr(local, name), getattr(fetched, name)
    timed = [column for column in mine.columns if "seconds" in column]
    assert mine.height > 0, name
    polars.testing.assert_frame_equal(mine.drop(timed), other.drop(timed), check_exact=True)
print(f"{local.rounds.height} rounds, {local.clients.height} rows of clients, digest {local.manifest['digest']}")
"""


@dataclass
class Steps:
    """Runs commands one after the other and says how long each took.

    Attributes:
        folder: Where they run.
        environment: Variables that they have besides those of this process.
    """

    folder: Path
    environment: Mapping[str, str]

    def run(self, name: str, *command: str | Path) -> str:
        """What a command prints on its standard output; this process ends where the command fails."""
        started = time.perf_counter()
        ended = subprocess.run(
            command, cwd=self.folder, env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        said(name, started)
        if ended.returncode:
            print(ended.stdout, ended.stderr, sep="\n")
            raise SystemExit(f"{name} ended with {ended.returncode}")
        return ended.stdout


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="interpreter for the fresh environment")
    parser.add_argument("--wheel", type=Path, help="install this wheel instead of building one")
    parser.add_argument("--keep", type=Path, help="work in this new folder and leave it there")
    options = parser.parse_args()
    # Nothing of the repository or of the caller's environment is to be seen from the fresh one.
    for key in [key for key in os.environ if key.startswith(("PYTHON", "RAY_", "VIRTUAL_"))]:
        del os.environ[key]
    if options.keep is not None:
        options.keep.mkdir(parents=True)
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="blossom-ray-") if options.keep is None else nullcontext(options.keep) as at
    ):
        folder = Path(at).resolve()
        programs = installed(folder, options.python, options.wheel and options.wheel.resolve())
        local = run_here(folder, programs)
        fetched = run_on_a_cluster(folder, programs)
        steps = Steps(folder / "work", {})
        print(" " * 11, steps.run("compare", programs / "python", "-c", COMPARE, local, fetched).strip())
    said("all of it", started)


def installed(folder: Path, python: str, wheel: Path | None) -> Path:
    """The programs of a fresh environment with the wheel."""
    steps = Steps(REPOSITORY, {})
    if wheel is None:
        steps.run("build the wheel", sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "dist")
        (wheel,) = (folder / "dist").glob("*.whl")
    steps.run("make an environment", python, "-m", "venv", folder / "environment")
    programs = folder / "environment" / "bin"
    pip = (programs / "python", "-m", "pip", "install", "--quiet", "-c", "constraints.txt")
    steps.run("install the wheel", *pip, wheel)
    return programs


def run_here(folder: Path, programs: Path) -> str:
    """From an empty folder to a report: the run folder, relative to `work`."""
    (folder / "work").mkdir()
    steps = Steps(folder / "work", {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"})
    where = steps.run("import it", programs / "python", "-c", "import blossom_ray; print(blossom_ray.__file__)")
    assert Path(where.strip()).is_relative_to(programs.parent), where
    blossom_ray = programs / "blossom-ray"
    steps.run("init", blossom_ray, *INIT)
    steps.run("validate", blossom_ray, "validate", "scenario.yaml")
    steps.run("plan", blossom_ray, "plan", "scenario.yaml")
    printed = steps.run("simulate", blossom_ray, "simulate", "scenario.yaml", "--json")
    local: str = json.loads(printed.splitlines()[-1])["run"]
    (page,) = steps.run("report", blossom_ray, "report", local).split()
    assert "</html>" in (steps.folder / page).read_text(encoding="utf-8")
    return local


def run_on_a_cluster(folder: Path, programs: Path) -> str:
    """The same scenario as a job of a head and a worker node: the fetched run folder, relative to `work`."""
    started = time.perf_counter()
    with started_cluster(programs=programs) as cluster:
        cluster.start_node(f"--address={cluster.address}", "--num-cpus=1")
        said("start a cluster of two nodes", started)
        steps = Steps(folder / "work", cluster.environment)
        blossom_ray, there = programs / "blossom-ray", ("--address", cluster.dashboard)
        printed = steps.run("submit --follow", blossom_ray, "submit", "scenario.yaml", "--follow", *there)
        job = printed.partition("\njob ")[2].split()[0]
        printed = steps.run("jobs fetch", blossom_ray, "jobs", "fetch", job, *there, "--out", "fetched", "--json")
    fetched: str = json.loads(printed)["run"]
    return fetched


def said(name: str, started: float) -> None:
    """Say how long something took."""
    print(f"{time.perf_counter() - started:7.1f} s  {name}", flush=True)


if __name__ == "__main__":
    main()
