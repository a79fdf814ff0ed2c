"""The scenarios that come with the package, by name: `quickstart`, `baselines/fedprox`, `paper/meld_iid_3-3-4`.

They are the files of `scenarios/` in the repository; a wheel carries them inside of the package.
"""

from __future__ import annotations

import os
from itertools import takewhile
from pathlib import Path

from blossom_ray.core.phrases import sentences

_SUFFIX = ".yaml"


def packaged_scenarios() -> dict[str, Path]:
    """File of each scenario by name, sorted: those at the top, then folder by folder."""
    # In the repository they stand beside the package, where people look for them.
    inside, beside = (parent / "scenarios" for parent in Path(__file__).parents[1:3])
    folder = inside if inside.is_dir() else beside
    files = sorted(folder.rglob(f"*{_SUFFIX}"), key=lambda path: (len(path.relative_to(folder).parts), path))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def scenario_path(path: Path) -> Path:
    """The file of the packaged scenario that `path` names; `path` itself where something lies there, or no such name.

    Args:
        path: As a user writes it: a file, or a name with or without `.yaml`.
    """
    # `Path` raises for a home that is not known, and for a name that is too long.
    path = Path(os.path.expanduser(path))
    if os.path.exists(path):
        return path
    name = path.as_posix().removesuffix(_SUFFIX)
    return packaged_scenarios().get(name, path)


def shows(text: str) -> str:
    """What a scenario shows: the first sentence of the comment that it begins with.

    Args:
        text: The file's text.
    """
    comment = takewhile(lambda line: line.startswith("# "), text.splitlines())
    return next(sentences(" ".join(line.removeprefix("# ") for line in comment)), "")
