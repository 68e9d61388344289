"""What a hospital reads when its processes do not come up, or are stopped: real processes of one home."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest
from cohort_builder import write_cohort
from site_builder import Coordinator, a_home, joined

from oncofed_client.home import Home
from oncofed_client.start import stop


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """A virtual cohort, and beside it the table of hospital numbers."""
    (tmp_path / "identities.tsv").write_text("participant_id\thospital_number\nsub-001\t1\n")
    return write_cohort(tmp_path / "cohort", patients=1)


def started(
    home: Home, cohort: Path, *, screen: int | IO[str] = subprocess.PIPE
) -> subprocess.Popen[str]:
    words = ["start", "--home", home.root, "--cohort", cohort]
    words += ["--identities", cohort.with_name("identities.tsv")]
    argv = [sys.executable, "-m", "oncofed_client", *(str(word) for word in words)]
    return subprocess.Popen(argv, stdout=screen, stderr=subprocess.PIPE, text=True)


def test_a_virtual_cohort_in_a_real_home_is_refused_in_the_trainers_own_words(tmp_path, cohort):
    home = joined(a_home(tmp_path, virtual=False), Coordinator())
    _, said = started(home, cohort).communicate(timeout=60)
    assert said.startswith("oncofed: a virtual cohort in a real home; ")
    assert said.count("\n") == 1


def until_it_listens(process: subprocess.Popen[str], home: Home) -> None:
    until = time.monotonic() + 60
    while not home.socket.exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_a_screen_that_takes_nothing_more_ends_no_trainer(tmp_path, cohort):
    home = joined(a_home(tmp_path), Coordinator())
    with Path("/dev/full").open("w") as full:
        process = started(home, cohort, screen=full)
    until_it_listens(process, home)
    assert "trainer" in stop(home)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")


def test_a_site_that_was_stopped_says_so_and_not_that_it_ended_by_itself(tmp_path, cohort):
    home = joined(a_home(tmp_path), Coordinator())
    process = started(home, cohort)
    until_it_listens(process, home)
    assert "trainer" in stop(home)
    out, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")
    assert "trainer started; it reads the cohort" in out
    assert "stopped by oncofed-site stop" in out
    assert not home.socket.exists()
