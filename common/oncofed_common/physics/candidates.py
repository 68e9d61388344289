"""How do many candidates for one patient's tumour grow, each with a law and answers to treatment of its own?

A candidate is ten numbers (``NUMBERS``). It begins as a small clump at its origin and grows in time counted
in millimetres of front: after ``reach_mm = speed × age`` it has its first outline. There, D = width / 2 and
rho = 1 / (2 width), so what a first outline shows does not depend on the speed at all: from one outline
the speed, and with it D and rho, cannot be told. Later outlines tell it, in days.

From the first outline on, steps are those of ``course``; here every member of the batch has its own
radiosensitivity, log-kill and clearance, which is why ``course`` itself is not called.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics.growth import Growth, Spacing, proliferate_together
from oncofed_common.physics.medium import Medium, medium
from oncofed_common.physics.solver import flushed, grow, step, steps_for
from oncofed_common.physics.therapy import (
    LOG_2,
    DrugDose,
    Radiosensitivity,
    Resection,
    survival,
)

NUMBERS: tuple[str, ...] = (
    "log_speed",
    "log_width",
    "log_white_to_grey",
    "log_reach",
    "x_mm",
    "y_mm",
    "z_mm",
    "log_alpha",
    "log_kill",
    "log_clearance",
)
"""Speed in mm/day, width and reach in mm, origin in mm along the grid's axes from its first voxel, alpha in
1/Gy, log-kill of one drug dose, half-life of clearance in days."""
CLUMP_MM = 3.0
CLUMP_DENSITY = 0.8
ALPHA_OVER_BETA_GY = 10.0
"""Of tumours (Fowler, Br. J. Radiol. 62, 1989)."""


@dataclass(frozen=True, kw_only=True)
class Irradiation:
    """A course that gives ``total_dose_gy`` in equal fractions on ``days``.

    Raises:
        PhysicsRefusal: no fraction (``fractions``); a dose that is negative or not finite (``dose_value``).
    """

    total_dose_gy: Float[Tensor, "x y z"]
    days: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.days:
            raise PhysicsRefusal(
                "a course of no fractions",
                allowed="1 or more",
                next="correct the treatment table",
                code="fractions",
            )
        survival(self.total_dose_gy, Radiosensitivity(alpha_per_gy=0.0, beta_per_gy2=0.0))


@dataclass(frozen=True, kw_only=True)
class Drug:
    """Equal doses on ``days``; how many cells one kills is for the fit to find.

    Raises:
        PhysicsRefusal: a half-life that is not above zero (``drug``).
    """

    days: tuple[int, ...]
    half_life_day: float

    def __post_init__(self) -> None:
        DrugDose(day=0, log_kill=0.0, half_life_day=self.half_life_day)


@dataclass(frozen=True, kw_only=True)
class Treatments:
    """What was done, or is planned; what it does to cells is not part of it."""

    irradiations: tuple[Irradiation, ...] = ()
    drugs: tuple[Drug, ...] = ()
    resections: tuple[Resection, ...] = ()

    def days(self) -> list[int]:
        """The days on which something begins, rising."""
        days = {day for course in self.irradiations for day in course.days}
        days |= {day for drug in self.drugs for day in drug.days}
        return sorted(days | {resection.day for resection in self.resections})


@dataclass(frozen=True, kw_only=True)
class Answers:
    """How each member of a batch answers treatment."""

    alpha_per_gy: Float[Tensor, " batch"]
    log_kill: Float[Tensor, " batch"]
    clearance_half_life_day: Float[Tensor, " batch"]


def candidates(
    numbers: Float[Tensor, "batch number"],
    *,
    tissue: Integer[Tensor, "x y z"],
    spacing_mm: Spacing,
    treatments: Treatments,
    days: Sequence[int],
    growth_per_step: float,
) -> Iterator[Float[Tensor, "batch x y z"]]:
    """The visible density of each candidate on each of ``days``, the first being the first outline's.

    Args:
        growth_per_step: largest rho dt (``medium.GROWTH_PER_STEP``).
    """

    def meets(white: Tensor, rate: Tensor) -> Medium:
        found = _medium(white, ratio, rate, tissue, spacing_mm)
        return replace(found, growth_per_step=growth_per_step)

    columns = dict(zip(NUMBERS, numbers.double().unbind(dim=1), strict=True))
    speed, width, ratio, reach = (
        columns[name].exp() for name in ("log_speed", "log_width", "log_white_to_grey", "log_reach")
    )
    onset = meets(width / 2 * reach, reach / (2 * width))
    origin = torch.stack([columns[name] for name in ("x_mm", "y_mm", "z_mm")], dim=1).float()
    u = grow(clump(origin, onset), onset, days=1.0)
    answers = Answers(
        alpha_per_gy=columns["log_alpha"].exp().float(),
        log_kill=columns["log_kill"].exp().float(),
        clearance_half_life_day=columns["log_clearance"].exp().float(),
    )
    if len(days) == 1:
        return iter([u])
    within = meets(speed * width / 2, speed / (2 * width))
    return under_treatment(u, within, treatments=treatments, answers=answers, days=days)


def clump(origin_mm: Float[Tensor, "batch 3"], within: Medium) -> Float[Tensor, "batch x y z"]:
    """Where each tumour begins: a small Gaussian in whatever holds cells."""
    shape = within.solid.shape[-3:]
    far = torch.zeros((len(origin_mm), *shape))
    for axis, edge_mm in enumerate(within.spacing_mm):
        away = torch.arange(shape[axis]) * edge_mm - origin_mm[:, axis, None]
        view = [len(origin_mm), 1, 1, 1]
        view[axis + 1] = shape[axis]
        far = far + (away**2).reshape(view)
    return CLUMP_DENSITY * torch.exp(-far / (2 * CLUMP_MM**2)) * within.solid


def under_treatment(
    u: Float[Tensor, "batch x y z"],
    within: Medium,
    *,
    treatments: Treatments,
    answers: Answers,
    days: Sequence[int],
) -> Iterator[Float[Tensor, "batch x y z"]]:
    """Visible density on each of ``days`` (rising, the first is that of ``u``), before what that day does.

    Treatment before the first day is over, but a cavity made then stays empty.
    """
    now = _State(day=days[0], living=u, debris=torch.zeros_like(u), within=within)
    for resection in treatments.resections:
        if resection.day < now.day:
            now = _cut(now, resection)
    waiting = [day for day in treatments.days() if day >= now.day]
    for visit in days:
        while waiting and waiting[0] < visit:
            now = _until(now, waiting.pop(0), treatments, answers)
            now = _treated(now, treatments, answers)
        now = _until(now, visit, treatments, answers)
        yield now.living + now.debris


@dataclass(frozen=True, kw_only=True)
class _State:
    """All candidates on one day, and where their cells may live from now on."""

    day: int
    living: Float[Tensor, "batch x y z"]
    debris: Float[Tensor, "batch x y z"]
    within: Medium


def _medium(
    white: Tensor, ratio: Tensor, rate: Tensor, tissue: Tensor, spacing_mm: Spacing
) -> Medium:
    laws = [
        Growth(
            diffusion_white_mm2_per_day=float(d),
            diffusion_grey_mm2_per_day=float(d / r),
            rate_per_day=float(rho),
        )
        for d, r, rho in zip(white, ratio, rate, strict=True)
    ]
    return medium(tissue, laws, spacing_mm=spacing_mm, dtype=torch.float32, allow_coarse=True)


def _until(now: _State, day: int, treatments: Treatments, answers: Answers) -> _State:
    """Growth, drugs and clearance up to ``day``; nothing begins on the way."""
    steps, dt_day = steps_for(now.within, days=float(day - now.day))
    if not steps:
        return now
    doses = [
        DrugDose(day=given, log_kill=1.0, half_life_day=drug.half_life_day)
        for drug in treatments.drugs
        for given in drug.days
        if given <= now.day
    ]
    fade = torch.exp(-LOG_2 / answers.clearance_half_life_day * dt_day)[:, None, None, None]
    rate, us, debris = now.within.rate_per_day, now.living[None], now.debris
    with flushed():
        for number in range(steps):
            begin_day = now.day + number * dt_day
            acting = [
                math.fsum(
                    dose.log_kill_between(
                        begin_day + part * dt_day / 2, begin_day + (part + 1) * dt_day / 2
                    )
                    for dose in doses
                )
                for part in (0, 1)
            ]
            killed: list[Tensor] = []

            def react(
                us: Tensor, acting: list[float] = acting, killed: list[Tensor] = killed
            ) -> Tensor:
                us = _poisoned(us, acting[0] * answers.log_kill, killed) if acting[0] else us
                us = proliferate_together(us, rate_per_day=rate, dt_day=dt_day)
                return _poisoned(us, acting[1] * answers.log_kill, killed) if acting[1] else us

            us = step(us, now.within, dt_day=dt_day, react=react)
            debris = sum(killed, debris * fade)
    return _State(day=day, living=us[0], debris=debris, within=now.within)


def _poisoned(us: Tensor, log_kill: Tensor, killed: list[Tensor]) -> Tensor:
    """``us`` after a drug; what it killed is appended to ``killed``."""
    alive = us * torch.exp(-log_kill)[:, None, None, None]
    killed.append((us - alive)[0])
    return alive


def _treated(now: _State, treatments: Treatments, answers: Answers) -> _State:
    """What fractions and surgery of this day leave."""
    for course in treatments.irradiations:
        dose_gy = course.total_dose_gy.float() / len(course.days)
        effect_gy = dose_gy + dose_gy**2 / ALPHA_OVER_BETA_GY
        for _ in range(course.days.count(now.day)):
            left = torch.exp(-answers.alpha_per_gy[:, None, None, None] * effect_gy)
            killed = now.living * (1 - left)
            now = replace(now, living=now.living - killed, debris=now.debris + killed)
    for resection in treatments.resections:
        if resection.day == now.day:
            now = _cut(now, resection)
    return now


def _cut(now: _State, resection: Resection) -> _State:
    living, debris = (torch.where(resection.cavity, 0, u) for u in (now.living, now.debris))
    within = now.within.without(resection.cavity)
    return replace(now, living=living, debris=debris, within=within)
