"""Check an export before anything is written, and read its rows block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError
from featurestore.imdb.label_sets import read_any_labels
from featurestore.imdb.splits import read_split
from featurestore.labels.label_set import LabelSet
from featurestore.reading.scaling import scale_for
from featurestore.reading.sources import presence
from featurestore.storage.moments import Scale
from featurestore.storage.store import FeatureStore
from manyviews.operations.export.request import ExportRequest

# Approximate size of a block of rows, which is one row group of Parquet.
BLOCK_BYTES = 64 << 20
COLUMNS = ("stem", "index", "view", "bad", "present", "labels")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive samples with their chosen views.

    Attributes:
        samples: int64 ``[n]``, the samples' indices in the store.
        stems: the samples' stems.
        views: int64 ``[v]``, the chosen views.
        features: ``[n, v, D]`` by name in the export's dtype; bfloat16 as its bits in uint16.
        bad: bool ``[n]``, whether a placeholder replaces an input of the sample.
        present: bool ``[n, F]``, whether the sample has the input of each feature, or None.
        labels: float32 ``[n, C]``, or None.
    """

    samples: npt.NDArray[np.int64]
    stems: list[str]
    views: npt.NDArray[np.int64]
    features: Mapping[str, npt.NDArray[Any]]
    bad: npt.NDArray[np.bool_]
    present: npt.NDArray[np.bool_] | None
    labels: npt.NDArray[np.float32] | None

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The columns of the block except stems: ``n * v`` rows, sorted by sample, then view.

        The columns are ``index`` int64, ``view`` int32, ``bad`` bool, each feature ``[n * v, D]``,
        and, if the export has them, ``present`` bool ``[n * v, F]`` and ``labels`` float32
        ``[n * v, C]``.
        """
        v = len(self.views)
        table: dict[str, npt.NDArray[Any]] = {
            "index": self.samples.repeat(v),
            "view": np.tile(self.views, len(self.samples)).astype(np.int32),
            "bad": self.bad.repeat(v),
        }
        if self.present is not None:
            table["present"] = self.present.repeat(v, axis=0)
        table |= {name: rows.reshape(-1, rows.shape[-1]) for name, rows in self.features.items()}
        if self.labels is not None:
            table["labels"] = self.labels.repeat(v, axis=0)
        return table


@dataclass(frozen=True, slots=True)
class Export:
    """A request that has been checked against its store.

    Attributes:
        request: the options.
        store: the complete store.
        dims: dimension D of each chosen feature.
        views: int64 ``[v]``, the chosen views, ascending.
        scales: the z-score of each feature; None for ``none``.
        bad: bool ``[N]``, whether a placeholder replaces an input of the sample.
        present: bool ``[N, F]``, whether each sample has the input of each chosen feature; None if
            no sample lacks one. The rows of the others are zeros, which are not scaled.
        labels: the labels of all samples, or None.
        progress: callback (chunks done, all chunks), or None.
    """

    request: ExportRequest
    store: FeatureStore
    dims: Mapping[str, int]
    views: npt.NDArray[np.int64]
    scales: Mapping[str, Scale | None]
    bad: npt.NDArray[np.bool_]
    present: npt.NDArray[np.bool_] | None
    labels: LabelSet | None
    progress: Progress | None = None

    @property
    def rows(self) -> int:
        """Number of rows of the export: samples times chosen views."""
        return self.store.spec.samples * len(self.views)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's values, excluding its stem."""
        labels = 0 if self.labels is None else 4 * len(self.labels.classes)
        value_bytes = 4 if self.request.dtype == "float32" else 2
        present = 0 if self.present is None else len(self.dims)
        return sum(self.dims.values()) * value_bytes + 8 + 4 + 1 + present + labels

    @property
    def absent(self) -> dict[str, int]:
        """The number of samples without the input of each feature; empty if no sample lacks one."""
        if self.present is None:
            return {}
        return dict(zip(self.dims, (~self.present).sum(axis=0).tolist(), strict=True))

    def shards(self, size_bytes: int) -> list[range]:
        """Groups the store's chunks into shards of at most ``size_bytes``, or one chunk.

        The shards depend on the request and the store only, so that file names can include their
        number.
        """
        spec = self.store.spec
        step = max(1, size_bytes // (spec.chunk * len(self.views) * self.row_bytes))
        return [range(c, min(c + step, spec.chunks)) for c in range(0, spec.chunks, step)]

    def rows_of(self, chunks: range) -> int:
        """Number of rows in these chunks."""
        spec = self.store.spec
        return (spec.samples_of(chunks[-1]).stop - spec.samples_of(chunks[0]).start) * len(
            self.views
        )

    def blocks(self, chunks: range) -> Iterator[Block]:
        """Yields the rows of these chunks in order, in blocks of about ``BLOCK_BYTES``.

        Each chunk's checksum is verified.

        Raises:
            CorruptStoreError: a chunk is damaged.
            ConfigError: a value is too large for the dtype.
        """
        for part in self.shards(BLOCK_BYTES):
            inside = range(max(part.start, chunks.start), min(part.stop, chunks.stop))
            if inside:
                yield self._block(inside)
                if self.progress is not None:
                    self.progress(inside.stop, self.store.spec.chunks)

    def _block(self, chunks: range) -> Block:
        spec = self.store.spec
        samples = np.arange(
            spec.samples_of(chunks[0]).start, spec.samples_of(chunks[-1]).stop, dtype=np.int64
        )
        whole = slice(samples[0], samples[-1] + 1)
        present = None if self.present is None else self.present[whole]
        features = {name: self._rows(name, chunks, int(samples[0])) for name in self.dims}
        labels = None if self.labels is None else self.labels.rows[whole]
        stems = [sample.stem for sample in self.store.samples[whole]]
        return Block(samples, stems, self.views, features, self.bad[whole], present, labels)

    def _rows(self, name: str, chunks: Iterable[int], first: int) -> npt.NDArray[Any]:
        parts = [self.store.read_chunk(name, chunk)[:, self.views] for chunk in chunks]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        scale = self.scales[name]
        if scale is not None:
            scale.apply(rows)
        if self.present is not None:
            present = self.present[first : first + len(rows), list(self.dims).index(name)]
            rows[~present] = 0
        dtype = self.request.dtype
        narrowed, over = narrow(rows, dtype)
        if over is not None:
            sample, view, _ = over
            stem = self.store.samples[first + sample].stem
            raise ConfigError(
                f"{name} of sample {stem!r}, view {self.views[view]}, "
                f"holds {rows[over]:,.6g}, which is beyond {dtype}.\n"
                "Export with --dtype float32."
            )
        return narrowed


def narrow(
    rows: npt.NDArray[np.float32], dtype: str
) -> tuple[npt.NDArray[Any], tuple[int, ...] | None]:
    """Rounds finite values to ``dtype``, ties to even.

    Returns:
        The values, bfloat16 as its bits in uint16; and the position of the first value that became
        infinite, or None.
    """
    import torch  # takes seconds, and a mistake in the options is reported before

    short = torch.from_numpy(rows).to(getattr(torch, dtype))
    infinite = short.isinf()
    over = tuple(infinite.nonzero()[0].tolist()) if infinite.any() else None
    values = short.view(torch.uint16) if dtype == "bfloat16" else short
    return values.numpy(), over


def plan(request: ExportRequest, progress: Progress | None = None) -> Export:
    """Checks a request against its store.

    Args:
        request: the options.
        progress: callback (chunks done, all chunks), or None.

    Raises:
        InputError: the store is not complete, or the split or labels do not match it.
        ConfigError: the store does not have a view or feature, or ``train`` has no split.
        CorruptStoreError: the store's records are damaged.
    """
    store = FeatureStore(request.store)
    store.require_complete()
    if request.out_dir.resolve().is_relative_to(request.store.resolve()):
        raise ConfigError(
            f"--out-dir {request.out_dir} is in the store. Choose a folder elsewhere."
        )
    names = _chosen_features(store, request.features)
    views = _chosen_views(store, request.views)
    split, folder = request.split_json, request.labels_dir
    train = None if split is None else read_split(split, store.stems).train
    labels = None if folder is None else read_any_labels(folder, store.stems)
    bad = np.isin(np.arange(store.spec.samples), [b.index for b in store.bad_inputs])
    present = presence(store, names)
    return Export(
        request=request,
        store=store,
        dims={name: store.spec.dims[name] for name in names},
        views=views,
        scales={name: scale_for(store, name, request.zscore, train) for name in names},
        bad=bad,
        present=None if present.all() else present,
        labels=labels,
        progress=progress,
    )


def _chosen_features(store: FeatureStore, asked: tuple[str, ...] | None) -> tuple[str, ...]:
    names = store.features if asked is None else asked
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"--features must name each feature once, found {', '.join(names)!r}.")
    for name in names:
        if name not in store.features:
            held = ", ".join(store.features)
            raise ConfigError(f"{store.path} holds {held}, but not {name!r}.")
        if name in COLUMNS:
            raise ConfigError(
                f"The feature {name!r} has the name of a column of every export.\n"
                f"Leave it out with --features; the columns are {', '.join(COLUMNS)}."
            )
    return names


def _chosen_views(store: FeatureStore, asked: tuple[int, ...] | None) -> npt.NDArray[np.int64]:
    count = store.spec.views
    views = sorted(set(range(count) if asked is None else asked))
    if not views or not 0 <= views[0] <= views[-1] < count:
        raise ConfigError(
            f"--views must name views 0 to {count - 1} of {store.path}, "
            f"found {views[-1] if views else 'no number'}."
        )
    return np.array(views, np.int64)
