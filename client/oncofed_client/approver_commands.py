"""The commands of the approver: read what a study promises, let a second approver in, say yes, take it back;
exclude, distrust, settle; renew keys.

``__main__`` puts them among the hospital's other commands with ``register``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oncofed_common.errors import PolicyRefusal, UsageRefusal
from oncofed_common.passphrase import read_passphrase
from oncofed_common.screen import console, grid, show

HomeOption = Annotated[Path, typer.Option("--home", help="the site's home folder")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]
PassphraseOption = Annotated[
    Path, typer.Option("--passphrase-file", help="file that holds the approver's passphrase")
]


def register(app: typer.Typer) -> None:
    """Add the commands to a program, after those that it has by now."""
    for command in (
        statement,
        add_approver,
        approve,
        withdraw,
        exclude,
        distrust,
        settle,
        rotate,
    ):
        app.command()(command)


def statement(
    study: Annotated[Path, typer.Argument(help="study.toml, as the coordinator published it")],
    as_json: JsonOption = False,
) -> None:
    """Print what patients are promised under a study: the privacy statement, as Markdown."""
    from oncofed_common.statement import show_statement

    show_statement(study, as_json=as_json)


def add_approver(
    home: HomeOption,
    passphrase_file: PassphraseOption,
    second_passphrase_file: Annotated[
        Path, typer.Option(help="file that holds the second person's own passphrase")
    ],
    as_json: JsonOption = False,
) -> None:
    """Let a second approver in, or another one in their place: their yes counts once policy.toml says
    approvers = 2."""
    from oncofed_client.home import Home
    from oncofed_client.second_person import add

    site = Home.open(home)
    fingerprint = add(
        site,
        passphrase=read_passphrase(passphrase_file, new=False, whose="the approver"),
        second=read_passphrase(second_passphrase_file, new=True, whose="the second person"),
    )
    rows = {
        "site": site.site,
        "second_approver_fingerprint": fingerprint,
        "approvers": site.policy().approvers,
    }
    show(rows, as_json=as_json)


def approve(
    study: Annotated[Path, typer.Argument(help="the folder that the coordinator published")],
    home: HomeOption,
    passphrase_file: PassphraseOption,
    base: Annotated[
        Path | None, typer.Option(help="base weights; without it those shipped with oncofed")
    ] = None,
    networked_trainer: Annotated[
        bool,
        typer.Option(
            "--networked-trainer",
            help="this study may be computed by a trainer that can reach a network; signed with the yes",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="sign without asking")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a yes would mean and what changed, then sign it and reserve its whole cost.

    Where policy.toml says approvers = 2, the first yes waits, and the second person repeats the command.
    """
    from oncofed_client import consent
    from oncofed_client.home import Home
    from oncofed_client.ledger import Ledger
    from oncofed_common.model.presets import preset
    from oncofed_common.model.weights import base_path
    from oncofed_common.study import read_study

    if not study.is_dir():
        raise UsageRefusal(
            "a file in the place of a folder" if study.is_file() else "no such folder",
            allowed="the folder that the coordinator published, with study.toml and study.sig",
            next="name the folder",
        )
    site = Home.open(home)
    if not yes and as_json:
        raise PolicyRefusal(
            "no answer to the question",
            allowed="--yes with --json",
            next="read the page first, then repeat with --yes",
        )
    if networked_trainer and site.virtual:
        raise UsageRefusal(
            "--networked-trainer for a virtual home",
            allowed="a home of real patients: virtual ones are asked for no isolation",
            next="leave it out",
        )
    with Ledger.open(site) as ledger:
        shape = preset(read_study(study / "study.toml").model.preset)
        weights = base or base_path(shape)
        proposal = consent.propose(site, ledger, study, base=weights, networked=networked_trainer)
        rows = consent.page(proposal, home=site)
        differences = consent.changes(proposal, consent.last_approved(site))
        if not as_json:
            show(dict(rows), as_json=False, title="What a yes means")
            if differences:
                columns = ("setting", "before", "now")
                console().print(grid(columns, differences, title="Changed since the study before"))
        if not yes and not typer.confirm("Approve this study?", err=True):
            console().print("not approved, nothing signed")
            raise typer.Exit(1)
        agreed = consent.agree(
            site, ledger, proposal, passphrase=read_passphrase(passphrase_file, new=False)
        )
    if agreed is None:
        show({"waits_for_the_second_person": proposal.study.hash}, as_json=as_json)
        return
    printed = {"approved": proposal.study.hash}
    show(printed | {"terms": dict(proposal.terms)} if as_json else printed, as_json=as_json)


def withdraw(
    study: Annotated[str, typer.Argument(help="the study's hash, or its start")],
    home: HomeOption,
    passphrase_file: PassphraseOption,
    as_json: JsonOption = False,
) -> None:
    """Take an approval back, also one that waits: no further task of this study is answered."""
    from oncofed_client import consent, second_person
    from oncofed_client.home import Home
    from oncofed_client.ledger import Ledger

    site = Home.open(home)
    with Ledger.open(site) as ledger:
        try:
            found, waits = ledger.resolve(study), False
        except PolicyRefusal:
            first = second_person.named(site, study)
            if first is None:
                raise
            found, waits = first, True
        key = site.approver_key(read_passphrase(passphrase_file, new=False))
        second_person.forget(site, found)
        if not waits:
            ledger.withdraw(found, key=key)
            consent.let_bundles_in(site, ledger)
    show({"withdrawn": found}, as_json=as_json)


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
    from oncofed_client.trainer.members import lifelong_key

    site = Home.open(home)
    key = site.approver_key(read_passphrase(passphrase_file, new=False))
    lifelong = lifelong_key(participant, identities=identities, secret=site.secret())
    with Ledger.open(site) as ledger:
        ledger.exclude(lifelong, key=key)
    show({"excluded": participant}, as_json=as_json)


def distrust(
    key: Annotated[str, typer.Argument(help="fingerprint of a coordinator's key")],
    home: HomeOption,
    passphrase_file: PassphraseOption,
    as_json: JsonOption = False,
) -> None:
    """Stop trusting a coordinator's key, without asking anyone."""
    from oncofed_client.home import Home
    from oncofed_client.ledger import Ledger
    from oncofed_common.identity import plain_fingerprint

    key = plain_fingerprint(key)
    if len(key) != 64 or not set(key) <= set("0123456789abcdef"):
        raise PolicyRefusal(
            "a fingerprint that is not 64 hexadecimal digits",
            allowed="the whole fingerprint of a coordinator's key",
            next="copy it from the answer or the study, and repeat",
            code="bad_fingerprint",
        )
    site = Home.open(home)
    approver = site.approver_key(read_passphrase(passphrase_file, new=False))
    with Ledger.open(site) as ledger:
        ledger.distrust(key, key=approver)
    current = site.is_coordinator(key)
    show({"distrusted": key, "this_sites_coordinator": current}, as_json=as_json)
    if not current and not as_json:
        console().print("warning: not the coordinator that this site joined, whom it still trusts")


def settle(
    home: HomeOption,
    passphrase_file: PassphraseOption,
    yes: Annotated[bool, typer.Option("--yes", help="sign without asking")] = False,
    clock: Annotated[
        bool,
        typer.Option("--clock", help="only this: the machine's clock was ahead, and is right now"),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Go on with a ledger that lost rows: everybody pays the most that can have been drawn."""
    from oncofed_client import settling
    from oncofed_client.home import Home

    site = Home.open(home)
    wrong = None if clock else settling.trouble(site)
    ahead_s = settling.refuse_right_clock(site) if clock else 0
    if not yes and as_json:
        raise PolicyRefusal(
            "no answer to the question",
            allowed="--yes with --json",
            next="read what settling means first, then repeat with --yes",
        )
    if not as_json and wrong is None:
        rows = {
            "found": f"a ledger whose latest row lies {ahead_s} s ahead of this machine's clock",
            "after it": "studies end, and tasks expire, by this machine's clock again",
            "charged": "nobody",
            "instead": "correct this machine's clock, if it is the one that is wrong",
        }
        show(rows, as_json=False, title="What settling the clock means")
    if not as_json and wrong is not None:
        rows = {
            "found": wrong.found,
            "charged": "every patient, the most that can have been drawn in what was lost",
            "studies": "every open one ends; a study can be approved again only under a new hash",
            "exclusions": "those that stood in lost rows must be made again; under another secret, all",
            "instead": "restore the newest ledger, if there is a copy: then nothing is charged",
        }
        show(rows, as_json=False, title="What settling means")
    if not yes and not typer.confirm("Settle?", err=True):
        console().print("not settled, nothing signed")
        raise typer.Exit(1)
    if clock:
        back_s = settling.settle_clock(site, passphrase=read_passphrase(passphrase_file, new=False))
        show({"settled": site.site, "clock_set_back_s": back_s}, as_json=as_json)
        return
    budget = settling.settle(site, passphrase=read_passphrase(passphrase_file, new=False))
    named = ("allowed", "reserved", "spent", "spent_epsilon", "left")
    show({"settled": site.site} | {name: budget[name] for name in named}, as_json=as_json)


def rotate(
    home: HomeOption,
    passphrase_file: PassphraseOption,
    as_json: JsonOption = False,
) -> None:
    """Replace the trainer's and the courier's keys; the coordinator enrols the new request."""
    from oncofed_client.courier.node import make_node_key
    from oncofed_client.home import Home
    from oncofed_client.rotation import rotate as renew

    site = Home.open(home)
    trainer = renew(
        site,
        passphrase=read_passphrase(passphrase_file, new=False),
        node_key=make_node_key(),
    )
    rows = {
        "site": site.site,
        "epoch": site.trainer_certificate().epoch,
        "trainer_fingerprint": trainer,
        "request": str(site.root / "enrolment.json"),
    }
    show(rows, as_json=as_json)
