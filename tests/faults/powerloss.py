"""What a file system may hold after a power cut, from a log of the operations before it.

The model is the worst that POSIX allows. The content of a file is safe once the file is synced; a
name, its removal or its change once the folder is. Whatever is not safe may be there or not, each
name for itself, and the unsynced part of a file may be absent, torn, zero or anything.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

PARTIAL = ".partial"
EXTENSION = "records/extension"
# Contents by relative name; a folder is None.
Tree = dict[str, bytes | None]


@dataclass(slots=True)
class Inode:
    content: bytes = b""
    synced: bytes = b""
    is_folder: bool = False


class Disk:
    """A folder's names and contents, both the current ones and those that are safe on disk."""

    def __init__(self, root: Path) -> None:
        """Starts with what is in ``root``, all of it safe."""
        self._root = root
        self._names: dict[str, Inode] = {}
        for path in sorted(p for p in root.rglob("*") if p.suffix != ".log"):
            data = b"" if path.is_dir() else path.read_bytes()
            self._names[self._name(path)] = Inode(data, data, path.is_dir())
        self._safe = dict(self._names)
        # Changes of names since their folder was synced: what, name, earlier name, inode.
        self._pending: list[tuple[str, str, str, Inode]] = []

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def apply(self, entry: dict[str, Any]) -> None:
        """Does one operation of the log."""
        name = self._name(Path(entry["path"]))
        getattr(self, f"_{entry['op']}")(name, entry)

    def _change(self, what: str, name: str, inode: Inode, source: str = "") -> None:
        self._pending.append((what, name, source, inode))
        _apply(self._names, self._pending[-1])

    def _mkdir(self, name: str, _: dict[str, Any]) -> None:
        self._change("link", name, Inode(is_folder=True))

    def _open(self, name: str, _: dict[str, Any]) -> None:
        if name not in self._names:
            self._change("link", name, Inode())
        elif name.endswith(PARTIAL):
            self._names[name].content = b""

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        self._names[name].content = base64.b64decode(entry["content"])

    def _truncate(self, name: str, entry: dict[str, Any]) -> None:
        self._names[name].content = self._names[name].content[: entry["size"]]

    def _rename(self, name: str, _: dict[str, Any]) -> None:
        source = next(s for s in _sources(name) if s in self._names)
        self._change("rename", name, self._names[source], source)

    def _unlink(self, name: str, _: dict[str, Any]) -> None:
        if name in self._names:
            self._change("unlink", name, self._names[name])

    _rmdir = _unlink

    def _fsync(self, name: str, entry: dict[str, Any]) -> None:
        if "entries" not in entry:
            self._names[name].synced = self._names[name].content
            return
        here = {n for n in self._names if _parent(n) == name}
        there = {f"{name}/{n}".removeprefix("./") for n in entry["entries"]}
        there = {n for n in there if not n.endswith(".log")}  # never synced, never read
        assert here == there, f"the model of {name} differs from the folder: {here ^ there}"
        kept: list[tuple[str, str, str, Inode]] = []
        for change in self._pending:
            if _parent(change[1]) == name:
                _apply(self._safe, change)
                if change[0] == "unlink":  # the content is lost, with all its names
                    kept = [c for c in kept if not c[1].startswith(f"{change[1]}/")]
            else:
                kept.append(change)
        self._pending = kept

    def states(self, rng: random.Random) -> Iterator[tuple[str, Tree]]:
        """Trees that may exist after a power cut now, each with a description."""
        lost, kept = dict(self._safe), dict(self._safe)
        for change in self._pending:
            _apply(kept, change)
        some = dict(self._safe)
        for change in self._pending:
            if rng.random() < 0.5:
                _apply(some, change)
        for title, names in (("lost", lost), ("kept", kept), ("some", some)):
            for damage in ("cut", "whole", "zeros", "torn", "garbage"):
                yield f"names {title}, contents {damage}", _tree(names, damage, rng)


def _sources(name: str) -> Iterator[str]:
    """Names that a file or folder may have had before it was renamed to ``name``."""
    yield name + PARTIAL
    store, _, inner = name.partition("/")
    yield f"{store}/{EXTENSION}/final/{PurePosixPath(name).name}"
    yield f"{store}/{EXTENSION}/{inner}"


def _parent(name: str) -> str:
    return str(PurePosixPath(name).parent)


def _apply(names: dict[str, Inode], change: tuple[str, str, str, Inode]) -> None:
    what, name, source, inode = change
    names.pop(source, None)
    if source:
        for inner in [n for n in names if n.startswith(f"{source}/")]:
            names[name + inner.removeprefix(source)] = names.pop(inner)
    if what == "unlink":
        for inner in [n for n in names if n == name or n.startswith(f"{name}/")]:
            del names[inner]
    else:
        names[name] = inode


def _tree(names: dict[str, Inode], damage: str, rng: random.Random) -> Tree:
    tree: Tree = {}
    for name, inode in sorted(names.items()):
        if _parent(name) == "." or _parent(name) in tree:
            tree[name] = None if inode.is_folder else _content(inode, damage, rng)
    return tree


def _content(inode: Inode, damage: str, rng: random.Random) -> bytes:
    safe, now = inode.synced, inode.content
    if not now.startswith(safe):
        return now if damage == "whole" else safe
    tail = now[len(safe) :]
    kinds = {
        "cut": b"",
        "whole": tail,
        "zeros": bytes(len(tail)),
        "torn": tail[: len(tail) // 2],
        "garbage": rng.randbytes(len(tail))[:-1] + b"\n" if tail else b"",
    }
    return safe + kinds[damage]


def digest(tree: Tree) -> str:
    """A hash of a tree, so that each tree is tried once."""
    whole = hashlib.sha256()
    for name, content in sorted(tree.items()):
        whole.update(repr((name, content)).encode())
    return whole.hexdigest()


def write_out(tree: Tree, root: Path) -> None:
    """Makes ``tree`` in ``root``."""
    for name, content in sorted(tree.items()):
        if content is None:
            (root / name).mkdir(parents=True, exist_ok=True)
        else:
            (root / name).write_bytes(content)
