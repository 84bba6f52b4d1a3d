"""A slow backbone with exact features, for workers in processes that Ray starts."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from tests.faults.fakes import FakeText, declared_text

# Time of a batch in seconds; and a folder of logs, of which there are two when both workers build.
SLEEP, LOGS = "MANYVIEWS_TEST_SLEEP_S", "MANYVIEWS_TEST_LOGS"
_WAIT_S = 120.0


class SlowText(FakeText):
    """Once its build has started it waits until another worker builds too, if ``LOGS`` is set."""

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        deadline = time.monotonic() + _WAIT_S
        while _is_alone() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(float(os.environ.get(SLEEP, "0")))
        return super().embed(input_ids, attention_mask)


def _is_alone() -> bool:
    """Whether this process has started to build, and no other one has."""
    names = [log.name for log in Path(os.environ.get(LOGS, "-")).glob("*.log")]
    return len(names) == 1 and names[0].endswith(f"-{os.getpid()}.log")


def slow_text(request: Any) -> SlowText:
    """The adapter."""
    made = declared_text(request)
    slow = SlowText(made.feature, made.dim, made.text, made.model, made.fingerprint)
    slow.dtype = made.dtype
    return slow
