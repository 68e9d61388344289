"""One open round: tasks out, replies in, each verified, stored and folded as it arrives.

The round closes when every invited site has answered, at its deadline, when the study's grace for
stragglers is over, or when somebody asks the run to stop. What any courier or network may have caused is
tried again with growing pauses while the round is open; a site that sends what does not verify is asked a
few times only; what a trainer signed is final. Who says nothing although the slot is over is asked again as
well: a courier may have died with the task or the reply. All these tasks are the same, word for word, and a
trainer answers them by the same bytes. A reply is durable before it is counted, so a round that was cut
short counts it again when the run is resumed.

In the first round a site that has not approved yet is asked again until the deadline, as often as it
takes: nothing was drawn there, and a study whose first round fails is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from oncofed_common.errors import IdentityRefusal, OncofedError
from oncofed_common.identity import PublicKey, digest
from oncofed_common.wire import (
    NO_DIGEST,
    Code,
    Head,
    LeftOut,
    SiteOutcome,
    frame,
    read_reply,
    unframe,
)
from oncofed_server.replies import SignedReply, open_reply, read_update, store_reply
from oncofed_server.roster import Roster
from oncofed_server.runlog import RunLog
from oncofed_server.sites import Arrival, Clock, Sites
from oncofed_server.strategies.strategy import Gathered, Memory, fold
from oncofed_server.tasks import Plan, Sent

POLL_S = 0.25
TRIES = 6
"""So often a site is asked that answers by what does not verify."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2, 60
SILENCE_S = 15
"""So long after its slot a site is taken for one whose courier died; twice as long after each time."""
APPROVAL_PAUSE_S = 30
"""Between two tries of a first task at a site that has not approved the study yet."""

NOT_APPROVED: tuple[LeftOut, str] = ("refused", "not_approved")
_CODES = frozenset(get_args(Code))


@dataclass(kw_only=True)
class Tally:
    """What one round has so far. It lives as long as the round is open.

    ``enough_s``: since when the fewest sites of the study are counted. ``tries``: tasks sent to each site,
    ``failed``: those of them of which the answer was that it came to nothing. ``asked``: sites that were sent
    a task and have said nothing since.
    """

    number: int
    sent: Mapping[str, Sent]
    packed: bytes
    roster: Roster
    gathered: Gathered
    memory: Memory
    outcomes: dict[str, SiteOutcome] = field(default_factory=dict)
    heads: dict[str, Head] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    due_s: dict[str, int] = field(default_factory=dict)
    failures: dict[str, tuple[LeftOut, str]] = field(default_factory=dict)
    enough_s: int | None = None
    asked: set[str] = field(default_factory=set)

    @property
    def counted(self) -> int:
        return sum(outcome.outcome == "counted" for outcome in self.outcomes.values())

    @property
    def waiting(self) -> list[str]:
        """Invited sites that have not answered yet."""
        return [site for site in self.sent if site not in self.outcomes]


def take_stored(tally: Tally, plan: Plan) -> None:
    """Count the replies that an earlier life of this round made durable.

    Raises:
        OncofedError: a stored reply that does not verify any more.
    """
    folder = plan.folder.replies(tally.number)
    for site, sent in tally.sent.items():
        path = folder / f"{site}.reply"
        if path.exists():
            signed = _open(tally, plan, site, path.read_bytes(), now_s=sent.task.not_before_s)
            _count(tally, signed, _folded(tally, plan, signed))


def collect(
    tally: Tally, plan: Plan, *, sites: Sites, clock: Clock, log: RunLog, closes_s: int
) -> Literal["answered", "deadline", "enough", "stopped"]:
    """Send, wait and count until the round may be closed; says why it may.

    Raises:
        SystemRefusal: the disk. OncofedError: the carrier has gone.
    """
    while True:
        for arrival in sites.poll():
            _receive(arrival, tally, plan, clock=clock, log=log)
        if not tally.waiting:
            return "answered"
        if plan.folder.stop.exists():
            return "stopped"
        if clock.now_s() >= closes_s:
            return "deadline"
        if _grace_is_over(tally, plan, now_s=clock.now_s()):
            return "enough"
        if not _send_due(tally, plan, sites=sites, clock=clock, log=log, closes_s=closes_s):
            clock.sleep(POLL_S)


def _grace_is_over(tally: Tally, plan: Plan, *, now_s: int) -> bool:
    """Whether the study goes on without stragglers, and these had their time."""
    terms = plan.study.aggregation
    if terms.straggler_grace_s is None or tally.counted < terms.fewest_sites:
        return False
    if tally.enough_s is None:
        tally.enough_s = now_s
    return now_s >= tally.enough_s + terms.straggler_grace_s


def awaited(tally: Tally) -> list[str]:
    """Sites whose last word in this first round was that they have not approved the study."""
    if tally.number > 1:
        return []
    said = ((site, tally.failures.get(site)) for site in tally.waiting)
    return [site for site, failure in said if failure == NOT_APPROVED]


def outcomes(tally: Tally, plan: Plan) -> tuple[SiteOutcome, ...]:
    """Every invited site of the study, in its order: counted, or left out with a reason."""
    return tuple(
        tally.outcomes.get(site.name) or _missing(tally, site.name) for site in plan.study.sites
    )


def _missing(tally: Tally, site: str) -> SiteOutcome:
    if site not in tally.sent:
        return _left_out(site, "revoked", "")
    if site in tally.failures:
        reason, code = tally.failures[site]
        return _left_out(site, reason, code)
    return _left_out(site, "no_reply" if site in tally.tries else "offline", "")


def _send_due(
    tally: Tally, plan: Plan, *, sites: Sites, clock: Clock, log: RunLog, closes_s: int
) -> bool:
    """Send what is due to whoever is online; whether anything was."""
    now_s, slot_s = clock.now_s(), plan.study.outbound.reply_after_s
    due = [site for site in tally.waiting if tally.due_s.get(site, 0) <= now_s]
    online = sites.online(0.0) if due else frozenset()
    reachable = [site for site in due if site in online]
    for site in reachable:
        if site in tally.asked:
            log.write("reply_overdue", at_s=now_s, round=tally.number, site=site)
        body = frame(tally.sent[site].envelope, tally.packed)  # one model in memory at a time
        log.write(
            "task_sent",
            at_s=now_s,
            round=tally.number,
            site=site,
            digest_hex=tally.sent[site].digest,
            size_bytes=len(body),
        )  # before it is: a resumed round asks the log who may have trained
        sites.send({site: body}, expires_s=closes_s)
        tally.asked.add(site)
        tally.tries[site] = tally.tries.get(site, 0) + 1
        tally.due_s[site] = now_s + slot_s + _pause(tally.tries[site], first_s=SILENCE_S)
    return bool(reachable)


def _receive(arrival: Arrival, tally: Tally, plan: Plan, *, clock: Clock, log: RunLog) -> None:
    site, now_s = arrival.site, clock.now_s()
    if site not in tally.sent:
        return  # not invited: nothing that it says belongs to this round
    if site in tally.outcomes:
        again = digest(arrival.frame) if arrival.frame is not None else ""
        log.write("reply_again", at_s=now_s, round=tally.number, site=site, digest_hex=again)
        return
    if arrival.frame is None:
        _carrier_failed(arrival, tally, now_s=now_s, log=log)
        return
    size = len(arrival.frame)
    try:
        signed = _open(tally, plan, site, arrival.frame, now_s=now_s)
    except OncofedError as error:
        code = _known(error)
        late = _answers_earlier(arrival.frame, site, tally, plan)
        log.write(
            "reply_late" if late else "reply_bad",
            at_s=now_s,
            round=tally.number,
            site=site,
            code=code,
            digest_hex=digest(arrival.frame),
            size_bytes=size,
        )
        if not late:
            _try_again(tally, site, now_s=now_s, failure=("bad_reply", code))
        return
    _accept(signed, tally, plan, now_s=now_s, log=log)


def _accept(signed: SignedReply, tally: Tally, plan: Plan, *, now_s: int, log: RunLog) -> None:
    """Store, then count, a reply that its trainer signed for this task.

    It is in the sum before it is stored, for the sum measures it; one that cannot be stored ends the process.
    """
    site = signed.reply.site
    event: Literal["reply_bad", "reply_counted", "reply_refused"]
    try:
        gathered = _folded(tally, plan, signed)
    except OncofedError as error:
        code = _known(error)
        tally.outcomes[site] = _left_out(site, "bad_reply", code)
        event = "reply_bad"
    else:
        code = signed.reply.code
        event = "reply_counted" if code == "ok" else "reply_refused"
        if _waits_for_approval(tally, code):
            _ask_after_approval(tally, site, now_s=now_s)
        else:
            store_reply(plan.folder.replies(tally.number), signed)
            _count(tally, signed, gathered)
    log.write(
        event,
        at_s=now_s,
        round=tally.number,
        site=site,
        code=code,
        digest_hex=signed.digest,
        size_bytes=len(signed.frame),
    )


def _folded(tally: Tally, plan: Plan, signed: SignedReply) -> Gathered | None:
    """What the round has with this reply in it; None, where the reply says why there is no update."""
    update = read_update(signed, study=plan.study)
    if update is None:
        return None
    site = signed.reply.site
    return fold(tally.gathered, update, site=site, memory=tally.memory, study=plan.study)


def _count(tally: Tally, signed: SignedReply, gathered: Gathered | None) -> None:
    reply = signed.reply
    if reply.ledger_head is not None:
        tally.heads[reply.site] = reply.ledger_head
    if gathered is None:
        reason: LeftOut = "unavailable" if reply.code == "unavailable" else "refused"
        tally.outcomes[reply.site] = _left_out(
            reply.site, reason, reply.code, reply_digest=signed.digest
        )
        return
    tally.gathered = gathered
    tally.outcomes[reply.site] = SiteOutcome(
        site=reply.site, outcome="counted", reason="", code="ok", reply_digest=signed.digest
    )


def _carrier_failed(arrival: Arrival, tally: Tally, *, now_s: int, log: RunLog) -> None:
    site = arrival.site
    code = arrival.code if arrival.code in _CODES - {"ok"} else "unavailable"
    log.write("carrier_failed", at_s=now_s, round=tally.number, site=site, code=code)
    if code == "unavailable":
        _try_again(tally, site, now_s=now_s, failure=("unavailable", code))
    elif _waits_for_approval(tally, code):
        _ask_after_approval(tally, site, now_s=now_s)
    else:
        tally.outcomes[site] = _left_out(site, "refused", code)


def _waits_for_approval(tally: Tally, code: str) -> bool:
    return tally.number == 1 and code == NOT_APPROVED[1]


def _ask_after_approval(tally: Tally, site: str, *, now_s: int) -> None:
    tally.failures[site], tally.tries[site] = NOT_APPROVED, 1
    tally.asked.discard(site)
    tally.due_s[site] = now_s + APPROVAL_PAUSE_S


def _try_again(tally: Tally, site: str, *, now_s: int, failure: tuple[LeftOut, str]) -> None:
    """The pause grows with the tries that failed: where a courier dies, all it was sent fails at once."""
    tally.failures[site] = failure
    tally.failed[site] = max(1, tally.failed.get(site, 0) + (site in tally.asked))
    tally.asked.discard(site)
    if failure[0] == "bad_reply" and tally.tries.get(site, 1) >= TRIES:
        tally.outcomes[site] = _left_out(site, *failure)
        return
    tally.due_s[site] = now_s + _pause(tally.failed[site], first_s=FIRST_PAUSE_S)


def _pause(tries: int, *, first_s: int) -> int:
    """Twice as long after each try, and no longer than a minute, or than the first."""
    return min(first_s << min(tries - 1, 10), max(first_s, LONGEST_PAUSE_S))


def _open(tally: Tally, plan: Plan, site: str, body: bytes, *, now_s: int) -> SignedReply:
    sent, member = tally.sent[site], tally.roster.member(site)
    if member is None:
        raise IdentityRefusal(
            "a reply of a site that is not enrolled",
            allowed="a site of the roster",
            next="restore roster.json from a backup",
            code="wrong_site",
        )
    return open_reply(
        body,
        task=sent.task,
        task_digest=sent.digest,
        study=plan.study,
        approver_key=PublicKey(member.approver_key),
        now_s=now_s,
    )


def _answers_earlier(body: bytes, site: str, tally: Tally, plan: Plan) -> bool:
    """Whether this reply names a round of this run that is closed already."""
    try:
        envelope, _ = unframe(body, cap_bytes=plan.study.outbound.bytes_per_round)
        reply, _ = read_reply(envelope)
    except OncofedError:
        return False
    return (reply.site, reply.run) == (site, plan.run) and 0 < reply.round < tally.number


def _left_out(
    site: str, reason: LeftOut, code: str, *, reply_digest: str = NO_DIGEST
) -> SiteOutcome:
    return SiteOutcome.model_validate(
        {
            "site": site,
            "outcome": "left_out",
            "reason": reason,
            "code": code,
            "reply_digest": reply_digest,
        }
    )


def _known(error: OncofedError) -> str:
    """The error's code, if the wire has a word for it."""
    return error.code if error.code in _CODES else "malformed"
