"""The rooms of the package in docs/architecture.md, from the modules' docstrings: python docs/tools/rooms.py."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "blossom_ray"
PAGE = REPOSITORY / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: made by `make docs` from the modules' docstrings -->", "<!-- end of rooms -->"


def rooms() -> str:
    """A list of the modules at the top, then one for each folder, each with the first line of its docstring."""
    folders = sorted({path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE})
    return "\n".join(line for folder in (PACKAGE, *folders) for line in _room(folder)).strip()


def with_rooms(page: str) -> str:
    """The page of the architecture with the list as it is today."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{rooms()}\n\n{END}{rest.split(END)[1]}"


def _room(folder: Path) -> Iterator[str]:
    name = folder.relative_to(PACKAGE).as_posix()
    if folder != PACKAGE:
        yield f"\n**`{name}/`** {_first_line(folder / '__init__.py')}\n"
    for path in sorted(folder.glob("*.py")):
        if path.name not in ("__init__.py", "__main__.py"):
            yield f"- `{path.relative_to(PACKAGE).as_posix()}`: {_first_line(path)}"


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(with_rooms(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
