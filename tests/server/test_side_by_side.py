"""Several studies of one home at a time: each ends as if it were alone, and no ledger head is forgotten."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from honest_sites import FIRST, NOW_S, HonestSites, Site, drafted
from round_checks import WEIGHTS, expected, released

from oncofed_common.identity import digest
from oncofed_common.wire import Head, read_task, unframe
from oncofed_server.draft import study_toml
from oncofed_server.home import read_heads, write_heads
from oncofed_server.overview import overview
from oncofed_server.runs import create_run
from oncofed_server.studies import publish


class OneLedger(Site):
    """A site whose answers to each study are apart, and whose ledger counts the draws of all."""

    def __init__(self, of):
        super().__init__(**vars(of))
        self.draws = []

    def reply(self, task_frame, **changes):
        self.draws.append(digest(task_frame))
        head = Head(sequence=len(self.draws), commitment=digest(task_frame))
        return super().reply(task_frame, **changes | {"ledger_head": head})

    def answer(self, task_frame):
        task, _ = read_task(unframe(task_frame, cap_bytes=10**9)[0])
        key = (task.study_hash, task.round)
        if key not in self.answered:
            self.answered[key] = self.reply(task_frame)
        return self.answered[key]


class InTurns(HonestSites):
    """A round of the one, then a round of the other: none asks before the other has."""

    def __init__(self, sites, turns):
        super().__init__(sites)
        self.turns = turns

    def send(self, tasks, *, expires_s):
        self.turns.wait(timeout=60)
        super().send(tasks, expires_s=expires_s)


@pytest.fixture
def pair(fed, tmp_path):
    """The same federation with two studies."""
    study = drafted(tmp_path, WEIGHTS, study={"title": "Another study"})
    (tmp_path / "second.toml").write_text(study_toml(study), encoding="utf-8")
    publish(fed.home, tmp_path / "second.toml", base=fed.base, passphrase=None, now_s=NOW_S)
    run = create_run(fed.home, study.hash, now_s=NOW_S)
    sites = {name: OneLedger(site) for name, site in fed.sites.items()}
    first = replace(fed, sites=sites)
    return first, replace(first, study=study, run=run)


def test_two_runs_side_by_side_end_as_each_would_alone(pair):
    turns = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda fed: fed.conduct(InTurns(fed.sites, turns)), pair))
    wanted = expected([list(WEIGHTS)] * 3)
    for outcome in outcomes:
        assert outcome.status == "complete"
        for name in FIRST:
            np.testing.assert_array_max_ulp(released(outcome)[name], wanted[name], maxulp=1)
    heads = read_heads(pair[0].home)
    assert {name: head.sequence for name, head in heads.items()} == dict.fromkeys(WEIGHTS, 6)
    assert overview(pair[0].home)["runs_going_on"] == 0


def test_heads_written_at_one_time_are_all_kept(fed):
    """Planted: without the lock the one that reads first writes over the other's."""
    begin = threading.Barrier(8)

    def write(number):
        begin.wait()
        for sequence in range(1, 21):
            head = Head(sequence=sequence, commitment=f"{number:064d}")
            write_heads(fed.home, {f"site-{number}": head})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    kept = read_heads(fed.home)
    assert {name: head.sequence for name, head in kept.items()} == {
        f"site-{number}": 20 for number in range(8)
    }
