"""Which files of a visit, and which visits of a patient, do not lie where the others do?

``placement`` measures; this file asks it about every file and notes what disagrees. Images are judged
by each other, outlines and doses by the head that the images show, maps by the heads of most visits,
and visits by each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from oncofed_client.findings import Notes
from oncofed_client.placement import (
    COVERED,
    INSIDE,
    Probe,
    displaced,
    head,
    inside,
    mirror_wins,
    mirrored,
    probe_image,
    probe_outline,
    probe_tissue,
    shared,
    whole_view,
)
from oncofed_common.cohort import Visit, Volume


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """The same visits and maps without the optional maps that lie elsewhere."""

    visits: tuple[Visit, ...]
    tissue: Volume | None
    brain: Volume | None


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What the images of one visit show: probes of those that agree, and their head."""

    images: tuple[Probe, ...]
    head: Probe


def align(
    visits: Sequence[Visit], *, tissue: Volume | None, brain: Volume | None, notes: Notes
) -> Aligned:
    """Note every file and visit that lies elsewhere or mirrored; drop optional maps that do.

    Outlines of a visit without images are judged by the head of another visit, where there is one.
    """
    shown = [visit for visit in visits if visit.images]
    seen = {visit.session: _look(visit, notes) for visit in shown}
    _compare_visits(shown, list(seen.values()), notes)
    astray = notes.excluded_visits()
    good = [one for session, one in seen.items() if session not in astray]
    if tissue is not None and not _fits(tissue, good, notes, is_brain=False):
        tissue = None
    if brain is not None and not _fits(brain, good, notes, is_brain=True):
        brain = None
    mask = probe_outline(brain) if brain is not None else None
    kept = []
    for visit in visits:
        by = seen.get(visit.session) or next(iter(good), None)
        within = None if visit.session in astray else mask
        kept.append(visit if by is None else _check_outlines(visit, by, brain=within, notes=notes))
    return Aligned(visits=tuple(kept), tissue=tissue, brain=brain)


def _look(visit: Visit, notes: Notes) -> _Seen:
    """The images of one visit, each compared with the others."""
    names = list(visit.images)
    probes = [probe_image(image) for image in visit.images.values()]
    away = displaced(probes)
    for name, is_away in zip(names, away, strict=True):
        if is_away:
            found = f"{name}: its head does not cover that of the other channels"
            notes.add("elsewhere", "image", found=found, session=visit.session)
    here = [i for i, is_away in enumerate(away) if not is_away]
    turned = dict(zip(here, mirrored([[probes[i]] for i in here]), strict=True))
    for i in here:
        if turned[i]:
            found = f"{names[i]}: it fits the other channels only when mirrored"
            notes.add("mirrored", "image", found=found, session=visit.session)
    agreed = tuple(probes[i] for i in here if not turned[i]) or (probes[0],)
    return _Seen(images=agreed, head=head(agreed))


def _compare_visits(visits: Sequence[Visit], seen: Sequence[_Seen], notes: Notes) -> None:
    away = displaced([one.head for one in seen])
    turned = mirrored([one.images[:1] for one in seen])
    for visit, is_away, is_turned in zip(visits, away, turned, strict=True):
        if is_away or is_turned:
            how = "does not cover" if is_away else "is a mirror image of"
            found = f"a head that {how} that of the other visits"
            notes.add("world_differs", "image", found=found, session=visit.session)


def _fits(volume: Volume, seen: Sequence[_Seen], notes: Notes, *, is_brain: bool) -> bool:
    """Does a map of the patient lie on the head of most visits, the right way round?"""
    probe = probe_outline(volume) if is_brain else probe_tissue(volume)
    off = sum(shared(probe, one.head) < COVERED for one in seen)
    images = [whole_view(one.images[0]) if is_brain else one.images[0] for one in seen]
    turned = mirror_wins([probe], images)
    if off > len(seen) / 2:
        found = "a map that does not cover the head of the visits"
        notes.add("elsewhere", "brain mask" if is_brain else "tissue map", found=found)
        return False
    if turned:
        found = "a map that fits the visits only when mirrored"
        notes.add("mirrored", "brain mask" if is_brain else "tissue map", found=found)
        return False
    return True


def _check_outlines(visit: Visit, seen: _Seen, *, brain: Probe | None, notes: Notes) -> Visit:
    """Note an outline that is not where the images are; leave out such a dose map."""
    outline = probe_outline(visit.tumor)
    part = inside(outline, seen.head)
    if part == 0:
        found = "an outline outside the head that the images show"
        notes.add("elsewhere", "outline", found=found, session=visit.session)
    elif part < INSIDE or (brain is not None and inside(outline, brain) < INSIDE):
        found = "an outline that lies mostly off the brain"
        notes.add("off_brain", "outline", found=found, session=visit.session)
    elif mirror_wins([outline], seen.images):
        found = "an outline that fits the images only when mirrored"
        notes.add("mirrored", "outline", found=found, session=visit.session)
    if visit.dose_gy is None:
        return visit
    peak = visit.dose_gy.data >= 0.5 * float(visit.dose_gy.data.max())
    high = Volume(data=peak.astype(np.uint8), affine_mm=visit.dose_gy.affine_mm)
    if inside(probe_outline(high), seen.head) < INSIDE:
        found = "a dose that is given mostly outside the head"
        notes.add("elsewhere", "dose map", found=found, session=visit.session)
        return replace(visit, dose_gy=None)
    return visit
