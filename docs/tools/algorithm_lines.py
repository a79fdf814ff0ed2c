"""Print how many lines each built-in algorithm has, as the table of docs/own-algorithm.md shows them.

What counts are lines of code: no blank lines, comments or docstrings.
"""

from __future__ import annotations

import ast
from pathlib import Path

ALGORITHMS = Path(__file__).parent.parent.parent / "blossom_ray" / "algorithms"
NOT_ALGORITHMS = ("__init__", "extras", "options", "seam", "selection", "server_optimizers")


def count_lines(source: str) -> int:
    """The lines of code of a module."""
    texts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr)]
    docstrings = {
        number
        for node in texts
        if isinstance(node.value, ast.Constant)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(map(str.strip, source.splitlines()), start=1)
    return sum(1 for number, line in lines if line and not line.startswith("#") and number not in docstrings)


def lines_by_algorithm() -> dict[str, int]:
    """The lines of each built-in algorithm, by the name of its file."""
    files = sorted(path for path in ALGORITHMS.glob("*.py") if path.stem not in NOT_ALGORITHMS)
    return {path.stem: count_lines(path.read_text(encoding="utf-8")) for path in files}


if __name__ == "__main__":
    for name, number in lines_by_algorithm().items():
        print(f"{name:24} {number:4}")
