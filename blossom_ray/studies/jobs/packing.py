"""What a job takes along: scenario, own modules, data and this package, each in the place that it has here.

Which files of a folder those are, says `selection.py`.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from blossom_ray.core.locations import is_uri
from blossom_ray.errors import InputError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.scenario.writer import plain_tree, scenario_yaml
from blossom_ray.studies.jobs.selection import (
    EXCLUDES,
    IGNORE_FILES,
    LeftOut,
    Selection,
    is_excluded,
    secret_pattern,
    select,
)

SCENARIO = "blossom-ray-job.yaml"
PACKAGE = "blossom_ray"
"""The kind of this package's own files."""
LIMIT_MIB = 100
"""MiB that a job takes along unless told otherwise. Ray keeps them in its control service, which holds 500 MiB."""


@dataclass
class Package:
    """What is packed, for its owner alone to read: Ray unpacks it on the nodes with the modes that it has here.

    Attributes:
        folder: Where it lies.
        sizes: Bytes by kind: `scenario`, `own code`, `data`, `included`, `blossom_ray`.
        files: What is packed, relative to the folder, with its kind.
        left_out: What was found beside and is not packed.
    """

    folder: Path
    sizes: dict[str, int] = field(default_factory=dict)
    files: dict[Path, str] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    _sources: dict[Path, tuple[Path, int]] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """All of it."""
        return sum(self.sizes.values())

    def add(self, kind: str, selection: Selection, origin: Path) -> None:
        """Note files to be copied, each to where it is relative to a folder. What is there stays."""
        self.left_out += (each for each in selection.left_out if each not in self.left_out)
        for file in selection.files:
            place = file.relative_to(origin)
            if place not in self.files:
                self._sources[place] = (file, file.stat().st_size)
                self._count(kind, place, file.stat().st_size)

    def write(self, kind: str, text: str, place: Path) -> None:
        """Write a file into the package."""
        content = text.encode()
        with os.fdopen(self._opened(place), "wb") as file:
            file.write(content)
        self._count(kind, place, len(content))

    def copy(self) -> None:
        """Copy what was noted; of a file that has grown since, as much as was counted.

        Raises:
            InputError: A file cannot be read.
        """
        for place, (source, size) in self._sources.items():
            try:
                # Without waiting for a writer, should it have become a pipe.
                descriptor = os.open(os.path.realpath(source), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError as error:
                raise InputError(
                    f"{source} cannot be read ({error.strerror}); expected a file to take along, or --exclude"
                ) from error
            with os.fdopen(descriptor, "rb") as file, os.fdopen(self._opened(place), "wb") as copy:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise InputError(f"{source} is no file any more; expected one to take along")
                while size > 0 and (chunk := file.read(min(size, 2**20))):
                    copy.write(chunk)
                    size -= len(chunk)

    def _opened(self, place: Path) -> int:
        folder = self.folder
        for part in place.parent.parts:
            folder /= part
            folder.mkdir(mode=0o700, exist_ok=True)
        return os.open(self.folder / place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def _count(self, kind: str, place: Path, size: int) -> None:
        self.files[place] = kind
        self.sizes[kind] = self.sizes.get(kind, 0) + size


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
    here = Path.cwd()
    package = Package(folder)
    without = (*EXCLUDES, *excludes)
    package.write("scenario", scenario_yaml(scenario), Path(SCENARIO))
    path = getattr(scenario.data, "path", None)
    if path is not None and not is_uri(path):
        hint = f"a link there, or file://{Path(path).absolute()} for what the nodes have"
        source = _below_here(Path(path).expanduser(), "data.path", hint)
        # Ray itself would obey an ignore file, and leave data out.
        package.add("data", _whole(select(source, here, IGNORE_FILES, heeds_ignore_files=False)), here)
    for source in _own_code(scenario):
        package.add("own code", select(source, here, without), here)
    for path in includes:
        package.add("included", select(_below_here(path, "--include", "or a link there"), here, without), here)
    if with_package:
        source = Path(__file__).parent.parent
        ours = select(source, source.parent, EXCLUDES, heeds_ignore_files=False, has_links_anywhere=True)
        package.add(PACKAGE, ours, source.parent)
        # What says which version it is.
        facts = distribution("blossom-ray")
        package.write(PACKAGE, str(facts.read_text("METADATA")), _metadata_folder(facts.version) / "METADATA")
    if package.num_bytes > limit_mib * 2**20:
        parts = ", ".join(f"{kind} {size / 2**20:.1f}" for kind, size in package.sizes.items())
        raise InputError(
            f"the job takes {package.num_bytes / 2**20:.1f} MiB along ({parts}); expected at most {limit_mib} "
            f"(--limit-mib): leave files out with --exclude, or name data by URI: on the nodes, --set data.path=file:///..."
        )
    package.copy()
    return package


def _metadata_folder(version: str) -> Path:
    return Path(f"blossom_ray-{version}.dist-info")


def _below_here(path: Path, option: str, hint: str) -> Path:
    """A file or folder below the working directory; links count as where they are.

    Raises:
        InputError: It is not there, not below the working directory, neither file nor folder, or goes by the name of a
            secret.
    """
    here = Path.cwd()
    place = Path(os.path.normpath(here / path))
    if not place.is_relative_to(here):
        raise InputError(f"{option} is {str(path)!r}; to travel with a job, expected a path below {here}, {hint}")
    try:
        mode = place.stat().st_mode
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise InputError(f"{option} is {str(path)!r}, which {reason}; expected a file or a folder") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{option} is {str(path)!r}, which is neither; expected a file or a folder")
    pattern = secret_pattern(place.relative_to(here))
    if pattern is not None:
        raise InputError(
            f"{option} is {str(path)!r}, and {pattern} is the name of a secret, which does not travel; expected "
            f"another name, or the secret on the nodes"
        )
    return place


def _whole(selection: Selection) -> Selection:
    """A selection of data, of which nothing but secrets may be missing: results would be other ones without a word.

    Raises:
        InputError: Something else is.
    """
    for each in selection.left_out:
        if secret_pattern(Path(each.path.name)) is None:
            raise InputError(
                f"data.path holds {each.path}, {each.reason}, which does not travel with a job; expected files "
                f"(cp --recursive --dereference copies what links lead to), or data.path=file:///... on the nodes"
            )
    return selection


def _own_code(scenario: Scenario) -> Iterator[Path]:
    """Files of modules below the working directory that are imported, and packages that the scenario names, whole."""
    here = Path.cwd()
    named = {name.partition(":")[0].partition(".")[0] for name in _factories(plain_tree(scenario, defaults=False))}
    for name, module in sorted(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if origin is None or not (file := Path(origin)).is_relative_to(here) or name.partition(".")[0] == "blossom_ray":
            continue
        if not file.is_file() or any(is_excluded(part, EXCLUDES) for part in file.relative_to(here).parts):
            continue  # an environment in the working directory
        yield file
        if name in named and file.name == "__init__.py":
            yield file.parent


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
