"""``oncofed-site audit``: everything that happened at a site, in order, and nobody's name."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from grown_ledger import PATIENTS, A, by_force, draw, opened
from hypothesis import given
from hypothesis import strategies as st
from ledger_site import NOW_S, LedgerSite
from site_builder import Coordinator, Site, a_site

from oncofed_client.__main__ import app
from oncofed_client.audit_trail import TOLD, Wanted, chosen, read_rows, trail
from oncofed_client.charges import KINDS
from oncofed_common.errors import SystemRefusal, UsageRefusal
from oncofed_common.identity import digest
from oncofed_common.terminal import run_app


def test_every_row_is_an_event_and_none_names_a_patient(grown: LedgerSite) -> None:
    """Of every kind there is: what a row says of patients is a number."""
    key, patients = grown.approver_signing, [digest(bytes([n])) for n in range(3)]
    with opened(grown) as ledger:
        draw(ledger, 3, patients)
        ledger.exclude(patients[0], key=key)
        ledger.distrust("7" * 64, key=key)
        ledger.keep_epoch(2)
        ledger.trust_clock(key=key)
        ledger.withdraw(A, key=key)
        rows = ledger.head().sequence
    events = trail(read_rows(grown))
    assert [event["sequence"] for event in events] == list(range(1, rows + 1))
    assert [event["said"] for event in events if event["kind"] == "draw"] == [
        {"run": "5" * 32, "patients_charged": count}
        for count in (len(PATIENTS), len(PATIENTS), len(patients))
    ]
    text = json.dumps(events)
    assert not any(patient in text for patient in patients)
    assert grown.site_secret.hex() not in text


def test_no_salt_is_told(grown: LedgerSite) -> None:
    """Whoever knew it could open what the ledger's heads hide."""
    with opened(grown) as ledger:
        salts = [row.body["salt"] for row in ledger._book.rows() if row.kind == "draw"]
    assert salts
    assert not any(salt in json.dumps(trail(read_rows(grown))) for salt in salts)


def test_every_kind_of_row_has_its_words() -> None:
    """One that is added later is not forgotten here."""
    assert set(TOLD) | {"approval"} == set(KINDS)


EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(KINDS),
            "study": st.sampled_from(["", "aa", "ab", "b"]),
            "at_s": st.integers(0, 20),
        }
    )
)


@given(events=EVENTS, since=st.integers(0, 20), until=st.integers(0, 20), study=st.just("a"))
def test_filters_part_the_events(
    events: list[dict[str, Any]], since: int, until: int, study: str
) -> None:
    """What is before a day, and what is not, are all; each kind alone, and all kinds together, too."""
    before = chosen(events, Wanted(until_s=since))
    after = chosen(events, Wanted(since_s=since))
    assert len(before) + len(after) == len(events)
    alone = [len(chosen(events, Wanted(kinds=frozenset({kind})))) for kind in KINDS]
    assert sum(alone) == len(events)
    both = chosen(events, Wanted(study=study, since_s=since, until_s=until))
    assert both == [
        event for event in events if event["study"][:1] == "a" and since <= event["at_s"] < until
    ]


def test_a_changed_row_is_no_event(grown: LedgerSite) -> None:
    """The whole chain is verified first, whatever is asked for."""
    by_force(grown.ledger_path, ("UPDATE ledger SET kind = 'epoch' WHERE sequence = 3",))
    with pytest.raises(SystemRefusal):
        trail(read_rows(grown))


def test_a_later_export_goes_on_where_the_earlier_one_ended(grown: LedgerSite) -> None:
    """By every row's hash."""
    earlier = trail(read_rows(grown))
    grown.now[0] = NOW_S + 5.0
    with opened(grown) as ledger:
        draw(ledger, 3)
    assert trail(read_rows(grown))[: len(earlier)] == earlier


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """One approved study, and one reply."""
    coordinator = Coordinator()
    made = a_site(tmp_path, coordinator)
    with made.open:
        made.desk().answer(coordinator.task(made))
    return made


def test_an_export_says_to_whom_what_left(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line an event, for the site's own eyes; a file that is there stays."""
    out = tmp_path / "events.jsonl"
    words = f"audit --home {site.home.root} --kind reply --out {out} --json".split()
    assert run_app(app, words) == 0
    printed = json.loads(capsys.readouterr().out)
    (line,) = out.read_text().splitlines()
    event = json.loads(line)
    assert [event] == printed["events"]
    assert event["to"] == site.home.coordinator().fingerprint
    assert (event["digest"], event["said"]["size"]) == (
        printed["left"][0]["digest"],
        printed["left"][0]["size"],
    )
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert run_app(app, words) == 2
    assert out.read_text().splitlines() == [line]


@pytest.mark.parametrize(
    "wrong", ["--kind ghosts", "--since yesterday", "--until 2027-02-30", "--since 20270131"]
)
def test_a_filter_that_makes_no_sense_is_refused(
    site: Site, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Instead of showing nothing, as if nothing had happened."""
    assert run_app(app, f"audit --home {site.home.root} {wrong} --json".split()) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_the_screen_shows_what_happened(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order in which it did."""
    assert run_app(app, ["audit", "--home", str(site.home.root)]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(kind) for kind in ("init", "approval", "epsilon", "draw", "reply")]
    assert places == sorted(places)


def test_an_unknown_kind_is_named_with_those_there_are() -> None:
    """So that nobody has to look for them."""
    with pytest.raises(UsageRefusal) as refusal:
        Wanted(kinds=frozenset({"ghosts"}))
    assert "settle" in refusal.value.allowed
