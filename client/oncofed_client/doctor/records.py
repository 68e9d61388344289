"""Do the site's own records hold: the ledger with its head, the refusals, and the time that they tell?"""

from __future__ import annotations

from oncofed_client.audit_trail import read_rows, trainer_keys
from oncofed_client.doctor.finding import Finding, fault, well
from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_client.settling import clock_behind_s
from oncofed_client.trainer.refused import read_refusals
from oncofed_common.errors import OncofedError

SECONDS_APART = 1
"""A row's time is a whole second."""

_NAMED = (
    *("ledger_damaged", "ledger_behind", "secret_changed", "key_mismatch"),
    *("refusals_damaged", "refusals_unwritable"),
)


def records(home: Home) -> Finding:
    """Every row of both chains is verified, and none was written later than this clock says."""
    try:
        with Ledger.open(home) as ledger:
            ledger.refuse_alarm()
            behind_s = clock_behind_s(ledger)
        rows = read_rows(home)
        read_refusals(home.trainer, trainer_keys(rows), head=home.refused_head_path)
    except OncofedError as error:
        code = error.code if error.code in _NAMED else "records_fails"
        return fault("records", code, error.found, whose="this site", next=error.next)
    if behind_s > SECONDS_APART:
        return fault(
            "records",
            "clock_before_ledger",
            f"this clock is {behind_s} s behind the ledger's latest row: what it says counts until then",
            whose="this machine",
            next="set the clock by a time server; if that row was written by a clock that was ahead, the "
            "approver runs oncofed-site settle --clock",
        )
    return well("records", f"{len(rows)} rows; chains and signatures hold")
