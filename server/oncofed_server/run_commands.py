"""The commands about runs: begin one, go on with one, end one, and see how they stand.

``__main__`` puts them among the coordinator's other commands with ``register``.
"""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID

from oncofed_common.errors import OncofedError, SystemRefusal, UsageRefusal
from oncofed_common.screen import (
    console,
    drawn,
    print_json,
    print_json_line,
    progress_bar,
    show,
    write,
)
from oncofed_common.usage import seconds

HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="ONCOFED_COORDINATOR_HOME", help="the coordinator's home folder"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]
WATCH_EVERY_S = 1.0


def register(app: typer.Typer) -> None:
    """Add the commands to a program, after those that it has by now."""
    for command in (run, resume, stop, status, discard):
        app.command()(command)


def run(
    study: Annotated[str, typer.Argument(help="the published study's hash, or its start")],
    home: HomeOption,
    partial: Annotated[
        bool, typer.Option("--partial", help="begin although invited sites are not connected")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Begin the run of a published study, when every site is connected, and watch it to its end."""
    from oncofed_server.operate import open_link, refuse_absent, tell_who_is_enrolled
    from oncofed_server.runs import create_run, refuse_second
    from oncofed_server.studies import load_published, resolve_study
    from oncofed_server.superlink import online_sites

    study_hash = resolve_study(home, study)
    refuse_second(home, study_hash)
    link = open_link(home)  # refuse before a run is made
    if not partial:
        tell_who_is_enrolled(link)
        invited = load_published(home, study_hash).study.sites
        refuse_absent((site.name for site in invited), online_sites(link))
    name = create_run(home, study_hash, now_s=int(time.time()))
    _conduct(home, name, as_json=as_json)


def resume(
    run: Annotated[str, typer.Argument(help="the run's id, or its start")],
    home: HomeOption,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run that was interrupted, and watch it to its end."""
    from oncofed_server.operate import open_link
    from oncofed_server.runs import describe, open_run, refuse_ended, resolve_run, withdraw_stop

    run = resolve_run(home, run)
    _, folder = open_run(home, run)
    refuse_ended(folder)
    if describe(home, run)["status"] == "running":
        raise SystemRefusal(
            "a run that is going on",
            allowed="a run that was interrupted",
            next="watch it with oncofed-coordinator status --watch",
            code="home_in_use",
        )
    open_link(home)
    withdraw_stop(folder)
    _conduct(home, run, as_json=as_json)


def stop(
    run: Annotated[str, typer.Argument(help="the run's id, or its start")],
    home: HomeOption,
    within_s: Annotated[float, typer.Option(help="how long to wait for the round loop")] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """End a run early: what was counted is released as a partial run."""
    from oncofed_server.rounds import finish
    from oncofed_server.runs import describe, request_stop, resolve_run

    seconds(within_s, option="--within-s", least=0.0, most=604_800.0)
    run = resolve_run(home, run)
    request_stop(home, run)
    ends_s = time.monotonic() + within_s
    while (found := describe(home, run))["status"] == "running":
        if time.monotonic() > ends_s:
            raise OncofedError(
                "a round loop that has not ended yet",
                allowed=f"{within_s:g} s",
                next="look again with oncofed-coordinator status",
                code="still_running",
            )
        time.sleep(WATCH_EVERY_S / 4)
    if not found["release"]:
        finish(home, run)
    _ended(describe(home, run), home, as_json=as_json)


def status(
    home: HomeOption,
    run: Annotated[
        str | None, typer.Argument(help="a run's id, or its start; none: the whole home")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="once a second, until the run ends or Ctrl-C")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Who is enrolled and how every run stands; or one run, site by site."""
    from oncofed_server.overview import overview, overview_tables, run_tables
    from oncofed_server.runs import ENDED, describe, resolve_run

    run = resolve_run(home, run) if run is not None else None
    ended_by_hand = suppress(KeyboardInterrupt) if watch else nullcontext()
    with drawn(live=watch and not as_json) as draw, ended_by_hand:
        while True:
            found = overview(home) if run is None else describe(home, run)
            if as_json and watch:
                print_json_line(found)
            elif as_json:
                print_json(found)
            else:
                draw(overview_tables(found) if run is None else run_tables(found))
            if not watch or found.get("status") in ENDED:
                return
            time.sleep(WATCH_EVERY_S)


def discard(
    home: HomeOption,
    run: Annotated[
        str | None, typer.Argument(help="an ended run's id, or its start; none: --older-than-days")
    ] = None,
    older_than_days: Annotated[
        int | None,
        typer.Option(min=0, help="every run that ended so many days ago, or earlier"),
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="the signed replies too: sums cannot be recomputed then")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove checkpoints and tasks of ended runs; releases stay, and so do the signed replies."""
    from oncofed_server import retention
    from oncofed_server.runs import resolve_run

    if (run is None) == (older_than_days is None):
        raise UsageRefusal(
            "a run and an age, or neither",
            allowed="one of RUN and --older-than-days",
            next="name one of the two",
        )
    if older_than_days is None:
        chosen = [resolve_run(home, str(run))]
    else:
        chosen = retention.ended_before(home, days=older_than_days, now_s=int(time.time()))
    freed = {name: retention.discard(home, name, audit=audit) for name in chosen}
    show({"runs": list(freed), "bytes_freed": sum(freed.values())}, as_json=as_json)


def _conduct(home: Path, name: str, *, as_json: bool) -> None:
    """Hand the run over, and watch it."""
    from oncofed_server.operate import follow, launch, open_link

    link = open_link(home)
    flower_run = launch(link, name)
    try:
        with progress_bar(quiet=as_json) as bar:
            task = bar.add_task("rounds", total=None) if bar else None
            told = ""

            def advance(found: dict[str, Any]) -> None:
                nonlocal told
                if bar is not None and task is not None:
                    _advance(bar, task, found)
                said = f"{found['rounds_closed']} of {found['rounds']} rounds; {_step(found)}\n"
                if bar is None and not as_json and said != told:  # no terminal: a log reads it
                    told = said
                    write(said, to=sys.stderr)

            found = follow(link, name, flower_run, on_status=advance)
    except KeyboardInterrupt:
        raise OncofedError(
            f"watching of run {name} was ended; the run itself goes on",
            allowed="-",
            next="oncofed-coordinator status, or oncofed-coordinator stop",
            code="detached",
        ) from None
    _ended(found, home, as_json=as_json)


def _advance(bar: Progress, task: TaskID, found: dict[str, Any]) -> None:
    bar.update(
        task,
        completed=found["rounds_closed"],
        total=found["rounds"],
        description=f"rounds ({_step(found)})",
    )


def _step(found: dict[str, Any]) -> str:
    """The last thing that happened, in words."""
    return str(found["last_event"]).replace("_", " ") or "the round loop begins"


def _ended(found: dict[str, Any], home: Path, *, as_json: bool) -> None:
    """Print how a run ended; exit 1 when it failed."""
    folder = home / "runs" / found["run"]
    audit = folder / "audit"
    paths = {
        "release": str(folder / "release"),
        "audit": str(audit) if audit.exists() else None,
    }
    failed = found["status"] == "failed"
    if as_json and not failed:
        print_json(found | paths)
    if not as_json:
        from oncofed_server.overview import run_tables

        console().print(*run_tables(found))
        show(paths, as_json=False)
    if failed:
        from oncofed_server.ending import why_failed

        raise why_failed(home, found["run"]).beside(found | paths)
