"""``benchmarks/workers.py`` with two devices and a few chunks, and its arithmetic."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.worker_tasks import Outcome, committed_in, opened_in
from benchmarks.workers import Fleet, fleets, predicted
from tests import warm

# Two devices; then one of two is killed at half.
BUILDS = """
import sys
from pathlib import Path
from benchmarks.workers import measured

work = Path(sys.argv[1])
for dies in (False, True):
    outcome = measured(work, (1.0, 0.5), 4, 0.1, dies=dies)
    assert outcome.chunks == 8, outcome
    assert len(outcome.commits) >= 8 - dies, outcome
    assert 0 < outcome.rate < 2 / 0.1 * 1.5, outcome
    assert not (work / "store").exists()
    print(outcome.survivors)
"""


def test_workers_with_sleeping_devices(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILDS, str(tmp_path)]
    done = warm.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.stdout.split() == ["0", "1"], done.stderr


def test_rates_count_from_the_start() -> None:
    commits = [(9.0, 2), (11.0, 0), (12.0, 1), (14.0, 3)]
    outcome = Outcome(10.0, commits, chunks=4)
    assert (outcome.rate, outcome.twice) == (3 / 4, 0)
    outcome = Outcome(10.0, [*commits, (18.0, 0)], chunks=4)  # the store was complete by then
    assert (outcome.rate, outcome.twice) == (3 / 4, 1 / 4)
    outcome = Outcome(10.0, commits, chunks=4, survivors=2)
    assert outcome.rate == 2 / 4  # of two chunks that were begun, one counts as built


@pytest.mark.parametrize("fleet", fleets(25), ids=lambda fleet: fleet.name)
def test_the_prediction_meets_the_goal(fleet: Fleet) -> None:
    efficiency, twice = predicted(fleet, range(3))
    assert fleet.goal <= efficiency <= 1.02
    assert twice <= 0.05


def test_records_and_lines_are_measured(tmp_path: Path) -> None:
    line_s, record_s = committed_in(tmp_path / "commits", 3)
    assert 0 < line_s < 10
    assert 0 < record_s < 10
    assert len(list((tmp_path / "commits/records/records/commits").iterdir())) == 3
    assert 0 < opened_in(tmp_path / "opened", 4) < 10
