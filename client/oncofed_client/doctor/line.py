"""What was seen on the way to the coordinator: which check it fails, and whose fault that likely is."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from oncofed_client.courier.probe import Seen
from oncofed_client.doctor import line_words as words
from oncofed_client.doctor.finding import CHECKS, Finding, fault, skipped, warning, well

LINE_CHECKS = tuple(CHECKS)[tuple(CHECKS).index("dns") :]

AHEAD_S, BEHIND_S = 4.5, 300.0
"""SuperLink takes a node's signature from 5 s ahead of its own clock to 305 s behind it (Flower 1.41)."""
SOON_S = 14 * 86_400
SMALL_MTU_BYTES = 1280
REQUESTS_A_ROUND = 14
"""Of the courier beside the pieces of weights and update: asking for work, confirming, announcing."""
KNOWN, UNKNOWN, NOT_SIGNED = 2003, 2004, 401
"""SuperLink's codes: a heartbeat out of bounds (the key is known), no such node, no valid signature."""
_NAME_ERRORS = {62, 64}  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


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


def judge(seen: Seen, asked: Asked) -> list[Finding]:
    """One finding or more for each check of the line, in order; after a fault that ends the way, the rest is
    skipped."""
    found = list(_judge(seen, asked))
    said = {one.check for one in found}
    ended = any(one.verdict == "fault" for one in found)
    rest = "not reached" if ended else "not seen"
    found += [skipped(check, rest) for check in LINE_CHECKS if check not in said]
    return sorted(found, key=lambda one: tuple(CHECKS).index(one.check))


def predict(seen: Seen, asked: Asked) -> Prediction | None:
    """Bytes both ways at the measured speed, and each request's own wait; None if nothing was measured.

    The weights that come are as many as the values that leave: 4 bytes each.
    """
    if not seen.upload_bytes or seen.upload_s <= 0:
        return None
    rate = seen.upload_bytes / seen.upload_s
    line_s = 2 * asked.update_bytes / rate + REQUESTS_A_ROUND * seen.answer_s
    return Prediction(up_bytes_per_s=rate, line_s=line_s, round_s=asked.reply_after_s + line_s)


def _judge(seen: Seen, asked: Asked) -> Iterator[Finding]:
    ended = _ended(seen, asked)
    reached = LINE_CHECKS.index(ended.check) if ended else len(LINE_CHECKS)
    for check in LINE_CHECKS[:reached]:
        yield from _went_well(check, seen, asked)
    if ended:
        yield ended


def _went_well(check: str, seen: Seen, asked: Asked) -> Iterator[Finding]:
    """A check that the connection passed; its own judgement where passing alone does not say it."""
    first = asked.proxy or asked.address
    match check:
        case "dns":
            yield well(check, f"{_host(first)}: {', '.join(seen.addresses[:4])}")
        case "route":
            yield well(check, f"{first} connects in {seen.connect_s * 1000:.0f} ms")
        case "proxy" if asked.proxy is None:
            yield skipped(check, "no proxy was named")
        case "proxy":
            yield well(check, f"{asked.proxy} opens a way to {asked.address}")
        case "tls" if seen.fingerprint:
            yield well(check, f"certificate {seen.fingerprint[:16]}… of {seen.issuer}")
        case "coordinator":
            yield from _about_answer(seen)
        case "certificate":
            yield from _dates(seen)
        case "clock":
            yield from _clock(seen)
        case "mtu" if seen.mtu_bytes:
            yield _mtu(seen)
        case "throughput" if seen.upload_bytes:
            yield _throughput(seen, asked)


def _ended(seen: Seen, asked: Asked) -> Finding | None:
    """The fault that ended the way, if one did."""
    if seen.step:
        return _broken(seen, asked)
    if not seen.ours:
        return _foreign(seen, asked)
    if seen.code not in (KNOWN, UNKNOWN, NOT_SIGNED):
        return _no_superlink(seen, asked)
    return None


def _broken(seen: Seen, asked: Asked) -> Finding:
    if seen.small_passes:
        return fault(
            "mtu",
            "mtu",
            f"large packets to {asked.address} vanish; small ones pass",
            whose="the network",
            next="let ICMP 'fragmentation needed' through, or lower the MTU of this machine's interface "
            "(ip link set dev NAME mtu 1280), as behind a VPN",
        )
    key = (seen.step, seen.why)
    if seen.step == "verify" and seen.verify_code in _NAME_ERRORS:
        key = ("verify", "name")
    if seen.step == "upload" and seen.why == "answers":
        key = ("upload", str(seen.status))
    said = words.OTHERWISE
    if seen.step == "proxy" and seen.why == "answers":
        said = words.REFUSED_BY_PROXY[_proxy_says(seen, asked)]
    elif asked.proxy is not None and key in words.BY_PROXY:
        said = words.BY_PROXY[key]
    elif asked.proxy is None and seen.step in ("name", "connect") and asked.environment_proxy:
        return _proxy_forgotten(seen, asked)
    elif seen.step == "connect" and asked.proxy is None and _wrong_address(seen, asked):
        return _misled(seen, asked)
    else:
        said = words.DIRECT.get(key, words.OTHERWISE)
    return _in_words(said, seen, asked)


def _in_words(said: words.Words, seen: Seen, asked: Asked) -> Finding:
    code, check, whose, found, doing = said
    names = {
        "host": asked.proxy or asked.address,
        "to": asked.address,
        "names": ", ".join(seen.names) or seen.subject or "another name",
        "status": str(seen.status),
        "kinds": seen.kinds or "another scheme",
        "step": seen.step,
        "why": seen.why,
    }
    return fault(check, code, found.format(**names), whose=whose, next=doing.format(**names))


def _proxy_says(seen: Seen, asked: Asked) -> str:
    if seen.status == 407 and seen.kinds and "basic" not in seen.kinds.split(","):
        return "login_kind"
    if seen.status == 407:
        return "login_wrong" if asked.login else "login_missing"
    return "cannot" if seen.status >= 500 else "forbids"


def _proxy_forgotten(seen: Seen, asked: Asked) -> Finding:
    return fault(
        "proxy",
        "proxy_not_named",
        f"{asked.address} is not reached directly ({seen.step}: {seen.why}), and this machine's "
        f"{asked.environment_proxy} names a proxy",
        whose="this site",
        next="name it: --https-proxy; the courier inherits no variable",
    )


def _wrong_address(seen: Seen, asked: Asked) -> bool:
    host = _host(asked.address)
    if host == "localhost" or host in seen.addresses:
        return False
    found = [ipaddress.ip_address(one) for one in seen.addresses]
    return any(one.is_loopback or one.is_unspecified or one.is_link_local for one in found)


def _misled(seen: Seen, asked: Asked) -> Finding:
    return fault(
        "dns",
        "dns_wrong_address",
        f"the name {_host(asked.address)} leads to {', '.join(seen.addresses)}, which is nobody outside",
        whose="the network",
        next="look for the name in /etc/hosts, and at name servers that block by answering so",
    )


def _foreign(seen: Seen, asked: Asked) -> Finding:
    shown = f"certificate of {seen.subject or '-'}, issued by {seen.issuer or '-'}, sha256 {seen.fingerprint}"
    if seen.same_name:
        return fault(
            "tls",
            "other_authority",
            f"{asked.address} shows a certificate of another authority with the same name: {shown}",
            whose="the coordinator",
            next="ask the coordinator, by telephone, whether it made a new authority; then join again",
        )
    return fault(
        "tls",
        "intercepted",
        f"somebody in between answers for {asked.address}: {shown}",
        whose="the network",
        next=f"exempt {asked.address} from TLS inspection; nothing was sent over this line",
    )


def _no_superlink(seen: Seen, asked: Asked) -> Finding:
    if seen.status in (502, 503, 504):
        return fault(
            "coordinator",
            "coordinator_down",
            f"the coordinator's door answers, SuperLink behind it does not ({seen.status})",
            whose="the coordinator",
            next="ask the coordinator to run oncofed-coordinator start; wait, then repeat",
        )
    return fault(
        "coordinator",
        "no_coordinator",
        f"{asked.address} answers {seen.status}, which is not SuperLink's answer",
        whose="the coordinator",
        next="check address and port, and that the door passes POST to /v1/fleet/ on",
    )


def _about_answer(seen: Seen) -> Iterator[Finding]:
    if seen.code == UNKNOWN:
        yield fault(
            "coordinator",
            "not_enrolled",
            "SuperLink does not know this site's node key",
            whose="the coordinator",
            next="send enrolment.json, or the newest one after rotate, and have it enrolled",
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


def _dates(seen: Seen) -> Iterator[Finding]:
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


def _clock(seen: Seen) -> Iterator[Finding]:
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


def _mtu(seen: Seen) -> Finding:
    if seen.mtu_bytes < SMALL_MTU_BYTES:
        return warning(
            "mtu",
            "mtu_small",
            f"packets of {seen.mtu_bytes} bytes at most",
            whose="the network",
            next="every IPv6 link carries 1280: look for tunnels within tunnels",
        )
    return well("mtu", f"packets of up to {seen.mtu_bytes} bytes")


def _throughput(seen: Seen, asked: Asked) -> Finding:
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


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def environment_proxy(environment: Mapping[str, str]) -> str | None:
    """The variable by which this machine names a proxy, if there is one."""
    names = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    return next((name for name in names if environment.get(name)), None)
