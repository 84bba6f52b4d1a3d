"""A script for the published datamodule learns from a store after its import line is changed."""

import json
import os
import sys
from pathlib import Path

from tests import warm
from tests.conftest import ROOT

THEIRS = "from dataset_1x_aug70 import "
OURS = "from featurestore.datamodule import "


# One process for both runs, because most of the time is spent importing Lightning.
RUN = """
import os, runpy, sys
runs = sys.argv[1:]
for family, source in zip(runs[1::2], runs[2::2]):
    os.environ["OTHER_BACKBONES_DIR_IMDB1_AUG70"] = source
    sys.argv = [runs[0], family]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_published_script_runs_and_beats_chance(built: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("published_script.py").read_text()
    assert script.count(THEIRS) == 1
    (tmp_path / "train.py").write_text(script.replace(THEIRS, OURS))
    variables = {
        "IMDB1_LABELS_DIR_23": built / "labels",
        "MMIMDB1_DIR": built / "imdb",
        "PYTHONPATH": ROOT,
    }
    runs = ["clip", str(built / "features"), "blip2", str(built / "embeddings")]
    done = warm.run(
        [sys.executable, "-c", RUN, "train.py", *runs],
        cwd=tmp_path,
        env=os.environ | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for scores, (image, text) in zip(found, [(32, 32), (96, 64)], strict=True):
        assert scores["f1"] > scores["guess_f1"] + 0.15, scores
        assert scores["mean_rank"] < scores["chance_rank"] - 0.75, scores
        assert scores["shapes"] == {
            "image_latents": [4, image],
            "caption_embeddings": [4, text],
            "image_latents_clean": [4, image],
            "caption_embeddings_clean": [4, text],
        }
