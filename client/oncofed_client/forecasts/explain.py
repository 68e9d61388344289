"""What did a forecast rest on, and is that answer to be trusted?

By condition: each one is taken away as a hospital would lack it, from physics too, the futures are drawn
again from the same noise, and the volumes are compared sample by sample. By place: the images are blanked
cube by cube around the tumour, and the expected outline's shift is measured. Whether the places are right
is tested, not assumed: cubes are blanked one after another, most important first, and the forecast must
move faster than when they are blanked in random order (the deletion curve of Petsiuk et al. 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from numpy import ndarray
from torch import Tensor

from oncofed_common.cohort import CHANNELS
from oncofed_common.diffusion import noise
from oncofed_common.diffusion.generate import Sampling, futures, narrowed
from oncofed_common.errors import CohortRefusal
from oncofed_common.metrics.scores import log_volume
from oncofed_common.model.dropout import EVERYTHING, LOSS_RATES
from oncofed_common.model.network import Network, device_of
from oncofed_common.model.prepare import FIELDS, VISIT_CHANNELS, Query
from oncofed_common.model.regions import REGIONS, labels_from, volumes_ml

WHOLE = list(REGIONS).index("whole")
CUBE = 4
"""Edge of a blanked cube, in voxels of the window."""
SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Points of the deletion curve: shares of the cubes that are blanked."""
RANDOM_ORDERS = 5
ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What mattered.

    Args:
        conditions: for each condition the patient has, by how much the log volume moves without it:
            mean of the absolute change, and mean change.
        places_mm: how far the expected outline moves when the images are blanked there, per cube, 0
            elsewhere. shares: of cubes blanked, the abscissa of the curves. most_first_mm, random_mm:
            how far the outline has moved by then, the latter the mean of random orders.
    """

    conditions: Mapping[str, tuple[float, float]]
    places_mm: Float32[ndarray, "x y z"]
    shares: tuple[float, ...]
    most_first_mm: tuple[float, ...]
    random_mm: tuple[float, ...]

    @property
    def faithful(self) -> bool:
        """Does blanking the named places first move the forecast faster than blanking any?"""
        return _area(self.shares, self.most_first_mm) > _area(self.shares, self.random_mm)


def explain(
    network: Network, asked: Query, how: Sampling, *, seed: int, lacking: Callable[[str], Query]
) -> Explanation:
    """Explain the forecast of ``asked`` that ``how`` and ``seed`` give.

    Args:
        lacking: the same question without a condition: ``model.lacking.ask_without``.
    """
    whole = _log_volumes(network, asked, how, seed)
    conditions, known = {}, [asked]
    for name in LOSS_RATES:
        if name == EVERYTHING:
            continue
        try:
            bare = lacking(name)
        except CohortRefusal:
            continue  # without it there is nothing to forecast
        if any(_same(bare, one) for one in known):
            continue  # the patient does not have it, or losing it is losing another one
        known.append(bare)
        moved = _log_volumes(network, bare, how, seed) - whole
        conditions[name] = (float(np.abs(moved).mean()), float(moved.mean()))
    places = _Places(network, asked, how, seed)
    effects = places.moved_mm([[cube] for cube in places.cubes])
    order = [int(at) for at in np.argsort(-effects, kind="stable")]
    rng = np.random.default_rng(seed)
    others = [[int(at) for at in rng.permutation(len(order))] for _ in range(RANDOM_ORDERS)]
    most_first, *random = (places.curve(one) for one in (order, *others))
    found = np.zeros(asked.reference.shape[1:], dtype=np.float32)
    for cube, effect in zip(places.cubes, effects, strict=True):
        found[cube] = effect
    return Explanation(
        conditions=dict(sorted(conditions.items(), key=lambda entry: -entry[1][0])),
        places_mm=found,
        shares=SHARES,
        most_first_mm=tuple(most_first),
        random_mm=tuple(float(v) for v in np.mean(random, axis=0)),
    )


def as_dict(found: Explanation) -> dict[str, Any]:
    """What ``forecast.json`` holds of it."""
    return {
        "conditions": {
            name: {"mean_absolute_log_volume": size, "mean_log_volume": move}
            for name, (size, move) in found.conditions.items()
        },
        "deletion": {
            "share": list(found.shares),
            "most_first_mm": list(found.most_first_mm),
            "random_mm": list(found.random_mm),
        },
        "faithful": found.faithful,
    }


Cube = tuple[slice, slice, slice]


class _Places:
    """Blanked images and the outline that is then expected: one evaluation at the noisy end of the path."""

    def __init__(self, network: Network, asked: Query, how: Sampling, seed: int) -> None:
        self._network, self._asked, self._how = network, asked, how
        generator = torch.Generator().manual_seed(seed)
        shape, spacing_mm = (1, *asked.reference.shape), network.preset.spacing_mm
        self._noise = noise.draw(shape, spacing_mm=spacing_mm, generator=generator)
        near = np.abs(asked.reference[WHOLE].numpy()) < 1.0
        self.cubes = list(_cubes(near))
        self._full = self._expected([asked.conditions])[0]

    def moved_mm(self, blanked: Sequence[Sequence[Cube]]) -> Float[ndarray, " row"]:
        """For each list of cubes, how far the expected outline has moved with all of them blank."""
        found = []
        for first in range(0, len(blanked), ROWS):
            rows = [self._blank(cubes) for cubes in blanked[first : first + ROWS]]
            found.append((self._expected(rows) - self._full).abs().mean(dim=(1, 2, 3)).numpy())
        return np.concatenate(found) if found else np.zeros(0)

    def curve(self, order: Sequence[int]) -> list[float]:
        """How far the outline has moved after each of ``SHARES`` of the cubes, in that order."""
        cubes = [self.cubes[at] for at in order]
        steps = [cubes[: round(share * len(cubes))] for share in SHARES]
        return [float(v) for v in self.moved_mm(steps)]

    def _blank(self, cubes: Sequence[Cube]) -> Float[Tensor, "condition x y z"]:
        conditions = self._asked.conditions.clone()
        for slot in range(self._network.preset.history):
            first = slot * VISIT_CHANNELS + FIELDS - len(CHANNELS)
            for cube in cubes:
                conditions[first : first + len(CHANNELS), *cube] = 0.0
        return conditions

    def _expected(self, rows: Sequence[Tensor]) -> Float[Tensor, "row x y z"]:
        device, preset = device_of(self._network), self._network.preset
        with torch.inference_mode(), narrowed(device, self._how.dtype):
            tokens = self._asked.tokens.expand(len(rows), -1, -1)
            context = self._network.context(torch.stack(list(rows)).to(device), tokens.to(device))
            angle = torch.full((len(rows),), torch.pi / 2, device=device)
            noised = self._noise.expand(len(rows), -1, -1, -1, -1).to(device)
            change: Tensor = self._network(noised, angle, context)[:, WHOLE].float().cpu()
        return change * (preset.distance_limit_mm / preset.distance_gain)


def _cubes(near: Bool[ndarray, "x y z"]) -> Sequence[Cube]:
    corners = product(*(range(0, size, CUBE) for size in near.shape))
    cubes = [(slice(x, x + CUBE), slice(y, y + CUBE), slice(z, z + CUBE)) for x, y, z in corners]
    return [cube for cube in cubes if near[cube].any()]


def _log_volumes(
    network: Network, asked: Query, how: Sampling, seed: int
) -> Float[ndarray, " sample"]:
    drawn = futures(network, asked, how, seed=seed).numpy()
    labels = [labels_from(state[: len(REGIONS)]) for state in drawn]
    return log_volume(np.array([volumes_ml(one, network.preset)[WHOLE] for one in labels]))


def _same(one: Query, other: Query) -> bool:
    return torch.equal(one.conditions, other.conditions) and torch.equal(one.tokens, other.tokens)


def _area(shares: Sequence[float], values: Sequence[float]) -> float:
    return float(np.trapezoid(values, shares))
