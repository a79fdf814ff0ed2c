"""What a job takes along: scenario, own modules, data and this package, each in the place that it has here.

Which files of a folder those are: no secrets, no links, nothing that git ignores.
"""

from __future__ import annotations

import fnmatch
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

from pathspec import GitIgnoreSpec

from blossom_ray.core.factories import own_code
from blossom_ray.core.locations import is_uri
from blossom_ray.data.federated import renamed
from blossom_ray.errors import InputError
from blossom_ray.models.options import place_of
from blossom_ray.reading.scenario import Scenario
from blossom_ray.reading.writer import scenario_yaml

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
        sizes: Bytes by kind: `scenario`, `own code`, `data`, `weights`, `included`, `blossom_ray`.
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

    def add(self, kind: str, named: Path, origin: Path, excludes: Sequence[str], **how: bool) -> Sequence[LeftOut]:
        """Note what `select` chooses, to be copied to where it is relative to a folder; what is there stays.

        Returns:
            What it leaves out.
        """
        files, left_out = select(named, origin, excludes, **how)
        self.left_out += (each for each in left_out if each not in self.left_out)
        for file in files:
            place = file.relative_to(origin)
            if place not in self.files:
                self._sources[place] = (file, file.stat().st_size)
                self._count(kind, place, file.stat().st_size)
        return left_out

    def write(self, kind: str, text: str, place: Path) -> None:
        """Write a file into the package."""
        content = text.encode()
        with os.fdopen(self._open_new(place), "wb") as file:
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
            with os.fdopen(descriptor, "rb") as file, os.fdopen(self._open_new(place), "wb") as copy:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise InputError(f"{source} is no file any more; expected one to take along")
                while size > 0 and (chunk := file.read(min(size, 2**20))):
                    copy.write(chunk)
                    size -= len(chunk)

    def _open_new(self, place: Path) -> int:
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
    for name, section in scenario.data_sets.items():
        data, key = getattr(section, "path", None), renamed("data.path", name, section)
        if data is None or is_uri(data):
            continue
        hint = f"a link there, or file://{Path(data).absolute()} for what the nodes have"
        source = _below_here(Path(data).expanduser(), key, hint)
        # Ray itself would obey an ignore file, and leave data out.
        for each in package.add("data", source, here, IGNORE_FILES, heeds_ignore_files=False):
            # Without anything else, results would be other ones without a word.
            if secret_pattern(each.path.name) is None:
                raise InputError(
                    f"{key} holds {each.path}, {each.reason}, which does not travel with a job; expected files "
                    f"(cp --recursive --dereference copies what links lead to), or {key}=file:///... on the nodes"
                )
    for block, weights in scenario.model.pretrained.items():
        source = _below_here(Path(weights.path).expanduser(), f"{place_of(block)}.weights.path", "or a link there")
        package.add("weights", source, here, (), heeds_ignore_files=False)
    for name, section in scenario.data_sets.items():
        for modality, own in (getattr(section, "modalities", None) or {}).items():
            for key in ("weights", "transformers"):
                if path := getattr(getattr(own, "features", None), key, None):
                    option = renamed(f"data.modalities.{modality}.features.{key}", name, section)
                    source = _below_here(Path(path).expanduser(), option, "or a link there")
                    package.add("weights", source, here, (), heeds_ignore_files=False)
    for source in _own_code(scenario):
        package.add("own code", source, here, without)
    for path in includes:
        package.add("included", _below_here(path, "--include", "or a link there"), here, without)
    if with_package:
        source, hidden = Path(__file__).parents[2], ("__pycache__", "*.pyc", ".*")
        package.add(PACKAGE, source, source.parent, hidden, heeds_ignore_files=False, has_links_anywhere=True)
        # What says which version it is.
        facts = distribution("blossom-ray")
        place = Path(f"blossom_ray-{facts.version}.dist-info", "METADATA")
        package.write(PACKAGE, str(facts.read_text("METADATA")), place)
    if package.num_bytes > limit_mib * 2**20:
        parts = ", ".join(f"{kind} {size / 2**20:.1f}" for kind, size in package.sizes.items())
        raise InputError(
            f"the job takes {package.num_bytes / 2**20:.1f} MiB along ({parts}); expected at most {limit_mib} "
            f"(--limit-mib): leave files out with --exclude, or name data by URI: on the nodes, --set data.path=file:///..."
        )
    package.copy()
    return package


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
    pattern = secret_pattern(*place.relative_to(here).parts)
    if pattern is not None:
        raise InputError(
            f"{option} is {str(path)!r}, and {pattern} is the name of a secret, which does not travel; expected "
            f"another name, or the secret on the nodes"
        )
    return place


def _own_code(scenario: Scenario) -> Iterator[Path]:
    """Files of modules below the working directory that are imported, and packages that the scenario names, whole."""
    here = Path.cwd()
    named = {str(code).partition(":")[0].partition(".")[0] for _, code, _ in own_code(dict(scenario))}
    for name, module in sorted(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if origin is None or not (file := Path(origin)).is_relative_to(here) or name.partition(".")[0] == "blossom_ray":
            continue
        if not file.is_file() or _matching(EXCLUDES, *file.relative_to(here).parts):
            continue  # an environment in the working directory
        yield file
        if name in named and file.name == "__init__.py":
            yield file.parent


EXCLUDES = (
    "__pycache__", "*.pyc", ".*", "*.egg-info", "node_modules", "venv", "site-packages", "runs", "sweeps",
)  # fmt: skip
"""Names of files and folders that never travel; `*` and `?` as in a shell."""
SECRETS = (
    "*.pem", "*.key", "*.p8", "*.p12", "*.pfx", "*.ppk", "*.jks", "*.keystore", "*.kdbx", "*.gpg", "*.ovpn",
    "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".ssh", ".gnupg",
    "*credential*", "client_secret*", "*service_account*.json", "*service-account*.json",
    "secret", "secrets", "secret.*", "secrets.*", "token", "*.token", "*_token", "token.json", "token.txt",
    "*password*", "*passwd*", "*api_key*", "*apikey*", "*private_key*", "*.tfstate",
    ".env", ".env.*", "*.env", ".envrc", ".netrc", "_netrc", ".pgpass", ".my.cnf", ".npmrc", ".pypirc", ".htpasswd",
    ".aws", ".azure", ".gcloud", ".kube", "kubeconfig", ".docker", ".huggingface", ".kaggle", "kaggle.json",
)  # fmt: skip
"""Names, in any case, of files and folders that hold secrets by habit."""
IGNORE_FILES = (".gitignore", ".rayignore")
"""What they name does not travel. Those that Ray obeys when it packs a job."""
_MOST_ENTRIES = 50_000
_MOST_IGNORE_BYTES = 2**20


class LeftOut(NamedTuple):
    """Something that does not travel: its path, relative to the working directory, and a phrase that follows it."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} ({self.reason})"


def select(
    named: Path,
    here: Path,
    excludes: Sequence[str],
    *,
    heeds_ignore_files: bool = True,
    has_links_anywhere: bool = False,
) -> tuple[Sequence[Path], Sequence[LeftOut]]:
    """The files that travel of a file or folder that somebody has named, and what else is there, both sorted.

    What is named travels, whatever an ignore file says, and is followed if it is a link. Below it a link counts as what
    it leads to, and leads no further than the named folder.

    Args:
        named: The file or folder, below `here`.
        here: The working directory.
        excludes: Names to leave out without a word; `*` and `?` as in a shell.
        heeds_ignore_files: Whether `.gitignore` and `.rayignore` count, from the repository's root down.
        has_links_anywhere: Whether links may lead out of the folder.

    Raises:
        InputError: Something cannot be read, or there are too many files.
    """
    if named.is_file():
        pattern = secret_pattern(named.name)
        left_out = LeftOut(named.relative_to(here), f"a secret's name: {pattern}")
        return ([named], []) if pattern is None else ([], [left_out])
    walk = _Walk(named, here, excludes, heeds_ignore_files, has_links_anywhere)
    return sorted(walk.files()), sorted(walk.left_out)


def secret_pattern(*names: str) -> str | None:
    """The pattern of a secret's name that one of these matches, in any case; None where none does."""
    return _matching(SECRETS, *(name.lower() for name in names))


def _matching(patterns: Sequence[str], *names: str) -> str | None:
    return next((pattern for pattern in patterns for name in names if fnmatch.fnmatchcase(name, pattern)), None)


class _Walk:
    def __init__(
        self, named: Path, here: Path, excludes: Sequence[str], heeds_ignore_files: bool, has_links_anywhere: bool
    ) -> None:
        self._named, self._here, self._excludes = named, here, excludes
        self._real = Path(os.path.realpath(named))
        self._heeds_ignore_files, self._has_links_anywhere = heeds_ignore_files, has_links_anywhere
        self._top = next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)
        self._ignored = cache(_ignored)
        self.left_out: list[LeftOut] = []

    def files(self) -> Iterator[Path]:
        """The files that travel, in no order; notes what does not."""
        num_entries = 0
        # Each folder with the real ones that lead to it: one of them again would be a circle.
        waiting: list[tuple[Path, tuple[Path, ...]]] = [(self._named, (self._real,))]
        while waiting:
            folder, chain = waiting.pop()
            try:
                paths = sorted(folder.iterdir())
            except OSError as error:
                raise InputError(
                    f"{folder} cannot be read ({error.strerror}); expected a folder to take along"
                ) from error
            for path in paths:
                num_entries += 1
                if num_entries > _MOST_ENTRIES:
                    raise InputError(
                        f"{self._named} holds more than {_MOST_ENTRIES} files and folders; expected fewer in a job: "
                        f"leave some out with --exclude, or have them on the nodes"
                    )
                reason = self._reason(path)
                if reason == "":
                    continue
                target = Path(os.path.realpath(path)) if path.is_symlink() else chain[-1] / path.name
                if reason is None and path.is_symlink():
                    reason = self._link_reason(target)
                mode = 0
                if not reason:
                    with suppress(OSError):  # it has just gone
                        mode = path.stat().st_mode
                if stat.S_ISDIR(mode):
                    if target not in chain:
                        waiting.append((path, (*chain, target)))
                        continue
                    reason = "a link to a folder that it is in"
                elif stat.S_ISREG(mode):
                    yield path
                    continue
                self.left_out.append(LeftOut(path.relative_to(self._here), reason or "neither a file nor a folder"))

    def _reason(self, path: Path) -> str | None:
        """Why it does not travel by its name: None if it does, "" for a reason that nobody has to hear of."""
        pattern = secret_pattern(path.name)
        if pattern is not None:
            return f"a secret's name: {pattern}"
        if _matching(self._excludes, path.name):
            return ""
        if path.name.encode(errors="ignore").decode() != path.name:
            return "a name that is not UTF-8"
        found = self._ignoring_file(path)
        return None if found is None else f"named by {found.relative_to(self._top)}"

    def _link_reason(self, target: Path) -> str | None:
        if not target.exists():
            return "a link to nothing"
        if self._has_links_anywhere:
            return None
        if not target.is_relative_to(self._real):
            return "a link out of the folder"
        # A name in front of which what it leads to would not travel does not change that.
        inside = target.relative_to(self._real)
        steps = [self._named / Path(*inside.parts[: depth + 1]) for depth in range(len(inside.parts))]
        return "a link to what does not travel" if any(self._reason(step) is not None for step in steps) else None

    def _ignoring_file(self, path: Path) -> Path | None:
        """The ignore file by which a path does not travel: of each kind the deepest that knows it decides."""
        if not self._heeds_ignore_files:
            return None
        for name in IGNORE_FILES:
            for folder in path.parents:
                spec = self._ignored(folder / name)
                if spec is not None:
                    found = spec.check_file(_for_git(path, folder))
                    if found.include is not None:
                        # A pattern may be about the named folder as a whole, which was named in spite of it.
                        is_named = folder in self._named.parents and (
                            spec.check_file(_for_git(self._named, folder)).index == found.index
                        )
                        if found.include and not is_named:
                            return folder / name
                        break
                if folder == self._top:
                    break
        return None


def _ignored(path: Path) -> GitIgnoreSpec | None:
    """The patterns of an ignore file, or None where there is none."""
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > _MOST_IGNORE_BYTES:
            raise InputError(f"{path} has {path.stat().st_size} bytes; expected at most {_MOST_IGNORE_BYTES}")
        return GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected patterns as git takes them") from error


def _for_git(path: Path, folder: Path) -> str:
    relative = path.relative_to(folder).as_posix()
    return f"{relative}/" if path.is_dir() else relative
