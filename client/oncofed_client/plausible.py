"""Is what a patient's files show plausible: scans that are each another, none clipped, no tumour that jumps?

Nothing here excludes: a scan under two names, a clipped contrast or a jump in size may have a reason that
only the hospital knows. Each patient is judged alone; ``echoes`` compares digests of different patients.

A tumour's radius is that of a ball of its outlined volume. A front advances at 2√(Dρ), 0.11 mm a day at the
typical D = 0.13 mm²/d and ρ = 0.025 /d; more than ``MOST_MM_PER_DAY``, beyond an outliner's ``SLACK_MM``, is
another unit of days, another patient or another scheme. No untreated tumour loses nine tenths of its volume.

Nobody gives more than three fractions a day (CHART, the densest schedule in use, has three), or scans a
patient so often that no two of several visits lie ``OFTEN_DAYS`` apart: such days are weeks or months. A
fraction of less than ``GY_A_FRACTION`` is a dose of one fraction in the place of the course's.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from oncofed_client.findings import Finding, Notes
from oncofed_common.cohort import Patient, Treatment, Visit, Volume

MOST_MM_PER_DAY = 0.5
SLACK_MM = 12.0
LEAST_LEFT = 0.1
FRACTIONS_A_DAY = 3
OFTEN_DAYS = 14
SEVERAL = 3
GY_A_FRACTION = (0.5, 30.0)
CLIPPED_SHARE = 0.005
"""If more of the head holds the very highest value, and less what lies just below, it was cut off there."""
_BELOW = 0.02
_EVERY = 4


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One image of a patient, known by a digest of its voxels and affine."""

    participant: str
    session: str
    channel: str
    digest: bytes


def doubtful(patient: Patient, notes: Notes) -> tuple[Scan, ...]:
    """Note what is not plausible about one patient; returns what its images are known by."""
    for visit in patient.visits:
        for channel, image in visit.images.items():
            if (share := clipped_share(image)) > CLIPPED_SHARE:
                found = f"{channel}: {share:.1%} of the head hold the highest value"
                notes.add("clipped", "image", found=found, session=visit.session)
    _jumps(patient.visits, patient.treatments, notes)
    _units(patient.visits, patient.treatments, notes)
    scans = tuple(
        Scan(
            participant=patient.participant,
            session=visit.session,
            channel=channel,
            digest=_digest(image),
        )
        for visit in patient.visits
        for channel, image in visit.images.items()
    )
    first: dict[bytes, Scan] = {}
    for scan in scans:
        known = first.setdefault(scan.digest, scan)
        if known is not scan:
            found = f"{scan.channel} is the {known.channel} of {known.session}"
            notes.add("scan_repeated", "image", found=found, session=scan.session)
    return scans


def echoes(scans: Iterable[Scan]) -> Mapping[str, tuple[Finding, ...]]:
    """Findings by patient: images that another patient has too. Both are told, each once."""
    first: dict[bytes, Scan] = {}
    pairs: dict[tuple[str, str], Scan] = {}
    for scan in scans:
        known = first.setdefault(scan.digest, scan)
        if known.participant != scan.participant:
            pairs.setdefault((scan.participant, known.participant), scan)
            pairs.setdefault((known.participant, scan.participant), known)
    found: dict[str, tuple[Finding, ...]] = {}
    for (name, other), scan in pairs.items():
        notes = Notes(name)
        words = f"{scan.channel} is an image of {other} too"
        notes.add("scan_shared", "image", found=words, session=scan.session)
        found[name] = (*found.get(name, ()), *notes.findings)
    return found


def clipped_share(image: Volume) -> float:
    """The part of the head that holds the highest value, 0 to 1; 0 where more voxels come just below it."""
    values = image.data[::2, ::2, ::2]
    low, high = float(values.min()), float(values.max())
    head = values > low + 0.1 * (high - low)
    top = int((values == high).sum())
    below = int(((values >= high - _BELOW * (high - low)) & (values < high)).sum())
    if not 0 < below < top:
        return 0.0
    return top / max(int(head.sum()), 1)


def radius_mm(outline: Volume) -> float:
    """Of the ball that has the volume of everything outlined."""
    volume_mm3 = int((outline.data > 0).sum()) * abs(np.linalg.det(outline.affine_mm[:3, :3]))
    return float((3 * volume_mm3 / (4 * np.pi)) ** (1 / 3))


def _units(visits: Sequence[Visit], treatments: Sequence[Treatment], notes: Notes) -> None:
    gaps = [after.day - before.day for before, after in itertools.pairwise(visits)]
    if len(visits) >= SEVERAL and max(gaps) < OFTEN_DAYS:
        found = f"{len(visits)} visits, no two of them {OFTEN_DAYS} days apart"
        notes.add("days_unit", "sessions table", found=found)
    for course in treatments:
        if course.fractions is None:
            continue
        days = course.end_day - course.start_day + 1
        if course.fractions > FRACTIONS_A_DAY * days > 0:
            found = f"{course.fractions} fractions in {days} days"
            notes.add("days_unit", "treatments table", found=found)
        low, high = GY_A_FRACTION
        if course.dose_gy is not None and not low <= course.dose_gy / course.fractions <= high:
            found = f"{course.dose_gy:g} Gy in {course.fractions} fractions"
            notes.add("dose_unit", "treatments table", found=found)


def _jumps(visits: Sequence[Visit], treatments: Sequence[Treatment], notes: Notes) -> None:
    for before, after in itertools.pairwise(visits):
        days = after.day - before.day
        was, now = radius_mm(before.tumor), radius_mm(after.tumor)
        if not was or not now:
            continue  # an empty outline has findings of its own
        treated = any(course.start_day < after.day for course in treatments)
        if now - was > SLACK_MM + MOST_MM_PER_DAY * days:
            found = f"a tumour whose radius grows from {was:.0f} to {now:.0f} mm in {days} days"
        elif not treated and (now / was) ** 3 < LEAST_LEFT:
            found = f"an untreated tumour that shrinks to {(now / was) ** 3:.0%} of its volume"
        else:
            continue
        notes.add("volume_jump", "outline", found=found, session=after.session)


def _digest(image: Volume) -> bytes:
    """Of every fourth voxel along each axis, and of where they lie: noise makes each scan another."""
    part = np.ascontiguousarray(image.data[::_EVERY, ::_EVERY, ::_EVERY])
    head = f"{image.data.shape}{part.dtype}".encode() + np.asarray(image.affine_mm).tobytes()
    return hashlib.blake2b(head + part.tobytes(), digest_size=16).digest()
