"""The predicted duration of a build, compared with real builds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from consumers.build import build
from consumers.build_report import BuildReport
from consumers.config import BuildConfig
from consumers.decisions import decide
from consumers.plan import Plan, make_plan
from consumers.resume.completion import completed
from featurestore.errors import BackboneError
from featurestore.storage.entries import format_entry
from featurestore.storage.writer import StoreWriter
from featurestore.system import durable
from manyviews.operations.check.trial import Trial, run_trial
from producers.sources.kinds import scan_collection
from tests.conftest import tree_digest

ROUNDS = 6
FEATURES = ("clip_image", "clip_text")


@pytest.fixture(scope="module")
def config(demo_data: Path, checkpoints: dict[str, str]) -> BuildConfig:
    """The demo's data and chunk size, with the two fastest features."""
    return BuildConfig(
        data_dir=demo_data / "dataset",
        store=Path("nowhere"),
        models=checkpoints,
        features=FEATURES,
        views=6,
        chunk=16,
        producers=1,
        device="cpu",
    )


@pytest.fixture(scope="module")
def plan(config: BuildConfig) -> Plan:
    found = scan_collection(config.inputs)
    decided = decide(completed(config, None, found), found, None, None)
    return make_plan(decided, _silent)


def _silent(*args: Any, **facts: Any) -> None: ...


def test_the_formula() -> None:
    trial = Trial(samples=20, total_s=5.0, sample_s=0.25, waited=0.6)
    assert trial.seconds(20) == 5.0
    assert trial.seconds(1020) == 5.0 + 1000 * 0.25
    assert trial.bottleneck == "producers"
    assert Trial(samples=1, total_s=5.0, sample_s=5.0, waited=0.1).seconds(3) == 15.0


def test_a_prediction_is_within_a_quarter_of_the_build(
    config: BuildConfig, plan: Plan, tmp_path: Path
) -> None:
    """Compares medians, measured alternately, so that other load affects both equally.

    If load came in bursts, there are more rounds, after which the minima also count.
    """
    predicted: list[float] = []
    built: list[float] = []

    def ratios() -> tuple[float, ...]:
        return tuple(f(predicted) / f(built) for f in (median, min))

    for _ in range(ROUNDS):
        store = tmp_path / f"store{len(built)}"
        built.append(build(replace(config, store=store)).seconds)
        predicted.append(run_trial(plan, tmp_path).seconds(len(plan.decided.found.samples)))
        if abs(ratios()[0] - 1) <= 0.25:
            return
    assert any(abs(ratio - 1) <= 0.25 for ratio in ratios()), (predicted, built)


def test_a_trial_makes_rows_of_this_data_set_and_leaves_nothing(
    config: BuildConfig, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, tuple[str, ...]]] = []

    def look(small: Plan, store: StoreWriter, on_event: Callable[..., None]) -> BuildReport:
        report = real(small, store, on_event)
        assert store.complete
        assert store.path == tmp_path
        entries = store.ledger.entries
        files = sum(size for entry in entries for size, _ in entry.files.values())
        assert sum(written) == files + sum(len(format_entry(entry)) + 1 for entry in entries)
        assert list(tmp_path.iterdir()) == []
        seen.append((store.spec.samples, store.spec.chunk, store.features))
        written.clear()
        return report

    def count(operation: str, path: Path, size: int) -> int:
        if operation == "write":
            assert path == tmp_path
            written.append(size)
            assert list(tmp_path.iterdir()) == []
        return size

    from consumers import main_loop

    written: list[int] = []
    monkeypatch.setattr(durable, "hook", count)
    real = main_loop.run_plan
    monkeypatch.setattr(main_loop, "run_plan", look)
    before = tree_digest(Path(config.inputs.path), mtimes=True)
    trial = run_trial(plan, tmp_path, aim_s=0.0)
    assert seen[0] == (3, 1, FEATURES)
    assert seen[-1][0] == trial.samples <= 6
    assert list(tmp_path.iterdir()) == []
    assert tree_digest(Path(config.inputs.path), mtimes=True) == before


def test_slow_producers_are_the_bottleneck(plan: Plan, tmp_path: Path) -> None:
    """One producer without compiled kernels, and a backbone that computes nothing."""

    class Idle:
        def __init__(self, real: Any) -> None:
            self.__dict__.update(real.__dict__)

        def embed(self, pixels: Any, *_: Any) -> Any:
            return pixels.new_zeros((len(pixels), self.dim)).float()  # type: ignore[attr-defined]

    backbones = {"clip_image": Idle(plan.backbones["clip_image"])}
    job = replace(plan.job, views=100, texts=(), slots=3, compiled=False)
    spec = replace(plan.spec, views=100, dims={"clip_image": plan.spec.dims["clip_image"]})
    slow = replace(plan, backbones=backbones, job=job, spec=spec, producers=1)
    trial = run_trial(slow, tmp_path, aim_s=0.0)
    assert trial.bottleneck == "producers"
    assert 0.5 < trial.waited <= 1.01


def test_what_fails_in_the_trial_is_the_builds_own_error(plan: Plan, tmp_path: Path) -> None:
    class Broken:
        def __init__(self, real: Any) -> None:
            self.__dict__.update(real.__dict__)

        def embed(self, *_: Any) -> Any:
            raise RuntimeError("no such kernel")

    broken = replace(
        plan, backbones={**plan.backbones, "clip_text": Broken(plan.backbones["clip_text"])}
    )
    start = time.monotonic()
    with pytest.raises(BackboneError, match="no such kernel"):
        run_trial(broken, tmp_path, aim_s=0.0)
    assert time.monotonic() - start < 60
    assert list(tmp_path.iterdir()) == []
