"""``kill -9`` of every process of a federation, at three moments of a round: the same bytes in the end."""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path

import pytest
from kept_federation import VICTIMS, kept_up

MOMENTS = ("sent", "training", "counted")
KILLS = tuple(product(VICTIMS, MOMENTS))


@pytest.mark.faults
def test_whatever_is_killed_in_whichever_moment_the_run_ends_with_the_same_bytes() -> None:
    """In every round something is killed."""
    # a short path: a socket's name has room for a hundred characters
    with (
        tempfile.TemporaryDirectory(prefix="kill-") as folder,
        kept_up(Path(folder), rounds=len(KILLS)) as kept,
    ):
        for number, (victim, moment) in enumerate(KILLS, start=1):
            kept.survive(victim, moment, number)
        kept.until(kept.ended, what="the release")
        kept.stop()
        kept.check(rounds=len(KILLS))
