"""Does a named test go red for every fault that must never come back?

Each of ``tests/planted_faults.toml`` is planted into a copy of the tree, and its test is run there: it has to
fail, and to fail as a test does, not for want of an import. Unplanted, all of these tests pass.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FAULTS: list[dict[str, Any]] = tomllib.loads(
    (ROOT / "tests" / "planted_faults.toml").read_text(encoding="utf-8")
)["fault"]
PACKAGES = ("common", "client", "server", "simulation")
PARTS = (*PACKAGES, "tests", "benchmarks", "pyproject.toml", "README.md")


def copied(to: Path) -> Path:
    """A copy of all that the tests need."""
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
            )
        else:
            shutil.copy(ROOT / name, to / name)
    return to


def run(tree: Path, *tests: str) -> str:
    """What pytest says at the end of running some tests in a tree."""
    paths = os.pathsep.join(str(tree / name) for name in PACKAGES)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def counted(said: str) -> dict[str, int]:
    """How many tests did what, from pytest's last line."""
    last = next((line for line in reversed(said.splitlines()) if " in " in line), "")
    return {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", last)}


def test_every_fault_has_a_name_and_a_place_of_its_own() -> None:
    """What is to be replaced stands there once, so that no fault is planted beside the code."""
    names = [fault["name"] for fault in FAULTS]
    assert len(names) == len(set(names)) >= 40
    for fault in FAULTS:
        for edit in fault["edit"]:
            text = (ROOT / edit["file"]).read_text(encoding="utf-8")
            assert text.count(edit["is"]) == 1, (fault["name"], edit["file"])


@pytest.mark.slow
def test_unplanted_they_all_pass(tmp_path: Path) -> None:
    """Else red would mean nothing."""
    tests = sorted({fault["caught_by"] for fault in FAULTS})
    said = run(copied(tmp_path), *tests)
    assert "passed" in counted(said), said
    assert not {"failed", "error", "errors"} & set(counted(said)), said


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["name"])
def test_a_planted_fault_is_caught(tmp_path: Path, fault: dict[str, Any]) -> None:
    """By the test that is named for it."""
    tree = copied(tmp_path)
    for edit in fault["edit"]:
        path = tree / edit["file"]
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(edit["is"], edit["becomes"]), encoding="utf-8")
    said = run(tree, fault["caught_by"])
    found = counted(said)
    assert found.get("failed", 0) >= 1, said
    assert not {"error", "errors"} & set(found), said
