"""A script written for the published datamodule, with its import line changed, learns something."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

THEIRS = "from dataset_1x_aug70 import "
OURS = "from featurestore.datamodule import "


@pytest.mark.parametrize(
    ("source", "family", "image", "text"),
    [("features", "clip", 32, 32), ("embeddings", "blip2", 96, 64)],
)
def test_the_published_script_runs_and_beats_chance(built, tmp_path, source, family, image, text):
    script = Path(__file__).with_name("published_script.py").read_text()
    assert script.count(THEIRS) == 1
    (tmp_path / "train.py").write_text(script.replace(THEIRS, OURS))
    variables = {
        "OTHER_BACKBONES_DIR_IMDB1_AUG70": built / source,
        "IMDB1_LABELS_DIR_23": built / "labels",
        "MMIMDB1_DIR": built / "imdb",
        "PYTHONPATH": ROOT,
        "OMP_NUM_THREADS": 1,
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "train.py", family],
        cwd=tmp_path,
        env=os.environ | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout.splitlines()[-1])
    assert scores["f1"] > scores["guess_f1"] + 0.15, scores
    assert scores["mean_rank"] < scores["chance_rank"] - 0.75, scores
    assert scores["shapes"] == {
        "image_latents": [4, image],
        "caption_embeddings": [4, text],
        "image_latents_clean": [4, image],
        "caption_embeddings_clean": [4, text],
    }
