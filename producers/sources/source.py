"""Find, pair and order the samples of a data folder, and read their bytes with a size cap.

Scanning opens no file: a FIFO would block, and a poster is not read before its turn. Names that
the folder lists are used as values only; no name is ever parsed as a path.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import BadSampleError, InputError, StorageError
from featurestore.records import Sample, stems_sha256
from featurestore.samples import SampleList
from featurestore.system.links import leads_outside
from featurestore.system.refusals import refusal
from producers.sources.unused import advice, alike_stems, counted_reasons, subfolder_with_both

# Suffixes in order of precedence: a sample uses the first kind that exists for its stem.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".JPG", ".JPEG")
TEXT_SUFFIXES = (".json", ".JSON")

# Errors of the machine, not of the file: they never lead to a placeholder.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# Reasons for which ``read_capped`` refuses a file.
UNREADABLE = ("missing", "not-a-file", "too-large", "unreadable")
# Reasons for inputs that ended the producers which processed them.
ENDED = ("killed", "timeout")

MAX_IMAGE_BYTES = 256 * 2**20
MAX_TEXT_BYTES = 16 * 2**20

_READ_BYTES = 2**20
_LAYOUT = (
    "Expected a flat folder of posters and synopses with the same stem, "
    "for example 0000001.jpg beside 0000001.json."
)


@dataclass(frozen=True, slots=True)
class Scan:
    """The contents of a data folder, in an order that depends on names only.

    Attributes:
        data_dir: path of the folder, as given.
        samples: the pairs, sorted by stem, by code point; ``samples[i].index == i``.
        unmatched_images: file names of posters without a synopsis, sorted.
        unmatched_texts: file names of synopses without a poster, sorted.
        left_out: (name, reason) of every other entry, sorted: ``suffix``, a file of another
            suffix; ``dotfile``; ``directory``, a subfolder; ``not-a-file``, a FIFO, socket or
            device; ``outside``, a symlink that leaves the folder; ``dangling``, a symlink to a
            missing file; ``shadowed``, a file whose stem has another file of a preferred suffix.
        alike: (poster, synopsis, difference) of unmatched files whose stems look the same; the
            difference is ``Unicode form`` (NFC, NFD) or ``case``.
    """

    data_dir: Path
    samples: SampleList
    unmatched_images: tuple[str, ...]
    unmatched_texts: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    alike: tuple[tuple[str, str, str], ...] = ()

    @property
    def stems_sha256(self) -> str:
        """Hex SHA-256 of the ordered stems: the identity of the rows."""
        return stems_sha256(sample.stem for sample in self.samples)


def scan(data_dir: Path, *, follow_links: bool = False) -> Scan:
    """Pair the posters and synopses of a folder by stem.

    Args:
        data_dir: the folder; its subfolders are not entered.
        follow_links: whether to use symlinks that leave the folder, as those of DVC, git-annex and
            the hub's cache do.

    Returns:
        The samples in their fixed order, and every entry that is not used.

    Raises:
        InputError: the folder is missing, unreadable or not a folder, or holds no pair.
    """
    root = _resolved_folder(data_dir)
    names: list[str] = []
    left_out: list[tuple[str, str]] = []
    for entry in _entries(data_dir):
        reason = _objection(entry, root, follow_links=follow_links)
        if reason is None:
            names.append(_utf8(entry.name))
        else:
            left_out.append((_utf8(entry.name), reason))

    images, shadowed_images = _by_stem(names, IMAGE_SUFFIXES)
    texts, shadowed_texts = _by_stem(names, TEXT_SUFFIXES)
    left_out += [(name, "shadowed") for name in (*shadowed_images, *shadowed_texts)]
    stems = sorted(images.keys() & texts.keys())
    lone_images = {stem: images[stem] for stem in images.keys() - texts.keys()}
    lone_texts = {stem: texts[stem] for stem in texts.keys() - images.keys()}
    found = Scan(
        data_dir=data_dir,
        samples=SampleList.of(
            Sample(i, stem, images[stem], texts[stem]) for i, stem in enumerate(stems)
        ),
        unmatched_images=tuple(sorted(lone_images.values())),
        unmatched_texts=tuple(sorted(lone_texts.values())),
        left_out=tuple(sorted(left_out)),
        alike=alike_stems(lone_images, lone_texts),
    )
    if not stems:
        raise _no_pair(found)
    return found


def _no_pair(found: Scan) -> InputError:
    """The error for a folder without a sample: its contents, and advice."""
    images, texts = len(found.unmatched_images), len(found.unmatched_texts)
    reasons = f": {counted_reasons(found.left_out)}" if found.left_out else ""
    lines = [
        f"No pair of a poster and a synopsis in {found.data_dir}: {images:,} images and {texts:,} "
        f"texts seen, {len(found.left_out):,} entries left out{reasons}."
    ]
    folders = [name for name, reason in found.left_out if reason == "directory"]
    inside = subfolder_with_both(found.data_dir, folders, IMAGE_SUFFIXES, TEXT_SUFFIXES)
    if inside is not None:
        lines.append(f"Subfolders are not entered: name {found.data_dir / inside} instead.")
    lines += advice(found.left_out, found.alike)
    return InputError("\n".join((*lines[:3], _LAYOUT)))


def image_path(data_dir: Path, sample: Sample) -> Path:
    """Path of the sample's poster; names that a folder lists contain no slash."""
    return data_dir / _native(sample.image_name)


def text_path(data_dir: Path, sample: Sample) -> Path:
    """Path of the sample's synopsis; names that a folder lists contain no slash."""
    return data_dir / _native(sample.text_name)


def name_bytes(name: str) -> bytes:
    """The bytes of a file's name, as the file system has them, in every locale."""
    return name.encode("utf-8", "surrogateescape")


def require_inputs(found: Scan) -> None:
    """Check that the folder was not deleted or unmounted since the scan.

    Raises:
        StorageError: all of the samples' synopses are missing.
    """
    if not any(text_path(found.data_dir, sample).exists() for sample in found.samples):
        raise StorageError(found.data_dir, "the folder and all its samples are gone")


def _utf8(name: str) -> str:
    """A listed file name, decoded as UTF-8 in every locale.

    In the locale ``C`` Python may decode file names as ASCII: the same folder would have other
    names, in another order, and so another store.
    """
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def _native(name: str) -> str:
    """The inverse of ``_utf8``: the name in the encoding of this process's locale."""
    return os.fsdecode(name_bytes(name))


def read_capped(path: Path, cap_bytes: int) -> bytes:
    """Read a whole file of at most ``cap_bytes`` bytes.

    Args:
        path: path of the file; symlinks are followed, because ``scan`` has checked their targets.
        cap_bytes: maximum size in bytes; at most one more byte is ever read.

    Returns:
        The file's bytes.

    Raises:
        BadSampleError: ``missing``, ``not-a-file``, ``too-large`` or ``unreadable``.
        StorageError: this process or machine has no memory or descriptor left, which is no fault
            of the file.
    """
    try:
        # O_NONBLOCK: open() must return even if a FIFO replaced the file since the scan.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            return _read_descriptor(descriptor, cap_bytes)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise BadSampleError("missing", "the file is gone since the folder was scanned") from None
    except OSError as error:
        if error.errno in _EXHAUSTED:
            raise refusal(path, error) from error
        # Opening a socket fails with ENXIO, before fstat() could tell its kind.
        reason = "not-a-file" if error.errno == errno.ENXIO else "unreadable"
        raise BadSampleError(reason, error.strerror or str(error)) from error


def _read_descriptor(descriptor: int, cap_bytes: int) -> bytes:
    """Reads an open file; see :func:`read_capped`."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise BadSampleError("not-a-file", "a directory, FIFO, socket or device")
    if status.st_size > cap_bytes:
        raise BadSampleError("too-large", f"{status.st_size:,} bytes; at most {cap_bytes:,}")
    data = b"".join(_read_blocks(descriptor, cap_bytes + 1))
    if len(data) > cap_bytes:  # it grew since fstat()
        raise BadSampleError("too-large", f"more than {cap_bytes:,} bytes")
    return data


def _read_blocks(descriptor: int, limit_bytes: int) -> Iterator[bytes]:
    """Blocks from the descriptor until its end or until ``limit_bytes`` are read."""
    left = limit_bytes
    while left > 0 and (block := os.read(descriptor, min(left, _READ_BYTES))):
        left -= len(block)
        yield block


def _resolved_folder(data_dir: Path) -> Path:
    """``data_dir`` with symlinks resolved; raises InputError if it is not a folder."""
    try:
        root = data_dir.resolve(strict=True)
        is_folder = root.is_dir()
    except FileNotFoundError:
        raise InputError(f"The data folder {data_dir} does not exist.\n{_LAYOUT}") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a symlink loop, before Python 3.13
        raise InputError(f"The data folder {data_dir} cannot be read: {error}") from error
    if not is_folder:
        raise InputError(f"{data_dir} is not a folder.\n{_LAYOUT}")
    return root


def _entries(data_dir: Path) -> Iterator[os.DirEntry[str]]:
    """The folder's entries, in the file system's order."""
    try:
        # A str path gives str names: bytes that are not UTF-8 survive as surrogate escapes.
        with os.scandir(str(data_dir)) as entries:
            yield from entries
    except OSError as error:
        raise InputError(f"The data folder {data_dir} cannot be read: {error.strerror}") from error


def _objection(entry: os.DirEntry[str], root: Path, *, follow_links: bool) -> str | None:
    """Why an entry cannot be part of a sample, or None if it can."""
    if entry.name.startswith("."):
        return "dotfile"
    fits = entry.name.endswith((*IMAGE_SUFFIXES, *TEXT_SUFFIXES))
    if not entry.is_symlink():
        # The listing has the entry's type: no system call per file is needed.
        if entry.is_file(follow_symlinks=False):
            return None if fits else "suffix"
        return "directory" if entry.is_dir(follow_symlinks=False) else "not-a-file"
    try:
        mode = entry.stat().st_mode  # of the link's target
    except OSError:
        return "dangling" if fits else "suffix"
    if fits and not follow_links and leads_outside(Path(entry.path), root):
        return "outside"
    if stat.S_ISDIR(mode):
        return "directory"
    if not fits:
        return "suffix"
    return None if stat.S_ISREG(mode) else "not-a-file"


def _by_stem(names: Sequence[str], suffixes: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """The file name of each stem, and the names whose stem has a file of a preferred suffix."""
    chosen: dict[str, str] = {}
    shadowed: list[str] = []
    for suffix in suffixes:
        fitting = sorted(name for name in names if name.endswith(suffix))
        shadowed += [n for n in fitting if chosen.setdefault(n.removesuffix(suffix), n) != n]
    return chosen, shadowed
