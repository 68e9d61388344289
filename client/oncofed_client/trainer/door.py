"""The outbound door: the one function through which bytes leave the trainer.

Its whole vocabulary is the study's tensors and the reply's fields. Nothing that was computed from a
scan passes unless it is the noised update of a round whose charge stands in the ledger.
"""

from __future__ import annotations

from typing import Any

from oncofed_common.errors import WireRefusal
from oncofed_common.identity import SigningKey, digest
from oncofed_common.study import Study
from oncofed_common.tensors import Dtype, Tensors, check_tensors, pack_tensors
from oncofed_common.wire import NO_DIGEST, Reply, frame, seal

ALLOWED_DTYPE: Dtype = "int32"


def pass_update(
    reply: Reply,
    update: Tensors,
    *,
    study: Study,
    key: SigningKey,
    cap_bytes: int,
    charged: bool,
) -> bytes:
    """The framed, signed reply with its update, if everything about it was approved.

    Args:
        update: int32 multiples of 2^-24, one tensor for each of the study's.
        cap_bytes: the smaller of the study's and the site's cap.
        charged: whether the ledger holds the draw of this very task.

    Raises:
        WireRefusal: ``wrong_tensors``, ``too_large``, or ``budget`` when nothing was charged.
    """
    if not charged:
        raise _refusal("an update without a charge in the ledger", code="budget")
    check_tensors(update, schema=study.schema_terms, dtype=ALLOWED_DTYPE)
    tensors = pack_tensors(update)
    bound = reply.model_copy(update={"update_digest": digest(tensors), "payload_kind": "plain"})
    return _out(bound, tensors, key=key, cap_bytes=cap_bytes)


def pass_refusal(reply: Reply, *, key: SigningKey, cap_bytes: int) -> bytes:
    """A framed, signed reply that carries a code and nothing else."""
    if reply.code == "ok":
        raise _refusal("a refusal with the code ok", code="malformed")
    bound = reply.model_copy(update={"update_digest": NO_DIGEST, "payload_kind": "none"})
    return _out(bound, b"", key=key, cap_bytes=cap_bytes)


def _out(reply: Reply, tensors: bytes, *, key: SigningKey, cap_bytes: int) -> bytes:
    fields: dict[str, Any] = reply.payload()
    checked = Reply.model_validate(fields | {"round": reply.round})
    body = frame(seal(checked, key), tensors)
    if len(body) > cap_bytes:
        raise _refusal("a reply over the byte cap", code="too_large")
    return body


def _refusal(found: str, *, code: str) -> WireRefusal:
    return WireRefusal(
        found,
        allowed="what study and approval list, charged and under the cap",
        next="compare the study's [outbound] with the site's policy",
        code=code,
    )
