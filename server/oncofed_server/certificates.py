"""The coordinator's own certificate authority, and the certificate that SuperLink shows to sites.

Sites pin the CA (it is in the answer to their enrolment), so interception fails closed. Made once:
a new CA would need every hospital to enrol again.
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

ALWAYS_NAMED = ("127.0.0.1", "::1", "localhost")

_CA_LIFE = datetime.timedelta(days=3650)
_SERVER_LIFE = datetime.timedelta(days=397)
_CLOCK_SLACK = datetime.timedelta(hours=1)


def make_certificates(folder: Path, *, names: Sequence[str], now: datetime.datetime) -> None:
    """Write ``ca.pem``, ``server.pem`` and their private keys, unless the folder has them.

    ``names`` are all host names and addresses by which a site may call the coordinator; loopback is
    always added. ``now`` is aware. The server's certificate lasts 397 days, the CA ten years.
    """
    if (folder / "server.pem").exists():
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca_key, server_key = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    authority = _name("oncofed coordinator CA")
    ca = (
        _builder(authority, authority, ca_key.public_key(), now=now, life=_CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    server = (
        _builder(
            _name("oncofed coordinator"),
            authority,
            server_key.public_key(),
            now=now,
            life=_SERVER_LIFE,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .add_extension(
            x509.SubjectAlternativeName(
                [_general_name(name) for name in dict.fromkeys([*names, *ALWAYS_NAMED])]
            ),
            critical=False,
        )
        .sign(ca_key, hashes.SHA256())
    )
    for name, key in (("ca.key", ca_key), ("server.key", server_key)):
        write_atomic(folder / name, _private_pem(key), mode=0o600)
    write_atomic(folder / "ca.pem", ca.public_bytes(serialization.Encoding.PEM))
    write_atomic(folder / "server.pem", server.public_bytes(serialization.Encoding.PEM))
    os.chmod(folder, 0o700)


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
