"""Ask the coordinator what would break later, as the courier would ask it, and say what was seen.

A program for ``oncofed-site doctor``, which starts it in the courier's jail, with the courier's environment.
It prints one JSON object (``Seen``) and judges nothing. It talks to the enrolled coordinator and to the proxy
alone, and says nothing before the certificate was found to be that of the site's own authority.

Two things are asked, and neither changes anything there. A signed ``activate-node`` with a heartbeat of 0
seconds: SuperLink looks the node's key up, then refuses the heartbeat (400); an unknown key it calls unknown
(412); a signature of another time it refuses (401). And random bytes of an update's size as ``push-object``
without a signature: SuperLink reads a request whole, then refuses it (401) and keeps nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from oncofed_client.courier import line
from oncofed_client.courier.line import Broken, Proxy, Secured
from oncofed_client.courier.node import CA_FILE, NODE_KEY_FILE
from oncofed_client.courier.question import UPLOAD, anything, post
from oncofed_client.courier.way import Way, ask, proxy_to, verified
from oncofed_common.carriage import PIECE_BYTES

UPLOAD_WITHIN_S = 8.0
PIECE_WITHIN_S = 15.0
_MOST_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was seen on the way to the coordinator; empty, 0 or None where it was not reached.

    ``step`` and ``why`` are those of ``Broken``, or empty when everything was reached. ``small_passes``:
    whether the step that was silent is not so with small segments.
    """

    step: str = ""
    why: str = ""
    status: int = 0
    kinds: str = ""
    verify_code: int = 0
    addresses: tuple[str, ...] = ()
    connect_s: float = 0.0
    mtu_bytes: int = 0
    small_passes: bool = False
    subject: str = ""
    issuer: str = ""
    fingerprint: str = ""
    names: tuple[str, ...] = ()
    ours: bool = False
    same_name: bool = False
    not_before_s: int = 0
    not_after_s: int = 0
    code: int = 0
    date_s: int = 0
    local_s: float = 0.0
    answer_s: float = 0.0
    upload_bytes: int = 0
    upload_s: float = 0.0


def main(arguments: Sequence[str]) -> int:
    """Print what was seen."""
    parser = argparse.ArgumentParser(prog="probe")
    parser.add_argument("--home", required=True, type=Path)
    parser.add_argument("--superlink", required=True)
    parser.add_argument("--upload-bytes", required=True, type=int)
    asked = parser.parse_args(arguments)
    seen = probe(
        superlink=asked.superlink,
        ca_pem=(asked.home / CA_FILE).read_text(encoding="utf-8"),
        node_key=(asked.home / NODE_KEY_FILE).read_bytes(),
        proxy=proxy_to(asked.superlink, os.environ),
        upload_bytes=asked.upload_bytes,
    )
    sys.stderr.write(json.dumps(asdict(seen)) + "\n")
    return 0


def probe(
    *, superlink: str, ca_pem: str, node_key: bytes, proxy: Proxy | None, upload_bytes: int
) -> Seen:
    """Go as far as it goes, and say how far that was."""
    way = Way.to(superlink, proxy=proxy)
    seen = Seen()
    try:
        seen = replace(seen, addresses=tuple(way.look_up()))
        seen = _look(way, seen, ca_pem=ca_pem)
        if seen.ours:
            seen = _ask(way, seen, ca_pem=ca_pem, node_key=node_key)
            if seen.code:
                seen = _upload(way, seen, ca_pem=ca_pem, size_bytes=upload_bytes)
    except Broken as broken:
        seen = replace(seen, step=broken.step, why=broken.why, **broken.seen)  # type: ignore[arg-type]
        if broken.why == "silent" and broken.step in ("tls", "answer", "upload"):
            seen = replace(seen, small_passes=_passes_small(way, ca_pem=ca_pem, step=broken.step))
    return seen


def _look(way: Way, seen: Seen, *, ca_pem: str) -> Seen:
    """Whose certificate comes, before anything is said."""
    try:
        began_s = time.monotonic()
        below = way.open()
        seen = replace(seen, connect_s=time.monotonic() - began_s)
        if way.socket is not None:
            seen = replace(seen, mtu_bytes=line.mtu_bytes(way.socket))
        shown = line.secure(below, line.any_certificate(), host=way.host).certificate()
    finally:
        way.close()
    try:
        found = x509.load_der_x509_certificate(shown)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    except ValueError:
        raise Broken("tls", "no_certificate") from None
    authority = x509.load_pem_x509_certificate(ca_pem.encode())
    return replace(
        seen,
        subject=_short(found.subject.rfc4514_string()),
        issuer=_short(found.issuer.rfc4514_string()),
        fingerprint=hashlib.sha256(shown).hexdigest(),
        names=tuple(_short(str(name.value)) for name in names)[:8],
        ours=_signed_by(found, authority),
        same_name=found.issuer == authority.subject,
        not_before_s=int(found.not_valid_before_utc.timestamp()),
        not_after_s=int(found.not_valid_after_utc.timestamp()),
        local_s=time.time(),
    )


def _ask(way: Way, seen: Seen, *, ca_pem: str, node_key: bytes) -> Seen:
    """Does the coordinator know this node, and what time is it there?"""
    answer = ask(way, ca_pem=ca_pem, node_key=node_key)
    return replace(
        seen,
        status=answer.status,
        code=answer.code,
        date_s=answer.date_s,
        local_s=answer.local_s,
        answer_s=answer.took_s,
    )


def _upload(way: Way, seen: Seen, *, ca_pem: str, size_bytes: int) -> Seen:
    """Send an update of true size, piece by piece as Flower would, as long as there is time."""
    sent = 0
    try:
        secured = _patient(way, ca_pem=ca_pem)
        began_s = time.monotonic()
        while sent < size_bytes and time.monotonic() - began_s < UPLOAD_WITHIN_S:
            piece = anything(min(PIECE_BYTES, size_bytes - sent))
            status, said, _ = post(
                secured, UPLOAD, host=way.called, body=piece, headers={}, step="upload"
            )
            if status != http.client.UNAUTHORIZED:
                raise Broken("upload", "answers", status=status)
            sent += len(piece)
            if said.get("connection", "").lower() == "close" and sent < size_bytes:
                way.close()
                secured = _patient(way, ca_pem=ca_pem)
    finally:
        way.close()
    return replace(seen, upload_bytes=sent, upload_s=time.monotonic() - began_s)


def _passes_small(way: Way, *, ca_pem: str, step: str) -> bool:
    """Whether the same step is taken where every packet is small."""
    try:
        below = way.open(segment_bytes=line.SMALL_SEGMENT_BYTES)
        if step == "tls":
            line.secure(below, line.any_certificate(), host=way.host)
            return True
        secured = line.secure(below, line.only_ours(ca_pem), host=way.host)
        post(secured, UPLOAD, host=way.called, body=anything(16 * 1024), headers={}, step="upload")
    except Broken:
        return False
    finally:
        way.close()
    return True


def _patient(way: Way, *, ca_pem: str) -> Secured:
    """A line on which a thin link has time for a whole piece."""
    secured = verified(way, ca_pem=ca_pem)
    if way.socket is not None:
        way.socket.settimeout(PIECE_WITHIN_S)
    return secured


def _signed_by(found: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        found.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _short(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
