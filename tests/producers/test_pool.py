"""The pool with real producer processes: order, deaths, stalls, defects, and leaks.

Producers are made to misbehave by a ``sitecustomize.py`` on their ``PYTHONPATH``, which acts on
marker words in a synopsis; the product has no hook for it.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from featurestore.errors import ProducerError, StorageError
from featurestore.records import BadInput, SampleRecord
from producers import process
from producers.pool import ProducerPool
from producers.recipes.texts.tokens import TextSpec
from producers.sources.pairs import scan
from producers.sources.readers import pair_source
from producers.worker import Job
from tests import forked

pytestmark = pytest.mark.usefixtures("few_objects")
ROOT = Path(__file__).resolve().parents[2]
VIEWS = 6
SAMPLES = 14
VOCABULARY = ["[PAD]", "[UNK]", "[MASK]", *(f"w{i}" for i in range(SAMPLES + 30))]

Made = tuple[SampleRecord, list[list[int]], list[int]]

MISBEHAVE = """
import ctypes, os, signal, sys, time
from producers import decode
from producers.recipes.texts.hiding import Mask

honest, draw = decode.text, Mask.draw
dies = os.environ.get("DIES", "")
if dies and os.path.exists(dies):
    os.unlink(dies)
    os.kill(os.getpid(), signal.SIGKILL)


def no_room(recipe, text, *rest, **more):
    if "<memory>" in text:
        raise MemoryError
    return draw(recipe, text, *rest, **more)


Mask.draw = no_room


def text(data):
    if b"<sigkill>" in data:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"<exit-0>" in data:
        os._exit(0)
    while b"<loop>" in data:
        time.sleep(1)
    if b"<defect>" in data:
        raise RuntimeError("a defect of " + "10 MB " * 2_000_000)
    if b"<sys-exit>" in data:
        sys.exit(0)
    if b"<print>" in data:
        os.write(2, b"a row is damaged" * 200_000)
    if b"<wait>" in data and not os.path.exists(os.environ["MARK"]):
        with open(os.environ["MARK"], "x") as file:
            file.write(str(os.getpid()))
        time.sleep(60)
    return honest(data)


decode.text = text
"""


def plots(marked: Mapping[int, str] = {}) -> list[str]:
    words = [[f"w{i + j}" for j in range(5 + 2 * i)] for i in range(SAMPLES)]
    return [" ".join(words[i] + [marked.get(i, "")]) for i in range(SAMPLES)]


def write(folder: Path, texts: list[str]) -> Path:
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"s{i:02}.jpg").write_bytes(b"never opened: there is no image backbone")
        (folder / f"s{i:02}.json").write_text(json.dumps({"plot": text}))
    return folder


def job_for(folder: Path, slots: int) -> Job:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    spec = TextSpec(tokenizer.to_str(), max_length=32)
    return Job(pair_source(folder), VIEWS, 123, (), (spec,), slots)


def pool_for(
    folder: Path, producers: int = 2, slots: int = 4, timeout_s: float = 60.0
) -> ProducerPool:
    samples = scan(folder).samples
    return ProducerPool(job_for(folder, slots), samples, producers=producers, timeout_s=timeout_s)


def take_all(pool: ProducerPool) -> list[Made]:
    made: list[Made] = []
    while True:
        try:
            views = pool.take()
        except StopIteration:
            return made
        made.append((views.record, views.arrays.ids[0].tolist(), views.arrays.lengths[0].tolist()))
        pool.release(views)


def children() -> list[psutil.Process]:
    """The running producers of this process, without the helper processes of other tests."""
    return [p for p in psutil.Process().children() if is_ours(p)]


def is_ours(process: psutil.Process) -> bool:
    try:
        command = process.cmdline()
        unrelated = "tests.warm" in command or "resource_tracker" in " ".join(command)
        return process.status() != psutil.STATUS_ZOMBIE and not unrelated
    except psutil.NoSuchProcess:
        return False


def fds() -> list[str]:
    gc.collect()
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sorted(str(link.readlink()) for link in links)


def is_zombie(process: psutil.Process) -> bool:
    return bool(process.status() == psutil.STATUS_ZOMBIE)


def eventually(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def promptly(seconds: float = 10.0) -> Iterator[None]:
    """Asserts that the block takes at most so long on an idle machine.

    On one that does, the processors' time tells what was done, and the clock only that it was no
    time limit that ended it.
    """
    start, spent = time.monotonic(), sum(os.times()[:4])
    yield
    assert sum(os.times()[:4]) - spent < seconds
    assert time.monotonic() - start < 60  # half of what a producer's start may take


@pytest.fixture(scope="module", autouse=True)
def forked_children() -> Iterator[None]:
    """Pools of this process fork their producers."""
    with forked.children():
        yield


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No test may leave a process or a descriptor behind, however its pool ended."""
    before = fds()
    assert not children()
    yield
    assert not children()
    assert fds() == before


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("pool") / "data", plots())


@pytest.fixture(scope="module")
def undisturbed(data: Path) -> list[Made]:
    with pool_for(data, producers=1) as pool:
        made = take_all(pool)
    # The order and the content are right, not only always the same.
    assert [record.index for record, _, _ in made] == list(range(SAMPLES))
    for i, (record, ids, lengths) in enumerate(made):
        words = 5 + 2 * i
        assert record.words == words
        assert lengths == [min(32, words)] * VIEWS
        assert ids[0][: lengths[0]] == [3 + i + j for j in range(lengths[0])]
        assert sum(word == 2 for word in ids[1]) == max(1, round(0.15 * words))
    return made


@pytest.fixture
def misbehaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Producers that act on marker words; where ``<wait>`` leaves its process id."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(MISBEHAVE)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    return tmp_path / "mark"


@pytest.mark.parametrize(("producers", "slots"), [(1, 2), (2, 1), (3, 2), (3, 8)])
def test_the_same_samples_in_the_same_order(
    data: Path, undisturbed: list[Made], producers: int, slots: int
) -> None:
    with pool_for(data, producers, slots) as pool:
        assert take_all(pool) == undisturbed
        assert pool.replaced == {}
        with pytest.raises(StopIteration):
            pool.take()


def test_a_sample_stays_in_place_until_it_is_released(data: Path, undisturbed: list[Made]) -> None:
    with pool_for(data, producers=2, slots=3) as pool:
        held = [pool.take() for _ in range(3)]
        assert len({views.slot for views in held}) == 3
        eventually(lambda: pool.filled == 0)
        for views, (record, ids, _) in zip(held, undisturbed, strict=False):
            assert views.record == record
            np.testing.assert_array_equal(views.arrays.ids[0], ids)
        pool.release(held[0])
        assert pool.take().slot == held[0].slot


def test_idle_producers_are_killed(data: Path, undisturbed: list[Made]) -> None:
    with pool_for(data, producers=2, slots=2) as pool:
        held = [pool.take(), pool.take()]
        victims = children()
        assert len(victims) == 2
        for victim in victims:
            victim.kill()
        for victim in victims:
            eventually(partial(is_zombie, victim))
        for views in held:
            pool.release(views)
        assert take_all(pool) == undisturbed[2:]
        assert pool.replaced == {"SIGKILL (probably out of memory)": 2}


@pytest.mark.usefixtures("undisturbed")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_producer_is_killed_at_work(tmp_path: Path, misbehaving: Path, number: int) -> None:
    folder = write(tmp_path / "data", plots({5: "<wait>"}))

    def kill() -> None:
        eventually(lambda: misbehaving.exists() and misbehaving.read_text())
        os.kill(int(misbehaving.read_text()), number)

    killer = threading.Thread(target=kill)
    killer.start()
    with pool_for(folder) as pool:
        made = take_all(pool)
        killer.join()
        assert pool.replaced.total() == 1
    with pool_for(folder) as pool:
        assert take_all(pool) == made
    assert [record.bad for record, _, _ in made] == [()] * SAMPLES


@pytest.mark.parametrize(
    ("marker", "reason", "detail"),
    [
        ("<sigkill>", "killed", "SIGKILL"),
        ("<loop>", "timeout", "no result within 3 s"),
    ],
)
@pytest.mark.usefixtures("misbehaving")
def test_a_sample_that_does_it_twice_is_a_bad_one(
    tmp_path: Path, undisturbed: list[Made], marker: str, reason: str, detail: str
) -> None:
    folder = write(tmp_path / "data", plots({4: marker}))
    # Long enough for an honest sample on a machine that has much else to do.
    with pool_for(folder, timeout_s=3.0 if reason == "timeout" else 60.0) as pool:
        made = take_all(pool)
        assert 2 <= pool.replaced.total() <= 3
    (bad,) = [bad for record, _, _ in made for bad in record.bad]
    assert (bad.index, bad.modality, bad.reason) == (4, "text", reason)
    assert detail in bad.detail
    assert bad.detail.endswith("2 times")
    # The empty text replaces it, and no other sample is affected.
    record, _, lengths = made[4]
    assert (record.words, record.text_sha256, lengths) == (0, "", [0] * VIEWS)
    assert [m[1:] for m in made[:4] + made[5:]] == [
        m[1:] for m in undisturbed[:4] + undisturbed[5:]
    ]


@pytest.mark.usefixtures("misbehaving")
def test_a_text_whose_views_need_too_much_memory_is_a_bad_one(
    tmp_path: Path, undisturbed: list[Made]
) -> None:
    folder = write(tmp_path / "data", plots({4: "<memory>"}))
    with pool_for(folder) as pool:
        made = take_all(pool)
        assert pool.replaced.total() == 0
    record, _, lengths = made[4]
    (bad,) = record.bad
    assert (bad.index, bad.modality, bad.reason) == (4, "text", "out-of-memory")
    assert record.text_sha256  # it was read: should it change, that is seen
    assert (record.words, lengths) == (0, [0] * VIEWS)
    assert [m[1:] for m in made[:4] + made[5:]] == [
        m[1:] for m in undisturbed[:4] + undisturbed[5:]
    ]


@pytest.mark.usefixtures("misbehaving")
def test_what_a_library_prints_does_not_pile_up(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", plots(dict.fromkeys(range(SAMPLES), "<print>")))
    with pool_for(folder, producers=1) as pool:
        assert len(take_all(pool)) == SAMPLES
        (worker,) = pool._workers
        eventually(lambda: worker.child.printed_bytes == 0)


def test_one_that_is_killed_while_it_starts_is_replaced(
    data: Path, undisturbed: list[Made], misbehaving: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = misbehaving.with_name("dies")
    dies.touch()
    monkeypatch.setenv("DIES", str(dies))
    with pool_for(data) as pool:
        assert take_all(pool) == undisturbed
        assert pool.replaced.total() == 1
    assert not dies.exists()


@pytest.mark.usefixtures("misbehaving")
def test_two_bad_ones_side_by_side_are_told_apart(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", plots({6: "<exit-0>", 7: "<sigkill>"}))
    with pool_for(folder, producers=1, slots=8) as pool:
        made = take_all(pool)
    found = {bad.index: bad.detail for record, _, _ in made for bad in record.bad}
    assert sorted(found) == [6, 7]
    assert "exit status 0" in found[6]
    assert "SIGKILL" in found[7]


@pytest.mark.usefixtures("misbehaving")
def test_a_long_row_of_killers_ends(tmp_path: Path) -> None:
    """Every sample kills its producer: the pool gives up instead of restarting forever."""
    killers = 6  # more than the pool has slots
    texts = plots(dict.fromkeys(range(killers), "<exit-0>"))[:killers]
    with pool_for(write(tmp_path / "data", texts)) as pool:
        made = take_all(pool)
        assert pool.replaced.total() <= 3 * killers
    assert all(isinstance(bad, BadInput) for record, _, _ in made for bad in record.bad)
    assert sum(len(record.bad) for record, _, _ in made) == killers


@pytest.mark.parametrize("marker", ["<defect>", "<sys-exit>"])
@pytest.mark.usefixtures("misbehaving")
def test_a_defect_stops_with_its_traceback(tmp_path: Path, marker: str) -> None:
    folder = write(tmp_path / "data", plots({3: marker}))
    with pool_for(folder) as pool, pytest.raises(ProducerError, match="Traceback") as caught:
        take_all(pool)
    assert caught.value.stem == "s03"
    assert "sitecustomize.py" in str(caught.value)
    assert len(str(caught.value)) < 10_000


def test_a_full_folder_of_temporary_files_is_named(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: full.open("wb"))
    with pytest.raises(StorageError, match=r"No space left") as caught:
        pool_for(data)
    assert tempfile.gettempdir() in str(caught.value)


def test_producers_that_cannot_start(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['producers.slots'] = None\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setattr(process, "subprocess", subprocess)  # a fork has imported everything
    with promptly(), pool_for(data) as pool, pytest.raises(ProducerError) as caught:
        pool.take()
    assert "while it started" in str(caught.value)
    assert "ModuleNotFoundError" in str(caught.value)
    assert caught.value.pid is not None


def test_the_end_of_a_block_is_the_end_of_its_producers(data: Path) -> None:
    with pytest.raises(KeyError), pool_for(data, producers=3) as pool:  # noqa: PT012
        pool.take()
        assert len(children()) == 3
        raise KeyError
    pool.close()  # once more does nothing


PARENT = """
import sys
from pathlib import Path
from producers import process
from producers.pool import ProducerPool
from producers.sources.pairs import scan
from producers.sources.readers import pair_source
from producers.worker import Job
job = Job.from_json(Path(sys.argv[1]).read_bytes())
pool = ProducerPool(job, scan(Path(job.source["root"])).samples, producers=3, timeout_s=60)
if sys.argv[2] == "ready":
    for _ in range(4):
        pool.take()
print(*(w.child.pid for w in pool._workers), flush=True)
if sys.argv[2] == "stuck":
    pool.take()
sys.stdin.read()
"""


@pytest.mark.parametrize(
    "moment", [pytest.param("ready", marks=pytest.mark.nightly), "starting", "stuck"]
)
def test_no_producer_outlives_a_killed_parent(
    tmp_path: Path, misbehaving: Path, moment: str
) -> None:
    """Whether producers work, are still starting, or hang in a sample."""
    folder = write(tmp_path / "data", plots({0: "<wait>"} if moment == "stuck" else {}))
    (tmp_path / "job.json").write_bytes(job_for(folder, 4).to_json())
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path / "job.json", moment],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        producers = [psutil.Process(pid) for pid in pids]
        assert len(producers) == 3
        if moment == "stuck":
            eventually(misbehaving.exists)
        parent.kill()
    eventually(lambda: not any(map(alive, producers)), seconds=5)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and not is_zombie(process)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("moment", ["ready", "starting"])
def test_producers_leave_ctrl_c_to_their_parent(data: Path, moment: str) -> None:
    """A terminal sends it to the whole group, also to producers that are still starting."""
    with pool_for(data) as pool:
        if moment == "ready":
            pool.take()
        for producer in children():
            producer.send_signal(signal.SIGINT)
            producer.send_signal(signal.SIGTERM)
        for _ in range(3):
            pool.release(pool.take())
        assert pool.replaced == {}
