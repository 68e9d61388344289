"""Keys, signatures, fingerprints: who says what.

One signature scheme for everything: Ed25519 (RFC 8032) over

    "oncofed" NUL label NUL "v1" NUL canonical(payload)

where ``canonical`` is RFC 8785 JSON of integers, strings, lists and objects. Floats are refused: a
number that must be signed is an integer or a decimal string. Labels keep a signature made for one
purpose from passing for another.

A certificate is a payload signed by a key above: the coordinator's offline study key certifies task
keys, a site's approver key certifies its trainer key. A trainer key cannot certify itself.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import rfc8785
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from oncofed_common.errors import IdentityRefusal

Payload = Mapping[str, Any]
Label = Literal[
    "study",
    "certificate",
    "enrolment",
    "approval",
    "task",
    "reply",
    "participation",
    "ledger-row",
    "ledger-head",
    "release",
]
Purpose = Literal["task", "trainer"]

SCHEME = "v1"

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_TOO_LARGE = 2**53
_ONLY_TEXT = frozenset({str})
_HEX_KEY = re.compile(r"[0-9a-f]{64}")
_HEX_SIGNATURE = re.compile(r"[0-9a-f]{128}")


class Spelled(bytes):
    """What ``canonical`` gave for a payload: signed and verified as it is, and not spelled again."""


def canonical(payload: Payload) -> Spelled:
    """RFC 8785 JSON of ``payload``.

    The standard library's encoder gives the same bytes ten times as fast, as long as everything is ASCII: it
    orders keys by code points, and not by UTF-16.

    Raises:
        IdentityRefusal: it holds a float, a null or anything else that has no single spelling.
    """
    try:
        fields = dict(payload)
        _refuse_ambiguous(fields)
        spelled = _ENCODER.encode(fields)
        return Spelled(spelled.encode() if spelled.isascii() else rfc8785.dumps(fields))
    except (rfc8785.CanonicalizationError, RecursionError, TypeError, UnicodeEncodeError):
        raise _bad_payload() from None


def digest(data: bytes) -> str:
    """SHA-256 in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key, 32 bytes in hex."""

    hex: str

    def __post_init__(self) -> None:
        if not _HEX_KEY.fullmatch(self.hex):
            raise IdentityRefusal(
                "a public key that is not 32 bytes of lower-case hex",
                allowed="an Ed25519 public key",
                next="ask its owner for the key again",
                code="bad_key",
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the raw key: what people read to each other."""
        return digest(bytes.fromhex(self.hex))

    def verify(self, label: Label, payload: Payload | Spelled, signature: str) -> None:
        """Return if ``signature`` is this key's over ``payload`` under ``label``.

        Raises:
            IdentityRefusal: code ``bad_signature``.
        """
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.hex))
        try:
            if not _HEX_SIGNATURE.fullmatch(signature):
                raise InvalidSignature  # another spelling would be another message with one meaning
            key.verify(bytes.fromhex(signature), _message(label, payload))
        except InvalidSignature:
            raise IdentityRefusal(
                f"a signature ({label}) that does not hold",
                allowed="a signature by the key that was agreed",
                next="get the signed original again from its author",
                code="bad_signature",
            ) from None


class SigningKey:
    """An Ed25519 private key. It is never printed, and never leaves its owner."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"SigningKey({self.public.fingerprint[:16]}…)"

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @property
    def public(self) -> PublicKey:
        raw = self._key.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )
        return PublicKey(raw.hex())

    def sign(self, label: Label, payload: Payload | Spelled) -> str:
        """The signature over ``payload`` under ``label``, in hex."""
        return self._key.sign(_message(label, payload)).hex()

    def save(self, path: Path, *, passphrase: bytes | None) -> None:
        """Write the key as PKCS 8 PEM, mode 0600, encrypted when a passphrase is given.

        Raises:
            IdentityRefusal: code ``key_exists``; a key is never overwritten.
        """
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase is not None:
            encryption = serialization.BestAvailableEncryption(passphrase)
        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise IdentityRefusal(
                "a key that exists already",
                allowed="one key for one purpose in a home",
                next="use the existing home, or make a new one in an empty folder",
                code="key_exists",
            ) from None
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, path: Path, *, passphrase: bytes | None) -> SigningKey:
        """Read a key written by ``save``.

        Raises:
            IdentityRefusal: missing, of another kind, or the passphrase is wrong.
        """
        try:
            pem = path.read_bytes()
        except OSError:
            raise IdentityRefusal(
                "a private key that is missing, or that this account may not read",
                allowed="a home folder with all the keys that init made",
                next="restore the home folder as a whole, or give it back to this account",
                code="key_unreadable",
            ) from None
        try:
            key = serialization.load_pem_private_key(pem, passphrase)
        except (ValueError, TypeError, UnsupportedAlgorithm, InternalError):
            raise IdentityRefusal(
                "a private key that cannot be opened",
                allowed="the key file of this home and its passphrase",
                next="check the passphrase, then the home folder",
                code="key_unreadable",
            ) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityRefusal(
                "a private key of another kind",
                allowed="Ed25519",
                next="use the key that init made",
                code="key_unreadable",
            )
        return cls(key)


def plain_fingerprint(text: str) -> str:
    """A fingerprint without the spaces and lines in which it is printed, in small letters."""
    return "".join(text.split()).lower()


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A key above saying what a key below may do, and until when (seconds since 1970, UTC)."""

    purpose: Purpose
    holder: str
    subject: str
    issuer: str
    epoch: int
    not_before_s: int
    not_after_s: int
    virtual: bool
    signature: str = ""

    def payload(self) -> dict[str, Any]:
        """What is signed."""
        return {
            "purpose": self.purpose,
            "holder": self.holder,
            "subject": self.subject,
            "issuer": self.issuer,
            "epoch": self.epoch,
            "not_before_s": self.not_before_s,
            "not_after_s": self.not_after_s,
            "virtual": int(self.virtual),
        }

    def as_dict(self) -> dict[str, Any]:
        return {**self.payload(), "signature": self.signature}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Certificate:
        """Parse strictly.

        Raises:
            IdentityRefusal: code ``bad_certificate``.
        """
        kinds = {
            **dict.fromkeys(("purpose", "holder", "subject", "issuer", "signature"), str),
            **dict.fromkeys(("epoch", "not_before_s", "not_after_s", "virtual"), int),
        }
        wrong = set(fields) != set(kinds) or any(
            type(fields[name]) is not kind for name, kind in kinds.items()
        )
        if wrong or fields["virtual"] not in (0, 1) or fields["purpose"] not in ("task", "trainer"):
            raise _bad_certificate("a certificate with unknown or malformed fields")
        return cls(**{**fields, "virtual": bool(fields["virtual"])})

    def check(self, *, issuer: PublicKey, purpose: Purpose, now_s: int) -> PublicKey:
        """The certified key, if ``issuer`` signed this for ``purpose`` and it is valid now.

        Raises:
            IdentityRefusal: ``bad_certificate`` or ``bad_signature``.
        """
        if self.issuer != issuer.fingerprint:
            raise _bad_certificate("a certificate of another issuer")
        if self.purpose != purpose:
            raise _bad_certificate(f"a certificate for {self.purpose}")
        if not self.not_before_s <= now_s < self.not_after_s:
            raise _bad_certificate("a certificate that is not valid at this time")
        _certified(issuer, self)
        return PublicKey(self.subject)


@functools.lru_cache(maxsize=4096)
def _certified(issuer: PublicKey, certificate: Certificate) -> None:
    """Verified once: the same certificate comes with every message of its holder. What fails is not kept."""
    issuer.verify("certificate", certificate.payload(), certificate.signature)


def certify(
    issuer: SigningKey,
    subject: PublicKey,
    *,
    purpose: Purpose,
    holder: str,
    epoch: int,
    not_before_s: int,
    not_after_s: int,
    virtual: bool,
) -> Certificate:
    """A certificate by ``issuer`` for ``subject``.

    Raises:
        IdentityRefusal: a key that would certify itself.
    """
    if issuer.public == subject:
        raise _bad_certificate("a key that certifies itself")
    unsigned = Certificate(
        purpose=purpose,
        holder=holder,
        subject=subject.hex,
        issuer=issuer.public.fingerprint,
        epoch=epoch,
        not_before_s=not_before_s,
        not_after_s=not_after_s,
        virtual=virtual,
    )
    fields = unsigned.as_dict() | {"signature": issuer.sign("certificate", unsigned.payload())}
    return Certificate.from_dict(fields)


def _message(label: Label, payload: Payload | Spelled) -> bytes:
    spelled = payload if isinstance(payload, Spelled) else canonical(payload)
    return b"\x00".join([b"oncofed", label.encode(), SCHEME.encode(), spelled])


def _refuse_ambiguous(payload: Any) -> None:
    """By exact types, which is fast: a payload holds what JSON or pydantic gave."""
    left = [payload]
    while left:
        value = left.pop()
        kind = type(value)
        if kind is str:
            continue
        if kind is dict:
            if not _ONLY_TEXT.issuperset(map(type, value)):
                raise _bad_payload()
            left.extend(value.values())
        elif kind is list or kind is tuple:
            left.extend(value)
        elif kind is not int or abs(value) >= _TOO_LARGE:
            raise _bad_payload()


def _bad_payload() -> IdentityRefusal:
    return IdentityRefusal(
        "a payload that has no single spelling",
        allowed="objects and lists of integers below 2^53 and strings",
        next="write numbers as integers or decimal strings",
        code="bad_payload",
    )


def _bad_certificate(found: str) -> IdentityRefusal:
    return IdentityRefusal(
        found,
        allowed="a current certificate by the key that was agreed, for this purpose",
        next="ask the issuer for a new certificate",
        code="bad_certificate",
    )
