"""A custom recipe's function in the process that calls it: loading, random states, failures."""

from __future__ import annotations

import importlib
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    ExtensionFileLoader,
    ModuleSpec,
    SourceFileLoader,
)
from importlib.util import spec_from_file_location
from types import CodeType, ModuleType
from typing import Any, Generic, TypeVar

import numpy as np

from featurestore.errors import BadSampleError, RecipeError
from featurestore.system.torchvision_ops import ensure_importable
from producers.recipes.source_files import SourceFile, SourceFiles

_T = TypeVar("_T")
# Libraries that need torchvision to be importable.
_TORCHVISION = frozenset({"torchvision", "torch", "timm", "transformers"})
_DETAIL_CHARS = 500
_WHERE = Mapping[str, SourceFile]


class _Loader(SourceFileLoader):
    """Runs the content of a file as it was read, not as it is now or was when it was compiled."""

    def __init__(self, name: str, file: SourceFile) -> None:
        super().__init__(name, str(file.path))
        self.data = file.data

    def get_code(self, fullname: str) -> CodeType:
        """Compiles the content; no file of Python's cache is read or written."""
        del fullname
        return self.source_to_code(self.data, self.path)


class _Finder(MetaPathFinder):
    """Finds the modules of recipes among their source files, and nowhere else."""

    is_of_recipes = True  # the search for source files ignores it

    def __init__(self) -> None:
        self.files: dict[str, SourceFile] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module of a recipe; None for any other module."""
        del path, target
        file = self.files.get(fullname)
        if file is None:
            return None
        if file.path.is_dir():
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = []
            return spec
        if file.path.name.endswith(tuple(EXTENSION_SUFFIXES)):
            loader = ExtensionFileLoader(fullname, str(file.path))
            return spec_from_file_location(fullname, file.path, loader=loader)
        return spec_from_file_location(
            fullname,
            file.path,
            loader=_Loader(fullname, file),
            # Files that are not known from an import statement are not found: the store would not
            # have recorded them.
            submodule_search_locations=[] if file.is_package else None,
        )


_finder = _Finder()


def load(function: str, sources: SourceFiles) -> Callable[..., Any]:
    """Imports the module of a function from its source files.

    Args:
        function: ``module:function``.
        sources: the files of the module.

    Raises:
        RecipeError: the module cannot be imported, or does not have this function.
    """
    module, _, name = function.partition(":")
    try:
        if sources.imported & _TORCHVISION:
            ensure_importable()
        if not sources.is_installed:
            _serve(sources.files)
        found = getattr(importlib.import_module(module), name, None)
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        raise RecipeError(function, f"could not be imported: {_last_line(e)}{_place(e)}") from e
    if not callable(found):
        kind = "no such function" if found is None else f"no function: {type(found).__name__}"
        raise RecipeError(function, f"is {kind}, in {sources.files[module].path}")
    return found  # type: ignore[no-any-return]


def _serve(files: Mapping[str, SourceFile]) -> None:
    """Makes modules importable; those that were imported from another content are forgotten."""
    sources = {name: file for name, file in files.items() if file.path.suffix == ".py"}
    if any(_imported(name) not in (None, file.data) for name, file in sources.items()):
        for name in sources:  # the others have names of those that changed
            sys.modules.pop(name, None)
    _finder.files.update(files)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def _imported(name: str) -> bytes | None:
    """The content that a module was imported from; empty if unknown, None if it was not."""
    if name not in sys.modules:
        return None
    loader = getattr(sys.modules[name].__spec__, "loader", None)
    return loader.data if isinstance(loader, _Loader) else b""


class Calls(Generic[_T]):
    """Calls of a function, each a function of its inputs and its seed.

    The views of the first sample are made twice: a function that draws from elsewhere than from its
    generator and the global ones gives other views then.

    Args:
        function: its name, ``module:function``.
        call: the function itself.
        convert: converts what it returned; raises TypeError or ValueError, with the problem, for
            what is unusable.
    """

    def __init__(
        self, function: str, call: Callable[..., Any], convert: Callable[[Any], _T]
    ) -> None:
        self._function = function
        self._call = call
        self._convert = convert
        self._is_checked = False

    def views(self, give: Callable[[], Any], seeds: Sequence[int]) -> Iterator[_T]:
        """Calls the function for each seed.

        Args:
            give: returns its first argument, which it may change.
            seeds: seed of each view, below 2³².

        Raises:
            BadSampleError: the function refuses the input.
            RecipeError: it raised anything else, or returned something unusable.
        """
        for seed in seeds:
            knew_torch = "torch" in sys.modules
            made = self._once(give(), seed)
            if not knew_torch and "torch" in sys.modules:
                made = self._once(give(), seed)  # its generator had no seed yet
            if not self._is_checked and not _equal(made, self._once(give(), seed)):
                raise RecipeError(
                    self._function,
                    "returned two results for one input and one seed: all its random numbers must "
                    "come from the generator that it is given",
                )
            yield made
        self._is_checked = True

    def _once(self, given: Any, seed: int) -> _T:
        try:
            with _seeded(seed):
                returned = self._call(given, np.random.default_rng(seed))
        except BadSampleError as e:
            raise BadSampleError(_line(e.reason) or "refused", _line(e.detail)) from e
        except (MemoryError, KeyboardInterrupt):
            raise
        except BaseException as e:
            raise RecipeError(self._function, f"raised {_last_line(e)}{_place(e)}") from e
        try:
            return self._convert(returned)
        except (TypeError, ValueError) as e:
            raise RecipeError(self._function, f"returned {_line(e)}") from None


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators of Python, NumPy and torch, and restores them."""
    torch = sys.modules.get("torch")
    states = random.getstate(), np.random.get_state(), torch and torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    if torch is not None:
        torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch is not None:
            torch.set_rng_state(states[2])


def _equal(one: Any, other: Any) -> bool:
    """Whether two texts or two images are equal."""
    return bool(one == other)


def _last_line(error: BaseException) -> str:
    """The last line of a traceback: the error's class and message."""
    return _line(traceback.format_exception_only(error)[-1])


def _place(error: BaseException) -> str:
    """Where an error was raised, as far as the function's own code is involved."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename in _own_files()]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def _own_files() -> set[str]:
    return {str(file.path) for file in _finder.files.values()}


def _line(text: object) -> str:
    """A text of anyone as one line that can be written as UTF-8."""
    line = " ".join(str(text).encode("utf-8", "backslashreplace").decode().split())
    return line if len(line) <= _DETAIL_CHARS else f"{line[:_DETAIL_CHARS]} …"
