"""Pytest hooks that add up the injected faults of all test processes and print them once."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.conftest import NIGHTLY
from tests.faults.harness import COUNTS

_KEY = "faults"
_total: Counter[str] = Counter()


def pytest_sessionfinish(session: Any) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_KEY] = dict(COUNTS)


def pytest_testnodedown(node: Any, error: object) -> None:
    _total.update(getattr(node, "workeroutput", {}).pop(_KEY, {}))


# Not an optional hook of ours: it is xdist's, which need not be installed.
pytest_testnodedown.pytest_impl = {"optionalhook": True}  # type: ignore[attr-defined]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    counts = _total + COUNTS
    if counts:
        listed = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        profile = "nightly" if NIGHTLY else "default"
        line = f"faults injected ({profile}): {sum(counts.values())}: {listed}"
        terminalreporter.write_line(line)
    _total.clear()
    COUNTS.clear()
