"""The hospital learns what was refused, and nobody fills its disk by being refused."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from grown_ledger import by_force
from hypothesis import given
from hypothesis import strategies as st
from site_builder import Coordinator, Site, reply_of
from typer.testing import CliRunner

from oncofed_client import chain
from oncofed_client.__main__ import app
from oncofed_client.chain import Chain
from oncofed_client.trainer import log as trainer_log
from oncofed_client.trainer import refused
from oncofed_client.trainer.log import open_log
from oncofed_client.trainer.refused import Allowance, by_code, note_refusal, read_refusals
from oncofed_common.errors import SystemRefusal
from oncofed_common.identity import SigningKey, digest

CANARY = b"canary: Jane Doe"
KEY = SigningKey.generate()


def rows_in(folder: Path, *keys: SigningKey) -> list[dict[str, Any]]:
    head = folder / "head.json"
    return read_refusals(folder, [key.public for key in keys or (KEY,)], head=head)


def rows_of(site: Site) -> list[dict[str, Any]]:
    keys, head = [site.home.trainer_key().public], site.home.refused_head_path
    return read_refusals(site.home.trainer, keys, head=head)


def flood(folder: Path, count: int, *, key: SigningKey = KEY) -> None:
    with open_log(folder / "log.jsonl", head=folder / "head.json", key=key) as log:
        for _ in range(count):
            note_refusal(log, "malformed", request=CANARY, sent=b"no")
            log.warning("", extra={"event": "refused", "code": "malformed"})


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_a_refusal_is_kept_by_code_time_size_and_digest(tmp_path: Path) -> None:
    """Of the request, and of what was said to it; not a byte of either."""
    flood(tmp_path, 1)
    (row,) = rows_in(tmp_path)
    assert row.pop("at_s") > 0
    assert row == {
        "code": "malformed",
        "size": len(CANARY),
        "digest": digest(CANARY),
        "sent_size": 2,
        "sent_digest": digest(b"no"),
        "unlogged": 0,
    }
    assert b"canary" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_a_flood_of_refusals_is_counted_and_fills_no_disk(tmp_path: Path) -> None:
    """So many rows and no more, neither here nor in the log; the last row says how many got none."""
    flood(tmp_path, refused.AT_ONCE)
    before = size_of(tmp_path)
    (tmp_path / "more").mkdir()
    flood(tmp_path / "more", refused.AT_ONCE + 5000)
    rows = rows_in(tmp_path / "more")
    assert len(rows) == refused.AT_ONCE + 1
    assert (rows[-1]["code"], rows[-1]["unlogged"]) == ("unlogged", 5000)
    assert by_code(rows) == [("unlogged", 5000), ("malformed", refused.AT_ONCE)]
    log = (tmp_path / "more" / "log.jsonl").read_text().splitlines()
    assert len(log) == refused.AT_ONCE
    assert size_of(tmp_path / "more") < before + 1000


def test_what_no_caller_brings_about_is_logged_however_many_were_refused(tmp_path: Path) -> None:
    """A flood hides no training."""
    flood(tmp_path, refused.AT_ONCE + 10)
    with open_log(tmp_path / "log.jsonl", head=tmp_path / "head.json", key=KEY) as log:
        for _ in range(refused.AT_ONCE + 10):
            log.info("", extra={"event": "answered", "round": 1})
    assert (tmp_path / "log.jsonl").read_text().count('"answered"') == refused.AT_ONCE + 10


def test_a_log_that_is_full_is_followed_by_one_more_and_no_third(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest lines are kept."""
    monkeypatch.setattr(trainer_log, "FILE_BYTES", 2000)
    monkeypatch.setattr(trainer_log, "AT_ONCE", 10**6)
    flood(tmp_path, 100)
    logs = list(tmp_path.glob("log.jsonl*"))
    assert sorted(path.name for path in logs) == ["log.jsonl", "log.jsonl.1"]
    assert all(path.stat().st_size <= 2000 for path in logs)


@given(
    at_once=st.integers(1, 20),
    moments=st.lists(st.floats(0, 1e5), min_size=1, max_size=60),
)
def test_an_allowance_lets_no_more_pass_than_it_says(at_once: int, moments: list[float]) -> None:
    """In any stretch of time, whatever the clock does; and all of it to who waits."""
    allowance = Allowance(at_once=at_once, every_s=60.0)
    taken = sum(allowance.take(moment) for moment in sorted(moments))
    assert min(at_once, len(moments)) <= taken
    assert taken <= at_once + (max(moments) - min(moments)) / 60 + 1e-9
    backwards = Allowance(at_once=at_once, every_s=60.0)
    assert sum(backwards.take(moment) for moment in sorted(moments, reverse=True)) <= at_once
    assert allowance.take(max(moments) + 61.0)


def test_a_row_that_the_disk_does_not_take_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is printed about it; the next row says so."""
    with open_log(tmp_path / "log.jsonl", head=tmp_path / "head.json", key=KEY) as log:
        with monkeypatch.context() as full:
            full.setattr(chain, "SPARE_BYTES", 2**62)
            for _ in range(3):
                note_refusal(log, "malformed", request=b"", sent=b"")
        note_refusal(log, "malformed", request=b"", sent=b"")
    assert [row["unlogged"] for row in rows_in(tmp_path)] == [3]


def test_a_folder_without_a_chain_has_no_refusals(tmp_path: Path) -> None:
    assert rows_in(tmp_path) == []


def test_a_trainer_that_starts_again_goes_on_with_the_chain_under_a_new_key_too(
    tmp_path: Path,
) -> None:
    """The rows of both keys verify, if both are known to be the trainer's."""
    flood(tmp_path, 2)
    later = SigningKey.generate()
    flood(tmp_path, 1, key=later)
    assert len(rows_in(tmp_path, KEY, later)) == 3
    with pytest.raises(SystemRefusal) as strange:
        rows_in(tmp_path, later)
    assert strange.value.code == "refusals_damaged"


def test_a_chain_whose_making_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    draft = tmp_path / refused.NAME
    draft = draft.with_suffix(".draft")
    for end in ("", "-wal", "-shm"):
        draft.with_name(draft.name + end).write_bytes(b"SQLite")
    flood(tmp_path, 1)
    assert len(rows_in(tmp_path)) == 1


@pytest.mark.parametrize(
    "act",
    [
        "UPDATE ledger SET body = CAST(replace(body, 'malformed', 'no_route') AS BLOB) WHERE sequence = 3",
        "DELETE FROM ledger WHERE sequence = 3",
        "DELETE FROM ledger WHERE sequence = 1",
        "UPDATE ledger SET sequence = 9 WHERE sequence = 4",
        "UPDATE ledger SET signature = (SELECT signature FROM ledger WHERE sequence = 2) WHERE sequence = 3",
    ],
)
def test_whoever_changes_a_refusal_is_found_out(tmp_path: Path, act: str) -> None:
    """A row that was altered, taken out or moved."""
    flood(tmp_path, 3)
    by_force(tmp_path / refused.NAME, (act,))
    with pytest.raises(SystemRefusal) as found:
        rows_in(tmp_path)
    assert found.value.code == "refusals_damaged"


def _all_gone(folder: Path) -> None:
    for path in folder.glob(f"{refused.NAME}*"):
        path.unlink()


@pytest.mark.parametrize(
    "take",
    [
        lambda folder: by_force(folder / refused.NAME, ("DELETE FROM ledger WHERE sequence = 4",)),
        lambda folder: by_force(folder / refused.NAME, ("DELETE FROM ledger WHERE sequence > 1",)),
        _all_gone,
    ],
    ids=["the newest", "all but the first", "the whole file"],
)
def test_whoever_takes_the_newest_refusals_away_is_found_out(
    tmp_path: Path, take: Callable[[Path], None]
) -> None:
    """By the copied head; and no trainer goes on with what is left."""
    flood(tmp_path, 3)
    take(tmp_path)
    with pytest.raises(SystemRefusal) as found:
        rows_in(tmp_path)
    assert found.value.code == "refusals_damaged"
    with pytest.raises(SystemRefusal) as begun:
        flood(tmp_path, 1)
    assert begun.value.code == "refusals_damaged"


def test_a_copied_head_that_stayed_behind_or_is_lost_accuses_nobody(tmp_path: Path) -> None:
    """A trainer may die between a row and its copy; a volume may be lost."""
    flood(tmp_path, 2)
    earlier = (tmp_path / "head.json").read_bytes()
    flood(tmp_path, 2)
    (tmp_path / "head.json").write_bytes(earlier)
    assert len(rows_in(tmp_path)) == 4
    (tmp_path / "head.json").unlink()
    assert len(rows_in(tmp_path)) == 4
    flood(tmp_path, 1)
    assert json.loads((tmp_path / "head.json").read_text())["sequence"] == 6


def test_a_copy_that_is_lost_or_behind_is_made_anew_when_the_trainer_starts(tmp_path: Path) -> None:
    flood(tmp_path, 2)
    (tmp_path / "head.json").unlink()
    flood(tmp_path, 0)
    assert json.loads((tmp_path / "head.json").read_text())["sequence"] == 3


@pytest.mark.parametrize("plant", [lambda head: head.mkdir(), os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_in_the_place_of_the_copy_is_no_tampering_and_not_passed(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    """Owner, mount or mode may be wrong; nobody is accused, and nobody goes on."""
    flood(tmp_path, 2)
    (tmp_path / "head.json").unlink()
    plant(tmp_path / "head.json")
    with pytest.raises(SystemRefusal) as found:
        rows_in(tmp_path)
    assert found.value.code == "refusals_unwritable"


def test_a_copy_that_cannot_be_written_stops_no_refusal(tmp_path: Path) -> None:
    """A volume that is gone, or full: the row is there, and the answer leaves."""
    with open_log(tmp_path / "log.jsonl", head=tmp_path / "gone" / "head.json", key=KEY) as log:
        note_refusal(log, "malformed", request=CANARY, sent=b"no")
    assert len(rows_in(tmp_path)) == 1


def test_a_refusal_that_comes_while_they_are_read_accuses_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is read before the rows: it is never ahead of what is read after it."""
    flood(tmp_path, 1)
    rows = Chain.rows

    def rows_then_another(self: Chain, *, after: int) -> list[chain.Row]:
        found = rows(self, after=after)
        monkeypatch.setattr(Chain, "rows", rows)
        flood(tmp_path, 1)
        return found

    monkeypatch.setattr(Chain, "rows", rows_then_another)
    assert len(rows_in(tmp_path)) == 1
    assert len(rows_in(tmp_path)) == 2


def test_rows_whose_file_was_moved_away_alone_are_not_taken_into_a_new_chain(
    tmp_path: Path,
) -> None:
    """After a kill the newest rows lie in SQLite's log beside the file."""
    (tmp_path / f"{refused.NAME}-wal").write_bytes(b"rows")
    with pytest.raises(SystemRefusal) as found:
        flood(tmp_path, 1)
    assert found.value.code == "refusals_damaged"
    assert "refused.sqlite*" in found.value.next


def test_a_head_of_another_chain_is_found_out(tmp_path: Path) -> None:
    flood(tmp_path, 2)
    (tmp_path / "head.json").write_text(json.dumps({"sequence": 2, "hash": "0" * 64}))
    with pytest.raises(SystemRefusal):
        rows_in(tmp_path)


def test_a_trainer_does_not_go_on_with_what_is_no_chain(tmp_path: Path) -> None:
    (tmp_path / refused.NAME).write_bytes(b"no database" * 100)
    with (
        pytest.raises(SystemRefusal) as found,
        open_log(tmp_path / "log.jsonl", head=tmp_path / "head.json", key=KEY),
    ):
        pass
    assert found.value.code == "refusals_damaged"


def test_what_is_no_file_is_named_as_the_refusals_and_not_as_the_ledger(tmp_path: Path) -> None:
    """Who reads it moves the right thing away."""
    (tmp_path / refused.NAME).mkdir()
    with pytest.raises(SystemRefusal) as found:
        rows_in(tmp_path)
    assert found.value.code == "refusals_unwritable"
    assert "refused.sqlite" in found.value.allowed


def test_the_desks_refusals_are_kept_and_shown_by_audit(site: Site) -> None:
    """With the wire's code, and the digest of the very bytes; answers are in the ledger, not here."""
    asked = [b"no task", Coordinator().task(site)]
    said = [site.desk().answer(body)[0] for body in asked]
    rows = rows_of(site)
    assert [(row["digest"], row["sent_digest"]) for row in rows] == [
        (digest(body), digest(reply)) for body, reply in zip(asked, said, strict=True)
    ]
    assert [row["code"] for row in rows] == [reply_of(reply).code for reply in said]
    done = CliRunner().invoke(app, ["audit", "--home", str(site.home.root), "--json"])
    assert json.loads(done.stdout)["refused"] == rows
    shown = CliRunner().invoke(app, ["audit", "--home", str(site.home.root)]).stdout
    assert "What was refused" in shown
    assert "bad_certificate" in shown


def test_an_attempt_that_died_is_kept_as_what_was_said_of_it(
    site: Site, coordinator: Coordinator
) -> None:
    """One word, whatever happened."""
    site.dies = True
    site.desk().answer(coordinator.task(site))
    assert rows_of(site) == [], "it has not left yet"
    site.log.release(math.inf)
    assert [row["code"] for row in rows_of(site)] == ["unavailable"]


def test_a_logger_of_somebody_else_takes_a_refusal_too() -> None:
    """It has no file for it, and keeps nothing."""
    kept: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: kept.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.Logger("other")
    log.addHandler(handler)
    note_refusal(log, "no_route", request=CANARY, sent=b"")
    assert kept == [""]
