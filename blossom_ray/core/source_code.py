"""What own code consists of, as checksums: its module, what that imports from beside it, and the files they name."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from blossom_ray.core.section import Factory

_WEIGHTS = frozenset({".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npy", ".npz", ".pkl", ".h5", ".onnx"})
"""Files of these kinds are also found where a module names them; other texts in a module may be anything."""


def code_checksums(code: Factory, options: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 (hex) of own code and of the files that it names, by module or file name; none of an installed module.

    A module counts without its comments and layout. Of a callable that was given itself, its own source alone counts.

    Args:
        code: The callable, or `module:attribute` of one whose module has been imported.
        options: Its keyword arguments, which may name files.
    """
    found = {str(path): _file_checksum(path) for path in _files(options)}
    if isinstance(code, str):
        _add_modules(code.partition(":")[0], found)
    else:
        with suppress(OSError, TypeError):  # what has no source
            name = f"{getattr(code, '__module__', '')}:{getattr(code, '__qualname__', '')}"
            found[name] = _checksum(inspect.getsource(code))
    return found


def _add_modules(name: str, found: dict[str, str]) -> None:
    """Add a module, the modules that it imports from the folder in which its package lies, and files that it names."""
    file = _source(name)
    if file is None:
        return
    root = file.parents[name.count(".") + (file.name == "__init__.py")]
    waiting = [name]
    while waiting:
        module = waiting.pop()
        path = _module_file(root, module)
        if path is None or module in found:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            found[module] = _checksum(text)
            continue
        found[module] = _checksum(ast.unparse(tree))
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        waiting += _list_imports(tree, package)
        for named in _named_files(tree, path.parent):
            found[str(named)] = _file_checksum(named)


def _source(name: str) -> Path | None:
    """The file of a module that has been imported, where it is no installed one's."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return None
    path = Path(file).resolve()
    return None if {"site-packages", "dist-packages"} & set(path.parts) else path


def _module_file(root: Path, module: str) -> Path | None:
    place = root.joinpath(*module.split("."))
    candidates = (place / "__init__.py", place.with_name(f"{place.name}.py"))
    return next((path for path in candidates if path.is_file()), None)


def _list_imports(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from accumulate(alias.name.split("."), "{}.{}".format)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if package else []
            base = ".".join((*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])))
            base = base if node.level else node.module or ""
            if base:
                yield from accumulate(base.split("."), "{}.{}".format)
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names if alias.name != "*")


def _named_files(tree: ast.AST, folder: Path) -> Iterator[Path]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and Path(node.value).suffix in _WEIGHTS:
            found = next(filter(os.path.isfile, (Path(node.value), folder / node.value)), None)
            yield from () if found is None else (found,)


def _files(value: Any) -> Iterator[Path]:
    """The files that options name, however deep inside."""
    if isinstance(value, str | Path):
        path = Path(value).expanduser() if str(value).startswith("~/") else Path(value)
        yield from (path,) if os.path.isfile(path) else ()
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _files(item)


def _file_checksum(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
