"""Write down what torchvision makes of the tests' pictures, so that every test run can compare.

Usage:
    python -m tools.view_digests tests/producers/view_digests.json

torchvision makes some twenty views a second, which is too slow for thousands of them in each run.
It needs the pinned torchvision and Pillow, a CPU with AVX-512 (see ``exp_exceptions.py``) and some
minutes. ``make test-nightly`` makes all views again and compares them one by one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.producers.pictures import names, picture
from tests.producers.reference import reference_views
from tests.producers.test_exact_views import VIEWS, digest


def main() -> None:
    """Makes every view of every picture."""
    digests = {}
    for index, name in enumerate(names()):
        poster = picture(name)
        views = reference_views(poster, index, VIEWS)
        digests[name] = {"picture": digest(poster), "views": digest(views)}
        print(f"{index + 1} of {len(names())}: {name}")
    Path(sys.argv[1]).write_text(json.dumps(digests, indent=1) + "\n", "ascii")


if __name__ == "__main__":
    main()
