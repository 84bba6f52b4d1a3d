"""Report words that readers of this project would stumble over, and what to write instead.

    python tools/check_wording.py

Looks at every tracked text file. The exit code is 1 if there is a finding.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".c", ".cff", ".h", ".jinja", ".md", ".py", ".pyi", ".toml", ".yml", ".yaml"}
# Files that quote the words.
QUOTING = {"tools/check_wording.py", "tests/test_wording_check.py", "CONTRIBUTING.md"}
# Per expression what to write instead. Whole words, in any case, also across a line break.
BANNED = {
    r"mend(s|ed|ing)?": "fix, repair or rebuild",
    r"told": "reported, or a name of what was reported",
    r"strangers?": "unknown or untrusted",
    r"goes on": "continues or resumes",
    r"go on with": "continue or resume",
    r"in hand": "current",
    r"can be had": "is available",
    r"of one's own": "custom",
    r"stands? in": "replaces",
}


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """The line, the words and the advice of each finding in a text."""
    for expression, advice in BANNED.items():
        words = expression.replace(" ", r"[\s#*]+")
        for match in re.finditer(rf"\b{words}\b", text, re.IGNORECASE):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), advice


def main() -> int:
    """Prints the findings; returns the exit code."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    bad = 0
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix not in SUFFIXES or name in QUOTING or not path.is_file():
            continue
        for line, words, advice in sorted(findings(path.read_text("utf-8"))):
            print(f"{name}:{line}: {words!r}: write {advice}")
            bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
