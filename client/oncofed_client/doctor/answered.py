"""What the coordinator's answer says: is this site known, whose clock is right, is a round in time?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from oncofed_client.courier.probe import Seen
from oncofed_client.courier.question import NOT_SIGNED, UNKNOWN
from oncofed_client.doctor.finding import Finding, fault, warning, well

AHEAD_S, BEHIND_S = 4.5, 300.0
"""SuperLink takes a node's signature from 5 s ahead of its own clock to 305 s behind it (Flower 1.41)."""
SOON_S = 14 * 86_400
SMALL_MTU_BYTES = 1280
REQUESTS_A_ROUND = 17
"""Of the node for one message: for work, run and bundle; six objects each way; confirming, announcing."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is known beside what was seen. ``proxy``: "host:port", without its login."""

    address: str
    proxy: str | None
    login: bool
    environment_proxy: str | None
    update_bytes: int
    reply_after_s: int
    deadline_s: int


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a round costs on this line. ``down`` is taken to be as fast as ``up``: it isn't measured."""

    up_bytes_per_s: float
    line_s: float
    round_s: float


def predict(seen: Seen, asked: Asked) -> Prediction | None:
    """Bytes both ways at the measured speed, and each request's own wait; None if nothing was measured.

    The weights that come are as many as the values that leave: 4 bytes each.
    """
    if not seen.upload_bytes or seen.upload_s <= 0:
        return None
    rate = seen.upload_bytes / seen.upload_s
    line_s = 2 * asked.update_bytes / rate + REQUESTS_A_ROUND * seen.answer_s
    return Prediction(up_bytes_per_s=rate, line_s=line_s, round_s=asked.reply_after_s + line_s)


def known(seen: Seen) -> Iterator[Finding]:
    if seen.code == UNKNOWN:
        yield fault(
            "coordinator",
            "not_enrolled",
            "SuperLink does not know this site's node key: not enrolled yet, or revoked",
            whose="the coordinator",
            next="ask the coordinator; send enrolment.json, the newest one after rotate, to be enrolled",
        )
    elif seen.code == NOT_SIGNED and not _clock_is_wrong(seen):
        yield fault(
            "coordinator",
            "signature_refused",
            "SuperLink refuses the node's signature although the clocks agree",
            whose="the coordinator",
            next="ask the coordinator for its Flower version; compare with versions above",
        )
    elif seen.code:
        yield well("coordinator", f"SuperLink answers in {seen.answer_s * 1000:.0f} ms")


def dates(seen: Seen) -> Iterator[Finding]:
    if not seen.ours:
        return
    there_s = seen.date_s or seen.local_s
    begins, ends = (
        time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
        for at in (seen.not_before_s, seen.not_after_s)
    )
    if there_s > seen.not_after_s:
        yield fault(
            "certificate",
            "certificate_expired",
            f"the coordinator's certificate ended on {ends}",
            whose="the coordinator",
            next="ask the coordinator to restart SuperLink: oncofed-coordinator start renews it",
        )
    elif there_s < seen.not_before_s:
        yield fault(
            "certificate",
            "certificate_not_yet",
            f"the coordinator's certificate begins on {begins}",
            whose="the coordinator",
            next="ask the coordinator to set its clock and to renew its certificate",
        )
    elif there_s > seen.not_after_s - SOON_S:
        yield warning(
            "certificate",
            "certificate_soon",
            f"the coordinator's certificate ends on {ends}",
            whose="the coordinator",
            next="ask the coordinator to restart SuperLink before that",
        )
    else:
        yield well("certificate", f"for {', '.join(seen.names[:4])}, until {ends}")


def _ahead_s(seen: Seen) -> float:
    """How far this clock is ahead; a Date header says whole seconds, so half of one is added."""
    return seen.local_s - (seen.date_s + 0.5)


def _clock_is_wrong(seen: Seen) -> bool:
    return bool(seen.date_s) and not -BEHIND_S <= _ahead_s(seen) <= AHEAD_S


def clock(seen: Seen) -> Iterator[Finding]:
    if not seen.date_s:
        return
    ahead_s = _ahead_s(seen)
    how = f"this clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the coordinator's"
    doing = "switch time synchronisation on (timedatectl set-ntp true), or ask for an NTP server"
    code = "clock_ahead" if ahead_s > 0 else "clock_behind"
    if _clock_is_wrong(seen):
        yield fault("clock", code, how, whose="this machine", next=doing)
    elif ahead_s > AHEAD_S / 2 or -ahead_s > BEHIND_S / 5:
        yield warning("clock", code, how, whose="this machine", next=doing)
    else:
        yield well("clock", "within seconds of the coordinator's")


def mtu(seen: Seen) -> Finding:
    if seen.mtu_bytes < SMALL_MTU_BYTES:
        return warning(
            "mtu",
            "mtu_small",
            f"packets of {seen.mtu_bytes} bytes at most",
            whose="the network",
            next="every IPv6 link carries 1280: look for tunnels within tunnels",
        )
    return well("mtu", f"packets of up to {seen.mtu_bytes} bytes")


def throughput(seen: Seen, asked: Asked) -> Finding:
    said = predict(seen, asked)
    assert said is not None  # what was uploaded is not nothing
    how = (
        f"{seen.upload_bytes} bytes up at {said.up_bytes_per_s * 8 / 1e6:.3g} Mbit/s; of a round the line "
        f"takes {said.line_s:.3g} s, so a reply of {asked.update_bytes} bytes is there after "
        f"{said.round_s:.3g} s of {asked.deadline_s} s"
    )
    doing = "ask for more bandwidth to the coordinator, or the coordinator for a later deadline"
    if said.round_s > asked.deadline_s:
        return fault("throughput", "too_slow", how, whose="the network", next=doing)
    if said.round_s + said.line_s > asked.deadline_s:
        return warning("throughput", "slow", how, whose="the network", next=doing)
    return well("throughput", how)
