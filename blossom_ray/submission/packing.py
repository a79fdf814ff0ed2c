"""What a job takes along: scenario, own modules, data and this package, each in the place that it has here."""

from __future__ import annotations

import fnmatch
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from blossom_ray.errors import InputError
from blossom_ray.locations import is_uri
from blossom_ray.scenario import Scenario
from blossom_ray.scenario.writer import plain_tree, scenario_yaml

SCENARIO = "blossom-ray-job.yaml"
LIMIT_MIB = 100
"""MiB that a job takes along unless told otherwise. Ray keeps them in its control service, which holds 500 MiB."""
EXCLUDES = (
    "__pycache__", "*.pyc", ".*", "*.egg-info", "node_modules", "venv", "site-packages", "runs", "sweeps",
)  # fmt: skip
"""Names of files and folders that never travel; `*` and `?` as in a shell."""


@dataclass
class Package:
    """What was packed.

    Attributes:
        folder: Where it lies.
        sizes: Bytes by kind: `scenario`, `own code`, `data`, `included`, `blossom_ray`.
        files: What was packed, relative to the folder, with its kind.
    """

    folder: Path
    sizes: dict[str, int] = field(default_factory=dict)
    files: dict[Path, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """All of it."""
        return sum(self.sizes.values())

    def add(self, kind: str, source: Path, place: Path, excludes: Sequence[str]) -> None:
        """Copy a file, or a folder without what is excluded, to a place in the package. What is there stays."""
        for file in _files_of(source, excludes):
            target = place / file.relative_to(source)
            if target in self.files:
                continue
            (self.folder / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, self.folder / target)
            self._count(kind, target)

    def write(self, kind: str, text: str, place: Path) -> None:
        """Write a file into the package."""
        (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / place).write_text(text, encoding="utf-8")
        self._count(kind, place)

    def _count(self, kind: str, place: Path) -> None:
        self.files[place] = kind
        self.sizes[kind] = self.sizes.get(kind, 0) + (self.folder / place).stat().st_size


def pack(
    scenario: Scenario,
    folder: Path,
    *,
    with_package: bool,
    includes: Sequence[Path] = (),
    excludes: Sequence[str] = (),
    limit_mib: int = LIMIT_MIB,
) -> Package:
    """Pack a scenario, checked here before, with what it needs from the working directory.

    Own code is what the scenario names by `module:attribute`, packages whole, and what these have imported from the
    working directory so far. Everything keeps its place relative to the working directory, so that the scenario means
    the same there, to the letter. Data at a URI, `file:///...` on the nodes included, are read there.

    Args:
        scenario: What to run.
        folder: An empty folder.
        with_package: Whether this package travels; else the nodes have it installed.
        includes: More files and folders, below the working directory.
        excludes: More names of files and folders to leave out, as in `EXCLUDES`.
        limit_mib: Refuse more than so many MiB.

    Raises:
        InputError: Something is not below the working directory or not there, or it is too much.
    """
    package = Package(folder)
    without = (*EXCLUDES, *excludes)
    package.write("scenario", scenario_yaml(scenario), Path(SCENARIO))
    path = getattr(scenario.data, "path", None)
    if path is not None and not is_uri(path):
        hint = f"a link there, or file://{Path(path).absolute()} for what the nodes have"
        source, place = _below_here(Path(path).expanduser(), "data.path", hint)
        package.add("data", source, place, ())
    for source, place in _own_code(scenario):
        package.add("own code", source, place, without)
    for path in includes:
        source, place = _below_here(path, "--include", "or a link there")
        package.add("included", source, place, without)
    if with_package:
        package.add("blossom_ray", Path(__file__).parent.parent, Path("blossom_ray"), EXCLUDES)
        # What says which version it is.
        facts = distribution("blossom-ray")
        package.write("blossom_ray", str(facts.read_text("METADATA")), _metadata_folder(facts.version) / "METADATA")
    if package.num_bytes > limit_mib * 2**20:
        parts = ", ".join(f"{kind} {size / 2**20:.1f}" for kind, size in package.sizes.items())
        raise InputError(
            f"the job takes {package.num_bytes / 2**20:.1f} MiB along ({parts}); expected at most {limit_mib} "
            f"(--limit-mib): leave files out with --exclude, or name data by URI: on the nodes, --set data.path=file:///..."
        )
    return package


def _metadata_folder(version: str) -> Path:
    return Path(f"blossom_ray-{version}.dist-info")


def _below_here(path: Path, option: str, hint: str) -> tuple[Path, Path]:
    """A file or folder, and its place relative to the working directory; links count as where they are.

    Raises:
        InputError: It is not there, or not below the working directory.
    """
    here = Path.cwd()
    place = Path(os.path.normpath(here / path))
    if not place.is_relative_to(here):
        raise InputError(f"{option} is {str(path)!r}; to travel with a job, expected a path below {here}, {hint}")
    if not place.exists():
        raise InputError(f"{option} is {str(path)!r}, which does not exist; expected a file or a folder")
    return place, place.relative_to(here)


def _files_of(source: Path, excludes: Sequence[str]) -> Iterator[Path]:
    """A file itself, or the files below a folder, sorted."""
    if source.is_file():
        yield source
        return
    for parent, folders, names in os.walk(source, followlinks=True):
        folders[:] = sorted(name for name in folders if not _is_excluded(name, excludes))
        yield from (Path(parent, name) for name in sorted(names) if not _is_excluded(name, excludes))


def _is_excluded(name: str, excludes: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in excludes)


def _own_code(scenario: Scenario) -> Iterator[tuple[Path, Path]]:
    """Own modules below the working directory that are imported, each with its place there."""
    here = Path.cwd()
    named = {name.partition(":")[0].partition(".")[0] for name in _factories(plain_tree(scenario, defaults=False))}
    for name, module in sorted(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if origin is None or not (file := Path(origin)).is_relative_to(here) or name.partition(".")[0] == "blossom_ray":
            continue
        place = file.relative_to(here)
        if any(_is_excluded(part, EXCLUDES) for part in place.parts):
            continue  # an environment in the working directory
        whole = name in named and file.name == "__init__.py"
        yield (file.parent, place.parent) if whole else (file, place)


def _factories(value: Any) -> Iterator[str]:
    """Every `module:attribute` of a scenario."""
    if isinstance(value, dict):
        if isinstance(value.get("factory"), str):
            yield value["factory"]
        for item in value.values():
            yield from _factories(item)
    elif isinstance(value, list):
        for item in value:
            yield from _factories(item)
