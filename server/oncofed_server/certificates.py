"""The coordinator's own certificate authority, and the certificate that SuperLink shows to sites.

Sites pin the CA (it is in the answer to their enrolment), so interception fails closed. It is made once:
a new one would need every hospital to join again. What it certifies is renewed in time, whenever SuperLink
starts, and no site notices.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from oncofed_common.durable import write_atomic
from oncofed_common.errors import SystemRefusal

ALWAYS_NAMED = ("127.0.0.1", "::1", "localhost")

_CA_LIFE = datetime.timedelta(days=3650)
_SERVER_LIFE = datetime.timedelta(days=397)
_RENEWED_BEFORE = datetime.timedelta(days=60)
_CLOCK_SLACK = datetime.timedelta(hours=1)


def make_certificates(folder: Path, *, names: Sequence[str], now: datetime.datetime) -> None:
    """Write ``ca.pem`` and ``server.pem`` with their private keys, as far as the folder lacks them.

    The server's certificate lasts 397 days, the CA ten years. The server's is made anew when it has 60 days
    left or less, or does not say every name.

    Args:
        names: all host names and addresses by which a site may call the coordinator, beside loopback.
        now: aware.

    Raises:
        SystemRefusal: code ``no_ca``; the CA's key is not there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = [_general_name(name) for name in dict.fromkeys([*names, *ALWAYS_NAMED])]
    if not (folder / "ca.pem").exists():
        _make_authority(folder, now=now)
    if not _serves(folder / "server.pem", names=wanted, now=now):
        _make_server(folder, names=wanted, now=now)
    os.chmod(folder, 0o700)


def _make_authority(folder: Path, *, now: datetime.datetime) -> None:
    key, name = ec.generate_private_key(ec.SECP256R1()), _name("oncofed coordinator CA")
    ca = (
        _builder(name, name, key.public_key(), now=now, life=_CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_atomic(folder / "ca.key", _private_pem(key), mode=0o600)
    write_atomic(folder / "ca.pem", ca.public_bytes(serialization.Encoding.PEM))


def _make_server(folder: Path, *, names: list[x509.GeneralName], now: datetime.datetime) -> None:
    """Under the folder's CA. A crash between key and certificate leaves two that do not match: made anew."""
    ca, ca_key = _authority(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    server = (
        _builder(
            _name("oncofed coordinator"), ca.subject, key.public_key(), now=now, life=_SERVER_LIFE
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    write_atomic(folder / "server.key", _private_pem(key), mode=0o600)
    write_atomic(folder / "server.pem", server.public_bytes(serialization.Encoding.PEM))


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except (OSError, ValueError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SystemRefusal(
            "a home without its certificate authority",
            allowed="ca.pem and ca.key in the tls folder that init made",
            next="restore the tls folder from a backup",
            code="no_ca",
        )
    return ca, key


def _serves(path: Path, *, names: list[x509.GeneralName], now: datetime.datetime) -> bool:
    """Whether the certificate there goes with its key, lasts for a while, and says every name."""
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
        key = serialization.load_pem_private_key(
            path.with_suffix(".key").read_bytes(), password=None
        )
        said = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    lasts = found.not_valid_after_utc > now + _RENEWED_BEFORE
    return lasts and key.public_key() == found.public_key() and set(names) <= set(said)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    *,
    now: datetime.datetime,
    life: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
