"""A site's home folder: who this site is, and where its things lie.

    HOME/site.json                 name, declared size, virtual or not; written once
    HOME/approver/key.pem          the approver's key, under a passphrase
    HOME/approver/second.pem       the second approver's, under another, where there is one
    HOME/trainer/                  trainer only: key, certificate, secret, policy, ledger, studies, spool
                                   (key and secret under a key file, if init was given one)
    HOME/courier/                  courier only: Flower node key, CA, approved bundles
    HOME/run/trainer.sock          the one socket between them
    HOME/enrolment.json            the request that goes to the coordinator; holds public keys only
    HOME/answer.json               the coordinator's answer

``new_home`` makes it. A home made with ``virtual`` serves virtual cohorts only, for ever: its key certificate
says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from oncofed_client.at_rest import read_key_file, unlocked
from oncofed_client.ledger import Ledger
from oncofed_client.policy import Policy
from oncofed_common.address import HOST_PORT, is_callable
from oncofed_common.durable import (
    read_object,
    read_regular,
    write_private,
)
from oncofed_common.errors import IdentityRefusal, SystemRefusal
from oncofed_common.identity import (
    Certificate,
    PublicKey,
    SigningKey,
    canonical,
    plain_fingerprint,
)

SECRET_BYTES = 32
ANSWER = {"site", "approver_key", "address", "ca_pem", "coordinator_key"}
SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class Home:
    """Paths and identity of one site."""

    root: Path
    site: str
    declared_patients: int
    virtual: bool
    approver: PublicKey
    key_file: Path | None

    @property
    def approver_key_path(self) -> Path:
        return self.root / "approver" / "key.pem"

    @property
    def second_key_path(self) -> Path:
        return self.root / "approver" / "second.pem"

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

    @property
    def refused_head_path(self) -> Path:
        """The copy of the head of the refusals' chain, beside that of the ledger's."""
        return self.root / "head" / "refused-head.json"

    def hidden_from_courier(self) -> list[Path]:
        """What of this site must not exist for its courier; the scans come on top."""
        key_file = [] if self.key_file is None else [self.key_file]
        return [self.trainer, self.root / "approver", *key_file]

    def studies(self) -> list[str]:
        """Hashes of the studies that were ever approved here."""
        folder = self.trainer / "studies"
        return sorted(path.name for path in folder.iterdir() if len(path.name) == 64)

    def study_folder(self, study_hash: str) -> Path:
        return self.trainer / "studies" / study_hash

    def trainer_key(self) -> SigningKey:
        return SigningKey.load(self.trainer / "key.pem", passphrase=self.at_rest())

    def at_rest(self) -> bytes | None:
        """Under what the trainer's key and the site secret lie here; None: in clear, mode 0600.

        Raises:
            SystemRefusal: code ``no_key_file``.
        """
        return None if self.key_file is None else read_key_file(self.key_file)

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
            SystemRefusal: codes ``no_secret``, ``no_key_file``.
        """
        try:
            stored = read_regular(self.trainer / "secret")
        except OSError:
            stored = b""
        return unlocked(stored, key=self.at_rest())

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
                key_file=Path(fields["key_file"]) if "key_file" in fields else None,
            )
        except (OSError, ValueError, KeyError, TypeError):
            raise SystemRefusal(
                "a folder that is not a site's home",
                allowed="a folder made by oncofed-site init",
                next="run oncofed-site init, or name the right --home",
                code="no_home",
            ) from None


def join(home: Home, answer: Mapping[str, Any], *, coordinator: str) -> None:
    """Keep the coordinator's answer, if its key is the one that was read aloud.

    Raises:
        IdentityRefusal: another coordinator, one that this site distrusts, another site or an older
            home of this name, or fields missing.
    """
    if set(answer) != ANSWER or not all(isinstance(v, str) for v in answer.values()):
        raise IdentityRefusal(
            "an answer file with other fields",
            allowed="the file that oncofed-coordinator enrol wrote",
            next="ask the coordinator for the answer file again",
            code="bad_answer",
        )
    if PublicKey(answer["coordinator_key"]).fingerprint != plain_fingerprint(coordinator):
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
    if answer["approver_key"] != home.approver.hex:
        raise IdentityRefusal(
            f"an answer for another home of the name {home.site}",
            allowed="the answer to this home's own request",
            next="send this home's own request; if its name is taken, make a home of another name",
            code="wrong_home",
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
