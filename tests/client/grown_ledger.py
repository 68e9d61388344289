"""A ledger of five rows: what was charged in it, and how tests draw from it, edit it and open it."""

from __future__ import annotations

import sqlite3

import pytest
from ledger_site import patient, study_hash

from oncofed_client.ledger import Ledger
from oncofed_common.errors import Refusal

RUN = "5" * 32
A = study_hash("a")
PATIENTS = [patient(n) for n in range(4)]


def draw(ledger, round_number, frame=PATIENTS):
    return ledger.draw(
        A, run=RUN, round=round_number, task_digest=f"{round_number:064x}", frame=frame
    )


def opened(site):
    return Ledger.open(site, clock=site.clock)


def by_force(path, *statements):
    """Edit the file as somebody would who has it: the triggers are taken off and put back."""
    with sqlite3.connect(path) as connection:
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY rowid"
        ).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(*statement)
        for _, sql in triggers:
            connection.execute(sql)
    connection.close()


def refused_code(site) -> str:
    with pytest.raises(Refusal) as refusal:
        opened(site)
    return refusal.value.code
