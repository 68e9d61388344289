"""The main job with real processes: hospitals on one machine train one forecast over Flower and TLS.

    cohorts -> homes, keys, enrolment -> SuperLink -> study, approvals -> sites -> rounds
    -> release, verified -> forecasts of held-out patients -> summary, picture, page

Whatever happens, nothing is left running: each child dies with this process, also after ``kill -9``;
and the next demo ends by process id and start time what a dead one may have left.
"""

from __future__ import annotations

import datetime as dt
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oncofed_client.start import KEPT_VARIABLES
from oncofed_common.durable import disk_refusal, is_used, locked_folder
from oncofed_common.errors import OncofedError, SystemRefusal
from oncofed_common.terminal import stopped_by_signals
from oncofed_server import superlink
from oncofed_server.bundle import thin_bundle
from oncofed_server.roster import read_roster
from oncofed_server.runs import create_run
from oncofed_server.settings import complete, read_settings, seed_of
from oncofed_simulation.founding import (
    Federation,
    Site,
    agree,
    found_coordinator,
    found_sites,
    introduce,
    last_day,
    lifetime_for,
)
from oncofed_simulation.outcome import write_outcome
from oncofed_simulation.patients.writer import wards_of, write_cohorts
from oncofed_simulation.processes import Supervisor

FILTER_ORDER = "3"
COURIER_POLL_S = 0.5
READY_WITHIN_S = 900.0
WATCH_EVERY_S, ASK_EVERY_S = 0.5, 3.0
MARKER = "oncofed-demo.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a demo runs: virtual hospitals, and the settings of their study."""

    sites: int
    patients: int
    seed: int
    settings: Path


PLAN = Plan(sites=3, patients=24, seed=7, settings=Path(__file__).with_name("demo.toml"))


@dataclass(frozen=True, kw_only=True)
class Screen:
    """How the demo is watched: a line for what begins, and how far something is."""

    say: Callable[[str], None]
    bar: Callable[[str, int, int], None]


def demo(out: Path, *, plan: Plan, screen: Screen) -> dict[str, Any]:
    """Run the whole demo into ``out`` and return its summary.

    Raises:
        SystemRefusal: ``out`` holds something else than an earlier demo, or one that still runs.
    """
    began_s = time.monotonic()
    out = _resolved(out)  # children start in folders of their own
    with taken_over(out):
        return _demo(out, plan=plan, screen=screen, began_s=began_s)


def _demo(out: Path, *, plan: Plan, screen: Screen, began_s: float) -> dict[str, Any]:
    with stopped_by_signals(), Supervisor(out / "processes.json", grace_s=2.0) as children:
        screen.say(f"making {plan.sites} virtual hospitals of {plan.patients} patients")
        made = write_cohorts(
            wards_of(sites=plan.sites, patients=plan.patients, seed=plan.seed),
            seed=plan.seed,
            out=out / "cohorts",
            workers=os.cpu_count() or 1,
            progress=screen.bar,
        )
        screen.say("starting SuperLink; enrolling the hospitals, approving the study")
        federation, link = found(out, list(made), children, plan=plan)
        screen.say("starting each hospital's trainer (no network) and courier (no scans)")
        start_sites(federation, children)
        screen.say(f"running {federation.study.training.rounds} rounds")
        run = conduct(federation, link, screen=screen)
        children.stop()
    screen.say("forecasting held-out patients")
    return write_outcome(
        out,
        federation,
        run=run,
        isolation=_isolation(federation),
        began_s=began_s,
        on_progress=screen.bar,
    )


def found(
    out: Path, cohorts: Sequence[Path], children: Supervisor, *, plan: Plan
) -> tuple[Federation, superlink.Link]:
    """Coordinator, SuperLink, homes, enrolment, study and approvals, under ``out``."""
    settings = read_settings(plan.settings)
    running, coordinator = _start_link(out)
    children.adopt("superlink", running.superlink)
    children.adopt("superexec", running.superexec)
    sites = found_sites(
        out / "sites",
        cohorts,
        declared_patients=plan.patients,
        lifetime_epsilon=lifetime_for(settings["privacy"]["epsilon"]),
        lifetime_delta=repr(settings["privacy"]["delta"]),
        bytes_per_round=settings["outbound"]["bytes_per_round"],
        filter_order=FILTER_ORDER,
        seed=seed_of(settings),
    )
    introduce(coordinator, sites, address=f"{superlink.LOOPBACK}:{running.link.port}")
    study = complete(
        settings,
        read_roster(coordinator),
        sites=[site.name for site in sites],
        base=None,
        expires=last_day(),
    )
    federation = agree(coordinator, sites, study=study)
    nodes = {member.site: member.node_key for member in read_roster(coordinator).sites}
    superlink.sync_nodes(running.link, nodes)
    return federation, running.link


def start_sites(federation: Federation, children: Supervisor) -> None:
    """Start ``oncofed-site start`` for every site, and wait until their trainers listen."""
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    for site in federation.sites:
        argv = [sys.executable, "-m", "oncofed_client", "start", "--home", str(site.home.root)]
        argv += ["--cohort", str(site.cohort), "--identities", str(site.identities)]
        argv += ["--poll-s", str(COURIER_POLL_S)]
        children.start(
            site.name,
            argv,
            environment=environment | {"LANG": "C.UTF-8"},
            log=site.home.root / "start.log",
            folder=site.home.root,
        )
    children.wait_ready(
        lambda: all(site.home.socket.exists() for site in federation.sites),
        what="the trainers",
        within_s=READY_WITHIN_S,
    )


def conduct(federation: Federation, link: superlink.Link, *, screen: Screen) -> str:
    """Submit the study's run and show it until Flower says that it has finished; its id."""
    run = create_run(federation.coordinator, federation.study.hash, now_s=int(time.time()))
    _follow(federation, link, run, screen=screen)
    return run


def _start_link(out: Path) -> tuple[superlink.Running, Path]:
    """SuperLink on a free port of its own; another port if somebody else was faster."""
    for attempt in range(3):
        port = superlink.free_port()
        coordinator = found_coordinator(out / "coordinator", address=f"{superlink.LOOPBACK}:{port}")
        superlink.prepare(
            coordinator, names=["127.0.0.1", "localhost"], now=dt.datetime.now(tz=dt.UTC)
        )
        try:
            running = superlink.start(
                home=coordinator,
                host=superlink.LOOPBACK,
                port=port,
                environment=superlink.link_environment(coordinator),
                within_s=60.0,
            )
        except SystemRefusal as refusal:
            if refusal.code != "port_in_use" or attempt == 2:
                raise
            shutil.rmtree(coordinator)
            continue
        return running, coordinator
    raise AssertionError  # the last attempt returned or raised


def _follow(federation: Federation, link: superlink.Link, run: str, *, screen: Screen) -> None:
    """Submit the run and show it until Flower says that it has finished."""
    flower_run = superlink.submit(link, thin_bundle(), run=run)
    log = federation.coordinator / "runs" / run / "log.jsonl"
    shown, asked_s = 0, 0.0
    status, well = "pending", False
    while True:
        if (
            time.monotonic() - asked_s > ASK_EVERY_S
        ):  # each question is a TLS handshake for SuperLink
            status, well = superlink.run_status(link, flower_run)
            asked_s = time.monotonic()
        for row in _rows(log)[shown:]:
            shown += 1
            screen.say(_sentence(row))
        for site in federation.sites:
            progress = _progress(site)
            if progress is not None:
                screen.bar(f"{site.name}: {progress['what']}", progress["done"], progress["total"])
        if status == "finished":
            if not well:
                raise OncofedError(
                    "a run that Flower ended with a failure",
                    allowed="a run that ends by itself",
                    next="read coordinator/logs in the demo's folder",
                    code="run_failed",
                )
            return
        time.sleep(WATCH_EVERY_S)


def _isolation(federation: Federation) -> Mapping[str, bool]:
    """Whether each site's running trainer found itself without a network."""
    return {
        site.name: json.loads((site.home.trainer / "state.json").read_text())["isolation"]
        == "no_network"
        for site in federation.sites
    }


def _rows(log: Path) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    whole, _, _ = log.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def _sentence(row: Mapping[str, Any]) -> str:
    parts = [str(row.get("event", "")).replace("_", " ")]
    parts += [f"{name} {row[name]}" for name in ("round", "site", "code") if row.get(name)]
    return ", ".join(parts)


def _progress(site: Site) -> dict[str, Any] | None:
    try:
        found = json.loads((site.home.trainer / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # the file is replaced at once, but is not there before the first step
    return found if isinstance(found, dict) else None


@contextmanager
def taken_over(out: Path) -> Iterator[None]:
    """Hold ``out``, emptied of an earlier demo, until the block ends; nothing else is ever deleted.

    The folder itself is locked: the kernel lets go of it when this process dies, however it dies.

    Raises:
        SystemRefusal: it holds something else (``out_exists``), another demo runs in it
            (``output_in_use``), or the disk; nothing changed.
    """
    _refuse_strange(out)
    with locked_folder(out, busy="a demo that still runs in this folder"):
        _refuse_strange(out)  # once more: nobody else changes it from here on
        with Supervisor(out / "processes.json", grace_s=0.0):
            _empty(out)
        yield


def _resolved(out: Path) -> Path:
    try:
        return out.resolve()
    except (OSError, RuntimeError):  # links in a circle
        raise disk_refusal(OSError(errno.ELOOP, "links in a circle")) from None


def _refuse_strange(out: Path) -> None:
    if is_used(out) and not (out / MARKER).is_file():
        raise SystemRefusal(
            "an output folder that is not an earlier demo's",
            allowed="a new or empty folder, or one that a demo made",
            next="choose another --out",
            code="out_exists",
        )


def _empty(out: Path) -> None:
    """All but the marker goes: a demo killed meanwhile still leaves a demo's folder."""
    try:
        (out / MARKER).write_text(json.dumps({"pid": os.getpid()}), encoding="utf-8")
        for left in out.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            elif left.name != MARKER:
                left.unlink()
    except OSError as error:
        raise disk_refusal(error) from None
