"""When a ledger is not the newest one: what the approver can do so that the site may go on.

A ledger that lost rows refuses everything, because nobody knows any more who was drawn. If the newest copy
cannot be restored, the approver settles: everybody is charged the most that can have been drawn, and all
open studies end. The copied head, kept outside of the home's backups, keeps that small: it says how many
studies there were. If it was lost or restored as well, everybody is charged the whole lifetime.

A ledger whose latest row was written by a clock that was ahead takes that time for now until it has come;
the approver can say that the clock is right by now.
"""

from __future__ import annotations

import time
from typing import Any

from oncofed_client.approval import Approval
from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_common.durable import read_object
from oncofed_common.errors import (
    BudgetRefusal,
    IdentityRefusal,
    OncofedError,
    PolicyRefusal,
    SystemRefusal,
)

CURABLE = ("ledger_behind", "secret_changed")


def trouble(home: Home) -> OncofedError:
    """What makes settling necessary.

    Raises:
        PolicyRefusal: code ``nothing_to_settle``. SystemRefusal: what settling does not cure.
    """
    try:
        with Ledger.open(home) as ledger:
            ledger.refuse_alarm()
    except (BudgetRefusal, SystemRefusal) as refusal:
        if refusal.code not in CURABLE:
            raise
        return refusal
    raise PolicyRefusal(
        "a ledger that has every row that was ever seen of it",
        allowed="settling what a ledger has lost",
        next="leave it as it is: settling would charge everybody for nothing",
        code="nothing_to_settle",
    )


def settle(home: Home, *, passphrase: bytes) -> dict[str, Any]:
    """Charge everybody for what may have been lost, and end every open study; the budget then.

    Raises:
        PolicyRefusal, SystemRefusal: as ``trouble``. IdentityRefusal: the approver's key.
    """
    trouble(home)
    key = home.approver_key(passphrase)
    with Ledger.settle(home, key=key, lost=_approvals(home)) as ledger:
        return ledger.budget()


def clock_behind_s(ledger: Ledger) -> int:
    """By how much this machine's clock is behind the latest row, in seconds; 0 where it is not."""
    return max(0, int(ledger.latest_s() - time.time()))


def refuse_right_clock(home: Home) -> int:
    """By how much the clock is behind, in seconds.

    Raises:
        PolicyRefusal: code ``nothing_to_settle``: it is not.
    """
    with Ledger.open(home) as ledger:
        behind_s = clock_behind_s(ledger)
    if behind_s:
        return behind_s
    raise PolicyRefusal(
        "a clock that is not behind the ledger's latest row",
        allowed="settling the clock of a ledger that was written with a later time",
        next="leave it as it is",
        code="nothing_to_settle",
    )


def settle_clock(home: Home, *, passphrase: bytes) -> int:
    """Count time from now on; by how much it went back, in seconds. Nobody is charged and nothing ends.

    Raises:
        PolicyRefusal: as ``refuse_right_clock``. IdentityRefusal: the approver's key.
    """
    behind_s = refuse_right_clock(home)
    key = home.approver_key(passphrase)
    with Ledger.open(home) as ledger:
        ledger.trust_clock(key=key)
    return behind_s


def _approvals(home: Home) -> list[dict[str, Any]]:
    """The terms of every approval in the home that can be read: one that cannot is missed by its number."""
    found = []
    for study_hash in home.studies():
        try:
            fields = read_object(
                home.study_folder(study_hash) / "approval.json", what="an approval"
            )
            found.append(dict(Approval.from_dict(fields, approver=home.approver).payload))
        except (SystemRefusal, PolicyRefusal, IdentityRefusal):
            continue
    return found
