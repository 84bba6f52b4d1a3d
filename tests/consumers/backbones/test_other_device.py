"""Backbones keep to their device: nothing of them stays on the CPU when they are moved."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from consumers.backbones.declared import ADAPTERS
from featurestore.records import FEATURES
from tests import warm
from tests.conftest import NIGHTLY, ROOT
from tests.consumers.other_device import FORGOTTEN, OTHER, ROWS

Lines = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Lines:
    folder = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-m", "tests.consumers.other_device", str(folder)]
    command += ["float32", "bfloat16"] if NIGHTLY else ["float32"]
    printed = warm.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = [json.loads(line) for line in printed.stdout.splitlines()]
    return {(line["backbone"], line["dtype"]): line for line in found}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("backbone", [*FEATURES, *ADAPTERS])
def test_a_batch_on_another_device_is_embedded_there(
    lines: Lines, backbone: str, dtype: str
) -> None:
    line = lines[backbone, dtype]
    assert line.get("found") == [str(OTHER), "torch.float32", ROWS, line["dim"]], line


def test_a_tensor_that_is_left_on_the_cpu_would_be_found(lines: Lines) -> None:
    assert f"two devices, cpu and {OTHER}" in lines[FORGOTTEN, "float32"]["failed"]
