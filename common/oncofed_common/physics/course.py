"""How does a tumour go on under treatment, from one day to the next?

Growth, drift and therapy in one palindromic step (``solver``): drugs act in halves around growth, fractions
and surgery between steps. Killed cells stay visible until they are cleared, exponentially with a half-life
(as in the cell-clearance model of Chvetsov et al., Int. J. Radiat. Oncol. Biol. Phys. 75, 2009): so a
lesion shrinks over weeks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics.growth import proliferate_together
from oncofed_common.physics.medium import Medium
from oncofed_common.physics.solver import flushed, step, steps_for
from oncofed_common.physics.therapy import LOG_2, Therapy
from oncofed_common.physics.window import march

OnStep = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class Cells:
    """One tumour at one moment: densities of living cells that answer treatment and that do not, and of
    killed cells that are not yet cleared. Living ones together stay within 0..1."""

    day: int
    sensitive: Float[Tensor, "*batch x y z"]
    resistant: Float[Tensor, "*batch x y z"]
    debris: Float[Tensor, "*batch x y z"]

    @property
    def viable(self) -> Float[Tensor, "*batch x y z"]:
        return self.sensitive + self.resistant

    @property
    def visible(self) -> Float[Tensor, "*batch x y z"]:
        """What a scan shows: living or not yet cleared."""
        return self.sensitive + self.resistant + self.debris


def newborn(u: Float[Tensor, "*batch x y z"], *, day: int, resistant_share: float) -> Cells:
    """A tumour of density ``u`` that was never treated."""
    resistant = u * resistant_share
    return Cells(day=day, sensitive=u - resistant, resistant=resistant, debris=torch.zeros_like(u))


def evolve(
    cells: Cells,
    within: Medium,
    *,
    therapy: Therapy,
    clearance_half_life_day: float,
    days: Sequence[int],
    on_step: OnStep | None = None,
) -> Iterator[Cells]:
    """The tumour on each of ``days`` (rising, none before ``cells.day``), before what that day does.

    What happens from ``cells.day`` on takes part, and cavities made earlier stay empty: so going on from a
    yielded state with the same therapy does nothing twice. ``within`` is the medium before any surgery;
    ``on_step`` is told the day after each time step.

    Raises:
        PhysicsRefusal: days out of order (``day_order``).
    """
    if list(days) != sorted(days) or (days and days[0] < cells.day):
        raise PhysicsRefusal(
            "days that run backwards",
            allowed="rising days, none before the start",
            next="sort the days",
            code="day_order",
        )
    for resection in therapy.resections:
        if resection.day < cells.day:
            within = within.without(resection.cavity)
    until = partial(
        _until,
        therapy=therapy,
        clearance_half_life_day=clearance_half_life_day,
        on_step=on_step,
    )
    waiting = [day for day in therapy.days() if day >= cells.day]
    for day in days:
        while waiting and waiting[0] < day:
            cells = until(cells, within, waiting[0])
            cells, within = _treated(cells, within, therapy)
            waiting.pop(0)
        cells = until(cells, within, day)
        yield cells


def _until(
    cells: Cells,
    within: Medium,
    day: int,
    *,
    therapy: Therapy,
    clearance_half_life_day: float,
    on_step: OnStep | None,
) -> Cells:
    """Growth and drugs up to ``day``; nothing begins on the way."""
    steps, dt_day = steps_for(within, days=float(day - cells.day))
    if not steps:
        return cells
    mixed = bool(cells.resistant.any())
    living = 2 if mixed else 1
    fields = (cells.sensitive, cells.resistant, cells.debris)
    state = torch.stack(fields if mixed else (cells.sensitive, cells.debris))
    fade = math.exp(-LOG_2 / clearance_half_life_day * dt_day)
    starts = [cells.day + number * dt_day for number in range(steps)]

    def advance(state: Tensor, part: Medium, number: int) -> Tensor:
        middle = starts[number] + dt_day / 2
        before = therapy.log_kill_between(starts[number], middle)
        after = therapy.log_kill_between(middle, starts[number] + dt_day)
        killed: list[Tensor] = []

        def react(us: Tensor) -> Tensor:
            us = _poisoned(us, before, killed)
            us = proliferate_together(us, rate_per_day=part.rate_per_day, dt_day=dt_day)
            return _poisoned(us, after, killed)

        us = step(state[:living], part, dt_day=dt_day, react=react)
        return torch.cat([us, sum(killed, state[living] * fade)[None]])

    def accepted(number: int) -> None:
        if on_step is not None:
            on_step(starts[number] + dt_day)

    with flushed():
        state = march(state, within, steps=steps, dt_day=dt_day, advance=advance, accepted=accepted)
    resistant = state[1] if mixed else cells.resistant
    return Cells(day=day, sensitive=state[0], resistant=resistant, debris=state[living])


def _poisoned(us: Tensor, log_kill: float, killed: list[Tensor]) -> Tensor:
    """``us`` after a drug; what it killed is appended to ``killed``."""
    if not log_kill:
        return us
    left = us[0] * math.exp(-log_kill)
    killed.append(us[0] - left)
    return torch.stack([left, *us[1:]])


def _treated(cells: Cells, within: Medium, therapy: Therapy) -> tuple[Cells, Medium]:
    """What fractions and surgery of this day leave, and where cells may live from now on."""
    sensitive, resistant, debris = cells.sensitive, cells.resistant, cells.debris
    for fraction in therapy.fractions:
        if fraction.day == cells.day:
            left = sensitive * fraction.survival
            debris = debris + (sensitive - left)
            sensitive = left
    for resection in therapy.resections:
        if resection.day == cells.day:
            sensitive, resistant, debris = (
                torch.where(resection.cavity, 0, u) for u in (sensitive, resistant, debris)
            )
            within = within.without(resection.cavity)
    return Cells(day=cells.day, sensitive=sensitive, resistant=resistant, debris=debris), within
