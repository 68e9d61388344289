"""How is diffusion along one axis solved, exactly reversed in time, and differentiated?

One Crank–Nicolson step of length s along every line of an axis: ``(1 + B) y = u``, result ``2 y - u``, with
B the symmetric tridiagonal matrix of ``s D / (2 h²)`` on voxel faces (harmonic mean of the two voxels; a face
with fluid on one side carries nothing). Its eigenvalues lie in [0, 1) where ``s D <= h²``: then the explicit
half is a convex combination and 0 <= u <= 1 stays. B is symmetric, so the gradient of the step with
respect to u is the step itself, and with respect to the weight of the face between voxels i - 1 and i it
is ``-2 (λ_i - λ_{i-1}) (y_i - y_{i-1})`` where ``(1 + B) λ`` is the gradient that comes in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Lines:
    """The factored system of all lines along ``dim`` (-3, -2 or -1), that axis first.

    ``face``: s D / (2 h²) of each face; ``share``: face over pivot, what a voxel takes from its neighbour;
    ``scale``: one over pivot.
    """

    dim: int
    face: Float[Tensor, "face ..."]
    share: Float[Tensor, "n ..."]
    scale: Float[Tensor, "n ..."]


def lines(
    diffusivity: Float[Tensor, "*batch x y z"], *, dim: int, edge_mm: float, dt_day: float
) -> Lines:
    """Factor the system of one step of ``dt_day`` along ``dim``."""
    d = diffusivity.movedim(dim, 0).contiguous()
    left, right = d[:-1], d[1:]
    joined = left * right > 0
    mean = torch.where(joined, 2 * left * right / torch.where(joined, left + right, 1), 0)
    wall = torch.zeros_like(d[:1])
    face = torch.cat([wall, mean * (dt_day / (2 * edge_mm**2)), wall])
    with torch.no_grad():
        pivot = 1 + face[:-1] + face[1:]
        share = torch.zeros_like(d)
        for i in range(d.shape[0]):
            if i:
                pivot[i].addcmul_(face[i], share[i - 1], value=-1)
            torch.div(face[i + 1], pivot[i], out=share[i])
    return Lines(dim=dim, face=face, share=share, scale=1 / pivot)


def spread(
    us: Float[Tensor, "population *batch x y z"], along: Lines
) -> Float[Tensor, "population *batch x y z"]:
    """One Crank–Nicolson step; the sum of each population stays."""
    before = us.movedim(along.dim, 0)
    after: Tensor = _Step.apply(before, along.face, along.share, along.scale)  # type: ignore[no-untyped-call]  # torch ships no type of apply
    return after.movedim(0, along.dim)


def _solve(right: Tensor, share: Tensor, scale: Tensor) -> Tensor:
    """(1 + B)⁻¹ of each line, by elimination forwards and back."""
    y = right.clone(memory_format=torch.contiguous_format)
    rows, shares = y.unbind(0), share.unbind(0)
    for i in range(1, len(rows)):
        rows[i].addcmul_(shares[i - 1], rows[i - 1])
    y *= scale[:, None]
    for i in range(len(rows) - 2, -1, -1):
        rows[i].addcmul_(shares[i], rows[i + 1])
    return y


class _Step(torch.autograd.Function):
    """(1 + B)⁻¹ (1 - B) u, which is 2 (1 + B)⁻¹ u - u: one solve and no product with B."""

    @staticmethod
    def forward(ctx: Any, before: Tensor, face: Tensor, share: Tensor, scale: Tensor) -> Tensor:
        y = _solve(before, share, scale)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(y, share, scale)
            return 2 * y - before
        return y.mul_(2).sub_(before)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, share, scale = ctx.saved_tensors
        (grad,) = grads
        adjoint = _solve(grad, share, scale)
        of_face: Tensor | None = None
        if ctx.needs_input_grad[1]:
            inner = -2 * (adjoint.diff(dim=0) * y.diff(dim=0)).sum(dim=1)
            wall = torch.zeros_like(inner[:1])
            of_face = torch.cat([wall, inner, wall])
        return 2 * adjoint - grad, of_face, None, None
