"""The size ledger: lines by layer, the largest files and functions, and a failure where a limit is passed.

A line is a line of the file, blank or not. A function is measured without its docstring, so that explaining costs nothing.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

FILE_LIMITS = {"src": 400, "tests": 600, "scripts": 400, "benchmarks": 400}
FUNCTION_LIMIT = 60
SHOWN = 8


@dataclass(frozen=True, order=True, slots=True)
class Size:
    """How many lines `name` has, and how many it may have."""

    lines: int
    name: str
    limit: int

    def __str__(self) -> str:
        return f"{self.lines:6d}  {self.name}"


def function_sizes(path: Path) -> list[Size]:
    """Lines of every function in the file at `path`, nested ones included, docstrings left out."""
    sizes = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            last = node.end_lineno or node.lineno
            docstring = _docstring_lines(node)
            sizes.append(Size(last - node.lineno + 1 - docstring, f"{path}:{node.lineno} {node.name}", FUNCTION_LIMIT))
    return sizes


def _docstring_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if ast.get_docstring(function, clean=False) is None:
        return 0
    first = function.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1


def layer(path: Path) -> str:
    """The part of the repository that `path` counts towards: a package of pollard, or a top folder.

    >>> layer(Path("src/pollard/formats/topology.py")), layer(Path("tests/formats/test_topology.py"))
    ('src/pollard/formats', 'tests')
    """
    top, *rest = path.parts
    return "/".join((top, *rest[:2])) if top == "src" else top


def main() -> int:
    """Print the ledger of the folder this is run in; 1 where a limit is passed, else 0."""
    paths = sorted(path for folder in FILE_LIMITS for path in Path(folder).rglob("*.py"))
    files = [
        Size(len(path.read_text(encoding="utf-8").splitlines()), str(path), FILE_LIMITS[path.parts[0]])
        for path in paths
    ]
    functions = [size for path in paths for size in function_sizes(path)]
    by_layer: Counter[str] = Counter()
    for file in files:
        by_layer[layer(Path(file.name))] += file.lines

    print("Lines by layer")
    for name, lines in sorted(by_layer.items()):
        print(Size(lines, name, lines))
    for title, sizes in (("Largest files", files), ("Largest functions", functions)):
        print(title)
        for size in sorted(sizes, reverse=True)[:SHOWN]:
            print(size)

    over = [size for size in files + functions if size.lines > size.limit]
    for size in over:
        print(f"Too large: {size.name} has {size.lines} lines, the limit is {size.limit}. Split it.", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
