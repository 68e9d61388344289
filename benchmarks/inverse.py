"""Do outlines give back the tumour that made them: its speed, with an interval that holds, and its future?

Virtual patients of hospitals that nothing else uses, from the building blocks of the simulation: grown in
1.5 mm voxels of a head with grey and white matter, treated as their calendar says. The fit sees exact
outlines (thresholds of the true density) at two or three visits on 2.5 mm voxels, the tissue of those voxels,
and what treatment was given; it forecasts the visit after those. The outlines' error was calibrated on
hospitals of other seeds. CRPS is of the log of the volume; its bar is that of "no change".
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import scoringrules
import torch
from _figures import Figure, report

from oncofed_common.cohort import LABELS, TISSUES
from oncofed_common.physics.candidates import Drug, Irradiation, Treatments
from oncofed_common.physics.course import Cells, evolve
from oncofed_common.physics.evidence import EXACT
from oncofed_common.physics.fit import PUBLISHED, Fit, fit
from oncofed_common.physics.growth import Growth
from oncofed_common.physics.outline import COMPARTMENTS, Outline
from oncofed_common.physics.posterior import forecast, interval, origin
from oncofed_common.physics.therapy import (
    TEMOZOLOMIDE_HALF_LIFE_DAY,
    Therapy,
    chemotherapy,
    dosing_days,
    fraction_days,
    radiotherapy,
)
from oncofed_simulation.patients.anatomy import Grid, head, sample
from oncofed_simulation.patients.clinic import (
    calendar,
    dose_map_gy,
    person,
    severity,
)
from oncofed_simulation.patients.growth import Box, biology, box, onset, origin_mm
from oncofed_simulation.patients.hospitals import hospital, stream

SEED, PATIENTS = 770_001, 30
VOXEL_MM = 2.5
SAMPLES = 24
SHARE = 0.9
SPEED_BAR, COVERED_BAR, SECONDS_BAR = 0.10, (0.80, 0.97), 20.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a fit sees of one patient, and what it does not."""

    outlines: list[Outline]
    tissue: torch.Tensor
    affine_mm: torch.Tensor
    treatments: Treatments
    next_day: int
    next_volume_ml: float
    growth: Growth
    origin_mm: tuple[float, float, float]
    treated: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """One patient's result; ``*_within``: whether the interval holds the truth."""

    speed: float
    speed_error: float
    speed_within: bool
    diffusion_within: bool
    rate_within: bool
    origin_off_mm: float
    origin_within: float
    spread: float
    outlines: int
    treated: bool
    seconds: float
    processor_s: float
    rounds: int
    misfit_mm: float
    next_ml: float
    last_ml: float
    median_ml: float
    crps: float
    crps_no_change: float


def case(seed: int, number: int) -> Case:
    """Patient ``number``: three visits to four, of which the last is to be forecast."""
    place = hospital(seed, 1 + number % 4)
    place = replace(place, habits=replace(place.habits, surgery=0.0, drop_out=0.0))

    def draws(purpose: str) -> np.random.Generator:
        return stream("inverse", seed, number, purpose)

    who = person(place, draws("person"))
    law = replace(biology(place, who, draws("biology")), resistant_share=0.0)
    speed = law.growth.front_speed_mm_per_day
    plan = calendar(
        place,
        who,
        severity=severity(place, first_volume_ml=law.first_volume_ml, front_speed_mm_per_day=speed),
        front_speed_mm_per_day=speed,
        rng=draws("calendar"),
    )
    skull = head(draws("head"))
    begin = origin_mm(skull, who, draws("place"))
    days = plan.visit_days[:4]
    where = box(skull, law, fibre_ratio=1.0, origin_mm=begin, follow_up_days=days[-1])
    cells, _ = onset(where, law)
    grid = seen_grid(where)
    tissue = skull.fractions(grid, blur_mm=grid.spacing_mm)
    labels = tissue.labels()
    courses = [t for t in plan.treatments if t.kind == "chemotherapy"]
    doses = [day for t in courses for day in dosing_days(t.start_day, t.end_day)]
    therapy = Therapy(
        doses=chemotherapy(
            log_kill_per_dose=law.log_kill_per_dose,
            half_life_day=TEMOZOLOMIDE_HALF_LIFE_DAY,
            days=doses,
        )
    )
    drug = Drug(days=tuple(doses), half_life_day=TEMOZOLOMIDE_HALF_LIFE_DAY)
    given = Treatments(drugs=(drug,) if doses else ())
    outlines: list[Outline] = []
    seen: torch.Tensor = torch.zeros(())
    for index, day in enumerate(days):
        (cells,) = evolve(
            cells,
            where.medium,
            therapy=therapy,
            clearance_half_life_day=law.clearance_half_life_day,
            days=[day],
        )
        seen = shown(cells, where, grid, labels)
        outlines.append(Outline(day=day, labels=seen))
        course = plan.radiotherapy
        if course is not None and index == plan.planning_visit:
            assert course.dose_gy is not None
            assert course.fractions is not None
            core = outlines[-1].mask("core")
            target = core if core.any() else outlines[-1].mask("whole")
            dose = dose_map_gy(
                target.numpy(),
                tissue.brain >= 0.5,
                total_gy=course.dose_gy,
                spacing_mm=grid.spacing_mm,
            )
            when = fraction_days(course.start_day, course.fractions)
            in_box = torch.from_numpy(sample(dose, grid, where.grid))
            therapy = Therapy(
                doses=therapy.doses, fractions=radiotherapy(in_box, law.sensitivity, days=when)
            )
            rays = Irradiation(total_dose_gy=torch.from_numpy(dose), days=tuple(when))
            given = Treatments(irradiations=(rays,), drugs=given.drugs)
    last = outlines.pop()
    return Case(
        outlines=outlines,
        tissue=torch.from_numpy(labels),
        affine_mm=torch.from_numpy(grid.affine_mm),
        treatments=given,
        next_day=last.day,
        next_volume_ml=volume_ml(last),
        growth=law.growth,
        origin_mm=begin,
        treated=any(day < outlines[-1].day for day in given.days()),
    )


def seen_grid(where: Box) -> Grid:
    """The same box in the voxels that the fit sees, off by a part of a voxel."""
    reach = (np.asarray(where.grid.shape) - 1) * where.grid.spacing_mm[0]
    n = int(reach[0] / VOXEL_MM)
    affine = np.diag([VOXEL_MM] * 3 + [1.0])
    affine[:3, 3] = where.grid.affine_mm[:3, 3] + np.asarray([0.9, 0.4, 0.7])
    return Grid(shape=(n, n, n), affine_mm=affine)


def shown(cells: Cells, where: Box, grid: Grid, tissue: np.ndarray) -> torch.Tensor:
    """Exact outlines: thresholds of the true density, the mean over the tissue of each voxel."""
    solid = sample(where.medium.solid.numpy(), where.grid, grid)
    there = np.isin(tissue, (TISSUES["grey"], TISSUES["white"])) & (solid > 0.25)
    visible = sample(cells.visible.numpy(), where.grid, grid) / np.maximum(solid, 0.25)
    visible = np.where(there, visible, 0)
    labels = np.where(visible >= COMPARTMENTS["whole"], LABELS["SNFH"], 0)
    return torch.from_numpy(np.where(visible >= COMPARTMENTS["core"], LABELS["ET"], labels))


def volume_ml(outline: Outline) -> float:
    return float(outline.mask("whole").sum()) * VOXEL_MM**3 / 1000


def row(of: Case) -> Row:
    """Fit, forecast, and compare with the truth."""
    began, busy = time.perf_counter(), time.process_time()
    found = fit(
        of.outlines,
        tissue=of.tissue,
        affine_mm=of.affine_mm,
        treatments=of.treatments,
        priors=PUBLISHED,
        error=EXACT,
    )
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    ahead = forecast(
        found,
        tissue=of.tissue,
        treatments=of.treatments,
        days=[of.next_day],
        samples=SAMPLES,
        seed=0,
    )
    volumes = ahead.volume_ml("whole")[0].clamp(min=0.1).log().numpy()
    truth = math.log(max(of.next_volume_ml, 0.1))
    last = volume_ml(of.outlines[-1])
    speed = interval(found, "front_speed_mm_per_day", share=SHARE)
    true_speed = of.growth.front_speed_mm_per_day
    return Row(
        speed=true_speed,
        speed_error=speed.median / true_speed - 1,
        speed_within=speed.low <= true_speed <= speed.high,
        diffusion_within=holds(
            found, "diffusion_white_mm2_per_day", of.growth.diffusion_white_mm2_per_day
        ),
        rate_within=holds(found, "rate_per_day", of.growth.rate_per_day),
        origin_off_mm=math.dist(of.origin_mm, [axis.median for axis in origin(found, share=SHARE)]),
        origin_within=float(
            np.mean(
                [
                    axis.low <= value <= axis.high
                    for axis, value in zip(origin(found, share=SHARE), of.origin_mm, strict=True)
                ]
            )
        ),
        spread=math.log(speed.high / speed.low) / 2 / 1.6449,
        outlines=len(of.outlines),
        treated=of.treated,
        seconds=seconds,
        processor_s=busy,
        rounds=found.rounds,
        misfit_mm=found.misfit_mm,
        next_ml=of.next_volume_ml,
        last_ml=last,
        median_ml=float(np.exp(np.median(volumes))),
        crps=float(scoringrules.crps_ensemble(truth, volumes)),
        crps_no_change=abs(math.log(max(last, 0.1)) - truth),
    )


def holds(found: Fit, quantity: str, truth: float) -> bool:
    stated = interval(found, quantity, share=SHARE)
    return stated.low <= truth <= stated.high


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=PATIENTS)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)  # two that wait for each other take longer where others work too
    rows = []
    for number in range(asked.patients):
        rows.append(row(case(SEED, number)))
        print(f"patient {number + 1} of {asked.patients}", file=sys.stderr)
    return report(
        summary(rows),
        title="Inverse problem, one thread",
        path=asked.json,
        rows=[asdict(found) for found in rows],
    )


def summary(rows: Sequence[Row]) -> list[Figure]:
    """The figures of all patients together."""
    errors = np.abs([r.speed_error for r in rows])
    treated = np.asarray([r.treated for r in rows])
    least, most = COVERED_BAR
    return [
        Figure(
            name="median relative error of the speed",
            value=float(np.median(errors)),
            unit="",
            bar=SPEED_BAR,
        ),
        Figure(
            name="90 % intervals that hold the speed",
            value=mean([r.speed_within for r in rows]),
            unit="",
            bar=most,
            floor=least,
        ),
        Figure(name="slowest fit", value=max(r.seconds for r in rows), unit="s", bar=SECONDS_BAR),
        Figure(
            name="CRPS of log volume at the next visit",
            value=mean([r.crps for r in rows]),
            unit="",
            bar=mean([r.crps_no_change for r in rows]),
        ),
        Figure(name="slowest fit, one processor", value=max(r.processor_s for r in rows), unit="s"),
        Figure(name="median fit", value=float(np.median([r.seconds for r in rows])), unit="s"),
        Figure(name="patients", value=float(len(rows)), unit=""),
        Figure(name="treated between outlines", value=float(treated.sum()), unit=""),
        Figure(
            name="fitted to three outlines",
            value=float(sum(r.outlines == 3 for r in rows)),
            unit="",
        ),
        Figure(
            name="median sigma of the log speed",
            value=float(np.median([r.spread for r in rows])),
            unit="",
        ),
        Figure(
            name="median distance of the origin",
            value=float(np.median([r.origin_off_mm for r in rows])),
            unit="mm",
        ),
        *(
            Figure(
                name=f"median relative error of the speed, {name}",
                value=float(np.median(errors[chosen])) if chosen.any() else None,
                unit="",
            )
            for name, chosen in (("treated", treated), ("untreated", ~treated))
        ),
        Figure(
            name="90 % intervals that hold D",
            value=mean([r.diffusion_within for r in rows]),
            unit="",
        ),
        Figure(
            name="90 % intervals that hold rho", value=mean([r.rate_within for r in rows]), unit=""
        ),
        Figure(
            name="90 % intervals that hold the origin, each coordinate",
            value=mean([r.origin_within for r in rows]),
            unit="",
        ),
    ]


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
