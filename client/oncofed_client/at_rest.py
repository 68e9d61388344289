"""How do the trainer's key and the site secret lie on the disk?

In clear under mode 0600; or, where ``init`` was given a key file, under what that file holds: 32 random bytes
in hex, kept elsewhere than the home, on a volume or in a secret store that a copy of the home does not take
along. The key is then PKCS 8 under that passphrase; the secret is sealed by ChaCha20-Poly1305 under

    HKDF-SHA256(key file, info = "oncofed site secret")

and whoever has the home alone can neither sign for this site nor recognise its patients. Without the file the
ledger is of no use to the hospital either: keep a second copy of it.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from oncofed_common.durable import read_secret, sync_folder
from oncofed_common.errors import SystemRefusal

SECRET_BYTES = 32
NONCE_BYTES = 12
_KEY_FILE = re.compile(rb"[0-9a-f]{64}")


def make_key_file(path: Path, *, outside: Path) -> None:
    """Write a new key file (mode 0600) where there is none; one that is there must be readable.

    Args:
        outside: the home that it locks: a key beside its lock locks nothing.

    Raises:
        SystemRefusal: code ``no_key_file``.
    """
    if path.resolve().is_relative_to(outside.resolve()):
        raise _refusal("a key file inside of the home that it locks")
    if path.exists():
        read_key_file(path)
        return
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.resolve().parent)
    except OSError:
        raise _refusal("a key file that cannot be written") from None


def read_key_file(path: Path) -> bytes:
    """What it holds.

    Raises:
        SystemRefusal: code ``no_key_file``: it is not there, or holds something else.
    """
    try:
        found = read_secret(path).strip()
    except OSError:
        found = b""
    if not _KEY_FILE.fullmatch(found):
        raise _refusal("a key file that is missing or damaged")
    return found


def locked(secret: bytes, *, key: bytes | None) -> bytes:
    """The site secret as it lies on the disk."""
    if key is None:
        return secret
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + _cipher(key).encrypt(nonce, secret, None)


def unlocked(stored: bytes, *, key: bytes | None) -> bytes:
    """The site secret, from what lies on the disk.

    Raises:
        SystemRefusal: code ``no_secret``: missing, damaged, or under another key file.
    """
    found = stored
    if key is not None:
        try:
            found = _cipher(key).decrypt(stored[:NONCE_BYTES], stored[NONCE_BYTES:], None)
        except (InvalidTag, ValueError):
            found = b""
    if len(found) != SECRET_BYTES:
        raise SystemRefusal(
            "a home whose secret is missing or damaged",
            allowed="the file trainer/secret that init wrote, and the key file that init was given",
            next="restore the home folder as a whole; without it no patient is recognised",
            code="no_secret",
        )
    return found


def _cipher(key: bytes) -> ChaCha20Poly1305:
    derive = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"oncofed site secret")
    return ChaCha20Poly1305(derive.derive(key))


def _refusal(found: str) -> SystemRefusal:
    return SystemRefusal(
        found,
        allowed="a file outside of the home with 64 hex digits, as init writes it",
        next="mount the volume that holds it, or restore it from its second copy",
        code="no_key_file",
    )
