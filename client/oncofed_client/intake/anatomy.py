"""Where is the brain of this patient, and which tissue is where in it?

The MNI152 atlas is laid on the first visit: rigidly first, then stretched and sheared. Its maps of grey and
white matter, blurred by what an affine fit leaves open, are the prior; where there is a T1-weighted image,
its own intensities decide between fluid, grey and white together with that prior (a mixture of three
Gaussians fitted by expectation and maximisation; Ashburner & Friston, NeuroImage 26, 2005, without its
warps). A tumour tells nothing of healthy tissue: inside its outline the prior decides alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from numpy.typing import NDArray
from scipy import ndimage

from oncofed_client.intake.lattice import Lattice, on_lattice
from oncofed_client.intake.registration import Move, affine, moved
from oncofed_client.readers.atlas import Atlas
from oncofed_common.cohort import TISSUES, Volume
from oncofed_common.resample import resampled

PITCH_MM = 1.5
MOST_BRAIN_ML = 2600.0
"""More than this that is no air is a head, not a brain."""
SOFT_MM = 2.5
"""How far the folds of a brain lie from where an affine fit of the average puts them, about."""
SPARE_MM = 2.0
"""An edge of the brain is cut off no closer than this."""
ROUNDS = 12
LEAST_PRIOR = 0.02


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """In the world of the first visit: ``brain`` 0 and 1, ``tissue`` in values of ``TISSUES``; ``to_atlas``
    turns and shifts that world onto the atlas', without stretching."""

    brain: Volume
    tissue: Volume
    to_atlas: Move


def anatomy(image: Volume, atlas: Atlas, *, tumor: Volume, is_t1: bool) -> Anatomy:
    """Brain and tissue of a head, with skull or without.

    Args:
        image: of the first visit, the T1-weighted one if there is one.
        is_t1: whether it is T1-weighted, with or without contrast.
    """
    turn, stretch = affine(atlas.t1, image, within=atlas.brain, without=tumor)
    back = np.linalg.inv(stretch.move)
    here = _around(moved(atlas.brain, back))
    grey = _prior(here, moved(atlas.grey, back))
    white = _prior(here, moved(atlas.white, back))
    skull_free = here.sampled(moved(atlas.brain, back), order=1) > 0.5
    lesion = here.sampled(tumor) > 0
    values = here.sampled(image, order=1)
    brain = _own_brain(here, image) if is_stripped(image) else skull_free
    brain = ndimage.binary_fill_holes(brain | lesion)
    healthy = brain & ~lesion
    shares = np.stack([1 - grey - white, grey, white]).clip(LEAST_PRIOR, 1)
    shares /= shares.sum(axis=0)
    if is_t1:
        shares = _with_intensities(shares, values, healthy)
    order = np.array([TISSUES["CSF"], TISSUES["grey"], TISSUES["white"]], dtype=np.uint8)
    tissue = np.where(brain, order[shares.argmax(axis=0)], 0)
    return Anatomy(
        brain=here.holding(brain).volume(np.uint8),
        tissue=here.holding(tissue).volume(np.uint8),
        to_atlas=turn.move,
    )


def is_stripped(image: Volume) -> bool:
    """Was everything outside the brain set to one value?"""
    values = on_lattice(image, pitch_mm=3.0).values
    inside = values != 0
    filled = ndimage.binary_fill_holes(inside)
    return bool((values == 0).mean() > 0.25 and float(filled.sum()) * 0.027 < MOST_BRAIN_ML)


def in_brain(image: Volume, brain: Volume) -> Bool[ndarray, "x y z"]:
    """The voxels of ``image`` that lie in the brain, or no farther outside than ``SPARE_MM``."""
    wide = ndimage.distance_transform_edt(brain.data == 0, sampling=brain.spacing_mm) <= SPARE_MM
    there = resampled(
        wide,
        np.linalg.inv(brain.affine_mm) @ image.affine_mm,
        shape=image.data.shape,
        order=1,
        outside=0.0,
    )
    return np.asarray(there > 0.5)


def _around(brain: Volume) -> Lattice:
    """A lattice over the atlas' brain as it lies on this head."""
    marked = np.argwhere(brain.data > 0)
    low, high = marked.min(axis=0), marked.max(axis=0)
    cut = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
    affine_mm = brain.affine_mm.copy()
    affine_mm[:3, 3] += affine_mm[:3, :3] @ low
    box = on_lattice(Volume(data=brain.data[cut], affine_mm=affine_mm), pitch_mm=PITCH_MM)
    spare = 8
    origin = tuple(x - spare * PITCH_MM for x in box.origin_mm)
    values = np.pad(np.zeros_like(box.values), spare)
    return Lattice(values=values, origin_mm=(origin[0], origin[1], origin[2]), pitch_mm=PITCH_MM)


def _prior(here: Lattice, share: Volume) -> NDArray[np.float32]:
    soft = ndimage.gaussian_filter(share.data, SOFT_MM / 2.355, truncate=3)
    return here.sampled(Volume(data=soft, affine_mm=share.affine_mm), order=1).clip(0, 1)


def _own_brain(here: Lattice, image: Volume) -> NDArray[np.bool_]:
    """What a stripped image shows: its largest piece, without holes."""
    shown = Volume(data=image.data != 0, affine_mm=image.affine_mm)
    pieces, count = ndimage.label(here.sampled(shown, order=1) > 0.5)
    sizes = np.bincount(pieces.ravel(), minlength=2)
    sizes[0] = 0
    return np.asarray(pieces == (sizes.argmax() if count else -1))


def _with_intensities(
    prior: Float[ndarray, "3 x y z"], values: NDArray[np.float32], healthy: NDArray[np.bool_]
) -> Float[ndarray, "3 x y z"]:
    """What each voxel's own intensity makes of the prior; where nothing is healthy, the prior."""
    seen = values[healthy].astype(np.float64)
    before = prior[:, healthy].astype(np.float64)
    if seen.size < 1000 or np.ptp(seen) == 0:
        return prior
    low, high = np.quantile(seen, (0.005, 0.995))
    seen = seen.clip(low, high)
    share = before
    for _ in range(ROUNDS):
        weight = share.sum(axis=1) + 1e-9
        mean = (share * seen).sum(axis=1) / weight
        spread = (share * (seen - mean[:, None]) ** 2).sum(axis=1) / weight
        spread = spread.clip(min=(0.02 * (high - low)) ** 2)
        likely = np.exp(-((seen - mean[:, None]) ** 2) / (2 * spread[:, None])) / np.sqrt(
            spread[:, None]
        )
        share = before * likely + 1e-12
        share /= share.sum(axis=0)
    if not mean[0] < mean[1] < mean[2]:
        return prior  # not the contrast of a T1-weighted image: it would only mislead
    made = prior.copy()
    made[:, healthy] = share
    return made
