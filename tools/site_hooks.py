"""A hook of mkdocs: the README is the first page of the site.

Links are written for the repository, where the README lies above the pages; here they are changed
to those of the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).resolve().parent.parent
_REPOSITORY = "https://github.com/manyviews/manyviews/blob/main/"


def on_files(files: Files, config: Any) -> Files:
    """Adds the README as ``index.md``."""
    text = (_ROOT / "README.md").read_text("utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=_outside(text)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Points links to files above ``docs/`` to the repository."""
    return _outside(markdown)


def _outside(text: str) -> str:
    """Replaces relative links to files of the repository that are no pages."""
    names = r"((?:CONTRIBUTING|SECURITY|CHANGELOG)\.md|LICENSE|CITATION\.cff|constraints\.txt)"
    return re.sub(rf"\]\((?:\.\./)*{names}", rf"]({_REPOSITORY}\1", text)
