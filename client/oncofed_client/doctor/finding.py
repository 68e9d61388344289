"""What the doctor says of one check: its verdict, what was seen, whose fault that likely is, what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["ok", "warning", "fault", "skipped"]
Whose = Literal["", "this site", "this machine", "the network", "the proxy", "the coordinator"]

CHECKS = {
    "versions": "Python and packages are the ones that this release was tested with",
    "permissions": "files of the home are whole, ours alone, and may be written",
    "keys": "the trainer's certificate and the coordinator's answer hold",
    "disk": "room for updates, ledger and logs",
    "memory": "memory for the trainer",
    "limits": "what this container or account may use",
    "records": "ledger, its head and the refusals are whole, and not ahead of this clock",
    "gpu": "GPU and driver, as the trainer sees them",
    "isolation": "the trainer truly has no network; the courier sees no scan",
    "dns": "the name of the coordinator, or of the proxy, has an address",
    "route": "TCP reaches that address",
    "proxy": "the proxy lets this site through",
    "tls": "TLS is the coordinator's own: nobody in between reads along",
    "certificate": "the coordinator's certificate has the right name and dates",
    "coordinator": "SuperLink answers, and knows this site's node key",
    "clock": "this machine and the coordinator agree what time it is",
    "mtu": "large packets pass",
    "throughput": "an update of true size arrives in time",
}
"""Every check in the order in which things break, and what it means when it is ok."""

CLEAN = "ok"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at. ``code`` is stable; ``ok`` where nothing is wrong."""

    check: str
    verdict: Verdict
    code: str
    seen: str
    whose: Whose = ""
    next: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return asdict(self)


def well(check: str, seen: str) -> Finding:
    """Nothing is wrong."""
    return Finding(check=check, verdict="ok", code=CLEAN, seen=seen)


def fault(check: str, code: str, seen: str, *, whose: Whose, next: str) -> Finding:
    """This breaks, or will."""
    return Finding(check=check, verdict="fault", code=code, seen=seen, whose=whose, next=next)


def warning(check: str, code: str, seen: str, *, whose: Whose, next: str) -> Finding:
    """This works today, and may not tomorrow."""
    return Finding(check=check, verdict="warning", code=code, seen=seen, whose=whose, next=next)


def skipped(check: str, seen: str) -> Finding:
    """It could not be looked at, because of another finding, or does not apply."""
    return Finding(check=check, verdict="skipped", code="skipped", seen=seen)
