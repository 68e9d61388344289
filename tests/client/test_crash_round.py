"""A trainer that dies at any moment of a round: who was charged, what can leave, and how often."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from crash_images import Images
from crash_site import a_life, a_trainer, ask, check_all
from site_builder import Coordinator, Site, a_site

from oncofed_common import durable


class Killed(BaseException):
    """Nothing catches it."""


@pytest.fixture(scope="module")
def coordinator() -> Coordinator:
    return Coordinator()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, coordinator: Coordinator) -> Site:
    made = a_site(tmp_path_factory.mktemp("site"), coordinator)
    made.open.close()
    return made


@pytest.fixture(scope="module")
def task(site: Site, coordinator: Coordinator) -> bytes:
    return coordinator.task(site)


def home_of(site: Site, folder: Path) -> Path:
    """A copy of the site's home."""
    return shutil.copytree(site.home.root, folder / "north")


def test_a_round_that_is_cut_at_any_moment_is_paid_once_and_has_one_result(
    site: Site, task: bytes, tmp_path: Path
) -> None:
    """At every write, fsync, rename and statement, and with or without what was not synced."""
    images = a_life(home_of(site, tmp_path), task)
    assert images.unseen == []
    assert {call.name for call in images.calls} >= {
        "create", "write", "fsync", "fdatasync", "replace", "unlink", "mkdir",
        "sql BEGIN", "sql INSERT", "sql COMMIT", "sql close",
    }  # fmt: skip
    assert {crash.loses for crash in images.crashes} == {
        "nothing", "data", "names", "data and names",
    }  # fmt: skip
    assert len(images.crashes) > len(images.calls)
    check_all(images, images.crashes, tmp_path / "after", site=site, task=task)


@pytest.mark.parametrize("unsynced", ["folder", "reply"])
def test_what_was_not_yet_synced_when_the_trainer_died_is_synced_before_it_leaves(
    site: Site, task: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unsynced: str
) -> None:
    """First the process dies, then, when the next one has sent the reply, the machine loses its power."""
    root = home_of(site, tmp_path)
    synced = durable.sync_folder

    def dies(folder: Path) -> None:
        if folder.name == "spool" if unsynced == "folder" else any(folder.glob("*.reply")):
            raise Killed
        synced(folder)

    with Images(root).taken() as images:
        with monkeypatch.context() as patch, a_trainer(root) as trainer:
            patch.setattr(durable, "sync_folder", dies)
            with pytest.raises(Killed):
                trainer.desk.answer(task)
            assert trainer.trained == [1]
        with a_trainer(root) as trainer:
            ask(trainer, task, images)
            assert trainer.trained == ([1] if unsynced == "folder" else [])
    power = [crash for crash in images.crashes if crash.loses != "nothing" and crash.notes]
    assert power
    check_all(images, power, tmp_path / "after", site=site, task=task)


def test_a_row_is_one_transaction_that_sqlite_syncs(
    site: Site, task: bytes, tmp_path: Path
) -> None:
    """A log with synchronous=FULL: only so is a commit on the disk when it returns."""
    images = a_life(home_of(site, tmp_path), task)
    ledger = [call.name for call in images.calls if call.path.name == "ledger.sqlite"]
    said = [name for name in ledger if name.startswith("sql")]
    row = ["sql BEGIN", "sql INSERT", "sql COMMIT"]
    assert said == ["sql PRAGMA", "sql PRAGMA", *row, *row, "sql close"]
    with a_trainer(images.crashes[-1].laid_out(tmp_path / "again" / "north")) as trainer:
        connection = trainer.ledger._book._chain._connection
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
