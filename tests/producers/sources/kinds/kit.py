"""One collection of pictures and texts, written as each kind of container by its own library."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from producers.sources.collection import CollectionConfig
from producers.sources.kinds import scan_collection
from producers.sources.readers import TextList
from producers.sources.scan import Inputs, Scan


def picture(number: int, kind: str = "PNG") -> bytes:
    """The bytes of a small picture of noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@dataclass(frozen=True)
class Item:
    """One sample: its id, its image and its texts, as far as it has them."""

    id: str
    image: bytes | None = None
    texts: tuple[str, ...] = ()
    labels: Any = None
    split: str | None = None


# In sorted order, as folders have them; ``/`` and quotes may be part of an id.
ITEMS = [
    Item("0012", picture(1), ("a film, with a comma\nand a second line",)),
    Item("012", picture(2, "JPEG"), ("x " * 30,)),
    Item("a b/c's", picture(3), ('she said "no", then "yes"',)),
    Item("café", picture(4), ("雨 и дождь 🌧",)),
    Item("n,1", picture(5), ("null",)),
    Item("zz/ä", picture(6), (" leading and trailing ",)),
]


@dataclass
class Read:
    """What a scanned collection gives."""

    scan: Scan
    ids: list[str] = field(default_factory=list)
    images: list[bytes | None] = field(default_factory=list)
    texts: list[tuple[str, ...]] = field(default_factory=list)


def read(collection: CollectionConfig) -> Read:
    """Scans a collection and reads every input."""
    found = Read(scan_collection(collection))
    inputs = Inputs(found.scan)
    for sample in found.scan.samples:
        found.ids.append(sample.stem)
        found.images.append(inputs.image(sample))
        texts = inputs.texts(sample)
        assert texts is None or isinstance(texts, TextList)
        found.texts.append(() if texts is None else tuple(texts.texts))
    return found


def collection(kind: str, path: Path | str, **values: Any) -> CollectionConfig:
    return CollectionConfig(kind=kind, path=str(path), **values)


def assert_equal(found: Read, items: Iterable[Item]) -> None:
    """The inputs are those of the items, byte by byte and in order."""
    items = list(items)
    assert found.ids == [item.id for item in items]
    assert found.images == [item.image for item in items]
    assert found.texts == [item.texts for item in items]


def write_files(folder: Path, items: Iterable[Item], *, texts: bool = True) -> None:
    """A file for each input."""
    for item in items:
        for data, suffix in ((item.image, image_suffix(item)), (_text(item), ".txt")):
            if data is not None and (texts or suffix != ".txt"):
                path = folder / f"{item.id}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)


def image_suffix(item: Item) -> str:
    return ".jpg" if (item.image or b"").startswith(b"\xff\xd8") else ".png"


def _text(item: Item) -> bytes | None:
    return item.texts[0].encode() if item.texts else None


def write_csv(path: Path, items: Iterable[Item], *, delimiter: str = ",") -> None:
    """Paths of images, and texts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["text", "id", "image"])
        for item in items:
            name = f"{item.id}{image_suffix(item)}" if item.image else ""
            writer.writerow(["".join(item.texts[:1]), item.id, name])


def write_parquet(path: Path, items: Iterable[Item], **options: Any) -> None:
    """Bytes of images, and lists of texts."""
    items = list(items)
    table = {
        "text": [list(item.texts) for item in items],
        "id": [item.id for item in items],
        "image": [{"bytes": item.image, "path": None} for item in items],
    }
    pq.write_table(pa.table(table), path, **options)


def write_metadata(folder: Path, items: Iterable[Item]) -> None:
    """An image folder of Hugging Face with ``metadata.jsonl``, in another order than by name."""
    items = list(items)
    write_files(folder, items, texts=False)
    lines = [
        json.dumps({"file_name": f"{i.id}{image_suffix(i)}", "text": i.texts[0]})
        for i in reversed(items)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")


def write_tar(path: Path, items: Iterable[Item], more: Any = None) -> None:
    """A tar file with the members of each item; ``more`` gives further ones by its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, item in enumerate(items):
            members = {image_suffix(item)[1:]: item.image, "txt": _text(item)}
            members |= more(number) if more else {}
            for suffix, data in members.items():
                if data is not None:
                    info = tarfile.TarInfo(f"{item.id}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def save_dataset(path: Path, items: Iterable[Item], **more: Any) -> None:
    """A data set saved to disk by the library ``datasets``; ``more`` has further columns."""
    import datasets

    items = list(items)
    columns: dict[str, Any] = {
        "id": [item.id for item in items],
        "image": [item.image and {"bytes": item.image, "path": None} for item in items],
        "text": [item.texts[0] if item.texts else None for item in items],
    }
    features = datasets.Features(
        id=datasets.Value("string"), image=datasets.Image(), text=datasets.Value("string")
    )
    for name, (feature, values) in more.items():
        features[name], columns[name] = feature, values
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(path)
