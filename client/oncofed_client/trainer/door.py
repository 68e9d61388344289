"""The outbound door: the one function through which bytes leave the trainer.

Its whole vocabulary is the study's tensors and the reply's fields. Nothing that was computed from a
scan passes unless it is the noised update of a round whose charge stands in the ledger. Values are whole
multiples of 2^-24, each with one spelling (no NaN, no second zero); an update longer than the study's own
bound is shrunk to it (``bound``), for to refuse it would tell of its values.

That the values are noise as they should be, no door can see: this is what the approved code's hash is for.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from oncofed_client.codehash import code_hash
from oncofed_client.trainer.bound import saturate
from oncofed_common.errors import WireRefusal
from oncofed_common.identity import Certificate, SigningKey, digest
from oncofed_common.study import Study
from oncofed_common.study_terms import METRICS
from oncofed_common.tensors import Dtype, Tensors, check_tensors, pack_tensors, reply_bytes
from oncofed_common.update_bound import norm_limit_units
from oncofed_common.wire import NO_DIGEST, WIRE_VERSION, Charge, Reply, frame, seal

ALLOWED_DTYPE: Dtype = "int32"


def pass_update(
    reply: Reply,
    update: Tensors,
    *,
    study: Study,
    key: SigningKey,
    cap_bytes: int,
    sent_bytes: int,
    charged: bool,
) -> bytes:
    """The framed, signed reply with its update, if everything about it was approved.

    Args:
        update: int32 multiples of 2^-24, one tensor for each of the study's, and the noised means where it
            asks for them.
        cap_bytes: the smaller of the study's and the site's cap on one round.
        sent_bytes: what replies of this study took so far, by the ledger.
        charged: whether the ledger holds the draw of this very task.

    Raises:
        WireRefusal: ``wrong_tensors``, ``too_large``, ``malformed`` for a word that nobody approved, or
            ``budget`` when nothing was charged.
    """
    if not charged:
        raise _refusal("an update without a charge in the ledger", code="budget")
    _refuse_other_words(reply, study=study)
    check_tensors(update, schema=study.reply_terms, dtype=ALLOWED_DTYPE)
    declared = study.site(reply.site).declared_patients
    limit = norm_limit_units(study, declared_patients=declared)
    moved = {name: tensor for name, tensor in update.items() if name != METRICS}
    means = {name: tensor for name, tensor in update.items() if name == METRICS}
    tensors = pack_tensors(saturate(moved, limit_units=limit) | dict(means))
    bound = reply.model_copy(update={"update_digest": digest(tensors), "payload_kind": "plain"})
    left = study_cap_bytes(study) - sent_bytes
    most = min(cap_bytes, left, reply_bytes(study.reply_terms))
    return _out(bound, tensors, key=key, cap_bytes=most)


def pass_refusal(reply: Reply, *, key: SigningKey, cap_bytes: int) -> bytes:
    """A framed, signed reply that carries a code and nothing else: no charge, no head."""
    if reply.code == "ok":
        raise _refusal("a refusal with the code ok", code="malformed")
    empty = {"update_digest": NO_DIGEST, "payload_kind": "none", "charge": None}
    bound = reply.model_copy(update={**empty, "ledger_head": None})
    return _out(bound, b"", key=key, cap_bytes=cap_bytes)


def study_cap_bytes(study: Study) -> int:
    """What all replies of one site to one study may take: one whole reply a round."""
    return study.training.rounds * reply_bytes(study.reply_terms)


def charge_of(study: Study) -> Charge:
    """The study's cost, in its one spelling."""
    epsilon, delta = (
        format(Decimal(repr(cost)), "f") for cost in (study.privacy.epsilon, study.privacy.delta)
    )
    return Charge(epsilon=epsilon, delta=delta)


def _refuse_other_words(reply: Reply, *, study: Study) -> None:
    """An update leaves as round r of this study at its stated charge; a number of any other field tells."""
    known = (
        reply.code == "ok"
        and reply.study_hash == study.hash
        and 1 <= reply.round <= study.training.rounds
        and reply.charge == charge_of(study)
    )
    if not known:
        raise _refusal("a reply with words that the study does not state", code="malformed")


def _out(reply: Reply, tensors: bytes, *, key: SigningKey, cap_bytes: int) -> bytes:
    fields: dict[str, Any] = reply.payload()
    checked = Reply.model_validate(fields | {"round": reply.round})
    certificate = Certificate.from_dict(checked.trainer_certificate)
    stated = (checked.wire_version, checked.wheel_hash, certificate.holder, certificate.subject)
    if stated != (WIRE_VERSION, code_hash(), checked.site, key.public.hex):
        raise _refusal("a reply in another name, or of other code", code="malformed")
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
