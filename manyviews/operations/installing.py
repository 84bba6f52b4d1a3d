"""Commands that install optional dependencies, for error messages."""

from __future__ import annotations

from pathlib import Path


def extra(name: str) -> str:
    """The command that installs an extra: from the checkout if this is one, else by name."""
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file():
        return f'cd "{root}" && pip install -e ".[{name}]"'
    return f'pip install "manyviews[{name}]"'
