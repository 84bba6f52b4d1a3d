"""Common faults of long jobs, provoked in each contender, and the observed results.

Nothing here relies on a contender's documentation. A cell follows from exit codes, from
the rows that are left, from bytes, and from what was printed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np

from benchmarks.observing import Blow, Observed
from benchmarks.peer_job import Job, Rows, Work, run
from benchmarks.peer_recipe import poster_file, stems

HEAD = (
    "",
    "kill -9 one worker",
    "1% truncated files",
    "kill -9 all at half, run again",
    "run twice",
)
PATIENCE_S = 60
_KILLED = re.compile(r"SIGKILL|signal:? 9|-9\b|[Kk]illed|died|replaced")
_CLOSE = 1e-3  # clip-retrieval keeps half precision; a wrong row is off by far more


@dataclass(frozen=True, slots=True)
class Kept:
    """How many of the expected keys have the right rows, rows of nothing, others, or none."""

    right: int = 0
    blank: int = 0
    other: int = 0
    missing: int = 0

    @classmethod
    def of(cls, expected: Rows, found: Mapping[str, np.ndarray]) -> Kept:
        """Compares by key."""
        counts = dict.fromkeys(("right", "blank", "other", "missing"), 0)
        for key, rows in expected.items():
            counts[_state(rows, found.get(key))] += 1
        return cls(**counts)

    def __str__(self) -> str:
        total = self.right + self.blank + self.other + self.missing
        if self.right == total:
            return "all rows right"
        if self.missing == total:
            return "nothing kept"
        said = [f"{self.right:,} of {total:,} kept"]
        said += [f"{self.blank:,} blank rows among them"] if self.blank else []
        said += [f"{self.other:,} wrong"] if self.other else []
        return ", ".join(said)


def cells(job: Job, whole: Work, damaged: Work, folder: Path) -> list[str]:
    """A job's row of the table.

    Args:
        job: the contender.
        whole: sound inputs.
        damaged: the same with some files cut in half.
        folder: for its runs; emptied.
    """
    trial = _Trial.of(job, whole, folder)
    if isinstance(trial, str):
        return [job.name, f"not measured: without a fault, {trial}", "", "", ""]
    found = [trial.worker(), trial.truncated(damaged), trial.half(), trial.twice()]
    shutil.rmtree(folder)
    return [job.name, *found]


@dataclass(frozen=True, slots=True)
class _Trial:
    """A job with an undisturbed run to compare with."""

    job: Job
    work: Work
    folder: Path
    sound: Observed
    expected: Rows

    @classmethod
    def of(cls, job: Job, work: Work, folder: Path) -> _Trial | str:
        """Runs it undisturbed; where that fails, says how."""
        sound = run(job, work, folder / "sound")
        expected = job.rows(work, folder / "sound")
        if sound.exit_code != 0 or not expected:
            said = (sound.output.strip().splitlines() or ["it said nothing"])[-1]
            return f"{_ending(sound)}: {said}"
        return cls(job, work, folder, sound, expected)

    @property
    def limit_s(self) -> float:
        """How long it may take before it hangs."""
        return self.sound.seconds * 2 + PATIENCE_S

    def worker(self) -> str:
        """SIGKILL to the worker that has worked most, at 40%."""
        is_worker = self.job.worker
        if is_worker is None:
            return "has no workers"
        blow = Blow(
            0.4 * self.sound.warm_cpu_s,
            lambda tree: sorted(
                (p for p in tree[1:] if is_worker(p.command)), key=lambda p: -p.cpu_s
            )[:1],
        )
        seen = run(self.job, self.work, self.folder / "worker", blow, self.limit_s)
        kept = Kept.of(self.expected, self.job.rows(self.work, self.folder / "worker"))
        if not seen.struck:
            return "not provoked"
        said = any(str(pid) in seen.output for pid in seen.struck) or _KILLED.search(seen.output)
        return f"{_ending(seen)}, {kept}, {'says so' if said else 'says nothing'}{_left(seen)}"

    def truncated(self, damaged: Work) -> str:
        """Some input files cut in half."""
        seen = run(self.job, damaged, self.folder / "damaged", limit_s=self.limit_s)
        found = self.job.rows(damaged, self.folder / "damaged")
        hit = {k: v for k, v in self.expected.items() if k in damaged.damaged}
        others = Kept.of({k: v for k, v in self.expected.items() if k not in hit}, found)
        rows = Kept.of(hit, found)
        if others.missing or others.blank or others.other or seen.exit_code is None:
            return f"{_ending(seen)}, {others}{_named(hit, seen)}"
        left = "row missing" if rows.missing else "row of a placeholder"
        return f"{_ending(seen)}, {left}{_named(hit, seen)}"

    def half(self) -> str:
        """SIGKILL to everything at half, then the same command."""
        folder = self.folder / "half"
        blow = Blow(0.5 * self.sound.warm_cpu_s, lambda tree: tree)
        seen = run(self.job, self.work, folder, blow, self.limit_s)
        if not seen.struck:
            return "not provoked"
        kept = Kept.of(self.expected, self.job.rows(self.work, folder))
        again = run(self.job, self.work, folder, limit_s=self.limit_s)
        share = again.warm_cpu_s / self.sound.warm_cpu_s
        rest = Kept.of(self.expected, self.job.rows(self.work, folder))
        result = f"{rest}" if str(rest) != "all rows right" else self._bytes(folder)
        saved = kept.right / len(self.expected)
        how = "resumed" if saved and share < 1 - saved / 2 else "began anew"
        return f"{kept}; {how}, {share:.0%} of the work, {_ending(again)}, {result}"

    def twice(self) -> str:
        """The same again, beside it."""
        folder = self.folder / "twice"
        seen = run(self.job, self.work, folder)
        if seen.exit_code != 0:
            return f"{_ending(seen)}, {Kept.of(self.expected, self.job.rows(self.work, folder))}"
        return self._bytes(folder)

    def _bytes(self, folder: Path) -> str:
        """How alike the undisturbed run's output and another are."""
        one, other = self._digests(self.folder / "sound"), self._digests(folder)
        if one == other:
            return "bytes equal"
        if sorted(one.values()) == sorted(other.values()):
            return "bytes equal, names of files not"
        found = self.job.rows(self.work, folder)
        if str(Kept.of(self.expected, found)) != "all rows right":
            return "rows differ"
        if list(found) != list(self.expected):
            return "rows equal, but in another order"
        return "rows equal, bytes not"

    def _digests(self, folder: Path) -> dict[str, str]:
        out = folder / "out"
        found = {}
        for file in sorted(p for p in out.rglob("*") if p.is_file()):
            name = str(file.relative_to(out))
            if not any(part in name for part in self.job.logs):
                found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        return found


def damage(work: Work, folder: Path, modality: str) -> Work:
    """The same data, of which 1%, one file at least, is cut in half.

    Args:
        work: sound.
        folder: for the new data; must not exist.
        modality: whose files; of texts the synopses.
    """
    shutil.copytree(work.data, folder, copy_function=os.link)
    names = stems(str(work.data))
    cut = names[1::100][: max(1, len(names) // 100)]
    for name in cut:
        file = poster_file(str(folder), name) if modality == "image" else folder / f"{name}.json"
        content = file.read_bytes()
        file.unlink()  # it is a link to the sound one
        file.write_bytes(content[: len(content) // 2])
    return replace(work, data=folder, damaged=frozenset(cut))


def damage_shards(work: Work, folder: Path) -> Work:
    """The same rendered views, of which 1% are cut in half."""
    folder.mkdir()
    damaged = set()
    count = 0
    for shard in sorted(work.shards.glob("*.tar")):
        with tarfile.open(shard) as source, tarfile.open(folder / shard.name, "w") as target:
            for member in source:
                stream = source.extractfile(member)
                content = stream.read() if stream is not None else b""
                count += 1
                if count % 100 == 50:
                    content = content[: len(content) // 2]
                    damaged.add(member.name.removesuffix(".jpg"))
                member.size = len(content)
                target.addfile(member, BytesIO(content))
    return replace(work, shards=folder, damaged=frozenset(damaged))


def _state(expected: np.ndarray, found: np.ndarray | None) -> str:
    if found is None:
        return "missing"
    if found.shape == expected.shape and np.allclose(found, expected, rtol=0, atol=_CLOSE):
        return "right"
    return "blank" if not found.any() or not np.isfinite(found).all() else "other"


def _ending(seen: Observed) -> str:
    if seen.exit_code is None:
        return f"hangs > {PATIENCE_S} s"
    return f"exit {seen.exit_code}"


def _named(hit: Rows, seen: Observed) -> str:
    named = sum(key in seen.output for key in hit)
    if named == len(hit):
        return ", named"
    return ", not named" if not named else f", {named} of {len(hit)} named"


def _left(seen: Observed) -> str:
    return f", {seen.left} processes left behind" if seen.left else ""
