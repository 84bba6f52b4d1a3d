"""Versions, bounds, linters and links in project files agree with the code."""

from __future__ import annotations

import re
import tomllib

import featurestore
from tests.conftest import ROOT
from tools import lowest_constraints

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_the_lowest_versions_are_those_of_the_bounds() -> None:
    found = (ROOT / "constraints-lowest.txt").read_text("utf-8")
    assert found == lowest_constraints.constraints(), lowest_constraints.__doc__


def test_tested_versions_are_not_below_the_lowest() -> None:
    lines = lowest_constraints.constraints().splitlines()
    lowest = dict(line.split("==") for line in lines if not line.startswith("#"))
    for name, bound in lowest.items():
        numbers = [tuple(map(int, v.split("."))) for v in (pinned()[name], bound)]
        assert numbers[0] >= numbers[1], name


def test_linters_have_one_version_everywhere() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    found = dict(re.findall(r"repo: \S+/([\w-]+)\n +rev: v?([\d.]+)\n", text))
    names = {"ruff-pre-commit": "ruff", "codespell": "codespell"}
    names["check-jsonschema"] = "check-jsonschema"
    assert set(found) == {*names, "pre-commit-hooks"}
    for repository, name in names.items():
        assert found[repository] == pinned()[name], name


def test_the_version_is_the_same_everywhere() -> None:
    current = featurestore.__version__
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {current}\n" in citation
    heads = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert heads[0] == "Unreleased"
    assert heads[1:2] in ([], [current])


def test_every_supported_python_is_tested() -> None:
    prefix = "Programming Language :: Python :: 3."
    classified = [c for c in PROJECT["project"]["classifiers"] if c.startswith(prefix)]
    versions = [c.rpartition(" ")[2] for c in classified]
    assert versions[0] == PROJECT["project"]["requires-python"].removeprefix(">=")
    expected = f"python: {versions}".replace("'", '"')
    for name in ("tests", "release"):
        workflow = (ROOT / f".github/workflows/{name}.yml").read_text("utf-8")
        assert expected in workflow, name


def test_the_licence_is_named_once() -> None:
    assert PROJECT["project"]["license"] == "Apache-2.0"
    licence = (ROOT / "LICENSE").read_text("utf-8")
    assert licence.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "\nlicense: Apache-2.0\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_wheels_require_the_kernels_and_serve_every_later_python() -> None:
    settings = PROJECT["tool"]["cibuildwheel"]
    assert settings["environment"]["MANYVIEWS_REQUIRE_KERNELS"] == "1"
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=3.")
    setup = (ROOT / "setup.py").read_text("utf-8")
    assert f'"py_limited_api": "cp3{oldest}"' in setup
    assert f"0x03{int(oldest):02X}0000" in setup
    assert settings["build"] == f"cp3{oldest}-manylinux_*"
