"""``oncofed-site``: everything a hospital does.

Each command checks its words, calls one function of the house, and prints what came out.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from oncofed_client.passphrase import read_passphrase
from oncofed_common.errors import PolicyRefusal
from oncofed_common.terminal import console, print_json, progress_bar, run_app, show

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="A hospital's side of oncofed. Scans never leave; what leaves is noised, charged and signed.",
)

HomeOption = Annotated[Path, typer.Option("--home", help="the site's home folder")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]
PassphraseOption = Annotated[
    Path, typer.Option("--passphrase-file", help="file that holds the approver's passphrase")
]


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
    virtual: Annotated[
        bool, typer.Option(help="a home for virtual patients only; irrevocable")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make keys, policy and the enrolment request in a new home folder."""
    from oncofed_client.courier.node import make_node_key
    from oncofed_client.home import create
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
        passphrase=read_passphrase(passphrase_file),
        node_key=make_node_key(),
        secret=None,
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
    rows = {"site": site.site, "coordinator": site.coordinator().fingerprint}
    show(rows, as_json=as_json)


@app.command()
def check(
    cohort: Annotated[Path, typer.Argument(help="the cohort folder")],
    study: Annotated[
        Path | None, typer.Option(help="study.toml: who would take part in it")
    ] = None,
    findings: Annotated[
        Path | None, typer.Option(help="write every finding to this file (mode 0600)")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes")] = len(os.sched_getaffinity(0)),
    as_json: JsonOption = False,
) -> None:
    """Examine every file of a cohort and name each fault, its fix and what it excludes."""
    from oncofed_client.check import check as examine
    from oncofed_client.check import findings_table, write_findings
    from oncofed_common.study import read_study

    terms = read_study(study).cohort if study is not None else None
    with progress_bar(quiet=as_json) as bar:
        task = bar.add_task("patients") if bar else None

        def advance(done: int, total: int) -> None:
            if bar and task is not None:
                bar.update(task, completed=done, total=total)

        report = examine(cohort, terms=terms, workers=workers, progress=advance)
    if findings is not None:
        write_findings(report, findings)
    refusal = report.refusal()
    if as_json and refusal is None:
        print_json(report.as_dict())
    if not as_json:
        if report.findings:
            console().print(findings_table(report))
        console().print(
            f"{len(report.participants)} patients, {len(report.takes_part)} can take part, "
            f"{len(report.findings)} findings"
        )
    if refusal is not None:
        if not as_json:
            raise refusal
        print_json(report.as_dict() | {"error": refusal.as_dict()})
        sys.stderr.write(f"oncofed: {refusal}\n")
        raise typer.Exit(refusal.exit_code)


@app.command()
def approve(
    study: Annotated[Path, typer.Argument(help="the folder that the coordinator published")],
    home: HomeOption,
    passphrase_file: PassphraseOption,
    base: Annotated[
        Path | None, typer.Option(help="base weights; without it those shipped with oncofed")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="sign without asking")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a yes would mean and what changed, then sign it and reserve its whole cost."""
    from oncofed_client import consent
    from oncofed_client.home import Home
    from oncofed_client.ledger import Ledger
    from oncofed_common.model.presets import preset
    from oncofed_common.model.weights import base_path
    from oncofed_common.study import read_study

    site = Home.open(home)
    if not yes and as_json:
        raise PolicyRefusal(
            "no answer to the question",
            allowed="--yes with --json",
            next="read the page first, then repeat with --yes",
        )
    with Ledger.open(site) as ledger:
        shape = preset(read_study(study / "study.toml").model.preset)
        weights = base or base_path(shape)
        proposal = consent.propose(site, ledger, study, base=weights)
        rows = consent.page(proposal, home=site)
        differences = consent.changes(proposal, consent.last_approved(site))
        if not as_json:
            show(dict(rows), as_json=False, title="What a yes means")
            if differences:
                table = Table("setting", "before", "now", title="Changed since the study before")
                for row in differences:
                    table.add_row(*row)
                console().print(table)
        if not yes:
            typer.confirm("Approve this study?", abort=True, err=True)
        consent.agree(site, ledger, proposal, passphrase=read_passphrase(passphrase_file))
    printed = {"approved": proposal.study.hash}
    show(printed | {"terms": dict(proposal.terms)} if as_json else printed, as_json=as_json)


@app.command()
def withdraw(
    study: Annotated[str, typer.Argument(help="the study's hash")],
    home: HomeOption,
    passphrase_file: PassphraseOption,
    as_json: JsonOption = False,
) -> None:
    """Take an approval back: no further task of this study is answered."""
    from oncofed_client import consent
    from oncofed_client.home import Home
    from oncofed_client.ledger import Ledger

    site = Home.open(home)
    key = site.approver_key(read_passphrase(passphrase_file))
    with Ledger.open(site) as ledger:
        ledger.withdraw(study, key=key)
        consent.let_bundles_in(site, ledger)
    show({"withdrawn": study}, as_json=as_json)


@app.command()
def exclude(
    participant: Annotated[str, typer.Argument(help="the participant's name in the cohort")],
    home: HomeOption,
    identities: Annotated[Path, typer.Option(help="table of participants and hospital numbers")],
    passphrase_file: PassphraseOption,
    as_json: JsonOption = False,
) -> None:
    """Consent withdrawn: never drawn again from the next round on; nobody else's charge changes."""
    from oncofed_client.home import Home
    from oncofed_client.ledger import Ledger
    from oncofed_client.trainer.members import lifelong_keys

    site = Home.open(home)
    key = site.approver_key(read_passphrase(passphrase_file))
    lifelong = lifelong_keys([participant], identities=identities, secret=site.secret())
    with Ledger.open(site) as ledger:
        ledger.exclude(lifelong[participant], key=key)
    show({"excluded": participant}, as_json=as_json)


@app.command()
def distrust(
    key: Annotated[str, typer.Argument(help="fingerprint of a coordinator's key")],
    home: HomeOption,
    passphrase_file: PassphraseOption,
    as_json: JsonOption = False,
) -> None:
    """Stop trusting a coordinator's key, without asking anyone."""
    from oncofed_client.home import Home
    from oncofed_client.ledger import Ledger

    key = key.replace(" ", "").lower()
    if len(key) != 64 or not set(key) <= set("0123456789abcdef"):
        raise PolicyRefusal(
            "a fingerprint that is not 64 hexadecimal digits",
            allowed="the whole fingerprint of a coordinator's key",
            next="copy it from the answer or the study, and repeat",
            code="bad_fingerprint",
        )
    site = Home.open(home)
    approver = site.approver_key(read_passphrase(passphrase_file))
    with Ledger.open(site) as ledger:
        ledger.distrust(key, key=approver)
    show({"distrusted": key}, as_json=as_json)


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

    screen = console()
    run(
        Home.open(home),
        Settings(
            cohort=cohort.resolve(),
            identities=identities.resolve(),
            https_proxy=https_proxy,
            poll_s=poll_s,
            ready_within_s=ready_within_s,
        ),
        on_event=lambda what: screen.print(time.strftime("%H:%M:%S"), what),
    )


@app.command()
def stop(home: HomeOption, as_json: JsonOption = False) -> None:
    """The kill switch: within two seconds nothing leaves and the GPU is free."""
    from oncofed_client.home import Home
    from oncofed_client.start import stop as kill

    ended = kill(Home.open(home))
    show({"stopped": ended}, as_json=as_json)


@app.command()
def budget(home: HomeOption, as_json: JsonOption = False) -> None:
    """What was reserved and spent, by study and for the most-charged patient."""
    from oncofed_client.home import Home
    from oncofed_client.ledger import Ledger

    site = Home.open(home)
    with Ledger.open(site) as ledger:
        found = ledger.budget()
    if as_json:
        print_json(found)
        return
    table = Table("study", "epsilon", "delta", "rounds drawn", "state", title="Budget")
    for row in found["studies"]:
        table.add_row(*(str(row[key]) for key in ("study", "epsilon", "delta", "rounds", "state")))
    console().print(table)
    lifetime = {key: value for key, value in found.items() if key != "studies"}
    show(lifetime, as_json=False, title="Lifetime")


@app.command()
def audit(home: HomeOption, as_json: JsonOption = False) -> None:
    """Verify the ledger's chain and list everything that left."""
    from oncofed_client.home import Home
    from oncofed_client.ledger import Ledger

    site = Home.open(home)
    with Ledger.open(site) as ledger:
        rows = ledger.left()
        head = ledger.head()
    if as_json:
        print_json({"rows": head.sequence, "head": head.hash, "left": rows})
        return
    table = Table("study", "round", "bytes", "sha256", title="What left this site")
    for row in rows:
        table.add_row(row["study"][:16], str(row["round"]), str(row["size"]), row["digest"])
    console().print(table)
    console().print(f"{head.sequence} rows, chain and signatures hold")


@app.command()
def forecast(
    cohort: Annotated[Path, typer.Option(help="the cohort folder")],
    participant: Annotated[str, typer.Option(help="the participant's name in the cohort")],
    history: Annotated[str, typer.Option(help="past sessions, such as ses-01,ses-02")],
    day: Annotated[
        int, typer.Option(max=36_525, help="day to forecast, counted from the first visit")
    ],
    out: Annotated[Path, typer.Option(help="folder for maps, picture and numbers")],
    weights: Annotated[
        Path | None, typer.Option(help="a release's weights; without it the shipped base")
    ] = None,
    samples: Annotated[int, typer.Option(max=10_000, help="futures to draw")] = 32,
    evaluations: Annotated[int, typer.Option(help="network evaluations for each, 20 at most")] = 12,
    seed: Annotated[int, typer.Option(help="of the drawn futures; no privacy rests on it")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Sample one patient's futures with a released model. Research use only."""
    from oncofed_client.forecast import as_dict
    from oncofed_client.forecast import forecast as sample
    from oncofed_client.forecast_files import write
    from oncofed_client.model_file import read_model
    from oncofed_client.readers.cohort import read_cohort
    from oncofed_client.readers.patient import read_patient

    model = read_model(weights)
    patient = read_patient(read_cohort(cohort), participant)
    found = sample(
        patient,
        history=[name.strip() for name in history.split(",")],
        day=day,
        weights=model,
        samples=samples,
        steps=evaluations,
        seed=seed,
    )
    written = write(found, out)
    if as_json:
        print_json(as_dict(found) | {"files": written})
        return
    rows = as_dict(found)["volumes_ml"]
    table = Table("ml", "last visit", "median", "50 %", "90 %", title="Research use only")
    for region, row in rows.items():
        numbers = [row["last_visit"], row["median"], *row["interval_50"], *row["interval_90"]]
        last, median, low, high, lowest, highest = (f"{number:.1f}" for number in numbers)
        table.add_row(region, last, median, f"{low} to {high}", f"{lowest} to {highest}")
    console().print(table)
    for warning in found.warnings:
        console().print(f"outside what the model was trained on: {warning}")


def main() -> None:
    raise SystemExit(run_app(app))


if __name__ == "__main__":
    main()
