"""The slots: layout, memory, and leaks."""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import ConfigError
from featurestore.system.limits import available_bytes
from producers import slots as rings
from producers.recipes.images.geometry import ImageSpec
from producers.slots import Ring, SlotArrays, SlotLayout

ROOT = Path(__file__).resolve().parents[2]
SMALL = SlotLayout(3, (ImageSpec(8, 8), ImageSpec(8, None), ImageSpec(5, None)), (7, 2))

image_specs = st.builds(ImageSpec, st.integers(1, 20), st.none() | st.integers(1, 30))
layouts = st.builds(
    SlotLayout,
    st.integers(1, 6),
    st.lists(image_specs, max_size=4, unique=True).map(tuple),
    st.lists(st.integers(1, 40), max_size=3).map(tuple),
)


def arrays_of(slot: SlotArrays) -> list[np.ndarray]:
    distinct = {id(a): a for a in slot.augmented.values()}.values()
    return [slot.stage, *distinct, *slot.clean.values(), *slot.ids, *slot.lengths]


def fill(slots: list[SlotArrays]) -> None:
    """Fills every array of every slot with different values."""
    for s, slot in enumerate(slots):
        for a, array in enumerate(arrays_of(slot)):
            array[...] = (np.arange(array.size) + 31 * a + 101 * s).reshape(array.shape) % 251


def checksums(slots: list[SlotArrays]) -> list[list[int]]:
    weights = [[np.arange(1, a.size + 1) for a in arrays_of(slot)] for slot in slots]
    return [
        [int((a.ravel().astype(np.int64) * w).sum()) for a, w in zip(arrays_of(s), ws, strict=True)]
        for s, ws in zip(slots, weights, strict=True)
    ]


def open_fds() -> set[str]:
    return {str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}


@given(layouts)
def test_the_arrays_of_a_slot_lie_inside_it_and_apart(layout: SlotLayout) -> None:
    buffer = bytearray(layout.slot_bytes)
    start = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    spans = []
    for array in arrays_of(layout.arrays(memoryview(buffer))):
        offset = array.__array_interface__["data"][0] - start
        assert offset % 64 == 0
        spans.append((offset, offset + array.nbytes))
    spans.sort()
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert spans[-1][1] <= layout.slot_bytes
    assert layout.slot_bytes % os.sysconf("SC_PAGE_SIZE") == 0


def test_what_a_slot_holds() -> None:
    slot = SMALL.arrays(memoryview(bytearray(SMALL.slot_bytes)))
    for spec, views in slot.augmented.items():
        assert views.shape == (2, spec.size, spec.size, 3)
    assert len({id(views) for views in slot.augmented.values()}) == 2  # one for each size
    assert [a.shape for a in slot.clean.values()] == [(8, 8, 3), (8, 8, 3), (5, 5, 3)]
    assert [a.shape for a in slot.ids] == [(3, 7), (3, 2)]
    assert [a.shape for a in slot.lengths] == [(3,), (3,)]
    assert {a.dtype.name for a in (*slot.ids, *slot.lengths)} == {"int32"}


OTHER_SIDE = """
import json, sys
from producers.recipes.images.geometry import ImageSpec
from producers.slots import Ring, SlotLayout
from tests.producers.test_slots import checksums, fill
layout = json.loads(sys.argv[2])
layout["images"] = tuple(ImageSpec(**i) for i in layout["images"])
layout["text_lengths"] = tuple(layout["text_lengths"])
slots = Ring(SlotLayout(**layout), 3, int(sys.argv[1])).slots
print(json.dumps(checksums(slots)))
for slot in slots:
    slot.stage[...] = 0
fill(slots[::-1])
"""


def test_another_process_sees_the_same_bytes_and_we_see_its() -> None:
    ring = Ring(SMALL, 3)
    fill(ring.slots)
    before = checksums(ring.slots)
    assert len({tuple(sums) for sums in before}) == 3
    done = subprocess.run(
        [sys.executable, "-c", OTHER_SIDE, str(ring.fd), json.dumps(asdict(SMALL))],
        pass_fds=[ring.fd],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert json.loads(done.stdout) == before
    assert checksums(ring.slots[::-1]) == before
    ring.close()


def test_the_memory_is_there_from_the_start() -> None:
    ring = Ring(SMALL, 16)
    status = os.fstat(ring.fd)
    assert status.st_size == 16 * SMALL.slot_bytes
    assert status.st_blocks * 512 >= status.st_size  # allocated, not a hole
    ring.close()


def test_too_little_memory_is_found_before_any_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 5 * SMALL.slot_bytes
    monkeypatch.setattr(rings, "available_bytes", lambda: needed - 1)
    before = open_fds()
    with pytest.raises(ConfigError) as caught:
        Ring(SMALL, 5)
    assert f"{needed:,} bytes" in str(caught.value)
    assert f"{needed - 1:,} are free" in str(caught.value)
    assert "--slots" in str(caught.value)
    assert open_fds() == before
    monkeypatch.setattr(rings, "available_bytes", lambda: needed)
    Ring(SMALL, 5).close()


def test_the_real_machine_has_memory_but_not_without_end() -> None:
    assert 0 < available_bytes() < 2**50
    with pytest.raises(ConfigError, match="are free"):
        Ring(SMALL, 2**40)


def test_no_name_is_left_anywhere() -> None:
    shared = Path("/dev/shm")
    before = {p.name for p in shared.iterdir()} if shared.is_dir() else set()
    ring = Ring(SMALL, 2)
    assert str(Path(f"/proc/self/fd/{ring.fd}").readlink()) == "/memfd:manyviews-ring (deleted)"
    if shared.is_dir():
        assert not [p for p in shared.iterdir() if p.name not in before and "manyviews" in p.name]
    ring.close()


def test_closing_gives_descriptors_and_memory_back() -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("manyviews-ring")

    assert mapped() == 0
    rings_open = [Ring(SMALL, 2) for _ in range(3)]
    assert mapped() == 3
    for ring in rings_open:
        ring.close()
    gc.collect()
    assert mapped() == 0
    assert not [name for name in open_fds() if "manyviews-ring" in name]


TINY_SHM = """
mount -t tmpfs -o size=1M tmpfs /dev/shm || exit 77
exec "$0" -c '
import os
from producers.recipes.images.geometry import ImageSpec
from producers.slots import Ring, SlotLayout
assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == 2**20
spec = ImageSpec(224, None)
ring = Ring(SlotLayout(8, (spec,), (128,)), 4)
for slot in ring.slots:
    slot.augmented[spec].fill(7)
print(sum(int(slot.augmented[spec].astype(int).sum()) for slot in ring.slots))
'
"""


def test_a_tiny_dev_shm_does_not_matter() -> None:
    """Four slots of a megabyte, where /dev/shm has one: written in full, without SIGBUS."""
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", TINY_SHM, sys.executable],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no mount in a user namespace here: {done.stderr.strip()}")
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == 4 * 7 * 7 * 224 * 224 * 3
