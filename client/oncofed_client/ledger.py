"""The hospital's ledger: what every patient was ever charged, and what may still be.

Approval reserves a whole study; tasks draw on it, one draw for each (study, round); nothing is ever
given back. Each act below takes its turn, checks everything (``rules``), and only then adds one durable
row (``book``, ``chain``); ``charges`` says what the rows add up to.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from oncofed_client import rules, two_persons
from oncofed_client.book import Book, Clock, LedgerHome
from oncofed_client.chain import Head, behind
from oncofed_client.charges import Charges, commitment, is_ours
from oncofed_client.lifetime import lifetime
from oncofed_client.policy import units_up
from oncofed_common.identity import PublicKey, SigningKey
from oncofed_common.wire import Head as Commitment


class Ledger:
    """An open ledger of one home. Safe for threads, and for several processes at once."""

    def __init__(self, book: Book) -> None:
        self._book = book

    @classmethod
    def create(cls, home: LedgerHome, *, clock: Clock = time.time) -> Ledger:
        """The ledger of a new home.

        Raises:
            SystemRefusal: there is one already, or it cannot be written.
        """
        Book.create(home, clock=clock)
        return cls.open(home, clock=clock)

    @classmethod
    def open(cls, home: LedgerHome, *, clock: Clock = time.time) -> Ledger:
        """The ledger of a home, every row verified.

        Raises:
            BudgetRefusal: ``ledger_behind``: rows are missing.
            SystemRefusal: ``ledger_damaged``, ``key_mismatch``, ``secret_changed``.
        """
        return cls(Book.open(home, clock=clock))

    @classmethod
    def settle(
        cls,
        home: LedgerHome,
        *,
        key: SigningKey,
        lost: Iterable[Mapping[str, Any]],
        clock: Clock = time.time,
    ) -> Ledger:
        """Go on with a ledger that lost rows; everybody pays for the most that can have been drawn.

        Args:
            key: the approver's.
            lost: terms of approvals that lie in the home and not in the ledger.
        """
        return cls(Book.settle(home, key=key, lost=lost, clock=clock))

    def close(self) -> None:
        self._book.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    # The approver's acts, by the approver's ``key``
    def next_approval(self) -> int:
        """The sequence number that the next approval must carry."""
        with self._book.seen() as charges:
            return charges.approvals + 1

    def refuse_reservation(self, terms: Mapping[str, Any]) -> None:
        """Nothing, if a study with these terms (of an approval) could be reserved now.

        Raises:
            BudgetRefusal, PolicyRefusal: see ``rules.check_reservation``.
        """
        with self._book.seen() as charges:
            self._check_reservation(charges, terms)

    def reserve(self, approval: Mapping[str, Any]) -> None:
        """Reserve a whole study, by its approval (objects ``approval`` and ``signature``; ``second``, the
        second person's signature, where the policy says ``approvers = 2``).

        Raises:
            IdentityRefusal: not signed by the approver. PolicyRefusal: ``second_missing``, ``same_person``,
                ``no_second_approver``. Otherwise as ``refuse_reservation``.
        """
        terms, signature = dict(approval["approval"]), str(approval["signature"])
        approver = self._book.home.approver
        approver.verify("approval", terms, signature)
        with self._book.turn() as charges:
            second = two_persons.seconded(
                charges, approval, policy=self._book.policy(), approver=approver
            )
            self._check_reservation(charges, terms)
            self._book.append("approval", {"approval": terms, "signature": signature, **second})

    def resolve(self, prefix: str) -> str:
        """The hash of the one study approved here that begins with ``prefix``.

        Raises:
            PolicyRefusal: code ``unknown_study``.
        """
        with self._book.seen() as charges:
            return rules.named(charges, prefix)

    def withdraw(self, study_hash: str, *, key: SigningKey) -> None:
        """Take an approval back; what was drawn stays charged."""
        with self._book.turn() as charges:
            if rules.known(charges, study_hash).state == "open":
                self._book.append("withdrawal", {"study": study_hash}, approver=key)

    def exclude(self, lifelong: str, *, key: SigningKey) -> None:
        """Never draw this patient again."""
        with self._book.turn() as charges:
            if lifelong not in charges.excluded:
                self._book.append("exclude", {"patient": lifelong}, approver=key)

    def distrust(self, fingerprint: str, *, key: SigningKey) -> None:
        """Never again accept a task under this coordinator's key."""
        with self._book.turn() as charges:
            if fingerprint not in charges.distrusted:
                self._book.append("distrust", {"fingerprint": fingerprint}, approver=key)

    def rotate(self, new: SigningKey, *, key: SigningKey) -> None:
        """From the next row on the trainer key is ``new``; the old, the new and the approver sign."""
        with self._book.turn():
            self._book.append("key", self._shown(new), approver=key, then=new)

    def add_approver(self, new: SigningKey, *, key: SigningKey) -> None:
        """From the next row on the second approver is ``new``; the new key and the approver sign.

        Raises:
            PolicyRefusal: code ``same_person``.
        """
        with self._book.turn():
            two_persons.refuse_same(new.public, self._book.home.approver)
            self._book.append("approver", self._shown(new), approver=key)

    def second_approver(self) -> PublicKey:
        """The second approver's key.

        Raises:
            PolicyRefusal: code ``no_second_approver``.
        """
        with self._book.seen() as charges:
            return two_persons.second_key(charges)

    def trust_clock(self, *, key: SigningKey) -> None:
        """Time counts from now on: the latest row was written by a clock that was ahead."""
        with self._book.turn():
            self._book.append("clock", {}, approver=key)

    # A task, from its checks to its reply

    def is_standing(self, study_hash: str) -> bool:
        """Whether the study is approved, not withdrawn and not settled away."""
        with self._book.seen() as charges:
            study = charges.studies.get(study_hash)
            return study is not None and study.state == "open"

    def refuse_distrusted(self, fingerprint: str) -> None:
        """Nothing, for a key that is not distrusted.

        Raises:
            IdentityRefusal: code ``bad_certificate``.
        """
        with self._book.seen() as charges:
            rules.refuse_distrusted(charges, fingerprint)

    def refuse_alone(self, terms: Mapping[str, Any]) -> None:
        """Nothing, if as many persons as the policy demands today signed these terms of an approval.

        Raises:
            PolicyRefusal: code ``not_approved``.
        """
        with self._book.seen() as charges:
            two_persons.refuse_alone(charges, terms, policy=self._book.policy())

    def refuse_old(self, study_hash: str, *, run: str, round: int, task_digest: str) -> None:
        """Nothing, for the next round of a standing study's one run, or for a draw's own task again.

        Raises:
            PolicyRefusal: codes ``not_approved``, ``withdrawn``.
            WireRefusal: codes ``task_conflict``, ``wrong_run``, ``wrong_round``.
        """
        with self._book.seen() as charges:
            study = rules.standing(charges, study_hash)
            rules.refuse_old(study, run=run, round=round, task_digest=task_digest)

    def refuse_alarm(self) -> None:
        """Nothing, unless somebody showed a head that this ledger does not know.

        Raises:
            BudgetRefusal: code ``ledger_behind``.
        """
        with self._book.seen() as charges:
            rules.refuse_alarm(charges)

    def check_head(self, head: Commitment | None, *, carried: bool = False) -> None:
        """Compare what a task says of this ledger, or its courier, with what the ledger says itself.

        A commitment that this site made and the ledger does not know stops everything until the
        approver settles it; one that this site never made is a lie: it refuses a task, and in a courier's
        folder (``carried``) nothing.

        Raises:
            BudgetRefusal: code ``ledger_behind``.
        """
        with self._book.turn() as charges:
            rules.refuse_alarm(charges)
            if head is not None and head.sequence > charges.settled_number:
                self._check_head(charges, head, carried=carried)

    def keep_epoch(self, revocation_epoch: int) -> None:
        """Remember the coordinator's revocation epoch.

        Raises:
            IdentityRefusal: one lower than one seen before (``bad_certificate``).
        """
        with self._book.turn() as charges:
            rules.refuse_lower_epoch(charges, revocation_epoch)
            if revocation_epoch > charges.epoch:
                self._book.append("epoch", {"epoch": revocation_epoch})

    def may_be_drawn(self, study_hash: str, patients: Sequence[str]) -> list[str]:
        """Those of ``patients`` (lifelong keys) who are not excluded and have room for one round."""
        with self._book.seen() as charges:
            study = rules.standing(charges, study_hash)
            return rules.frame_of(charges, study, patients, policy=self._book.policy())

    def draw(
        self, study_hash: str, *, run: str, round: int, task_digest: str, frame: Sequence[str]
    ) -> list[str]:
        """Charge one round to everybody in the frame; the same task again charges nobody.

        Returns:
            Those who were charged, and nobody else may be drawn: who is excluded or has no room left
            is left out here too.

        Raises:
            BudgetRefusal: not reserved or all drawn (``budget``), ``ledger_behind``.
            WireRefusal: ``task_conflict``, ``wrong_run``, ``wrong_round``.
            PolicyRefusal: withdrawn, or over the bytes of a day.
            SystemRefusal: the disk, or a reply that was recorded and is gone (``reply_lost``).
        """
        with self._book.turn() as charges:
            study, policy = rules.standing(charges, study_hash), self._book.policy()
            two_persons.refuse_alone(charges, study.terms, policy=policy)
            rules.refuse_alarm(charges)
            rules.refuse_old(study, run=run, round=round, task_digest=task_digest)
            rules.refuse_lost_reply(study, round)
            if round not in study.draws:
                rules.check_draw(
                    charges,
                    study,
                    round,
                    policy=policy,
                    today=self._book.today(),
                    now_s=self._book.now_s(),
                )
                patients = rules.frame_of(charges, study, frame, policy=policy)
                joined, bits = charges.bits_of(patients)
                fields = {
                    "study": study_hash,
                    "run": run,
                    "round": round,
                    "task": task_digest,
                    "joined": joined,
                    "frame": format(bits, "x"),
                    "salt": secrets.token_hex(32),
                }
                self._book.append("draw", fields)
            return charges.members(study.draws[round].frame)

    def is_drawn(self, study_hash: str, *, round: int, task_digest: str) -> bool:
        """Whether this very task stands charged."""
        with self._book.seen() as charges:
            study = charges.studies.get(study_hash)
            found = study.draws.get(round) if study else None
            return found is not None and found.task_digest == task_digest

    def charged_in(self, study_hash: str, *, round: int) -> list[str]:
        """Who was charged for a round; nobody where nothing was drawn."""
        with self._book.seen() as charges:
            found = rules.known(charges, study_hash).draws.get(round)
            return charges.members(found.frame) if found else []

    def commit_head(self) -> Commitment | None:
        """What may leave of the head: a hiding commitment to the newest draw, if there is one."""
        with self._book.seen() as charges:
            newest = charges.draws.get(charges.last_number)
            if newest is None:
                return None
            hidden = commitment(newest, secret=self._book.secret)
            return Commitment(sequence=newest.number, commitment=hidden)

    def sent_bytes(self, study_hash: str) -> int:
        """Size of all replies to a study that may have left; it grows, and outlives every restart."""
        with self._book.seen() as charges:
            return rules.known(charges, study_hash).sent_bytes

    def record_reply(self, study_hash: str, *, round: int, reply_digest: str, size: int) -> None:
        """Note that a stored reply (``size`` bytes) may leave; noting it again changes nothing.

        Raises:
            BudgetRefusal: nothing was drawn for it. WireRefusal: another reply (``task_conflict``).
        """
        with self._book.turn() as charges:
            study = rules.known(charges, study_hash)
            if round not in study.draws:
                raise rules.no_budget("a reply for a round that was never drawn")
            earlier = study.replies.get(round)
            if earlier is None:
                fields = {"study": study_hash, "round": round, "reply": reply_digest, "size": size}
                self._book.append("reply", fields)
            elif earlier.digest != reply_digest:
                raise rules.conflict("a second reply for one round", code="task_conflict")

    # Reading

    def latest_s(self) -> int:
        """The latest time of a row, seconds since 1970; now is never less."""
        with self._book.seen() as charges:
            return charges.latest_s

    def head(self) -> Head:
        """Sequence, hash and signature of the last row."""
        with self._book.seen():
            return self._book.head()

    def spent_by_patient(self) -> dict[str, Decimal]:
        """Rényi loss at the ledger's order that each known patient was ever charged."""
        with self._book.seen() as charges:
            return {patient: rules.loss(charges.spent_by(patient)) for patient in charges.numbers}

    def exhausted(self, patients: Sequence[str], *, charge: Decimal) -> list[str]:
        """Those for whom a further Rényi loss of ``charge`` would pass the policy's lifetime."""
        with self._book.seen() as charges:
            room = self._book.policy().room_units
            return charges.exhausted(patients, charge=units_up(charge), room=room)

    def excluded(self) -> frozenset[str]:
        """Lifelong keys of those who withdrew their consent."""
        with self._book.seen() as charges:
            return frozenset(charges.excluded)

    def budget(self) -> dict[str, Any]:
        """What was reserved and spent, by study and for the most-charged patient: see ``lifetime``."""
        with self._book.seen() as charges:
            return lifetime(charges, policy=self._book.policy(), today=self._book.today())

    def spent_over_time(self) -> list[tuple[int, Decimal]]:
        """After each charge, its time (seconds since 1970) and the most-charged patient's Rényi loss."""
        with self._book.seen() as charges:
            return [(at_s, rules.loss(units)) for at_s, units in charges.history]

    def left(self) -> list[dict[str, Any]]:
        """Everything that left or may have, in order: study, round, digest, size (bytes), at_s."""
        with self._book.seen() as charges:
            return [asdict(sent) for sent in charges.sent]

    def _shown(self, new: SigningKey) -> dict[str, Any]:
        """What a row says of a new key: that whoever holds it was there."""
        proven = {"previous": self._book.last.hash, "key": new.public.hex}
        return {"key": new.public.hex, "proof": new.sign("ledger-row", proven)}

    def _check_reservation(self, charges: Charges, terms: Mapping[str, Any]) -> None:
        rules.check_reservation(
            charges,
            terms,
            policy=self._book.policy(),
            site=self._book.home.site,
            today=self._book.today(),
        )

    def _check_head(self, charges: Charges, head: Commitment, *, carried: bool) -> None:
        known = charges.draws.get(head.sequence)
        if known and commitment(known, secret=self._book.secret) == head.commitment:
            return
        if is_ours(head.sequence, head.commitment, secret=self._book.secret):
            fields = {"number": head.sequence, "commitment": head.commitment}
            self._book.append("behind", fields)
            raise behind("a head of this site which the ledger does not know")
        if not carried:
            raise behind("a task with a head that this site never stated")
