"""What does one tumour meet on one grid: how fast cells move in each voxel, and how fast they divide?

A grid is coarse for a tissue if a front there is narrower than a voxel. Then D is matched to the grid
(``growth.matched_share``), so that no front runs faster than it should; its profile stays too wide. That
happens only where it is asked for, and ``Medium.resolution`` says so; otherwise the medium is refused, and
``fine`` is the way to grow on a grid that is fine enough.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from oncofed_common.cohort import TISSUES
from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics import lines
from oncofed_common.physics.growth import Growth, Resolution, Spacing, matched_share, resolution
from oncofed_common.physics.lattice import Lattice, lattice
from oncofed_common.physics.lines import Lines

GROWTH_PER_STEP = 0.15
"""Largest rho dt; ``benchmarks/physics.py`` measures what it costs against steps ten times shorter."""
KEPT = 4
Box = tuple[slice, slice, slice]


K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class Medium:
    """Made by ``medium``, ``fields`` or ``fibres``.

    Attributes:
        diffusivity_mm2_per_day: along x, y and z, zero where no cell may be.
        rate_per_day: of each member of the batch.
        links: takes the place of the three diffusivities where D is a tensor.
        resolution: of each tissue, the worst of the batch; None where no tissue map was given.
        growth_per_step: largest rho dt.
    """

    diffusivity_mm2_per_day: tuple[
        Float[Tensor, "*batch x y z"],
        Float[Tensor, "*batch x y z"],
        Float[Tensor, "*batch x y z"],
    ]
    rate_per_day: Float[Tensor, "*batch"]
    spacing_mm: Spacing
    resolution: Resolution | None
    links: Lattice | None = None
    growth_per_step: float = GROWTH_PER_STEP
    _factored: OrderedDict[float, tuple[Lines, Lines, Lines]] = field(
        default_factory=OrderedDict, init=False, repr=False, compare=False
    )
    _parts: OrderedDict[tuple[tuple[int, int], ...], Medium] = field(
        default_factory=OrderedDict, init=False, repr=False, compare=False
    )

    @cached_property
    def solid(self) -> Bool[Tensor, "*batch x y z"]:
        """Where cells may be."""
        return self.diffusivity_mm2_per_day[0].detach() > 0

    @cached_property
    def longest_step_day(self) -> float:
        """Longest step that keeps the density within 0..1 and the splitting error small."""
        bound = self.growth_per_step / float(self.rate_per_day.detach().max())
        if self.links is not None:
            return bound  # its own steps are shorter where they must be
        for d, edge in zip(self.diffusivity_mm2_per_day, self.spacing_mm, strict=True):
            fastest = float(d.detach().max())
            bound = min(bound, edge**2 / fastest if fastest else math.inf)
        return bound

    def lines(self, dt_day: float) -> tuple[Lines, Lines, Lines]:
        """Half a step along x, y and z; the last few are kept, since most calls repeat a step."""
        if dt_day in self._factored:
            return self._factored[dt_day]
        x, y, z = (
            lines.lines(d, dim=dim - 3, edge_mm=edge, dt_day=dt_day / 2)
            for dim, (d, edge) in enumerate(
                zip(self.diffusivity_mm2_per_day, self.spacing_mm, strict=True)
            )
        )
        if not self.requires_grad:
            _keep(self._factored, dt_day, (x, y, z))
        return x, y, z

    @property
    def requires_grad(self) -> bool:
        """Whether gradients with respect to D or the rate are asked for."""
        return self.rate_per_day.requires_grad or self.diffusivity_mm2_per_day[0].requires_grad

    def part(self, box: Box) -> Medium:
        """The medium in a box, walled off from the rest; time steps stay those of the whole."""
        x, y, z = box
        key = tuple((s.start, s.stop) for s in box)
        if key not in self._parts:
            dx, dy, dz = (d[..., x, y, z] for d in self.diffusivity_mm2_per_day)
            links = self.links and self.links.part(box)
            cut = replace(self, diffusivity_mm2_per_day=(dx, dy, dz), links=links)
            _keep(self._parts, key, cut)
        return self._parts[key]

    def without(self, cavity: Bool[Tensor, "x y z"]) -> Medium:
        """The same after surgery: no cell lives in the cavity, or crosses it."""
        x, y, z = (torch.where(cavity, 0, d) for d in self.diffusivity_mm2_per_day)
        links = self.links and self.links.without(cavity)
        return replace(self, diffusivity_mm2_per_day=(x, y, z), links=links)


def medium(
    tissue: Integer[Tensor, "*batch x y z"],
    growth: Growth | Sequence[Growth],
    *,
    spacing_mm: Spacing,
    dtype: torch.dtype,
    allow_coarse: bool,
) -> Medium:
    """What ``growth`` meets in ``tissue`` (labels of ``TISSUES``, 0 outside the brain).

    Args:
        growth: one law, or a batch of them: each is met in the one tissue map, or in a map of its own.
        allow_coarse: match D to the grid in tissues whose front is narrower than a voxel.

    Raises:
        PhysicsRefusal: an unknown label, or (unless allowed) a front narrower than a voxel in a tissue
            that is there (``grid_too_coarse``).
    """
    check_tissue(tissue)
    laws = [growth] if isinstance(growth, Growth) else list(growth)
    found = [resolution(law, spacing_mm) for law in laws]
    worst = Resolution(white=max(r.white for r in found), grey=max(r.grey for r in found))
    if not allow_coarse:
        refuse_coarse(worst, tissue)
    labels = tissue.long()

    def along(edge_mm: float) -> Tensor:
        of_label = torch.zeros((len(laws), len(TISSUES) + 1), dtype=dtype)
        for row, law in enumerate(laws):
            for name, d, width_mm in (
                ("white", law.diffusion_white_mm2_per_day, law.front_width_mm),
                ("grey", law.diffusion_grey_mm2_per_day, law.front_width_grey_mm),
            ):
                ratio = edge_mm / width_mm
                of_label[row, TISSUES[name]] = d * (matched_share(ratio) if ratio > 1 else 1)
        of_label = of_label.to(tissue.device)
        if isinstance(growth, Growth):
            return of_label[0][labels]
        if labels.ndim == 3:
            return of_label[:, labels]
        rows = torch.arange(len(laws), device=tissue.device)[:, None, None, None]
        return of_label[rows, labels]

    made = {edge: along(edge) for edge in set(spacing_mm)}
    rate = torch.tensor([law.rate_per_day for law in laws], dtype=dtype, device=tissue.device)
    x, y, z = (made[edge] for edge in spacing_mm)
    return Medium(
        diffusivity_mm2_per_day=(x, y, z),
        rate_per_day=rate[0] if isinstance(growth, Growth) else rate,
        spacing_mm=spacing_mm,
        resolution=worst,
    )


def fields(
    diffusivity_mm2_per_day: Float[Tensor, "*batch x y z"],
    rate_per_day: Float[Tensor, "*batch"],
    *,
    spacing_mm: Spacing,
) -> Medium:
    """A medium from a field of D and a rate that may both carry gradients."""
    d = diffusivity_mm2_per_day
    return Medium(
        diffusivity_mm2_per_day=(d, d, d),
        rate_per_day=rate_per_day,
        spacing_mm=spacing_mm,
        resolution=None,
    )


def fibres(
    tissue: Integer[Tensor, "x y z"],
    growth: Growth,
    *,
    tensor: Float[Tensor, "3 3 x y z"],
    spacing_mm: Spacing,
    dtype: torch.dtype,
    allow_coarse: bool,
) -> Medium:
    """As ``medium``, with D times ``tensor`` in white matter.

    Args:
        tensor: symmetric, of trace 3 where D is to stay the same on average over directions.

    Raises:
        PhysicsRefusal: as ``medium``; a tensor that the grid cannot carry (``tensor``).
    """
    plain = medium(tissue, growth, spacing_mm=spacing_mm, dtype=dtype, allow_coarse=allow_coarse)
    directed = (tissue == TISSUES["white"]).to(dtype)
    scale = torch.stack(plain.diffusivity_mm2_per_day).sqrt()
    identity = torch.eye(3, dtype=dtype)[..., None, None, None]
    relative = identity + directed * (tensor.to(dtype) - identity)
    d = relative * scale[:, None] * scale[None]
    return replace(plain, links=lattice(d, solid=plain.solid, spacing_mm=spacing_mm))


def check_tissue(tissue: Integer[Tensor, "*batch x y z"]) -> None:
    """Refuse labels that are not tissue.

    Raises:
        PhysicsRefusal: code ``tissue_label``.
    """
    if int(tissue.min()) < 0 or int(tissue.max()) > len(TISSUES):
        raise PhysicsRefusal(
            "a tissue map with an unknown label",
            allowed="0 outside, 1 CSF, 2 grey, 3 white",
            next="relabel the tissue map",
            code="tissue_label",
        )


def refuse_coarse(found: Resolution, tissue: Integer[Tensor, "*batch x y z"]) -> None:
    """Refuse a grid that is coarse for a tissue that is there.

    Raises:
        PhysicsRefusal: code ``grid_too_coarse``.
    """
    present = [name for name in found.coarse if bool((tissue == TISSUES[name]).any())]
    if present:
        worst = max(getattr(found, name) for name in present)
        raise PhysicsRefusal(
            f"voxels {worst:.2f} times as long as the tumour front is wide in {' and '.join(present)}",
            allowed="1 at most",
            next="use smaller voxels, let the solver refine, or allow a coarse grid",
            code="grid_too_coarse",
        )


def _keep(kept: OrderedDict[K, V], key: K, value: V) -> None:
    """Remember the last few."""
    kept[key] = value
    if len(kept) > KEPT:
        kept.popitem(last=False)
