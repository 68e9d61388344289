"""How does a tumour-cell density move on a voxel grid?

Each time step is a palindrome (Strang, SIAM J. Numer. Anal. 5, 1968): half a step of diffusion along x, y, z;
a whole step of exact growth; the other half along z, y, x. Symmetric in time, so of second order; diffusion
outside and growth in the middle has a third of the error of the other way round on tumours like ours.
Diffusion is locally one-dimensional (Marchuk, Handb. Numer. Anal. 1, 1990) and implicit (``lines``), or
explicit along fibres (``lattice``). Fluxes sit between voxels: mass is conserved to rounding, and no
boundary condition has to be written down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics.growth import proliferate_together
from oncofed_common.physics.lines import spread
from oncofed_common.physics.medium import Medium
from oncofed_common.physics.window import march

Reaction = Callable[[Tensor], Tensor]
"""What happens in each voxel during a step, to populations (population, *batch, x, y, z)."""


def grow(
    u: Float[Tensor, "*batch x y z"], within: Medium, *, days: float
) -> Float[Tensor, "*batch x y z"]:
    """The density ``days`` later, in equal steps; ``u`` itself after zero days.

    Args:
        u: density 0..1, zero where the medium holds no cells.

    Raises:
        PhysicsRefusal: a negative or infinite number of days.
    """
    steps, dt_day = steps_for(within, days=days)
    if not steps:
        return u

    def growth(us: Tensor) -> Tensor:
        return proliferate_together(us, rate_per_day=within.rate_per_day, dt_day=dt_day)

    def advance(us: Tensor, part: Medium, _number: int) -> Tensor:
        return step(us, part, dt_day=dt_day, react=growth)

    with flushed():
        return march(
            u[None], within, steps=steps, dt_day=dt_day, advance=advance, accepted=lambda _: None
        )[0]


def step(
    us: Float[Tensor, "population *batch x y z"],
    within: Medium,
    *,
    dt_day: float,
    react: Reaction,
) -> Float[Tensor, "population *batch x y z"]:
    """One palindromic step: every population moves alike, ``react`` is what happens in between."""
    if within.links is not None:
        us = within.links.spread(us, dt_day=dt_day / 2)
        return within.links.spread(react(us), dt_day=dt_day / 2)
    half = within.lines(dt_day)
    for along in half:
        us = spread(us, along)
    us = react(us.clamp(0, 1))
    for along in reversed(half):
        us = spread(us, along)
    return us.clamp(0, 1)


def steps_for(within: Medium, *, days: float) -> tuple[int, float]:
    """The number of equal steps in ``days``, and their length in days.

    Raises:
        PhysicsRefusal: code ``days``; a negative or infinite number.
    """
    if not (math.isfinite(days) and days >= 0):
        raise PhysicsRefusal(
            f"{days:g} days of growth",
            allowed="a finite number, zero or more",
            next="correct the number of days",
            code="days",
        )
    steps = math.ceil(days / within.longest_step_day)
    return steps, days / steps if steps else 0.0


@contextmanager
def flushed() -> Iterator[None]:
    """Numbers below 1e-38 count as zero in here: a tumour's far tail would cost ten times the time."""
    before = float(torch.tensor(1e-40) * 1) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
