"""The command that makes a cohort out of a hospital's folder: ``oncofed-site intake``.

``__main__`` puts it among the hospital's other commands with ``register``.
"""

from __future__ import annotations

import importlib.util
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from oncofed_client.approver_commands import JsonOption
from oncofed_common.errors import SystemRefusal
from oncofed_common.screen import console, print_json, work_bar

NEEDED = ("SimpleITK", "pydicom", "highdicom", "dcm2niix", "nilearn")
"""What the extra ``intake`` brings."""


class StyleWord(StrEnum):
    """How a source is laid out."""

    DICOM = "dicom"
    BRATS = "brats"
    BIDS = "bids"
    MAPPING = "mapping"


def register(app: typer.Typer) -> None:
    """Add the command to a program, after those that it has by now."""
    app.command()(intake)


def intake(
    source: Annotated[Path, typer.Option("--from", help="the folder with the scans; only read")],
    out: Annotated[Path, typer.Option(help="the cohort to write; a new or empty folder")],
    identities: Annotated[
        Path,
        typer.Option(help="table of participants and hospital numbers to write, or to go on with"),
    ],
    style: Annotated[StyleWord, typer.Option(help="how the scans are stored and named")],
    labels: Annotated[
        str,
        typer.Option(
            help="what the labels of outlines mean: brats-2023, brats-2021, brats-2013, or a table"
        ),
    ],
    numbers: Annotated[
        Path | None,
        typer.Option(help="table of the source's participants and hospital numbers"),
    ] = None,
    tables: Annotated[
        Path | None,
        typer.Option(help="folder with participants.tsv, sessions.tsv, treatments.tsv"),
    ] = None,
    mapping: Annotated[
        Path | None, typer.Option(help="table of files, with --style mapping")
    ] = None,
    series: Annotated[
        Path | None,
        typer.Option(help="table of series descriptions and channels, with --style dicom"),
    ] = None,
    registered: Annotated[
        bool, typer.Option("--registered", help="a patient's scans lie in one space already")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="write the whole table to this file (mode 0600)")
    ] = None,
    name: Annotated[str, typer.Option(help="the cohort's name, in its description")] = "cohort",
    workers: Annotated[int, typer.Option(min=1, help="processes")] = len(os.sched_getaffinity(0)),
    as_json: JsonOption = False,
) -> None:
    """Make a cohort of the hospital's own scans, DICOM or NIfTI, without names and dates."""
    _refuse_without_extra()
    from oncofed_client.intake.intake import Asked
    from oncofed_client.intake.intake import intake as take_in
    from oncofed_client.intake.report import NobodyTaken, left_out_table, write_report

    asked = Asked(
        source=source,
        out=out,
        identities=identities,
        style=style.value,
        labels=labels,
        name=name,
        numbers=numbers,
        tables=tables,
        mapping=mapping,
        series=series,
        report=report,
        registered=registered,
    )
    try:
        with work_bar(quiet=as_json) as watch:
            made = take_in(asked, workers=workers, watch=watch)
    except NobodyTaken as refusal:
        if report is not None:
            write_report(refusal.report, report)
        if not as_json:  # which files, and why each
            console().print(left_out_table(row.as_dict() for row in refusal.report.rows))
        raise
    if report is not None:
        write_report(made, report)
    if as_json:
        print_json(made.as_dict())
        return
    if made.left_out:
        console().print(left_out_table(row.as_dict() for row in made.rows))
    console().print(
        f"{made.found} patients found, {len(made.names)} taken with {made.visits} visits, "
        f"{len(made.left_out)} rows of what was not"
    )


def _refuse_without_extra() -> None:
    """Raises SystemRefusal: code ``no_extra``."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemRefusal(
            f"an installation without {', '.join(missing)}",
            allowed="oncofed with the extra intake",
            next="install '.[intake]' with the lock file as constraints",
            code="no_extra",
        )
