"""A yes that is cut short: by a full disk, or by death between the copy and the ledger."""

from __future__ import annotations

import errno
import os

import pytest
from site_builder import PASSPHRASE, Coordinator, a_home, joined, published, study_for

from oncofed_client import approval, consent
from oncofed_client.approval import read_approved
from oncofed_client.ledger import Ledger
from oncofed_common import durable
from oncofed_common.errors import (
    ModelRefusal,
    PolicyRefusal,
    StudyRefusal,
    SystemRefusal,
)
from oncofed_common.study import parse_study


@pytest.fixture
def site(tmp_path):
    coordinator = Coordinator()
    home = joined(a_home(tmp_path), coordinator)
    study = study_for(home)
    return home, study, published(tmp_path, study, coordinator), tmp_path / "base.safetensors"


def say_yes(home, folder, base):
    with Ledger.open(home) as ledger:
        proposal = consent.propose(home, ledger, folder, base=base)
        return consent.agree(home, ledger, proposal, passphrase=PASSPHRASE)


def reserved(home):
    with Ledger.open(home) as ledger:
        return ledger.budget()["reserved"]


@pytest.mark.parametrize("number", range(4))
def test_a_disk_that_is_full_before_any_part_of_the_copy_costs_nothing(site, monkeypatch, number):
    """Of the four files of the copy each in its turn finds no room; then there is room again."""
    home, study, folder, base = site
    before = reserved(home)
    room = iter([True] * number)

    def write(path, data):
        if path.parent.name.startswith(approval.DRAFT) and not next(room, False):
            raise durable.disk_refusal(OSError(errno.ENOSPC, "no room"))
        return durable.write_atomic(path, data)

    with monkeypatch.context() as full:
        full.setattr(approval, "write_private", write)
        with pytest.raises(SystemRefusal) as caught:
            say_yes(home, folder, base)
    assert caught.value.code == "disk_full"
    assert reserved(home) == before
    assert os.listdir(home.study_folder("")) == []
    assert say_yes(home, folder, base).study == study


def test_death_after_the_reservation_is_mended_by_the_command_again(site, monkeypatch):
    """The copy was durable and the ledger holds the yes; only the last rename is missing."""
    home, study, folder, base = site

    class Death(BaseException):
        pass

    def dies(_path):
        raise Death

    with monkeypatch.context() as dying:
        dying.setattr(approval, "sync_folder", lambda _path: None)
        dying.setattr(approval.Path, "rename", lambda _self, _target: dies(_self))
        dying.setattr(approval.shutil, "rmtree", lambda *_a, **_k: None)
        with pytest.raises(Death):
            say_yes(home, folder, base)
    assert home.studies() == []
    paid = reserved(home)
    with pytest.raises(PolicyRefusal) as caught:
        say_yes(home, folder, base)
    assert caught.value.code == "already_approved"
    assert reserved(home) == paid
    assert read_approved(home, study.hash, now_s=0).study == study


def test_a_copy_whose_yes_never_reached_the_ledger_is_thrown_away(site):
    home, study, folder, base = site
    left = home.study_folder(f"{approval.DRAFT}{study.hash}")
    left.mkdir()
    (left / "study.toml").write_text("half")
    assert say_yes(home, folder, base).study == study
    assert os.listdir(home.study_folder("")) == [study.hash]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epsilon", "7.99830000000001"),
        ("epsilon", "1e-13"),
        ("delta", "9.23456789123e-06"),
        ("clip_norm", "1e308"),
        ("clip_norm", "1e-320"),
        ("noise_multiplier", "1e9"),
        ("learning_rate", "1e308"),
        ("server_learning_rate", "1e308"),
    ],
)
def test_a_number_that_no_reply_could_repeat_or_no_step_could_use_makes_no_study(site, key, value):
    """Otherwise it is found after everybody was charged."""
    _, _, folder, _ = site
    lines = (folder / "study.toml").read_text().splitlines()
    changed = [f"{key} = {value}" if line.startswith(f"{key} = ") else line for line in lines]
    assert changed != lines
    with pytest.raises(StudyRefusal, match=key):
        parse_study("\n".join(changed))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model": {"adapters": "zzz"}}, "unknown_adapters"),
        ({"model": {"preset": "huge"}}, "unknown_preset"),
        ({"cohort": {"spacing_mm": 7.0}}, "wrong_window"),
        ({"cohort": {"crop_voxels": 48}}, "wrong_window"),
    ],
)
def test_a_study_that_cannot_mean_what_it_states_is_not_approved(tmp_path, changes, code):
    coordinator = Coordinator()
    home = joined(a_home(tmp_path), coordinator)
    folder = published(tmp_path, study_for(home, **changes), coordinator)
    with pytest.raises(ModelRefusal) as caught:
        say_yes(home, folder, tmp_path / "base.safetensors")
    assert caught.value.code == code
    assert home.studies() == []


@pytest.mark.parametrize("named", [["T1w", "BANANA"], ["T1w", "T1w"]])
def test_channels_that_there_are_not_make_no_study(tmp_path, named):
    home = joined(a_home(tmp_path), Coordinator())
    with pytest.raises(ValueError, match=r"cohort\.modalities"):
        study_for(home, cohort={"modalities": named})
