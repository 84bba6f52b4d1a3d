"""Count the Python lines outside benchmarks and tests, by kind.

Run it as ``python tools/count_lines.py``.
"""

from __future__ import annotations

import ast
import subprocess
from collections import Counter
from pathlib import Path

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def kinds_of(source: str) -> Counter[str]:
    """The number of lines of each kind in one file; blank lines in a docstring belong to it."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            documented |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    kinds: Counter[str] = Counter()
    for number, line in enumerate(source.splitlines(), 1):
        text = line.strip()
        if number in documented:
            kinds["docstrings"] += 1
        elif not text:
            kinds["empty"] += 1
        else:
            kinds["comments" if text.startswith("#") else "code"] += 1
    return kinds


def main() -> None:
    """Prints the counts of all tracked files."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], capture_output=True, text=True, check=True
    ).stdout.split()
    files = [name for name in listed if not name.startswith(("benchmarks/", "tests/"))]
    total: Counter[str] = Counter()
    for name in files:
        total += kinds_of(Path(name).read_text("utf-8"))
    print(f"{len(files)} files, {total.total():,} lines")
    for kind, count in total.most_common():
        print(f"{count:>8,} {kind}")


if __name__ == "__main__":
    main()
