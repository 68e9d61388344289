"""The coordinator's home folder: keys, the roster of enrolled sites, published studies, runs.

    roster.json                     who is enrolled, the coordinator's public keys, the revocation epoch
    keys/study.pem                  signs studies and certifies the task key; may have a passphrase
    keys/task.pem                   signs tasks, participation records and releases
    tls/                            the certificate authority and SuperLink's certificate
    heads.json                      the ledger head that each site signed last
    studies/HASH/                   study.toml, study.sig, bundle.json, first.safetensors
    runs/RUN/                       see runs.py

The process that conducts a run holds that run's lock, so that several runs may go on side by side;
whoever changes the roster or the heads holds ``roster.lock`` or ``heads.lock`` for that moment only.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from oncofed_common.address import HOST_PORT, is_callable
from oncofed_common.durable import (
    is_used,
    locked,
    new_folder,
    read_object,
    write_atomic,
)
from oncofed_common.errors import IdentityRefusal, SystemRefusal
from oncofed_common.identity import (
    Certificate,
    PublicKey,
    SigningKey,
    canonical,
    certify,
)
from oncofed_common.passphrase import refuse_weak
from oncofed_common.wire import Head
from oncofed_server.certificates import make_certificates
from oncofed_server.roster import Coordinator, Roster, read_roster, roster_lock, write_roster

DAY_S = 86_400


def init_home(
    home: Path,
    *,
    name: str,
    address: str,
    passphrase: bytes | None,
    task_key_days: int,
    now_s: int,
) -> Roster:
    """Make a home: a study key, a task key that it certifies, a certificate authority, an empty roster.

    Args:
        home: a folder that does not exist yet, or is empty.
        address: "host:port" at which sites will reach this coordinator.
        passphrase: encrypts the study key.
        task_key_days: how long the task key's certificate is valid; ``publish`` renews it.

    Raises:
        SystemRefusal: codes ``home_exists``, ``bad_name``, ``bad_address``, ``disk``, ``disk_full``.
        PolicyRefusal: code ``weak_passphrase``.
    """
    if is_used(home):
        raise SystemRefusal(
            "a home folder that is not empty",
            allowed="a folder that does not exist yet, or is empty",
            next="name another folder; keys are never overwritten",
            code="home_exists",
        )
    if not is_callable(address):
        raise SystemRefusal(
            "an address at which no site could call",
            allowed=HOST_PORT,
            next="correct --address; the certificate is made for it, and every site is told it",
            code="bad_address",
        )
    if passphrase is not None:
        refuse_weak(passphrase)
    study_key, task_key = SigningKey.generate(), SigningKey.generate()
    try:
        roster = Roster(
            coordinator=Coordinator(
                name=name,
                address=address,
                study_key=study_key.public.hex,
                task_certificate=_task_certificate(
                    study_key, task_key.public, epoch=1, now_s=now_s, days=task_key_days
                ).as_dict(),
            ),
            revocation_epoch=0,
            sites=(),
        )
    except ValidationError:
        raise SystemRefusal(
            "a coordinator name that cannot be used",
            allowed="a name of lower-case letters, digits and hyphens",
            next="choose a plain name, such as the study group's",
            code="bad_name",
        ) from None
    with new_folder(home, mode=0o700) as folder:
        (folder / "keys").mkdir(mode=0o700)
        study_key.save(folder / "keys/study.pem", passphrase=passphrase)
        task_key.save(folder / "keys/task.pem", passphrase=None)
        for part in ("studies", "runs"):
            (folder / part).mkdir()
        make_certificates(
            folder / "tls",
            names=[address.rpartition(":")[0]],
            now=datetime.fromtimestamp(now_s, tz=UTC),
        )
        (folder / "roster.json").write_bytes(canonical(roster.model_dump(mode="json")))
    return roster


def load_study_key(home: Path, *, passphrase: bytes | None) -> SigningKey:
    """The offline study key.

    Raises:
        IdentityRefusal: code ``key_unreadable``.
    """
    return SigningKey.load(home / "keys/study.pem", passphrase=passphrase)


def load_task_key(home: Path) -> SigningKey:
    """The task key.

    Raises:
        IdentityRefusal: code ``key_unreadable``.
    """
    return SigningKey.load(home / "keys/task.pem", passphrase=None)


def renew_task_certificate(home: Path, study_key: SigningKey, *, until_s: int, now_s: int) -> None:
    """See to it that the task key's certificate lasts until ``until_s``; the key and epoch stay.

    Raises:
        IdentityRefusal: ``study_key`` is not this home's.
    """
    with roster_lock(home):
        roster = read_roster(home)
        current = Certificate.from_dict(roster.coordinator.task_certificate)
        if current.issuer != study_key.public.fingerprint:
            raise IdentityRefusal(
                "another study key than the roster names",
                allowed="the study key that init made in this home",
                next="restore keys/study.pem from a backup",
                code="wrong_key",
            )
        if current.not_after_s >= until_s:
            return
        days = -(-(until_s - now_s) // DAY_S)
        renewed = _task_certificate(
            study_key, PublicKey(current.subject), epoch=current.epoch, now_s=now_s, days=days
        )
        coordinator = roster.coordinator.model_copy(update={"task_certificate": renewed.as_dict()})
        write_roster(home, roster.model_copy(update={"coordinator": coordinator}))


def read_heads(home: Path) -> dict[str, Head]:
    """The ledger head that each site signed last, by site.

    Raises:
        SystemRefusal: code ``unreadable``.
    """
    path = home / "heads.json"
    if not path.exists():
        return {}
    try:
        found = read_object(path, what="the sites' ledger heads")
        return {site: Head.model_validate(head) for site, head in found.items()}
    except ValidationError:
        raise SystemRefusal(
            "ledger heads that cannot be read",
            allowed="the heads as the last replies stated them",
            next="restore heads.json from a backup",
            code="unreadable",
        ) from None


def write_heads(home: Path, heads: Mapping[str, Head]) -> None:
    """Keep each head that is not behind the one that is kept already, whichever run it came by."""
    with locked(home / "heads.lock", wait=True, busy="another run that writes heads"):
        kept = read_heads(home)
        newer = {
            site: head
            for site, head in heads.items()
            if site not in kept or head.sequence >= kept[site].sequence
        }
        if newer:
            after = {site: head.model_dump(mode="json") for site, head in {**kept, **newer}.items()}
            write_atomic(home / "heads.json", canonical(after))


def _task_certificate(
    study_key: SigningKey, task_key: PublicKey, *, epoch: int, now_s: int, days: int
) -> Certificate:
    return certify(
        study_key,
        task_key,
        purpose="task",
        holder="coordinator",
        epoch=epoch,
        not_before_s=now_s,
        not_after_s=now_s + days * DAY_S,
        virtual=False,
    )
