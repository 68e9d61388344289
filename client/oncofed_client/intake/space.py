"""How do the scans of a patient come into one world space?

Channels of a visit are laid on the visit's own reference channel, visits on the first one, the first one on
the
atlas: all rigidly, all through the affine alone, so that no voxel is interpolated and no volume changes.
Outlines and doses move with the reference channel of their visit; a dose that was planned on a CT comes
there with that CT. All else that the site calls registered stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from oncofed_client.intake.anatomy import Anatomy, anatomy
from oncofed_client.intake.registration import Move, moved, rigid
from oncofed_client.intake.scans import Scans
from oncofed_client.readers.atlas import read_atlas
from oncofed_common.cohort import Volume
from oncofed_common.errors import CohortRefusal

REFERENCE = ("ce-gadolinium_T1w", "T1w", "FLAIR", "T2w")
"""Which channel the others of a visit are laid on: usually the finest, the one that tumours are drawn
on."""
T1 = ("T1w", "ce-gadolinium_T1w")
BRAIN_ML = (500.0, 2600.0)
SOFT_HU = (-200.0, 300.0)
"""Hounsfield units that tell air, soft tissue and bone of a CT apart."""
LEAST_INFORMATION = 0.2
"""Nats, of a CT that lies on its visit: virtual heads have 0.4 to 0.7 then, 0.15 three centimetres off."""


@dataclass(frozen=True, kw_only=True)
class InPlace:
    """The visits in one world, with brain and tissue there."""

    scans: tuple[Scans, ...]
    brain: Volume
    tissue: Volume


def in_one_space(scans: Sequence[Scans], *, registered: bool) -> InPlace:
    """Move every volume of a patient into one world, and find the brain there.

    Args:
        scans: in order of day, each with an image and an outline.
        registered: they lie in one world already.

    Raises:
        CohortRefusal: code ``no_brain``.
    """
    if not registered:
        scans = [_within(one) for one in scans]
        first = scans[0]
        scans = [first, *(_onto(first, one) for one in scans[1:])]
    found = _anatomy(scans[0])
    turn = np.eye(4) if registered else found.to_atlas
    return InPlace(
        scans=tuple(_moved(one, turn) for one in scans),
        brain=moved(found.brain, turn),
        tissue=moved(found.tissue, turn),
    )


def by_planning(scans: Scans) -> Scans:
    """A visit's dose in the world of its reference channel, where its planning CT was laid on that.

    Raises:
        CohortRefusal: code ``planning_not_found``.
    """
    if scans.dose_gy is None or scans.planning is None:
        return scans
    low, high = SOFT_HU
    soft = Volume(
        data=scans.planning.data.clip(low, high) - low, affine_mm=scans.planning.affine_mm
    )
    fit = rigid(scans.images[_reference(scans)], soft)
    if fit.information < LEAST_INFORMATION:
        raise CohortRefusal(
            "a dose whose planning CT cannot be laid on the visit before it",
            allowed="a CT of the head that the visit's images show",
            next="lay the CT on the visit's images where the plan was made",
            code="planning_not_found",
        )
    return replace(scans, dose_gy=moved(scans.dose_gy, fit.move), planning=None)


def _anatomy(first: Scans) -> Anatomy:
    assert first.tumor is not None, "a visit without an outline is left out before"
    name = next((name for name in T1 if name in first.images), _reference(first))
    found = anatomy(first.images[name], read_atlas(), tumor=first.tumor, is_t1=name in T1)
    volume_ml = float((found.brain.data > 0).sum() * np.prod(found.brain.spacing_mm)) / 1000
    if not BRAIN_ML[0] <= volume_ml <= BRAIN_ML[1]:
        raise CohortRefusal(
            f"a first visit that shows {volume_ml:.0f} ml of brain",
            allowed=f"{BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f} ml",
            next="look at its images: the whole brain has to be on them",
            code="no_brain",
        )
    return found


def _within(scans: Scans) -> Scans:
    """The channels of a visit on its reference channel."""
    reference = _reference(scans)
    onto = scans.images[reference]
    images = {
        name: image if name == reference else moved(image, rigid(onto, image).move)
        for name, image in scans.images.items()
    }
    return scans.with_images(images)


def _onto(first: Scans, later: Scans) -> Scans:
    """A later visit on the first one, by a channel that both have, if there is one."""
    both = [name for name in REFERENCE if name in first.images and name in later.images]
    here = both[0] if both else _reference(first)
    there = both[0] if both else _reference(later)
    fit = rigid(first.images[here], later.images[there], ignore=first.tumor)
    return _moved(later, fit.move)


def _moved(scans: Scans, move: Move) -> Scans:
    return Scans(
        visit=scans.visit,
        images={name: moved(image, move) for name, image in scans.images.items()},
        tumor=None if scans.tumor is None else moved(scans.tumor, move),
        dose_gy=None if scans.dose_gy is None else moved(scans.dose_gy, move),
    )


def _reference(scans: Scans) -> str:
    return next(name for name in REFERENCE if name in scans.images)
