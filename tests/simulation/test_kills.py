"""``kill -9`` of every process of a federation, in three moments of a round: the same bytes in the end."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
from kept_federation import VICTIMS, kept_up

MOMENTS = ("sent", "training", "counted")


def survive(kills: Sequence[tuple[str, str]]) -> None:
    """A round for each kill, in which it happens."""
    # a short path: a socket's name has room for a hundred characters
    with (
        tempfile.TemporaryDirectory(prefix="kill-") as folder,
        kept_up(Path(folder), rounds=len(kills)) as kept,
    ):
        for number, (victim, moment) in enumerate(kills, start=1):
            kept.survive(victim, moment, number)
        kept.until(kept.ended, what="the release")
        kept.stop()
        kept.check(rounds=len(kills))
        assert len(kept.lasted_s) == len(kills)


@pytest.mark.faults
def test_some_processes_are_killed_and_the_run_ends_with_the_same_bytes() -> None:
    survive([("round loop", "counted"), ("trainer", "training")])


@pytest.mark.hours
@pytest.mark.timeout(3600)
def test_each_process_is_killed_in_every_moment_and_the_run_ends_with_the_same_bytes() -> None:
    survive(list(product(VICTIMS, MOMENTS)))
