"""A trainer of a home with three patients and one approved study, made anew for every test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cohort_builder
import numpy as np
import torch
from site_builder import NOW_S, Coordinator, Site, a_home, approved, joined, study_for

from oncofed_client.approval import Approved, read_approved
from oncofed_client.readers.cohort import read_cohort
from oncofed_client.trainer.session import Session
from oncofed_common.identity import digest
from oncofed_common.model import adapters
from oncofed_common.model.network import build
from oncofed_common.model.presets import SMALL
from oncofed_common.model.weights import base_path

TENSORS = [
    {"name": name, "shape": list(shape), "dtype": dtype}
    for name, shape, dtype in adapters.schema(build(SMALL, seed=0), "norm")
]
CPU = torch.device("cpu")
TASK = "7" * 64
RUN = "8" * 32


@dataclass
class Trainer:
    site: Site
    approved: Approved
    session: Session


Made = Callable[..., Trainer]


@contextmanager
def trainers(tmp_path: Path) -> Iterator[Made]:
    """Make a trainer of a home with three patients and one approved study."""
    opened: list[Site] = []

    def make(*, base: bytes | None = None, **changes: object) -> Trainer:
        weights = base if base is not None else base_path(SMALL).read_bytes()
        coordinator = Coordinator()
        home = joined(a_home(tmp_path), coordinator)
        rooms = {"cohort": {"held_out_fraction": 1e-9}, "model": {"base_sha256": digest(weights)}}
        study = study_for(home, tensors=TENSORS, **(rooms | changes))
        site = approved(tmp_path, home, study, coordinator, base=weights)
        opened.append(site)
        cohort = cohort_builder.write_cohort(tmp_path / "cohort", patients=3, visits=2)
        table = tmp_path / "identities.tsv"
        rows = [f"{name}\tH-{name}" for name in read_cohort(cohort).participants]
        table.write_text("\n".join(["participant_id\thospital_number", *rows]) + "\n")
        session = Session(
            home,
            site.ledger,
            cohort=cohort,
            identities=table,
            device=CPU,
            on_progress=lambda what, done, total: None,
        )
        kept = read_approved(home, study.hash, now_s=NOW_S)
        return Trainer(site=site, approved=kept, session=session)

    try:
        yield make
    finally:
        for site in opened:
            site.open.close()


def first_weights(trainer: Trainer) -> dict[str, np.ndarray]:
    trained = trainer.session.ready(trainer.approved).setup.trained
    return {name: value.detach().numpy().copy() for name, value in trained.items()}


def draw(trainer: Trainer, number: int) -> list[str]:
    return trainer.site.ledger.draw(
        trainer.approved.study_hash,
        run=RUN,
        round=number,
        task_digest=TASK,
        frame=trainer.session.frame(trainer.approved),
    )
