"""What does treatment leave alive, and on which days?

Radiotherapy, linear-quadratic law (Fowler, Br. J. Radiol. 62, 1989; in glioma models: Rockne et al.,
J. Math. Biol. 58, 2009): one fraction of d Gy leaves S(d) = exp(-alpha d - beta d²). Fractions are given
on weekdays. Chemotherapy kills a constant log share a cycle (Skipper's log-kill law). Both act at once,
on their day.

Killed cells stay visible until they are cleared, exponentially with a half-life (as in the cell-clearance
model of Chvetsov et al., Int. J. Radiat. Oncol. Biol. Phys. 75, 2009): so a lesion shrinks over weeks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics.solver import Medium, grow

WEEK_DAYS = 7
FRACTIONS_PER_WEEK = 5


@dataclass(frozen=True, kw_only=True)
class Cells:
    """One tumour at one moment: densities 0..1 of living and of killed, not yet cleared cells."""

    day: int
    viable: Float[Tensor, "x y z"]
    debris: Float[Tensor, "x y z"]


@dataclass(frozen=True, kw_only=True)
class Kill:
    """On ``day`` the share ``survival`` (0..1) of every voxel's cells survives."""

    day: int
    survival: Float[Tensor, "x y z"]


@dataclass(frozen=True, kw_only=True)
class Radiosensitivity:
    """Linear and quadratic coefficients of the tumour's survival curve.

    Raises:
        PhysicsRefusal: a negative or infinite coefficient.
    """

    alpha_per_gy: float
    beta_per_gy2: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(v) and v >= 0 for v in vars(self).values()):
            raise PhysicsRefusal(
                "a radiosensitivity that is negative or infinite",
                allowed="alpha in 1/Gy and beta in 1/Gy2, zero or more",
                next="correct the coefficients",
                code="radiosensitivity",
            )


def survival(
    dose_gy: Float[Tensor, "x y z"], sensitivity: Radiosensitivity
) -> Float[Tensor, "x y z"]:
    """Share of cells that one fraction of ``dose_gy`` leaves alive, exp(-alpha d - beta d²).

    Raises:
        PhysicsRefusal: a dose that is negative or not finite.
    """
    if not bool(torch.isfinite(dose_gy).all()) or bool((dose_gy < 0).any()):
        raise PhysicsRefusal(
            "a dose map with negative or infinite values",
            allowed="finite doses of zero Gy or more",
            next="write the dose map again, in Gy",
            code="dose_value",
        )
    exponent = sensitivity.alpha_per_gy * dose_gy + sensitivity.beta_per_gy2 * dose_gy**2
    return torch.exp(-exponent)


def fraction_days(start_day: int, fractions: int) -> list[int]:
    """Days of a course that starts on a Monday: five fractions, two days off."""
    return [
        start_day + WEEK_DAYS * (n // FRACTIONS_PER_WEEK) + n % FRACTIONS_PER_WEEK
        for n in range(fractions)
    ]


def radiotherapy(
    total_dose_gy: Float[Tensor, "x y z"],
    sensitivity: Radiosensitivity,
    *,
    start_day: int,
    fractions: int,
) -> list[Kill]:
    """The kills of a course that gives ``total_dose_gy`` in equal fractions.

    Raises:
        PhysicsRefusal: no fraction, or a dose that is negative or not finite.
    """
    if fractions < 1:
        raise PhysicsRefusal(
            f"{fractions} fractions",
            allowed="1 or more",
            next="correct the treatment table",
            code="fractions",
        )
    left = survival(total_dose_gy / fractions, sensitivity)
    return [Kill(day=day, survival=left) for day in fraction_days(start_day, fractions)]


def chemotherapy(
    like: Float[Tensor, "x y z"], *, log_kill: float, days: Sequence[int]
) -> list[Kill]:
    """The kills of cycles on ``days``, each of which leaves exp(-log_kill) alive everywhere."""
    left = torch.full_like(like, math.exp(-log_kill))
    return [Kill(day=day, survival=left) for day in days]


def evolve(
    cells: Cells,
    within: Medium,
    *,
    kills: Iterable[Kill],
    clearance_half_life_day: float,
    days: Sequence[int],
) -> Iterator[Cells]:
    """The tumour on each of ``days`` (rising, none before ``cells.day``), before that day's kill.

    Kills from ``cells.day`` on take part, so going on from a yielded state kills nothing twice. A kill
    that spares every voxel takes no part, not even in the choice of time steps: zero dose gives the bits
    of no treatment.

    Raises:
        PhysicsRefusal: days out of order.
    """
    if list(days) != sorted(days) or (days and days[0] < cells.day):
        raise PhysicsRefusal(
            "days that run backwards",
            allowed="rising days, none before the start",
            next="sort the days",
            code="day_order",
        )
    waiting = sorted(
        (k for k in kills if k.day >= cells.day and bool((k.survival < 1).any())),
        key=lambda k: k.day,
    )

    def until(now: Cells, day: int) -> Cells:
        gap = day - now.day
        viable = grow(now.viable, within, days=float(gap))
        debris = now.debris * 0.5 ** (gap / clearance_half_life_day)
        return Cells(day=day, viable=viable, debris=debris)

    for day in days:
        while waiting and waiting[0].day < day:
            cells = _killed(until(cells, waiting[0].day), waiting.pop(0))
        cells = until(cells, day)
        yield cells


def _killed(cells: Cells, kill: Kill) -> Cells:
    alive = cells.viable * kill.survival
    return replace(cells, viable=alive, debris=cells.debris + (cells.viable - alive))
