"""``docs/reliability.md`` names existing tests, all faults, and every promise."""

from __future__ import annotations

import ast
import re
from functools import cache

from featurestore import errors
from tests.conftest import ROOT

DOCUMENT = (ROOT / "docs" / "reliability.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", DOCUMENT)))
PROMISES = re.findall(r"^### (P\d) (.+)$", DOCUMENT, re.MULTILINE)
ROWS = re.findall(r"^\| (\d+) \|.*\| ([^|]*) \|$", DOCUMENT, re.MULTILINE)


@cache
def functions(file: str) -> frozenset[str]:
    """The top-level test functions of a file, which pytest collects."""
    tree = ast.parse((ROOT / "tests" / file).read_bytes())
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return frozenset(name for name in found if name.startswith("test_"))


def test_the_document_names_tests() -> None:
    assert len(NAMED) > 100
    # The pattern above matches everything that looks like a test.
    assert DOCUMENT.count("::test_") == len(re.findall(r"`[\w/]+\.py::\w+`", DOCUMENT))


def test_each_named_test_exists() -> None:
    missing = [f"{file}::{name}" for file, name in NAMED if name not in functions(file)]
    assert missing == []


def test_every_row_exists_once_with_a_test() -> None:
    assert [int(number) for number, _ in ROWS] == list(range(1, 98))
    assert all("::test_" in tests for _, tests in ROWS)


def test_every_promise_has_its_mechanism_and_tests() -> None:
    assert "](docs/reliability.md)" in (ROOT / "README.md").read_text("utf-8")
    assert [number for number, _ in PROMISES] == [f"P{i}" for i in range(1, 9)]
    for part in re.split(r"^### P\d", DOCUMENT, flags=re.MULTILINE)[1:]:
        for word in ("- **Mechanism.**", "- **Tests.**", "- **Survived.**", "::test_"):
            assert word in part


def test_every_error_that_a_user_meets_has_advice() -> None:
    section = DOCUMENT.partition("## What to do after each error")[2].partition("\n## ")[0]
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.ManyViewsError):
            if name in ("ManyViewsError", "BadSampleError", "InterruptedBuildError"):
                continue  # the root, a placeholder's reason, and the exit codes 130 and 143
            code = kind.exit_code
            assert f"`{name}`, {code} |" in section, name
