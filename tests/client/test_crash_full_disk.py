"""A disk that takes no more: nobody is trained on, or at least nothing is lost of what was charged."""

from __future__ import annotations

import errno
import json
import math
import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from crash_site import Trainer, a_trainer, check_and_finish, rounds_charged
from file_layer import Call, Layer
from own_disk import fill, make_read_only, on_own_disk
from site_builder import NOW_S, PATIENTS, Coordinator, Site, a_site, code_of

from oncofed_common.errors import SystemRefusal

MIB = 2**20
DISK = 24 * MIB
SLOT_S = 1
CAME_S = NOW_S + 1.0
CHARGED = dict.fromkeys(PATIENTS, 1)
COORDINATOR = Coordinator()

REFUSED: Mapping[int, tuple[set[str], str]] = {
    errno.ENOSPC: ({"create", "write", "mkdir", "sql INSERT", "sql COMMIT"}, "SQLITE_FULL"),
    errno.EROFS: (
        {"open", "create", "write", "mkdir", "unlink", "replace", "sql BEGIN"},
        "SQLITE_READONLY",
    ),
    errno.EIO: ({"write", "fsync", "fdatasync", "sql COMMIT"}, "SQLITE_IOERR_FSYNC"),
}
"""What fails on a disk that is full, became read-only, or breaks; and what SQLite calls it."""
CODES = ("disk_full", "ledger_unwritable", "disk")
ORDER = [("unavailable", False), ("unavailable", True), ("ok", True)]
"""What comes of the round, and whether it was trained: the later the disk fails, the more."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = a_site(tmp_path_factory.mktemp("site"), COORDINATOR)
    made.open.close()
    return made


@pytest.fixture(scope="module")
def task(site: Site) -> bytes:
    return COORDINATOR.task(site)


NEVER = 10**9


@dataclass
class Failing:
    """A disk that fails from its call ``number`` on."""

    error: int
    number: int = NEVER
    calls: int = 0
    charged_at: int = 0

    def before(self, call: Call) -> None:
        names, name = REFUSED[self.error]
        if call.name not in names:
            return
        self.calls += 1
        if self.calls < self.number:
            return
        if call.name.startswith("sql"):
            failed = sqlite3.OperationalError("planted")
            failed.sqlite_errorname = name
            raise failed
        raise OSError(self.error, "planted")

    def after(self, call: Call, *, durable: bool) -> None:
        if call.name == "sql COMMIT" and durable and not self.charged_at:
            self.charged_at = self.calls


def complaints(trainer: Trainer) -> list[dict[str, Any]]:
    """What the operator can read, in the log or where it could not be written."""
    trainer.log.release(math.inf)
    lines = (trainer.home.trainer / "log.jsonl").read_text() + trainer.said.getvalue()
    return [row for row in map(json.loads, lines.splitlines()) if row["level"] == "WARNING"]


def fail_from(
    number: int, error: int, root: Path, *, site: Site, task: bytes
) -> tuple[int, str, bool]:
    """A round on a disk that fails from its call ``number`` on, checked and finished when it is mended.

    Returns:
        How many calls the round makes, what was answered, and whether anybody was trained on.
    """
    disk = Failing(error)
    with Layer(root, disk).under(), a_trainer(root) as trainer:
        disk.calls, disk.number = 0, number
        body, leaves_at_s = trainer.desk.answer(task)
        disk.number = NEVER
        paid = rounds_charged(trainer.ledger, site.study.hash)
        said = {json.dumps(row) for row in complaints(trainer)}
    code, trained = code_of(body), bool(trainer.trained)
    assert paid in ({}, CHARGED)
    assert paid == CHARGED or not trained
    assert code == "unavailable" or (code == "ok" and trained)
    assert leaves_at_s == CAME_S + SLOT_S or not paid
    if code == "unavailable":
        assert [json.loads(row)["code"] in CODES for row in said] == [True]
    check_and_finish(root, task, site=site, left=(body,) if code == "ok" else ())
    return disk.calls, code, trained


@pytest.mark.parametrize("error", REFUSED, ids=errno.errorcode.get)
def test_a_disk_that_fails_from_any_moment_on_loses_no_charge_and_lets_out_nothing_unpaid(
    site: Site, task: bytes, tmp_path: Path, error: int
) -> None:
    """Before the charge nobody is trained on; after it the word is unavailable, at the slot."""

    def act() -> list[tuple[str, bool]]:
        ends: list[tuple[str, bool]] = []
        calls, number = 1, 0
        while calls > number:
            number += 1
            root = shutil.copytree(site.home.root, tmp_path / "disk" / str(number) / "north")
            calls, *end = fail_from(number, error, root, site=site, task=task)
            ends.append((end[0], end[1]))
            shutil.rmtree(root)
        return ends

    (tmp_path / "disk").mkdir()
    ends = on_own_disk(tmp_path / "disk", size_bytes=64 * MIB, act=act)
    assert ends == sorted(ends, key=ORDER.index)
    assert set(ends) == set(ORDER)


def outcome(trainer: Trainer, site: Site, task: bytes) -> tuple[str, bool, int, list[str]]:
    """The code on the wire, whether it waited for the slot, who paid, and the codes in the log."""
    body, leaves_at_s = trainer.desk.answer(task)
    said = [row["code"] for row in complaints(trainer)]
    paid = len(rounds_charged(trainer.ledger, site.study.hash))
    return code_of(body), leaves_at_s == CAME_S + SLOT_S, paid, said


@pytest.mark.parametrize("full", ["north", "north/head"])
@pytest.mark.parametrize("leaving_bytes", [0, 8192, MIB // 2, 16 * MIB])
def test_a_disk_that_has_filled_up_refuses_before_anybody_pays_and_goes_on_when_there_is_room(
    site: Site, task: bytes, tmp_path: Path, leaving_bytes: int, full: str
) -> None:
    """A real file system; the home's own, or the one of the copied head."""
    if full == "north/head" and leaving_bytes > MIB:
        return  # room enough for a head
    folder = tmp_path / full
    shutil.copytree(site.home.root, tmp_path / "north")

    def act() -> Any:
        shutil.copytree(site.home.root, tmp_path / "north", dirs_exist_ok=True)
        with a_trainer(tmp_path / "north") as trainer:
            fill(folder / "fill", leaving_bytes=leaving_bytes)
            refused = outcome(trainer, site, task)
            assert trainer.trained == []
            (folder / "fill").unlink()
            code, _, paid, _ = outcome(trainer, site, task)
        return refused, code, paid

    refused, code, paid = on_own_disk(folder, size_bytes=DISK, act=act)
    assert refused == ("unavailable", True, 0, ["disk_full"])
    assert (code, paid) == ("ok", len(PATIENTS))


def test_a_disk_that_fills_up_while_a_round_is_trained_costs_the_attempt_and_nothing_else(
    site: Site, task: bytes, tmp_path: Path
) -> None:
    """The reply finds no room: the next attempt is paid by the same draw, and has noise of its own."""
    root = tmp_path / "north"
    root.mkdir()

    def act() -> Any:
        shutil.copytree(site.home.root, root, dirs_exist_ok=True)
        with a_trainer(root) as trainer:
            trainer.then = lambda: fill(root / "fill", leaving_bytes=0)
            refused = outcome(trainer, site, task)
            trainer.then = lambda: None
            full = outcome(trainer, site, task)
            (root / "fill").unlink()
        return refused, full, check_and_finish(root, task, site=site, left=())

    refused, full, body = on_own_disk(root, size_bytes=DISK, act=act)
    assert refused == ("unavailable", True, len(PATIENTS), ["disk_full"])
    assert full == ("unavailable", True, len(PATIENTS), ["disk_full"] * 2)
    assert code_of(body) == "ok"


@pytest.mark.parametrize("state", ["full", "read_only"])
def test_a_trainer_does_not_start_on_a_disk_that_takes_nothing(
    site: Site, tmp_path: Path, state: str
) -> None:
    """One line says what is wrong and what to do."""
    root = tmp_path / "north"
    root.mkdir()

    def act() -> Any:
        shutil.copytree(site.home.root, root, dirs_exist_ok=True)
        if state == "full":
            fill(root / "fill", leaving_bytes=0)
        else:
            make_read_only(root)
        with pytest.raises(SystemRefusal) as refused, a_trainer(root):
            pass
        return refused.value.code, str(refused.value)

    code, line = on_own_disk(root, size_bytes=DISK, act=act)
    assert code == ("disk_full" if state == "full" else "ledger_unwritable")
    assert "\n" not in line
    assert str(root) not in line
