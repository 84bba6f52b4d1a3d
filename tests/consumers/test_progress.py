"""The output of a build on a terminal, in a pipe and in the log."""

import io
import json
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from consumers.build import Observer
from consumers.progress import LiveDisplay, Meter, PlainDisplay, RunLog
from consumers.stopping import Notifier
from manyviews.operations.watch.runs import newest_run

STARTED: Mapping[str, Any] = {
    "samples": 25_959,
    "done": 9_959,
    "views": 70,
    "slots": 34,
    "chunk": 64,
    "producers": 16,
    "threads": 8,
    "features": {"clip_image": 512, "clip_text": 512, "blip2_image": 768, "blip2_text": 2048},
    "notices": ["dropped 12 bytes of a torn last line of the ledger"],
}
Clock = list[float]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def run(
    listener: Meter | Observer,
    clock: Clock,
    samples: int,
    seconds_each: float,
    waited_share: float = 0.0,
) -> None:
    for number in range(1, samples + 1):
        clock[0] += seconds_each
        facts = {"filled": 3, "waited_s": number * seconds_each * waited_share}
        if isinstance(listener, Meter):
            listener.sample(facts)
        else:
            listener("sample", facts)


def test_rates_and_time_left(clock: Clock) -> None:
    meter = Meter()
    meter.start(STARTED)
    assert (meter.samples_per_s, meter.eta_s, meter.bottleneck) == (0.0, None, "unknown")
    clock[0] += 300  # producers start; that is no rate
    run(meter, clock, 51, 0.25)
    assert meter.done == 9_959 + 51
    assert meter.samples_per_s == pytest.approx(4.0)
    assert meter.eta_s == pytest.approx((25_959 - 9_959 - 51) / 4.0)


def test_rates_are_those_of_the_last_minute(clock: Clock) -> None:
    meter = Meter()
    meter.start(STARTED)
    run(meter, clock, 100, 1.0)
    run(meter, clock, 300, 0.25)
    assert meter.samples_per_s == pytest.approx(4.0, rel=0.02)


def test_samples_that_come_in_bursts_are_counted_over_two_chunks(clock: Clock) -> None:
    """A window of a minute would contain bursts and parts of pauses: the rate would oscillate."""
    meter = Meter()
    meter.start({**STARTED, "chunk": 10})
    rates = []
    for _ in range(8):
        run(meter, clock, 10, 0.1)
        clock[0] += 99.0  # the texts of the chunk
        rates.append(meter.samples_per_s)
    assert rates[3:] == pytest.approx([0.1] * 5, rel=0.1)


def test_the_rate_falls_while_nothing_comes(clock: Clock) -> None:
    meter = Meter()
    meter.start(STARTED)
    run(meter, clock, 20, 1.0)
    clock[0] += 19
    assert meter.samples_per_s == pytest.approx(0.5)


@pytest.mark.parametrize(("share", "side"), [(0.9, "producers"), (0.1, "backbones")])
def test_the_slower_side_is_the_one_that_is_waited_for(
    clock: Clock, share: float, side: str
) -> None:
    meter = Meter()
    meter.start(STARTED)
    run(meter, clock, 20, 1.0, share)
    assert meter.bottleneck == side
    assert meter.line().endswith(f"queue 3/34, slower side: {side}")


def test_rates_are_left_out_until_they_are_known(clock: Clock) -> None:
    meter = Meter()
    meter.start(STARTED)
    run(meter, clock, 1, 1.0)
    assert meter.line() == "9,960/25,959 samples, queue 3/34"
    run(meter, clock, 1, 1.0)
    assert "samples/s" in meter.line()


def test_plain_lines_are_few_and_whole(clock: Clock) -> None:
    stream = io.StringIO()
    show = PlainDisplay(stream, interval_s=10.0)
    show("started", STARTED)
    for chunk in range(5):
        run(show, clock, 4, 1.0)
        show("chunk", {"chunk": chunk})
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("25,959 samples x 70 views, 9,959 samples done: clip_image [512]")
    assert lines[1] == STARTED["notices"][0]
    assert len(lines) == 2 + 2  # 20 s, one line each 10 s
    assert "1.0 samples/s, 70 views/s" in lines[-1]


def test_a_chunk_that_takes_minutes_is_reported_by_its_samples(clock: Clock) -> None:
    stream = io.StringIO()
    show = PlainDisplay(stream, interval_s=10.0)
    show("started", STARTED)
    run(show, clock, 5, 7.0)
    rates = stream.getvalue().splitlines()[2:]
    assert [line.partition(" ")[0] for line in rates] == ["9,961/25,959", "9,963/25,959"]


def test_the_live_lines_fit_a_narrow_terminal(clock: Clock) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, legacy_windows=False)
    show = LiveDisplay(console)
    show("loading", {"device": "cuda:0"})
    show("started", STARTED)
    run(show, clock, 30, 0.001)
    run(show, clock, 30, 1.0)
    rows = [list(console.render_lines(show._lines(), pad=False))][0]
    show.close()
    text = ["".join(segment.text for segment in row) for row in rows]
    assert len(text) == 2
    assert all(len(row) <= 80 for row in text)
    assert "10,019/25,959" in text[0]
    assert "slower side: backbones" in text[1]
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is given back


def test_the_log_holds_every_event_but_samples_and_begins_with_the_store(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log("scanned", {"samples": 2})
    assert list(tmp_path.iterdir()) == []
    log("started", {**STARTED, "samples": 2})
    log("sample", {"filled": 1, "waited_s": 0.0})
    log("chunk", {"bad": [[0, "image", "truncated", "é"]]})
    log("finished", {})
    log.close()
    [path] = tmp_path.iterdir()
    events = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [e["event"] for e in events] == ["scanned", "started", "chunk", "finished"]
    assert events[2]["bad"] == [[0, "image", "truncated", "é"]]
    assert all(e["time"].endswith("+00:00") for e in events)


def test_the_log_holds_the_rate_that_the_display_shows_with_each_chunk(
    clock: Clock, tmp_path: Path
) -> None:
    """``status`` reads the rate from the log, so that it equals the displayed one."""
    log, meter, stream = RunLog(tmp_path), Meter(), io.StringIO()
    show = PlainDisplay(stream, interval_s=0.0)
    meter.start(STARTED)
    for listener in (log, show):
        listener("started", {**STARTED, "notices": []})
    for number in range(1, 41):
        clock[0] += 0.3 if number % 3 else 2.5
        facts = {"filled": 3, "waited_s": 0.2 * number}
        meter.sample(facts)
        for listener in (log, show):
            listener("sample", facts)
    for listener in (log, show):
        listener("chunk", {"built": 40, "seconds": 44.0, "waited_s": 8.0, "bad": []})
    log.close()
    [path] = tmp_path.iterdir()
    run = newest_run(tmp_path)
    assert run is not None
    [logged] = [json.loads(line) for line in path.read_text().splitlines() if '"chunk", ' in line]
    assert logged["samples_per_s"] == pytest.approx(meter.samples_per_s, abs=1e-3)
    at = datetime.fromisoformat(logged["time"])
    assert run.samples_per_s(at) == pytest.approx(meter.samples_per_s, abs=1e-3)
    assert f" {run.samples_per_s(at):.1f} samples/s" in stream.getvalue().splitlines()[-1]
    assert run.bottleneck == meter.bottleneck
    # Once a build has ended: all its samples in all its time, as its own last line says.
    assert run.samples_per_s() == pytest.approx(40 / 44.0)


def test_a_log_that_cannot_be_written_does_not_stop_a_build(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "missing")
    log("started", STARTED)
    log("chunk", {})
    full = RunLog(tmp_path)
    full("started", STARTED)
    assert full._file is not None
    full._file.close()
    full._file = Path("/dev/full").open("wb", buffering=0)
    full("chunk", {})
    assert full._file is None
    full("chunk", {})


def test_an_event_of_a_handler_waits_for_the_event_that_it_interrupts() -> None:
    """A handler runs while an observer writes: its event comes directly after, not inside."""
    lines: list[str] = []

    def observe(event: str, **facts: Any) -> None:
        lines.append(f"<{event}")
        if event == "sample":
            notify.from_handler("stopping", signal="SIGINT")
        lines.append(f"{event}>")

    notify = Notifier(observe)
    notify("sample", filled=1)
    assert lines == ["<sample", "sample>", "<stopping", "stopping>"]
    notify.from_handler("stopping", signal="SIGTERM")
    assert lines[4:] == ["<stopping", "stopping>"]


def test_a_handler_does_not_fail_on_a_closed_terminal() -> None:
    def observe(event: str, **facts: Any) -> None:
        raise OSError(5, "Input/output error")

    Notifier(observe).from_handler("stopping", signal="SIGHUP")
    with pytest.raises(OSError, match="Input/output error"):
        Notifier(observe)("sample")


@pytest.mark.parametrize("live", [False, True])
def test_a_stop_signal_is_acknowledged_on_every_display(live: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    display = LiveDisplay(console) if live else PlainDisplay(stream)
    display("started", STARTED)
    display("stopping", {"signal": "SIGINT"})
    display.close()
    line = "Stopping after the current chunk; press Ctrl-C again to give it up."
    assert line in stream.getvalue()
