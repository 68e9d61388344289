"""A federation in one process: the same trainers, doors, ledgers and round loop, without Flower.

``LocalSites`` stands where Flower's Grid stands otherwise. A task reaches the site's task desk as the
same bytes, and what comes back is the same signed reply.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from pathlib import Path

import torch

from oncofed_client.ledger import Ledger
from oncofed_client.trainer.log import open_log
from oncofed_client.trainer.session import OnProgress, Session
from oncofed_client.trainer.tasks import TaskDesk
from oncofed_server.rounds import Outcome, conduct
from oncofed_server.runlog import Watch
from oncofed_server.runs import create_run
from oncofed_server.sites import Arrival
from oncofed_simulation.founding import Federation


class LocalSites:
    """Sites that are function calls; a task is answered when it is polled for."""

    def __init__(self, answers: Mapping[str, Callable[[bytes], tuple[bytes, float]]]) -> None:
        self._answers = answers
        self._waiting: deque[tuple[str, bytes]] = deque()

    def online(self, wait_s: float) -> AbstractSet[str]:
        """All of them, always."""
        del wait_s
        return set(self._answers)

    def send(self, tasks: Mapping[str, bytes], *, expires_s: int) -> None:
        """Keep the tasks until they are polled for."""
        del expires_s
        self._waiting.extend(tasks.items())

    def poll(self) -> list[Arrival]:
        """Answer one waiting task. Nobody outside watches, so no slot is waited for."""
        if not self._waiting:
            return []
        site, body = self._waiting.popleft()
        reply, _ = self._answers[site](body)
        return [Arrival(site=site, frame=reply, code="ok")]


def run_in_process(
    federation: Federation,
    *,
    device: torch.device,
    on_progress: Callable[[str], OnProgress],
    watch: Watch | None,
) -> Outcome:
    """Run the federation's study from its first round to its release.

    Args:
        on_progress: for a site's name, what its trainer is told to report to.
    """
    with ExitStack() as stack:
        desks: dict[str, Callable[[bytes], tuple[bytes, float]]] = {}
        for site in federation.sites:
            ledger = stack.enter_context(Ledger.open(site.home))
            session = Session(
                site.home,
                ledger,
                cohort=site.cohort,
                identities=site.identities,
                device=device,
                on_progress=on_progress(site.name),
            )
            desk = TaskDesk(
                site.home,
                ledger,
                isolation=lambda: "no_network",
                work=session.work,
                frame=session.frame,
                clock=time.time,
                log=stack.enter_context(
                    open_log(
                        site.home.trainer / "log.jsonl",
                        head=site.home.refused_head_path,
                        key=site.home.trainer_key(),
                    )
                ),
            )
            desks[site.name] = desk.answer
        run = create_run(federation.coordinator, federation.study.hash, now_s=int(time.time()))
        return conduct(federation.coordinator, run, LocalSites(desks), watch=watch)


def release_of(coordinator: Path, run: str) -> Path:
    """Where a run's release lies in the coordinator's home."""
    return coordinator / "runs" / run / "release"
