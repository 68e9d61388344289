"""Whether a reply may be counted: who signed it, which task it answers, what it holds.

A trainer that could not read its task refuses it by digest alone, without study, run and round.
``open_reply`` fails on what any courier or network could have caused, so the task is sent again.
What ``read_update`` refuses, the trainer signed: sending the task again would bring the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from oncofed_common.durable import write_atomic
from oncofed_common.errors import WireRefusal
from oncofed_common.identity import PublicKey, canonical, digest
from oncofed_common.study import Study
from oncofed_common.tensors import unpack_tensors
from oncofed_common.wire import (
    NO_DIGEST,
    Reply,
    Task,
    read_reply,
    unframe,
    verify_reply,
)


@dataclass(frozen=True, kw_only=True)
class SignedReply:
    """A reply whose signature holds and whose task is the one that was sent."""

    reply: Reply
    tensors: bytes
    frame: bytes

    @cached_property
    def digest(self) -> str:
        return digest(self.frame)


def spell_sig(body: bytes, *, reply_digest: str) -> bytes:
    """The contents of ``SITE.sig``: what a stored reply frame answers, is, and is signed with.

    Args:
        reply_digest: the digest of ``body``, known already.

    Raises:
        WireRefusal: bytes that are not a reply frame.
    """
    reply, signature = read_reply(unframe(body, cap_bytes=len(body))[0])
    fields = {
        "task_digest": reply.task_digest,
        "reply_digest": reply_digest,
        "signature": signature,
    }
    return canonical(fields)


def open_reply(
    body: bytes,
    *,
    task: Task,
    task_digest: str,
    study: Study,
    approver_key: PublicKey,
    now_s: int,
) -> SignedReply:
    """The reply in ``body``, if the trainer to which ``task`` was addressed signed it for that task.

    Raises:
        WireRefusal: codes ``too_large``, ``malformed``, ``unknown_version``, ``wrong_study``,
            ``wrong_run``, ``wrong_round``, ``wrong_site``, ``task_conflict``.
        IdentityRefusal: codes ``bad_signature``, ``bad_certificate``.
    """
    envelope, tensors = unframe(body, cap_bytes=study.outbound.bytes_per_round)
    reply, certificate = verify_reply(envelope, approver_key=approver_key, now_s=now_s)
    key = PublicKey(certificate.subject)
    named = (reply.study_hash, reply.run, reply.round)
    unread = reply.code != "ok" and named == (NO_DIGEST, NO_DIGEST[:32], 0)
    checks = (
        ("wrong_site", reply.site == task.site == certificate.holder),
        ("bad_certificate", key.fingerprint == task.trainer_key),
        ("wrong_study", unread or reply.study_hash == task.study_hash),
        ("wrong_run", unread or reply.run == task.run),
        ("wrong_round", unread or reply.round == task.round),
        ("task_conflict", reply.task_digest == task_digest),
    )
    for code, holds in checks:
        if not holds:
            raise _refusal("a reply to another task, or by another trainer", code=code)
    return SignedReply(reply=reply, tensors=tensors, frame=body)


def read_update(signed: SignedReply, *, study: Study) -> dict[str, NDArray[Any]] | None:
    """The int32 update of a reply, its metrics with it, or None when the trainer said why there is none.

    Raises:
        WireRefusal: codes ``malformed``, ``wrong_tensors``.
    """
    reply = signed.reply
    if reply.code != "ok":
        if signed.tensors or reply.payload_kind != "none" or reply.update_digest != NO_DIGEST:
            raise _refusal("a refusal that carries an update", code="malformed")
        return None
    if reply.payload_kind != "plain" or reply.update_digest != digest(signed.tensors):
        raise _refusal("an update that its envelope does not bind", code="malformed")
    return unpack_tensors(signed.tensors, schema=study.reply_terms, dtype="int32")


def store_reply(folder: Path, signed: SignedReply) -> None:
    """Make a reply durable, before anything says that it is counted.

    Raises:
        SystemRefusal: the disk.
    """
    write_atomic(folder / f"{signed.reply.site}.reply", signed.frame)


def _refusal(found: str, *, code: str) -> WireRefusal:
    return WireRefusal(
        found,
        allowed="the reply of the trainer that the task names, to exactly that task",
        next="look at the site's audit for this round",
        code=code,
    )
