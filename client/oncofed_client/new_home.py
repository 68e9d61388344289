"""Making a site's home: keys, secret, policy, ledger and the enrolment request, all of it or nothing."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from pathlib import Path

from oncofed_client.at_rest import SECRET_BYTES, locked, make_key_file, read_key_file
from oncofed_client.enrolment import trainer_certificate, write_request
from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_client.policy import Policy
from oncofed_common.durable import is_used, sync_all, sync_folder, write_private
from oncofed_common.errors import PolicyRefusal, SystemRefusal
from oncofed_common.identity import SigningKey, canonical
from oncofed_common.passphrase import refuse_weak

SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def create(
    root: Path,
    *,
    site: str,
    declared_patients: int,
    policy: Policy,
    virtual: bool,
    passphrase: bytes,
    node_key: tuple[bytes, str],
    secret: bytes | None,
    key_file: Path | None = None,
) -> Home:
    """Make keys, policy and enrolment request in a new folder; all of it or nothing.

    Args:
        node_key: private key (PEM) and public line (OpenSSH) of the courier's Flower node.
        secret: the site secret of a virtual home whose runs have to repeat; None: the operating system's.
        key_file: under which the trainer's key and the secret lie; made where there is none.

    Raises:
        SystemRefusal: codes ``bad_name``, ``home_exists``, ``home_write``, ``no_key_file``.
        PolicyRefusal: a weak passphrase, a given secret at a real site (``secret_forbidden``), or a real
            site's number of patients that is not rounded (``exact_number``).
    """
    if secret is not None and not virtual:
        raise PolicyRefusal(
            "a site secret that somebody chose, for a real site",
            allowed="a secret from the operating system; a chosen one in virtual homes only",
            next="make the home without it",
            code="secret_forbidden",
        )
    if not virtual:
        _refuse_exact(declared_patients)
    if not SITE_NAME.fullmatch(site):
        raise SystemRefusal(
            "a site name that cannot be used",
            allowed="1 to 63 of a-z, 0-9 and -, not beginning with -",
            next="choose a plain name, such as the hospital's",
            code="bad_name",
        )
    if is_used(root):
        raise SystemRefusal(
            "a home folder that is not empty",
            allowed="a new or empty folder",
            next="choose another --home; an existing home is never overwritten",
            code="home_exists",
        )
    refuse_weak(passphrase)
    if key_file is not None:
        make_key_file(key_file, outside=root)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise SystemRefusal(
            "a home in a place where no folder can be made",
            allowed="a place that this user may write to",
            next="choose another --home, or correct its permissions",
            code="home_write",
        ) from None
    draft = root.parent / f".{root.name}.{secrets.token_hex(4)}.tmp"
    try:
        _fill(
            draft,
            site=site,
            declared_patients=declared_patients,
            policy=policy,
            virtual=virtual,
            passphrase=passphrase,
            node_key=node_key,
            secret=secret or secrets.token_bytes(SECRET_BYTES),
            key_file=key_file,
        )
        Ledger.create(Home.open(draft)).close()
        sync_all(draft)
        if root.exists():
            root.rmdir()
        draft.rename(root)
        sync_folder(root.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Home.open(root)


def _refuse_exact(patients: int) -> None:
    """Nothing, for a number that says of nobody whether they are in it: two digits and zeros, a multiple
    of 5."""
    step = max(5, 10 ** (len(str(patients)) - 2))
    if patients % step:
        low = patients - patients % step
        raise PolicyRefusal(
            "a number of patients that is not rounded: it would count them for everybody",
            allowed=f"a multiple of {step}, such as {max(step, low)} or {low + step}",
            next="round the number; it is stated once, and is the divisor of all that leaves",
            code="exact_number",
        )


def _fill(
    root: Path,
    *,
    site: str,
    declared_patients: int,
    policy: Policy,
    virtual: bool,
    passphrase: bytes,
    node_key: tuple[bytes, str],
    secret: bytes,
    key_file: Path | None,
) -> None:
    for name in (
        "approver",
        "trainer",
        "trainer/studies",
        "trainer/spool",
        "courier",
        "run",
        "head",
    ):
        (root / name).mkdir(mode=0o700, parents=True)
    approver, trainer = SigningKey.generate(), SigningKey.generate()
    approver.save(root / "approver" / "key.pem", passphrase=passphrase)
    at_rest = None if key_file is None else read_key_file(key_file)
    trainer.save(root / "trainer" / "key.pem", passphrase=at_rest)
    certificate = trainer_certificate(
        approver, trainer.public, site=site, epoch=1, virtual=virtual, now_s=int(time.time())
    )
    write_private(root / "trainer" / "certificate.json", canonical(certificate.as_dict()))
    write_private(root / "trainer" / "secret", locked(secret, key=at_rest))
    policy.write(root / "trainer" / "policy.toml")
    write_private(root / "courier" / "node_key", node_key[0])
    write_private(root / "courier" / "approved_bundles.json", b"[]")
    site_fields = {
        "site": site,
        "declared_patients": declared_patients,
        "virtual": int(virtual),
        "approver_key": approver.public.hex,
    }
    if key_file is not None:
        site_fields["key_file"] = os.fspath(key_file.resolve())
    write_private(root / "site.json", canonical(site_fields))
    write_request(
        root / "enrolment.json",
        approver,
        certificate,
        node_line=node_key[1],
        declared_patients=declared_patients,
    )
