"""Two hundred real kills of a real trainer, at moments drawn by chance: what is charged, and what leaves.

Each trainer is a process forked from this one, which holds the model and the patients ready; from there it
runs the trainer's own ``main`` on a home, a ledger, a socket and a stream of noise of its own.
"""

from __future__ import annotations

import http.client
import logging
import multiprocessing
import os
import random
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import cohort_builder
import pytest
import torch
from crash_site import results, rounds_charged, update_of
from site_builder import Coordinator, Site, a_home, approved, code_of, joined, study_for

from oncofed_client.approval import read_approved
from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_client.readers.cohort import read_cohort
from oncofed_client.trainer import __main__ as trainer_main
from oncofed_client.trainer.session import Ready, Session
from oncofed_common.identity import certify, digest
from oncofed_common.model import adapters
from oncofed_common.model.network import build
from oncofed_common.model.presets import SMALL
from oncofed_common.model.weights import base_path

KILLS = 200
SEED = 20_261_126
ROUNDS = 200
PATIENTS = 3
MOMENTS = (
    ("started", 0.5),
    ("asked", 0.4),
    ("charged", 0.3),
    ("storing", 0.004),
    ("storing", 0.004),
    ("storing", 0.9),
    ("answered", 0.01),
)
"""After what a trainer is killed, and how many seconds later at most."""


class Now(Coordinator):
    """A coordinator whose tasks are of today."""

    def certificate(self) -> dict[str, Any]:
        now_s = int(time.time())
        return certify(
            self.study_key,
            self.task_key.public,
            purpose="task",
            holder="coordinator",
            epoch=1,
            not_before_s=now_s - 1000,
            not_after_s=now_s + 100_000,
            virtual=False,
        ).as_dict()

    def task_now(self, site: Site, *, number: int, before: bytes | None) -> bytes:
        now_s = int(time.time())
        times = {"not_before_s": now_s, "expires_s": now_s + 10_000}
        times["reply_at_s"] = now_s + site.study.outbound.reply_after_s
        record = self.record(site, number=number - 1, reply=before) if number > 1 else None
        return self.task(site, number=number, record=record, **times)


@dataclass(kw_only=True)
class Place:
    """A site with its cohort, ready to be served again and again."""

    site: Site
    cohort: Path
    identities: Path
    ready: Ready

    def serve(self) -> None:
        """A trainer's whole life; only what it would read from cohort and model is there already."""

        def warmed(*args: Any, **settings: Any) -> Session:
            session = Session(*args, **settings)
            session._ready[self.site.study.hash] = self.ready
            return session

        trainer_main.Session = warmed  # type: ignore[assignment, misc]
        trainer_main.trainer(
            home=self.site.home.root, cohort=self.cohort, identities=self.identities
        )

    def started(self) -> ForkProcess:
        process = multiprocessing.get_context("fork").Process(target=self.serve)
        process.start()
        return process


@pytest.fixture
def coordinator() -> Now:
    return Now()


@pytest.fixture
def place(coordinator: Now) -> Iterator[Place]:
    root = Path(tempfile.mkdtemp(prefix="kill-"))  # a socket's path is short
    weights = base_path(SMALL).read_bytes()
    home = joined(a_home(root, lifetime_epsilon="60"), coordinator)
    study = study_for(
        home,
        tensors=[
            {"name": name, "shape": list(shape), "dtype": dtype}
            for name, shape, dtype in adapters.schema(build(SMALL, seed=0), "norm")
        ],
        cohort={"held_out_fraction": 1e-9},
        model={"base_sha256": digest(weights)},
        training={"rounds": ROUNDS, "steps_per_round": 1, "pairs_per_patient": 1},
        privacy={"noise_multiplier": 8.0, "epsilon": 2.0},
    )
    site = approved(root, home, study, coordinator, base=weights)
    cohort = cohort_builder.write_cohort(root / "cohort", patients=PATIENTS, visits=2)
    table = root / "identities.tsv"
    rows = [f"{name}\tH-{name}" for name in read_cohort(cohort).participants]
    table.write_text("\n".join(["participant_id\thospital_number", *rows]) + "\n")
    with site.open:
        session = Session(
            home,
            site.ledger,
            cohort=cohort,
            identities=table,
            device=torch.device("cpu"),
            on_progress=lambda *_: None,
        )
        ready = session.ready(read_approved(home, study.hash, now_s=int(time.time())))
    yield Place(site=site, cohort=cohort, identities=table, ready=ready)
    shutil.rmtree(root)


class Asked(threading.Thread):
    """A courier that sends one task and waits for its reply, which may never come."""

    def __init__(self, home: Home, task: bytes) -> None:
        super().__init__(daemon=True)
        self._home, self._task = home, task
        self.reply: bytes | None = None
        self.start()

    def run(self) -> None:
        line = http.client.HTTPConnection("trainer", timeout=60)
        line.sock = connected(self._home)
        with closing(line), suppress(OSError, http.client.HTTPException):
            line.request("POST", "/v1/task", self._task)
            answer = line.getresponse()
            body = answer.read()
            assert answer.status == 200
            self.reply = body


def connected(home: Home) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    until = time.monotonic() + 60
    while True:
        try:
            line.connect(os.fspath(home.socket))
            return line
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.002)


def wait(until: Callable[[], bool]) -> None:
    """Look again and again, for a minute at most."""
    last = time.monotonic() + 60
    while not until() and time.monotonic() < last:
        time.sleep(0.0005)


def live(place: Place, task: bytes, *, moment: str, delay_s: float) -> bytes | None:
    """One trainer, from its start to its kill; the reply, if it came before that."""
    home = place.site.home
    process, asked = place.started(), None
    if moment != "started":
        wal = home.ledger_path.with_name(home.ledger_path.name + "-wal")
        spool = home.trainer / "spool"
        with connected(home):
            before = wal.stat().st_mtime_ns, len(list(spool.rglob("*.*")))
        asked = Asked(home, task)
        moments = {
            "asked": lambda: True,
            "charged": lambda: wal.stat().st_mtime_ns != before[0],
            "storing": lambda: len(list(spool.rglob("*.*"))) != before[1],
            "answered": lambda: False,
        }
        wait(lambda: moments[moment]() or not asked.is_alive())
    time.sleep(delay_s)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    if asked is None:
        return None
    asked.join(60)
    return asked.reply


@dataclass(kw_only=True)
class Account:
    """What the world has seen so far, by round, against what the home says after a kill."""

    study_hash: str
    left: dict[int, bytes] = field(default_factory=dict)
    attempts: dict[int, set[bytes]] = field(default_factory=dict)

    def take(self, number: int, reply: bytes | None) -> None:
        """A reply left; a round has one."""
        if reply is not None:
            assert code_of(reply) == "ok"
            assert self.left.setdefault(number, reply) == reply

    def check(self, root: Path, number: int) -> str:
        """What must hold of a home, and how far the round had come in it."""
        home = Home.open(root)
        with Ledger.open(home) as ledger:
            paid = set(rounds_charged(ledger, self.study_hash).values()) or {0}
            answered = {sent["round"]: sent["digest"] for sent in ledger.left()}
            assert len(answered) == len(ledger.left())
        (drawn,) = paid
        assert drawn in (number, number - 1)
        assert drawn >= len(self.left)
        found = {path.name: path for path in results(home)}
        kept = Counter(name.lstrip(".")[:4] for name in found)
        assert all(count == 1 for count in kept.values())
        for name, path in found.items():
            self._compare(int(name.lstrip(".")[:4]), name, path.read_bytes().partition(b"\n")[2])
        for earlier, reply in self.left.items():
            assert answered[earlier] == digest(reply)
        if number in self.left:
            return "left"
        if number in answered:
            return "waiting for its slot"
        if f"{number:04d}.reply" in found:
            return "stored"
        if any(name.startswith(f".{number:04d}") for name in found):
            return "being stored"
        return "charged" if drawn == number else "not charged"

    def _compare(self, number: int, name: str, body: bytes) -> None:
        """A finished result is no earlier attempt's; what leaves is what is stored."""
        if not name.startswith("."):
            assert update_of(body) not in self.attempts.get(number, set())
            assert self.left.get(number, body) == body
        else:
            with suppress(Exception):  # half of it
                self.attempts.setdefault(number, set()).add(update_of(body))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_trainer_that_is_killed_at_any_moment_charges_what_leaves_and_stores_one_result_a_round(
    place: Place, coordinator: Now, tmp_path: Path, record_property: Any
) -> None:
    """The same task again and again, until its reply has come; then the next."""
    chance, account = random.Random(SEED), Account(study_hash=place.site.study.hash)
    phases: Counter[str] = Counter()
    number, task = 1, coordinator.task_now(place.site, number=1, before=None)
    for kill in range(KILLS):
        moment, most_s = chance.choice(MOMENTS)
        reply = live(place, task, moment=moment, delay_s=chance.uniform(0, most_s))
        account.take(number, reply)
        copy = tmp_path / "copy"
        hidden = shutil.ignore_patterns("*.sock")
        shutil.copytree(place.site.home.root, copy / "north", ignore=hidden)
        phases[account.check(copy / "north", number)] += 1
        shutil.rmtree(copy)
        if number in account.left and (chance.random() < 0.8 or kill == KILLS - 1):
            task = coordinator.task_now(place.site, number=number + 1, before=account.left[number])
            number += 1
    account.take(number, live(place, task, moment="answered", delay_s=0.0))
    assert account.check(place.site.home.root, number) == "left"
    record_property("kills", dict(phases))
    logging.getLogger("kills").info("%d kills in %d rounds: %s", KILLS, number, dict(phases))
    assert set(phases) >= {"not charged", "charged", "waiting for its slot", "left"}
    assert sorted(account.left) == list(range(1, number + 1))
