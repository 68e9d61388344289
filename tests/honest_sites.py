"""A coordinator's home with enrolled sites, and sites that answer as a real trainer would.

A site keeps its keys, answers each (study, round) once and stores the answer: the same task gets the
same bytes. Its update is a fixed function of site and round, so that a run's weights can be computed
apart. ``script`` says what goes wrong, by site and round.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from safetensors.numpy import save_file

from oncofed_common.identity import SigningKey, certify, digest
from oncofed_common.study import Study
from oncofed_common.tensors import TensorTerm, pack_tensors
from oncofed_common.wire import (
    NO_DIGEST,
    WIRE_VERSION,
    Charge,
    Head,
    Reply,
    frame,
    read_task,
    seal,
    unframe,
)
from oncofed_server.draft import draft_study, study_toml
from oncofed_server.home import init_home
from oncofed_server.registry import enrol
from oncofed_server.roster import read_roster
from oncofed_server.rounds import Outcome, conduct
from oncofed_server.runs import create_run
from oncofed_server.sites import Arrival
from oncofed_server.studies import publish

NOW_S = 1_800_000_000
SCHEMA = (TensorTerm(name="norm.bias", shape=(3,)), TensorTerm(name="norm.weight", shape=(2, 3)))
FIRST = {
    "norm.bias": np.array([0.0, -0.25, 1e-3], dtype=np.float32),
    "norm.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
}
TABLES = {
    "study": {
        "title": "A study for tests",
        "contact": "the coordinator",
        "ethics_reference": "none: virtual patients",
        "release": "weights_and_audit",
    },
    "cohort": {
        "modalities": ["T1w"],
        "label_scheme": {"NETC": 1, "SNFH": 2, "ET": 3, "RC": 4},
        "spacing_mm": 3.0,
        "crop_voxels": 32,
        "fewest_visits": 2,
        "held_out_fraction": 0.25,
    },
    "model": {"preset": "tiny", "adapters": "norm"},
    "training": {
        "rounds": 3,
        "steps_per_round": 2,
        "sampling_rate": 0.25,
        "pairs_per_patient": 2,
        "draws_per_patient": 2,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "dtype": "float32",
        "threads": 1,
    },
    "privacy": {"clip_norm": 1.0, "noise_multiplier": 2.0, "delta": 1e-5},
    "aggregation": {
        "strategy": "weighted_mean",
        "server_learning_rate": 0.75,
        "fewest_sites": 2,
        "round_deadline_s": 60,
    },
    "outbound": {"bytes_per_round": 20_000, "reply_after_s": 1, "metrics": []},
}


class FakeClock:
    """Time that passes only while somebody sleeps."""

    def __init__(self, at_s: float = NOW_S) -> None:
        self.at_s = at_s

    def now_s(self) -> int:
        return int(self.at_s)

    def sleep(self, seconds: float) -> None:
        self.at_s += seconds


@dataclass(kw_only=True)
class Site:
    """A hospital's keys and what it has answered."""

    name: str
    approver: SigningKey = field(default_factory=SigningKey.generate)
    trainer: SigningKey = field(default_factory=SigningKey.generate)
    node: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP384R1())
    )
    virtual: bool = True
    epoch: int = 1
    now_s: int = NOW_S
    answered: dict[int, bytes] = field(default_factory=dict)
    trained: int = 0

    def certificate(self):
        return certify(
            self.approver,
            self.trainer.public,
            purpose="trainer",
            holder=self.name,
            epoch=self.epoch,
            not_before_s=self.now_s - 1000,
            not_after_s=self.now_s + 10_000_000,
            virtual=self.virtual,
        )

    def node_line(self) -> str:
        public = self.node.public_key()
        return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    def request(self, **changes) -> dict:
        """The enrolment request, signed; ``changes`` are made before signing."""
        request = {
            "site": self.name,
            "approver_key": self.approver.public.hex,
            "trainer_certificate": self.certificate().as_dict(),
            "node_key": self.node_line() + " courier@hospital",
            "declared_patients": 20,
            "virtual": int(self.virtual),
            **changes,
        }
        return {"request": request, "signature": self.approver.sign("enrolment", request)}

    def reply(self, task_frame: bytes, **changes) -> bytes:
        """The signed reply to a task; ``changes`` to its envelope are signed too."""
        envelope, _ = unframe(task_frame, cap_bytes=10**9)
        task, _ = read_task(envelope)
        update = changes.pop("update", None)
        if update is None:
            update = update_of(self.name, task.round)
        packed = pack_tensors(update) if changes.get("code", "ok") == "ok" else b""
        fields = {
            "wire_version": WIRE_VERSION,
            "task_digest": digest(task_frame),
            "study_hash": task.study_hash,
            "run": task.run,
            "round": task.round,
            "site": self.name,
            "code": "ok",
            "payload_kind": "plain" if packed else "none",
            "update_digest": digest(packed) if packed else NO_DIGEST,
            "charge": Charge(epsilon="2.5", delta="0.00001"),
            "protected": 1,
            "wheel_hash": "e" * 64,
            "ledger_head": Head(sequence=task.round, commitment=digest(task_frame)),
            "trainer_certificate": self.certificate().as_dict(),
        }
        return frame(seal(Reply(**{**fields, **changes}), self.trainer), packed)

    def answer(self, task_frame: bytes) -> bytes:
        """Train once a round; after that the stored reply, byte for byte."""
        round_number = read_task(unframe(task_frame, cap_bytes=10**9)[0])[0].round
        if round_number not in self.answered:
            self.trained += 1
            self.answered[round_number] = self.reply(task_frame)
        return self.answered[round_number]


Behaviour = Callable[[Site, bytes], Arrival | None]
"""What comes back for a task frame; None: nothing."""


def honest(site: Site, task_frame: bytes) -> Arrival | None:
    return Arrival(site=site.name, frame=site.answer(task_frame), code="ok")


def silent(site: Site, task_frame: bytes) -> Arrival | None:
    return None


def deaf(site: Site, task_frame: bytes) -> Arrival | None:
    """The courier cannot reach its trainer."""
    return Arrival(site=site.name, frame=None, code="unavailable")


def refusing(code: str) -> Behaviour:
    """The trainer says no, signed."""
    return lambda site, task: Arrival(site=site.name, frame=site.reply(task, code=code), code="ok")


class HonestSites:
    """The carrier between a round loop and sites in this process.

    Args:
        script: behaviour by (site, round); everybody else is honest.
        offline: sites that are never reachable.
        order: in which order the replies of one poll arrive.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        *,
        script: Mapping[tuple[str, int], Behaviour] | None = None,
        offline: frozenset[str] = frozenset(),
        order: Callable[[list[Arrival]], list[Arrival]] = list,
    ) -> None:
        self.sites = sites
        self.script = dict(script or {})
        self.offline = offline
        self.order = order
        self.sent: list[tuple[str, int, bytes]] = []
        self.waiting: list[Arrival] = []

    def online(self, wait_s: float) -> frozenset[str]:
        return frozenset(self.sites) - self.offline

    def send(self, tasks: Mapping[str, bytes], *, expires_s: int) -> None:
        for name, task_frame in tasks.items():
            number = read_task(unframe(task_frame, cap_bytes=10**9)[0])[0].round
            self.sent.append((name, number, task_frame))
            arrival = self.script.get((name, number), honest)(self.sites[name], task_frame)
            if arrival is not None:
                self.waiting.append(arrival)

    def poll(self) -> list[Arrival]:
        arrived, self.waiting = self.order(self.waiting), []
        return arrived


@dataclass(frozen=True, kw_only=True)
class Federation:
    """A home, its enrolled sites, the base weights, and one published study with its run."""

    home: Path
    base: Path
    sites: dict[str, Site]
    study: Study
    run: str

    @property
    def folder(self) -> Path:
        return self.home / "runs" / self.run

    def conduct(self, sites: HonestSites | None = None, clock: FakeClock | None = None) -> Outcome:
        return conduct(
            self.home, self.run, sites or HonestSites(self.sites), clock=clock or FakeClock()
        )


def update_of(site: str, round_number: int) -> dict[str, np.ndarray]:
    """The int32 update that a site gives in a round."""
    seed = int(digest(f"{site} {round_number}".encode())[:8], 16)
    draw = np.random.default_rng(seed)
    return {
        term.name: draw.integers(-(2**20), 2**20, term.shape).astype(np.int32) for term in SCHEMA
    }


def enrolled_home(
    root: Path, names: tuple[str, ...], *, virtual: bool = True, now_s: int = NOW_S
) -> dict[str, Site]:
    """Make ``root/home`` with these sites enrolled, and ``root/base.safetensors``."""
    init_home(
        root / "home",
        name="office",
        address="127.0.0.1:8443",
        passphrase=None,
        task_key_days=30,
        now_s=now_s - 100,
    )
    sites = {name: Site(name=name, virtual=virtual, now_s=now_s) for name in names}
    for site in sites.values():
        path = root / f"{site.name}.json"
        path.write_text(json.dumps(site.request()))
        enrol(root / "home", path, address="127.0.0.1:8443", ca_pem="a CA", now_s=now_s - 50)
    frozen = {"frozen.weight": np.zeros((5, 5), dtype=np.float16)}
    save_file({**FIRST, **frozen}, root / "base.safetensors", metadata={"made": "by hand"})
    return sites


def drafted(root: Path, weights: Mapping[str, int], *, seed: int | None = None, **changes) -> Study:
    """A study for enrolled sites, with some tables changed."""
    tables = {name: {**table, **changes.get(name, {})} for name, table in TABLES.items()}
    tables["study"].setdefault("expires", date(2099, 1, 1))
    return draft_study(
        read_roster(root / "home"),
        base=root / "base.safetensors",
        tensors=SCHEMA,
        weights=weights,
        seed=seed,
        **tables,
    )


def federation(
    root: Path, weights: Mapping[str, int], *, now_s: int = NOW_S, **changes
) -> Federation:
    """Everything up to a run that is ready to begin."""
    sites = enrolled_home(root, tuple(weights), now_s=now_s)
    study = drafted(root, weights, **changes)
    (root / "study.toml").write_text(study_toml(study), encoding="utf-8")
    home, base = root / "home", root / "base.safetensors"
    publish(home, root / "study.toml", base=base, passphrase=None, now_s=now_s)
    run = create_run(home, study.hash, now_s=now_s)
    return Federation(home=home, base=base, sites=sites, study=study, run=run)
