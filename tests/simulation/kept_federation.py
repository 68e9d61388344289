"""A small federation by its own commands, kept up as a service manager keeps it up, and what it must come to.

What ended is started again, and a run that was interrupted is resumed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from small_federation import processes_of, seeded_settings

from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_common.processes import spawn
from oncofed_server.runs import list_runs
from oncofed_server.verify import verify
from oncofed_simulation.demo import Plan
from oncofed_simulation.demo import found as founded
from oncofed_simulation.founding import Federation
from oncofed_simulation.in_process import run_in_process
from oncofed_simulation.patients.writer import wards_of, write_cohorts
from oncofed_simulation.processes import Supervisor

PATIENTS = 3
PATIENCE_S = 300.0
LOOK_EVERY_S = 0.01
AGAIN_AFTER_S = 1.0
VICTIMS = {
    "round loop": b"serverapp",
    "SuperExec": b"flower_superexec",
    "SuperLink": b"flower_superlink",
    "coordinator": b"oncofed_server\0start",
    "node": b"oncofed_client.courier.supernode",
    "gate": b"oncofed_client.courier.supernode",
    "trainer": b"oncofed_client.trainer\0",
    "site": b"oncofed_client\0start",
}
"""A part of each one's command line. Node and gate are one program: the gate is the younger."""
AT_THE_SITE = ("node", "gate", "trainer", "site")


@dataclass
class Kept:
    """Commands of a federation that are started again whenever they end.

    Attributes:
        wanted: the weights that the run must come to.
        lasted_s: for each kill, the seconds until the run's next step.
    """

    federation: Federation
    port: int
    root: Path
    wanted: bytes
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    since_s: dict[str, float] = field(default_factory=dict)
    lasted_s: dict[str, float] = field(default_factory=dict)

    @property
    def coordinator(self) -> Path:
        return self.federation.coordinator

    @property
    def site(self) -> Home:
        return self.federation.sites[0].home

    @property
    def folder(self) -> Path | None:
        """Of the run, once there is one."""
        runs = list_runs(self.coordinator)
        return self.coordinator / "runs" / runs[0].run if runs else None

    def ended(self) -> bool:
        return self.folder is not None and (self.folder / "release").exists()

    def rows(self) -> list[dict[str, object]]:
        """The run's log; its last line may be half written."""
        path = self.folder / "log.jsonl" if self.folder else None
        return rows_of(path) if path and path.exists() else []

    def look(self) -> None:
        """Start again what has ended, a moment after it did."""
        for name, argv in self._commands():
            child = self.running.get(name)
            early = time.monotonic() - self.since_s.get(name, -1e9) < AGAIN_AFTER_S
            if early or (child is not None and child.poll() is None):
                continue
            self.since_s[name] = time.monotonic()
            with (self.root / f"{name}.log").open("ab") as log:
                self.running[name] = spawn(
                    [sys.executable, "-m", *argv],
                    environment={
                        "PATH": os.environ["PATH"],
                        "LANG": "C.UTF-8",
                        "OMP_NUM_THREADS": "1",
                    },
                    log=log,
                    folder=self.root,
                )

    def until(self, there: Callable[[], bool], *, what: str) -> None:
        ends_s = time.monotonic() + PATIENCE_S
        while not there():
            assert time.monotonic() < ends_s, f"{what}: {self.rows()[-5:]}"
            self.look()
            time.sleep(LOOK_EVERY_S)

    def stop(self) -> None:
        for child in self.running.values():
            child.kill()
            child.wait()

    def reached(self, moment: str, number: int) -> bool:
        """Whether the round has come so far."""
        if moment == "training":
            log = self.site.trainer / "log.jsonl"
            return log.exists() and _said(rows_of(log), "accepted", number)
        event = "task_sent" if moment == "sent" else "reply_counted"
        return _said(self.rows(), event, number)

    def survive(self, victim: str, moment: str, number: int) -> None:
        """Kill it in that moment of a round, and wait until the run takes its next step, or has ended."""
        what = f"round {number}, {moment}, {victim}"
        self.until(lambda: self.reached(moment, number), what=what)
        known, killed_s = len(self.rows()), time.monotonic()
        self.kill(victim)
        self.until(lambda: len(self.rows()) > known or self.ended(), what=f"after {what}")
        self.lasted_s[what] = time.monotonic() - killed_s

    def kill(self, victim: str) -> None:
        self.until(lambda: self._pid(victim) is not None, what=f"a {victim}")
        pid = self._pid(victim)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def _pid(self, victim: str) -> int | None:
        """The process of that name, if it runs; the trainer is the younger of itself and its isolation."""
        home = self.site.root if victim in AT_THE_SITE else self.coordinator
        pids = [pid for pid, line in processes_of(home).items() if VICTIMS[victim] in line]
        if victim == "gate":
            return pids[-1] if len(pids) > 1 else None
        if not pids:
            return None
        return pids[-1] if victim == "trainer" else pids[0]

    def _commands(self) -> Iterator[tuple[str, list[str]]]:
        home = ["--home", str(self.coordinator)]
        yield "coordinator", ["oncofed_server", "start", *home, "--port", str(self.port)]
        for site in self.federation.sites:
            folders = ["--cohort", str(site.cohort), "--identities", str(site.identities)]
            start = ["oncofed_client", "start", "--home", str(site.home.root), *folders]
            yield site.name, [*start, "--poll-s", "0.5"]
        if self.folder is None:
            yield "run", ["oncofed_server", "run", self.federation.study.hash, *home]
        elif not self.ended():
            yield "run", ["oncofed_server", "resume", self.folder.name, *home]

    def check(self, *, rounds: int) -> None:
        """Complete, the same bytes, everything verifies, and each round was trained and paid for once."""
        assert self.folder is not None
        release = self.folder / "release"
        assert json.loads((release / "manifest.json").read_text())["status"] == "complete"
        assert (release / "weights.safetensors").read_bytes() == self.wanted
        verdict = verify(release, audit=self.folder / "audit", trust=None, base=None)
        assert (verdict.first_fault, verdict.sums) == (None, rounds)
        for site in self.federation.sites:
            with Ledger.open(site.home) as ledger:
                (spent,) = ledger.budget()["studies"]
            assert spent["rounds"] == f"{rounds}/{rounds}"


@contextmanager
def kept_up(root: Path, *, rounds: int) -> Iterator[Kept]:
    """A federation of two virtual hospitals under ``root``, of which nothing runs yet."""
    cohorts = write_cohorts(
        wards_of(sites=2, patients=PATIENTS, seed=11),
        seed=11,
        out=root / "cohorts",
        workers=2,
        progress=lambda *_told: None,
    )
    settings = seeded_settings(root, rounds=rounds)
    plan = Plan(sites=2, patients=PATIENTS, seed=11, settings=settings)
    with Supervisor(root / "processes.json", grace_s=2.0) as children:
        federation, link = founded(root, list(cohorts), children, plan=plan)
    kept = Kept(
        federation=federation, port=link.port, root=root, wanted=_of_twins(federation, root)
    )
    try:
        yield kept
    finally:
        kept.stop()


def rows_of(path: Path) -> list[dict[str, object]]:
    """The whole lines of a log; its last may be half written."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()]


def _said(rows: list[dict[str, object]], event: str, number: int) -> bool:
    return any((row.get("event"), row.get("round")) == (event, number) for row in rows)


def _of_twins(federation: Federation, root: Path) -> bytes:
    """The weights of the same federation in one process, in which nothing is killed."""
    twins = root / "twins"
    for site in federation.sites:
        shutil.copytree(site.home.root, twins / site.name, symlinks=True)
    shutil.copytree(federation.coordinator, twins / "coordinator", symlinks=True)
    sites = tuple(replace(s, home=Home.open(twins / s.name)) for s in federation.sites)
    outcome = run_in_process(
        replace(federation, coordinator=twins / "coordinator", sites=sites),
        device=torch.device("cpu"),
        on_progress=lambda _name: lambda *_told: None,
        watch=None,
    )
    assert outcome.status == "complete"
    return (outcome.release / "weights.safetensors").read_bytes()
