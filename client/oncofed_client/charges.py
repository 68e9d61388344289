"""What the rows of a ledger add up to: who was charged how much, what is reserved, what is over.

A pure fold: ``Charges`` starts empty and ``apply`` takes one row after the other. It reads no clock and
no file, and two copies of the same rows always add up to the same. Losses are whole billionths of Rényi
loss at the ledger's one order. Patients are numbered as they first appear; a draw stores whom it charges
as bits under those numbers.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from oncofed_client.chain import Row, damaged
from oncofed_client.policy import UNITS, units_up

KINDS = (
    "init",
    "approval",
    "withdrawal",
    "key",
    "approver",
    "distrust",
    "epoch",
    "draw",
    "reply",
    "exclude",
    "behind",
    "settle",
    "clock",
)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One round of one study, charged; ``number`` counts the draws of all studies."""

    run: str
    task_digest: str
    frame: int
    number: int
    salt: str
    row_hash: str


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One reply that may have left."""

    study: str
    round: int
    digest: str
    size: int
    at_s: int


@dataclass(kw_only=True)
class StudyAccount:
    """One approved study: what was reserved for it and what was drawn on that; ``signers`` said yes to it."""

    terms: Mapping[str, Any]
    signers: int = 1
    state: str = "open"
    draws: dict[int, Draw] = field(default_factory=dict)
    replies: dict[int, Sent] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        return int(self.terms["rounds"])

    @property
    def round_units(self) -> int:
        """The charge of one round for everybody who could be drawn in it."""
        return -(-units_up(str(self.terms["filter_rdp"])) // self.rounds)

    @property
    def reserved_units(self) -> int:
        return self.round_units * self.rounds

    @property
    def sent_bytes(self) -> int:
        """Size of everything that may have left for this study."""
        return sum(sent.size for sent in self.replies.values())

    def is_open(self, *, today: str) -> bool:
        """Whether further rounds may be drawn on ``today`` (ISO date)."""
        return (
            self.state == "open"
            and len(self.draws) < self.rounds
            and today <= str(self.terms["expires"])
        )


@dataclass(kw_only=True)
class Charges:
    """The sum of all rows so far."""

    init: Mapping[str, Any] = field(default_factory=dict)
    trainer_key: str = ""
    second_key: str = ""
    secret_mark: str = ""
    numbers: dict[str, int] = field(default_factory=dict)
    spent: list[int] = field(default_factory=list)
    everyone: int = 0
    excluded: set[str] = field(default_factory=set)
    studies: dict[str, StudyAccount] = field(default_factory=dict)
    approvals: int = 0
    distrusted: set[str] = field(default_factory=set)
    epoch: int = 0
    draws: dict[int, Draw] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    last_number: int = 0
    settled_number: int = 0
    alarm: int = 0
    forked: bool = False
    history: list[tuple[int, int]] = field(default_factory=list)
    latest_s: int = 0
    rows: int = 0

    def apply(self, row: Row) -> None:
        """Take one more row into account.

        Raises:
            SystemRefusal: code ``ledger_damaged``: a row that no version of this code would write.
        """
        if row.kind not in KINDS or (row.kind == "init") != (self.rows == 0):
            raise damaged(f"row {row.sequence} of a kind that cannot stand there")
        try:
            getattr(self, f"_{row.kind}")(row)
            self._keep_time(row)
        except (LookupError, TypeError, ValueError, ArithmeticError):
            raise damaged(f"row {row.sequence} of the ledger that makes no sense") from None
        self.rows += 1

    def _keep_time(self, row: Row) -> None:
        """The latest time that a row has; a reply's tells when training ended, and is left out."""
        at_s = int(row.body["at_s"])
        if row.kind != "reply":
            self.latest_s = at_s if row.kind == "clock" else max(self.latest_s, at_s)

    def spent_by(self, patient: str) -> int:
        """What one patient was charged so far; who is unknown was charged what everybody was."""
        number = self.numbers.get(patient)
        return self.everyone + (self.spent[number] if number is not None else 0)

    def most_spent(self) -> int:
        return self.everyone + max(self.spent, default=0)

    def exhausted(self, patients: Iterable[str], *, charge: int, room: int) -> list[str]:
        """Those for whom ``charge`` more would pass ``room``."""
        return [patient for patient in patients if self.spent_by(patient) + charge > room]

    def reserved(self, *, today: str) -> int:
        """All reservations that stand; each counts whole until its study ends."""
        return sum(
            study.reserved_units for study in self.studies.values() if study.is_open(today=today)
        )

    def left(self, *, room: int, today: str) -> int:
        """What the most-charged patient has left of ``room``, beyond what open studies may still draw."""
        coming = sum(
            study.round_units * (study.rounds - len(study.draws))
            for study in self.studies.values()
            if study.is_open(today=today)
        )
        return max(0, room - self.most_spent() - coming)

    def undrawn(self) -> tuple[int, int]:
        """Units and rounds that can have been drawn, in rows that were lost, on studies that stand."""
        left = [
            (study.round_units, study.rounds - len(study.draws))
            for study in self.studies.values()
            if study.state == "open"
        ]
        return sum(units * rounds for units, rounds in left), sum(rounds for _, rounds in left)

    def bytes_since(self, at_s: float) -> int:
        """Size of everything that may have left after a moment."""
        return sum(sent.size for sent in self.sent if sent.at_s > at_s)

    def members(self, frame: int) -> list[str]:
        """The patients whose bits are set, in the order of their numbers."""
        return [patient for patient, number in self.numbers.items() if frame >> number & 1]

    def bits_of(self, patients: Iterable[str]) -> tuple[list[str], int]:
        """Patients that have no number yet, in order, and the bits of all of them."""
        numbers, joined, frame = dict(self.numbers), [], 0
        for patient in patients:
            if patient not in numbers:
                numbers[patient] = len(numbers)
                joined.append(patient)
            frame |= 1 << numbers[patient]
        return joined, frame

    def _init(self, row: Row) -> None:
        self.init = row.body
        self.trainer_key = str(row.body["trainer_key"])
        self.secret_mark = str(row.body["secret_mark"])

    def _approval(self, row: Row) -> None:
        terms = row.body["approval"]
        study = StudyAccount(terms=terms, signers=1 + ("second" in row.body))
        if terms["study_hash"] in self.studies or study.round_units < 1:
            raise ValueError
        self.studies[terms["study_hash"]] = study
        self.approvals = max(self.approvals, int(terms["sequence"]))

    def _withdrawal(self, row: Row) -> None:
        self.studies[row.body["study"]].state = "withdrawn"

    def _key(self, row: Row) -> None:
        self.trainer_key = str(row.body["key"])

    def _approver(self, row: Row) -> None:
        self.second_key = str(row.body["key"])

    def _distrust(self, row: Row) -> None:
        self.distrusted.add(str(row.body["fingerprint"]))

    def _epoch(self, row: Row) -> None:
        self.epoch = max(self.epoch, int(row.body["epoch"]))

    def _draw(self, row: Row) -> None:
        study = self.studies[row.body["study"]]
        for patient in row.body["joined"]:
            self.numbers[patient] = len(self.numbers)
            self.spent.append(0)
        draw = Draw(
            run=row.body["run"],
            task_digest=row.body["task"],
            frame=int(row.body["frame"], 16),
            number=self.last_number + 1,
            salt=row.body["salt"],
            row_hash=row.hash,
        )
        if row.body["round"] in study.draws or len(self.spent) != len(self.numbers):
            raise ValueError
        charge = study.round_units
        for patient in self.members(draw.frame):
            self.spent[self.numbers[patient]] += charge
        study.draws[row.body["round"]] = draw
        self.draws[draw.number] = draw
        self.last_number = draw.number
        self.history.append((int(row.body["at_s"]), self.most_spent()))

    def _reply(self, row: Row) -> None:
        body = row.body
        study = self.studies[body["study"]]
        if body["round"] not in study.draws or body["round"] in study.replies:
            raise ValueError
        sent = Sent(
            study=body["study"],
            round=body["round"],
            digest=body["reply"],
            size=body["size"],
            at_s=body["at_s"],
        )
        study.replies[sent.round] = sent
        self.sent.append(sent)

    def _exclude(self, row: Row) -> None:
        self.excluded.add(str(row.body["patient"]))

    def _behind(self, row: Row) -> None:
        number = int(row.body["number"])
        self.alarm = max(self.alarm, number)
        self.forked |= number <= self.last_number

    def _clock(self, row: Row) -> None:
        """Earlier rows were written by a clock that was ahead: time counts from here on (``_keep_time``)."""

    def _settle(self, row: Row) -> None:
        """What may have been lost is charged to everybody, known or yet unknown, and all is closed."""
        if row.body["secret_mark"] != self.secret_mark:
            # Under another secret nobody can be recognised: all have spent what the dearest has.
            self.everyone = self.most_spent()
            self.numbers, self.spent, self.excluded = {}, [], set()
            self.secret_mark = str(row.body["secret_mark"])
        self.everyone += int(row.body["units"])
        self.last_number = self.settled_number = int(row.body["number"])
        self.history.append((int(row.body["at_s"]), self.most_spent()))
        self.alarm, self.forked = 0, False
        for study in self.studies.values():
            if study.state == "open":
                study.state = "settled"


def summary(study: StudyAccount, *, today: str) -> dict[str, Any]:
    """One study's line of a budget; losses as decimal text."""
    state = study.state
    if state == "open" and not study.is_open(today=today):
        state = "done" if len(study.draws) == study.rounds else "expired"
    drawn = study.round_units * len(study.draws)
    return {
        "study": study.terms["study_hash"],
        "epsilon": study.terms["epsilon"],
        "delta": study.terms["delta"],
        "rounds": f"{len(study.draws)}/{study.rounds}",
        "reserved": str(Decimal(study.reserved_units) / UNITS),
        "drawn": str(Decimal(drawn) / UNITS),
        "left": str(Decimal(study.reserved_units - drawn if state == "open" else 0) / UNITS),
        "bytes_out": study.sent_bytes,
        "state": state,
    }


def commitment(draw: Draw, *, secret: bytes) -> str:
    """What leaves of a ledger's head: hiding, and recognisable by the site alone.

    The first half commits to the draw's row under the row's fresh salt; the second half is a mark under
    the site's secret, by which the site knows its own commitment even when the row is lost.
    """
    salt = bytes.fromhex(draw.salt)
    text = f"oncofed ledger head {draw.number} {draw.row_hash}".encode()
    first = hmac.new(salt, text, hashlib.sha256).hexdigest()[:32]
    return first + _mark(draw.number, first, secret=secret)


def is_ours(number: int, claimed: str, *, secret: bytes) -> bool:
    """Whether this site once made the commitment ``claimed`` for its draw ``number``."""
    return hmac.compare_digest(_mark(number, claimed[:32], secret=secret), claimed[32:])


def secret_mark(secret: bytes) -> str:
    """By what a ledger recognises the secret under which its patients are named."""
    return hmac.new(secret, b"oncofed ledger secret", hashlib.sha256).hexdigest()


def _mark(number: int, first: str, *, secret: bytes) -> str:
    text = f"oncofed ledger mark {number} {first}".encode()
    return hmac.new(secret, text, hashlib.sha256).hexdigest()[:32]
