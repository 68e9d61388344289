"""How is noise turned into a clean field, in few evaluations of the network?

All integrate the probability-flow equation of a Gaussian path from time 1 to time 0, given the
expected clean field at each step. ``first_order`` is DDIM (Song et al. 2021), which on straight
paths is Euler's method; ``second_order`` is DPM-Solver++(2M) (Lu et al. 2022), one evaluation a
step; ``heun`` corrects each step with a second evaluation (Karras et al. 2022, algorithm 1);
``ancestral`` is DDPM (Ho et al. 2020), which puts fresh noise into every step.

``angular`` follows the circle y = cos(b) z + sin(b) e, on which the equation is dy = -v db with the
velocity v = sin(b) z - cos(b) e (Salimans & Ho 2022), by the two-step method of Adams and Bashforth.
Where z has unit variance, nothing is left to integrate: two steps give the spread of Gaussian data
exactly. In the coordinates of ``path.Whitened`` it has, as far as the prior knows; only what the
network adds to it costs steps.

``distilled`` is ``angular`` in four steps whose times and extrapolations were learned, so that it ends
where ``angular`` ends with twenty from the same noise (the idea of Shaul et al. 2024;
``benchmarks/distil.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from oncofed_common.diffusion.path import Process, angle, length, noise_of

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(noised, time) -> expected clean field; noised (row, ...), time a scalar tensor."""

Fresh = Callable[[], Tensor]
"""More noise of the shape and covariance of the first."""

MOST_EVALUATIONS = 20
DISTILLED = "distilled"
TIMES = (0.727, 0.437, 0.228)
LEANS = (1.0, 0.208, 0.138, 0.573)
"""Of ``distilled``: learned with the shipped weights by ``benchmarks/distil.py``."""
DISTILLED_EVALUATIONS = len(LEANS)


@runtime_checkable
class Sampler(Protocol):
    """Clean fields from noise."""

    def __call__(
        self,
        denoiser: Denoiser,
        process: Process,
        noise: Float[Tensor, " row *field"],
        *,
        evaluations: int,
        fresh: Fresh,
    ) -> Float[Tensor, " row *field"]:
        """Use the denoiser at most ``evaluations`` times, starting at ``noise``, time 1."""
        ...


def first_order(
    denoiser: Denoiser,
    process: Process,
    noise: Float[Tensor, " row *field"],
    *,
    evaluations: int,
    fresh: Fresh,
) -> Float[Tensor, " row *field"]:
    """DDIM; Euler's method where the path is straight."""
    state, times = noise, _times(evaluations)
    for now, then in pairwise(times):
        state = _move(process, state, denoiser(state, now), now, then)
    return state


def second_order(
    denoiser: Denoiser,
    process: Process,
    noise: Float[Tensor, " row *field"],
    *,
    evaluations: int,
    fresh: Fresh,
) -> Float[Tensor, " row *field"]:
    """DPM-Solver++(2M): the clean field is extrapolated in log(alpha/sigma) from two steps.

    The first two steps and the last touch an infinite log-ratio and are of first order.
    """
    state, times = noise, _times(evaluations)
    before: Tensor | None = None
    for number, (now, then) in enumerate(pairwise(times)):
        clean = denoiser(state, now)
        guess = clean
        if before is not None and 2 <= number < evaluations - 1:
            past = _log_ratio(process, now) - _log_ratio(process, times[number - 1])
            step = _log_ratio(process, then) - _log_ratio(process, now)
            guess = clean + (clean - before) * step / (2.0 * past)
        state = _move(process, state, guess, now, then)
        before = clean
    return state


def heun(
    denoiser: Denoiser,
    process: Process,
    noise: Float[Tensor, " row *field"],
    *,
    evaluations: int,
    fresh: Fresh,
) -> Float[Tensor, " row *field"]:
    """The trapezoid rule for d(x/sigma) = clean d(alpha/sigma) while noise prevails, and for
    d(x/alpha) = noise d(sigma/alpha) after that: each is smooth at its own end.

    Two evaluations a step, one in the last; an even number of evaluations leaves one unused.
    """
    state, times = noise, _times((evaluations + 1) // 2)
    for now, then in pairwise(times):
        clean = denoiser(state, now)
        guess = _move(process, state, clean, now, then)
        if then > 0:
            after = denoiser(guess, then)
            noisy = _move(process, state, (clean + after) / 2, now, then)
            before = noise_of(process, state, clean, now)
            mean = (before + noise_of(process, guess, after, then)) / 2
            start = (state - process.sigma(now) * mean) / process.alpha(now)
            tidy = process.alpha(then) * start + process.sigma(then) * mean
            guess = torch.where(process.alpha(now) < process.sigma(now), noisy, tidy)
        state = guess
    return state


def angular(
    denoiser: Denoiser,
    process: Process,
    noise: Float[Tensor, " row *field"],
    *,
    evaluations: int,
    fresh: Fresh,
) -> Float[Tensor, " row *field"]:
    """Adams and Bashforth in the angle; each voxel may have an angle of its own."""
    return follow(denoiser, process, noise, times=_times(evaluations), leans=[1.0] * evaluations)


def distilled(
    denoiser: Denoiser,
    process: Process,
    noise: Float[Tensor, " row *field"],
    *,
    evaluations: int,
    fresh: Fresh,
) -> Float[Tensor, " row *field"]:
    """``angular`` by ``TIMES`` and ``LEANS``; ``evaluations`` must be ``DISTILLED_EVALUATIONS``."""
    assert evaluations == DISTILLED_EVALUATIONS, "Sampling refuses any other number"
    times = torch.tensor([1.0, *TIMES, 0.0], dtype=torch.float64)
    return follow(denoiser, process, noise, times=times, leans=LEANS)


def follow(
    denoiser: Denoiser,
    process: Process,
    noise: Float[Tensor, " row *field"],
    *,
    times: Float[Tensor, " time"],
    leans: Sequence[float] | Float[Tensor, " step"],
) -> Float[Tensor, " row *field"]:
    """Along the circle through ``times``, from 1 down to 0.

    Args:
        leans: for each step, how far the velocity's change over the last step is carried on: 0 is
            Euler's method, 1 that of Adams and Bashforth. The first is not used.
    """
    state = noise / length(process, times[0])
    before: tuple[Tensor, Tensor] | None = None
    for (now, then), lean in zip(pairwise(times), leans, strict=True):
        here, step = angle(process, now), angle(process, now) - angle(process, then)
        clean = denoiser(state * length(process, now), now)
        velocity = (clean - here.cos() * state) / here.sin()
        slope = velocity
        if before is not None:
            slope = velocity + lean * (velocity - before[0]) * step / (2.0 * before[1])
        state = state + step * slope
        before = velocity, step
    return state


def ancestral(
    denoiser: Denoiser,
    process: Process,
    noise: Float[Tensor, " row *field"],
    *,
    evaluations: int,
    fresh: Fresh,
) -> Float[Tensor, " row *field"]:
    """DDPM's posterior step: q(x_then | x_now, clean), exact for any Gaussian path."""
    state, times = noise, _times(evaluations)
    for now, then in pairwise(times):
        clean = denoiser(state, now)
        ratio = process.alpha(now) / process.alpha(then)
        kept = (process.sigma(then) / process.sigma(now)).square()
        spread = process.sigma(then) * (1.0 - (ratio.square() * kept)).clamp(min=0.0).sqrt()
        along = process.alpha(then) * (1.0 - ratio.square() * kept)
        state = ratio * kept * state + along * clean + spread * fresh()
    return state


SAMPLERS: Mapping[str, Sampler] = {
    "first_order": first_order,
    "second_order": second_order,
    "heun": heun,
    "angular": angular,
    DISTILLED: distilled,
    "ancestral": ancestral,
}


def _times(steps: int) -> Float[Tensor, " time"]:
    return torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)


def _move(
    process: Process,
    state: Float[Tensor, " row *field"],
    clean: Float[Tensor, " row *field"],
    now: Float[Tensor, ""],
    then: Float[Tensor, ""],
) -> Float[Tensor, " row *field"]:
    direction = noise_of(process, state, clean, now)
    return process.alpha(then) * clean + process.sigma(then) * direction


def _log_ratio(process: Process, time: Float[Tensor, ""]) -> Float[Tensor, ""]:
    return torch.log(process.alpha(time)) - torch.log(process.sigma(time))
