"""A site's home folder: who this site is, and where its things lie.

    HOME/site.json                 name, declared size, virtual or not; written once
    HOME/approver/key.pem          the approver's key, under a passphrase
    HOME/trainer/                  trainer only: key, certificate, secret, policy, ledger, studies, spool
    HOME/courier/                  courier only: Flower node key, CA, approved bundles
    HOME/run/trainer.sock          the one socket between them
    HOME/enrolment.json            the request that goes to the coordinator; holds public keys only
    HOME/answer.json               the coordinator's answer

A home made with ``virtual`` serves virtual cohorts only, for ever: its key certificate says so.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from oncofed_client.enrolment import trainer_certificate, write_request
from oncofed_client.ledger import Ledger
from oncofed_client.policy import Policy
from oncofed_common.address import HOST_PORT, is_callable
from oncofed_common.durable import (
    read_object,
    read_regular,
    sync_all,
    sync_folder,
    write_private,
)
from oncofed_common.errors import IdentityRefusal, PolicyRefusal, SystemRefusal
from oncofed_common.identity import Certificate, PublicKey, SigningKey, canonical
from oncofed_common.passphrase import refuse_weak

SECRET_BYTES = 32
ANSWER = {"site", "address", "ca_pem", "coordinator_key"}
SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class Home:
    """Paths and identity of one site."""

    root: Path
    site: str
    declared_patients: int
    virtual: bool
    approver: PublicKey

    @property
    def approver_key_path(self) -> Path:
        return self.root / "approver" / "key.pem"

    @property
    def trainer(self) -> Path:
        return self.root / "trainer"

    @property
    def courier(self) -> Path:
        return self.root / "courier"

    @property
    def socket(self) -> Path:
        return self.root / "run" / "trainer.sock"

    @property
    def ledger_path(self) -> Path:
        return self.trainer / "ledger.sqlite"

    @property
    def head_path(self) -> Path:
        """The second copy of the ledger's head: outside the trainer's folder and its backup set."""
        return self.root / "head" / "ledger-head.json"

    def studies(self) -> list[str]:
        """Hashes of the studies that were ever approved here."""
        folder = self.trainer / "studies"
        return sorted(path.name for path in folder.iterdir() if len(path.name) == 64)

    def study_folder(self, study_hash: str) -> Path:
        return self.trainer / "studies" / study_hash

    def trainer_key(self) -> SigningKey:
        return SigningKey.load(self.trainer / "key.pem", passphrase=None)

    def approver_key(self, passphrase: bytes) -> SigningKey:
        key = SigningKey.load(self.approver_key_path, passphrase=passphrase)
        if key.public != self.approver:
            raise IdentityRefusal(
                "an approver key of another home",
                allowed="the key that init made here",
                next="restore the home folder as a whole",
            )
        return key

    def trainer_certificate(self) -> Certificate:
        return Certificate.from_dict(
            read_object(self.trainer / "certificate.json", what="a certificate")
        )

    def secret(self) -> bytes:
        """The site secret under which hospital numbers become lifelong keys.

        Raises:
            SystemRefusal: code ``no_secret``.
        """
        try:
            found = read_regular(self.trainer / "secret")
        except OSError:
            found = b""
        if len(found) != SECRET_BYTES:
            raise SystemRefusal(
                "a home whose secret is missing or damaged",
                allowed=f"the file trainer/secret of {SECRET_BYTES} bytes that init wrote",
                next="restore the home folder as a whole; without it no patient is recognised",
                code="no_secret",
            )
        return found

    def policy(self) -> Policy:
        return Policy.read(self.trainer / "policy.toml")

    def coordinator(self) -> PublicKey:
        """The coordinator's study key, as joined.

        Raises:
            IdentityRefusal: code ``not_joined``.
        """
        return PublicKey(str(self.answer()["coordinator_key"]))

    def is_coordinator(self, fingerprint: str) -> bool:
        """Whether this site has joined the coordinator of this fingerprint."""
        joined = (self.root / "answer.json").exists()
        return joined and self.coordinator().fingerprint == fingerprint

    def answer(self) -> Mapping[str, Any]:
        path = self.root / "answer.json"
        if not path.exists():
            raise IdentityRefusal(
                "a site that has not joined a coordinator",
                allowed="a home with the coordinator's answer",
                next="run oncofed-site join ANSWER --coordinator FINGERPRINT",
                code="not_joined",
            )
        found = read_object(path, what="an answer of the coordinator")
        texts = set(found) == ANSWER and all(isinstance(value, str) for value in found.values())
        if not texts or not is_callable(found["address"]):
            raise IdentityRefusal(
                "an answer of the coordinator that is not as join kept it",
                allowed=f"one JSON object of texts: {', '.join(sorted(ANSWER))}",
                next="run oncofed-site join again with the coordinator's answer file",
                code="bad_answer",
            )
        return found

    @classmethod
    def open(cls, root: Path) -> Home:
        """Read a home made by ``create``.

        Raises:
            SystemRefusal: code ``no_home``.
        """
        try:
            fields = json.loads((root / "site.json").read_text(encoding="utf-8"))
            return cls(
                root=root.resolve(),
                site=fields["site"],
                declared_patients=fields["declared_patients"],
                virtual=bool(fields["virtual"]),
                approver=PublicKey(fields["approver_key"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            raise SystemRefusal(
                "a folder that is not a site's home",
                allowed="a folder made by oncofed-site init",
                next="run oncofed-site init, or name the right --home",
                code="no_home",
            ) from None


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
) -> Home:
    """Make keys, policy and enrolment request in a new folder; all of it or nothing.

    Args:
        node_key: private key (PEM) and public line (OpenSSH) of the courier's Flower node.
        secret: the site secret of a virtual home whose runs have to repeat; None: the operating system's.

    Raises:
        SystemRefusal: codes ``bad_name``, ``home_exists``, ``home_write``.
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
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise SystemRefusal(
            "a home folder that is not empty",
            allowed="a new or empty folder",
            next="choose another --home; an existing home is never overwritten",
            code="home_exists",
        )
    refuse_weak(passphrase)
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


def join(home: Home, answer: Mapping[str, Any], *, coordinator: str) -> None:
    """Keep the coordinator's answer, if its key is the one that was read aloud.

    Raises:
        IdentityRefusal: another coordinator, one that this site distrusts, another site, or fields
            missing.
    """
    if set(answer) != ANSWER or not all(isinstance(v, str) for v in answer.values()):
        raise IdentityRefusal(
            "an answer file with other fields",
            allowed="the file that oncofed-coordinator enrol wrote",
            next="ask the coordinator for the answer file again",
            code="bad_answer",
        )
    if PublicKey(answer["coordinator_key"]).fingerprint != coordinator.replace(" ", "").lower():
        raise IdentityRefusal(
            "an answer of another coordinator",
            allowed="the coordinator whose fingerprint was read aloud",
            next="compare the fingerprints by telephone; do not use this answer",
            code="wrong_coordinator",
        )
    if answer["site"] != home.site:
        raise IdentityRefusal(
            "an answer for another site",
            allowed=f"the answer for {home.site}",
            next="ask the coordinator for this site's answer file",
            code="wrong_site",
        )
    if not is_callable(answer["address"]) or not _is_authority(answer["ca_pem"]):
        raise IdentityRefusal(
            "an answer without a usable address or certificate authority",
            allowed=f"{HOST_PORT}; and one certificate in PEM",
            next="ask the coordinator for the answer file again",
            code="bad_answer",
        )
    with Ledger.open(home) as ledger:
        ledger.refuse_distrusted(PublicKey(answer["coordinator_key"]).fingerprint)
    write_private(home.courier / "ca.pem", answer["ca_pem"].encode())
    write_private(home.root / "answer.json", canonical(answer))


def _is_authority(pem: str) -> bool:
    try:
        (found,) = x509.load_pem_x509_certificates(pem.encode())
        return found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound):
        return False


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
    trainer.save(root / "trainer" / "key.pem", passphrase=None)
    certificate = trainer_certificate(
        approver, trainer.public, site=site, epoch=1, virtual=virtual, now_s=int(time.time())
    )
    write_private(root / "trainer" / "certificate.json", canonical(certificate.as_dict()))
    write_private(root / "trainer" / "secret", secret)
    policy.write(root / "trainer" / "policy.toml")
    write_private(root / "courier" / "node_key", node_key[0])
    write_private(root / "courier" / "approved_bundles.json", b"[]")
    site_fields = {
        "site": site,
        "declared_patients": declared_patients,
        "virtual": int(virtual),
        "approver_key": approver.public.hex,
    }
    write_private(root / "site.json", canonical(site_fields))
    write_request(
        root / "enrolment.json",
        approver,
        certificate,
        node_line=node_key[1],
        declared_patients=declared_patients,
    )
