"""What the books of privacy cost: the accountants of a round, and a draw in the ledger."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _figures import Figure

from oncofed_client.ledger import Ledger
from oncofed_client.policy import Policy
from oncofed_common.identity import PublicKey, SigningKey
from oncofed_common.privacy.accountant import pld_epsilon
from oncofed_common.privacy.events import SubsampledGaussian
from oncofed_common.privacy.prv import checked_epsilon


def accounting_figures() -> list[Figure]:
    """Two accountants on a study of 20 rounds, libraries loaded; later rounds find it cached."""
    checked_epsilon(SubsampledGaussian(rate=0.5, noise_multiplier=8.0, steps=1), 1e-3)
    event = SubsampledGaussian(rate=0.25, noise_multiplier=1.5, steps=200)
    pld = cpu_seconds(lambda: pld_epsilon(event, 1e-4))
    both = cpu_seconds(lambda: checked_epsilon(event, 1e-4)) + pld
    cached = cpu_seconds(lambda: checked_epsilon(event, 1e-4))
    return [
        Figure(name="accounting, first round", value=both, unit="s"),
        Figure(name="accounting, a round", value=(both + 19 * cached) / 20, unit="s", bar=1.0),
    ]


@dataclass(frozen=True, kw_only=True)
class BenchHome:
    """A home as far as its ledger sees it."""

    root: Path
    approver_signing: SigningKey
    trainer_signing: SigningKey
    site: str = "bench"

    @property
    def approver(self) -> PublicKey:
        return self.approver_signing.public

    @property
    def ledger_path(self) -> Path:
        return self.root / "ledger.sqlite"

    @property
    def head_path(self) -> Path:
        return self.root / "ledger-head.json"

    def trainer_key(self) -> SigningKey:
        return self.trainer_signing

    def secret(self) -> bytes:
        return bytes(32)

    def policy(self) -> Policy:
        return Policy.parse(
            lifetime_epsilon="12",
            lifetime_delta="1e-5",
            filter_order="4",
            declared_patients=200,
            bytes_per_round=200_000,
        )


def ledger_figures(root: Path, *, draws: int = 60, patients: int = 200) -> list[Figure]:
    """One draw on a frame of 200 patients, beside what the disk takes for one fsync."""
    home = BenchHome(
        root=root, approver_signing=SigningKey.generate(), trainer_signing=SigningKey.generate()
    )
    study = "a" * 64
    terms = {
        "study_hash": study,
        "site": home.site,
        "rounds": draws,
        "filter_rdp": "1",
        "filter_order": "4",
        "epsilon": "1",
        "delta": "0.00001",
        "bytes_per_round": 100_000,
        "expires": "2099-12-31",
        "sequence": 1,
    }
    signature = home.approver_signing.sign("approval", terms)
    frame = [f"{number:064x}" for number in range(patients)]
    with Ledger.create(home) as ledger:
        ledger.reserve({"approval": terms, "signature": signature})
        times = [
            seconds(
                lambda number=number: ledger.draw(
                    study, run="0" * 32, round=number, task_digest=f"{number:064x}", frame=frame
                )
            )
            for number in range(1, draws + 1)
        ]
    handle = os.open(root / "trial", os.O_WRONLY | os.O_CREAT)
    syncs = []
    for _ in range(30):
        os.write(handle, bytes(4096))
        syncs.append(seconds(lambda: os.fsync(handle)))
    os.close(handle)
    return [
        Figure(name="one fsync of this disk", value=1000 * statistics.median(syncs), unit="ms"),
        Figure(name="ledger charge", value=1000 * statistics.median(times), unit="ms", bar=20),
    ]


def seconds(work: Callable[[], Any]) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def cpu_seconds(work: Callable[[], Any]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before
