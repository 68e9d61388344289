"""The approver's commands, cut at any moment: what they make is whole, or made by doing it again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from crash_images import Crash, Images
from crash_site import a_trainer, rounds_charged
from own_disk import on_own_disk
from site_builder import (
    NOW_S,
    PASSPHRASE,
    PATIENTS,
    Coordinator,
    Site,
    a_home,
    a_site,
    joined,
    published,
    study_for,
)

from oncofed_client import chain, consent, settling
from oncofed_client.approval import read_approved
from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_common.errors import BudgetRefusal, PolicyRefusal

Patch = pytest.MonkeyPatch


class Killed(BaseException):
    """Nothing catches it."""


@pytest.fixture(scope="module")
def coordinator() -> Coordinator:
    return Coordinator()


def after_each(images: Images, folder: Path, check: Callable[[Path, Crash], None]) -> None:
    """Check each image, on a disk that costs no time."""

    def act() -> None:
        for number, crash in enumerate(images.crashes):
            try:
                check(crash.laid_out(folder / f"crash{number}"), crash)
            except Exception as error:
                error.add_note(str(crash))
                raise
            shutil.rmtree(folder / f"crash{number}")

    folder.mkdir()
    on_own_disk(folder, size_bytes=64 * 2**20, act=act)


def test_a_home_is_whole_or_not_there(tmp_path: Path, coordinator: Coordinator) -> None:
    """And once init or join has said so, it stays."""
    (tmp_path / "sites").mkdir()
    with Images(tmp_path / "sites").taken() as images:
        home = a_home(tmp_path / "sites")
        images.note(b"made")
        joined(home, coordinator)
        images.note(b"joined")
    assert images.unseen == []

    def check(folder: Path, crash: Crash) -> None:
        if not (folder / "north").exists():
            assert crash.notes == ()
            return
        home = Home.open(folder / "north")
        Ledger.open(home).close()
        assert home.approver_key(PASSPHRASE).public == home.approver
        assert home.trainer_certificate().subject == home.trainer_key().public.hex
        assert home.policy().filter_order == 3
        assert (home.studies(), len(home.secret())) == ([], 32)
        if b"joined" in crash.notes or (home.root / "answer.json").exists():
            assert home.coordinator() == coordinator.study_key.public
            assert (home.courier / "ca.pem").read_bytes()

    after_each(images, tmp_path / "after", check)


def test_a_yes_that_was_cut_short_is_reserved_once_and_finished_by_saying_it_again(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    """Never is a study reserved for ever of which the site holds no copy."""
    home = joined(a_home(tmp_path / "sites"), coordinator)
    study = study_for(home)
    folder = published(tmp_path, study, coordinator)

    def say_yes(root: Path) -> None:
        home = Home.open(root)
        with Ledger.open(home) as ledger:
            proposal = consent.propose(home, ledger, folder, base=tmp_path / "base.safetensors")
            consent.agree(home, ledger, proposal, passphrase=PASSPHRASE)

    with Images(home.root).taken() as images:
        say_yes(home.root)
        images.note(b"approved")
    assert images.unseen == []

    def check(root: Path, crash: Crash) -> None:
        if not crash.notes:
            with suppress(PolicyRefusal):  # it stands already
                say_yes(root)
        home = Home.open(root)
        assert read_approved(home, study.hash, now_s=NOW_S).study == study
        assert home.studies() == [study.hash]
        bundles = json.loads((home.courier / "approved_bundles.json").read_bytes())
        assert bundles == ["b" * 64]
        with a_trainer(root) as trainer:
            budget = trainer.ledger.budget()
            assert [row["study"] for row in budget["studies"]] == [study.hash]
            assert budget["reserved"] == budget["studies"][0]["reserved"]

    after_each(images, tmp_path / "after", check)


@pytest.fixture
def behind(tmp_path: Path, coordinator: Coordinator) -> Site:
    """A site whose ledger lost the row of its first round."""
    site = a_site(tmp_path, coordinator)
    site.open.close()
    shutil.copy(site.home.ledger_path, tmp_path / "backup")
    with a_trainer(site.home.root) as trainer:
        trainer.desk.answer(coordinator.task(site))
    shutil.copy(tmp_path / "backup", site.home.ledger_path)
    return site


def opens(home: Home) -> bool:
    try:
        Ledger.open(home).close()
    except BudgetRefusal:  # behind: anything else is a fault
        return False
    return True


def test_a_settlement_that_was_cut_short_is_finished_by_settling_again(
    behind: Site, tmp_path: Path
) -> None:
    """Everybody has paid for all that may have been lost before the ledger opens again."""
    assert not opens(behind.home)
    with Images(behind.home.root).taken() as images:
        settling.settle(behind.home, passphrase=PASSPHRASE)
        images.note(b"settled")
    assert images.unseen == []

    def check(root: Path, crash: Crash) -> None:
        home = Home.open(root)
        if not opens(home):
            assert crash.notes == ()
            settling.settle(home, passphrase=PASSPHRASE)
        with a_trainer(root) as trainer:
            (study,) = trainer.ledger.budget()["studies"]
            assert study["state"] == "settled"
            assert trainer.ledger.budget()["spent"] == study["reserved"]
            assert rounds_charged(trainer.ledger, behind.study.hash) == {}

    after_each(images, tmp_path / "after", check)


def test_a_copied_head_that_was_new_when_the_process_died_keeps_its_name(
    behind: Site, tmp_path: Path, monkeypatch: Patch
) -> None:
    """First the process dies before it synced the name, later the machine loses its power."""
    synced = chain.sync_folder

    def dies(folder: Path) -> None:
        if folder.name == "head":
            raise Killed
        synced(folder)

    with Images(behind.home.root).taken() as images:
        with monkeypatch.context() as patch:
            patch.setattr(chain, "sync_folder", dies)
            with pytest.raises(Killed):
                settling.settle(behind.home, passphrase=PASSPHRASE)
        if not opens(behind.home):
            settling.settle(behind.home, passphrase=PASSPHRASE)
        with Ledger.open(behind.home) as ledger:
            ledger.exclude(PATIENTS[0], key=behind.home.approver_key(PASSPHRASE))
        images.note(b"excluded")

    def check(root: Path, crash: Crash) -> None:
        if crash.notes:
            with Ledger.open(Home.open(root)) as ledger:
                assert ledger.excluded() == {PATIENTS[0]}

    after_each(images, tmp_path / "after", check)
