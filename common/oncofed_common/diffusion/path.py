"""How is a clean field turned into noise, and what does the network's answer mean on the way back?

Every process is a Gaussian path x_t = alpha(t) x + sigma(t) e, t from 0 (clean) to 1 (noise), e of unit
variance. The network states the expected clean field; velocity and score follow from it.

Paths differ in how fast they go and how they are scaled, in nothing else: x_t / (alpha^2 +
sigma^2)^(1/2) is a point of the circle cos(a) x + sin(a) e with tan(a) = sigma / alpha. The network
sees only that point and its angle, so weights trained on one path serve every other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Process(Protocol):
    """A Gaussian path; times, alpha and sigma are broadcastable tensors."""

    def alpha(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """How much of the clean field is left: 1 at time 0, next to nothing at time 1."""
        ...

    def sigma(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Standard deviation of the noise: 0 at time 0."""
        ...


def angle(process: Process, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*all"]:
    """Where a time lies on the circle: 0 (clean) to pi / 2 (noise)."""
    return torch.atan2(process.sigma(time), process.alpha(time))


def length(process: Process, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*all"]:
    """By what a point of the path is divided to lie on the circle."""
    return torch.hypot(process.alpha(time), process.sigma(time))


@dataclass(frozen=True, kw_only=True)
class Whitened:
    """A process seen in units of what is expected: of z = (x - mean) / spread instead of x, voxel by voxel.

    y = (x_t - alpha mean) / varies with varies^2 = alpha^2 spread^2 + sigma^2 has unit variance all
    along the path, if mean and spread are right: y = cos(b) z + sin(b) e with tan(b) = sigma / (alpha
    spread).
    """

    process: Process
    mean: Float[Tensor, " row *field"]
    spread: Float[Tensor, " row *field"]

    def alpha(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*all"]:
        """cos(b) of every voxel."""
        return self.process.alpha(time) * self.spread / self.varies(time)

    def sigma(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, "*all"]:
        """sin(b) of every voxel."""
        return self.process.sigma(time) / self.varies(time)

    def varies(self, time: Float[Tensor, "*shape"]) -> Float[Tensor, " row *field"]:
        """The standard deviation of x_t."""
        return torch.hypot(self.process.alpha(time) * self.spread, self.process.sigma(time))

    def point(
        self, whitened: Float[Tensor, " row *field"], time: Float[Tensor, ""]
    ) -> Float[Tensor, " row *field"]:
        """x_t from y."""
        return self.process.alpha(time) * self.mean + self.varies(time) * whitened

    def whiten(self, clean: Float[Tensor, " row *field"]) -> Float[Tensor, " row *field"]:
        """z from x."""
        return (clean - self.mean) / self.spread

    def clean(self, whitened: Float[Tensor, " row *field"]) -> Float[Tensor, " row *field"]:
        """x from z."""
        return self.mean + self.spread * whitened


def noise_of(
    process: Process,
    noised: Float[Tensor, " row *field"],
    clean: Float[Tensor, " row *field"],
    time: Float[Tensor, ""],
) -> Float[Tensor, " row *field"]:
    """The noise that turns ``clean`` into ``noised`` at ``time`` > 0."""
    return (noised - process.alpha(time) * clean) / process.sigma(time)
