"""``oncofed-coordinator``: everything that the coordinator of a federation does.

Each command checks its words, calls one function of the house, and prints what came out.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID

from oncofed_common.errors import OncofedError, SystemRefusal, UsageRefusal
from oncofed_common.terminal import console, print_json, progress_bar, run_app, show

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="The coordinator's side of oncofed: who takes part, what is asked, what came of it.",
)

HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="ONCOFED_COORDINATOR_HOME", help="the coordinator's home folder"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]
PassphraseOption = Annotated[
    Path, typer.Option("--passphrase-file", help="file that holds the study key's passphrase")
]
BaseOption = Annotated[
    Path | None, typer.Option(help="base weights; without it those shipped with oncofed")
]
WATCH_EVERY_S = 1.0


@app.command()
def init(
    home: HomeOption,
    name: Annotated[str, typer.Option(help="the coordinator's name: a-z, 0-9 and -")],
    address: Annotated[str, typer.Option(help="host:port at which the sites will reach it")],
    passphrase_file: PassphraseOption,
    task_key_days: Annotated[
        int, typer.Option(min=1, help="days that the task key's certificate lasts at least")
    ] = 30,
    as_json: JsonOption = False,
) -> None:
    """Make the study key, the task key and a certificate authority in a new home folder."""
    from datetime import UTC, datetime

    from oncofed_common.identity import PublicKey
    from oncofed_server.certificates import make_certificates
    from oncofed_server.home import init_home, read_passphrase

    roster = init_home(
        home,
        name=name,
        address=address,
        passphrase=read_passphrase(passphrase_file),
        task_key_days=task_key_days,
        now_s=_now_s(),
    )
    names = [address.rpartition(":")[0]]
    make_certificates(home / "tls", names=names, now=datetime.now(tz=UTC))
    fingerprint = PublicKey(roster.coordinator.study_key).fingerprint
    show({"coordinator": name, "address": address, "fingerprint": fingerprint}, as_json=as_json)


@app.command()
def enrol(
    request: Annotated[Path, typer.Argument(help="the site's enrolment request")],
    home: HomeOption,
    out: Annotated[Path, typer.Option(help="where to write the answer for the site")],
    as_json: JsonOption = False,
) -> None:
    """Take a site in, and write the answer to send back to it."""
    from oncofed_common.identity import PublicKey, canonical
    from oncofed_server import registry
    from oncofed_server.durable import write_atomic
    from oncofed_server.roster import read_roster

    address = read_roster(home).coordinator.address
    if not out.parent.is_dir():
        raise UsageRefusal(
            "an answer in a folder that does not exist",
            allowed="a file in an existing folder",
            next="make the folder, or name another file with --out",
        )
    answer = registry.enrol(
        home, request, address=address, ca_pem=registry.read_ca(home), now_s=_now_s()
    )
    write_atomic(out, canonical(answer))
    member = read_roster(home).member(answer["site"])
    rows = {
        "site": answer["site"],
        "site_fingerprint": member.fingerprint if member else "",
        "coordinator_fingerprint": PublicKey(answer["coordinator_key"]).fingerprint,
        "answer": str(out),
    }
    show(rows, as_json=as_json)


@app.command()
def revoke(
    site: Annotated[str, typer.Argument(help="the site's name")],
    home: HomeOption,
    as_json: JsonOption = False,
) -> None:
    """Leave a site out from the next round on; its name is not given again."""
    from oncofed_server import registry

    roster = registry.revoke(home, site)
    show({"revoked": site, "revocation_epoch": roster.revocation_epoch}, as_json=as_json)


@app.command()
def publish(
    study: Annotated[Path | None, typer.Argument(help="the study file")] = None,
    home: Annotated[
        Path | None,
        typer.Option(
            "--home", envvar="ONCOFED_COORDINATOR_HOME", help="the coordinator's home folder"
        ),
    ] = None,
    passphrase_file: Annotated[
        Path | None,
        typer.Option("--passphrase-file", help="file that holds the study key's passphrase"),
    ] = None,
    base: BaseOption = None,
    template: Annotated[
        bool, typer.Option("--template", help="print a study file to fill in, and do nothing else")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a study, say what it costs every patient, and sign it. --template prints one to fill in."""
    from oncofed_common.study import read_study
    from oncofed_server.base import shipped_base
    from oncofed_server.draft import template as study_template
    from oncofed_server.home import read_passphrase
    from oncofed_server.studies import publish as check_and_sign

    if template:
        text = study_template()
        if as_json:
            print_json({"template": text})
        else:
            sys.stdout.write(text)
        return
    if study is None or home is None or passphrase_file is None:
        raise UsageRefusal(
            "publish without a study, --home or --passphrase-file",
            allowed="all three, or --template alone",
            next="run oncofed-coordinator publish --help",
        )
    weights = base or shipped_base(read_study(study))
    if weights is None:
        raise SystemRefusal(
            "base weights that are not among those installed here",
            allowed="base weights with the SHA-256 that the study names",
            next="name the file with --base, or correct model.base_sha256",
            code="base_hash",
        )
    terms, cost = check_and_sign(
        home,
        study,
        base=weights,
        passphrase=read_passphrase(passphrase_file),
        now_s=_now_s(),
    )
    rows = {
        "published": terms.hash,
        "folder": str(home / "studies" / terms.hash),
        "epsilon": cost.epsilon_stated,
        "epsilon_recomputed": round(cost.epsilon_pld, 4),
        "delta": cost.delta,
        "steps": cost.steps,
        "rounds": terms.training.rounds,
        "bytes_out_per_site": terms.training.rounds * terms.outbound.bytes_per_round,
        "sites": [site.name for site in terms.sites],
        "seeded": terms.virtual is not None,
    }
    show(rows, as_json=as_json, title="What this study costs every patient of every site")


@app.command()
def start(
    home: HomeOption,
    host: Annotated[str, typer.Option(help="address to listen on, behind a proxy")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="default: the one sites were told")
    ] = None,
) -> None:
    """Run SuperLink and SuperExec until stopped; runs are then begun with run."""
    from oncofed_server.operate import serve
    from oncofed_server.roster import read_roster

    told = int(read_roster(home).coordinator.address.rpartition(":")[2])
    screen = console()
    serve(
        home,
        host=host,
        port=port or told,
        on_up=lambda at: screen.print(f"SuperLink answers on port {at}; Ctrl-C ends it"),
    )


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="the published study's hash, or its start")],
    home: HomeOption,
    as_json: JsonOption = False,
) -> None:
    """Begin the run of a published study and watch it to its end."""
    from oncofed_server.operate import open_link
    from oncofed_server.runs import create_run
    from oncofed_server.studies import resolve_study

    study_hash = resolve_study(home, study)
    open_link(home)  # refuse before a run is made
    name = create_run(home, study_hash, now_s=_now_s())
    _conduct(home, name, as_json=as_json)


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="the run's id")],
    home: HomeOption,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run that was interrupted, and watch it to its end."""
    from oncofed_server.operate import open_link
    from oncofed_server.runs import describe, open_run, refuse_ended, withdraw_stop

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


@app.command()
def stop(
    run: Annotated[str, typer.Argument(help="the run's id")],
    home: HomeOption,
    within_s: Annotated[float, typer.Option(help="how long to wait for the round loop")] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """End a run early: what was counted is released as a partial run."""
    from oncofed_server.rounds import finish
    from oncofed_server.runs import describe, request_stop

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


@app.command()
def status(
    home: HomeOption,
    run: Annotated[str | None, typer.Argument(help="a run's id; none: the whole home")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="once a second, until the run ends or Ctrl-C")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Who is enrolled and how every run stands; or one run, site by site."""
    from oncofed_server.overview import overview, overview_tables, run_tables
    from oncofed_server.runs import ENDED, describe

    while True:
        found = overview(home) if run is None else describe(home, run)
        if as_json and watch:
            sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        elif as_json:
            print_json(found)
        else:
            console().print(*(overview_tables(found) if run is None else run_tables(found)))
        if not watch or found.get("status") in ENDED:
            return
        time.sleep(WATCH_EVERY_S)


@app.command()
def verify(
    release: Annotated[Path, typer.Argument(help="the release folder")],
    audit: Annotated[Path | None, typer.Option(help="the audit folder: recompute sums")] = None,
    trust: Annotated[
        Path | None, typer.Option(help="JSON file of fingerprints that you got elsewhere")
    ] = None,
    base: BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute and check everything in a release, offline."""
    from oncofed_server.verify import read_fingerprints
    from oncofed_server.verify import verify as check

    known = read_fingerprints(trust) if trust is not None else None
    verdict = check(release, audit=audit, trust=known, base=base)
    if as_json:
        print_json(verdict.as_dict())
    else:
        fault = verdict.first_fault
        rows: dict[str, Any] = {
            "result": "everything holds" if fault is None else f"{fault.path}: {fault.check}",
            "trust": verdict.trust,
            "not_proven": ", ".join(verdict.unproven) or "-",
            "run": verdict.status or "-",
            "files": verdict.files,
            "rounds": verdict.rounds,
            "replies": verdict.replies,
            "sums_recomputed": verdict.sums,
        }
        show(rows, as_json=False, title="Release")
    if not verdict.ok:
        raise typer.Exit(1)


def _conduct(home: Path, name: str, *, as_json: bool) -> None:
    """Hand the run over, and watch it."""
    from oncofed_server.operate import follow, launch, open_link

    link = open_link(home)
    flower_run = launch(link, name)
    try:
        with progress_bar(quiet=as_json) as bar:
            task = bar.add_task("rounds", total=None) if bar else None

            def advance(found: dict[str, Any]) -> None:
                if bar is not None and task is not None:
                    _advance(bar, task, found)

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
    event = str(found["last_event"]).replace("_", " ")
    bar.update(
        task,
        completed=found["rounds_closed"],
        total=found["rounds"],
        description=f"rounds ({event})",
    )


def _ended(found: dict[str, Any], home: Path, *, as_json: bool) -> None:
    """Print how a run ended; exit 1 when it failed."""
    folder = home / "runs" / found["run"]
    audit = folder / "audit"
    paths = {
        "release": str(folder / "release"),
        "audit": str(audit) if audit.exists() else None,
    }
    if as_json:
        print_json(found | paths)
    else:
        from oncofed_server.overview import run_tables

        console().print(*run_tables(found))
        show(paths, as_json=False)
    if found["status"] == "failed":
        raise typer.Exit(1)


def _now_s() -> int:
    return int(time.time())


def main() -> None:
    raise SystemExit(run_app(app))


if __name__ == "__main__":
    main()
