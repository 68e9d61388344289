"""``oncofed-site settle``: only where something was lost, and nothing that was lost is forgotten."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from grown_ledger import by_force
from site_builder import PASSPHRASE, Coordinator, Site, a_site

from oncofed_client import settling
from oncofed_client.__main__ import app
from oncofed_client.ledger import Ledger
from oncofed_common.errors import BudgetRefusal
from oncofed_common.terminal import run_app


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """One approved study, of which one round of three was drawn, and no ledger open."""
    coordinator = Coordinator()
    made = a_site(tmp_path, coordinator)
    with made.open:
        made.desk().answer(coordinator.task(made))
    (tmp_path / "pass").write_bytes(PASSPHRASE)
    return made


def words(site: Site, *more: str) -> list[str]:
    passphrase = site.home.root.parent / "pass"
    return ["settle", "--home", str(site.home.root), "--passphrase-file", str(passphrase), *more]


def behind(site: Site) -> None:
    """All rows but the first are gone; the copied head knows of them."""
    by_force(site.home.ledger_path, ("DELETE FROM ledger WHERE kind != 'init'",))


def test_a_sound_ledger_is_not_settled(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """That would charge everybody for nothing."""
    before = site.home.ledger_path.read_bytes()
    assert run_app(app, words(site, "--yes", "--json")) == 2
    assert "nothing_to_settle" in capsys.readouterr().out
    assert site.home.ledger_path.read_bytes() == before


def test_a_study_that_only_its_folder_tells_of_is_charged_whole(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """The approval's row is gone with the draws; its copy in the home says what it may have cost."""
    with Ledger.open(site.home) as ledger:
        reserved = ledger.budget()["reserved"]
    behind(site)
    with pytest.raises(BudgetRefusal):
        Ledger.open(site.home)
    assert run_app(app, words(site, "--yes", "--json")) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert printed["spent"] == reserved
    with Ledger.open(site.home) as ledger:
        assert not ledger.is_standing(site.study.hash)
    assert run_app(app, words(site, "--yes", "--json")) == 2, "once is enough"


@pytest.mark.parametrize("fault", ["gone", "torn", "forged"])
def test_an_approval_that_cannot_be_read_costs_the_lifetime(site: Site, fault: str) -> None:
    """Nobody can say any more what it allowed."""
    behind(site)
    kept = site.home.study_folder(site.study.hash) / "approval.json"
    if fault == "gone":
        kept.unlink()
    elif fault == "torn":
        kept.write_bytes(kept.read_bytes()[:-9])
    else:
        fields = json.loads(kept.read_bytes())
        fields["approval"]["filter_rdp"] = "0.000000001"
        kept.write_text(json.dumps(fields))
    assert settling.settle(site.home, passphrase=PASSPHRASE)["left"] == "0"


def test_who_says_no_signs_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a program cannot be asked."""
    behind(site)
    before = site.home.ledger_path.read_bytes()
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    assert run_app(app, words(site)) == 1
    assert run_app(app, words(site, "--json")) == 2
    assert site.home.ledger_path.read_bytes() == before


def test_a_ledger_that_was_changed_is_not_settled_away(site: Site) -> None:
    """It has to be restored: what its rows say cannot be believed."""
    shutil.copy(site.home.trainer / "policy.toml", site.home.ledger_path)
    assert run_app(app, words(site, "--yes")) == 2


def test_the_budget_can_be_had_as_a_picture(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before and after settling; and where it cannot be written nothing is left."""
    ask = ["budget", "--home", str(site.home.root), "--json", "--chart"]
    assert run_app(app, [*ask, str(tmp_path / "budget.png")]) == 0
    assert (tmp_path / "budget.png").read_bytes().startswith(b"\x89PNG")
    behind(site)
    settling.settle(site.home, passphrase=PASSPHRASE)
    assert run_app(app, [*ask, str(tmp_path / "budget.png")]) == 0
    assert run_app(app, [*ask, str(tmp_path / "nowhere" / "budget.png")]) in {1, 2}
    capsys.readouterr()
    ask.remove("--json")
    assert run_app(app, [*ask, str(tmp_path / "budget.png")]) == 0
    said = capsys.readouterr().out
    for words in ("its own ε", "Rényi loss", "when open studies are done", "chart is in"):
        assert words in said
    assert [path.name for path in tmp_path.glob("*.tmp")] == []
