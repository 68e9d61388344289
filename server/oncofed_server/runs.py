"""The folder of one run, what it is called, how it stands, and how it is asked to stop.

run.json                        run, study hash, when it was made
checkpoints/0001.ckpt           the newest two
tasks/0001/SITE.task            the sealed envelope, written before it is first sent; the weights
                                that go with it are those of the checkpoint before
audit/rounds/0001/SITE.reply    every verified reply, whole; at the end also SITE.sig, SITE.task
rounds/0001/participation.json  the signed record
log.jsonl                       what happened
stop                            somebody asked the run to end early
release/                        there when the run has ended
"""

from __future__ import annotations

import secrets
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from oncofed_common.durable import (
    disk_refusal,
    is_locked,
    is_used,
    new_folder,
    read_object,
    sync_folder,
    write_atomic,
)
from oncofed_common.errors import OncofedError, SystemRefusal
from oncofed_common.identity import canonical
from oncofed_common.study import Study
from oncofed_common.wire import Count, Hex32, Hex64
from oncofed_server.aggregate import mean_metrics
from oncofed_server.participation import read_record
from oncofed_server.runlog import Row, read_log
from oncofed_server.studies import load_published

ENDED = ("complete", "partial", "failed")
"""The words of a run that has its release."""


class RunCard(BaseModel):
    """``run.json``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    run: Hex32
    study_hash: Hex64
    made_s: Count


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of one run lie."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def log(self) -> Path:
        return self.root / "log.jsonl"

    @property
    def lock(self) -> Path:
        return self.root / "run.lock"

    @property
    def stop(self) -> Path:
        return self.root / "stop"

    @property
    def audit(self) -> Path:
        return self.root / "audit"

    @property
    def release(self) -> Path:
        return self.root / "release"

    @property
    def records(self) -> Path:
        return self.root / "rounds"

    @property
    def all_tasks(self) -> Path:
        return self.root / "tasks"

    def tasks(self, number: int) -> Path:
        return self.all_tasks / f"{number:04d}"

    def replies(self, number: int) -> Path:
        return self.audit / "rounds" / f"{number:04d}"

    def record(self, number: int) -> Path:
        return self.records / f"{number:04d}" / "participation.json"


def create_run(home: Path, study_hash: str, *, now_s: int) -> str:
    """Make the one run of a published study; returns its id, 32 hex digits.

    Raises:
        StudyRefusal: not published, expired. SystemRefusal: code ``run_exists``, or the disk.
    """
    published = load_published(home, study_hash)
    published.study.check_not_expired(now_s)
    refuse_second(home, study_hash)
    card = RunCard(run=secrets.token_hex(16), study_hash=study_hash, made_s=now_s)
    with new_folder(home / "runs" / card.run) as folder:
        for part in ("checkpoints", "tasks", "rounds", "audit"):
            (folder / part).mkdir()
        (folder / "run.json").write_bytes(canonical(card.model_dump(mode="json")))
    return card.run


def refuse_second(home: Path, study_hash: str) -> None:
    """Nothing, if the study has no run yet.

    Raises:
        SystemRefusal: code ``run_exists``.
    """
    if any(card.study_hash == study_hash for card in list_runs(home)):
        raise SystemRefusal(
            "a run of this study that exists already",
            allowed="one run a study: a site answers each round of a study once",
            next="resume it, if status says that it has not ended; else publish a new study",
            code="run_exists",
        )


def list_runs(home: Path) -> list[RunCard]:
    """Every run of a home, the oldest first."""
    cards = [_read_card(path) for path in _card_paths(home)]
    return sorted(cards, key=lambda card: (card.made_s, card.run))


def run_names(home: Path) -> list[str]:
    """Every run of a home by its folder, readable or not."""
    return sorted(path.parent.name for path in _card_paths(home))


def open_run(home: Path, run: str) -> tuple[RunCard, RunFolder]:
    """The card and the folder of a run of this home.

    Raises:
        SystemRefusal: code ``unknown_run``.
    """
    path = home / "runs" / run / "run.json"
    if path in _card_paths(home):
        card = _read_card(path)
        if card.run == run:
            return card, RunFolder(path.parent)
    raise SystemRefusal(
        "a run that this home does not have",
        allowed=", ".join(run_names(home)) or "no run yet",
        next="check the id, or the home folder",
        code="unknown_run",
    )


def resolve_run(home: Path, prefix: str) -> str:
    """The id of the one run of this home that begins with ``prefix``.

    Raises:
        SystemRefusal: code ``unknown_run``; none, or more than one.
    """
    known = run_names(home)
    found = [run for run in known if prefix and run.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    raise SystemRefusal(
        "the start of two runs" if found else "a run that this home does not have",
        allowed=", ".join(known) or "no run yet",
        next="give the run's id, or enough of it",
        code="unknown_run",
    )


def request_stop(home: Path, run: str) -> None:
    """Ask a run to close what it has and end; it ends by itself, or when it is resumed.

    Raises:
        SystemRefusal: codes ``unknown_run``, ``run_ended``.
    """
    _, folder = open_run(home, run)
    refuse_ended(folder)
    write_atomic(folder.stop, b"")


def withdraw_stop(folder: RunFolder) -> None:
    """Forget a request to stop: the run is resumed."""
    try:
        folder.stop.unlink(missing_ok=True)
        sync_folder(folder.root)
    except OSError as error:
        raise disk_refusal(error) from None


def refuse_ended(folder: RunFolder) -> None:
    """Refuse a run that has its release.

    Raises:
        SystemRefusal: code ``run_ended``.
    """
    if ended_as(folder) is not None:
        raise SystemRefusal(
            "a run that has ended",
            allowed="a run that is ready, running or interrupted",
            next="look at its release, or publish a new study",
            code="run_ended",
        )


def ended_as(folder: RunFolder) -> str | None:
    """The word of a run that has its release: one of ``ENDED``; None, where there is nothing of a release.

    Raises:
        SystemRefusal: code ``unreadable``; a release without a manifest that says it.
    """
    if not is_used(folder.release):
        return None
    status = read_object(folder.release / "manifest.json", what="a manifest").get("status")
    if status not in ENDED:
        raise SystemRefusal(
            "a manifest that does not say how its run ended",
            allowed=", ".join(ENDED),
            next="restore the run's folder from a backup",
            code="unreadable",
        )
    return str(status)


def describe(home: Path, run: str) -> dict[str, Any]:
    """How a run stands, from its files alone.

    ``status`` is ready, running, interrupted, complete, partial or failed. ``sites`` lists for each
    invited site the rounds it was counted in and left out of, with the reasons; ``metrics`` the noised
    means of each closed round, by group.
    """
    card, folder = open_run(home, run)
    study = load_published(home, card.study_hash).study
    rows = read_log(folder.log)
    word = _word(folder, begun=bool(rows))
    records = [read_record(folder.record(n)) for n in range(1, study.training.rounds + 1)]
    closed = [signed.record for signed in records if signed is not None]
    return {
        "run": run,
        "study_hash": card.study_hash,
        "title": study.study.title,
        "status": word,
        "rounds_closed": len(closed),
        "rounds": study.training.rounds,
        "round_statuses": [record.status for record in closed],
        "metrics": [mean_metrics(record, study) for record in closed],
        "sites": [_site(study, site.name, closed, rows) for site in study.sites],
        "stop_requested": folder.stop.exists(),
        "made_s": card.made_s,
        "events": len(rows),
        "last_event": rows[-1].event if rows else "",
        "last_code": rows[-1].code if rows else "",
        "last_event_s": rows[-1].at_s if rows else card.made_s,
        "release": "release" if word in ENDED else "",
    }


def describe_all(home: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """How every run stands, the oldest first; and the names of those whose files cannot be read."""
    found, unreadable = [], []
    for run in run_names(home):
        try:
            found.append(describe(home, run))
        except (OncofedError, OSError):
            unreadable.append(run)
    return sorted(found, key=lambda run: (run["made_s"], run["run"])), unreadable


def _site(study: Study, name: str, closed: list[Any], rows: list[Row]) -> dict[str, Any]:
    """How one site stands; its last code is that of the open round, if it said anything in it."""
    outcomes = [site for record in closed for site in record.sites if site.site == name]
    said = [row.code for row in rows if row.site == name and row.round > len(closed) and row.code]
    reasons = Counter(o.reason for o in outcomes if o.outcome == "left_out")
    return {
        "name": name,
        "declared_patients": study.site(name).declared_patients,
        "rounds_counted": sum(o.outcome == "counted" for o in outcomes),
        "left_out": dict(sorted(reasons.items())),
        "last_code": said[-1] if said else outcomes[-1].code if outcomes else "",
    }


def _word(folder: RunFolder, *, begun: bool) -> str:
    ended = ended_as(folder)
    if ended is not None:
        return ended
    if folder.lock.exists() and is_locked(folder.lock):
        return "running"
    return "interrupted" if begun else "ready"


def _card_paths(home: Path) -> list[Path]:
    """The card of each run that is whole: a folder that is still being made begins with a dot."""
    return list((home / "runs").glob("[!.]*/run.json"))


def _read_card(path: Path) -> RunCard:
    what = f"the card of run {path.parent.name}"
    try:
        return RunCard.model_validate(read_object(path, what=what))
    except ValidationError:
        raise SystemRefusal(
            f"{what} with unknown or malformed fields",
            allowed="run.json as the run command wrote it",
            next="restore the run's folder from a backup",
            code="unreadable",
        ) from None
