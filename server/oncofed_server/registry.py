"""Who may take part: enrolment requests in, roster entries and answers out; revocation.

A request is signed by the site's approver key, which also certifies the trainer key in it. A name or a
key that is in the roster already is refused, also when its site was revoked: a name means one
hospital for ever. The very request of an enrolled site gets its answer again; one of the same approver
with a certificate of a higher epoch renews the site's keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oncofed_common.durable import read_object
from oncofed_common.errors import IdentityRefusal, SystemRefusal
from oncofed_common.identity import Certificate, PublicKey
from oncofed_common.wire import Hex64, Name, Signature
from oncofed_server.roster import Member, Roster, read_roster, roster_lock, write_roster

REQUEST_CAP_BYTES = 64 * 1024


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Request(_Strict):
    """What a site asks for, signed by its approver under the label ``enrolment``."""

    site: Name
    approver_key: Hex64
    trainer_certificate: dict[str, Any]
    node_key: Annotated[str, Field(max_length=2000)]
    declared_patients: Annotated[int, Field(ge=1, lt=2**53)]
    virtual: Literal[0, 1]


class SignedRequest(_Strict):
    """The request file."""

    request: Request
    signature: Signature


def enrol(
    home: Path, request_path: Path, *, address: str, ca_pem: str, now_s: int
) -> dict[str, str]:
    """Add the site of ``request_path`` to the roster, once, or renew its keys; the answer to send back.

    Args:
        address: "host:port" where the site's courier finds this coordinator.
        ca_pem: the certificate authority of that address.

    Raises:
        IdentityRefusal: codes ``bad_request``, ``bad_signature``, ``bad_certificate``,
            ``duplicate_name``, ``duplicate_key``. SystemRefusal: not a home, a full disk.
    """
    request = read_request(request_path, now_s=now_s)
    member = Member(**request.model_dump(), enrolled_s=now_s, revoked=0)
    with roster_lock(home):
        roster = read_roster(home)
        if not _is_enrolled(roster, member):
            write_roster(home, _with_member(roster, member))
    return {
        "site": member.site,
        "approver_key": member.approver_key,
        "address": address,
        "ca_pem": ca_pem,
        "coordinator_key": roster.coordinator.study_key,
    }


def read_request(path: Path, *, now_s: int) -> Request:
    """The request in ``path``, if its signature and its trainer certificate hold.

    Raises:
        IdentityRefusal: codes ``bad_request``, ``bad_signature``, ``bad_certificate``.
    """
    if path.is_file() and path.stat().st_size > REQUEST_CAP_BYTES:
        raise _bad_request("an enrolment request over 64 KiB")
    fields = read_object(path, what="an enrolment request")
    try:
        signed = SignedRequest.model_validate(fields)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_url=False)[0]["loc"])
        raise _bad_request(f"an enrolment request with a faulty {where or 'form'}") from None
    request = signed.request
    approver = PublicKey(request.approver_key)
    approver.verify("enrolment", fields["request"], signed.signature)
    certificate = Certificate.from_dict(request.trainer_certificate)
    certificate.check(issuer=approver, purpose="trainer", now_s=now_s)
    if certificate.holder != request.site or int(certificate.virtual) != request.virtual:
        raise _bad_request("a trainer certificate for another site or kind of home")
    normal = _node_key(request.node_key)
    return request.model_copy(update={"node_key": normal})


def revoke(home: Path, site: str) -> Roster:
    """Leave ``site`` out from the next round on, and raise the revocation epoch.

    Raises:
        IdentityRefusal: codes ``unknown_site``, ``already_revoked``.
    """
    with roster_lock(home):
        roster = read_roster(home)
        member = roster.member(site)
        if member is None or member.revoked:
            raise IdentityRefusal(
                "a site that is not enrolled" if member is None else f"{site}, revoked already",
                allowed=", ".join(m.site for m in roster.sites if not m.revoked) or "no site yet",
                next="check the name of the site",
                code="unknown_site" if member is None else "already_revoked",
            )
        gone = member.model_copy(update={"revoked": 1})
        after = roster.model_copy(
            update={
                "sites": tuple(gone if m.site == site else m for m in roster.sites),
                "revocation_epoch": roster.revocation_epoch + 1,
            }
        )
        write_roster(home, after)
    return after


def read_ca(home: Path) -> str:
    """The certificate authority that sites will pin.

    Raises:
        SystemRefusal: code ``no_ca``.
    """
    try:
        return (home / "tls" / "ca.pem").read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        raise SystemRefusal(
            "a home without its certificate authority",
            allowed="the tls folder that init made",
            next="restore the tls folder from a backup",
            code="no_ca",
        ) from None


def _is_enrolled(roster: Roster, member: Member) -> bool:
    """Whether this is the request of a site that takes part already: its answer may have been lost."""
    known = roster.member(member.site)
    return known is not None and known == member.model_copy(update={"enrolled_s": known.enrolled_s})


def _with_member(roster: Roster, member: Member) -> Roster:
    """The roster with a new site, or with new keys of one that takes part."""
    known = roster.member(member.site)
    if known is None or not _renews(known, member):
        _refuse_duplicates(roster, member)
        return roster.model_copy(update={"sites": (*roster.sites, member)})
    others = tuple(m for m in roster.sites if m.site != member.site)
    _refuse_duplicates(roster.model_copy(update={"sites": others}), member)
    renewed = known.model_copy(
        update={
            "trainer_certificate": member.trainer_certificate,
            "node_key": member.node_key,
        }
    )
    places = tuple(renewed if m.site == member.site else m for m in roster.sites)
    return roster.model_copy(update={"sites": places})


def _renews(known: Member, member: Member) -> bool:
    """Whether the same approver asks for the same site, later than before, with other keys alone."""
    same = ("approver_key", "declared_patients", "virtual")
    epochs = [Certificate.from_dict(m.trainer_certificate).epoch for m in (known, member)]
    return (
        not known.revoked
        and all(getattr(known, name) == getattr(member, name) for name in same)
        and epochs[1] > epochs[0]
        and not set(_keys(member)[1:]) & set(_keys(known))
    )


def _refuse_duplicates(roster: Roster, member: Member) -> None:
    if roster.member(member.site) is not None:
        raise IdentityRefusal(
            f"a site called {member.site}, enrolled already",
            allowed="a new name for a new site",
            next="choose another name at oncofed-site init; a revoked name is not given again",
            code="duplicate_name",
        )
    known = {key for m in roster.sites for key in _keys(m)}
    known.add(roster.coordinator.study_key)
    known.add(Certificate.from_dict(roster.coordinator.task_certificate).subject)
    fresh = _keys(member)
    if known & set(fresh) or len(set(fresh)) != len(fresh):
        raise IdentityRefusal(
            "a key that is in the roster already",
            allowed="keys of its own for every site and purpose",
            next="run oncofed-site init in a new, empty home",
            code="duplicate_key",
        )


def _keys(member: Member) -> list[str]:
    return [member.approver_key, member.trainer.hex, member.node_key]


def _node_key(line: str) -> str:
    """An OpenSSH public key line in its one spelling, without the comment."""
    try:
        key = load_ssh_public_key(line.encode("ascii"))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise _bad_request("a node key of another kind")
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _bad_request(found: str) -> IdentityRefusal:
    return IdentityRefusal(
        found,
        allowed="a request as oncofed-site init writes it: Ed25519 keys, a P-384 node key",
        next="ask the site to run oncofed-site init again and send the new request",
        code="bad_request",
    )
