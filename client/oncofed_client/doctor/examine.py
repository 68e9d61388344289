"""Everything that the doctor looks at, in the order in which it breaks, and what comes out of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from oncofed_client.courier.jail import jail_level
from oncofed_client.courier.line import Proxy
from oncofed_client.courier.node import NEVER_BY_PROXY
from oncofed_client.courier.probe import Seen
from oncofed_client.doctor import folders, line, machine
from oncofed_client.doctor.answered import Asked, Prediction, predict
from oncofed_client.doctor.asking import ask
from oncofed_client.doctor.finding import CHECKS, Finding, fault, skipped
from oncofed_client.doctor.gpu import gpu
from oncofed_client.doctor.line import LINE_CHECKS
from oncofed_client.doctor.walls import has_network, isolation
from oncofed_client.home import Home
from oncofed_common.errors import OncofedError, SystemRefusal
from oncofed_common.screen import Watch, grid
from oncofed_common.study import Study, read_study

ENVELOPE_BYTES = 4096
NOT_APPROVED_DEADLINE_S = 7200
"""Round deadline of the coordinator's template: taken where no study was approved yet."""
MOST_TRIED_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What was found, in the order of ``CHECKS``, what a round will take, and how long looking took."""

    site: str
    findings: tuple[Finding, ...]
    prediction: Prediction | None
    took_s: float

    @property
    def faults(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if one.verdict == "fault")

    def as_dict(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            "site": self.site,
            "ok": not self.faults,
            "findings": [one.as_dict() for one in self.findings],
            "predicted": asdict(self.prediction) if self.prediction else None,
            "seconds": round(self.took_s, 1),
        }

    def refusal(self) -> OncofedError | None:
        """The first fault as a refusal; None where there is none."""
        if not self.faults:
            return None
        first, count = self.faults[0], len(self.faults)
        others = f" (and {count - 1} more)" if count > 1 else ""
        return SystemRefusal(
            f"{first.check}: {first.seen}{others}",
            allowed=CHECKS[first.check],
            next=first.next,
            code=first.code,
        ).beside(self.as_dict())


def examine(home: Home, *, https_proxy: str | None, watch: Watch) -> Examined:
    """Look at everything. Nothing is changed, and nobody is called but the coordinator and the proxy.

    Args:
        watch: told which check comes.
    """
    began_s = time.monotonic()
    network = has_network()
    found: list[Finding] = []
    asked = _asked(home, https_proxy=https_proxy)
    local: dict[str, Callable[[], Finding]] = {
        "versions": lambda: machine.versions(with_courier=network),
        "permissions": lambda: folders.permissions(home),
        "keys": lambda: folders.keys(home, now_s=time.time()),
        "disk": lambda: folders.disk(home, update_bytes=asked.update_bytes),
        "memory": machine.memory,
        "limits": machine.limits,
        "records": lambda: _records(home, found),
        "gpu": gpu,
    }
    for number, (check, look) in enumerate(local.items()):
        watch("checks", number, len(CHECKS))
        found.append(_looked(check, look))
    watch("checks", len(local), len(CHECKS))
    seen = None
    blocked = _blocked(found, network=network)
    if blocked is None:
        seen = _see(home, asked, https_proxy=https_proxy)
        blocked = None if seen else "the courier did not look"
    reach = _reached(seen, asked)
    found.append(
        _looked(
            "isolation",
            lambda: isolation(virtual=home.virtual, reach=reach, with_courier=network),
        )
    )
    if seen is not None:
        found += line.judge(seen, asked)
    else:
        found += _not_seen(
            blocked or "", looked=blocked == "the courier did not look", network=network
        )
    watch("checks", len(CHECKS), len(CHECKS))
    return Examined(
        site=home.site,
        findings=tuple(found),
        prediction=predict(seen, asked) if seen else None,
        took_s=time.monotonic() - began_s,
    )


def table(examined: Examined) -> Table:
    """For people: one row a finding; what is wrong also says whose it likely is, and what to do."""
    rows = [
        (
            one.check,
            one.verdict,
            one.code if one.verdict in ("fault", "warning") else "",
            _said(one),
        )
        for one in examined.findings
    ]
    return grid(("check", "verdict", "code", "what was seen"), rows, title="Doctor")


def _said(one: Finding) -> str:
    if not one.next:
        return one.seen
    return f"{one.seen}. Likely {one.whose}. To do: {one.next}"


def _looked(check: str, look: Callable[[], Finding]) -> Finding:
    """What a check found; one that the operating system ends says so, and the others go on."""
    try:
        return look()
    except OncofedError as error:
        return fault(check, f"{check}_fails", error.found, whose="this machine", next=error.next)
    except OSError:
        seen = "the operating system refuses what this check needs"
        doing = "look at permissions and limits of this account, then at the system's log"
        return fault(check, f"{check}_fails", seen, whose="this machine", next=doing)


def _records(home: Home, found: list[Finding]) -> Finding:
    """Opened only where nothing is wrong with the files that they are in, the keys, or the memory that it
    takes; a site that has not joined yet has them too."""
    faults = (one for one in found if one.verdict == "fault" and one.code != "not_joined")
    wrong = next((one.check for one in faults), None)
    if wrong:
        return skipped("records", f"see {wrong}")
    # Late: what the ledger needs may be more than the memory that was found wrong before.
    from oncofed_client.doctor.records import records  # noqa: PLC0415

    return records(home)


def _blocked(found: list[Finding], *, network: bool) -> str | None:
    """Why nobody can be asked, if so."""
    if not network:
        return "no network"
    stops = {"home_incomplete", *folders.ENDS}
    return next((f"see {one.check}" for one in found if one.code in stops), None)


def _not_seen(why: str, *, looked: bool, network: bool) -> Iterator[Finding]:
    for check in LINE_CHECKS:
        if check == "route" and not network:
            yield fault(
                "route",
                "no_network",
                "this place has no network interface that is up",
                whose="this machine",
                next="bring the interface up (ip link); beside a container without network, run the doctor "
                "where the courier has its network",
            )
        elif check == "route" and looked:
            yield fault(
                "route",
                "courier_fails",
                "what runs as the courier does to look at the line ended without a word",
                whose="this machine",
                next="mend what isolation, permissions and versions say above, then repeat",
            )
        else:
            yield skipped(check, why)


def _see(home: Home, asked: Asked, *, https_proxy: str | None) -> Seen | None:
    try:
        return ask(
            home,
            address=asked.address,
            https_proxy=https_proxy,
            level=jail_level(),
            upload_bytes=min(asked.update_bytes, MOST_TRIED_BYTES),
        )
    except OncofedError:
        return None


def _reached(seen: Seen | None, asked: Asked) -> list[str]:
    if seen is None or not seen.connect_s:
        return []
    port = (asked.proxy or asked.address).rpartition(":")[2]
    return [f"{address},{port}" for address in seen.addresses[:2]]


def _asked(home: Home, *, https_proxy: str | None) -> Asked:
    studies = list(_studies(home))
    address, most = "", 0
    with suppress(OncofedError):  # the check of the keys says it
        address = str(home.answer()["address"])
        most = home.policy().bytes_per_round
    direct = https_proxy is None or address.rpartition(":")[0] in NEVER_BY_PROXY
    proxy = None if direct else Proxy.parse(str(https_proxy))
    return Asked(
        address=address,
        proxy=f"{proxy.host}:{proxy.port}" if proxy else None,
        login=proxy is not None and proxy.login is not None,
        environment_proxy=line.environment_proxy(os.environ),
        update_bytes=max(map(_update_bytes, studies), default=most),
        reply_after_s=max((one.outbound.reply_after_s for one in studies), default=0),
        deadline_s=min(
            (one.aggregation.round_deadline_s for one in studies), default=NOT_APPROVED_DEADLINE_S
        ),
    )


def _studies(home: Home) -> Iterator[Study]:
    """Those that were approved here and can be read."""
    try:
        names = home.studies()
    except OSError:
        return
    for name in names:
        try:
            yield read_study(home.study_folder(name) / "study.toml")
        except (OncofedError, OSError):
            continue


def _update_bytes(study: Study) -> int:
    """A reply: four bytes a value, and the envelope around them."""
    values = sum(_count(term.shape) for term in study.schema_terms)
    return min(4 * values + ENVELOPE_BYTES, study.outbound.bytes_per_round)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for one in shape:
        count *= one
    return count
