"""One patient less, or one without consent or room: outside nobody can tell, but for noised values."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from site_builder import (
    NOW_S,
    PASSPHRASE,
    PATIENTS,
    Coordinator,
    Site,
    a_home,
    approved,
    joined,
    study_for,
)

from oncofed_client.courier.node import NODE_KEY_FILE
from oncofed_client.home import Home
from oncofed_client.trainer.faults import MOST_BYTES, NAME, note_faults
from oncofed_client.trainer.tasks import TaskDesk
from oncofed_common.wire import read_reply, unframe

LASTS_S = (0.2, 0.7)
"""How long training takes with one patient less, and with all."""


ROOM_FOR_ONE_STUDY = "4.99"
"""Of the lifetime's epsilon: who was in one whole study of these has no room for a round of the next."""


def spend_on_another_study(
    root: Path, home: Home, coordinator: Coordinator, frame: Sequence[str]
) -> None:
    """Draw all rounds of an earlier study, in which only those of the frame could be drawn."""
    study = study_for(home, training={"learning_rate": 0.5})
    site = approved(root, home, study, coordinator)
    with site.open:
        for number in range(1, study.training.rounds + 1):
            site.ledger.draw(
                study.hash,
                run=coordinator.run,
                round=number,
                task_digest=f"{number:064x}",
                frame=frame,
            )


def seen_from_outside(
    root: Path, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, *, which: str
) -> tuple[dict[str, object], int]:
    """What two rounds of a site show: sizes, codes, times, fields, and its log; and how many could be
    drawn in the second, which nobody outside learns."""
    home = joined(a_home(root, lifetime_epsilon=ROOM_FOR_ONE_STUDY), coordinator)
    spend_on_another_study(root, home, coordinator, [PATIENTS[-1]] if which == "exhausted" else [])
    site = approved(root, home, study_for(home), coordinator)
    less = which in ("one less", "one broken")
    frame: Sequence[str] = PATIENTS[:-1] if less else PATIENTS
    with site.open:
        key = home.approver_key(PASSPHRASE)
        site.ledger.exclude(PATIENTS[-1] if which == "withdrew" else "f" * 64, key=key)
        train = site.work

        def work(*asked: object) -> object:
            site.now_s += LASTS_S[which == "all"]
            done = train(*asked)
            return replace(done, faults=("MemoryError",)) if which == "one broken" else done

        monkeypatch.setattr(site, "work", work)
        desk = TaskDesk(
            home,
            site.ledger,
            isolation=lambda: "no_network",
            work=site.work,
            frame=lambda of: site.ledger.may_be_drawn(of.study_hash, frame),
            clock=lambda: site.now_s,
            log=site.log,
        )
        bodies, times = [], []
        for number in (1, 2):
            record = None
            if number == 2:
                record = coordinator.record(site, number=1, reply=bodies[0])
            site.now_s = NOW_S + 1.0 + 100 * number
            body, leaves_at_s = desk.answer(coordinator.task(site, number=number, record=record))
            bodies.append(body)
            times.append(leaves_at_s)
        site.log.release(math.inf)  # what waits for a slot of the test's clock
        log = (home.trainer / "log.jsonl").read_text()
        drawn = len(site.ledger.charged_in(site.study.hash, round=2))
    return {
        "sizes": [len(body) for body in bodies],
        "times": times,
        "said": [_public(body) for body in bodies],
        "log": [_told(line, site) for line in log.splitlines()],
        "files": sorted(
            (path.relative_to(home.courier).as_posix(), path.stat().st_size)
            for path in home.courier.rglob("*")
            if path.is_file() and path.name != NODE_KEY_FILE  # of init: one in 600 is shorter
        ),
    }, drawn


def _public(body: bytes) -> dict[str, object]:
    """A reply without its noised values and what is drawn anew for every reply."""
    envelope, tensors = unframe(body, cap_bytes=10**6)
    fields = read_reply(envelope)[0].payload()
    head = fields.pop("ledger_head")
    drawn = ("update_digest", "task_digest", "study_hash", "run", "trainer_certificate")
    kept = {name: value for name, value in fields.items() if name not in drawn}
    return kept | {"tensor_bytes": len(tensors), "draws": head["sequence"] if head else None}


def _told(line: str, site: Site) -> dict[str, object]:
    fields = json.loads(line)
    if fields["event"] != "answered":  # else it is the slot's, by the clock of the test
        fields.pop("time_s")
    return {
        name: value for name, value in fields.items() if name not in ("run", "study", "incident")
    }


@pytest.mark.parametrize("which", ["one less", "withdrew", "exhausted", "one broken"])
def test_neighbours_look_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """Two sites of the same name under the same coordinator, each in a world of its own."""
    coordinator = Coordinator()
    whole, drawn = seen_from_outside(tmp_path / "whole", coordinator, monkeypatch, which="all")
    other, fewer = seen_from_outside(tmp_path / "other", coordinator, monkeypatch, which=which)
    assert whole == other
    assert (drawn, fewer) == (len(PATIENTS), len(PATIENTS) - 1)
    assert whole["log"], "something was logged"


def test_who_could_not_be_computed_is_counted_where_only_the_hospital_looks(tmp_path: Path) -> None:
    """A line a round, bounded, and nothing for a round in which everybody could."""
    note_faults(tmp_path, (), study_hash="5" * 64, round_number=1)
    assert not (tmp_path / NAME).exists()
    faults = ("MemoryError", "NotFinite", "NotFinite")
    note_faults(tmp_path, faults, study_hash="5" * 64, round_number=2)
    (line,) = (tmp_path / NAME).read_text().splitlines()
    assert json.loads(line)["contributed_nothing"] == {"MemoryError": 1, "NotFinite": 2}
    (tmp_path / NAME).write_bytes(b"x" * (MOST_BYTES + 1))
    note_faults(tmp_path, faults, study_hash="5" * 64, round_number=3)
    assert (tmp_path / NAME).stat().st_size == MOST_BYTES + 1
    note_faults(tmp_path / "nowhere", faults, study_hash="5" * 64, round_number=4)
