"""Print ``constraints-lowest.txt``: the oldest versions that ``pyproject.toml`` allows.

    python -m tools.lowest_constraints > constraints-lowest.txt

A test compares the file with this output, so that a raised bound is raised in both places. The job
"lowest" of ``.github/workflows/tests.yml`` runs the tests with these versions.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
_BOUND = re.compile(r"([\w-]+)(?:\[[\w,-]+\])?>=([\d.]+)(?:,<[\d.]+)?")
_HEAD = """# The oldest versions that pyproject.toml allows: `python -m tools.lowest_constraints`.
"""


def constraints(project: Path = PROJECT) -> str:
    """The file's text.

    Raises:
        ValueError: a requirement has no lower bound, or two different ones.
    """
    described = tomllib.loads(project.read_text("utf-8"))
    metadata = described["project"]
    groups = (*metadata["optional-dependencies"].values(), *described["dependency-groups"].values())
    lowest: dict[str, str] = {}
    for requirement in (*metadata["dependencies"], *(line for group in groups for line in group)):
        parts = _BOUND.fullmatch(requirement)
        if parts is None:
            raise ValueError(f"{requirement!r} is not of the form NAME>=VERSION[,<VERSION]")
        name, version = parts.groups()
        if lowest.setdefault(name, version) != version:
            raise ValueError(f"{name} has the lower bounds {lowest[name]} and {version}")
    # == 5 allows 5.0.0 alone, which is what >= 5 allows first.
    return _HEAD + "".join(f"{name}=={version}\n" for name, version in lowest.items())


def main() -> None:
    """Prints the file."""
    print(constraints(), end="")


if __name__ == "__main__":
    main()
