"""A joined virtual site with one approved study, and the coordinator that sends it tasks."""

from __future__ import annotations

import datetime as dt
import json
import os
import secrets
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from study_builder import a_study

from oncofed_client import consent, new_home
from oncofed_client import home as site_home
from oncofed_client.approval import Approved
from oncofed_client.courier.node import make_node_key
from oncofed_client.home import Home
from oncofed_client.isolation import Isolation
from oncofed_client.ledger import Ledger
from oncofed_client.policy import Policy
from oncofed_client.trainer.log import Slotted, open_log
from oncofed_client.trainer.tasks import TaskDesk
from oncofed_client.trainer.training import Round
from oncofed_common.identity import SigningKey, certify, digest
from oncofed_common.study import Study, sign_study
from oncofed_common.tensors import pack_tensors
from oncofed_common.wire import (
    NO_DIGEST,
    WIRE_VERSION,
    Participation,
    Reply,
    SignedParticipation,
    SiteOutcome,
    Task,
    frame,
    read_reply,
    seal,
    unframe,
)
from oncofed_server.certificates import make_certificates
from oncofed_server.draft import study_toml


def certificate_authority() -> str:
    with tempfile.TemporaryDirectory() as folder:
        make_certificates(Path(folder), names=[], now=dt.datetime.now(tz=dt.UTC))
        return (Path(folder) / "ca.pem").read_text()


BASE = b"base weights that nobody opens here"
NOW_S = int(os.environ.setdefault("ONCOFED_TESTS_NOW_S", str(int(time.time()) + 86_400)))
"""Tomorrow: homes are made by the machine's clock, and what is tested comes after. A process that a test
starts has the same."""
PASSPHRASE = b"correct horse battery"
CA_PEM = certificate_authority()
PATIENTS = [f"{number:064x}" for number in range(1, 6)]


@dataclass
class Coordinator:
    """Keys of a coordinator, and tasks in order."""

    study_key: SigningKey = field(default_factory=SigningKey.generate)
    task_key: SigningKey = field(default_factory=SigningKey.generate)
    run: str = field(default_factory=lambda: secrets.token_hex(16))
    now_s: int = NOW_S

    def certificate(self) -> dict[str, Any]:
        return certify(
            self.study_key,
            self.task_key.public,
            purpose="task",
            holder="coordinator",
            epoch=1,
            not_before_s=self.now_s - 1000,
            not_after_s=self.now_s + 10_000_000,
            virtual=False,
        ).as_dict()

    def task(
        self,
        at: Site,
        *,
        number: int = 1,
        weights: Mapping[str, np.ndarray] | None = None,
        packed: bytes | None = None,
        record: Participation | None = None,
        key: SigningKey | None = None,
        record_key: SigningKey | None = None,
        **changes: Any,
    ) -> bytes:
        """The frame of a task for ``at``, with some fields changed or under other keys.

        Args:
            packed: the tensor file itself, where ``weights`` cannot say what it should hold.
        """
        if packed is None:
            packed = pack_tensors(weights if weights is not None else zeros(at.study))
        signed = None
        if record is not None:
            signature = (record_key or self.task_key).sign("participation", record.payload())
            signed = SignedParticipation(record=record, signature=signature)
        fields = {
            "wire_version": WIRE_VERSION,
            "study_hash": at.study.hash,
            "run": self.run,
            "round": number,
            "site": at.home.site,
            "trainer_key": at.home.trainer_key().public.fingerprint,
            "task_certificate": self.certificate(),
            "nonce": secrets.token_hex(32),
            "not_before_s": self.now_s,
            "expires_s": self.now_s + 600,
            "reply_at_s": self.now_s + at.study.outbound.reply_after_s,
            "weights_digest": digest(packed),
            "schema_digest": at.study.schema_digest,
            "participation_digest": record.digest() if record else NO_DIGEST,
            "participation": signed,
            "revocation_epoch": 0,
            "ledger_head": None,
        }
        task = Task.model_validate(fields | changes)
        return frame(seal(task, key or self.task_key), packed)

    def record(
        self, site: Site, *, number: int, reply: bytes | None, **changes: Any
    ) -> Participation:
        """The record of a round in which ``site`` was counted with ``reply``."""
        outcome = SiteOutcome(
            site=site.home.site,
            outcome="counted" if reply is not None else "left_out",
            reason="" if reply is not None else "no_reply",
            code="",
            reply_digest=digest(reply) if reply is not None else NO_DIGEST,
        )
        packed = digest(pack_tensors(zeros(site.study)))
        fields = {
            "study_hash": site.study.hash,
            "run": self.run,
            "round": number,
            "sites": (outcome,),
            "weights_before": packed,
            "weights_after": packed,
            "previous": NO_DIGEST,
            "status": "partial",
        }
        return Participation.model_validate(fields | changes)


@dataclass
class Site:
    """One site with its desk; ``work`` counts how often it trained."""

    home: Home
    study: Study
    ledger: Ledger
    log: Slotted
    open: ExitStack
    trained: list[int] = field(default_factory=list)
    dies: bool = False
    now_s: float = NOW_S + 1.0
    isolation: Isolation = "no_network"

    def work(self, approved: Approved, weights: Mapping[str, Any], number: int) -> Round:
        """An honest small stand-in for training: another random update each time."""
        self.trained.append(number)
        if self.dies:
            raise MemoryError("canary: patient Jane Doe in /data/scans")
        rng = np.random.default_rng(secrets.randbits(64))
        update = {n: rng.normal(0, 1e-3, w.shape).astype(np.float32) for n, w in weights.items()}
        return Round(update=update, protected=True, faults=())

    def desk(self) -> TaskDesk:
        return TaskDesk(
            self.home,
            self.ledger,
            isolation=lambda: self.isolation,
            work=self.work,
            frame=lambda approved: self.ledger.may_be_drawn(approved.study_hash, PATIENTS),
            clock=lambda: self.now_s,
            log=self.log,
        )


def zeros(study: Study) -> dict[str, np.ndarray]:
    return {term.name: np.zeros(term.shape, dtype=np.float32) for term in study.schema_terms}


def a_home(
    root: Path,
    *,
    name: str = "north",
    virtual: bool = True,
    secret: bytes | None = None,
    key_file: Path | None = None,
    **limits: Any,
) -> Home:
    settings = {
        "lifetime_epsilon": "12",
        "lifetime_delta": "0.00001",
        "filter_order": "3",
        "declared_patients": 20,
        "bytes_per_round": 200_000,
    } | limits
    return new_home.create(
        root / name,
        site=name,
        declared_patients=settings["declared_patients"],
        policy=Policy.parse(**settings),
        virtual=virtual,
        passphrase=PASSPHRASE,
        node_key=make_node_key(),
        secret=secret,
        key_file=key_file,
    )


def joined(home: Home, coordinator: Coordinator) -> Home:
    answer = {
        "site": home.site,
        "approver_key": home.approver.hex,
        "address": "127.0.0.1:1",
        "ca_pem": CA_PEM,
        "coordinator_key": coordinator.study_key.public.hex,
    }
    site_home.join(home, answer, coordinator=coordinator.study_key.public.fingerprint)
    return home


def study_for(home: Home, **changes: Any) -> Study:
    """A cheap study that ``home`` is invited to."""
    site = {
        "name": home.site,
        "fingerprint": home.approver.fingerprint,
        "declared_patients": home.declared_patients,
        "weight": 1,
    }
    rooms = {
        "model": {"base_sha256": digest(BASE)},
        "privacy": {"noise_multiplier": 2.0, "epsilon": 4.0},
    }
    rooms |= {
        room: {**rooms.get(room, {}), **new}
        for room, new in changes.items()
        if isinstance(new, dict)
    }
    lists = {room: new for room, new in changes.items() if not isinstance(new, dict)}
    return a_study(sites=[site], **rooms, **lists)


def published(root: Path, study: Study, coordinator: Coordinator, *, base: bytes = BASE) -> Path:
    folder = root / f"published-{study.hash[:8]}"
    folder.mkdir(parents=True)
    (folder / "study.toml").write_text(study_toml(study), encoding="utf-8")
    (folder / "study.sig").write_text(json.dumps(sign_study(study, coordinator.study_key)))
    (folder / "bundle.json").write_text(json.dumps({"sha256": "b" * 64}))
    (root / "base.safetensors").write_bytes(base)
    return folder


def approved(
    root: Path,
    home: Home,
    study: Study,
    coordinator: Coordinator,
    *,
    base: bytes = BASE,
    networked: bool = False,
) -> Site:
    """Approve ``study`` as the command does, and open the ledger."""
    folder = published(root, study, coordinator, base=base)
    ledger = Ledger.open(home)
    proposal = consent.propose(
        home, ledger, folder, base=root / "base.safetensors", networked=networked
    )
    consent.agree(home, ledger, proposal, passphrase=PASSPHRASE)
    stack = ExitStack()
    stack.enter_context(ledger)
    log = stack.enter_context(
        open_log(home.trainer / "log.jsonl", head=home.refused_head_path, key=home.trainer_key())
    )
    return Site(home=home, study=study, ledger=ledger, log=log, open=stack)


def a_site(root: Path, coordinator: Coordinator, **changes: Any) -> Site:
    """A new home, joined, with one approved study."""
    home = joined(a_home(root), coordinator)
    return approved(root, home, study_for(home, **changes), coordinator)


def code_of(reply: bytes) -> str:
    envelope, _ = unframe(reply, cap_bytes=10**6)
    return read_reply(envelope)[0].code


def reply_of(reply: bytes) -> Reply:
    envelope, _ = unframe(reply, cap_bytes=10**6)
    return read_reply(envelope)[0]
