"""What the tumour physics costs: a year on a whole brain, against Heun's explicit scheme; cohorts.

One simulated year of a tumour (D 0.13 and 0.013 mm²/day in white and grey matter, rho 0.025 /day), a clump in
the MNI152 brain at first. Errors are in time alone, relative L1 against the same grid with steps ten times
shorter. Both schemes share the spatial discretisation; ours computes only where the tumour is (``window``).
Grey matter is coarse at these voxels, and allowed to be. Heun takes the longest step that is as exact as
ours, or else its longest stable one.

    .venv/bin/python benchmarks/physics.py --json out.json [--patients 200]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from _figures import Figure, report
from torch import Tensor

from oncofed_common.physics.growth import Growth
from oncofed_common.physics.medium import Medium, medium
from oncofed_common.physics.solver import flushed, grow
from oncofed_simulation.patients.anatomy import Grid, Head, mni152
from oncofed_simulation.patients.writer import Ward, wards_of, write_cohorts

LAW = Growth(diffusion_white_mm2_per_day=0.13, diffusion_grey_mm2_per_day=0.013, rate_per_day=0.025)
RACES = 5
YEAR_DAYS = 365.0
START_MM = (28.0, -20.0, 28.0)
COHORT_S, COHORT_PATIENTS = 600.0, 200


def whole_brain(voxel_mm: float) -> tuple[Tensor, Grid]:
    """Tissue labels of the MNI152 brain, and their grid."""
    atlas = mni152()
    affine = atlas.affine_mm.copy()
    affine[:3, :3] *= voxel_mm
    x, y, z = (math.ceil(n / voxel_mm) for n in atlas.maps.shape[1:])
    grid = Grid(shape=(x, y, z), affine_mm=affine)
    plain = Head(
        to_mni=np.eye(4),
        bend_mm=np.zeros((1, 3)),
        bend_wave=np.ones((1, 3)),
        bend_phase=np.zeros(1),
    )
    return torch.from_numpy(plain.fractions(grid, blur_mm=(0.0, 0.0, 0.0)).labels()), grid


def clump(within: Medium, grid: Grid, dtype: torch.dtype) -> Tensor:
    """The tumour on day 0."""
    away = torch.from_numpy(grid.points_mm()).to(dtype)
    away = away - torch.tensor(START_MM, dtype=dtype)[:, None, None, None]
    return 0.8 * torch.exp(-(away**2).sum(dim=0) / (2 * 3.0**2)) * within.solid


def stepped(u: Tensor, within: Medium, steps: int) -> Tensor:
    """A year in that many steps."""
    for _ in range(steps):
        u = grow(u, within, days=YEAR_DAYS / steps)
    return u


class Heun:
    """The explicit scheme on the same faces: harmonic means, no flux into fluid."""

    def __init__(self, within: Medium) -> None:
        self.rate = float(within.rate_per_day)
        self.faces = []
        for dim, (d, edge) in enumerate(
            zip(within.diffusivity_mm2_per_day, within.spacing_mm, strict=True)
        ):
            left, right = d.narrow(dim, 0, d.shape[dim] - 1), d.narrow(dim, 1, d.shape[dim] - 1)
            both = left + right
            mean = torch.where(left * right > 0, 2 * left * right / both.clamp(min=1e-30), 0)
            self.faces.append(mean / edge**2)
        largest = 4 * sum(float(face.max()) for face in self.faces)
        self.stable_day = 2 / largest

    def change(self, u: Tensor) -> Tensor:
        out = self.rate * u * (1 - u)
        for dim, face in enumerate(self.faces):
            flow = face * u.diff(dim=dim)
            out.narrow(dim, 0, u.shape[dim] - 1).add_(flow)
            out.narrow(dim, 1, u.shape[dim] - 1).sub_(flow)
        return out

    def year(self, u: Tensor, steps: int) -> Tensor:
        dt = YEAR_DAYS / steps
        with flushed():
            for _ in range(steps):
                first = self.change(u)
                u = u + dt / 2 * (first + self.change(u + dt * first))
        return u


def timed(work: Callable[[], Tensor], times: int) -> tuple[float, Tensor]:
    """Seconds of the fastest of several runs, and what it gave."""
    seconds, found = math.inf, torch.empty(0)
    for _ in range(times):
        began = time.perf_counter()
        found = work()
        if found.is_cuda:
            torch.cuda.synchronize()
        seconds = min(seconds, time.perf_counter() - began)
    return seconds, found


def off(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).abs().sum() / exact.double().sum())


def solver_figures() -> list[Figure]:
    """A year at 1.5 mm beside Heun, and at 1 mm."""
    tissue, grid = whole_brain(1.5)
    within = medium(tissue, LAW, spacing_mm=grid.spacing_mm, dtype=torch.float32, allow_coarse=True)
    u = clump(within, grid, torch.float32)
    steps = math.ceil(YEAR_DAYS / within.longest_step_day)
    ours = grow(u, within, days=YEAR_DAYS)
    exact = stepped(u, within, 10 * steps)
    ours_off = off(ours, exact)

    explicit = Heun(within)
    least = math.ceil(YEAR_DAYS / (0.95 * explicit.stable_day))
    least_off = off(explicit.year(u, least), exact)
    wanted = max(least, math.ceil(least * math.sqrt(least_off / ours_off)))
    other = explicit.year(u, wanted)

    def race() -> tuple[float, float]:
        """By turns, so that what else the machine does slows both."""
        seconds = [
            (
                timed(lambda: grow(u, within, days=YEAR_DAYS), 1)[0],
                timed(lambda: explicit.year(u, wanted), 1)[0],
            )
            for _ in range(RACES)
        ]
        return min(ours for ours, _ in seconds), min(theirs for _, theirs in seconds)

    ours_s, heun_s = race()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ours_alone_s, heun_alone_s = race()
    torch.set_num_threads(threads)
    figures = [
        Figure(name="a year at 1.5 mm", value=ours_s, unit="s", bar=3.0),
        Figure(name="its error in time", value=100 * ours_off, unit="%", bar=0.1),
        Figure(name="steps", value=float(steps), unit=""),
        Figure(name="Heun: longest stable step", value=explicit.stable_day, unit="days"),
        Figure(name="Heun: error at that step", value=100 * least_off, unit="%"),
        Figure(name="Heun: error in the race", value=100 * off(other, exact), unit="%"),
        Figure(name="Heun at equal error, times ours", value=heun_s / ours_s, unit="x", floor=3.0),
        Figure(name="the same on one core", value=heun_alone_s / ours_alone_s, unit="x"),
    ]
    tissue, grid = whole_brain(1.0)
    within = medium(tissue, LAW, spacing_mm=grid.spacing_mm, dtype=torch.float32, allow_coarse=True)
    u = clump(within, grid, torch.float32)
    fine_s, _ = timed(lambda: grow(u, within, days=YEAR_DAYS), 1)
    figures.append(Figure(name="a year at 1 mm", value=fine_s, unit="s", bar=15.0))
    return [*figures, Figure(name="a year at 1.5 mm on a GPU", value=gpu_seconds(), unit="s")]


def gpu_seconds() -> float | None:
    if not torch.cuda.is_available():
        return None
    tissue, grid = whole_brain(1.5)
    within = medium(
        tissue.cuda(), LAW, spacing_mm=grid.spacing_mm, dtype=torch.float32, allow_coarse=True
    )
    u = clump(within, grid, torch.float32) if within.solid.device.type == "cpu" else None
    if u is None:
        host = medium(
            tissue, LAW, spacing_mm=grid.spacing_mm, dtype=torch.float32, allow_coarse=True
        )
        u = clump(host, grid, torch.float32).cuda()
    on_card = u
    seconds, _ = timed(lambda: grow(on_card, within, days=YEAR_DAYS), 3)
    return seconds


def cohort_figures(patients: int) -> list[Figure]:
    """Whole cohorts at 3 mm, with what other treatment would have done; and their memory."""
    wards = [
        Ward(hospital=ward.hospital, patients=patients // 4)
        for ward in wards_of(sites=4, patients=1, seed=7)
    ]
    peaks: list[int] = []
    me = psutil.Process()

    def watch(_what: str, done: int, total: int) -> None:
        sizes = []
        for child in me.children(recursive=True):
            try:
                sizes.append(child.memory_info().rss)
            except psutil.Error:
                continue
        peaks.append(max(sizes, default=0))
        print(f"\r{done} of {total} patients", end="", file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="cohort-") as root:
        began = time.perf_counter()
        made = write_cohorts(
            wards, seed=7, out=Path(root) / "out", workers=os.cpu_count() or 1, progress=watch
        )
        seconds = time.perf_counter() - began
    print(file=sys.stderr)
    count = sum(ward.patients for ward in wards)
    quarter = max(1, len(peaks) // 4)
    early, late = max(peaks[: 2 * quarter]), max(peaks[-quarter:])
    return [
        Figure(name="cohort: patients", value=float(count), unit=""),
        Figure(name="cohort: visits a patient", value=sum(made.values()) / count, unit=""),
        Figure(
            name=f"cohort of {COHORT_PATIENTS} patients"
            + ("" if count == COHORT_PATIENTS else f", from {count}"),
            value=seconds * COHORT_PATIENTS / count,
            unit="s",
            bar=COHORT_S,
        ),
        Figure(name="largest process", value=late / 2**20, unit="MiB"),
        Figure(name="memory at the end over the first half", value=late / early, unit="x", bar=1.1),
    ]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--patients", type=int, default=COHORT_PATIENTS)
    asked = parser.parse_args(arguments)
    figures = [*solver_figures(), *cohort_figures(asked.patients)]
    return report(figures, title="Tumour physics", path=asked.json)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
