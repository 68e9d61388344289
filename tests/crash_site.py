"""A small site whose trainer can be started on any folder, and what must hold of it after a crash.

The trainer is the real one but for its patients: nobody is ever drawn, so what a round gives is the noise
itself, from the stream that a real site takes it from.
"""

from __future__ import annotations

import functools
import io
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from crash_images import Crash, Images
from own_disk import on_own_disk
from site_builder import NOW_S, PATIENTS, Site, code_of

from oncofed_client.approval import Approved
from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_client.trainer.__main__ import _Progress
from oncofed_client.trainer.log import Slotted, open_log
from oncofed_client.trainer.session import stream_for
from oncofed_client.trainer.tasks import TaskDesk
from oncofed_client.trainer.training import Round, Setup, train_round
from oncofed_common.diffusion.processes import DEFAULT, PROCESSES
from oncofed_common.errors import Refusal
from oncofed_common.identity import digest
from oncofed_common.model.network import Network, build
from oncofed_common.model.presets import SMALL
from oncofed_common.wire import unframe

RESULT = 200
"""Bytes: whatever is longer in the spool can hold numbers of a round."""


@functools.cache
def a_network() -> Network:
    """Never asked: it has the right type."""
    return build(SMALL, seed=0)


class Trainer:
    """A trainer process of one home, as far as it touches the disk.

    Attributes:
        trained: the rounds that it began to train.
        said: what it said where its log took nothing.
        then: called when training ends.
    """

    def __init__(self, home: Home, ledger: Ledger) -> None:
        self.home, self.ledger = home, ledger
        self.trained: list[int] = []
        self.said = io.StringIO()
        self.then: Callable[[], None] = lambda: None

    def desk_with(self, log: Slotted) -> None:
        self.log = log
        self.desk = TaskDesk(
            self.home,
            self.ledger,
            isolation=lambda: "no_network",
            work=self._work,
            frame=lambda approved: self.ledger.may_be_drawn(approved.study_hash, PATIENTS),
            clock=lambda: NOW_S + 1.0,
            log=log,
        )

    def _work(self, approved: Approved, weights: Mapping[str, Any], number: int) -> Round:
        self.trained.append(number)
        study, shown = approved.study, _Progress(self.home)
        done = train_round(
            (),
            setup=Setup(
                study=study,
                declared_patients=self.home.declared_patients,
                network=a_network(),
                trained={
                    term.name: torch.nn.Parameter(torch.zeros(term.shape))
                    for term in study.schema_terms
                },
                process=PROCESSES[DEFAULT],
                device=torch.device("cpu"),
            ),
            weights=weights,
            stream=stream_for(approved, home=self.home, round_number=number),
            on_step=lambda done, total: shown(f"round {number}", done, total),
        )
        self.then()
        return done


@contextmanager
def a_trainer(root: Path) -> Iterator[Trainer]:
    """Open a home as a new process does: every row of its ledger is verified."""
    home = Home.open(root)
    with Ledger.open(home) as ledger:
        trainer = Trainer(home, ledger)
        with open_log(
            home.trainer / "log.jsonl",
            head=home.refused_head_path,
            key=home.trainer_key(),
            spare=trainer.said.write,
        ) as log:
            trainer.desk_with(log)
            yield trainer


def ask(trainer: Trainer, task: bytes, images: Images) -> bytes:
    """Send a task; with its reply something has left."""
    body, _ = trainer.desk.answer(task)
    assert code_of(body) == "ok"
    images.note(body)
    return body


def a_life(root: Path, task: bytes) -> Images:
    """One whole life of a trainer in the home at ``root``, with one task that is asked twice."""
    with Images(root).taken() as images, a_trainer(root) as trainer:
        ask(trainer, task, images)
        ask(trainer, task, images)
    return images


def check(crash: Crash, folder: Path, *, site: Site, task: bytes, first: bytes) -> None:
    """What must hold after one crash; ``first`` is the reply of the attempt that it cut short."""
    root = crash.laid_out(folder / "north")
    stored = any(path.suffix == ".reply" for path in (root / "trainer" / "spool").rglob("*"))
    try:
        body = check_and_finish(root, task, site=site, left=crash.notes)
        if stored:
            assert body == first
        else:
            assert update_of(body) != update_of(first), "two attempts under one noise"
    except AssertionError as error:
        error.add_note(str(crash))
        raise
    except Refusal as refusal:
        raise AssertionError(f"the ledger does not open after {crash}: {refusal}") from refusal


def check_all(
    images: Images, crashes: Sequence[Crash], folder: Path, *, site: Site, task: bytes
) -> None:
    """``check`` each, on a disk that costs no time."""
    first = images.crashes[-1].notes[0]

    def act() -> None:
        for number, crash in enumerate(crashes):
            check(crash, folder / f"crash{number}", site=site, task=task, first=first)
            shutil.rmtree(folder / f"crash{number}")

    folder.mkdir(exist_ok=True)
    on_own_disk(folder, size_bytes=64 * 2**20, act=act)


def update_of(reply: bytes) -> bytes:
    """The numbers of a reply, as bytes."""
    return unframe(reply, cap_bytes=10**6)[1]


def results(home: Home) -> list[Path]:
    """Everything in the spool that can be the result of a round, finished or not."""
    found = [path for path in (home.trainer / "spool").rglob("*") if path.is_file()]
    return [path for path in found if path.stat().st_size > RESULT]


def rounds_charged(ledger: Ledger, study_hash: str) -> dict[str, int]:
    """How many rounds of the study each patient has paid for: losses are whole rounds, or it fails."""
    terms = {row["study"]: row for row in ledger.budget()["studies"]}[study_hash]
    rounds = int(terms["rounds"].split("/")[1])
    one = Decimal(terms["reserved"]) / rounds
    spent = ledger.spent_by_patient()
    counts = {patient: loss / one for patient, loss in spent.items()}
    assert all(count == int(count) for count in counts.values())
    return {patient: int(count) for patient, count in counts.items()}


def check_and_finish(root: Path, task: bytes, *, site: Site, left: tuple[bytes, ...]) -> bytes:
    """Everything that must hold of a home after a crash in its first round; then the round is finished.

    Args:
        left: replies that had left before the crash.

    Returns:
        The round's one reply.
    """
    study_hash = site.study.hash
    with a_trainer(root) as trainer:
        assert len(results(trainer.home)) <= 1, "two results of one round"
        paid = rounds_charged(trainer.ledger, study_hash)
        if left:
            assert paid == dict.fromkeys(PATIENTS, 1), "less was charged than left"
        body, _ = trainer.desk.answer(task)
        assert code_of(body) == "ok", "a round that cannot be finished"
        assert set(left) <= {body}, "a second result left"
        assert len(trainer.trained) <= 1
        assert rounds_charged(trainer.ledger, study_hash) == dict.fromkeys(PATIENTS, 1)
        assert len(results(trainer.home)) == 1, "two results of one round"
        assert results(trainer.home)[0].read_bytes().endswith(body)
        assert trainer.desk.answer(task)[0] == body
    with a_trainer(root) as trainer:
        assert [sent["digest"] for sent in trainer.ledger.left()] == [digest(body)]
    return body
