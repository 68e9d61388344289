"""What does treatment leave alive, and when?

Radiotherapy, linear-quadratic law (Fowler, Br. J. Radiol. 62, 1989; in glioma models: Rockne et al.,
J. Math. Biol. 58, 2009): one fraction of d Gy leaves S(d) = exp(-alpha d - beta d²), on its day.

Chemotherapy, log-kill (Skipper et al., Cancer Chemother. Rep. 35, 1964) by a drug that decays (as in
Powathil et al., Phys. Med. Biol. 52, 2007): a dose kills at a rate in proportion to what is left of it, so of
its total log-kill K the share 1 - 2^(-t/h) has acted t days later, h being the half-life.

Surgery takes out every cell in a cavity, which is fluid from then on.

Two populations may share one tumour: cells that answer treatment as above, and resistant ones that do not.
They divide and move alike and compete for the same room, so a tumour that shrank can come back resistant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from oncofed_common.errors import PhysicsRefusal

WEEK_DAYS = 7
FRACTIONS_PER_WEEK = 5
LOG_2 = math.log(2)
TEMOZOLOMIDE_HALF_LIFE_DAY = 1.8 / 24
"""In plasma (Baker et al., Clin. Cancer Res. 5, 1999)."""
CYCLE_DAYS, DOSES_PER_CYCLE = 28, 5
"""Adjuvant temozolomide: days 1 to 5 of every 28 (Stupp et al., N. Engl. J. Med. 352, 2005)."""


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


@dataclass(frozen=True, kw_only=True)
class Fraction:
    """One fraction of radiotherapy: the share ``survival`` (0..1) of sensitive cells survives ``day``."""

    day: int
    survival: Float[Tensor, "x y z"]


@dataclass(frozen=True, kw_only=True)
class DrugDose:
    """One dose of a drug, which kills exp(-log_kill) of sensitive cells until it has decayed.

    Raises:
        PhysicsRefusal: a negative or infinite number, or a half-life of zero.
    """

    day: int
    log_kill: float
    half_life_day: float

    def __post_init__(self) -> None:
        good = math.isfinite(self.log_kill) and self.log_kill >= 0
        if not (good and math.isfinite(self.half_life_day) and self.half_life_day > 0):
            raise PhysicsRefusal(
                "a drug dose with a negative or infinite number",
                allowed="a log-kill of zero or more, a half-life in days above zero",
                next="correct the drug's numbers",
                code="drug",
            )

    def log_kill_between(self, start_day: float, end_day: float) -> float:
        """How much of the log-kill acts between two days."""
        start, end = (max(0.0, day - self.day) for day in (start_day, end_day))
        scale = LOG_2 / self.half_life_day
        return self.log_kill * (math.exp(-scale * start) - math.exp(-scale * end))


@dataclass(frozen=True, kw_only=True)
class Resection:
    """Surgery on ``day``: nothing lives in ``cavity`` from then on."""

    day: int
    cavity: Bool[Tensor, "x y z"]


@dataclass(frozen=True, kw_only=True)
class Therapy:
    """Everything that is done to one tumour; what kills nothing is left out, so that it costs no step."""

    fractions: tuple[Fraction, ...] = ()
    doses: tuple[DrugDose, ...] = ()
    resections: tuple[Resection, ...] = ()

    def __post_init__(self) -> None:
        act = tuple(f for f in self.fractions if bool((f.survival < 1).any()))
        object.__setattr__(self, "fractions", act)
        object.__setattr__(self, "doses", tuple(d for d in self.doses if d.log_kill > 0))
        cut = tuple(r for r in self.resections if bool(r.cavity.any()))
        object.__setattr__(self, "resections", cut)

    def days(self) -> list[int]:
        """The days on which something begins, rising."""
        days = {event.day for event in self.fractions} | {event.day for event in self.doses}
        return sorted(days | {event.day for event in self.resections})

    def log_kill_between(self, start_day: float, end_day: float) -> float:
        """Log-kill of all drugs between two days."""
        return math.fsum(dose.log_kill_between(start_day, end_day) for dose in self.doses)


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


def dosing_days(start_day: int, end_day: int) -> list[int]:
    """Days of a course of chemotherapy on which a dose is taken: the first five of each cycle."""
    return [
        first + day
        for first in range(start_day, end_day + 1, CYCLE_DAYS)
        for day in range(DOSES_PER_CYCLE)
        if first + day <= end_day
    ]


def radiotherapy(
    total_dose_gy: Float[Tensor, "x y z"],
    sensitivity: Radiosensitivity,
    *,
    days: Sequence[int],
) -> tuple[Fraction, ...]:
    """A course that gives ``total_dose_gy`` in equal fractions on ``days``.

    Raises:
        PhysicsRefusal: no fraction, or a dose that is negative or not finite.
    """
    if not days:
        raise PhysicsRefusal(
            "a course of no fractions",
            allowed="1 or more",
            next="correct the treatment table",
            code="fractions",
        )
    left = survival(total_dose_gy / len(days), sensitivity)
    return tuple(Fraction(day=day, survival=left) for day in days)


def chemotherapy(
    *, log_kill_per_dose: float, half_life_day: float, days: Sequence[int]
) -> tuple[DrugDose, ...]:
    """Equal doses on ``days``, each of which leaves exp(-log_kill_per_dose) alive in the end."""
    return tuple(
        DrugDose(day=day, log_kill=log_kill_per_dose, half_life_day=half_life_day) for day in days
    )
