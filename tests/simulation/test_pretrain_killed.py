"""Pretraining that is killed, not asked to stop, and goes on from its last checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORDS = [
    "pretrain",
    "--patients",
    "2",
    "--steps",
    "8",
    "--seed",
    "5",
    "--scored",
    "1",
    "--widened",
    "2",
]
WORDS += ["--json"]
PROGRAM = """
import sys
from oncofed_simulation import base_weights
from oncofed_simulation.entry import main
base_weights.SAVE_EVERY_S = 0.0
sys.argv = ["oncofed-simulate", *sys.argv[1:]]
raise SystemExit(main())
"""
"""The program itself, which saves after every step here and not every few minutes."""


def begun(out: Path, *more: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", PROGRAM, *WORDS, "--out", str(out), *more]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)


@pytest.mark.faults
def test_a_run_that_was_killed_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Killed twice: once while it makes patients, once while it trains."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert begun(straight).wait(600) == 0
    for sign, more in (("patients/small-*", ()), ("checkpoint.pt", ("--resume",))):
        process = begun(killed, *more)
        until = time.monotonic() + 300
        while not any(killed.glob(sign)) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        assert process.poll() is None, "it is killed before its end"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
        assert not (killed / "small.safetensors").exists()
    assert (killed / "checkpoint.pt").exists()
    assert begun(killed, "--resume").wait(600) == 0
    name = "small.safetensors"
    assert (killed / name).read_bytes() == (straight / name).read_bytes()
