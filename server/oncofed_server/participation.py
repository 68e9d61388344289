"""Who took part: the record of a round, its signature, its chain, and what a run is called by them.

A round is *complete* when every invited site was counted, *partial* when at least the study's fewest
sites were, else *failed*: its sum is then not applied and the run ends. A run is complete when every
round of the study was; partial when every closed round had the fewest sites; else failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from oncofed_common.errors import WireRefusal
from oncofed_common.identity import PublicKey, SigningKey, canonical
from oncofed_common.study import Study
from oncofed_common.wire import NO_DIGEST, Participation, SignedParticipation, SiteOutcome

Status = Literal["complete", "partial", "failed"]
SILENT = ("no_reply", "late", "bad_reply", "offline", "revoked")
"""Why a site is left out of whom no reply is kept."""


def round_status(sites: Sequence[SiteOutcome], *, fewest_sites: int) -> Status:
    """The word for one round."""
    counted = sum(site.outcome == "counted" for site in sites)
    if counted < fewest_sites:
        return "failed"
    return "complete" if counted == len(sites) else "partial"


def run_status(rounds: Sequence[Status], *, planned: int) -> Status:
    """The word for a run that ended after ``rounds`` of the ``planned`` rounds."""
    if "failed" in rounds or not rounds:
        return "failed"
    return "complete" if list(rounds) == ["complete"] * planned else "partial"


def sign_record(record: Participation, key: SigningKey) -> SignedParticipation:
    """``record`` with the task key's signature."""
    signature = key.sign("participation", record.payload())
    return SignedParticipation(record=record, signature=signature)


def spell(signed: SignedParticipation) -> bytes:
    """The one spelling of a record on disk."""
    return canonical(signed.model_dump(mode="json"))


def parse_record(data: bytes) -> SignedParticipation:
    """A record from its one spelling, not verified.

    Raises:
        WireRefusal: code ``malformed``.
    """
    try:
        signed = SignedParticipation.model_validate_json(data)
    except ValidationError:
        signed = None
    if signed is None or spell(signed) != data:
        raise _refusal("a participation record with unknown or malformed fields", code="malformed")
    return signed


def read_record(path: Path) -> SignedParticipation | None:
    """The record in ``path``, or None where there is none.

    Raises:
        WireRefusal: code ``malformed``.
    """
    return parse_record(path.read_bytes()) if path.exists() else None


def check_record(
    signed: SignedParticipation,
    *,
    study: Study,
    study_hash: str,
    run: str,
    before: SignedParticipation | None,
    weights_before: str | None,
    task_key: PublicKey,
) -> None:
    """Return if ``signed`` is the record that may follow ``before`` (None: the first round).

    Args:
        study_hash: the study's, which takes long to compute.
        weights_before: digest of the weights that the round started from; None: not known.

    Raises:
        WireRefusal: codes ``wrong_study``, ``wrong_run``, ``wrong_round``, ``wrong_chain``,
            ``wrong_sites``, ``wrong_metrics``, ``wrong_status``. IdentityRefusal: ``bad_signature``.
    """
    record = signed.record
    task_key.verify("participation", record.payload(), signed.signature)
    counted = [site for site in record.sites if site.outcome == "counted"]
    fewest = study.aggregation.fewest_sites
    checks = (
        ("wrong_study", record.study_hash == study_hash),
        ("wrong_run", record.run == run),
        ("wrong_round", record.round == (before.record.round + 1 if before else 1)),
        ("wrong_chain", record.previous == (before.record.digest() if before else NO_DIGEST)),
        ("wrong_chain", before is None or record.weights_before == before.record.weights_after),
        ("wrong_chain", weights_before in (None, record.weights_before)),
        ("wrong_sites", [site.site for site in record.sites] == [s.name for s in study.sites]),
        ("wrong_sites", all(s.reason == "" and s.code == "ok" for s in counted)),
        ("wrong_sites", all(s.reply_digest != NO_DIGEST for s in counted)),
        (
            "wrong_sites",
            all(s.reply_digest == NO_DIGEST for s in record.sites if s.reason in SILENT),
        ),
        ("wrong_sites", all(s.reason != "" for s in record.sites if s.outcome == "left_out")),
        ("wrong_status", record.status == round_status(record.sites, fewest_sites=fewest)),
        ("wrong_metrics", len(record.metrics) == len(study.outbound.metrics)),
        (
            "wrong_status",
            record.status != "failed" or record.weights_after == record.weights_before,
        ),
    )
    for code, holds in checks:
        if not holds:
            raise _refusal("a participation record that does not follow from the study", code=code)


def _refusal(found: str, *, code: str) -> WireRefusal:
    return WireRefusal(
        found,
        allowed="the signed, chained record of a round of this study",
        next="get the release again from the coordinator",
        code=code,
    )
