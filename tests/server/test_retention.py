"""What of an ended run may go, and what stays."""

from __future__ import annotations

import pytest
from honest_sites import NOW_S

from oncofed_common.durable import locked
from oncofed_common.errors import SystemRefusal
from oncofed_server.home import DAY_S
from oncofed_server.retention import discard, ended_before
from oncofed_server.runs import describe


def folder_bytes(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_that_has_not_ended_loses_nothing(fed):
    before = folder_bytes(fed.folder)
    with pytest.raises(SystemRefusal) as refused:
        discard(fed.home, fed.run, audit=True)
    assert refused.value.code == "run_not_ended"
    assert before == {p: b for p, b in folder_bytes(fed.folder).items() if p.name != "run.lock"}


def test_release_and_replies_stay_and_still_verify(fed, cli):
    done = fed.conduct()
    told = describe(fed.home, fed.run)
    released, replies = folder_bytes(done.release), folder_bytes(done.audit)
    parts = [fed.folder / "checkpoints", fed.folder / "tasks"]
    size = sum(len(data) for part in parts for data in folder_bytes(part).values())
    code, said, _ = cli("discard", fed.run[:8], "--home", fed.home, "--json")
    assert (code, said) == (0, {"runs": [fed.run], "bytes_freed": size})
    assert size > 0
    assert not any(part.exists() for part in parts)
    assert (folder_bytes(done.release), folder_bytes(done.audit)) == (released, replies)
    assert describe(fed.home, fed.run) == told
    code, verdict, _ = cli(
        "verify", done.release, "--audit", done.audit, "--base", fed.base, "--json"
    )
    assert (code, verdict["checked"]["sums"]) == (0, 3)
    assert cli("discard", fed.run, "--home", fed.home, "--json")[1]["bytes_freed"] == 0


def test_replies_go_when_somebody_says_so_and_the_release_verifies_without(fed, cli):
    done = fed.conduct()
    assert cli("discard", fed.run, "--home", fed.home, "--audit", "--json")[0] == 0
    assert not done.audit.exists()
    code, verdict, _ = cli("verify", done.release, "--json")
    assert (code, verdict["ok"]) == (0, True)


@pytest.mark.parametrize(("days", "chosen"), [(0, 1), (29, 1), (31, 0)])
def test_runs_are_chosen_by_when_they_ended(fed, days, chosen):
    assert ended_before(fed.home, days=days, now_s=NOW_S + 30 * DAY_S) == []  # not ended yet
    fed.conduct()
    assert len(ended_before(fed.home, days=days, now_s=NOW_S + 30 * DAY_S)) == chosen


def test_nothing_goes_while_somebody_works_on_the_run(fed):
    fed.conduct()
    before = folder_bytes(fed.folder)
    with (
        locked(fed.folder / "run.lock", wait=False, busy=""),
        pytest.raises(SystemRefusal) as refused,
    ):
        discard(fed.home, fed.run, audit=True)
    assert refused.value.code == "home_in_use"
    assert folder_bytes(fed.folder) == before


@pytest.mark.parametrize(
    "words", [[], ["00", "--older-than-days", "3"], ["--older-than-days", "-1"]]
)
def test_which_runs_are_meant_has_to_be_said(fed, cli, words):
    code, said, err = cli("discard", *words, "--home", fed.home, "--json")
    assert code == 2
    assert said["error"]["code"] == "usage"
    assert err.count("\n") == 1
