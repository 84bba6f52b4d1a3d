"""Producers that die, hang, or want too much: what the pool makes of each, and what is left.

``tests/producers/test_pool.py`` holds the plain cases; here are torn messages, every kind of end,
memory, a parent that sleeps or dies, and leaks. Producers misbehave through a ``sitecustomize.py``
on their path, which acts on marker words in a synopsis and notes in ``MARK`` that it has.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from featurestore.errors import ProducerError
from producers import parent, process
from producers.pool import ProducerPool
from producers.sources.pairs import scan
from tests.conftest import NIGHTLY
from tests.faults.harness import LightPopen
from tests.producers.test_pool import (
    ROOT,
    SAMPLES,
    Made,
    alive,
    children,
    eventually,
    fds,
    job_for,
    plots,
    pool_for,
    promptly,
    take_all,
    write,
)

MISBEHAVE = """
import ctypes, os, signal, sys, time
import numpy
from multiprocessing.connection import Connection
from producers import decode, worker

honest, send = decode.text, Connection._send
torn = int(os.environ.get("TORN", "-1"))


def note(what):
    with open(os.environ["MARK"], "a") as file:
        file.write(what + "\\n")


def noted():
    try:
        with open(os.environ["MARK"]) as file:
            return file.read().split()
    except FileNotFoundError:
        return []


class Odd(Exception):
    def __init__(self, text):
        super().__init__(text, lambda: "no pickle takes this")


def tear(self, data, write=os.write):
    part = bytes(data)[:torn] if torn < 1000 else bytes(data)[:-1]
    note("tear")
    if part:
        write(self.fileno(), part)
    os.kill(os.getpid(), signal.SIGKILL)


def text(data):
    if b"<torn>" in data and not noted():
        Connection._send = tear
    for mark, end in ENDS.items():
        if mark in data:
            note("end")
            end()
    if b"<odd>" in data:
        raise Odd("not UTF-8: \\udcff\\ud800 " + "x" * 100_000)
    if b"<bomb>" in data:
        note("bomb")
        held = [numpy.empty(1 << 28, "u1") for _ in range(256)]
    if b"<slow>" in data:
        note("slow")
        time.sleep(0.2)
    return honest(data)


ENDS = {
    b"<exit-0>": lambda: os._exit(0),
    b"<exit-123>": lambda: os._exit(123),
    b"<segfault>": lambda: ctypes.string_at(0),
    b"<abort>": os.abort,
}
decode.text = text
"""


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    """Starts the process that forks parents, before descriptors are counted."""
    with LightPopen([sys.executable, "-c", ""]) as started:
        assert started.wait(300) == 0


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Neither a process nor a descriptor nor a name in /dev/shm may stay behind."""
    before, names = fds(), shared_names()
    assert not children()
    yield
    assert not children()
    assert fds() == before
    # Other processes of this machine use the folder too: what is theirs comes and goes.
    eventually(lambda: shared_names() <= names)


def shared_names() -> set[str]:
    """What this program or Python's own shared memory and semaphores would be called.

    ``test_kill.py`` looks at every name, in a folder that nobody else writes to.
    """
    folder = Path("/dev/shm")
    names = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    return {n for n in names if n.startswith(("psm_", "sem.mp-")) or "manyviews" in n}


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Producers act on marker words; the file lists what they did."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(MISBEHAVE)
    monkeypatch.setenv("PYTHONPATH", f"{site}:{ROOT}")
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    return tmp_path / "mark"


def fired(mark: Path) -> list[str]:
    return mark.read_text().split() if mark.exists() else []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    folder = write(tmp_path_factory.mktemp("undisturbed") / "data", plots())
    with pool_for(folder, producers=1) as pool:
        return take_all(pool)


# A torn message ------------------------------------------------------------------------------


# The frame is four bytes of length and then JSON: nothing, a part of the length, the length alone,
# a part of the JSON, and all but its last byte.
@pytest.mark.parametrize("torn", [0, 2, 4, 40, 1000])
def test_a_torn_message_is_the_end_of_its_producer_and_nothing_more(
    tmp_path: Path, undisturbed: list[Made], mark: Path, monkeypatch: pytest.MonkeyPatch, torn: int
) -> None:
    monkeypatch.setenv("TORN", str(torn))
    folder = write(tmp_path / "data", plots({5: "<torn>"}))
    with promptly(30), pool_for(folder, producers=1) as pool:
        made = take_all(pool)
        assert pool.replaced == {"SIGKILL (probably out of memory)": 1}
    assert fired(mark) == ["tear"]
    assert [record.bad for record, _, _ in made] == [()] * SAMPLES
    assert [m for m in made if m[0].index != 5] == [m for m in undisturbed if m[0].index != 5]


# Every end is reported -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marker", "status"),
    [
        ("<exit-0>", "exit status 0"),
        ("<exit-123>", "exit status 123"),
        ("<segfault>", "SIGSEGV"),
        ("<abort>", "SIGABRT"),
    ],
)
def test_every_end_is_reported_as_what_it_was(
    tmp_path: Path, undisturbed: list[Made], mark: Path, marker: str, status: str
) -> None:
    folder = write(tmp_path / "data", plots({3: marker}))
    with pool_for(folder, producers=1) as pool:
        made = take_all(pool)
        assert pool.replaced == {status: 2}
    assert fired(mark) == ["end"] * 2
    [bad] = [bad for record, _, _ in made for bad in record.bad]
    assert (bad.index, bad.modality, bad.reason) == (3, "text", "killed")
    assert bad.detail == f"the decoder was ended by {status}, 2 times"
    assert [m[1:] for m in made if m[0].index != 3] == [
        m[1:] for m in undisturbed if m[0].index != 3
    ]


@pytest.mark.usefixtures("mark")
def test_an_exception_that_no_pipe_takes_is_reported_all_the_same(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", plots({3: "<odd>"}))
    with pool_for(folder, producers=1) as pool, pytest.raises(ProducerError) as caught:
        take_all(pool)
    message = str(caught.value)
    assert "Odd" in message
    assert "sitecustomize.py" in message
    assert len(message) < 10_000
    assert caught.value.stem == "s03"


# Memory --------------------------------------------------------------------------------------


def test_a_memory_bomb_is_a_bad_sample_and_its_producer_continues(
    tmp_path: Path, undisturbed: list[Made], mark: Path
) -> None:
    """64 GiB are asked for; a few are given, and the next sample finds them free again."""
    folder = write(tmp_path / "data", plots({4: "<bomb>", 9: "<bomb>"}))
    with pool_for(folder, producers=1) as pool:
        made = take_all(pool)
        assert pool.replaced == {}
    assert fired(mark) == ["bomb"] * 2
    bad = [bad for record, _, _ in made for bad in record.bad]
    assert [(b.index, b.modality, b.reason) for b in bad] == [
        (4, "text", "out-of-memory"),
        (9, "text", "out-of-memory"),
    ]
    assert "4 GiB" in bad[0].detail
    rest = [i for i in range(SAMPLES) if i not in (4, 9)]
    assert [made[i] for i in rest] == [undisturbed[i] for i in rest]


def is_limited(producer: psutil.Process) -> bool:
    return bool(producer.rlimit(psutil.RLIMIT_AS)[0] != resource.RLIM_INFINITY)


def test_the_limit_on_memory_is_what_a_producer_has_and_4_gib(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", plots())
    with pool_for(folder, producers=2) as pool:
        pool.release(pool.take())
        for producer in children():
            eventually(partial(is_limited, producer))
            soft, hard = producer.rlimit(psutil.RLIMIT_AS)
            assert 4 << 30 < soft <= (5 << 30) + producer.memory_info().vms
            assert hard == resource.getrlimit(resource.RLIMIT_AS)[1]
        take_all(pool)


LOWER = """
import json, resource, sys
from pathlib import Path
from producers.serving import limit_memory
resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 32))
limit_memory()
assert resource.getrlimit(resource.RLIMIT_AS) == (1 << 31, 1 << 32)
"""


def test_a_lower_limit_that_was_given_stays() -> None:
    subprocess.run([sys.executable, "-c", LOWER], check=True, cwd=ROOT)


# Starts --------------------------------------------------------------------------------------


def test_replacements_that_cannot_start_end_the_build_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first producers work; what breaks is found when one of them has to be replaced."""
    monkeypatch.setattr(process, "subprocess", subprocess)  # a fork has imported what breaks
    folder = write(tmp_path / "data", plots())
    site, starts = tmp_path / "site", tmp_path / "starts"
    site.mkdir()
    with pool_for(folder, producers=2, slots=2) as pool:
        held = [pool.take(), pool.take()]
        (site / "sitecustomize.py").write_text(
            f"import sys\nopen({str(starts)!r}, 'a').write('x')\n"
            "sys.modules['producers.slots'] = None\n"
        )
        monkeypatch.setenv("PYTHONPATH", f"{site}:{ROOT}")
        with promptly():
            for producer in children():
                producer.kill()
            for views in held:
                pool.release(views)
            with pytest.raises(ProducerError, match="while it started") as caught:
                take_all(pool)
    assert "ModuleNotFoundError" in str(caught.value)
    assert "Traceback" in str(caught.value)
    assert 1 <= len(starts.read_text()) <= 2  # no storm of restarts


def test_a_producer_whose_parent_is_gone_ends_before_it_does_anything(tmp_path: Path) -> None:
    """Its parent is not the process that it was started by: it must read no task, no job."""
    job, ring = (tmp_path / "job").open("w+b"), (tmp_path / "ring").open("w+b")
    tasks, results = os.pipe(), os.pipe()
    numbers = [job.fileno(), tasks[0], results[1], ring.fileno()]
    other_pid = os.getppid()  # alive, and not the parent
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-v", parent.__file__),
            *(str(other_pid), "producers.worker", *map(str, numbers)),
        ],
        pass_fds=numbers,
        capture_output=True,
        timeout=300,
        check=False,
    )
    os.close(results[1])
    assert os.read(results[0], 100) == b""
    for fd in (*tasks, results[0]):
        os.close(fd)
    job.close()
    ring.close()
    # The job is empty: a producer that read it would have reported a defect.
    assert (done.returncode, done.stdout) == (0, b"")
    imported = done.stderr.decode()
    assert "import 'ctypes'" in imported
    assert "Traceback" not in imported
    assert not any(f"import '{name}'" in imported for name in ("numpy", "producers"))


# The parent ----------------------------------------------------------------------------------

PARENT = """
import sys
from pathlib import Path
from producers.pool import ProducerPool
from producers.sources.pairs import scan
from producers.worker import Job
from tests import forked
forked.install()
job = Job.from_json(Path(sys.argv[1]).read_bytes())
with ProducerPool(job, scan(Path(job.source["root"])).samples, producers=2, timeout_s=4.0) as pool:
    print("started", flush=True)
    while True:
        try:
            views = pool.take()
        except StopIteration:
            break
        print(views.record.index, len(views.record.bad), flush=True)
        pool.release(views)
    print("replaced", dict(pool.replaced))
"""


def start_parent(tmp_path: Path, folder: Path) -> LightPopen:
    (tmp_path / "job.json").write_bytes(job_for(folder, 4).to_json())
    return LightPopen(
        [sys.executable, "-c", PARENT, tmp_path / "job.json"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.parametrize(
    "group",
    [pytest.param(False, marks=pytest.mark.nightly, id="parent"), pytest.param(True, id="all")],
)
def test_a_parent_that_was_stopped_finds_nobody_guilty(
    tmp_path: Path, mark: Path, group: bool
) -> None:
    """Six seconds asleep, where a sample may take four; also the producers, as on a laptop."""
    folder = write(tmp_path / "data", plots(dict.fromkeys(range(SAMPLES), "<slow>")))
    with start_parent(tmp_path, folder) as parent:
        eventually(lambda: len(fired(mark)) >= 3)
        everyone = [psutil.Process(parent.pid)]
        everyone += everyone[0].children() if group else []
        for process in everyone:
            process.suspend()
        eventually(lambda: everyone[0].status() == psutil.STATUS_STOPPED)
        time.sleep(6)
        for process in reversed(everyone):
            process.resume()
        assert parent.stdout is not None
        lines = parent.stdout.read().splitlines()
    assert parent.returncode == 0
    assert lines == ["started", *(f"{i} 0" for i in range(SAMPLES)), "replaced {}"]


def test_a_killed_parent_leaves_neither_process_nor_memory(tmp_path: Path, mark: Path) -> None:
    """The ring has no name, so it goes with the last process; another's segment is not touched."""
    folder = write(tmp_path / "data", plots(dict.fromkeys(range(SAMPLES), "<slow>")))
    other = Path("/dev/shm") / f"manyviews-other-{os.getpid()}"
    other.write_bytes(b"another run's")
    try:
        with start_parent(tmp_path, folder) as parent:
            eventually(lambda: fired(mark))
            family = [psutil.Process(parent.pid), *psutil.Process(parent.pid).children()]
            assert len(family) == 3
            eventually(lambda: all(ring_of(process.pid) for process in family))
            parent.send_signal(signal.SIGKILL)
        start = time.monotonic()
        eventually(lambda: not any(map(alive, family)), seconds=5)
        assert time.monotonic() - start < 5
        assert not any(ring_of(process.pid) for process in family)
        assert other.read_bytes() == b"another run's"
    finally:
        other.unlink()


def ring_of(pid: int) -> bool:
    try:
        return "memfd:manyviews-ring" in Path(f"/proc/{pid}/maps").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


# Leaks ---------------------------------------------------------------------------------------


def test_descriptors_and_memory_stay_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of samples, and a producer replaced now and then."""
    monkeypatch.setattr(process, "subprocess", subprocess)  # a fork has its parent's memory
    many = 3000 if NIGHTLY else 400
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(many):
        (folder / f"s{i:04}.jpg").write_bytes(b"")
        (folder / f"s{i:04}.json").write_text('{"plot": "%s"}' % ("w1 w2 w3 " * 20))
    samples = scan(folder).samples
    me = psutil.Process()
    with ProducerPool(job_for(folder, 4), samples, producers=2, timeout_s=60) as pool:
        seen = []
        for taken in range(many):
            if taken in (100, 200, 300):
                # One that has started: the end of another one would end the build.
                next(w for w in pool._workers if w.ready).child.kill()
            pool.release(pool.take())
            if taken in (99, many - 1):
                producers = sum(p.memory_info().rss for p in children()) / len(children())
                seen.append((me.num_fds(), me.memory_info().rss, producers))
        assert pool.replaced.total() == 3
    (before, resident, theirs), (after, resident_after, theirs_after) = seen
    assert after == before
    assert resident_after - resident < 8 << 20
    assert theirs_after - theirs < 8 << 20
