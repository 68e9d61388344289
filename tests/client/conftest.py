"""Sites for tests of the ledger: a new one with its empty ledger, and one whose ledger has grown; and
trainers that hold patients."""

from __future__ import annotations

import shutil

import pytest
from grown_ledger import A, draw
from ledger_site import new_site
from made_trainer import trainers

from oncofed_client.ledger import Ledger


@pytest.fixture(scope="module")
def grown_site(tmp_path_factory):
    """Five rows: init, approval of 9 rounds at 0.1 each, two draws, one reply."""
    site = new_site(tmp_path_factory.mktemp("grown") / "home")
    with Ledger.create(site, clock=site.clock) as ledger:
        ledger.reserve(site.approval("a", number=1, rounds=9, rdp="0.9"))
        draw(ledger, 1)
        draw(ledger, 2)
        ledger.record_reply(A, round=1, reply_digest="1" * 64, size=7)
    return site


@pytest.fixture
def site(tmp_path):
    return new_site(tmp_path / "home")


@pytest.fixture
def ledger(site):
    with Ledger.create(site, clock=site.clock) as opened:
        yield opened


@pytest.fixture
def grown(grown_site, tmp_path):
    """A copy of the grown home, for one test."""
    shutil.copytree(grown_site.root, tmp_path / "home")
    return grown_site.but(root=tmp_path / "home")


@pytest.fixture
def made(tmp_path):
    with trainers(tmp_path) as make:
        yield make
