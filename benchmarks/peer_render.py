"""Renders views as JPEG files in tar files, which clip-retrieval reads.

Started by ``benchmarks/peers.py``.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks import peer_recipe as common


class Files(Dataset[list[bytes]]):
    """Each sample's views as JPEG; of view 0 the poster's own file."""

    def __init__(self, data: str, views: int) -> None:
        self.names = common.stems(data)
        self._data, self._views = data, views
        self._recipe = common.make_recipe()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> list[bytes]:
        file = common.poster_file(self._data, self.names[index])
        poster = Image.open(file).convert("RGB")
        pictures = common.make_views(self._recipe, poster, index, self._views)
        return [file.read_bytes(), *map(_jpeg, pictures[1:])]


def run(task: dict[str, Any]) -> None:
    """Writes ``shards`` tar files to ``out``, with each view ``copies`` times, as other samples."""
    samples = Files(task["data"], task["views"])
    common.mark(task["marks"], "ready")
    shards = [
        tarfile.open(Path(task["out"], f"{n}.tar"), "w")  # noqa: SIM115  closed below
        for n in range(task["shards"])
    ]
    for index, files in enumerate(DataLoader(samples, batch_size=None, num_workers=2)):
        for copy in range(task["copies"]):
            shard = shards[(index * task["copies"] + copy) % len(shards)]
            for view, content in enumerate(files):
                _add(shard, f"{samples.names[index]}-{copy:03d}-{view:02d}.jpg", content)
    for shard in shards:
        shard.close()
    common.mark(task["marks"], "done")


def _jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=95)
    return out.getvalue()


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    run(common.task())
