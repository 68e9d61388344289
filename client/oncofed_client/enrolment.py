"""What a site shows of itself: its trainer's certificate, and the request by which it is taken in.

Both are signed by the approver's key, which alone says who the site is. Other keys may be renewed: the same
approver signs a new certificate of a higher epoch, and a new request.
"""

from __future__ import annotations

from pathlib import Path

from oncofed_common.durable import write_private
from oncofed_common.identity import Certificate, PublicKey, SigningKey, canonical, certify

CERTIFICATE_LIFE_S = 5 * 365 * 86_400
BACKDATED_S = 3600
"""A coordinator's clock may be behind by so much."""


def trainer_certificate(
    approver: SigningKey, trainer: PublicKey, *, site: str, epoch: int, virtual: bool, now_s: int
) -> Certificate:
    """What says that ``trainer`` speaks for the site."""
    return certify(
        approver,
        trainer,
        purpose="trainer",
        holder=site,
        epoch=epoch,
        not_before_s=now_s - BACKDATED_S,
        not_after_s=now_s + CERTIFICATE_LIFE_S,
        virtual=virtual,
    )


def write_request(
    path: Path,
    approver: SigningKey,
    certificate: Certificate,
    *,
    node_line: str,
    declared_patients: int,
) -> None:
    """The signed request; it holds public keys only.

    Raises:
        SystemRefusal: the disk; nothing changed.
    """
    request = {
        "site": certificate.holder,
        "approver_key": approver.public.hex,
        "trainer_certificate": certificate.as_dict(),
        "node_key": node_line,
        "declared_patients": declared_patients,
        "virtual": int(certificate.virtual),
    }
    signed = {"request": request, "signature": approver.sign("enrolment", request)}
    write_private(path, canonical(signed))
