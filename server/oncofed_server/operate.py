"""The coordinator at work: SuperLink kept up, runs handed to it, and what people ask of them meanwhile.

``serve`` holds SuperLink and SuperExec in the foreground and tells SuperLink who is enrolled whenever
the roster changes. ``launch`` gives it a run; the round loop then lives in Flower's ServerApp, and
``follow`` only reads the run's files. So any of these may end without the run ending.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from oncofed_common.durable import is_locked, locked, read_object, write_atomic
from oncofed_common.errors import OncofedError, SystemRefusal
from oncofed_common.identity import canonical
from oncofed_server import superlink
from oncofed_server.bundle import thin_bundle
from oncofed_server.collect import NOT_APPROVED
from oncofed_server.exporter import Runs, exporting
from oncofed_server.roster import read_roster
from oncofed_server.runs import ENDED, describe

LINK_FILE = "link.json"
LOCK_FILE = "link.lock"
COMES_UP_S = 60.0
GRACE_S = 5.0
WATCH_EVERY_S = 0.5

OnStatus = Callable[[dict[str, Any]], None]
"""Is shown a run's description whenever it may have changed."""


def serve(
    home: Path,
    *,
    host: str,
    port: int,
    metrics_port: int | None,
    on_up: Callable[[int], None],
) -> None:
    """Keep SuperLink and SuperExec up until SIGTERM or SIGINT.

    Args:
        metrics_port: where Prometheus may ask on this machine; None: nowhere.

    Raises:
        SystemRefusal: codes ``home_in_use``, ``port_in_use``, ``superlink``. OncofedError: one of the
            two processes ended by itself.
    """
    roster = read_roster(home)
    named = roster.coordinator.address.rpartition(":")[0]
    runs = Runs(home, enrolled=lambda: _enrolled(home), connected=lambda: connected_sites(home))
    with (
        locked(home / LOCK_FILE, wait=False, busy="a SuperLink of this home that runs already"),
        exporting(runs, port=metrics_port),
    ):
        (home / LINK_FILE).unlink(missing_ok=True)
        superlink.prepare(home, names=[named], now=datetime.now(tz=UTC))
        running = superlink.start(
            home=home,
            host=host,
            port=port,
            environment=superlink.link_environment(home),
            within_s=COMES_UP_S,
        )
        try:
            write_atomic(home / LINK_FILE, canonical({"port": running.link.port}))
            on_up(running.link.port)
            with _until_signal() as asked_to_end:
                _keep_up(running, asked_to_end)
        finally:
            (home / LINK_FILE).unlink(missing_ok=True)
            running.stop(grace_s=GRACE_S)


def _enrolled(home: Path) -> list[str]:
    """Sites of the roster that are not revoked."""
    return [member.site for member in read_roster(home).sites if not member.revoked]


def tell_who_is_enrolled(link: superlink.Link) -> None:
    """Make SuperLink know exactly the sites that are enrolled and not revoked."""
    members = read_roster(link.home).sites
    superlink.sync_nodes(link, {m.site: m.node_key for m in members if not m.revoked})


def is_up(home: Path) -> bool:
    """Whether ``serve`` keeps a SuperLink up: one that ends takes the file away, a killed one leaves it."""
    return (home / LINK_FILE).exists() and is_locked(home / LOCK_FILE)


def open_link(home: Path) -> superlink.Link:
    """The SuperLink that ``serve`` keeps up for this home.

    Raises:
        SystemRefusal: code ``not_started``.
    """
    if not is_up(home):
        raise SystemRefusal(
            "no SuperLink that runs for this home",
            allowed="a coordinator that has been started",
            next="run oncofed-coordinator start in another terminal",
            code="not_started",
        )
    port = read_object(home / LINK_FILE, what="the coordinator's port").get("port")
    if type(port) is not int or not 0 < port < 2**16:
        raise SystemRefusal(
            "a file of the coordinator's port that holds none",
            allowed="link.json as oncofed-coordinator start wrote it",
            next="end oncofed-coordinator start, and run it again",
            code="not_started",
        )
    return superlink.Link(home=home, port=port)


def refuse_absent(invited: Iterable[str], connected: Collection[str]) -> None:
    """Nothing, if every invited site is connected.

    Raises:
        SystemRefusal: code ``not_connected``.
    """
    absent = [site for site in invited if site not in connected]
    if absent:
        raise SystemRefusal(
            f"invited sites that are not connected: {', '.join(absent)}",
            allowed="a first round with every invited site, each of which said that it approved",
            next="wait for them (oncofed-coordinator status), or begin without them: --partial",
            code="not_connected",
        )


def connected_sites(home: Path) -> set[str] | None:
    """Sites whose courier SuperLink has heard of lately; None where no SuperLink answers."""
    try:
        return superlink.online_sites(open_link(home))
    except OncofedError:
        return None


def launch(link: superlink.Link, run: str) -> int:
    """Hand a run to SuperLink, to begin or to go on; returns Flower's own id for it."""
    tell_who_is_enrolled(link)
    return superlink.submit(link, thin_bundle(), run=run)


def follow(
    link: superlink.Link, run: str, flower_run: int, *, on_status: OnStatus
) -> dict[str, Any]:
    """Wait until the run has its release; its description.

    That the round loop is gone is known by its lock, which the kernel let go of; Flower takes a minute.
    That it was there is known by the lock too, or by what it has written since. As long as any round loop is
    at work on the run, it goes on, whatever became of the one that this process handed over.

    Raises:
        OncofedError: code ``interrupted``; the round loop ended without a release.
    """
    before, was_running = describe(link.home, run)["events"], False
    while True:
        finished = _is_finished(link, run, flower_run)
        found = describe(link.home, run)
        on_status(found)
        is_running = found["status"] == "running"
        was_running = was_running or is_running or found["events"] > before
        finished = not is_running and (
            finished or (was_running and found["status"] == "interrupted")
        )
        if found["status"] in ENDED:
            return found
        if finished and found["last_code"] == NOT_APPROVED[1]:
            late = [s["name"] for s in found["sites"] if s["last_code"] == NOT_APPROVED[1]]
            raise OncofedError(
                f"a first round that waits for {', '.join(late)}, who have not approved the study",
                allowed="enough sites that have approved; nothing is lost, nobody is charged twice",
                next=f"wait until they approved, then oncofed-coordinator resume {run}",
                code="not_approved",
            )
        if finished:
            raise OncofedError(
                f"a round loop that ended in round {found['rounds_closed'] + 1} without a release",
                allowed="-",
                next=f"read logs/superexec.log in the home, then oncofed-coordinator resume {run}",
                code="interrupted",
            )
        time.sleep(WATCH_EVERY_S)


def _is_finished(link: superlink.Link, run: str, flower_run: int) -> bool:
    try:
        return superlink.run_status(link, flower_run)[0] == "finished"
    except SystemRefusal:
        if is_up(link.home):
            raise
        raise OncofedError(
            f"a coordinator that ended while run {run} was going on",
            allowed="oncofed-coordinator start, up until the run has its release",
            next=f"run oncofed-coordinator start again, then oncofed-coordinator resume {run}",
            code="interrupted",
        ) from None


def _keep_up(running: superlink.Running, asked_to_end: Callable[[], bool]) -> None:
    told: object = None
    while not asked_to_end():
        for name, process in (("SuperLink", running.superlink), ("SuperExec", running.superexec)):
            if process.poll() is not None:
                raise OncofedError(
                    f"{name} ended by itself with status {process.returncode}",
                    allowed="-",
                    next=f"read logs/{name.lower()}.log in the home, start again, and resume what ran",
                    code="superlink",
                )
        now = (running.link.home / "roster.json").stat().st_mtime_ns
        if now != told:
            tell_who_is_enrolled(running.link)
            told = now
        time.sleep(WATCH_EVERY_S)


@contextmanager
def _until_signal() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGINT came; their own effect is put off until the block ends."""
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
