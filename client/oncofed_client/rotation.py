"""New keys for a site that takes part already: its trainer's and its courier's, under the same approver.

The old ones are gone at once; the site answers again when the coordinator has taken the new request, which is
a plain enrolment request of a higher epoch. No other site notices.

    new key beside the old one -> row in the ledger, which all three sign -> certificate -> in place

From that row on the ledger knows the new key alone. A rotation that died is begun again: first it puts in
place a key that the ledger knows already.
"""

from __future__ import annotations

import time
from pathlib import Path

from oncofed_client.enrolment import trainer_certificate, write_request
from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_client.start import is_running
from oncofed_common.durable import sync_folder, write_private
from oncofed_common.errors import SystemRefusal
from oncofed_common.identity import SigningKey, canonical


def rotate(home: Home, *, passphrase: bytes, node_key: tuple[bytes, str]) -> str:
    """Replace trainer key, certificate and node key, and write the request anew; the trainer's fingerprint.

    Args:
        node_key: private key (PEM) and public line (OpenSSH) of the courier's Flower node.

    Raises:
        SystemRefusal: code ``already_running``: trainer or courier would go on with the old keys; the disk.
        IdentityRefusal: a wrong passphrase. BudgetRefusal: a ledger that has to be settled first.
    """
    if is_running(home):
        raise SystemRefusal(
            "a trainer or courier of this home that is running",
            allowed="a site that is stopped: whoever runs has the old keys",
            next="run oncofed-site stop first",
            code="already_running",
        )
    approver, trainer = home.approver_key(passphrase), SigningKey.generate()
    draft = home.trainer / "key.next"
    with _ledger(home, draft) as ledger:
        draft.unlink(missing_ok=True)
        trainer.save(draft, passphrase=home.at_rest())
        sync_folder(home.trainer)
        ledger.rotate(trainer, key=approver)
    certificate = trainer_certificate(
        approver,
        trainer.public,
        site=home.site,
        epoch=home.trainer_certificate().epoch + 1,
        virtual=home.virtual,
        now_s=int(time.time()),
    )
    write_private(home.trainer / "certificate.json", canonical(certificate.as_dict()))
    _put_in_place(home, draft)
    write_private(home.courier / "node_key", node_key[0])
    write_request(
        home.root / "enrolment.json",
        approver,
        certificate,
        node_line=node_key[1],
        declared_patients=home.declared_patients,
    )
    return trainer.public.fingerprint


def _ledger(home: Home, draft: Path) -> Ledger:
    """The ledger under the key that it knows, also where a rotation died before that key was in place."""
    try:
        return Ledger.open(home)
    except SystemRefusal as refusal:
        if refusal.code != "key_mismatch" or not draft.exists():
            raise
    _put_in_place(home, draft)
    return Ledger.open(home)


def _put_in_place(home: Home, draft: Path) -> None:
    draft.replace(home.trainer / "key.pem")
    sync_folder(home.trainer)
