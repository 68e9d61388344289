"""``oncofed-site``: everything a hospital does.

Each command checks its words, calls one function of the house, and prints what came out.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from oncofed_client.approver_commands import (
    HomeOption,
    JsonOption,
    PassphraseOption,
    register,
)
from oncofed_client.intake_commands import register as register_intake
from oncofed_client.records_commands import register as register_records
from oncofed_common.errors import OncofedError, UsageRefusal
from oncofed_common.passphrase import read_passphrase
from oncofed_common.screen import console, print_json, progress_bar, show, work_bar
from oncofed_common.terminal import add_version, run_app
from oncofed_common.usage import seconds

PROXY = r"https?://([^\s/@]+@)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?/?"
"""A proxy's URL, perhaps with a name and a password."""
PROXY_EXAMPLE = "http://proxy.example.org:3128"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="A hospital's side of oncofed. Scans never leave; what leaves is noised, charged and signed.",
)
add_version(app)


@app.command()
def init(
    home: HomeOption,
    name: Annotated[str, typer.Option(help="the site's name: a-z, 0-9 and -")],
    declared_patients: Annotated[
        int, typer.Option(help="the site's public, rounded number of patients")
    ],
    lifetime_epsilon: Annotated[
        str, typer.Option(help="most a patient may ever spend, over all studies")
    ],
    lifetime_delta: Annotated[
        str, typer.Option(help="delta of that; at most 1/(100 x declared patients)")
    ],
    filter_order: Annotated[
        str, typer.Option(help="Renyi order of the lifetime filter; never changes")
    ],
    bytes_per_round: Annotated[int, typer.Option(help="most bytes that may leave in one round")],
    passphrase_file: PassphraseOption,
    key_file: Annotated[
        Path | None,
        typer.Option(
            help="file outside of the home under which the trainer's key and the site secret lie at rest; "
            "made if there is none"
        ),
    ] = None,
    virtual: Annotated[
        bool, typer.Option(help="a home for virtual patients only; irrevocable")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make keys, policy and the enrolment request in a new home folder."""
    from oncofed_client.courier.node import make_node_key
    from oncofed_client.new_home import create
    from oncofed_client.policy import Policy

    made = create(
        home,
        site=name,
        policy=Policy.parse(
            lifetime_epsilon=lifetime_epsilon,
            lifetime_delta=lifetime_delta,
            filter_order=filter_order,
            declared_patients=declared_patients,
            bytes_per_round=bytes_per_round,
        ),
        declared_patients=declared_patients,
        virtual=virtual,
        passphrase=read_passphrase(passphrase_file, new=True),
        node_key=make_node_key(),
        secret=None,
        key_file=key_file,
    )
    rows = {
        "site": made.site,
        "approver_fingerprint": made.approver.fingerprint,
        "virtual": made.virtual,
        "request": str(made.root / "enrolment.json"),
    }
    show(rows, as_json=as_json)


@app.command()
def join(
    answer: Annotated[Path, typer.Argument(help="the coordinator's answer file")],
    home: HomeOption,
    coordinator: Annotated[str, typer.Option(help="the fingerprint that was read aloud")],
    as_json: JsonOption = False,
) -> None:
    """Keep the coordinator's answer, if its fingerprint is the one that was read aloud."""
    from oncofed_client.home import Home
    from oncofed_client.home import join as keep
    from oncofed_common.durable import read_object

    site = Home.open(home)
    keep(site, read_object(answer, what="an answer file"), coordinator=coordinator)
    rows = {"site": site.site, "coordinator_fingerprint": site.coordinator().fingerprint}
    show(rows, as_json=as_json)


register_intake(app)  # before check, as the work goes


@app.command()
def check(
    cohort: Annotated[Path, typer.Argument(help="the cohort folder")],
    study: Annotated[
        Path | None, typer.Option(help="study.toml: who would take part in it")
    ] = None,
    findings: Annotated[
        Path | None, typer.Option(help="write every finding to this file (mode 0600)")
    ] = None,
    identities: Annotated[
        Path | None, typer.Option(help="table of hospital numbers: who is there under two names")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes")] = len(os.sched_getaffinity(0)),
    as_json: JsonOption = False,
) -> None:
    """Examine every file of a cohort and name each fault, its fix and what it excludes."""
    from oncofed_client.check import check as examine
    from oncofed_client.check import findings_table, refuse_findings, write_findings
    from oncofed_common.study import read_study

    if findings is not None:
        refuse_findings(findings)
    terms = read_study(study).cohort if study is not None else None
    with progress_bar(quiet=as_json) as bar:
        task = bar.add_task("patients") if bar else None

        def advance(done: int, total: int) -> None:
            if bar and task is not None:
                bar.update(task, completed=done, total=total)

        found = examine(
            cohort, terms=terms, identities=identities, workers=workers, progress=advance
        )
    if findings is not None:
        write_findings(found, findings)
    refusal = found.refusal()
    if as_json and refusal is None:
        print_json(found.as_dict())
    if not as_json:
        if found.findings:
            console().print(findings_table(found))
        console().print(
            f"{len(found.participants)} patients, {len(found.takes_part)} can take part, "
            f"{len(found.findings)} findings"
        )
    if refusal is not None:
        raise refusal.beside(found.as_dict())


register(app)  # between check and start, as --help lists them


@app.command()
def start(
    home: HomeOption,
    cohort: Annotated[Path, typer.Option(help="the cohort folder")],
    identities: Annotated[Path, typer.Option(help="table of participants and hospital numbers")],
    https_proxy: Annotated[str | None, typer.Option(help="the hospital's proxy, as a URL")] = None,
    poll_s: Annotated[float, typer.Option(help="seconds between two questions for work")] = 3.0,
    ready_within_s: Annotated[
        float, typer.Option(help="how long reading the cohort may take")
    ] = 1800.0,
) -> None:
    """Run trainer and courier until stopped; the trainer has no network, the courier no scans."""
    from oncofed_client.home import Home
    from oncofed_client.start import Settings, run

    seconds(poll_s, option="--poll-s", least=0.1, most=3600.0)
    seconds(ready_within_s, option="--ready-within-s", least=1.0, most=604_800.0)
    _refuse_proxy(https_proxy)
    screen = console()

    def say(what: str) -> None:
        with suppress(OncofedError):  # a screen that takes nothing more ends no trainer
            screen.print(time.strftime("%H:%M:%S"), what)

    run(
        Home.open(home),
        Settings(
            cohort=cohort.resolve(),
            identities=identities.resolve(),
            https_proxy=https_proxy,
            poll_s=poll_s,
            ready_within_s=ready_within_s,
        ),
        on_event=say,
    )


@app.command()
def doctor(
    home: HomeOption,
    https_proxy: Annotated[str | None, typer.Option(help="the hospital's proxy, as a URL")] = None,
    as_json: JsonOption = False,
) -> None:
    """Look for what would break later, from packages to throughput, and say whose it is and what to do."""
    from oncofed_client.doctor.examine import examine, table
    from oncofed_client.home import Home

    _refuse_proxy(https_proxy)
    with work_bar(quiet=as_json) as watch:
        found = examine(Home.open(home), https_proxy=https_proxy, watch=watch)
    refusal = found.refusal()
    if as_json and refusal is None:
        print_json(found.as_dict())
    if not as_json:
        console().print(table(found))
    if refusal is not None:
        raise refusal


@app.command()
def stop(home: HomeOption, as_json: JsonOption = False) -> None:
    """The kill switch: within two seconds nothing leaves and the GPU is free."""
    from oncofed_client.home import Home
    from oncofed_client.start import stop as kill

    ended = kill(Home.open(home))
    show({"stopped": ended}, as_json=as_json)


register_records(app)  # between stop and forecast


@app.command()
def forecast(
    cohort: Annotated[Path, typer.Option(help="the cohort folder")],
    participant: Annotated[str, typer.Option(help="the participant's name in the cohort")],
    history: Annotated[
        str, typer.Option(help="past sessions, such as ses-01,ses-02; the model reads the latest 3")
    ],
    day: Annotated[
        int, typer.Option(max=36_525, help="day to forecast, counted as in the sessions table")
    ],
    out: Annotated[Path, typer.Option(help="folder for maps, picture and numbers")],
    treatments: Annotated[
        list[Path] | None,
        typer.Option(help="a plan instead of what is recorded; several give a comparison"),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="a release's weights; without it the shipped base")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="also say what the forecast rests on")
    ] = False,
    samples: Annotated[int, typer.Option(max=10_000, help="futures to draw")] = 32,
    evaluations: Annotated[
        int | None,
        typer.Option(help="network evaluations for each, 20 at most; 4 for distilled, else 12"),
    ] = None,
    sampler: Annotated[str, typer.Option(help="how futures are drawn")] = "angular",
    guidance: Annotated[
        float, typer.Option(help="above 1 the conditions are followed harder than they weigh")
    ] = 1.0,
    seed: Annotated[
        int,
        typer.Option(min=0, max=2**63 - 1, help="of the drawn futures; no privacy rests on it"),
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Sample one patient's futures with a released model. Research use only."""
    from oncofed_client.forecasts.command import Asked, carry_out, sampling, tables

    asked = Asked(
        cohort=cohort,
        participant=participant,
        history=tuple(name.strip() for name in history.split(",")),
        day=day,
        plans=tuple(treatments or ()),
        weights=weights,
        explain=explain,
        how=sampling(samples=samples, evaluations=evaluations, sampler=sampler, guidance=guidance),
        seed=seed,
    )
    with work_bar(quiet=as_json) as watch:
        done = carry_out(asked, out, watch=watch)
    if as_json:
        print_json(done.numbers | {"files": list(done.files)})
        return
    for table in tables(done):
        console().print(table)
    for warning in done.warnings:
        console().print(f"warning: {warning}")
    console().print(f"wrote {len(done.files)} files into {out}", soft_wrap=True)


def _refuse_proxy(https_proxy: str | None) -> None:
    proxy = re.fullmatch(PROXY, https_proxy or PROXY_EXAMPLE)
    if proxy is None or https_proxy == "" or not 0 < int(proxy["port"] or 443) < 2**16:
        raise UsageRefusal(
            "an --https-proxy that is no proxy's address",
            allowed=f"a URL such as {PROXY_EXAMPLE}",
            next="correct --https-proxy",
        )


def main() -> None:
    raise SystemExit(run_app(app))


if __name__ == "__main__":
    main()
