"""Each act on a ledger, cut at any moment, happened or did not; doing it again makes it happen once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from crash_images import Images
from grown_ledger import A, draw, opened
from ledger_site import LedgerSite, patient
from own_disk import on_own_disk

from oncofed_client.ledger import Ledger
from oncofed_common.errors import PolicyRefusal

ROWS = 5
"""Of the grown ledger."""

Act = Callable[[LedgerSite, Ledger], object]

ACTS: dict[str, Act] = {
    "approval": lambda site, ledger: ledger.reserve(site.approval("b", number=2)),
    "withdrawal": lambda site, ledger: ledger.withdraw(A, key=site.approver_signing),
    "exclusion": lambda site, ledger: ledger.exclude(patient(1), key=site.approver_signing),
    "distrust": lambda site, ledger: ledger.distrust("7" * 64, key=site.approver_signing),
    "epoch": lambda _, ledger: ledger.keep_epoch(4),
    "draw": lambda _, ledger: draw(ledger, 3),
    "reply": lambda _, ledger: ledger.record_reply(A, round=2, reply_digest="2" * 64, size=9),
}


@pytest.mark.parametrize("name", ACTS)
def test_an_act_that_is_cut_at_any_moment_happens_once(
    grown: LedgerSite, tmp_path: Path, name: str
) -> None:
    """Whatever was not synced is there or gone; the ledger always opens, and lost no earlier row."""
    act = ACTS[name]
    with Images(grown.root).taken() as images, opened(grown) as ledger:
        act(grown, ledger)
        images.note(b"done")
    assert images.unseen == []

    def check() -> None:
        for number, crash in enumerate(images.crashes):
            site = grown.but(root=crash.laid_out(tmp_path / "after" / f"crash{number}"))
            with opened(site) as ledger:
                rows = ledger.head().sequence
                assert rows == ROWS + 1 if crash.notes else rows in (ROWS, ROWS + 1), str(crash)
                with suppress(PolicyRefusal):  # approved already
                    act(site, ledger)
                assert ledger.head().sequence == ROWS + 1, str(crash)
            opened(site).close()

    (tmp_path / "after").mkdir()
    on_own_disk(tmp_path / "after", size_bytes=64 * 2**20, act=check)
