"""The start of child processes, for any installation and with limited resources."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.producers.test_pool import SAMPLES, job_for, plots, pool_for, take_all, write

PACKAGES = ("featurestore", "producers", "consumers", "manyviews")
POISON = "raise ImportError('a module of the standard library was taken from site-packages')\n"

PARENT = """
import json, site, subprocess, sys
sys.dont_write_bytecode = True
place, how, root, job_file = sys.argv[1:]
sys.path = [path for path in sys.path if path != root]  # an editable installation of this project
if how == "first":
    sys.path.insert(0, place)
else:
    site.addsitedir(place)
import producers
from pathlib import Path
from manyviews.operations.check.reading import Reading, read
from producers.pool import ProducerPool
from producers.sources.pairs import scan
from producers.worker import Job
job = Job.from_json(Path(job_file).read_bytes())
samples = scan(Path(job.source["root"])).samples
with ProducerPool(job, samples, producers=2, timeout_s=60) as pool:
    words = []
    for _ in samples:
        views = pool.take()
        words.append(views.record.words)
        pool.release(views)
looks = read(Reading(job.source, images=False), samples, 1, 60)
assert words == [look.words for look in looks]
from manyviews.operations.demo.demo import _command
shown = subprocess.run(_command("--help"), capture_output=True, text=True)
assert "materialize" in shown.stdout, shown.stderr
print(json.dumps([producers.__file__, words]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like site-packages, with modules that have the names of the standard library's."""
    place = tmp_path_factory.mktemp("lib") / "site-packages"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "cli.py", place)
    for name in ("enum", "json", "struct", "ctypes"):
        (place / f"{name}.py").write_text(POISON)
    return place


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.json").write_bytes(job_for(write(folder / "data", plots()), 3).to_json())
    return folder / "job.json"


def run(
    place: Path, how: str, job_file: Path, *flags: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-P", "-c", PARENT, place, how, ROOT, job_file],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=job_file.parent,
        env={**os.environ, **environment},
    )


def expected(place: Path) -> list[object]:
    return [str(place / "producers" / "__init__.py"), [5 + 2 * i for i in range(SAMPLES)]]


def test_nothing_in_site_packages_comes_before_the_standard_library(
    place: Path, job_file: Path
) -> None:
    done = run(place, "last", job_file)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected(place)


def test_children_have_the_packages_of_their_parent(
    place: Path, job_file: Path, tmp_path: Path
) -> None:
    """Packages of the same names in PYTHONPATH, which would come first, are not imported."""
    for name in PACKAGES:
        (tmp_path / "decoy" / name).mkdir(parents=True)
        (tmp_path / "decoy" / name / "__init__.py").write_text("raise ImportError('a decoy')\n")
    clean = tmp_path / "clean"
    for name in PACKAGES:
        shutil.copytree(place / name, clean / name)
    shutil.copy(place / "cli.py", clean)
    (tmp_path / "decoy" / "cli.py").write_text("raise ImportError('a decoy')\n")
    done = run(clean, "first", job_file, PYTHONPATH=str(tmp_path / "decoy"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected(clean)


def test_the_users_path_is_what_python_makes_of_it(
    place: Path, job_file: Path, tmp_path: Path
) -> None:
    """PYTHONPATH comes first, in children as well; a parent that ignores it has such children."""
    mark = tmp_path / "mark"
    (tmp_path / "sitecustomize.py").write_text(f"open({str(mark)!r}, 'a').write('x')\n")
    done = run(place, "last", job_file, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    # The parent, two producers, one that reads, and a command.
    assert mark.read_text() == "x" * 5
    done = run(place, "last", job_file, "-E", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert mark.read_text() == "x" * 6  # a command is what a user would type


FEW = """
import os, resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from featurestore.errors import ManyViewsError
from producers.pool import ProducerPool
from producers.sources.pairs import scan
from producers.worker import Job
job = Job.from_json(Path(sys.argv[2]).read_bytes())
samples = scan(Path(job.source["root"])).samples
free = len(os.listdir("/proc/self/fd")) - 1
for more in range(40):
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, 4096))
    try:
        pool = ProducerPool(job, samples, producers=2, timeout_s=60)
    except ManyViewsError as e:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        assert len(os.listdir("/proc/self/fd")) - 1 == free, more
        print(type(e).__name__, "open files" in str(e).partition("\\n")[2], str(e).count("\\n"))
    else:
        pool.close()
        break
"""


def test_too_few_descriptors_are_no_matter_of_a_folder(job_file: Path) -> None:
    """Any number of descriptors, from none to as many as two producers need."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FEW, ROOT, job_file],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 10
    assert set(done.stdout.splitlines()) == {"ProducerError True 1"}


STOPPED = """
import os, signal
from multiprocessing.connection import Connection

whole = Connection._send


def half(self, data, write=os.write):
    if b'"words": 9' in bytes(data) and not os.path.exists(os.environ["MARK"]):
        open(os.environ["MARK"], "x").close()
        write(self.fileno(), bytes(data)[:20])
        os.kill(os.getpid(), signal.SIGSTOP)
    whole(self, data)


Connection._send = half
"""


def test_half_a_report_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer that is stopped while it sends a report is a stall like any other."""
    (tmp_path / "sitecustomize.py").write_text(STOPPED)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    folder = write(tmp_path / "data", plots())
    with pool_for(folder, producers=1, timeout_s=3.0) as pool:
        made = take_all(pool)
        assert pool.replaced == {"timeout": 1}
    assert (tmp_path / "mark").exists()
    assert [record.words for record, _, _ in made] == [5 + 2 * i for i in range(SAMPLES)]
    assert [record.bad for record, _, _ in made] == [()] * SAMPLES
