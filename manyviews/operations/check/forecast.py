"""The forecast of a build: its duration and its slower side, predicted from a trial."""

from __future__ import annotations

from dataclasses import asdict

from consumers.plan import Plan
from featurestore.wording import amount
from manyviews.operations.check.findings import Group
from manyviews.operations.check.spread import Spread
from manyviews.operations.check.trial import Trial
from manyviews.operations.nearness import LEAST_SAMPLES, advice


def spread_into(group: Group, trial: Trial, spread: Spread, producers: int, todo: int) -> None:
    """Adds the prediction for several devices or machines, which replaces that for one device.

    Args:
        group: the group to add to.
        trial: the measurements of a trial on one device.
        spread: the devices.
        producers: number of producer processes of a machine.
        todo: number of samples to build.
    """
    backbones, produced = trial.backbones_per_s, trial.producers_per_s(producers)
    rate, side = spread.rates(backbones, produced)
    seconds = trial.seconds_at(rate, todo) if todo and rate else 0.0
    group.facts |= {
        "devices": list(spread.devices),
        "machines": spread.machines,
        "device_samples_per_s": None if backbones is None else round(backbones, 4),
        "producers_samples_per_s": None if produced is None else round(produced, 4),
        "samples_per_s": round(rate, 4),
        "views_per_s": round(rate * group.facts["views_per_s"] * trial.sample_s, 3),
        "seconds": round(seconds, 3),
        "hours": round(seconds / 3600, 4),
        "bottleneck": side,
    }
    place = "this machine" if spread.machines == 1 else amount(spread.machines, "machine")
    group.ok(
        "devices", f"{', '.join(spread.devices)} of {place}: {amount(spread.workers, 'worker')}"
    )
    text = f"{rate:.2f} samples/s together, limited by the {side}"
    if produced is not None:
        text += f"; {amount(producers, 'producer')} of a machine deliver {produced:.2f} samples/s"
    group.ok("together", text)
    group.ok("duration", f"{duration(seconds)} with all of them (an estimate)")


def forecast_group(plan: Plan, trial: Trial, todo: int) -> Group:
    """The prediction for the whole build.

    Args:
        plan: the plan of the build.
        trial: the measurements of its trial.
        todo: number of samples to build.
    """
    group = Group("forecast")
    views = plan.spec.views - plan.job.first_view
    rate = views / trial.sample_s
    seconds = trial.seconds(todo) if todo else 0.0
    alone = rate / (1 - trial.waited) if trial.waited < 0.99 else None
    group.facts = {
        "trial_samples": trial.samples,
        "samples": todo,
        "views_per_s": round(rate, 3),
        "samples_per_s": round(1 / trial.sample_s, 4),
        "seconds": round(seconds, 3),
        "hours": round(seconds / 3600, 4),
        "bottleneck": trial.bottleneck,
        "waited_share": round(trial.waited, 4),
        "producers": plan.producers,
        "nearness": {name: asdict(near) for name, near in trial.nearness.items()},
    }
    group.ok(
        "tried",
        f"{amount(trial.samples, 'sample')}, evenly spread, "
        f"with {amount(plan.producers, 'producer')}",
    )
    group.ok("rate", f"{rate:,.0f} views/s of every feature, {1 / trial.sample_s:.2f} samples/s")
    text = f"{trial.bottleneck}; the backbones wait {trial.waited:.0%} of the time"
    if trial.bottleneck == "producers" and alone is not None:
        text += (
            f"; without waiting they reach {alone:,.0f} views/s: "
            "give more --producers if there are CPUs"
        )
    group.ok("slower side", text)
    group.ok(
        "duration", f"{duration(seconds)} for {amount(todo, 'sample')}, after loading (an estimate)"
    )
    for name, near in trial.nearness.items():
        modality = plan.spec.modalities[name]
        recipe = plan.job.image_recipe if modality == "image" else plan.job.text_recipe
        if near.is_lost:
            group.warn(name, near.text(), advice(modality, recipe["name"]))
        elif near.samples >= LEAST_SAMPLES:
            group.ok(name, near.text())
    return group


def duration(seconds: float) -> str:
    """A duration as text, in seconds, minutes or hours."""
    if seconds < 120:
        return amount(round(seconds), "second")
    if seconds < 7200:
        return amount(round(seconds / 60), "minute")
    return f"{seconds / 3600:.1f} hours"
