"""What does the noise of a diffusion look like?

As the future's own uncertainty does: what a forecast of outlines does not know is spread over centimetres.
Among forecasts of virtual patients by fitted physics, the errors of the distance at two places 3, 12 and
36 mm apart correlate with 0.93, 0.68 and 0.34. ``KERNEL`` is a sum of Gaussians of that shape, with a little
white noise for single voxels.

White noise would hide a tumour's volume, one number told by thousands of voxels, only where it hides
everything else many times over, and the volume would be decided in the first steps by a network that
hardly sees it; with noise of its own shape it is decided where the network sees it best. No sampler
changes: all of them hold for Gaussian noise of any covariance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

KERNEL: Mapping[float, float] = {0.0: 0.15, 6.0: 0.2, 16.0: 0.3, math.inf: 0.35}
"""Length of a Gaussian in mm -> its share of the variance: single voxels, details, lobes, the whole
window."""


def draw(
    shape: tuple[int, ...], *, spacing_mm: float, generator: torch.Generator
) -> Float[Tensor, "row channel x y z"]:
    """Noise of unit variance with the covariance of ``KERNEL`` (periodic), independent between channels.

    Args:
        shape: of (row, channel, x, y, z).
        generator: of the CPU, so that the same seed draws the same noise on every device.
    """
    white = torch.randn(shape, generator=generator)
    filtered = torch.fft.rfftn(white, dim=(2, 3, 4)) * _amplitude(shape[2:], spacing_mm)
    drawn: Tensor = torch.fft.irfftn(filtered, s=shape[2:], dim=(2, 3, 4))
    return drawn


def widened(
    drawn: Float[Tensor, "row channel x y z"], by: float, *, channels: int
) -> Float[Tensor, "row channel x y z"]:
    """The same noise, in the first ``channels`` of which the window's mean is ``by`` times as large."""
    common = drawn[:, :channels].mean(dim=(2, 3, 4), keepdim=True)
    return torch.cat([drawn[:, :channels] + (by - 1.0) * common, drawn[:, channels:]], dim=1)


@lru_cache(maxsize=8)
def _amplitude(shape: tuple[int, ...], spacing_mm: float) -> Float[Tensor, "x y half"]:
    """Root of the spectrum: a Gaussian in space, wrapped round the window, has one without negative parts."""
    covariance = torch.zeros(shape, dtype=torch.float64)
    for length_mm, share in KERNEL.items():
        axes = [_wrapped(size, spacing_mm, length_mm) for size in shape]
        covariance += share * torch.einsum("i,j,k->ijk", *axes)
    spectrum: Tensor = torch.fft.rfftn(covariance).real.clamp(min=0.0)
    return spectrum.sqrt().float()


def _wrapped(size: int, spacing_mm: float, length_mm: float) -> Float[Tensor, " voxel"]:
    """One axis of a Gaussian around voxel 0, summed over the window's neighbours on both sides."""
    if length_mm == 0 or math.isinf(length_mm):
        return torch.tensor(
            [1.0] + [float(math.isinf(length_mm))] * (size - 1), dtype=torch.float64
        )
    voxel = torch.arange(size, dtype=torch.float64)
    copies = [voxel + turn * size for turn in (-1, 0, 1)]
    gaussian = sum(torch.exp(-((copy * spacing_mm / length_mm) ** 2) / 2) for copy in copies)
    assert isinstance(gaussian, Tensor)
    return gaussian / gaussian[0]
