"""The commands that show what this site's records say: the budget, and everything that happened.

``__main__`` puts them among the hospital's other commands with ``register``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from oncofed_client.approver_commands import HomeOption, JsonOption
from oncofed_common.screen import console, grid, print_json, show


def register(app: typer.Typer) -> None:
    """Add the commands to a program, after those that it has by now."""
    for command in (budget, audit):
        app.command()(command)


def budget(
    home: HomeOption,
    chart: Annotated[
        Path | None, typer.Option(help="PNG to write: what was spent by when, and what is left")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What was reserved and spent, by study and for the most-charged patient."""
    from oncofed_client.budget_words import COLUMNS, lifetime_rows, study_rows, why
    from oncofed_client.home import Home
    from oncofed_client.ledger import Ledger

    site = Home.open(home)
    with Ledger.open(site) as ledger:
        found, spent = ledger.budget(), ledger.spent_over_time()
    if chart is not None:
        from oncofed_client.budget_chart import draw_budget

        draw_budget(spent, found, chart, now_s=int(time.time()))
    if as_json:
        print_json(found)
        return
    console().print(grid(COLUMNS, study_rows(found), title="Studies"))
    show(lifetime_rows(found), as_json=False, title="A lifetime, for the most-charged patient")
    console().print(why(found))
    if chart is not None:
        console().print(f"the chart is in {chart}")


def audit(
    home: HomeOption,
    study: Annotated[
        str | None, typer.Option(help="only what concerns this study: how its hash begins")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="only such events: draw, reply, approval, ...; several times for several"
        ),
    ] = None,
    since: Annotated[str | None, typer.Option(help="from this day (UTC) on, as 2027-01-31")] = None,
    until: Annotated[str | None, typer.Option(help="before this day (UTC)")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="write the events to this new file (mode 0600), one JSON object a line"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify the chains of ledger and refusals; list what happened, what left, and what was refused."""
    from oncofed_client import audit_trail
    from oncofed_client.home import Home
    from oncofed_client.ledger import Ledger
    from oncofed_client.settling import clock_behind_s
    from oncofed_client.trainer.refused import by_code, read_refusals

    wanted = audit_trail.Wanted(
        study=study,
        kinds=frozenset(kind) if kind else None,
        since_s=None if since is None else audit_trail.day_s(since, option="--since"),
        until_s=None if until is None else audit_trail.day_s(until, option="--until"),
    )
    site = Home.open(home)
    with Ledger.open(site) as ledger:
        left = ledger.left()
        head = ledger.head()
        behind_s = clock_behind_s(ledger)
    rows = audit_trail.read_rows(site)
    events = audit_trail.chosen(audit_trail.trail(rows), wanted)
    keys = audit_trail.trainer_keys(rows)
    refusals = read_refusals(site.trainer, keys, head=site.refused_head_path)
    if out is not None:
        audit_trail.export(events, out)
    if as_json:
        found = {"rows": head.sequence, "head": head.hash, "left": left, "refused": refusals}
        print_json(found | {"clock_behind_s": behind_s, "events": events})
        return
    lines = (audit_trail.as_line(event) for event in events)
    console().print(grid(audit_trail.COLUMNS, lines, title="What happened at this site"))
    if refusals:
        console().print(grid(("code", "times"), by_code(refusals), title="What was refused"))
    console().print(f"{head.sequence} rows; chains and signatures hold")
    if behind_s:
        console().print(
            f"this machine's clock is {behind_s} s behind the latest row: correct it, or see settle --clock"
        )
