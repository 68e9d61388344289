"""What was seen on the way to the coordinator: which check it fails, and whose fault that likely is."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping

from oncofed_client.courier.probe import Seen
from oncofed_client.courier.question import KNOWN, NOT_SIGNED, UNKNOWN
from oncofed_client.doctor import answered
from oncofed_client.doctor import line_words as words
from oncofed_client.doctor.answered import Asked
from oncofed_client.doctor.finding import CHECKS, Finding, fault, skipped, well

LINE_CHECKS = tuple(CHECKS)[tuple(CHECKS).index("dns") :]

_NAME_ERRORS = {62, 64}  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


def judge(seen: Seen, asked: Asked) -> list[Finding]:
    """One finding or more for each check of the line, in order; after a fault that ends the way, the rest is
    skipped."""
    found = list(_judge(seen, asked))
    said = {one.check for one in found}
    ended = any(one.verdict == "fault" for one in found)
    rest = "not reached" if ended else "not seen"
    found += [skipped(check, rest) for check in LINE_CHECKS if check not in said]
    return sorted(found, key=lambda one: tuple(CHECKS).index(one.check))


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
            yield from answered.known(seen)
        case "certificate":
            yield from answered.dates(seen)
        case "clock":
            yield from answered.clock(seen)
        case "mtu" if seen.mtu_bytes:
            yield answered.mtu(seen)
        case "throughput" if seen.upload_bytes:
            yield answered.throughput(seen, asked)


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


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def environment_proxy(environment: Mapping[str, str]) -> str | None:
    """The variable by which this machine names a proxy, if there is one."""
    names = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    return next((name for name in names if environment.get(name)), None)
