"""An open ledger file and what it adds up to: how rows are read, verified, added and settled.

Opening verifies every row (chain, trainer's signature, and the approver's where one is due) and compares
with the copied head. Every act takes its **turn**: one writer at a time, who first takes in what others
wrote. A ledger that lost rows opens no more until the approver settles it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from oncofed_client.chain import (
    Chain,
    CopiedHead,
    Head,
    Row,
    behind,
    damaged,
    make_row,
    read_head,
    refuse_full,
    verify_row,
    write_head,
)
from oncofed_client.charges import Charges, StudyAccount, secret_mark
from oncofed_client.policy import Policy
from oncofed_common.durable import sync_folder
from oncofed_common.errors import (
    BudgetRefusal,
    IdentityRefusal,
    PolicyRefusal,
    SystemRefusal,
)
from oncofed_common.identity import PublicKey, SigningKey

FORMAT = 1
SIGNED_BY_APPROVER = frozenset(
    {"withdrawal", "exclude", "distrust", "key", "approver", "settle", "clock"}
)

Clock = Callable[[], float]
"""Seconds since 1970, UTC."""


@runtime_checkable
class LedgerHome(Protocol):
    """What a ledger needs of its site's home."""

    @property
    def site(self) -> str: ...
    @property
    def approver(self) -> PublicKey: ...
    @property
    def ledger_path(self) -> Path: ...
    @property
    def head_path(self) -> Path: ...
    def trainer_key(self) -> SigningKey: ...
    def secret(self) -> bytes: ...
    def policy(self) -> Policy: ...


class Book:
    """An open ledger. Safe for the threads of one process and for several processes at once."""

    def __init__(self, home: LedgerHome, *, clock: Clock) -> None:
        if not home.ledger_path.exists():
            raise behind("a home without its ledger")
        self.home = home
        self.secret = home.secret()
        self.clock = clock
        self._key = home.trainer_key()
        self._guard = threading.RLock()
        self._charges = Charges()
        self._last: Row | None = None
        self._chain = Chain(home.ledger_path)

    @classmethod
    def create(cls, home: LedgerHome, *, clock: Clock) -> None:
        """Write the first row of a new home's ledger; it fixes the filter order for life.

        Raises:
            SystemRefusal: ``ledger_exists``, ``disk_full``, ``ledger_unwritable``.
        """
        key = home.trainer_key()
        body = {
            "format": FORMAT,
            "site": home.site,
            "trainer_key": key.public.hex,
            "approver_key": home.approver.hex,
            "filter_order": home.policy().filter_order,
            "secret_mark": secret_mark(home.secret()),
            "at_s": int(clock()),
        }
        refuse_full(home.head_path.parent)
        first = make_row("init", body, after=None, key=key)
        Chain.create(home.ledger_path, first).close()
        write_head(home.head_path, first, approvals=0, draws=0, everyone=0, key=key)

    @classmethod
    def open(cls, home: LedgerHome, *, clock: Clock) -> Book:
        """The home's ledger, every row verified.

        Raises:
            BudgetRefusal: ``ledger_behind``: it does not reach its copied head.
            SystemRefusal: ``ledger_damaged``, or the home's keys are others.
        """
        book = cls(home, clock=clock)
        with book._closed_on_error(), book.turn():
            _set_aside(home).unlink(missing_ok=True)  # what a settlement that died has left
            book._refuse_other_keys()
        return book

    @classmethod
    def settle(
        cls,
        home: LedgerHome,
        *,
        key: SigningKey,
        lost: Iterable[Mapping[str, Any]],
        clock: Clock,
    ) -> Book:
        """Go on with a ledger that lost rows, or whose patients were named under another secret.

        Everybody, known or not, is charged all that could have been drawn: what was left of every open
        study, and the whole of every ``lost`` one. The copied head says how many studies and draws there
        were, and what earlier settlements charged; where it does not account for all, or this ledger used the
        number of a draw that another copy of it showed, everybody is charged the whole lifetime: a study of
        which nobody knows any more may have cost that. All open studies end, and the count of draws goes on
        behind any that can have been shown. Exclusions that stood in lost rows must be made again, and under
        another secret all of them.

        Args:
            key: the approver's.
            lost: terms of approvals that lie in the home and not in the ledger.
        """
        book = cls(home, clock=clock)
        with book._closed_on_error(), book._guard, book._chain.turn():
            book._catch_up()
            charges = book._charges
            missing = [
                StudyAccount(terms=terms)
                for terms in lost
                if terms["study_hash"] not in charges.studies
            ]
            units, rounds = charges.undrawn()
            units += sum(study.reserved_units for study in missing)
            rounds += sum(study.rounds for study in missing)
            copied = book._trusted_copy()
            approvals = {int(study.terms["sequence"]) for study in missing} | {
                int(study.terms["sequence"]) for study in charges.studies.values()
            }
            whole = (
                copied is not None
                and approvals >= set(range(1, copied.approvals + 1))
                and copied.draws >= charges.alarm
                and copied.everyone == charges.everyone
                and not charges.forked
            )
            shown = max(charges.alarm, copied.draws if copied else 0)
            fields = {
                "units": units if whole else max(units, book.policy().room_units),
                "number": shown if whole else max(shown, charges.last_number + rounds),
                "secret_mark": secret_mark(book.secret),
            }
            _refuse_other_approver(key, home.approver)
            refuse_full(home.head_path.parent)
            if home.head_path.exists():  # it may hold heads of rows that are gone
                home.head_path.rename(_set_aside(home))
                sync_folder(home.head_path.parent)
            book.append("settle", fields, approver=key)
            _set_aside(home).unlink(missing_ok=True)
            book._refuse_other_keys()
        return book

    def close(self) -> None:
        self._chain.close()

    @contextmanager
    def turn(self) -> Iterator[Charges]:
        """The right to add rows, with everything in view, the copied head included."""
        with self._guard, self._chain.turn():
            self._catch_up()
            self._match_copied_head()
            yield self._charges

    @contextmanager
    def seen(self) -> Iterator[Charges]:
        """What all rows add up to now, for reading."""
        with self._guard:
            self._catch_up()
            yield self._charges

    def append(
        self,
        kind: str,
        fields: Mapping[str, Any],
        *,
        approver: SigningKey | None = None,
        then: SigningKey | None = None,
    ) -> None:
        """Add one durable row in one's turn, and copy its head; afterwards ``then`` signs.

        Raises:
            SystemRefusal: ``disk_full``, ``ledger_unwritable``.
            IdentityRefusal: ``bad_key``: ``approver`` is not this site's approver.
        """
        last = self.last
        at_s = self.clock() if kind == "clock" else self.now_s()
        body = {**fields, "at_s": int(at_s)}
        if approver is not None:
            _refuse_other_approver(approver, self.home.approver)
            body["approver"] = approver.sign(
                "ledger-row", {"kind": kind, "body": dict(body), "previous": last.hash}
            )
        row = make_row(kind, body, after=last, key=self._key)
        refuse_full(self.home.head_path.parent)
        self._chain.add(row)
        self._key = then or self._key
        self._catch_up()
        self._copy_head()

    def rows(self) -> list[Row]:
        """Every row, oldest first, as it was verified."""
        with self.seen():
            return [row for row in self._chain.rows(after=0) if row.sequence <= self.last.sequence]

    @property
    def last(self) -> Row:
        """The newest row that was taken in."""
        if self._last is None:
            raise damaged("a ledger without its first row")
        return self._last

    def head(self) -> Head:
        """Sequence, hash and signature of the newest row."""
        return Head(sequence=self.last.sequence, hash=self.last.hash, signature=self.last.signature)

    def policy(self) -> Policy:
        """The site's limits of today.

        Raises:
            PolicyRefusal: not readable, or a filter order other than the ledger's.
        """
        policy, fixed = self.home.policy(), int(self._charges.init["filter_order"])
        if policy.filter_order != fixed:
            raise PolicyRefusal(
                f"a filter order of {policy.filter_order} in the policy",
                allowed=f"{fixed}, which the ledger fixed at init",
                next="write the old order back: losses at two orders cannot be added",
                code="filter_order",
            )
        return policy

    def now_s(self) -> float:
        """Seconds since 1970, and never less than the latest row says: a clock that is set back revives
        nothing that was over."""
        return float(max(self.clock(), self._charges.latest_s))

    def today(self) -> str:
        """The ISO date (UTC)."""
        return datetime.fromtimestamp(self.now_s(), tz=UTC).date().isoformat()

    def _catch_up(self) -> None:
        """Verify and take in the rows that were added since, by whomever."""
        if self._last is not None and not self._chain.holds(self._last):
            raise behind("a ledger from which rows vanished")
        for row in self._chain.rows(after=self._last.sequence if self._last else 0):
            signer = self._charges.trainer_key if self._last else row.body.get("trainer_key")
            verify_row(row, after=self._last, key=_key_in(signer))
            self._verify_other_signatures(row)
            self._charges.apply(row)
            self._last = row
        if self._last is None:
            raise damaged("a ledger without its first row")

    def _verify_other_signatures(self, row: Row) -> None:
        try:
            if row.kind == "approval":
                self.home.approver.verify(
                    "approval", row.body["approval"], str(row.body["signature"])
                )
                if "second" in row.body:
                    _key_in(self._charges.second_key).verify(
                        "approval", row.body["approval"], str(row.body["second"])
                    )
            if row.kind in SIGNED_BY_APPROVER:
                fields = {name: row.body[name] for name in row.body if name != "approver"}
                signed = {"kind": row.kind, "body": fields, "previous": row.previous}
                self.home.approver.verify("ledger-row", signed, str(row.body["approver"]))
            if row.kind in ("key", "approver"):
                proven = {"previous": row.previous, "key": row.body["key"]}
                _key_in(row.body["key"]).verify("ledger-row", proven, str(row.body["proof"]))
            if row.kind == "approver" and row.body["key"] == self.home.approver.hex:
                raise damaged(f"row {row.sequence} in which the approver is the second one as well")
        except (IdentityRefusal, KeyError, TypeError):
            raise damaged(f"row {row.sequence} that the approver did not sign") from None

    def _match_copied_head(self) -> None:
        """The copied head must be one of our rows; a copy that a crash left behind is renewed."""
        # A settlement that died behind its row has a head to write, and nothing else.
        settled = self.last.kind == "settle" and _set_aside(self.home).exists()
        copied = None if settled else read_head(self.home.head_path)
        if copied is None:
            if not settled and (self.last.sequence > 1 or _set_aside(self.home).exists()):
                raise behind("a ledger whose copied head is missing")
        elif copied.hash == self.last.hash:
            return
        elif not self._is_row(copied):
            raise behind(f"a ledger of {self.last.sequence} rows whose copied head says otherwise")
        self._copy_head()

    def _copy_head(self) -> None:
        """Keep the newest row's head apart from the ledger."""
        write_head(
            self.home.head_path,
            self.last,
            approvals=self._charges.approvals,
            draws=self._charges.last_number,
            everyone=self._charges.everyone,
            key=self._key,
        )

    def _trusted_copy(self) -> CopiedHead | None:
        """The copied head, if this site's trainer signed it; also one that a settlement, which then died, had
        set aside."""
        for path in (self.home.head_path, _set_aside(self.home)):
            try:
                copied = read_head(path)
                if copied is not None:
                    self._key.public.verify("ledger-head", copied.payload(), copied.signature)
                    return copied
            except (BudgetRefusal, IdentityRefusal):
                continue
        return None

    def _is_row(self, head: CopiedHead) -> bool:
        found = self._chain.rows(after=head.sequence - 1)
        return bool(found) and found[0].sequence == head.sequence and found[0].hash == head.hash

    def _refuse_other_keys(self) -> None:
        charges = self._charges
        if charges.trainer_key != self._key.public.hex or charges.init["site"] != self.home.site:
            raise SystemRefusal(
                "a ledger of another trainer key or site",
                allowed="the ledger that grew in this home",
                next="restore home and ledger together; where a rotate was interrupted, rotate again",
                code="key_mismatch",
            )
        if charges.secret_mark != secret_mark(self.secret):
            raise SystemRefusal(
                "a site secret under which this ledger's patients cannot be recognised",
                allowed="the secret that init made",
                next="restore the secret; without it the approver must settle for everybody",
                code="secret_changed",
            )

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


def _set_aside(home: LedgerHome) -> Path:
    """Where a settlement keeps the copied head until its own row has one."""
    return home.head_path.with_suffix(".settling")


def _refuse_other_approver(key: SigningKey, approver: PublicKey) -> None:
    if key.public != approver:
        raise IdentityRefusal(
            "an act of the approver under another key",
            allowed="the approver key of this site",
            next="use the key that init made",
            code="bad_key",
        )


def _key_in(value: object) -> PublicKey:
    try:
        return PublicKey(str(value))
    except IdentityRefusal:
        raise damaged("a row of the ledger with a key that is none") from None
