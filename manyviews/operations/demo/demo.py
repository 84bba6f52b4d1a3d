"""Run the whole pipeline on a small data set through the command line, with a killed build.

Each step is a separate process with the arguments that a user would type. The build is killed with
SIGKILL after its first committed chunk and finished with ``--resume``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from featurestore.errors import InputError, ManyViewsError
from featurestore.storage.ledger import Ledger
from featurestore.wording import amount
from manyviews.operations.demo.data import make_demo_data
from producers import parent

Say = Callable[[str], None]

# Starts the command line without putting the folder of ``cli.py`` first on the path: in an
# installation that folder is site-packages, which must not shadow the standard library.
_CLI = (
    "import runpy, sys; runpy.run_path(sys.argv.pop(1))['find_packages'](); "
    "from manyviews.main import main; main()"
)
_MARK = "manyviews-demo"
_VIEWS = 70
# 48 samples are three chunks, so that two are left for the resumed build.
_CHUNK = 16
# Seconds after which a step that prints nothing is killed. A build prints a line every ten seconds
# while samples arrive, on a busy machine too.
SILENT_S = 600.0
_POLL_S = 0.05


def run(out_dir: Path, *, say: Say) -> None:
    """Runs the demo in ``out_dir``, which is emptied first if an earlier demo created it.

    Args:
        out_dir: the working folder.
        say: takes a line of text.

    Raises:
        InputError: ``out_dir`` holds something else.
        ManyViewsError: a step failed.
    """
    start = time.monotonic()
    _prepare(out_dir)
    say(f"1. a data set of 48 posters and synopses, and tiny checkpoints, in {out_dir}")
    make_demo_data(out_dir / "imdb")
    models = _make_checkpoints(out_dir / "checkpoints")
    say("2. build, killed with SIGKILL after its first chunk")
    build = _build_arguments(out_dir, models)
    killed_after = _build_and_kill(build, out_dir / "features", say)
    say("3. build --resume")
    # Exit status 3 is "done, with bad samples": one poster of the data set is truncated.
    report = json.loads(_cli(say, *build, "--resume", "--json", allowed=(3,)))
    say("4. verify: the integrity of the store, with every file's checksum")
    _cli(say, "verify", "--store", str(out_dir / "features"))
    say("5. materialize and labels: the published pipeline's files")
    _materialize(out_dir, say)
    say("6. a linear probe of every feature, from the store")
    say("\n".join(["", *_probe(out_dir, say)]))
    _summary(out_dir, killed_after, report, time.monotonic() - start, say)


def _prepare(out_dir: Path) -> None:
    if out_dir.exists() and not out_dir.is_dir():
        raise InputError(f"{out_dir} is not a folder. Choose another one.")
    if out_dir.exists() and any(out_dir.iterdir()):
        if not (out_dir / _MARK).is_file():
            raise InputError(
                f"{out_dir} is not empty, and was not created by the demo. Choose another folder."
            )
        shutil.rmtree(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / _MARK).write_text("Created by `manyviews demo`, which may empty this folder.\n")


def _make_checkpoints(folder: Path) -> dict[str, Path]:
    from manyviews.operations.demo.checkpoints import make_checkpoints

    folders = make_checkpoints(folder)
    return {
        "clip_image": folders["clip"],
        "clip_text": folders["sentence"],
        "blip2": folders["blip2"],
    }


def _build_arguments(out_dir: Path, models: dict[str, Path]) -> list[str]:
    arguments = ["build", "--data-dir", str(out_dir / "imdb" / "dataset")]
    arguments += ["--store", str(out_dir / "features"), "--views", str(_VIEWS)]
    arguments += ["--chunk", str(_CHUNK), "--producers", "2", "--device", "cpu"]
    for name, folder in models.items():
        arguments += ["--model", f"{name}={folder}"]
    return arguments


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-c", _CLI, parent.__file__, *arguments]


def _cli(say: Say, *arguments: str, allowed: tuple[int, ...] = (0,)) -> str:
    """Runs a command; returns its stdout, and passes on its stderr line by line as it arrives."""
    with _Step(say, arguments) as step:
        while step.is_running():
            time.sleep(_POLL_S)
        status, output = step.end()
    if status not in allowed:
        raise ManyViewsError(f"`{arguments[0]}` ended with exit status {status}.")
    return output


class _Step:
    """A running command whose messages are passed on as they arrive; a context manager.

    Args:
        say: takes a line of text.
        arguments: the arguments of the command line.
    """

    def __init__(self, say: Say, arguments: Sequence[str]) -> None:
        self._say = say
        self._name = arguments[0]
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in __exit__
        self._process = subprocess.Popen(
            _command(*arguments), stdout=self._output, stderr=subprocess.PIPE, text=True
        )
        self._heard = time.monotonic()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def is_running(self) -> bool:
        """Whether the command is still running.

        Raises:
            ManyViewsError: it has printed nothing for ``SILENT_S``.
        """
        if self._process.poll() is not None:
            return False
        if time.monotonic() - self._heard > SILENT_S:
            raise ManyViewsError(
                f"`{self._name}` printed nothing for {SILENT_S:g} s, the limit for a "
                "step of the demo.\nIs the machine very busy, or short of memory? Run the demo "
                "again when it is not."
            )
        return True

    def kill(self) -> None:
        """Kills the command with SIGKILL."""
        self._process.kill()

    def end(self) -> tuple[int, str]:
        """Waits for the command; returns its exit status and its standard output."""
        status = self._process.wait()
        self._reader.join()
        self._output.seek(0)
        return status, self._output.read()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._heard = time.monotonic()
            self._say(f"   {line.rstrip()}")

    def __enter__(self) -> _Step:
        self._reader.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.end()
        self._output.close()
        assert self._process.stderr is not None
        self._process.stderr.close()


def _build_and_kill(arguments: list[str], store: Path, say: Say) -> int:
    """Kills a build once a chunk is committed; returns the number of committed chunks."""
    ledger = store / Ledger.FILE
    with _Step(say, arguments) as step:
        while step.is_running() and not _lines(ledger):
            time.sleep(_POLL_S)
        step.kill()
    committed = _lines(ledger)
    if not committed:
        raise ManyViewsError("The build ended before it committed a chunk; see its messages above.")
    verb = "was" if committed == 1 else "were"
    say(
        f"   killed: {committed} of 3 chunks ({committed * _CHUNK} samples) {verb} committed; "
        "the rest is computed again"
    )
    return committed


def _lines(ledger: Path) -> int:
    return ledger.read_bytes().count(b"\n") if ledger.is_file() else 0


def _materialize(out_dir: Path, say: Say) -> None:
    data, store = str(out_dir / "imdb" / "dataset"), str(out_dir / "features")
    embeddings, labels = str(out_dir / "embeddings"), str(out_dir / "labels")
    _cli(say, "materialize", "--store", store, "--out-dir", embeddings)
    augment = ("--augment", "--embeddings-dir", embeddings)
    _cli(say, "labels", "--data-dir", data, "--out-dir", labels, *augment)


def _probe(out_dir: Path, say: Say) -> list[str]:
    """The table of scores of linear probes, one line of text per row."""
    arguments = ["--store", str(out_dir / "features"), "--labels-dir", str(out_dir / "labels")]
    arguments += ["--split-json", str(out_dir / "imdb" / "split.json"), "--device", "cpu"]
    return _cli(say, "probe", *arguments).splitlines()


def _summary(
    out_dir: Path, killed_after: int, report: dict[str, Any], seconds: float, say: Say
) -> None:
    size = sum(p.stat().st_size for p in (out_dir / "embeddings").iterdir())
    rate = report["built"] / report["seconds"]
    say(
        f"\nDone in {seconds:.0f} s, all in {out_dir}:\n"
        f"  features/    the store: {amount(report['samples'], 'sample')} x "
        f"{amount(report['views'], 'view')}, "
        f"killed after {amount(killed_after, 'chunk')} of 3 and resumed\n"
        f"  embeddings/  {size:,} bytes in the published format\n"
        f"  labels/      23 genres\n"
        f"  resumed at   {rate:.1f} samples/s, {rate * report['views']:.0f} views/s "
        f"of every feature"
    )
