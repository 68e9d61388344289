"""From a task to a reply: every check, in one order, before a single patient is drawn.

    signature, addressee -> ledger's head -> run, round -> stored reply? -> approval -> time -> weights
    | record names our reply -> ledger (draw) -> train -> door -> stored durably -> answered at a slot

What stands before the bar asks no patient, nor whether training has ended, and its refusals leave at once,
also while another task trains. Whatever comes of the rest leaves at a slot of the site's own: a whole
multiple of the study's ``reply_after_s`` after the task came, so that it cannot be told how long it took.

The head comes before the approval: a backup that lost the approval must not hide what it lost. A task that
was answered before gets the stored bytes. A different task for a round that was answered
or drawn is refused. An attempt that died in training is repeated with fresh noise under the same draw:
nothing had left. Once training ended, whatever the door says of it is the round's one result.
"""

from __future__ import annotations

import logging
import math
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from numpy.typing import NDArray

from oncofed_client.approval import Approved, read_approved, refuse_mispriced
from oncofed_client.home import Home
from oncofed_client.isolation import Isolation, may_serve
from oncofed_client.ledger import Ledger
from oncofed_client.trainer import door, spool
from oncofed_client.trainer.answers import Speaker, refusal_reply, update_reply
from oncofed_client.trainer.faults import note_faults
from oncofed_client.trainer.log import note_clock, where
from oncofed_client.trainer.refused import note_refusal
from oncofed_client.trainer.spool import Stored
from oncofed_client.trainer.training import Round
from oncofed_common.errors import Refusal, SystemRefusal, WireRefusal
from oncofed_common.identity import Certificate, PublicKey, digest
from oncofed_common.study_terms import METRICS
from oncofed_common.tensors import reply_bytes, to_units, unpack_tensors
from oncofed_common.wire import (
    NO_DIGEST,
    Code,
    Participation,
    Task,
    read_task,
    unframe,
)

CLOCK_SKEW_S = 300
"""How far a coordinator's clock may be ahead of ours."""

ENVELOPE_ROOM_BYTES = 64 * 1024
SPARE_DISK_BYTES = 16 * 1024 * 1024
WIRE_CODES = frozenset(get_args(Code))

Weights = Mapping[str, NDArray[Any]]
Work = Callable[[Approved, Weights, int], Round]
"""Train one round of an approved study from these weights: the only thing that touches patients."""

Frame = Callable[[Approved], list[str]]
"""Lifelong keys of everybody who could be drawn in this study now."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A task that this site may answer."""

    task: Task
    task_digest: str
    approved: Approved
    weights: Weights


class TaskDesk:
    """Answers tasks, one at a time, for one home.

    Args:
        isolation: of this very process, as ``network_isolation`` finds it; asked for each task.
        work: trains; called at most once a draw unless an attempt died.
        frame: who could be drawn.
        clock: seconds since 1970, UTC.
        log: from ``open_log``.
    """

    def __init__(
        self,
        home: Home,
        ledger: Ledger,
        *,
        isolation: Callable[[], Isolation],
        work: Work,
        frame: Frame,
        clock: Callable[[], float],
        log: logging.Logger,
    ) -> None:
        self._home = home
        self._ledger = ledger
        self._isolation = isolation
        self._work = work
        self._frame = frame
        self._clock = clock
        self._key = home.trainer_key()
        self._speaker = Speaker(
            site=home.site, virtual=home.virtual, certificate=home.trainer_certificate()
        )
        self._spool = home.trainer / "spool"
        self._log = log
        self._busy = threading.Lock()

    def answer(self, body: bytes) -> tuple[bytes, float]:
        """The reply to a task's body, and the time (seconds since 1970) at which it may leave."""
        came_s = self._clock()
        task_digest = digest(body)
        task: Task | None = None
        try:
            envelope, tensors = unframe(body, cap_bytes=self._home.policy().bytes_in_cap)
            task, signature = read_task(envelope)
            now_s = int(max(came_s, self._ledger.latest_s()))
            self._verify_signature(task, signature, now_s=now_s)
            self._ledger.check_head(task.ledger_head)
            self._ledger.refuse_old(
                task.study_hash, run=task.run, round=task.round, task_digest=task_digest
            )
            stored = self._recall(task, task_digest=task_digest)
            if stored is not None:
                return stored.body, stored.leaves_at_s
            verified = self._verify(task, tensors, task_digest=task_digest, now_s=now_s)
        except Exception as error:  # noqa: BLE001  one code for what is no refusal of ours
            return self._refused(task, error, body=body, task_digest=task_digest), 0.0
        self._note("accepted", task, None)
        note_clock(self._log, self._home.site, behind_s=int(task.not_before_s - came_s))
        with self._busy:
            return self._answer(verified, body=body, came_s=came_s)

    def _answer(self, verified: Verified, *, body: bytes, came_s: float) -> tuple[bytes, float]:
        task, task_digest = verified.task, verified.task_digest
        slot_s = verified.approved.study.outbound.reply_after_s
        try:
            stored = self._recall(task, task_digest=task_digest)
            if stored is not None:
                return stored.body, stored.leaves_at_s
            self._refuse_unnamed(task)
            self._draw(verified)
        except Exception as error:  # noqa: BLE001  one code for what is no refusal of ours
            leaves_at_s = leaves_at(came_s, now_s=self._clock(), slot_s=slot_s)
            reply = self._refused(task, error, body=body, task_digest=task_digest, at_s=leaves_at_s)
            return reply, leaves_at_s
        try:
            done = self._work(verified.approved, verified.weights, task.round)
            reply = self._result(verified, done, came_s=came_s)
            stored = Stored(
                task_digest=task_digest,
                run=task.run,
                leaves_at_s=leaves_at(came_s, now_s=self._clock(), slot_s=slot_s),
                body=reply,
            )
            self._keep(task, stored)
        except Exception as error:  # noqa: BLE001  what happened may depend on data
            leaves_at_s = leaves_at(came_s, now_s=self._clock(), slot_s=slot_s)
            self._note("failed", task, error, at_s=leaves_at_s)
            reply = self._refusal(task, "unavailable", task_digest=task_digest)
            note_refusal(self._log, "unavailable", request=body, sent=reply, at_s=leaves_at_s)
            return reply, leaves_at_s
        return stored.body, stored.leaves_at_s

    def _recall(self, task: Task, *, task_digest: str) -> Stored | None:
        """What was answered before, if it was to this very task."""
        stored = spool.recall(self._spool, study_hash=task.study_hash, round_number=task.round)
        if stored is None:
            return None
        if stored.task_digest != task_digest:
            raise _refusal("a second task for an answered round", code="task_conflict")
        if not self._ledger.is_standing(task.study_hash):
            raise _refusal("a reply of a study whose approval was taken back", code="withdrawn")
        self._record(task, stored)
        self._note("repeated", task, None, at_s=stored.leaves_at_s)
        return stored

    def _keep(self, task: Task, stored: Stored) -> None:
        spool.store(self._spool, study_hash=task.study_hash, round_number=task.round, stored=stored)
        self._record(task, stored)
        self._note("answered", task, None, at_s=stored.leaves_at_s)

    def _record(self, task: Task, stored: Stored) -> None:
        self._ledger.record_reply(
            task.study_hash,
            round=task.round,
            reply_digest=digest(stored.body),
            size=len(stored.body),
        )

    def _verify_signature(self, task: Task, signature: str, *, now_s: int) -> None:
        certificate = Certificate.from_dict(task.task_certificate)
        issuer = self._home.coordinator()
        self._ledger.refuse_distrusted(issuer.fingerprint)
        key = certificate.check(issuer=issuer, purpose="task", now_s=now_s)
        key.verify("task", task.payload(), signature)
        if task.site != self._home.site or task.trainer_key != self._key.public.fingerprint:
            raise _refusal("a task for another site or key", code="wrong_site")

    def _verify(self, task: Task, tensors: bytes, *, task_digest: str, now_s: int) -> Verified:
        approved = read_approved(self._home, task.study_hash, now_s=now_s)
        study = approved.study
        self._ledger.refuse_alone(approved.approval.payload)
        state = self._isolation()
        if not may_serve(state, virtual=self._home.virtual, signed=approved.isolation):
            raise _refusal("a study that was approved for another trainer", code="not_approved")
        if not task.not_before_s <= now_s + CLOCK_SKEW_S or not now_s < task.expires_s:
            raise _refusal("a task out of its time", code="expired")
        if task.reply_at_s != task.not_before_s + study.outbound.reply_after_s:
            raise _refusal("another reply slot than the study's", code="malformed")
        if task.round > study.training.rounds:
            raise _refusal("a round beyond the study's last", code="wrong_round")
        if task.schema_digest != study.schema_digest or task.weights_digest != digest(tensors):
            raise _refusal("tensors other than the envelope names", code="wrong_tensors")
        self._ledger.keep_epoch(task.revocation_epoch)
        self._check_record(task, now_s=now_s)
        refuse_mispriced(study)
        weights = unpack_tensors(tensors, schema=study.schema_terms, dtype="float32")
        return Verified(task=task, task_digest=task_digest, approved=approved, weights=weights)

    def _check_record(self, task: Task, *, now_s: int) -> None:
        """The record of the round before must be signed, and continue the run."""
        if task.round == 1:
            if task.participation is not None or task.participation_digest != NO_DIGEST:
                raise _refusal("a first round with a record before it", code="wrong_round")
            return
        signed = task.participation
        if signed is None or signed.record.digest() != task.participation_digest:
            raise _refusal("a round without the record of the one before", code="wrong_round")
        record = signed.record
        key = PublicKey(Certificate.from_dict(task.task_certificate).subject)
        key.verify("participation", record.payload(), signed.signature)
        if (record.study_hash, record.run) != (task.study_hash, task.run):
            raise _refusal("a record of another run", code="wrong_run")
        if record.round != task.round - 1 or record.weights_after != task.weights_digest:
            raise _refusal("a record that does not lead to these weights", code="wrong_round")

    def _refuse_unnamed(self, task: Task) -> None:
        """Nothing, if the record names our reply of the round before, where we gave one.

        Asked in turn, and answered at a slot: whether there is a reply tells whether training has ended.
        """
        if task.participation is None:
            return
        record = task.participation.record
        before = spool.recall(self._spool, study_hash=task.study_hash, round_number=record.round)
        if before is not None and not _names(record, self._home.site, digest(before.body)):
            raise _refusal("a record that does not name our reply", code="reply_missing")

    def _draw(self, verified: Verified) -> None:
        """Charge everybody who could be drawn, once nothing that is known by now stands in the way."""
        task, approved = verified.task, verified.approved
        self._refuse_small_cap(approved)
        self._refuse_full_disk(approved)
        self._ledger.draw(
            task.study_hash,
            run=task.run,
            round=task.round,
            task_digest=verified.task_digest,
            frame=self._frame(approved),
        )

    def _result(self, verified: Verified, done: Round, *, came_s: float) -> bytes:
        """What the door lets out of a trained round: its update, or the one word unavailable."""
        task, approved = verified.task, verified.approved
        note_faults(
            self._home.trainer, done.faults, study_hash=task.study_hash, round_number=task.round
        )
        try:
            return door.pass_update(
                update_reply(
                    self._speaker,
                    task,
                    task_digest=verified.task_digest,
                    study=approved.study,
                    head=self._ledger.commit_head(),
                    protected=done.protected,
                ),
                to_units(_told(done)),
                study=approved.study,
                key=self._key,
                cap_bytes=self._cap(approved),
                sent_bytes=self._ledger.sent_bytes(task.study_hash),
                charged=self._ledger.is_drawn(
                    task.study_hash, round=task.round, task_digest=verified.task_digest
                ),
            )
        except Exception as error:  # noqa: BLE001  its code may depend on data
            slot_s = approved.study.outbound.reply_after_s
            leaves_at_s = leaves_at(came_s, now_s=self._clock(), slot_s=slot_s)
            self._note("held_back", task, error, at_s=leaves_at_s)
            return self._refusal(task, "unavailable", task_digest=verified.task_digest)

    def _refusal(self, task: Task | None, code: str, *, task_digest: str) -> bytes:
        reply = refusal_reply(self._speaker, task, code, task_digest=task_digest)
        return door.pass_refusal(reply, key=self._key, cap_bytes=ENVELOPE_ROOM_BYTES)

    def _refused(
        self,
        task: Task | None,
        error: Exception,
        *,
        body: bytes,
        task_digest: str,
        at_s: float = 0.0,
    ) -> bytes:
        """The code of a refusal; what is no refusal of ours, or has no word on the wire, is unavailable."""
        self._note("refused" if isinstance(error, Refusal) else "broken", task, error, at_s=at_s)
        code: Code = "unavailable"
        if isinstance(error, Refusal) and error.code in WIRE_CODES:
            code = cast(Code, error.code)
        reply = self._refusal(task, code, task_digest=task_digest)
        note_refusal(self._log, code, request=body, sent=reply, at_s=at_s)
        return reply

    def _cap(self, approved: Approved) -> int:
        return min(approved.study.outbound.bytes_per_round, self._home.policy().bytes_per_round)

    def _refuse_small_cap(self, approved: Approved) -> None:
        """Refuse before anybody is charged for a reply that could not leave.

        Raises:
            WireRefusal: code ``too_large``.
        """
        coming, study = reply_bytes(approved.study.reply_terms), approved.study
        if coming > self._cap(approved):
            raise _refusal("a reply over the byte cap", code="too_large")
        if self._ledger.sent_bytes(study.hash) + coming > door.study_cap_bytes(study):
            raise _refusal("a reply over the byte cap of its study", code="too_large")

    def _refuse_full_disk(self, approved: Approved) -> None:
        """Room for the reply and the ledger's rows, before anything is drawn.

        Raises:
            SystemRefusal: code ``disk_full`` (on the wire: ``unavailable``).
        """
        wanted = 4 * self._cap(approved) + SPARE_DISK_BYTES
        free = shutil.disk_usage(self._home.trainer).free
        if free < wanted:
            raise SystemRefusal(
                f"{free} bytes free on the trainer's disk",
                allowed=f"{wanted} bytes or more",
                next="free space on the volume of the site's home",
                code="disk_full",
            )

    def _note(
        self,
        event: str,
        task: Task | None,
        error: Exception | None,
        *,
        at_s: float | None = None,
    ) -> None:
        fields: dict[str, Any] = {"event": event, "site": self._home.site}
        if at_s is not None:
            fields["at_s"] = at_s
        if task is not None:
            fields |= {"study": task.study_hash[:16], "run": task.run, "round": task.round}
        if error is not None:
            fields |= where(error) | {"incident": secrets.token_hex(4)}
        self._log.log(30 if error is not None else 20, "", extra=fields)


def _told(done: Round) -> Weights:
    """All that a round has to say: its update, and the means beside it."""
    if done.means is None:
        return done.update
    return {**done.update, METRICS: done.means.astype("float32")}


def leaves_at(came_s: float, *, now_s: float, slot_s: int) -> float:
    """The end of the slot that ``now_s`` lies in: a whole multiple, 1 or more, of ``slot_s`` after
    ``came_s``; at once where a seeded study has no slot."""
    if slot_s == 0:
        return now_s
    return came_s + slot_s * max(1, math.ceil((now_s - came_s) / slot_s))


def _names(record: Participation, site: str, reply_digest: str) -> bool:
    """Whether the record counts this very reply, or says in words why it left the site out."""
    for outcome in record.sites:
        if outcome.site == site:
            return outcome.outcome == "left_out" or outcome.reply_digest == reply_digest
    return False


def _refusal(found: str, *, code: str) -> WireRefusal:
    return WireRefusal(
        found,
        allowed="the task that the coordinator persisted for this site and round",
        next="see the trainer's log; ask the coordinator if it repeats",
        code=code,
    )
