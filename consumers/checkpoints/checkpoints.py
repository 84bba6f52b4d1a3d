"""Find a checkpoint on disk or on the hub, check its kind and its files, and fingerprint it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from consumers.checkpoints.content import content_sha256
from consumers.checkpoints.weights import is_weight, wanted_files, weight_problem
from consumers.device.gpu_errors import gpu_advice
from featurestore.errors import ConfigError, ManyViewsError
from featurestore.wording import first_line, one_line

_AGAIN = "Fetch it again, or give another"
_READABLE = "Make it readable, or give another"
# Packages that transformers names in its error if a tokenizer or a processor needs them.
_OPTIONAL = ("sentencepiece", "tiktoken", "protobuf", "jinja2", "scipy", "sacremoses", "torchaudio")


@dataclass(frozen=True)
class Checkpoint:
    """A model's files in a local folder.

    Attributes:
        name: hub id, or base name of a local folder: the store must not depend on paths.
        folder: folder of the files.
        feature: name of the feature that uses it, for messages.
        config: the parsed ``config.json``, ``{}`` if there is none.
        files: relative POSIX names of the needed files, sorted.
        open_clip: whether open_clip loads the files.
    """

    name: str
    folder: Path
    feature: str
    config: dict[str, Any]
    files: tuple[str, ...]
    open_clip: bool = False

    def require_type(self, expected: Collection[str], kind: str) -> None:
        """Raise ConfigError unless ``config.json`` has one of the ``expected`` model types."""
        model_type = self.config.get("model_type")
        if model_type not in expected:
            raise self.error(f"is a {model_type or 'nameless'} checkpoint, expected {kind}")

    def error(self, problem: str, advice: str = "Give another") -> ConfigError:
        """A ConfigError that names the checkpoint, its problem and the option to change."""
        return ConfigError(
            f"{self.name} {problem}.\n  folder: {self.folder}\n"
            f"{advice} with --model {self.feature}=ID_OR_DIR."
        )

    def select(self, patterns: Iterable[str]) -> tuple[str, ...]:
        """Names of the files in the folder's root that match any of the patterns."""
        chosen = tuple(patterns)
        return tuple(f for f in self.files if any(fnmatchcase(f, p) for p in chosen))

    def weights(self) -> tuple[str, ...]:
        """Names of the weight files, including indexes."""
        return tuple(f for f in self.files if is_weight(PurePosixPath(f).name))

    def check_weights(self) -> None:
        """Raise ConfigError for missing, truncated or unknown weight files; reads headers only."""
        weights = self.weights()
        if not weights:
            names = "open_clip_model.safetensors nor open_clip_pytorch_model.bin"
            if not self.open_clip:
                names = "model.safetensors nor pytorch_model.bin"
            raise self.error(f"has no weights: neither {names}")
        for name in weights:
            try:
                problem = weight_problem(self.folder, name)
            except OSError as error:
                raise self.error(f"cannot be read: {name}: {error.strerror}", _READABLE) from error
            if problem:
                raise self.error(f"is damaged: {name} {problem}", _AGAIN)

    def fingerprint(self, files: Iterable[str]) -> str:
        """SHA-256 over the names and contents of ``files``, independent of their order.

        Raises:
            ConfigError: a file cannot be read.
        """
        digest = hashlib.sha256()
        for name in sorted(set(files)):
            try:
                content = content_sha256(self.folder / name)
            except OSError as error:
                raise self.error(f"cannot be read: {name}: {error.strerror}", _READABLE) from error
            digest.update(f"{name}\0{content}\n".encode())
        return digest.hexdigest()

    @contextmanager
    def loading(self, library: str = "transformers") -> Iterator[None]:
        """Turn any error of a library that loads or tests a checkpoint into ConfigError.

        This includes errors of the GPU in a model's first computation, with advice on the GPU.

        Args:
            library: name of the library, for messages.
        """
        try:
            yield
        except (ManyViewsError, MemoryError):
            raise
        except Exception as error:  # libraries raise any kind of error
            raise self.error(*self._explained(error, library)) from error

    def _explained(self, error: Exception, library: str) -> tuple[str, str]:
        """The meaning of a library's error, and advice."""
        from pickle import UnpicklingError

        from safetensors import SafetensorError

        if advice := gpu_advice(error):
            return f"cannot be loaded: {first_line(error)}", f"{advice}, or give another"
        packages = self._missing_packages(error)
        if packages:
            return (
                f"cannot be loaded by {library}, which needs {' and '.join(packages)} for it",
                f"Install it: pip install {' '.join(packages)}; or give another",
            )
        if isinstance(error, (OSError, EOFError, UnpicklingError, SafetensorError)):
            files = ", ".join(self.weights()[:3])
            return f"cannot be read by {library} ({files} …): {one_line(error)}", _AGAIN
        kind = "" if isinstance(error, (RuntimeError, ValueError)) else f"{type(error).__name__}: "
        return f"cannot be loaded by {library}: {kind}{one_line(error)}", "Give another"

    def _missing_packages(self, error: Exception) -> list[str]:
        """The distributions that a library needs to read this checkpoint and does not find."""
        if isinstance(error, ModuleNotFoundError) and error.name:
            return [error.name.partition(".")[0]]
        text = str(error).lower()
        if isinstance(error, ImportError):
            return [name for name in _OPTIONAL if name in text]
        # Without sentencepiece, transformers cannot find or convert the tokenizer's class.
        has_pieces = self.select(("*.model",)) and not self.select(("tokenizer.json",))
        if has_pieces and "tokenizer" in text and find_spec("sentencepiece") is None:
            return ["sentencepiece"]
        return []

    def check_loaded(self, report: dict[str, Any]) -> None:
        """Raise ConfigError if transformers' loading report names a weight that was not loaded."""
        missing = sorted({str(key) for key in report["missing_keys"]})
        mismatched = sorted({str(key) for key in report["mismatched_keys"]})
        if missing or mismatched:
            bad = [*missing, *mismatched]
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            raise self.error(f"lacks weights of this model: {', '.join(bad[:3])}{more}")


def resolve(model: str, feature: str = "FEATURE", *, open_clip: bool = False) -> Checkpoint:
    """Find a checkpoint's files, fetching them from the hub where needed.

    Args:
        model: a local folder or a hub id. The Hugging Face cache and ``HF_HUB_OFFLINE`` are
            honoured; only files that a feature needs are fetched.
        feature: name of the feature that uses it, for messages.
        open_clip: whether open_clip loads it, which has its own weight files.

    Raises:
        ConfigError: ``model`` is no folder and could not be fetched.
    """
    found = resolve_folder(model, feature, open_clip=open_clip)
    if found is not None:
        return found
    return _open(model, _fetch(model, feature, open_clip), feature, open_clip)


def resolve_folder(model: str, feature: str, *, open_clip: bool = False) -> Checkpoint | None:
    """Find a checkpoint in a local folder; None for a hub id.

    Raises:
        ConfigError: the named folder does not exist, or its ``config.json`` cannot be read.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        # absolute() keeps symbolic links: the user chose the link's own name.
        return _open(folder.absolute().name, folder, feature, open_clip)
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or folder.exists():
        raise ConfigError(
            f"{model} is not a folder.\n"
            f"Give a checkpoint's folder or a hub id with --model {feature}=ID_OR_DIR."
        )
    return None


def resolve_cached(model: str, feature: str, *, open_clip: bool = False) -> Checkpoint | None:
    """Find a checkpoint in the hub's cache on this machine; it may be incomplete.

    Raises:
        ConfigError: its ``config.json`` cannot be read, or the target of a link is missing.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, local_files_only=True))
    except hub_errors():
        return None
    return _open(model, folder, feature, open_clip)


def bytes_on_the_hub(model: str, *, open_clip: bool = False) -> int:
    """Size in bytes of the files that :func:`resolve` would fetch, as the hub reports it.

    Raises:
        Exception: one of :func:`hub_errors`: the model does not exist, or the hub is unreachable.
    """
    sizes = _sizes_on_the_hub(model)
    return sum(sizes[name] for name in wanted_files(sizes, open_clip=open_clip))


def _sizes_on_the_hub(model: str) -> dict[str, int]:
    """Size in bytes of each file of a model on the hub, asked for once, within the hub's timeout.

    Most other calls of huggingface_hub retry for half a minute without a network, log each retry,
    or have no timeout.
    """
    from huggingface_hub import HfApi, constants

    timeout = constants.HF_HUB_ETAG_TIMEOUT
    files = HfApi().model_info(model, files_metadata=True, timeout=timeout).siblings or []
    return {file.rfilename: file.size or 0 for file in files}


def _open(name: str, folder: Path, feature: str, open_clip: bool) -> Checkpoint:
    paths = [p for pattern in ("*", "*/*") for p in folder.glob(pattern) if not p.is_dir()]
    names = [p.relative_to(folder).as_posix() for p in paths]
    files = wanted_files(names, open_clip=open_clip)
    checkpoint = Checkpoint(name, folder, feature, {}, files, open_clip)
    gone = [file for file in files if not (folder / file).exists()]
    if gone:
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        raise checkpoint.error(
            f"lacks {gone[0]}{more}: a link to a file that is gone",
            f"Fetch it again: hf download {_hub_id(name, folder)}; or give another",
        )
    return replace(checkpoint, config=read_json(checkpoint, "config.json"))


def _hub_id(name: str, folder: Path) -> str:
    """The hub id of a folder in the hub's cache, ``models--OWNER--NAME/snapshots/COMMIT``."""
    home = folder.parent.parent.name
    return home.removeprefix("models--").replace("--", "/") if home.startswith("models--") else name


def read_json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Parse one of a checkpoint's JSON files; ``{}`` if it has no such file.

    Raises:
        ConfigError: the file is not a JSON object.
    """
    path = checkpoint.folder / name
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise checkpoint.error(f"has an unreadable {name}: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise checkpoint.error(f"has a {name} that is not a JSON object")
    return value


def _fetch(model: str, feature: str, open_clip: bool) -> Path:
    from huggingface_hub import snapshot_download

    failures = hub_errors()
    try:
        wanted = wanted_files(_sizes_on_the_hub(model), open_clip=open_clip)
        return Path(snapshot_download(model, allow_patterns=list(wanted)))
    except failures as error:
        # Offline, or no longer public: the files that an earlier run fetched are used.
        try:
            return Path(snapshot_download(model, local_files_only=True))
        except failures:
            raise ConfigError(
                f"{model} is no local folder, and could be neither fetched from the hub nor found "
                "in its cache:\n"
                f"  {one_line(error)}\n"
                f"Check the name and the network, or give a folder: --model {feature}=DIR."
            ) from error


def hub_errors() -> tuple[type[Exception], ...]:
    """The errors of huggingface_hub; their base class depends on its HTTP library's version."""
    from huggingface_hub import errors

    names = ("HTTPError", "RevisionResolutionError")
    return (OSError, ValueError, *(getattr(errors, name, OSError) for name in names))
