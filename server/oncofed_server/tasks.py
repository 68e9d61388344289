"""The tasks of a round: built once, sealed, durable before the first of them is sent.

All envelopes of a round appear in one rename. A round that is resumed reads them again and repeats
them word for word; its invited sites are those that have an envelope. Only tasks of the first round that
were taken back, because a site had not approved, are built anew.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from oncofed_common.durable import disk_refusal, new_folder, sync_folder, write_atomic
from oncofed_common.errors import OncofedError, SystemRefusal, WireRefusal
from oncofed_common.identity import SigningKey, digest
from oncofed_common.study import Study
from oncofed_common.wire import WIRE_VERSION, Task, frame, read_task, seal
from oncofed_server.checkpoint import State
from oncofed_server.home import read_heads
from oncofed_server.roster import Roster
from oncofed_server.runs import RunFolder


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What stays the same during a run."""

    home: Path
    folder: RunFolder
    study: Study
    run: str
    task_key: SigningKey

    @cached_property
    def study_hash(self) -> str:
        """The study's, computed once."""
        return self.study.hash


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A task as it was sealed. ``digest`` covers the whole frame, weights included."""

    task: Task
    envelope: bytes
    digest: str


def open_tasks(
    plan: Plan, state: State, *, roster: Roster, packed: bytes, now_s: int
) -> dict[str, Sent]:
    """The tasks of the round after ``state``, by site: those on disk, or new ones put there.

    A site whose task was lost and that has trained on it refuses the new one.

    Args:
        packed: the canonical bytes of ``state.weights``.

    Raises:
        WireRefusal: code ``task_conflict``; the tasks on disk do not belong to this state.
        SystemRefusal: the disk.
    """
    number = state.round + 1
    folder = plan.folder.tasks(number)
    refuse_lost(plan, number)
    if not folder.exists():
        built = _build(plan, state, roster=roster, packed=packed, now_s=now_s)
        with new_folder(folder) as temporary:
            for site, sent in built.items():
                (temporary / f"{site}.task").write_bytes(sent.envelope)
        return built
    built = _build(plan, state, roster=roster, packed=packed, now_s=now_s)
    for site in built.keys() - stored_envelopes(folder).keys():  # taken back, or lost
        write_atomic(folder / f"{site}.task", built[site].envelope)
    return read_tasks(plan, state, packed=packed)


def refuse_lost(plan: Plan, number: int) -> None:
    """Nothing, if there is for every stored reply of a round the task that it answers.

    Raises:
        SystemRefusal: code ``task_conflict``.
    """
    replies = {path.stem for path in plan.folder.replies(number).glob("*.reply")}
    lost = replies and replies - stored_envelopes(plan.folder.tasks(number)).keys()
    if lost:
        raise SystemRefusal(
            f"a stored reply of {min(lost)} in round {number}, and no task that it answers",
            allowed="the run's folder whole",
            next="restore the run's folder from a backup as a whole",
            code="task_conflict",
        )


def expired_tasks(plan: Plan, number: int, *, now_s: int) -> list[str]:
    """Sites whose stored task of a round no trainer begins any more; a stored reply is still given.

    Raises:
        WireRefusal: code ``task_conflict``.
    """
    stored = stored_envelopes(plan.folder.tasks(number))
    return [site for site, envelope in stored.items() if _parse(envelope).expires_s <= now_s]


def take_back(plan: Plan, sites: Sequence[str]) -> None:
    """Forget the first round's tasks for sites that have not approved: they will get new ones.

    Such a task would have expired when the run is resumed. Nobody can have trained on it, and a site
    that did all the same refuses the new one (``task_conflict``).

    Raises:
        SystemRefusal: the disk.
    """
    folder = plan.folder.tasks(1)
    try:
        for site in sites:
            (folder / f"{site}.task").unlink(missing_ok=True)
        sync_folder(folder)
    except OSError as error:
        raise disk_refusal(error) from None


def read_tasks(plan: Plan, state: State, *, packed: bytes) -> dict[str, Sent]:
    """The stored tasks of the round after ``state``, by site.

    Raises:
        WireRefusal: code ``task_conflict``.
    """
    wanted = (
        plan.study_hash,
        plan.run,
        state.round + 1,
        digest(packed),
        state.last_digest,
    )
    sent: dict[str, Sent] = {}
    for site, envelope in stored_envelopes(plan.folder.tasks(state.round + 1)).items():
        task = _parse(envelope)
        found = (
            task.study_hash,
            task.run,
            task.round,
            task.weights_digest,
            task.participation_digest,
        )
        if found != wanted or task.site != site:
            raise _conflict()
        sent[site] = Sent(task=task, envelope=envelope, digest=digest(frame(envelope, packed)))
    return sent


def stored_envelopes(folder: Path) -> dict[str, bytes]:
    """The envelopes in ``folder`` by site."""
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.task"))}


def _build(
    plan: Plan, state: State, *, roster: Roster, packed: bytes, now_s: int
) -> dict[str, Sent]:
    terms = plan.study
    built: dict[str, Sent] = {}
    heads = read_heads(plan.home)
    same = {  # for every site, and long to compute
        "study_hash": plan.study_hash,
        "weights_digest": digest(packed),
        "schema_digest": terms.schema_digest,
        "participation_digest": state.last_digest,
    }
    for site in terms.sites:
        member = roster.member(site.name)
        if member is None or member.revoked or member.fingerprint != site.fingerprint:
            continue
        task = Task(
            wire_version=WIRE_VERSION,
            **same,
            run=plan.run,
            round=state.round + 1,
            site=site.name,
            trainer_key=member.trainer.fingerprint,
            task_certificate=roster.coordinator.task_certificate,
            nonce=secrets.token_hex(32),
            not_before_s=now_s,
            expires_s=now_s + terms.aggregation.round_deadline_s,
            reply_at_s=now_s + terms.outbound.reply_after_s,
            participation=state.last,
            revocation_epoch=roster.revocation_epoch,
            ledger_head=heads.get(site.name),
        )
        envelope = seal(task, plan.task_key)
        whole = digest(frame(envelope, packed))
        built[site.name] = Sent(task=task, envelope=envelope, digest=whole)
    return built


def _parse(envelope: bytes) -> Task:
    try:
        return read_task(envelope)[0]
    except OncofedError:
        raise _conflict() from None


def _conflict() -> WireRefusal:
    return WireRefusal(
        "stored tasks that do not belong to the newest checkpoint",
        allowed="the tasks that this run sealed for this round",
        next="restore the run's folder from a backup as a whole",
        code="task_conflict",
    )
