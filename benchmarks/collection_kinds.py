"""Reading samples from each kind of collection, compared with a folder of the same files.

    python -m benchmarks.collection_kinds [--quick]

A lap reads the image and the texts of the same number of samples, one after the other as a producer
does, from files that are in the page cache, in CPU time. Then a table of a million rows with small
images is scanned in a separate process, without and with its cached form: the time, and the peak
of its resident memory.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import measuring
from benchmarks.measuring import Contender, ratio, timed
from producers.sources.collection import CollectionConfig
from producers.sources.kinds import scan_collection
from producers.sources.scan import Inputs

FOLDER = "folder"
GOALS = {"webdataset": 0.9, "Parquet": 0.8}
SAMPLES, IMAGE_SIDES = 4000, (256, 256)
MILLION, GIB = 1_000_000, 2**30
_SCAN = """
import json, sys, time
from pathlib import Path
from producers.sources.collection import CollectionConfig
from producers.sources.kinds import scan_collection
start = time.perf_counter()
found = scan_collection(CollectionConfig(kind="table", path=sys.argv[1]))
found.places.stats()
seconds = time.perf_counter() - start
# Not ru_maxrss: that starts with the peak of the process that started this one.
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(json.dumps([len(found.samples), seconds, peak * 1024]))
"""


def pictures(count: int) -> Iterator[bytes]:
    """JPEG files of noise, about 40 KB each, as posters have."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        coarse = rng.integers(0, 256, (64, 64, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize(IMAGE_SIDES).save(file, "JPEG", quality=95)
        yield file.getvalue()


def write_collections(folder: Path, count: int) -> dict[str, CollectionConfig]:
    """The same samples in every kind of collection."""
    images, texts = list(pictures(count)), [f"text {n} " * 40 for n in range(count)]
    names = [f"{n:06d}" for n in range(count)]
    files = folder / "files"
    files.mkdir()
    with tarfile.open(folder / "t.tar", "w") as tar:
        for name, image, text in zip(names, images, texts, strict=True):
            for member, data in ((f"{name}.jpg", image), (f"{name}.txt", text.encode())):
                (files / member).write_bytes(data)
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    pq.write_table(pa.table({"id": names, "image": images, "text": texts}), folder / "t.parquet")
    paths = [f"files/{name}.jpg" for name in names]
    pa.csv.write_csv(pa.table({"id": names, "image": paths, "text": texts}), folder / "t.csv")
    pictured = folder / "pictured"
    pictured.mkdir()
    for name in names:
        os.link(files / f"{name}.jpg", pictured / f"{name}.jpg")
    listed = pa.table({"file_name": [f"{name}.jpg" for name in names], "text": texts})
    pq.write_table(listed, pictured / "metadata.parquet")
    write_data_set(folder / "saved", names, images, texts)
    return {
        FOLDER: CollectionConfig(kind="folder", path=str(files)),
        "webdataset": CollectionConfig(kind="webdataset", path=str(folder / "t.tar")),
        "Parquet": CollectionConfig(kind="table", path=str(folder / "t.parquet")),
        "CSV with paths": CollectionConfig(kind="table", path=str(folder / "t.csv")),
        "imagefolder": CollectionConfig(kind="imagefolder", path=str(pictured)),
        "huggingface": CollectionConfig(kind="huggingface", path=str(folder / "saved")),
    }


def write_data_set(folder: Path, names: list[str], images: list[bytes], texts: list[str]) -> None:
    """A data set saved to disk by ``datasets``."""
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features(
        id=datasets.Value("string"), image=datasets.Image(), text=datasets.Value("string")
    )
    column = [{"bytes": image, "path": None} for image in images]
    rows = {"id": names, "image": column, "text": texts}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)


def reading(collection: CollectionConfig, count: int) -> Contender:
    """A contender that reads ``count`` samples a lap."""
    found = scan_collection(collection)
    inputs = Inputs(found)
    turn = itertools.cycle(found.samples)

    def lap() -> float:
        for sample in itertools.islice(turn, count):
            texts = inputs.texts(sample)
            assert inputs.image(sample) is not None
            assert texts is not None
        return count

    return timed(lap)


def write_million(path: Path, rows: int) -> None:
    """A Parquet file of small images, all different, written in row groups."""
    small = io.BytesIO()
    Image.new("RGB", (32, 32)).save(small, "JPEG")
    schema = pa.schema([("id", pa.string()), ("image", pa.binary()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for start in range(0, rows, 100_000):
            numbers = range(start, min(start + 100_000, rows))
            columns = [
                [f"{n:09d}" for n in numbers],
                [small.getvalue() + n.to_bytes(8, "big") for n in numbers],
                [f"the text of row {n}" for n in numbers],
            ]
            writer.write_table(pa.table(columns, schema=schema))


def scan_million(folder: Path, rows: int) -> str:
    """Scans the table twice, the second time with its cached form."""
    path = folder / "million.parquet"
    write_million(path, rows)
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    lines = [f"{rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB:"]
    for name in ("first scan", "second scan"):
        command = [sys.executable, "-c", _SCAN, str(path)]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
        count, seconds, peak = json.loads(done.stdout)
        assert count == rows
        lines.append(f"{name}: {seconds:.1f} s, peak {peak / GIB:.2f} GiB with mapped pages")
        lines.append(measuring.goal("  60 s over the time", 60 / seconds, 1))
        lines.append(measuring.goal("  1 GiB over the peak", GIB / peak, 1))
    return "\n".join(lines)


def main() -> None:
    """Prints both tables."""
    quick = measuring.options(__doc__).quick
    count, rounds, lap = (1000, 5, 250) if quick else (SAMPLES, 9, 1000)
    print(measuring.machine("pyarrow", "datasets"))
    with tempfile.TemporaryDirectory(prefix="collections-") as temporary:
        folder = Path(temporary)
        os.environ["XDG_CACHE_HOME"] = str(folder / "caches")
        collections = write_collections(folder, count)
        contenders: dict[str, Callable[[], measuring.Lap]] = {
            name: reading(collection, lap) for name, collection in collections.items()
        }
        laps = measuring.take_turns(contenders, rounds)
        print(measuring.comparison(laps, FOLDER, "samples"))
        for name, wanted in GOALS.items():
            print(measuring.goal(name, ratio(laps[name], laps[FOLDER]).median, wanted))
        print(scan_million(folder, MILLION // 10 if quick else MILLION))


if __name__ == "__main__":
    main()
