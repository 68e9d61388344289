"""``python -m oncofed_client.trainer``: the trainer process of one home.

It is started by ``oncofed-site start`` (or a container) without any network, hides its memory, reads
the cohort for every approved study, and then listens on the home's socket until told to stop.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from oncofed_client.approval import Approved, read_approved
from oncofed_client.carried_head import carried_head
from oncofed_client.home import Home
from oncofed_client.isolation import harden_process, may_serve, network_isolation, require_isolation
from oncofed_client.ledger import Ledger
from oncofed_client.settling import clock_behind_s
from oncofed_client.trainer.log import note_clock, open_log, silence_libraries
from oncofed_client.trainer.service import serve
from oncofed_client.trainer.session import Session, best_device
from oncofed_client.trainer.tasks import TaskDesk
from oncofed_common.errors import Refusal
from oncofed_common.terminal import run_app

app = typer.Typer(add_completion=False)


@app.command()
def trainer(
    home: Annotated[Path, typer.Option(help="the site's home folder")],
    cohort: Annotated[Path, typer.Option(help="the cohort folder, read only")],
    identities: Annotated[Path, typer.Option(help="table of participants and hospital numbers")],
    shared_group: Annotated[
        int | None, typer.Option(help="group id of the courier, if it is another user")
    ] = None,
) -> None:
    """Serve tasks for every study that this home has approved."""
    harden_process()
    site = Home.open(home)
    isolation = network_isolation()
    silence_libraries()
    with (
        Ledger.open(site) as ledger,
        open_log(
            site.trainer / "log.jsonl",
            head=site.refused_head_path,
            key=site.trainer_key(),
            spare=sys.stderr.write,
        ) as log,
    ):
        open_studies = _open_studies(site, ledger)
        signed = [one.isolation for one in open_studies]
        require_isolation(isolation, virtual=site.virtual, signed=signed)
        ledger.check_head(carried_head(site.courier), carried=True)
        session = Session(
            site,
            ledger,
            cohort=cohort,
            identities=identities,
            device=best_device(),
            on_progress=_Progress(site),
        )
        note_clock(log, site.site, behind_s=clock_behind_s(ledger))
        for approved in open_studies:
            if may_serve(isolation, virtual=site.virtual, signed=approved.isolation):
                session.ready(approved)
        desk = TaskDesk(
            site,
            ledger,
            isolation=network_isolation,
            work=session.work,
            frame=session.frame,
            clock=time.time,
            log=log,
        )
        _state(site, isolation)
        serve(desk.answer, path=site.socket, shared_group=shared_group, log=log)


def _open_studies(site: Home, ledger: Ledger) -> list[Approved]:
    """The studies whose tasks may be answered; those of the others are refused with the reason."""
    now_s = int(max(time.time(), ledger.latest_s()))
    found = []
    for study_hash in site.studies():
        try:
            approved = read_approved(site, study_hash, now_s=now_s)
            ledger.refuse_alone(approved.approval.payload)
        except Refusal:  # expired, or of another version
            continue
        found.append(approved)
    return found


class _Progress:
    """What the trainer is doing, in a file of its own home, for the hospital's own screen."""

    def __init__(self, home: Home) -> None:
        self._path = home.trainer / "progress.json"

    def __call__(self, what: str, done: int, total: int) -> None:
        draft = self._path.with_suffix(".tmp")
        draft.write_text(json.dumps({"what": what, "done": done, "total": total}), "utf-8")
        draft.replace(self._path)


def _state(home: Home, isolation: str) -> None:
    fields = {"pid": os.getpid(), "isolation": isolation, "ready_at_s": int(time.time())}
    (home.trainer / "state.json").write_text(json.dumps(fields), encoding="utf-8")


def main() -> None:
    raise SystemExit(run_app(app))


if __name__ == "__main__":
    main()
