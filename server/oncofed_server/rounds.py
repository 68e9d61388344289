"""The round loop: from a state to the next, and from a run's folder to its release.

A round commits when its signed record is on disk: who was counted never changes after that. Before it,
everything is repeated word for word (stored tasks, stored replies); after it, the weights follow from
the stored replies of the counted sites. So the process may die anywhere and be run again.

A first round that would fail because sites have not approved yet is not closed: the run is interrupted,
and may be resumed when they have.

A round that is resumed after its tasks expired is asked for once more, word for word: a trainer that
answered gives its stored reply, any other refuses (``expired``), and a trainer that began takes no second
task. If too few have answered, the round is lost, and its record says so. Only who had not approved gets
a new task.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from oncofed_common.durable import (
    discard_drafts_below,
    disk_refusal,
    locked,
    make_folder,
    require_room,
    write_atomic,
)
from oncofed_common.errors import OncofedError, StudyRefusal, SystemRefusal
from oncofed_common.identity import Certificate, digest
from oncofed_common.tensors import pack_tensors
from oncofed_server.checkpoint import State, load_newest, save_checkpoint
from oncofed_server.closing import advanced, close, close_again
from oncofed_server.collect import NOT_APPROVED, Tally, awaited, collect, take_stored
from oncofed_server.home import load_task_key, write_heads
from oncofed_server.participation import (
    Status,
    read_record,
    run_status,
    sign_record,
    spell,
)
from oncofed_server.release import write_release
from oncofed_server.roster import read_roster
from oncofed_server.runlog import RunLog, Watch, read_log
from oncofed_server.runs import open_run, refuse_ended
from oncofed_server.sites import Clock, Nobody, Sites, SystemClock
from oncofed_server.strategies.strategy import init, nothing
from oncofed_server.studies import Published, load_published
from oncofed_server.tasks import Plan, expired_tasks, open_tasks, take_back

SYSTEM_CLOCK = SystemClock()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended. ``audit`` is None where the study releases weights only."""

    run: str
    status: Status
    rounds: int
    release: Path
    audit: Path | None


def conduct(
    home: Path,
    run: str,
    sites: Sites,
    *,
    clock: Clock = SYSTEM_CLOCK,
    watch: Watch | None = None,
    alone: Callable[[], object] = lambda: None,
) -> Outcome:
    """Begin or resume ``run`` and take it to its end and its release.

    Args:
        alone: called before anything else, when nobody else can be at work on the run any more.
        watch: is shown every row of the run's log as it is written.

    Raises:
        SystemRefusal: codes ``home_in_use``, ``run_ended``, ``unknown_run``, ``no_checkpoint``,
            ``disk_full``, ``disk``, ``other_task_key``, ``task_conflict``, ``replies_missing``.
            OncofedError: the carrier has gone. The run can be resumed.
    """
    card, folder = open_run(home, run)
    with locked(folder.lock, wait=False, busy="another process that works on this run"):
        alone()
        refuse_ended(folder)
        published = load_published(home, card.study_hash)
        plan = Plan(
            home=home,
            folder=folder,
            study=published.study,
            run=run,
            task_key=load_task_key(home),
        )
        _refuse_other_key(plan)
        discard_drafts_below(folder.root)
        log = RunLog.open(folder.log, run=run, watch=watch)
        try:
            return _conduct(plan, published, sites=sites, clock=clock, log=log)
        except BaseException as error:
            with suppress(OncofedError):  # a full disk: the first error is the one to report
                name = error.code if isinstance(error, OncofedError) else type(error).__name__
                log.write("run_interrupted", at_s=clock.now_s(), code=name)
            raise
        finally:
            log.close()


def finish(home: Path, run: str, *, clock: Clock = SYSTEM_CLOCK) -> Outcome:
    """End a run that was asked to stop and that nobody works on: no site is asked for anything more.

    Raises:
        SystemRefusal: as ``conduct``.
    """
    return conduct(home, run, Nobody(), clock=clock)


def run_rounds(
    state: State, plan: Plan, *, sites: Sites, clock: Clock, log: RunLog
) -> Iterator[State]:
    """Yield the state after each round; the caller saves it before asking for the next.

    It ends after the study's last round, after a failed round, when the study expires, or when
    somebody asked the run to stop.
    """
    while state.round < plan.study.training.rounds and "failed" not in state.statuses:
        recorded = read_record(plan.folder.record(state.round + 1))
        if recorded is not None:
            after: State | None = close_again(state, plan, recorded)
        else:
            after = _round(state, plan, sites=sites, clock=clock, log=log)
        if after is None:
            return
        state = after
        yield state


def _conduct(
    plan: Plan, published: Published, *, sites: Sites, clock: Clock, log: RunLog
) -> Outcome:
    state = _begin(plan, published, clock=clock, log=log)
    for after in run_rounds(state, plan, sites=sites, clock=clock, log=log):
        state = after
        save_checkpoint(plan.folder.checkpoints, state, study_hash=plan.study_hash, run=plan.run)
        log.write(
            "round_closed",
            at_s=clock.now_s(),
            round=state.round,
            code=state.statuses[-1],
            digest_hex=state.last_digest,
        )
        if plan.study.study.release == "weights":
            # the newest round's replies stay until the next checkpoint: they may be needed again
            _remove(plan.folder.replies(state.round - 1))
    status = run_status(state.statuses, planned=plan.study.training.rounds)
    now_s = clock.now_s()
    if plan.study.study.release == "weights":
        _remove(plan.folder.audit)
    else:
        _remove(plan.folder.replies(state.round + 1))
    log.write("run_ended", at_s=now_s, round=state.round, code=status)
    release, audit = write_release(plan, published, state, status=status, now_s=now_s)
    return Outcome(run=plan.run, status=status, rounds=state.round, release=release, audit=audit)


def _begin(plan: Plan, published: Published, *, clock: Clock, log: RunLog) -> State:
    """The state to go on from: the newest whole checkpoint, or the study's first values."""
    now_s = clock.now_s()
    restored = load_newest(plan.folder.checkpoints, study=plan.study, run=plan.run)
    if restored is None:
        state = State(
            round=0, weights=published.first, memory=init(plan.study), last=None, statuses=()
        )
        save_checkpoint(plan.folder.checkpoints, state, study_hash=plan.study_hash, run=plan.run)
        log.write("run_started", at_s=now_s, digest_hex=plan.study_hash)
        return state
    for number in restored.skipped:
        log.write("checkpoint_skipped", at_s=now_s, round=number)
    log.write("run_resumed", at_s=now_s, round=restored.state.round)
    return restored.state


def _round(state: State, plan: Plan, *, sites: Sites, clock: Clock, log: RunLog) -> State | None:
    """The state after one more round, or None when the run has to end before it."""
    number, now_s = state.round + 1, clock.now_s()
    begun = plan.folder.tasks(number).exists()
    if not begun and plan.folder.stop.exists():
        log.write("stop_requested", at_s=now_s, round=number)
        return None
    if not begun and _expired(plan, now_s):
        log.write("round_abandoned", at_s=now_s, round=number, code="expired")
        return None
    if begun and number == 1:
        unapproved = _unapproved(plan)
        late = [site for site in expired_tasks(plan, 1, now_s=now_s) if site in unapproved]
        take_back(plan, late)
    packed = pack_tensors(state.weights)
    _require_room(plan, len(packed))
    roster = read_roster(plan.home)
    roster.task_key(now_s=now_s)
    sent = open_tasks(plan, state, roster=roster, packed=packed, now_s=now_s)
    tally = Tally(
        number=number,
        sent=sent,
        packed=packed,
        roster=roster,
        gathered=nothing(plan.study),
        memory=state.memory,
    )
    make_folder(plan.folder.replies(number))
    log.write("round_opened", at_s=now_s, round=number, digest_hex=digest(packed))
    take_stored(tally, plan)
    # A resumed round gets a whole deadline again: sites hold stored replies that are worth having.
    closes_s = now_s + plan.study.aggregation.round_deadline_s
    reason = collect(tally, plan, sites=sites, clock=clock, log=log, closes_s=closes_s)
    if reason == "stopped":
        log.write("stop_requested", at_s=clock.now_s(), round=number)
        if tally.counted < plan.study.aggregation.fewest_sites:
            log.write("round_abandoned", at_s=clock.now_s(), round=number, code="stopped")
            return None
    waits = awaited(tally)
    if waits and reason == "deadline" and tally.counted < plan.study.aggregation.fewest_sites:
        take_back(plan, waits)
        raise OncofedError(
            f"a first round in which {', '.join(waits)} had not approved the study",
            allowed=f"{plan.study.aggregation.fewest_sites} sites or more that have",
            next="wait until they say that they approved, then resume the run",
            code="not_approved",
        )
    after, weights, memory = close(state, plan, tally)
    write_heads(plan.home, tally.heads)
    signed = sign_record(after, plan.task_key)
    make_folder(plan.folder.record(number).parent)
    write_atomic(plan.folder.record(number), spell(signed))
    return advanced(state, signed, weights, memory)


def _refuse_other_key(plan: Plan) -> None:
    """Before anything is signed with it: a key that nobody would believe."""
    certificate = read_roster(plan.home).coordinator.task_certificate
    if plan.task_key.public.hex != Certificate.from_dict(certificate).subject:
        raise SystemRefusal(
            "a task key that is not the one which the study key certified",
            allowed="keys/task.pem as it was when its certificate was made",
            next="restore keys/task.pem from a backup",
            code="other_task_key",
        )


def _unapproved(plan: Plan) -> set[str]:
    """Sites whose last word was that they have not approved, and that were not asked again since.

    One that was asked again may have trained on its task by now.
    """
    last = {row.site: row for row in read_log(plan.folder.log) if row.site}
    return {site for site, row in last.items() if row.code == NOT_APPROVED[1]}


def _expired(plan: Plan, now_s: int) -> bool:
    try:
        plan.study.check_not_expired(now_s)
    except StudyRefusal:
        return True
    return False


def _require_room(plan: Plan, packed_bytes: int) -> None:
    """Room for every reply at its cap, the next checkpoint and the release."""
    replies = len(plan.study.sites) * plan.study.outbound.bytes_per_round
    require_room(plan.folder.root, wanted_bytes=replies + 4 * packed_bytes)


def _remove(folder: Path) -> None:
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise disk_refusal(error) from None
