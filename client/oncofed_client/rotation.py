"""New keys for a site that takes part already: its trainer's and its courier's, under the same approver.

The old ones are gone at once; the site answers again when the coordinator has taken the new request, which is
a plain enrolment request of a higher epoch. No other site notices. A rotation that died is begun again.
"""

from __future__ import annotations

import time

from oncofed_client.enrolment import trainer_certificate, write_request
from oncofed_client.home import Home
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
        IdentityRefusal: a wrong passphrase.
    """
    if is_running(home):
        raise SystemRefusal(
            "a trainer or courier of this home that is running",
            allowed="a site that is stopped: whoever runs has the old keys",
            next="run oncofed-site stop first",
            code="already_running",
        )
    approver, trainer = home.approver_key(passphrase), SigningKey.generate()
    certificate = trainer_certificate(
        approver,
        trainer.public,
        site=home.site,
        epoch=home.trainer_certificate().epoch + 1,
        virtual=home.virtual,
        now_s=int(time.time()),
    )
    write_private(home.trainer / "certificate.json", canonical(certificate.as_dict()))
    draft = home.trainer / "key.next"
    draft.unlink(missing_ok=True)
    trainer.save(draft, passphrase=home.at_rest())
    draft.replace(home.trainer / "key.pem")
    sync_folder(home.trainer)
    write_private(home.courier / "node_key", node_key[0])
    write_request(
        home.root / "enrolment.json",
        approver,
        certificate,
        node_line=node_key[1],
        declared_patients=home.declared_patients,
    )
    return trainer.public.fingerprint
