"""Create the tiny store of the current schema, which every later version must open or refuse.

    python -m tools.make_schema_store

It writes ``tests/data/stores/schema-N``, with N the schema number that this version writes: a
``store``, built from eight samples of the demo with the tiny checkpoints, and ``rows.json``, which
holds some of its rows as hexadecimal floats and the SHA-256 of all of them. Run it whenever the
schema number is raised, before the commit, and do not change the folders of older numbers. An
existing folder is not replaced: its store was written by an older version.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from consumers.build import build
from consumers.config import BuildConfig
from featurestore.storage.store import RUNS, SCHEMA, FeatureStore
from manyviews.operations.demo.checkpoints import make_checkpoints
from manyviews.operations.demo.data import make_demo_data

STORES = Path(__file__).resolve().parent.parent / "tests/data/stores"
SAMPLES, VIEWS, CHUNK = 10, 4, 8
# Rows that rows.json contains in full: of both chunks, clean and augmented.
SPELT_OUT = ((0, 0), (3, 1), (9, 3))


def make(folder: Path) -> None:
    """Builds the store in ``folder/store`` and writes ``folder/rows.json``."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        make_demo_data(Path("demo"))
        checkpoints = make_checkpoints(Path("models"))  # relative: the store records their names
        stems = sorted(path.stem for path in Path("demo/dataset").glob("*.json"))[:SAMPLES]
        Path("data").mkdir()
        for path in Path("demo/dataset").iterdir():
            if path.stem in stems:
                shutil.copy(path, "data")
        config = BuildConfig(
            data_dir=Path("data"),
            store=Path("store"),
            features=("clip_image", "clip_text"),
            models={
                "clip_image": str(checkpoints["clip"]),
                "clip_text": str(checkpoints["sentence"]),
            },
            device="cpu",
            producers=1,
            views=VIEWS,
            chunk=CHUNK,
        )
        build(config)
        shutil.rmtree(Path("store") / RUNS)  # what the build printed and measured
        shutil.copytree("store", folder / "store")
    rows = json.dumps(rows_of(folder / "store"), indent=1)
    (folder / "rows.json").write_text(f"{rows}\n", "utf-8")


def rows_of(path: Path) -> dict[str, dict[str, object]]:
    """The content of ``rows.json``, computed without the store's own reader.

    A chunk's file is little-endian float32 ``[K, V, D]`` and four bytes of checksum.
    """
    shape = json.loads((path / "zarr.json").read_bytes())["attributes"]["manyviews"]["shape"]
    rows: dict[str, dict[str, object]] = {}
    for name, dim in shape["dims"].items():
        chunks = sorted((path / name).glob("c.*"), key=lambda file: int(file.name.split(".")[1]))
        data = np.concatenate([np.frombuffer(file.read_bytes()[:-4], "<f4") for file in chunks])
        data = data.reshape(-1, shape["views"], dim)[: shape["samples"]]
        rows[name] = {
            "sha256": hashlib.sha256(data.tobytes()).hexdigest(),
            "rows": {
                f"{sample} {view}": [float(value).hex() for value in data[sample, view]]
                for sample, view in SPELT_OUT
            },
        }
    return rows


def main() -> None:
    """Creates the folder of this version's schema number.

    Raises:
        SystemExit: the folder exists.
    """
    folder = STORES / f"schema-{SCHEMA}"
    if folder.exists():
        raise SystemExit(f"{folder} exists: a committed store is never replaced.")
    folder.mkdir(parents=True)
    make(folder)
    print(f"wrote {folder}; schema {SCHEMA}, {FeatureStore(folder / 'store').spec}")


if __name__ == "__main__":
    main()
