"""Which law, which origin and which answers to treatment made this patient's outlines, and how sure is that?

The inverse problem of glioma growth (Konukoglu et al., IEEE Trans. Med. Imaging 29, 2010; Lipková et al.,
ibid. 38, 2019), as the mode of the posterior and the Gaussian about it (Laplace): Gauss–Newton with damping,
its derivatives from finite differences, all of them one batch of solves. Priors are lognormal.

One outline tells width (by the distance of its compartments), origin and size, and nothing about speed
(``candidates``): the posterior of the speed is then its prior, and so D and rho stay open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from oncofed_common.cohort import TISSUES
from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics.candidates import (
    NUMBERS,
    Irradiation,
    Treatments,
    candidates,
)
from oncofed_common.physics.evidence import (
    OutlineError,
    Surface,
    product,
    surfaces,
    weights,
)
from oncofed_common.physics.growth import Spacing
from oncofed_common.physics.medium import GROWTH_PER_STEP, check_tissue
from oncofed_common.physics.outline import Outline
from oncofed_common.physics.therapy import Resection

MARGIN_MM = 12.0
ORIGIN_SPREAD_MM = 10.0
REACH_SPREAD = 0.6
ROUNDS = 9
ENOUGH, DOUBTFUL = 0.02, 0.5
"""A step that promises to lower the objective by less ends the search, at once or if it does not keep its
promise. One standard deviation is worth 0.5, and one step of time more in the solver as much."""
LONGEST_STEP = (0.5, 6.0)
"""Of a logarithm, and of an origin in mm."""
NUDGE = (0.02, 0.5)
"""The finite difference of a logarithm, and of an origin in mm."""
Slices = tuple[slice, slice, slice]


@dataclass(frozen=True, kw_only=True)
class LogNormal:
    """``spread``: standard deviation of the logarithm."""

    median: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class Priors:
    """What is believed of a tumour before its outlines are seen.

    Speed and width span D 0.013–3.8 mm²/day and rho 0.0027–0.19 /day (Harpold et al., J. Neuropathol. Exp.
    Neurol. 66, 2007) about their typical values; white to grey 5 to 10 (Swanson et al., Cell Prolif. 33,
    2000); alpha 0.03–0.12 /Gy (Rockne et al., Phys. Med. Biol. 55, 2010). What one cycle of a drug kills,
    and how fast killed cells go, is hardly known: wide.
    """

    speed_mm_per_day: LogNormal = LogNormal(median=0.06, spread=0.8)
    width_mm: LogNormal = LogNormal(median=2.6, spread=0.4)
    white_to_grey: LogNormal = LogNormal(median=7.0, spread=0.3)
    alpha_per_gy: LogNormal = LogNormal(median=0.04, spread=0.6)
    log_kill: LogNormal = LogNormal(median=0.2, spread=0.6)
    clearance_half_life_day: LogNormal = LogNormal(median=70.0, spread=0.4)


PUBLISHED = Priors()


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The posterior of one patient's tumour, a Gaussian in ``NUMBERS``.

    Attributes:
        box: the voxels in which the tumour was grown; the origin in ``mean`` counts from its first.
        misfit_mm: root mean square distance between the outlines and the mode's contours.
        rounds: how many batches of solves the search took.
        growth_per_step: largest rho dt of the solves.
    """

    mean: Float[Tensor, " number"]
    covariance: Float[Tensor, "number number"]
    box: Slices
    affine_mm: Float[Tensor, "4 4"]
    first_day: int
    last_day: int
    misfit_mm: float
    rounds: int
    growth_per_step: float

    @property
    def spacing_mm(self) -> Spacing:
        return spacing(self.affine_mm)


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """Everything that the search looks at, within the box."""

    tissue: Integer[Tensor, "x y z"]
    spacing_mm: Spacing
    days: tuple[int, ...]
    treatments: Treatments
    shown: list[Surface]
    error: OutlineError
    prior_mean: Float[Tensor, " number"]
    prior_spread: Float[Tensor, " number"]
    active: list[int]
    growth_per_step: float
    solid: Tensor = field(repr=False)


def fit(
    outlines: Sequence[Outline],
    *,
    tissue: Integer[Tensor, "x y z"],
    affine_mm: Float[Tensor, "4 4"],
    treatments: Treatments,
    priors: Priors,
    error: OutlineError,
    growth_per_step: float = GROWTH_PER_STEP,
) -> Fit:
    """The tumour behind ``outlines`` (one or more, days rising) of one patient.

    Args:
        tissue: labels of ``TISSUES`` on the outlines' grid, voxels of 2 to 3 mm.
        affine_mm: from voxels of that grid to the patient's millimetres.
        treatments: given in between; what came before the first outline is not modelled.
        growth_per_step: largest rho dt; longer steps are faster, and less exact.

    Raises:
        PhysicsRefusal: no outline or no tumour in the first (``nothing_to_fit``); days that do not rise
            (``day_order``); outlines, dose maps or cavities on another grid (``other_grid``); an unknown
            label of tissue (``tissue_label``).
    """
    _check(outlines, tissue, treatments)
    spacing_mm = spacing(affine_mm)
    box = box_around(outlines, spacing_mm=spacing_mm, margin_mm=MARGIN_MM)
    problem = _problem(
        [Outline(day=o.day, labels=o.labels[box]) for o in outlines],
        tissue=tissue[box],
        spacing_mm=spacing_mm,
        treatments=cropped(treatments, box),
        priors=priors,
        error=error,
        growth_per_step=growth_per_step,
    )
    mean, information, residuals, rounds = _search(problem)
    squares = torch.cat(residuals) ** 2
    return Fit(
        mean=mean,
        covariance=torch.linalg.inv(information),
        box=box,
        affine_mm=affine_mm,
        first_day=outlines[0].day,
        last_day=outlines[-1].day,
        misfit_mm=float(squares.mean().sqrt()),
        rounds=rounds,
        growth_per_step=growth_per_step,
    )


def spacing(affine_mm: Float[Tensor, "4 4"]) -> Spacing:
    """Voxel edges in mm."""
    x, y, z = (float(v) for v in torch.linalg.vector_norm(affine_mm[:3, :3].double(), dim=0))
    return x, y, z


def box_around(outlines: Sequence[Outline], *, spacing_mm: Spacing, margin_mm: float) -> Slices:
    """The voxels within ``margin_mm`` of any outline, along each axis."""
    union = torch.stack([outline.mask("whole") for outline in outlines]).any(dim=0)
    parts = []
    for axis, edge_mm in enumerate(spacing_mm):
        others = [a for a in range(3) if a != axis]
        where = torch.nonzero(union.any(dim=others[1]).any(dim=others[0]))[:, 0]
        room = math.ceil(margin_mm / edge_mm)
        first = max(0, int(where[0]) - room)
        parts.append(slice(first, min(union.shape[axis], int(where[-1]) + room + 1)))
    return parts[0], parts[1], parts[2]


def cropped(treatments: Treatments, box: Slices) -> Treatments:
    """The treatments on the voxels of ``box``."""
    return Treatments(
        irradiations=tuple(
            Irradiation(total_dose_gy=c.total_dose_gy[box], days=c.days)
            for c in treatments.irradiations
        ),
        drugs=treatments.drugs,
        resections=tuple(Resection(day=r.day, cavity=r.cavity[box]) for r in treatments.resections),
    )


def _problem(
    outlines: list[Outline],
    *,
    tissue: Tensor,
    spacing_mm: Spacing,
    treatments: Treatments,
    priors: Priors,
    error: OutlineError,
    growth_per_step: float,
) -> _Problem:
    solid = (tissue == TISSUES["grey"]) | (tissue == TISSUES["white"])
    first = torch.nonzero(outlines[0].mask("whole")).double()
    edges = torch.tensor(spacing_mm, dtype=torch.float64)
    volume_mm3 = len(first) * float(edges.prod())
    reach = LogNormal(median=(volume_mm3 * 3 / (4 * math.pi)) ** (1 / 3), spread=REACH_SPREAD)
    known = (priors.speed_mm_per_day, priors.width_mm, priors.white_to_grey, reach)
    answers = (priors.alpha_per_gy, priors.log_kill, priors.clearance_half_life_day)
    middle = [float(v) for v in first.mean(dim=0) * edges]
    mean = [*(math.log(p.median) for p in known), *middle, *(math.log(p.median) for p in answers)]
    spread = [*(p.spread for p in known), *[ORIGIN_SPREAD_MM] * 3, *(p.spread for p in answers)]
    days = tuple(outline.day for outline in outlines)
    return _Problem(
        tissue=tissue,
        spacing_mm=spacing_mm,
        days=days,
        treatments=treatments,
        shown=surfaces(outlines, solid=solid, spacing_mm=spacing_mm, error=error),
        error=error,
        prior_mean=torch.tensor(mean, dtype=torch.float64),
        prior_spread=torch.tensor(spread, dtype=torch.float64),
        active=_active(treatments, days),
        growth_per_step=growth_per_step,
        solid=solid,
    )


def _active(treatments: Treatments, days: Sequence[int]) -> list[int]:
    """The numbers that the outlines can depend on at all; the others keep their prior."""
    within = range(days[0], days[-1])
    rays = any(day in within for course in treatments.irradiations for day in course.days)
    drugs = any(day < days[-1] for drug in treatments.drugs for day in drug.days)
    unused = {
        "log_speed": len(days) == 1,
        "log_alpha": not rays,
        "log_kill": not drugs or len(days) == 1,
        "log_clearance": not (rays or drugs) or len(days) == 1,
    }
    return [i for i, name in enumerate(NUMBERS) if not unused.get(name, False)]


def _search(
    problem: _Problem,
) -> tuple[Tensor, Tensor, list[Tensor], int]:
    """Mode, information there, residuals there, and how many batches that took."""
    prior = torch.diag(1 / problem.prior_spread**2)
    here = problem.prior_mean
    residuals, slopes = _linearised(here, problem)
    damping, rounds = 1e-3, 1
    while True:
        worth = weights(residuals, problem.shown)
        rows = [r[None] for r in residuals]
        curvature = product(slopes, slopes, worth, shown=problem.shown, error=problem.error) + prior
        pull = product(slopes, rows, worth, shown=problem.shown, error=problem.error)[:, 0]
        pull = pull + prior @ (here - problem.prior_mean)
        now = _objective(here, residuals, worth, problem)
        while True:
            damped = curvature + damping * torch.diag(curvature.diag())
            there = here - _bounded(torch.linalg.solve(damped, pull))
            delta = there - here
            promised = -float(delta @ pull + delta @ curvature @ delta / 2)
            if rounds >= ROUNDS or promised < ENOUGH:
                return here, curvature, residuals, rounds
            tried, tried_slopes = _linearised(there, problem)
            rounds += 1
            if _objective(there, tried, worth, problem) < now:
                break
            if promised < DOUBTFUL:
                return here, curvature, residuals, rounds
            damping = max(damping * 10, 0.1)
        here, residuals, slopes = there, tried, tried_slopes
        damping = max(damping / 10, 1e-4)


def _objective(
    numbers: Tensor, residuals: list[Tensor], worth: list[Tensor], problem: _Problem
) -> float:
    rows = [r[None] for r in residuals]
    misfit = product(rows, rows, worth, shown=problem.shown, error=problem.error)
    off = (numbers - problem.prior_mean) / problem.prior_spread
    return float(misfit[0, 0] + off @ off) / 2


def _bounded(delta: Tensor) -> Tensor:
    """The step, shortened as a whole until no number goes too far for the tangent to be believed."""
    longest = torch.tensor([LONGEST_STEP["_mm" in name] for name in NUMBERS]).double()
    return delta / max(1.0, float((delta.abs() / longest).max()))


def _linearised(numbers: Tensor, problem: _Problem) -> tuple[list[Tensor], list[Tensor]]:
    """Residuals of each surface, and their derivative with respect to each number."""
    nudge = torch.tensor([NUDGE["_mm" in name] for name in NUMBERS]).double()
    batch = numbers.repeat(len(problem.active) + 1, 1)
    for row, number in enumerate(problem.active, start=1):
        batch[row, number] += nudge[number]
    width = batch[:, NUMBERS.index("log_width")].exp().float()
    grown = list(
        candidates(
            batch,
            tissue=problem.tissue,
            spacing_mm=problem.spacing_mm,
            treatments=problem.treatments,
            days=problem.days,
            growth_per_step=problem.growth_per_step,
        )
    )
    residuals, slopes = [], []
    for surface in problem.shown:
        r = surface.residuals(
            grown[surface.visit],
            solid=problem.solid,
            front_width_mm=width,
            spacing_mm=problem.spacing_mm,
        ).double()
        slope = torch.zeros((len(NUMBERS), r.shape[1]), dtype=torch.float64)
        slope[problem.active] = (r[1:] - r[0]) / nudge[problem.active, None]
        residuals.append(r[0])
        slopes.append(slope)
    return residuals, slopes


def _check(outlines: Sequence[Outline], tissue: Tensor, treatments: Treatments) -> None:
    check_tissue(tissue)
    if not outlines or not bool(outlines[0].mask("whole").any()):
        raise PhysicsRefusal(
            "a first outline without tumour" if outlines else "no outline",
            allowed="outlines of which the first shows a tumour",
            next="begin with the first visit that shows one",
            code="nothing_to_fit",
        )
    days = [outline.day for outline in outlines]
    if any(later <= earlier for earlier, later in pairwise(days)):
        raise PhysicsRefusal(
            "outlines whose days do not rise",
            allowed="one outline a day, days rising",
            next="sort the outlines, and join those of one day",
            code="day_order",
        )
    grids = [outline.labels.shape for outline in outlines]
    grids += [course.total_dose_gy.shape for course in treatments.irradiations]
    grids += [resection.cavity.shape for resection in treatments.resections]
    if any(shape != tissue.shape for shape in grids):
        raise PhysicsRefusal(
            "an outline, dose map or cavity on another grid than the tissue map",
            allowed="one grid for all of a patient",
            next="resample them onto the grid of the tissue map",
            code="other_grid",
        )
