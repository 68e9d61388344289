"""Do the files of a visit, and the visits of a patient, lie on top of each other?

Every volume is sampled through its affine onto one coarse lattice of world points (multiples of
``PITCH_MM``, the same for all files), which makes files on different grids comparable cell by cell.
Three questions are asked there:

    elsewhere  does the head of this file cover the head of the others?  |A ∩ B| / min(|A|, |B|)
    off brain  is the outline in the head (in the brain, where there is a mask)?
    mirrored   does this file share more information with the others when it is mirrored?

The information is the mutual information of binned values, which needs no common contrast (Viola &
Wells 1997), times the number of cells: a log-likelihood ratio in nats, so that evidence from many
files adds up. Where files disagree, the majority is right; between two, neither is trusted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int8
from scipy import ndimage

from oncofed_common.cohort import Volume
from oncofed_common.resample import resampled

PITCH_MM = 6.0
BINS = 16
COVERED = 0.6
"""Heads of two images must share this part of the smaller one."""
INSIDE = 0.5
"""This part of an outline must lie in the head."""
EVIDENCE_NATS = 40.0
EVIDENCE_SHARE = 0.25
"""A mirrored fit must win by this much, and by this share of the fit as it stands."""
PLENTY_NATS = 2000.0
HOPELESS = 0.7
"""Where there is plenty of evidence, an eighth of it tells which mirror images are not worth the rest."""

_FLIPS = [axes for n in (1, 2, 3) for axes in itertools.combinations(range(3), n)]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A volume on the lattice: cell (i, j, k) lies at ``PITCH_MM`` * (``origin`` + (i, j, k)).

    ``level`` is the bin of the value, -1 outside the field of view; ``solid`` is the foreground;
    ``telling`` is where the level says something: in the foreground of an image or a tissue map, and
    everywhere in the view of an outline, whose edge is what it says. ``centre_mm`` is the middle of the
    field of view.
    """

    origin: tuple[int, ...]
    level: Int8[np.ndarray, "x y z"]
    solid: Bool[np.ndarray, "x y z"]
    telling: Bool[np.ndarray, "x y z"]
    centre_mm: tuple[float, ...]


def probe_image(volume: Volume) -> Probe:
    """An image: solid is what differs from the air around it, with its cavities filled."""
    origin, values = _sample(volume, order=1)
    seen = np.isfinite(values)
    solid = np.zeros(values.shape, dtype=bool)
    level = np.full(values.shape, -1, dtype=np.int8)
    if seen.any():
        solid[seen] = _foreground(values[seen])
        inner = values[solid] if solid.any() else values[seen]
        low, high = (float(edge) for edge in np.quantile(inner, (0.005, 0.995)))
        edges = np.linspace(low, high, BINS + 1)[1:-1]
        level[seen] = np.searchsorted(edges, values[seen])
        solid = ndimage.binary_fill_holes(ndimage.binary_closing(solid) | solid)
    return Probe(
        origin=origin,
        level=level,
        solid=solid,
        telling=solid & (level >= 0),
        centre_mm=_centre_mm(volume),
    )


def probe_outline(volume: Volume) -> Probe:
    """An outline or a mask: solid is every cell that holds a marked voxel, however small."""
    origin, values = _sample(volume, order=0)
    seen = np.isfinite(values)
    level = np.where(seen, np.nan_to_num(values), -1).astype(np.int8)
    solid = level > 0
    voxels = np.argwhere(volume.data > 0)
    voxels = voxels[:: len(voxels) // 10_000 + 1]
    world_mm = voxels @ volume.affine_mm[:3, :3].T + volume.affine_mm[:3, 3]
    cells = np.rint(world_mm / PITCH_MM).astype(int) - np.array(origin)
    cells = np.clip(cells, 0, np.array(solid.shape) - 1)
    solid[tuple(cells.T)] = True
    return Probe(
        origin=origin, level=level, solid=solid, telling=seen, centre_mm=_centre_mm(volume)
    )


def probe_tissue(volume: Volume) -> Probe:
    """A tissue map: only the tissues tell, not where the map ends."""
    probe = probe_outline(volume)
    return replace(probe, telling=probe.level > 0)


def whole_view(probe: Probe) -> Probe:
    """The same probe, telling also where the background is: a mask is judged by its edge."""
    return replace(probe, telling=probe.level >= 0)


def head(probes: Sequence[Probe]) -> Probe:
    """The union of what several probes call solid; its level is 0 or 1."""
    low = np.min([probe.origin for probe in probes], axis=0)
    high = np.max([np.add(probe.origin, probe.solid.shape) for probe in probes], axis=0)
    solid = np.zeros(tuple(high - low), dtype=bool)
    for probe in probes:
        start = np.subtract(probe.origin, low)
        place = tuple(slice(a, a + n) for a, n in zip(start, probe.solid.shape, strict=True))
        solid[place] |= probe.solid
    return Probe(
        origin=tuple(int(i) for i in low),
        level=solid.astype(np.int8),
        solid=solid,
        telling=solid,
        centre_mm=tuple(float(c) for c in (low + high - 1) * PITCH_MM / 2),
    )


def shared(a: Probe, b: Probe) -> float:
    """|A ∩ B| / min(|A|, |B|) of the solid cells, 0 to 1; 1 if one of them has none."""
    fewest = min(int(a.solid.sum()), int(b.solid.sum()))
    if fewest == 0:
        return 1.0
    places = _common(a, b)
    return (
        0.0 if places is None else float((a.solid[places[0]] & b.solid[places[1]]).sum()) / fewest
    )


def inside(part: Probe, whole: Probe) -> float:
    """The share of ``part``'s solid cells that are solid in ``whole``, 0 to 1; 1 if there are none."""
    count = int(part.solid.sum())
    places = _common(part, whole)
    if count == 0:
        return 1.0
    if places is None:
        return 0.0
    return float((part.solid[places[0]] & whole.solid[places[1]]).sum()) / count


def displaced(probes: Sequence[Probe]) -> list[bool]:
    """Which of several heads lies elsewhere than most of the others."""
    apart = [
        [i != j and shared(a, b) < COVERED for j, b in enumerate(probes)]
        for i, a in enumerate(probes)
    ]
    return [sum(row) > (len(probes) - 1) / 2 for row in apart]


def mirrored(items: Sequence[Sequence[Probe]]) -> list[bool]:
    """Which of several items (a file, or the files of a visit) fits the others better mirrored."""
    return [
        mirror_wins(item, [probe for j, other in enumerate(items) if j != i for probe in other])
        for i, item in enumerate(items)
    ]


def mirror_wins(item: Sequence[Probe], others: Sequence[Probe]) -> bool:
    """Does some mirror image of the item share clearly more information with the others?

    Two planes are tried for each set of axes: the middle of the view (an array stored the other way
    round) and the world's origin (LPS+ coordinates taken for RAS+).
    """
    as_is = _evidence(item, others)
    bar = as_is + max(EVIDENCE_NATS, EVIDENCE_SHARE * as_is)
    rough = _evidence(item, others, step=2) if as_is > PLENTY_NATS else 0.0
    return any(
        _evidence(turned, others) > bar
        for turned in _mirror_images(item)
        if not rough or _evidence(turned, others, step=2) > HOPELESS * rough
    )


def _evidence(item: Sequence[Probe], others: Sequence[Probe], *, step: int = 1) -> float:
    return sum((_information_nats(a, b, step=step) for a in item for b in others), start=0.0)


def _information_nats(a: Probe, b: Probe, *, step: int) -> float:
    """Cells in common × mutual information of the levels there; of every ``step``-th cell an axis."""
    places = _common(a, b)
    if places is None:
        return 0.0
    here, there = places
    every = (slice(None, None, step),) * 3
    told = a.telling[here][every] & b.telling[there][every]
    pairs = a.level[here][every][told].astype(np.intp) * BINS + b.level[there][every][told]
    joint = np.bincount(pairs, minlength=BINS * BINS).reshape(BINS, BINS).astype(float)
    total = joint.sum()
    if total == 0:
        return 0.0
    alone = np.outer(joint.sum(1), joint.sum(0)) / total
    some = joint > 0
    return float((joint[some] * np.log(joint[some] / alone[some])).sum())


def _mirror_images(item: Sequence[Probe]) -> Iterator[list[Probe]]:
    """Every mirror image worth trying, the likeliest first."""
    for axes in _FLIPS:
        middle = [_mirror(probe, axes, about_mm=probe.centre_mm) for probe in item]
        yield middle
        origin = [_mirror(probe, axes, about_mm=(0.0, 0.0, 0.0)) for probe in item]
        if any(a.origin != b.origin for a, b in zip(middle, origin, strict=True)):
            yield origin


def _mirror(probe: Probe, axes: tuple[int, ...], *, about_mm: tuple[float, ...]) -> Probe:
    """The probe mirrored along ``axes`` in planes through ``about_mm``."""
    origin = list(probe.origin)
    for axis in axes:
        last = probe.origin[axis] + probe.solid.shape[axis] - 1
        origin[axis] = round(2 * about_mm[axis] / PITCH_MM) - last
    return replace(
        probe,
        origin=tuple(origin),
        level=np.flip(probe.level, axes),
        solid=np.flip(probe.solid, axes),
        telling=np.flip(probe.telling, axes),
    )


def _common(a: Probe, b: Probe) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Where the two lattices overlap, as slices into each; None where they do not."""
    here, there = [], []
    for oa, na, ob, nb in zip(a.origin, a.solid.shape, b.origin, b.solid.shape, strict=True):
        low, high = max(oa, ob), min(oa + na, ob + nb)
        if low >= high:
            return None
        here.append(slice(low - oa, high - oa))
        there.append(slice(low - ob, high - ob))
    return tuple(here), tuple(there)


def _corners_mm(volume: Volume) -> Float[np.ndarray, "8 3"]:
    last = np.array(volume.data.shape) - 1
    corners = np.array(list(itertools.product((0, 1), repeat=3))) * last
    return np.asarray(corners @ volume.affine_mm[:3, :3].T + volume.affine_mm[:3, 3])


def _centre_mm(volume: Volume) -> tuple[float, ...]:
    return tuple(float(c) for c in _corners_mm(volume).mean(axis=0))


def _sample(
    volume: Volume, *, order: Literal[0, 1]
) -> tuple[tuple[int, ...], Float32[np.ndarray, "x y z"]]:
    """Values at the lattice points of the field of view, NaN where a point lies outside it."""
    corners = _corners_mm(volume) / PITCH_MM
    low = np.floor(corners.min(axis=0)).astype(int)
    shape = np.ceil(corners.max(axis=0)).astype(int) - low + 1
    lattice = np.diag([PITCH_MM] * 3 + [1.0])
    lattice[:3, 3] = low * PITCH_MM
    values = resampled(
        volume.data,
        np.linalg.inv(volume.affine_mm) @ lattice,
        shape=tuple(int(n) for n in shape),
        order=order,
        outside=np.nan,
    )
    return tuple(int(i) for i in low), values


def _foreground(values: Float[np.ndarray, " cell"]) -> Bool[np.ndarray, " cell"]:
    """Cells that differ from the background by a tenth of the largest difference there is.

    The background is the most common value if a quarter of all cells hold it (air, or the zeros around
    a stripped brain, which need not be the lowest value), otherwise the darkest.
    """
    low, high = np.quantile(values, (0.005, 0.995))
    counts, edges = np.histogram(values, bins=64, range=(float(low), float(high) + 1e-6))
    most = int(counts.argmax())
    common = counts[most] >= 0.25 * values.size
    background = (edges[most] + edges[most + 1]) / 2 if common else low
    apart = np.abs(values - background)
    return np.asarray(apart > 0.1 * max(high - background, background - low))
