"""How does a tumour spread along fibres, where D is a tensor?

``div(D grad u)`` as a sum over pairs of voxels: Selling's reduction (Selling 1874; for diffusion Fehrenbach &
Mirebeau, J. Math. Imaging Vis. 49, 2014) writes each voxel's tensor, in units of the grid, as
``D = Σ λ_e e eᵀ`` with whole-numbered offsets e and no negative λ. So every pair exchanges cells in
proportion to their difference: nothing is made or lost, and an explicit step no longer than one over the
largest sum of weights keeps 0 <= u <= 1, whatever the direction of the fibres. A pair is linked only if
every voxel of the box that it spans holds tissue: no step jumps over fluid.

Time: Heun's scheme as an average of two such steps (Shu & Osher, J. Comput. Phys. 77, 1988), second order.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from oncofed_common.errors import PhysicsRefusal
from oncofed_common.physics.growth import Spacing

PAIRS = tuple(itertools.combinations(range(4), 2))
MOST_REDUCTIONS = 60
LARGEST_OFFSET = 4
Offset = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """Links between voxels. ``weight_per_day``: for each offset, of the pair (x, x + offset), stored at x."""

    weight_per_day: dict[Offset, Float[Tensor, "x y z"]]
    longest_step_day: float

    def spread(
        self, us: Float[Tensor, "population *batch x y z"], *, dt_day: float
    ) -> Float[Tensor, "population *batch x y z"]:
        """Diffusion alone for ``dt_day``, in as many equal steps as stay within the bound."""
        steps = max(1, math.ceil(dt_day / self.longest_step_day))
        short = dt_day / steps
        for _ in range(steps):
            once = us + short * self._change(us)
            us = (us + once + short * self._change(once)) / 2
        return us

    def without(self, cavity: Bool[Tensor, "x y z"]) -> Lattice:
        """The same, with no link that touches ``cavity`` or jumps over it."""
        kept: dict[Offset, Tensor] = {}
        for offset, weight in self.weight_per_day.items():
            here, _ = _ends(offset, weight.shape)
            kept[offset] = torch.zeros_like(weight)
            kept[offset][here] = torch.where(_joined(~cavity, offset), weight[here], 0)
        return replace(self, weight_per_day=kept)

    def part(self, box: tuple[slice, slice, slice]) -> Lattice:
        """The links within a box."""
        x, y, z = box
        return replace(self, weight_per_day={e: w[x, y, z] for e, w in self.weight_per_day.items()})

    def _change(self, us: Tensor) -> Tensor:
        change = torch.zeros_like(us)
        for offset, weight in self.weight_per_day.items():
            here, there = _ends(offset, us.shape[-3:])
            flow = weight[here] * (_part(us, there) - _part(us, here))
            _part(change, here).add_(flow)
            _part(change, there).sub_(flow)
        return change


def lattice(
    tensor_mm2_per_day: Float[Tensor, "3 3 x y z"],
    *,
    solid: Bool[Tensor, "x y z"],
    spacing_mm: Spacing,
) -> Lattice:
    """The links of a field of symmetric, positive definite tensors.

    Raises:
        PhysicsRefusal: code ``tensor``; a tensor of a solid voxel that is not symmetric and positive
            definite, or so elongated that its links would reach over ``LARGEST_OFFSET`` voxels.
    """
    edge = torch.tensor(spacing_mm, dtype=torch.float64)
    inside = solid.reshape(-1)
    d = tensor_mm2_per_day.double().reshape(3, 3, -1)[:, :, inside].permute(2, 0, 1)
    if not bool(torch.isfinite(d).all()) or not torch.allclose(d, d.mT):
        raise _refusal("a diffusion tensor that is not symmetric and finite")
    if d.shape[0] and not bool((torch.linalg.eigvalsh(d) > 0).all()):
        raise _refusal("a diffusion tensor that is not positive definite")
    offsets, weights = selling(d / (edge[:, None] * edge))
    if offsets.numel() and int(offsets.abs().max()) > LARGEST_OFFSET:
        raise _refusal("a diffusion tensor more elongated than the grid can carry")
    found: dict[Offset, Tensor] = {}
    dtype = tensor_mm2_per_day.dtype
    total = torch.zeros(solid.shape, dtype=torch.float64)
    base = 2 * LARGEST_OFFSET + 1
    codes = ((offsets + LARGEST_OFFSET) * torch.tensor([base * base, base, 1])).sum(dim=-1)
    for code in torch.unique(codes).tolist():
        e = [code // base**k % base - LARGEST_OFFSET for k in (2, 1, 0)]
        if not any(e):
            continue
        of_voxel = torch.zeros(inside.shape, dtype=torch.float64)
        of_voxel[inside] = (weights * (codes == code)).sum(dim=1)
        field = of_voxel.reshape(solid.shape)
        offset: Offset = (e[0], e[1], e[2])
        here, there = _ends(offset, solid.shape)
        if any(abs(step) >= n for step, n in zip(e, solid.shape, strict=True)):
            continue
        link = torch.zeros(solid.shape, dtype=torch.float64)
        link[here] = torch.where(_joined(solid, offset), (field[here] + field[there]) / 2, 0)
        total += link
        total[there] += link[here]
        if bool(link.any()):
            found[offset] = link.to(dtype)
    largest = float(total.max())
    return Lattice(weight_per_day=found, longest_step_day=1 / largest if largest else math.inf)


def selling(
    d: Float[Tensor, "voxel 3 3"],
) -> tuple[Int64[Tensor, "voxel 6 3"], Float[Tensor, "voxel 6"]]:
    """Offsets and weights with ``d = Σ λ e eᵀ``, λ >= 0; of e and -e one only."""
    base = torch.cat([torch.eye(3), -torch.ones(1, 3)]).double().expand(len(d), 4, 3).clone()
    for _ in range(MOST_REDUCTIONS):
        settled = True
        for i, j in PAIRS:
            dot = torch.einsum("va,vab,vb->v", base[:, i], d, base[:, j])
            acute = dot > 1e-12 * d.diagonal(dim1=1, dim2=2).sum(dim=1)
            if bool(acute.any()):
                settled = False
                others = [k for k in range(4) if k not in (i, j)]
                turned = base[acute, i]
                base[acute, i] = -turned
                for k in others:
                    base[acute, k] += turned
        if settled:
            break
    else:
        raise _refusal("a diffusion tensor that cannot be reduced")
    offsets, weights = [], []
    for i, j in PAIRS:
        k, m = (n for n in range(4) if n not in (i, j))
        e = torch.linalg.cross(base[:, k], base[:, m]).round().long()
        first = torch.where(e[:, 0] != 0, e[:, 0], torch.where(e[:, 1] != 0, e[:, 1], e[:, 2]))
        offsets.append(e * torch.where(first < 0, -1, 1)[:, None])
        weights.append(-torch.einsum("va,vab,vb->v", base[:, i], d, base[:, j]).clamp(max=0))
    return torch.stack(offsets, dim=1), torch.stack(weights, dim=1)


def _ends(offset: Offset, shape: torch.Size) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The voxels x for which x + offset exists, and those x + offset."""
    here = tuple(slice(max(0, -e), n - max(0, e)) for e, n in zip(offset, shape, strict=True))
    there = tuple(slice(max(0, e), n - max(0, -e)) for e, n in zip(offset, shape, strict=True))
    return here, there


def _part(us: Tensor, window: tuple[slice, ...]) -> Tensor:
    """A view of the last three axes."""
    x, y, z = window
    return us[..., x, y, z]


def _joined(solid: Bool[Tensor, "x y z"], offset: Offset) -> Bool[Tensor, "a b c"]:
    """Whether every voxel of the box between x and x + offset is solid."""
    joined: Tensor | None = None
    sign = [1 if e >= 0 else -1 for e in offset]
    here, _ = _ends(offset, solid.shape)
    for part in itertools.product(*(range(abs(e) + 1) for e in offset)):
        moved = tuple(
            slice(s.start + sg * p, s.stop + sg * p)
            for s, sg, p in zip(here, sign, part, strict=True)
        )
        joined = solid[moved] if joined is None else joined & solid[moved]
    assert joined is not None, "a box holds its corners"
    return joined


def _refusal(found: str) -> PhysicsRefusal:
    return PhysicsRefusal(
        found,
        allowed=f"symmetric, positive definite tensors whose links reach {LARGEST_OFFSET} voxels at most",
        next="correct the tensors, or make them less elongated",
        code="tensor",
    )
