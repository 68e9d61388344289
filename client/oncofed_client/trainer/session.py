"""What a trainer holds in memory: its cohort's patients as tensors, one network for each study.

Everything is read from the site's own disk before the first task of a study, so that a task spends
its time on training. Nothing of it is visible through the socket.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from oncofed_client.approval import Approved
from oncofed_client.home import Home
from oncofed_client.identities import read_identities
from oncofed_client.ledger import Ledger
from oncofed_client.readers.cohort import read_cohort
from oncofed_client.trainer.measuring import measure
from oncofed_client.trainer.members import Member, lifelong_keys, members
from oncofed_client.trainer.training import Round, Setup, deterministic, loss_for, train_round
from oncofed_common.diffusion.processes import DEFAULT, PROCESSES
from oncofed_common.errors import CohortRefusal, ModelRefusal, PolicyRefusal
from oncofed_common.identity import canonical
from oncofed_common.model import adapters
from oncofed_common.model.prepare import FIELDS, Batch, condition_channels
from oncofed_common.model.presets import preset
from oncofed_common.model.tokens import FEATURES, TOKENS
from oncofed_common.model.weights import network_of, parse
from oncofed_common.privacy.engine import patient_gradient
from oncofed_common.privacy.stream import Stream

OnProgress = Callable[[str, int, int], None]
"""What is being done, how much of it, of how much: for the hospital's own screen."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """One study, ready to train."""

    setup: Setup
    members: tuple[Member, ...]
    held_out: tuple[Member, ...]


class Session:
    """Patients and networks of one home; its lifetime is that of the trainer process."""

    def __init__(
        self,
        home: Home,
        ledger: Ledger,
        *,
        cohort: Path,
        identities: Path,
        device: torch.device,
        on_progress: OnProgress,
    ) -> None:
        self._home = home
        self._ledger = ledger
        self._cohort = cohort
        self._identities = identities
        self._device = device
        self._on_progress = on_progress
        self._ready: dict[str, Ready] = {}
        refuse_mixing(cohort, virtual=home.virtual)
        refuse_strangers(cohort, identities)

    def ready(self, approved: Approved) -> Ready:
        """Network and patients of a study, prepared once."""
        study = approved.study
        if study.hash not in self._ready:
            shape = preset(study.model.preset)
            base = parse(approved.base_path.read_bytes(), shape, sha256=study.model.base_sha256)
            network = network_of(base)
            cohort = read_cohort(self._cohort)
            secret = self._home.secret()
            everybody = cohort.participants
            keys = lifelong_keys(everybody, identities=self._identities, secret=secret)
            self._on_progress("patients with a hospital number", len(keys), len(everybody))
            found, held_out = (
                members(
                    cohort,
                    study=study,
                    preset=shape,
                    keys=keys if wanted else {},
                    secret=secret,
                    held_out=who,
                    on_patient=lambda done, total: self._on_progress(
                        "reading patients", done, total
                    ),
                )
                for who, wanted in ((False, True), (True, bool(study.outbound.metrics)))
            )
            trained = adapters.select(network.to(self._device), study.model.adapters)
            setup = Setup(
                study=study,
                declared_patients=study.site(self._home.site).declared_patients,
                network=network,
                trained=trained,
                process=PROCESSES[DEFAULT],
                device=self._device,
            )
            with deterministic(study.training.threads):
                refuse_broken(setup)
            self._ready[study.hash] = Ready(
                setup=setup,
                members=tuple(found),
                held_out=tuple(held_out),
            )
        return self._ready[study.hash]

    def frame(self, approved: Approved) -> list[str]:
        """Lifelong keys of everybody who could be drawn, or measured on, in a round of this study now."""
        ready = self.ready(approved)
        known = [member.lifelong for member in (*ready.members, *ready.held_out)]
        return self._ledger.may_be_drawn(approved.study_hash, known)

    def work(
        self, approved: Approved, weights: Mapping[str, NDArray[Any]], round_number: int
    ) -> Round:
        """Measure and train one round on those whom the ledger has charged for it."""
        ready = self.ready(approved)
        charged = set(self._ledger.charged_in(approved.study_hash, round=round_number))
        stream = stream_for(approved, home=self._home, round_number=round_number)
        means = None
        if approved.study.outbound.metrics:
            others = [member for member in ready.held_out if member.lifelong in charged]
            means = measure(others, setup=ready.setup, weights=weights, stream=stream)
        done = train_round(
            [member.rows for member in ready.members if member.lifelong in charged],
            setup=ready.setup,
            weights=weights,
            stream=stream,
            on_step=lambda done, total: self._on_progress(f"round {round_number}", done, total),
        )
        return replace(done, means=means)


def refuse_broken(setup: Setup) -> None:
    """Try one gradient of a patient who does not exist, all zeros.

    A real patient that cannot be computed contributes nothing, silently; so what is broken for everybody
    has to be found here, before anybody is charged for noise alone.

    Raises:
        ModelRefusal: code ``cannot_train``.
    """
    shape = setup.network.preset
    cube = (shape.size,) * 3
    nobody = Batch(
        conditions=torch.zeros(1, condition_channels(shape), *cube),
        tokens=torch.zeros(1, TOKENS, FEATURES),
        target=torch.zeros(1, FIELDS, *cube),
        known=torch.ones(1, FIELDS),
    )
    gradient = patient_gradient(
        nobody,
        loss_of=loss_for(setup),
        parameters=list(setup.trained.values()),
        generator=torch.Generator().manual_seed(0),
    )
    if not torch.isfinite(gradient).all() or not gradient.any():
        raise ModelRefusal(
            "a network that learns nothing from a patient",
            allowed="a finite gradient that is not zero everywhere",
            next="use the base weights and the version of oncofed that the study names",
            code="cannot_train",
        )


def stream_for(approved: Approved, *, home: Home, round_number: int) -> Stream:
    """Randomness of one round: the operating system's; a seed's only in a virtual home.

    A seeded stream depends on seed, site and round. The study's hash stays out of it: that holds the
    fingerprints of keys, which are new whenever a federation is founded, and a seeded run must repeat.

    Raises:
        PolicyRefusal: code ``seed_forbidden``; a seed at a real site.
    """
    seeded = approved.study.virtual
    if seeded is None:
        return Stream.from_os()
    if not home.virtual or not home.trainer_certificate().virtual:
        raise PolicyRefusal(
            "a study with a seed at a real site",
            allowed="seeds in homes made by init --virtual only",
            next="ask the coordinator for the study without [virtual]",
            code="seed_forbidden",
        )
    label = canonical({"seed": seeded.seed, "site": home.site, "round": round_number})
    return Stream.from_seed(hashlib.sha256(b"oncofed seeded round\x00" + label).digest())


def refuse_mixing(cohort: Path, *, virtual: bool) -> None:
    """A virtual home serves virtual cohorts only, a real home real ones only.

    Raises:
        PolicyRefusal: code ``virtual_mixed``.
    """
    found = read_cohort(cohort).virtual
    if found != virtual:
        kinds = {True: "virtual", False: "real"}
        raise PolicyRefusal(
            f"a {kinds[found]} cohort in a {kinds[virtual]} home",
            allowed=f"{kinds[virtual]} cohorts",
            next="use a home of the other kind; a home never changes its kind",
            code="virtual_mixed",
        )


def refuse_strangers(cohort: Path, identities: Path) -> None:
    """Nothing, where the table of identities names one patient of the cohort at least, or there is none.

    Asked once, when the trainer starts: with the wrong table it would take part without a single patient.

    Raises:
        CohortRefusal: code ``no_identity``.
    """
    participants = read_cohort(cohort).participants
    if participants and not set(participants) & set(read_identities(identities)):
        raise CohortRefusal(
            "a table of identities that names not one patient of the cohort",
            allowed="the table that intake wrote with this cohort",
            next="name that table with --identities; oncofed-site check --identities shows who is missing",
            code="no_identity",
        )


def best_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
