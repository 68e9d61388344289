"""What crosses between coordinator and trainer: a task one way, a reply the other.

A message is an envelope (RFC 8785 JSON, signed) and a tensor file, framed as

    "OFD1"  u64 length of envelope  envelope  u64 length of tensors  tensors        (big endian)

The envelope binds the tensor file by digest, so that the courier between them can neither change nor
swap anything unnoticed. ``task_digest`` covers the whole frame.
"""

from __future__ import annotations

import json
import struct
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from oncofed_common.errors import IdentityRefusal, WireRefusal
from oncofed_common.identity import (
    Certificate,
    PublicKey,
    SigningKey,
    Spelled,
    canonical,
    digest,
)

WIRE_VERSION = 1
MAGIC = b"OFD1"
NO_DIGEST = "0" * 64
ENVELOPE_CAP_BYTES = 256 * 1024

Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Signature = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Total = Annotated[str, StringConstraints(pattern=r"^(0|-?[1-9][0-9]{0,18})$")]
"""A signed 64-bit sum; JSON spells no whole number beyond 2^53 exactly."""
Count = Annotated[int, Field(ge=0, lt=2**53)]
DECIMAL = r"^(0|[1-9][0-9]{0,8})(\.[0-9]{1,12})?$"
"""How epsilon and delta are written, as a pattern."""
Decimal = Annotated[str, StringConstraints(pattern=DECIMAL)]

Code = Literal[
    "ok",
    "unavailable",
    "task_conflict",
    "bad_signature",
    "bad_certificate",
    "wrong_study",
    "wrong_site",
    "wrong_round",
    "wrong_run",
    "expired",
    "wrong_tensors",
    "not_finite",
    "too_large",
    "malformed",
    "unknown_version",
    "not_approved",
    "withdrawn",
    "budget",
    "ledger_behind",
    "reply_missing",
]
"""Everything a reply can say. What could depend on data is the one word ``unavailable``."""

LeftOut = Literal["no_reply", "late", "unavailable", "refused", "bad_reply", "offline", "revoked"]
"""Why an invited site is not in a sum."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


_M = TypeVar("_M", bound=_Strict)


class Head(_Strict):
    """A salted commitment to a ledger's head: its sequence is public, its hash is not."""

    sequence: Count
    commitment: Hex64


class SiteOutcome(_Strict):
    """What became of one invited site in one round."""

    site: Name
    outcome: Literal["counted", "left_out"]
    reason: LeftOut | Literal[""]
    code: Code | Literal[""]
    reply_digest: Hex64


class Participation(_Strict):
    """Who took part in a round, who did not, and why; signed by the task key.

    ``metrics``: of each group of the study's, the exact sum over counted sites of weight x noised mean, in
    units of the wire; ``metrics_weight``: the sum of those weights.
    """

    study_hash: Hex64
    run: Hex32
    round: Count
    sites: tuple[SiteOutcome, ...]
    weights_before: Hex64
    weights_after: Hex64
    previous: Hex64
    status: Literal["complete", "partial", "failed"]
    metrics: tuple[Total, ...] = ()
    metrics_weight: Count = 0

    def payload(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def digest(self) -> str:
        return digest(canonical(self.payload()))


class SignedParticipation(_Strict):
    """A participation record and the task key's signature over it."""

    record: Participation
    signature: Signature


class Task(_Strict):
    """One round's work for one site. It can only say "round r of study h": it carries no setting."""

    wire_version: Count
    study_hash: Hex64
    run: Hex32
    round: Annotated[int, Field(ge=1, lt=2**31)]
    site: Name
    trainer_key: Hex64
    task_certificate: dict[str, Any]
    nonce: Hex64
    not_before_s: Count
    expires_s: Count
    reply_at_s: Count
    weights_digest: Hex64
    schema_digest: Hex64
    participation_digest: Hex64
    participation: SignedParticipation | None = None
    revocation_epoch: Count
    ledger_head: Head | None = None

    def payload(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)


class Charge(_Strict):
    """What the study costs, the same for every patient and every site; never one patient's."""

    epsilon: Decimal
    delta: Decimal


class Reply(_Strict):
    """A trainer's answer. ``update_digest`` binds the int32 tensors that follow it."""

    wire_version: Count
    task_digest: Hex64
    study_hash: Hex64
    run: Hex32
    round: Annotated[int, Field(ge=0, lt=2**31)]
    site: Name
    code: Code
    payload_kind: Literal["plain", "none"]
    update_digest: Hex64
    charge: Charge | None = None
    protected: Literal[0, 1]
    wheel_hash: Hex64
    ledger_head: Head | None = None
    trainer_certificate: dict[str, Any]

    def payload(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)


def seal(message: Task | Reply, key: SigningKey) -> bytes:
    """The signed envelope of ``message``."""
    label: Literal["task", "reply"] = "task" if isinstance(message, Task) else "reply"
    spelled = canonical(message.payload())
    return _envelope(spelled, key.sign(label, spelled))


def read_task(envelope: bytes) -> tuple[Task, str]:
    """The task in ``envelope`` and its signature, not verified yet.

    Raises:
        WireRefusal: codes ``malformed``, ``unknown_version``.
    """
    spelled, signature = _open(envelope)
    return _parse(Task, spelled), signature


def read_reply(envelope: bytes) -> tuple[Reply, str]:
    """The reply in ``envelope`` and its signature, not verified yet.

    Raises:
        WireRefusal: codes ``malformed``, ``unknown_version``.
    """
    spelled, signature = _open(envelope)
    return _parse(Reply, spelled), signature


def verify_reply(
    envelope: bytes, *, approver_key: PublicKey, now_s: int
) -> tuple[Reply, Certificate]:
    """A reply whose trainer key the site's approver certified.

    Raises:
        WireRefusal: malformed. IdentityRefusal: ``bad_certificate``, ``bad_signature``.
    """
    spelled, signature = _open(envelope)
    reply = _parse(Reply, spelled)
    certificate = Certificate.from_dict(reply.trainer_certificate)
    key = certificate.check(issuer=approver_key, purpose="trainer", now_s=now_s)
    key.verify("reply", spelled, signature)
    return reply, certificate


def frame(envelope: bytes, tensors: bytes) -> bytes:
    """Envelope and tensor file as one body."""
    sizes = [struct.pack(">Q", len(part)) for part in (envelope, tensors)]
    return b"".join([MAGIC, sizes[0], envelope, sizes[1], tensors])


def unframe(body: bytes, *, cap_bytes: int) -> tuple[bytes, bytes]:
    """Envelope and tensor file of a body.

    Raises:
        WireRefusal: codes ``too_large``, ``malformed``.
    """
    if len(body) > cap_bytes:
        raise _refusal("a message over the size cap", code="too_large")
    try:
        magic, length = struct.unpack_from(">4sQ", body)
        envelope = body[12 : 12 + length]
        (rest,) = struct.unpack_from(">Q", body, 12 + length)
    except (struct.error, OverflowError):
        raise _refusal("a message cut short", code="malformed") from None
    tensors = body[20 + length :]
    if magic != MAGIC or len(envelope) != length or len(tensors) != rest:
        raise _refusal("a message whose lengths disagree", code="malformed")
    if length > ENVELOPE_CAP_BYTES:
        raise _refusal("an envelope over the size cap", code="too_large")
    return envelope, tensors


def _envelope(spelled: Spelled, signature: str) -> bytes:
    """The canonical spelling of message and signature together; of none that JSON would have to escape."""
    return b'{"message":%b,"signature":"%b"}' % (spelled, signature.encode())


def _open(envelope: bytes) -> tuple[Spelled, str]:
    """The message as it is spelled, and its signature; no other spelling is read."""
    try:
        outer = json.loads(envelope)
    except (ValueError, RecursionError):
        raise _refusal("an envelope that is not JSON", code="malformed") from None
    if not isinstance(outer, dict) or set(outer) != {"message", "signature"}:
        raise _refusal("an envelope with other parts", code="malformed")
    message, signature = outer["message"], outer["signature"]
    if not isinstance(message, dict) or not isinstance(signature, str) or not signature.isascii():
        raise _refusal("an envelope with other parts", code="malformed")
    if message.get("wire_version") not in (WIRE_VERSION, WIRE_VERSION - 1):
        raise _refusal("a message of another wire version", code="unknown_version")
    try:
        spelled = canonical(message)
    except IdentityRefusal:  # a float, a null, a number beyond 2^53: no message of ours
        spelled = Spelled()
    if _envelope(spelled, signature) != envelope:
        raise _refusal("an envelope in another spelling", code="malformed")
    return spelled, signature


def _parse(model: type[_M], spelled: Spelled) -> _M:
    try:
        return model.model_validate_json(spelled)
    except ValidationError:
        raise _refusal("an envelope with unknown or malformed fields", code="malformed") from None


def _refusal(found: str, *, code: str) -> WireRefusal:
    return WireRefusal(
        found,
        allowed="a framed, canonical message of this wire version",
        next="update both sides to the same release of oncofed",
        code=code,
    )
