"""What happened at this site, row by row of its ledger: who said yes, what was asked, charged, and left.

Every row is verified when the ledger is opened: chain, trainer's signature, and the approver's where one is
due. Here each becomes an event in words that name no patient: a draw tells how many were charged, an
exclusion that there was one. An export holds the same, with every row's hash, so that whoever holds two
exports sees that the later one goes on where the earlier one ended.

Filters choose what is shown; what is verified is always the whole.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from oncofed_client.book import Book, LedgerHome
from oncofed_client.chain import Row
from oncofed_client.charges import KINDS
from oncofed_common.durable import write_atomic
from oncofed_common.errors import UsageRefusal
from oncofed_common.identity import PublicKey

TOLD: Mapping[str, tuple[str, ...]] = {
    "init": ("site", "filter_order"),
    "withdrawal": (),
    "key": (),
    "approver": (),
    "distrust": ("fingerprint",),
    "epoch": ("epoch",),
    "draw": ("run",),
    "reply": ("size",),
    "exclude": (),
    "behind": ("number",),
    "settle": ("units", "number"),
    "clock": (),
}
"""Fields of a row's body that are told as they are; of an approval those in ``APPROVED``."""
APPROVED = ("epsilon", "delta", "rounds", "bytes_per_round", "release", "expires", "isolation")


COLUMNS = ("row", "time (UTC)", "kind", "study", "round", "said", "sha256")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which events are shown; None for all.

    Args:
        study: the beginning of a study's hash.
        kinds: kinds of rows.
        since_s, until_s: seconds since 1970; the second is not in it.
    """

    study: str | None = None
    kinds: frozenset[str] | None = None
    since_s: int | None = None
    until_s: int | None = None

    def __post_init__(self) -> None:
        strange = sorted((self.kinds or frozenset()) - set(KINDS))
        if strange:
            raise UsageRefusal(
                "a kind of event that there is not",
                allowed=", ".join(KINDS),
                next="correct --kind",
            )

    def takes(self, event: Mapping[str, Any]) -> bool:
        """Whether an event is shown."""
        return (
            (self.study is None or str(event["study"]).startswith(self.study))
            and (self.kinds is None or event["kind"] in self.kinds)
            and (self.since_s is None or event["at_s"] >= self.since_s)
            and (self.until_s is None or event["at_s"] < self.until_s)
        )


def read_rows(home: LedgerHome) -> list[Row]:
    """Every row of a site's ledger, oldest first, verified.

    Raises:
        BudgetRefusal, SystemRefusal: as opening the ledger does: rows are missing, or were changed.
    """
    with closing(Book.open(home, clock=time.time)) as book:
        return book.rows()


def trail(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every event of a site, oldest first: ``sequence``, ``at_s``, ``kind``, ``study``, ``round``, ``digest``
    (of the task or reply), ``to`` (the coordinator's fingerprint, of what left), ``said``, ``hash``."""
    coordinators = {
        str(row.body["approval"]["study_hash"]): str(row.body["approval"].get("coordinator", ""))
        for row in rows
        if row.kind == "approval"
    }
    return [_event(row, coordinators) for row in rows]


def trainer_keys(rows: Sequence[Row]) -> list[PublicKey]:
    """Every key that the site's trainer ever had, the oldest first."""
    later = [PublicKey(str(row.body["key"])) for row in rows if row.kind == "key"]
    return [PublicKey(str(rows[0].body["trainer_key"])), *later]


def day_s(text: str, *, option: str) -> int:
    """The first second (UTC) of an ISO date.

    Raises:
        UsageRefusal: no date.
    """
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise UsageRefusal(
            f"a {option} that is no date",
            allowed="a date such as 2027-01-31",
            next=f"correct {option}",
        ) from None


def export(events: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One JSON object a line, mode 0600, whole or not at all.

    Raises:
        UsageRefusal: there is such a file already. SystemRefusal: the disk.
    """
    if os.path.lexists(path):
        raise UsageRefusal(
            "a file that exists already", allowed="a new file", next="name another file with --out"
        )
    lines = "".join(json.dumps(event) + "\n" for event in events)
    write_atomic(path, lines.encode(), mode=0o600)


def as_line(event: Mapping[str, Any]) -> tuple[str, ...]:
    """An event on a screen, in ``COLUMNS``."""
    said = ", ".join(f"{name} {value}" for name, value in event["said"].items())
    return (
        str(event["sequence"]),
        datetime.fromtimestamp(event["at_s"], tz=UTC).strftime("%Y-%m-%d %H:%M:%S"),
        event["kind"],
        event["study"][:12],
        str(event["round"] or ""),
        said,
        event["digest"][:16],
    )


def chosen(events: Iterable[Mapping[str, Any]], wanted: Wanted) -> list[Mapping[str, Any]]:
    """The events that are wanted."""
    return [event for event in events if wanted.takes(event)]


def _event(row: Row, coordinators: Mapping[str, str]) -> dict[str, Any]:
    body, left = row.body, row.kind == "reply"
    terms = body.get("approval", {})
    study = str(body.get("study", terms.get("study_hash", "")))
    told = {name: terms[name] for name in APPROVED if name in terms}
    told |= {name: body[name] for name in TOLD.get(row.kind, ())}
    if row.kind == "draw":
        told["patients_charged"] = int(body["frame"], 16).bit_count()
    if row.kind == "approval":
        told["approvers"] = 1 + ("second" in body)
    if row.kind in ("key", "approver"):
        told["fingerprint"] = PublicKey(str(body["key"])).fingerprint
    return {
        "sequence": row.sequence,
        "at_s": int(body["at_s"]),
        "kind": row.kind,
        "study": study,
        "round": int(body.get("round", 0)),
        "digest": str(body.get("reply" if left else "task", "")),
        "to": coordinators.get(study, "") if left else "",
        "said": told,
        "hash": row.hash,
    }
