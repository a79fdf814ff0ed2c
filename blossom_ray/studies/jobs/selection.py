"""Which files below a folder travel with a job: no secrets, nothing that is ignored, nothing from elsewhere."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pathspec import GitIgnoreSpec

from blossom_ray.errors import InputError

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


@dataclass(frozen=True)
class LeftOut:
    """Something that does not travel.

    Attributes:
        path: Relative to the working directory.
        reason: A phrase that follows it.
    """

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} ({self.reason})"


@dataclass(frozen=True)
class Selection:
    """What of a file or folder travels.

    Attributes:
        files: Below the named folder, or the named file itself, sorted.
        left_out: What else is there, but for names that never travel.
    """

    files: tuple[Path, ...]
    left_out: tuple[LeftOut, ...]


def select(
    named: Path,
    here: Path,
    excludes: Sequence[str],
    *,
    heeds_ignore_files: bool = True,
    has_links_anywhere: bool = False,
) -> Selection:
    """Choose what travels of a file or folder that somebody has named.

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
        pattern = secret_pattern(Path(named.name))
        left_out = LeftOut(named.relative_to(here), f"a secret's name: {pattern}")
        return Selection((named,), ()) if pattern is None else Selection((), (left_out,))
    walk = _Walk(named, here, excludes, heeds_ignore_files, has_links_anywhere)
    return Selection(tuple(sorted(walk.files())), tuple(sorted(walk.left_out, key=lambda each: each.path)))


def secret_pattern(place: Path) -> str | None:
    """The pattern of a secret's name that a part of a path matches, or None."""
    parts = [part.lower() for part in place.parts]
    return next((pattern for pattern in SECRETS for part in parts if fnmatch.fnmatchcase(part, pattern)), None)


def is_excluded(name: str, excludes: Sequence[str]) -> bool:
    """Whether a name matches one of these patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in excludes)


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
            for path in _entries(folder):
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
                mode = 0 if reason else _mode(path)
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
        pattern = secret_pattern(Path(path.name))
        if pattern is not None:
            return f"a secret's name: {pattern}"
        if is_excluded(path.name, self._excludes):
            return ""
        if not _is_text(path.name):
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
                        if found.include and not self._is_named_anyway(spec, found.index, folder):
                            return folder / name
                        break
                if folder == self._top:
                    break
        return None

    def _is_named_anyway(self, spec: GitIgnoreSpec, index: int | None, folder: Path) -> bool:
        """Whether a pattern is about the named folder as a whole, which was named in spite of it."""
        return folder in self._named.parents and spec.check_file(_for_git(self._named, folder)).index == index


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


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); expected a folder to take along") from error


def _mode(path: Path) -> int:
    """A file's type; none of a file that has just gone."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
