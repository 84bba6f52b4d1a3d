"""Record digests of torchvision's views of the tests' pictures, for comparison in every test run.

Usage:
    python -m tools.view_digests tests/producers

torchvision computes about twenty views per second, which is too slow for thousands of views in each
test run, and it has the recipe's exp and log only on CPUs with AVX-512. This program needs the
pinned torchvision and Pillow, and some minutes. On a CPU without AVX-512, torchvision runs with its
exp and log replaced by those of ``producers/kernels/exponential.py``; the
resulting 2,312 views equalled those of a CPU with AVX-512.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.producers.pictures import names, picture
from tests.producers.recipes.test_exact_views import DIGESTS, VIEWS
from tests.producers.reference import RECORDED, avx512_exp_and_log, digest, reference_views

# The tests that compare with recorded digests of torchvision's values, one per case.
_TESTS = (
    "tests/producers/recipes/test_image_views.py",
    "tests/producers/kernels/test_kernels.py",
    "tests/manyviews/operations/replay/test_replay.py",
)


def views() -> dict[str, dict[str, str]]:
    """Every view of every picture."""
    digests = {}
    for index, name in enumerate(names()):
        poster = picture(name)
        with avx512_exp_and_log():
            made = reference_views(poster, index, VIEWS)
        digests[name] = {"picture": digest(poster), "views": digest(made)}
        print(f"{index + 1} of {len(names())}: {name}", flush=True)
    return digests


def cases() -> dict[str, dict[str, str]]:
    """The other comparisons of the tests, which record digests of torchvision's values."""
    with tempfile.NamedTemporaryFile() as notes:
        environment = {**os.environ, "MANYVIEWS_RECORD_DIGESTS": notes.name}
        command = [sys.executable, "-m", "pytest", "-q", *_TESTS]
        subprocess.run(command, env=environment, check=True)
        return dict(sorted(map(json.loads, notes.read().decode("ascii").splitlines())))


def main() -> None:
    """Writes both files into the folder given as the only argument."""
    folder = Path(sys.argv[1])
    for name, digests in ((RECORDED.name, cases()), (DIGESTS.name, views())):
        (folder / name).write_text(json.dumps(digests, indent=1) + "\n", "ascii")


if __name__ == "__main__":
    main()
