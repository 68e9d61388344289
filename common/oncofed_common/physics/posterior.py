"""What does a fit say about a tumour, and how may it go on?

Speed, width, D, rho and age are products of powers of the fitted numbers, so under a Gaussian in the
logarithms their intervals are exact. A forecast grows samples of the posterior through all of the patient's
days, past and future: what the past leaves open, the future does too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics.candidates import NUMBERS, Treatments, candidates
from oncofed_common.physics.fit import Fit, Slices, cropped
from oncofed_common.physics.growth import Growth
from oncofed_common.physics.outline import COMPARTMENTS

QUANTITIES: Mapping[str, tuple[float, Mapping[str, float]]] = {
    "front_speed_mm_per_day": (1.0, {"log_speed": 1}),
    "front_width_mm": (1.0, {"log_width": 1}),
    "diffusion_white_mm2_per_day": (0.5, {"log_speed": 1, "log_width": 1}),
    "rate_per_day": (0.5, {"log_speed": 1, "log_width": -1}),
    "white_to_grey": (1.0, {"log_white_to_grey": 1}),
    "age_day": (1.0, {"log_reach": 1, "log_speed": -1}),
    "alpha_per_gy": (1.0, {"log_alpha": 1}),
    "log_kill": (1.0, {"log_kill": 1}),
    "clearance_half_life_day": (1.0, {"log_clearance": 1}),
}
"""Each as a factor times powers; ``age_day`` is the day of the first outline since the first clump."""
BATCH_VOXELS = 1_500_000
FARTHEST_MM = 60.0
"""How far beyond the outlines a forecast looks at most."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median, and the ends of the interval that holds ``share`` of the posterior about it."""

    low: float
    median: float
    high: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Samples of what a scan will show.

    ``visible``: densities in the voxels of ``box`` of the patient's grid; they are 0 outside it.
    """

    days: tuple[int, ...]
    visible: Float[Tensor, "day sample x y z"]
    box: Slices
    voxel_ml: float

    def volume_ml(self, compartment: str) -> Float[Tensor, "day sample"]:
        """Volume of the whole lesion or of its core."""
        inside = self.visible >= COMPARTMENTS[compartment]
        return inside.flatten(start_dim=2).sum(dim=2) * self.voxel_ml


def interval(of: Fit, quantity: str, *, share: float) -> Interval:
    """The central interval of one of ``QUANTITIES``."""
    factor, powers = QUANTITIES[quantity]
    row = torch.tensor([powers.get(name, 0.0) for name in NUMBERS], dtype=torch.float64)
    middle, spread = float(row @ of.mean), math.sqrt(float(row @ of.covariance @ row))
    reach = NormalDist().inv_cdf((1 + share) / 2) * spread
    low, median, high = (factor * math.exp(middle + sign * reach) for sign in (-1, 0, 1))
    return Interval(low=low, median=median, high=high, share=share)


def origin(of: Fit, *, share: float) -> tuple[Interval, Interval, Interval]:
    """The central intervals of the origin's coordinates, in the patient's millimetres."""
    begin = NUMBERS.index("x_mm")
    edges = torch.tensor(of.spacing_mm, dtype=torch.float64)
    turn = of.affine_mm[:3, :3].double() / edges
    corner = (
        torch.tensor([part.start for part in of.box], dtype=torch.float64) * edges
        + of.mean[begin : begin + 3]
    )
    middle = turn @ corner + of.affine_mm[:3, 3].double()
    covariance = turn @ of.covariance[begin : begin + 3, begin : begin + 3] @ turn.T
    z = NormalDist().inv_cdf((1 + share) / 2)
    a, b, c = (
        Interval(low=float(m - z * s), median=float(m), high=float(m + z * s), share=share)
        for m, s in zip(middle, covariance.diag().sqrt(), strict=True)
    )
    return a, b, c


def likeliest(of: Fit) -> Growth:
    """The law at the mode."""
    white = interval(of, "diffusion_white_mm2_per_day", share=0.5).median
    return Growth(
        diffusion_white_mm2_per_day=white,
        diffusion_grey_mm2_per_day=white / interval(of, "white_to_grey", share=0.5).median,
        rate_per_day=interval(of, "rate_per_day", share=0.5).median,
    )


def draws(of: Fit, *, samples: int, seed: int) -> Float[Tensor, "sample number"]:
    """Samples of the posterior in ``NUMBERS``, in pairs that mirror each other about the mode."""
    rng = torch.Generator().manual_seed(seed)
    half = torch.randn((-(-samples // 2), len(NUMBERS)), generator=rng, dtype=torch.float64)
    normal = torch.stack([half, -half], dim=1).flatten(end_dim=1)[:samples]
    values, vectors = torch.linalg.eigh(of.covariance)
    drawn: Tensor = of.mean + normal * values.clamp(min=0).sqrt() @ vectors.T
    return drawn


def forecast(
    of: Fit,
    *,
    tissue: Integer[Tensor, "x y z"],
    treatments: Treatments,
    days: Sequence[int],
    samples: int,
    seed: int,
) -> Forecast:
    """How the tumour may look on ``days``, none before the first outline.

    Args:
        tissue: of the whole grid, as in ``fit``.
        treatments: past ones, as in ``fit``, and those that are planned.

    Raises:
        PhysicsRefusal: days that do not rise, or lie before the first outline (``day_order``).
    """
    if not days or list(days) != sorted(set(days)) or days[0] < of.first_day:
        raise PhysicsRefusal(
            "days of a forecast that do not rise, or lie before the first outline",
            allowed="rising days from the first outline on",
            next="sort the days",
            code="day_order",
        )
    box, moved = _room(of, tissue, last_day=days[-1])
    inside, planned = tissue[box], cropped(treatments, box)
    numbers = draws(of, samples=samples, seed=seed) + moved
    together = max(1, BATCH_VOXELS // inside.numel())
    parts = []
    for few in torch.split(numbers, together):
        grown = candidates(
            few,
            tissue=inside,
            spacing_mm=of.spacing_mm,
            treatments=planned,
            days=[of.first_day, *days],
            growth_per_step=of.growth_per_step,
        )
        next(grown)
        parts.append(torch.stack(list(grown)))
    return Forecast(
        days=tuple(days),
        visible=torch.cat(parts, dim=1),
        box=box,
        voxel_ml=math.prod(of.spacing_mm) / 1000,
    )


def _room(of: Fit, tissue: Tensor, *, last_day: int) -> tuple[Slices, Tensor]:
    """The fitted box with room for growth until ``last_day``, and what that adds to ``NUMBERS``."""
    fastest = interval(of, "front_speed_mm_per_day", share=0.9).high
    ahead_mm = min(FARTHEST_MM, fastest * max(0, last_day - of.last_day))
    parts, moved = [], torch.zeros(len(NUMBERS), dtype=torch.float64)
    for axis, (edge_mm, part) in enumerate(zip(of.spacing_mm, of.box, strict=True)):
        room = math.ceil(ahead_mm / edge_mm)
        first = max(0, part.start - room)
        parts.append(slice(first, min(tissue.shape[axis], part.stop + room)))
        moved[NUMBERS.index("x_mm") + axis] = (part.start - first) * edge_mm
    return (parts[0], parts[1], parts[2]), moved
