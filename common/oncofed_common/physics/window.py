"""Where is a tumour, so that nothing is computed where it is not?

A density that is left out can grow to exp(rho T) times itself in the remaining T days at most (the equation
without its saturation bounds it). So what is below ``DROPPED`` exp(-rho T) everywhere outside a box can't be
missed by more than ``DROPPED`` in the end. The box is taken anew every few steps, with a margin; if the
tumour reaches its faces meanwhile, the steps are done again in a larger one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from oncofed_common.physics.medium import Box, Medium

DROPPED = 1e-8
STEPS = 8
MARGIN = 6
GRAIN = 4
"""Boxes begin and end at multiples of this, so that they repeat."""

State = Float[Tensor, "part *batch x y z"]
Advance = Callable[[State, Medium, int], State]
"""One step of all fields that go together, in a part of the medium; the number of the step."""


def march(
    state: State,
    within: Medium,
    *,
    steps: int,
    dt_day: float,
    advance: Advance,
    accepted: Callable[[int], None],
) -> State:
    """``steps`` steps, each where the tumour is; all of the medium where gradients are asked for.

    Args:
        accepted: told the number of each step that stands.
    """
    size_x, size_y, size_z = state.shape[-3:]
    whole: Box = (slice(0, size_x), slice(0, size_y), slice(0, size_z))
    everywhere = torch.is_grad_enabled() and (state.requires_grad or within.requires_grad)
    rate = float(within.rate_per_day.detach().max())
    for first in range(0, steps, STEPS):
        count = min(STEPS, steps - first)
        left_day = (steps - first) * dt_day
        limit = DROPPED * math.exp(-min(rate * left_day, 80.0))
        margin = MARGIN
        while True:
            box: Box = whole if everywhere else _box(state, limit=limit, margin=margin)
            x, y, z = box
            part = within if box == whole else within.part(box)
            found = state[..., x, y, z]
            for number in range(first, first + count):
                found = advance(found, part, number)
            if box == whole or not _touches(found, box, whole, limit=limit):
                break
            margin *= 2
        if box == whole:
            state = found
        else:
            state = state.clone()
            state[..., x, y, z] = found
        for number in range(first, first + count):
            accepted(number)
    return state


def _box(state: Tensor, *, limit: float, margin: int) -> Box:
    """Around everything over ``limit``, in any field of any member of the batch."""
    over = (state > limit).reshape(-1, *state.shape[-3:]).any(dim=0)
    if not bool(over.any()):
        over = over.clone()
        over[0, 0, 0] = True
    ends: list[slice] = []
    for dim, size in enumerate(over.shape):
        others = [d for d in range(3) if d != dim]
        hit = torch.nonzero(over.any(dim=others[1]).any(dim=others[0]))
        first, last = int(hit[0]) - margin, int(hit[-1]) + 1 + margin
        ends.append(slice(max(0, first // GRAIN * GRAIN), min(size, -(-last // GRAIN) * GRAIN)))
    x, y, z = ends
    return x, y, z


def _touches(found: Tensor, box: Box, whole: Box, *, limit: float) -> bool:
    """Whether the tumour has come to a face of the box that is no face of the medium."""
    for dim, (part, all_of_it) in enumerate(zip(box, whole, strict=True)):
        axis = dim - 3
        for inner, face in ((part.start > 0, 0), (part.stop < all_of_it.stop, -1)):
            if inner and float(found.select(axis, face).max()) > limit:
                return True
    return False
