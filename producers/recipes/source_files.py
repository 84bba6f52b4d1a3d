"""The source files behind a function: its module, and what that imports from its own folder.

They are found from the import statements, without running any of them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import site
import sys
import sysconfig
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import packages_distributions
from pathlib import Path

from featurestore.errors import ConfigError

_PROJECT = frozenset({"featurestore", "producers", "consumers", "manyviews", "cli"})
# A module without a file of its own: a folder without ``__init__.py``.
_NAMESPACE = b""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One module.

    Attributes:
        path: its file; the folder of a package without ``__init__.py``.
        data: the file's content.
        is_package: whether it may contain other modules.
    """

    path: Path
    data: bytes
    is_package: bool


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The files of a module and of what it imports from its own folder.

    Attributes:
        folder: absolute path of the folder that contains the module or its outermost package.
        is_installed: whether that is a folder of installed packages.
        files: by dotted name.
        imported: outermost names of the modules that they import from elsewhere, without those of
            Python's library and of this project.
    """

    folder: Path
    is_installed: bool
    files: dict[str, SourceFile] = field(default_factory=dict)
    imported: set[str] = field(default_factory=set)

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each file, by dotted name in alphabetical order."""
        return {
            name: hashlib.sha256(file.data).hexdigest()
            for name, file in sorted(self.files.items())
            if not file.path.is_dir()
        }

    @property
    def distributions(self) -> tuple[str, ...]:
        """The names of the installed distributions that the files are of or import."""
        known = _distributions()
        own = {name.partition(".")[0] for name in self.files} if self.is_installed else set()
        found = {each for name in self.imported | own for each in known.get(name, ())}
        return tuple(sorted({each.lower().replace("_", "-") for each in found}))


def find_sources(module: str, beside: Path | None, where: str) -> SourceFiles:
    """Finds the files of a module, first in a folder, then on the Python path.

    Args:
        module: dotted name.
        beside: folder of the configuration file; None for the Python path alone.
        where: what names the module, for messages.

    Raises:
        ConfigError: there is no such module, it has the name of a library's, or one of the files is
            not readable or not Python.
    """
    top = module.partition(".")[0]
    if top in _not_local():
        raise ConfigError(
            f"{where}: {top!r} is a module of Python's library or of manyviews.\n"
            "Give the file of the function another name."
        )
    folders = [] if beside is None else [beside.resolve()]
    for folder in (*folders, *_on_the_path(top)):
        if _file(folder, module) is not None:
            return _closure(folder, module, where)
    looked = f"in {beside} or on the Python path" if folders else "on the Python path"
    raise ConfigError(
        f"{where}: there is no module {module!r} {looked}.\n"
        "Put its file beside the TOML file that names it, or its folder into PYTHONPATH."
    )


def _on_the_path(top: str) -> list[Path]:
    """The folder on the Python path that contains an outermost module; none is run."""
    # Modules that were imported already may be of another recipe's folder.
    finders = [f for f in sys.meta_path if not getattr(f, "is_of_recipes", False)]
    specs = (finder.find_spec(top, None) for finder in finders)
    spec = next((each for each in specs if each is not None), None)
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(place).resolve().parent for place in spec.submodule_search_locations]
    return [Path(spec.origin).resolve().parent] if spec.has_location and spec.origin else []


def _closure(folder: Path, module: str, where: str) -> SourceFiles:
    """The module and everything that it imports from the folder, directly or indirectly."""
    is_installed = folder in _installed()
    found = SourceFiles(folder, is_installed)
    own = module.partition(".")[0]
    todo = deque([module])
    seen: set[str] = set()
    while todo:
        name = todo.popleft()
        if name in seen:
            continue
        seen.add(name)
        top = name.partition(".")[0]
        if top in _not_local():
            continue
        is_local = False
        if top == own or not is_installed:
            for part, file in _chain(folder, name):
                is_local = True
                if part not in found.files:
                    _require_own_name(part, file, where, is_installed=is_installed)
                    found.files[part] = file
                    todo.extend(_imports(part, file, where))
        if not is_local:
            found.imported.add(top)
    # A folder without ``__init__.py`` is found with what is imported from it.
    found.imported.difference_update(name.partition(".")[0] for name in found.files)
    return found


def _chain(folder: Path, name: str) -> Iterator[tuple[str, SourceFile]]:
    """A dotted name's longest part that has a file, and the packages that contain it."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if _file(folder, ".".join(parts[:end])) is not None:
            break
    else:
        return
    for stop in range(1, end + 1):
        part = ".".join(parts[:stop])
        file = _file(folder, part)
        yield part, file or SourceFile(folder.joinpath(*parts[:stop]), _NAMESPACE, is_package=True)


def _file(folder: Path, name: str) -> SourceFile | None:
    """The file of a dotted name in a folder; None if there is none."""
    base = folder.joinpath(*name.split("."))
    candidates = [(base / "__init__.py", True)]
    candidates += [(base.with_name(base.name + end), False) for end in (".py", *EXTENSION_SUFFIXES)]
    for path, is_package in candidates:
        if path.is_file():
            try:
                return SourceFile(path, path.read_bytes(), is_package)
            except OSError as e:
                raise ConfigError(f"{path} cannot be read: {e.strerror or e}.") from None
    return None


def _imports(name: str, file: SourceFile, where: str) -> Iterator[str]:
    """The dotted names that a module imports, and that it may import from packages."""
    if file.path.suffix != ".py":
        return
    package = name if file.is_package else name.rpartition(".")[0]
    for node in ast.walk(parsed(file, where)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def parsed(file: SourceFile, where: str) -> ast.Module:
    """The syntax tree of a file.

    Raises:
        ConfigError: it is not Python.
    """
    try:
        return ast.parse(file.data, str(file.path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        line = f", line {e.lineno}" if isinstance(e, SyntaxError) and e.lineno else ""
        said = e.msg if isinstance(e, SyntaxError) else e
        raise ConfigError(f"{where}: {file.path}{line} is not Python: {said}.") from None


def require_installed(sources: SourceFiles, where: str) -> None:
    """Refuses an import that would fail, if it is not made conditionally.

    Raises:
        ConfigError: a module that one of the files imports is not installed.
    """
    for file in sources.files.values():
        if file.path.suffix != ".py":
            continue
        for node in parsed(file, where).body:
            for name in _unconditional(node):
                top = name.partition(".")[0]
                if top in sources.imported and importlib.util.find_spec(top) is None:
                    raise ConfigError(
                        f"{where}: {file.path}, line {node.lineno} imports {top}, which is not "
                        "installed.\nInstall it into the environment of manyviews."
                    )


def _unconditional(node: ast.stmt) -> list[str]:
    """The modules that a statement imports by their full names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def defines(tree: ast.Module, name: str) -> bool:
    """Whether running a module may give it a global name; a star import may give it any."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name in (name, "__getattr__"):
                return True
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound = {alias.asname or alias.name.partition(".")[0] for alias in node.names}
            if bound & {name, "*"}:
                return True
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
            return True
        else:
            todo += ast.iter_child_nodes(node)
    return False


def _require_own_name(name: str, file: SourceFile, where: str, *, is_installed: bool) -> None:
    """Refuses a file that would hide an installed package, or be hidden by it."""
    if is_installed or "." in name:
        return
    for folder in _installed():
        other = _file(folder, name)
        if other is not None and other.path.resolve() != file.path.resolve():
            raise ConfigError(
                f"{where}: {file.path} has the name of an installed package, {other.path}.\n"
                "Give the file another name."
            )


@cache
def _distributions() -> Mapping[str, list[str]]:
    """The installed distributions by the outermost names of their modules."""
    return packages_distributions()


@cache
def _installed() -> tuple[Path, ...]:
    """The folders of installed packages."""
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    places += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple(dict.fromkeys(Path(place).resolve() for place in places))


@cache
def _not_local() -> frozenset[str]:
    """Outermost names that are never of a file beside the module."""
    return frozenset(sys.stdlib_module_names) | frozenset(sys.builtin_module_names) | _PROJECT
