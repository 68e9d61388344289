"""``oncofed-simulate``: virtual hospitals, base weights, federations on one machine, the demo."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from oncofed_common.errors import UsageRefusal
from oncofed_common.screen import console, print_json, show, work_bar
from oncofed_common.terminal import add_version, run_app

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Federations of virtual hospitals on one machine. No patient in here is real.",
)
add_version(app)

JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]


@app.command()
def cohort(
    out: Annotated[Path, typer.Option(help="new folder for the cohorts")],
    sites: Annotated[int, typer.Option(help="number of virtual hospitals")] = 3,
    patients: Annotated[int, typer.Option(help="patients in each")] = 24,
    seed: Annotated[int, typer.Option(help="the same seed gives the same bytes")] = 7,
    hospitals: Annotated[
        Path | None, typer.Option(help="TOML file of hospitals, in place of --sites")
    ] = None,
    workers: Annotated[int, typer.Option(help="processes")] = os.cpu_count() or 1,
    as_json: JsonOption = False,
) -> None:
    """Write one cohort folder for each virtual hospital.

    What is interrupted goes on where it was when the same command is given again.
    """
    from oncofed_simulation.patients.settings import read_wards
    from oncofed_simulation.patients.writer import wards_of, write_cohorts

    began_s = time.monotonic()
    wards = wards_of(sites=sites, patients=patients, seed=seed)
    if hospitals is not None:
        wards = read_wards(hospitals, seed=seed, patients=patients)
    with work_bar(quiet=as_json) as bar:
        made = write_cohorts(wards, seed=seed, out=out, workers=workers, progress=bar)
    rows = {
        "cohorts": [path.name for path in made],
        "patients": sum(ward.patients for ward in wards),
        "visits": sum(made.values()),
        "seconds": round(time.monotonic() - began_s, 1),
    }
    show(rows, as_json=as_json)


@app.command()
def grow(
    tissue: Annotated[Path, typer.Option(help="tissue map, NIfTI: 1 CSF, 2 grey, 3 white")],
    seed_mm: Annotated[str, typer.Option(help="X,Y,Z: where it starts, in world millimetres")],
    diffusion_white: Annotated[float, typer.Option(help="mm2/day in white matter")],
    diffusion_grey: Annotated[float, typer.Option(help="mm2/day in grey matter")],
    rate: Annotated[float, typer.Option(help="growth rate, 1/day")],
    days: Annotated[int, typer.Option(help="how long it grows")],
    out: Annotated[Path, typer.Option(help="new .nii.gz: tumour-cell density, 0 to 1")],
    treatments: Annotated[
        Path | None, typer.Option(help="TSV of a cohort's columns; days count from the start")
    ] = None,
    dose: Annotated[Path | None, typer.Option(help="planned dose in Gy, NIfTI, any grid")] = None,
    alpha: Annotated[float, typer.Option(help="radiosensitivity, 1/Gy")] = 0.035,
    beta: Annotated[float, typer.Option(help="radiosensitivity, 1/Gy2")] = 0.0035,
    log_kill: Annotated[float, typer.Option(help="natural log-kill of one drug dose")] = 0.035,
    allow_coarse: Annotated[
        bool,
        typer.Option("--allow-coarse", help="no finer grid; D matched so that fronts keep speed"),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Grow one tumour by the physics on a tissue map.

    Where a voxel is longer than the front is wide the grid is refined, unless --allow-coarse.
    """
    from oncofed_common.physics.growth import Growth
    from oncofed_common.physics.therapy import Radiosensitivity
    from oncofed_simulation.growing import Asked, grow_file

    with work_bar(quiet=as_json) as bar:
        report = grow_file(
            Asked(
                growth=Growth(
                    diffusion_white_mm2_per_day=diffusion_white,
                    diffusion_grey_mm2_per_day=diffusion_grey,
                    rate_per_day=rate,
                ),
                seed_mm=_point(seed_mm),
                days=days,
                sensitivity=Radiosensitivity(alpha_per_gy=alpha, beta_per_gy2=beta),
                log_kill_per_dose=log_kill,
                allow_coarse=allow_coarse,
            ),
            tissue=tissue,
            treatments=treatments,
            dose=dose,
            out=out,
            watch=bar,
        )
    show(report, as_json=as_json)


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="folder for patients, checkpoint, weights and card")],
    preset: Annotated[str, typer.Option(help="size of window and network")] = "small",
    patients: Annotated[int, typer.Option(help="virtual patients to learn from")] = 600,
    steps: Annotated[int, typer.Option(help="steps in all; the learning rate falls to 0")] = 4500,
    seed: Annotated[int, typer.Option(help="of patients and training")] = 1,
    minutes: Annotated[float, typer.Option(min=0.0, help="train no longer than this now")] = 1e6,
    widened: Annotated[
        int, typer.Option(min=1, help="patients of other hospitals who set the width of forecasts")
    ] = 96,
    scored: Annotated[
        int, typer.Option(min=1, help="patients of other hospitals to score on")
    ] = 40,
    process: Annotated[
        str, typer.Option(help="the way to noise that it practises")
    ] = "rectified_flow",
    resume: Annotated[bool, typer.Option("--resume", help="go on from the checkpoint")] = False,
    processes: Annotated[int, typer.Option(min=1, help="processes that make patients")] = (
        os.cpu_count() or 1
    ),
    as_json: JsonOption = False,
) -> None:
    """Make base weights from virtual patients alone; no privacy is spent on them."""
    from oncofed_common.diffusion.generate import Sampling
    from oncofed_common.model.network import best_dtype
    from oncofed_simulation.base_weights import pretrain as make
    from oncofed_simulation.training_set import Settings

    with work_bar(quiet=as_json) as bar:
        card = make(
            Settings(
                preset=preset,
                patients=patients,
                steps=steps,
                seed=seed,
                dtype=str(best_dtype()).removeprefix("torch."),
                process=process,
            ),
            out,
            resume=resume,
            processes=processes,
            seconds=60 * minutes,
            widened=widened,
            scored=scored,
            how=Sampling(samples=16, evaluations=12, dtype=best_dtype()),
            command=f"oncofed-simulate pretrain --preset {preset} --patients {patients}"
            f" --steps {steps} --seed {seed} --process {process} --out OUT",
            watch=bar,
        )
    show(card, as_json=as_json)


@app.command()
def audit(
    patients: Annotated[int, typer.Option(help="virtual patients, half of them trained on")] = 48,
    canaries: Annotated[int, typer.Option(help="planted patients of one coordinate each")] = 4000,
    adapters: Annotated[str, typer.Option(help="what trains among the canaries")] = "norm",
    seed: Annotated[int, typer.Option(help="of patients, lots and noise")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Attack the privacy of the shipped engine; fails where a claimed epsilon is refuted."""
    from oncofed_simulation.auditing.audit import Asked
    from oncofed_simulation.auditing.audit import audit as attack
    from oncofed_simulation.auditing.told import tables

    asked = Asked(patients=patients, canaries=canaries, adapters=adapters, seed=seed)
    with work_bar(quiet=as_json) as bar:
        found = attack(asked, watch=bar)
    if as_json:
        print_json(found)
    else:
        for table in tables(found):
            console().print(table)
    if not found["holds"]:
        raise typer.Exit(1)


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="settings, such as the demo's demo.toml")],
    cohorts: Annotated[Path, typer.Option(help="folder that cohort wrote")],
    out: Annotated[Path, typer.Option(help="new folder for homes, release and audit")],
    as_json: JsonOption = False,
) -> None:
    """Run a study in one process: the same trainers, ledgers and round loop, without Flower."""
    from oncofed_simulation.local_run import local_run

    with work_bar(quiet=as_json) as bar:
        summary = local_run(study, cohorts=cohorts, out=out, on_progress=bar)
    show(summary, as_json=as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for everything; an earlier demo is replaced")],
    as_json: JsonOption = False,
) -> None:
    """Three virtual hospitals train one forecast over real processes, TLS and privacy."""
    from oncofed_simulation.demo import PLAN, Screen
    from oncofed_simulation.demo import demo as go

    began_s = time.monotonic()
    screen = console()
    with work_bar(quiet=as_json) as bar:

        def say(what: str) -> None:
            if not as_json:
                screen.print(f"{time.monotonic() - began_s:6.1f} s  {what}")

        summary = go(out, plan=PLAN, screen=Screen(say=say, bar=bar))
    if as_json:
        print_json(summary)
        return
    rows = {
        site["name"]: f"epsilon {site['epsilon']:g} at delta {site['delta']:g}; "
        f"{site['rounds_counted']} rounds counted; {site['bytes_out']:,} bytes out"
        for site in summary["sites"]
    }
    show(rows, as_json=False, title="What each hospital spent")
    screen.print(summary["in_words"])
    files = ("report.html", "forecast.png", "privacy.md", "summary.json")
    screen.print(f"see {', '.join(str(out / name) for name in files)}")


def _point(text: str) -> tuple[float, float, float]:
    """X,Y,Z in millimetres."""
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageRefusal(
            "a --seed-mm that is not three numbers",
            allowed="X,Y,Z in world millimetres",
            next="correct --seed-mm",
        ) from None
    return x, y, z


def main() -> None:
    raise SystemExit(run_app(app))


if __name__ == "__main__":
    main()
