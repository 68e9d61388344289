"""What do the laws of growth, fitted to this patient's past, expect of a later day?

The outlines of a history, as the model's window shows them, are fitted by reaction and diffusion under the
treatment that was given (``physics.fit``); draws of the posterior are grown on through what is planned.
Kept is what they say of change: each draw's outline on the day asked for against the same draw's on the last
day of the history, so that what a contour of the model misses of a drawn outline cancels.

Only the window and the treatments take part: no later visit, no other patient, no image. Without a tissue
map, or where nothing can be fitted, there is no outlook, and the model is told so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Float32, Integer, UInt8
from numpy import ndarray
from scipy import ndimage
from threadpoolctl import threadpool_limits
from torch import Tensor

from oncofed_common.cohort import LABELS, TISSUES, Patient, Treatment, course_of_map
from oncofed_common.errors import PhysicsRefusal
from oncofed_common.model.frame import sample, sample_fractions
from oncofed_common.model.prepare import EXPECTED_REGIONS, Expected, View
from oncofed_common.model.presets import Preset
from oncofed_common.model.regions import distances
from oncofed_common.model.tokens import (
    EXPECTED_NUMBERS,
    TYPICAL_SPEED_MM_PER_DAY,
    TYPICAL_WIDTH_MM,
    USUAL_DOSE_GY,
)
from oncofed_common.physics.candidates import Drug, Irradiation, Treatments
from oncofed_common.physics.evidence import OutlineError
from oncofed_common.physics.fit import PUBLISHED, Fit, fit
from oncofed_common.physics.outline import COMPARTMENTS, Outline
from oncofed_common.physics.posterior import Forecast, forecast, interval
from oncofed_common.physics.therapy import (
    TEMOZOLOMIDE_HALF_LIFE_DAY,
    Resection,
    dosing_days,
    fraction_days,
)

DRAWS = 12
DRAWN = OutlineError(local_mm=2.0, patch_mm=8.0, shift_mm=1.0, habit_mm=0.4)
"""Of outlines as people draw them, seen in voxels of 3 mm: with it, 90 % intervals of the next volume held
97 % of 40 virtual cases, with that of exact outlines 68 %."""
MARGIN_MM, PENUMBRA_MM = 18.0, 3.0
"""A course without a map: full dose within the clinical target's margin, falling off beyond."""
USUAL_GY = 2.0
GROWTH_PER_STEP = 0.375
"""Steps two and a half times as long as the solver's own: twice as fast. Their error, six times a thousandth,
is nothing beside that of outlines."""
LEAST_ML = 0.1
LONGEST_LOG = 3.0
SURE = 0.6827
"""The share of a Gaussian within one standard deviation."""


def outlook(
    patient: Patient, preset: Preset, seen: View, *, days: Sequence[int]
) -> list[Expected | None]:
    """What physics expects of each of ``days``, all after the history; ``None`` where it cannot say.

    The same history gives the same bits: draws are those of one fixed seed.
    """
    rising = sorted(set(days))
    grown = _grown(patient, preset, seen, days=rising, draws=DRAWS)
    if grown is None:
        return [None for _ in days]
    made = dict(zip(rising, _expected(*grown, preset), strict=True))
    return [made[day] for day in days]


def volumes_ml(
    patient: Patient, preset: Preset, seen: View, *, day: int, draws: int
) -> Float[ndarray, " draw"] | None:
    """The whole tumour's volume on ``day`` as physics alone forecasts it; ``None`` where it cannot.

    What was outlined last, times each draw's ratio of volumes.
    """
    grown = _grown(patient, preset, seen, days=[day], draws=draws)
    if grown is None:
        return None
    before, after = np.maximum(grown[1].volume_ml("whole").numpy(), LEAST_ML)
    return np.asarray(seen.volumes_ml[-1][0] * after / before)


def _grown(
    patient: Patient, preset: Preset, seen: View, *, days: Sequence[int], draws: int
) -> tuple[Fit, Forecast] | None:
    """The fit, and its draws on the last day of the history and on rising ``days``."""
    if patient.tissue is None:
        return None
    tissue = torch.from_numpy(_tissue(patient, seen))
    first = next((at for at, labels in enumerate(seen.labels) if _volume(labels, preset) > 0), None)
    if first is None:
        return None
    shown = [
        Outline(day=visit.day, labels=torch.from_numpy(labels.astype(np.int64)))
        for visit, labels in zip(seen.visits[first:], seen.labels[first:], strict=True)
    ]
    treatments = _treatments(patient, preset, seen, until=days[-1])
    last = seen.visits[-1].day
    with _one_thread():
        return _laws(shown, tissue, treatments, seen, days=[last, *days], draws=draws)


def _laws(
    shown: Sequence[Outline],
    tissue: Integer[Tensor, "x y z"],
    treatments: Treatments,
    seen: View,
    *,
    days: Sequence[int],
    draws: int,
) -> tuple[Fit, Forecast] | None:
    """The fit to what was shown, and its draws on ``days``."""
    try:
        found = fit(
            shown,
            tissue=tissue,
            affine_mm=torch.from_numpy(seen.frame.affine_mm),
            treatments=treatments,
            priors=PUBLISHED,
            error=DRAWN,
            growth_per_step=GROWTH_PER_STEP,
        )
        grown = forecast(
            found, tissue=tissue, treatments=treatments, days=days, samples=draws, seed=0
        )
    except (PhysicsRefusal, RuntimeError):  # a singular posterior is a RuntimeError of torch
        return None
    return found, grown


@contextmanager
def _one_thread() -> Iterator[None]:
    """A window is too small to share: threads that wait for work by spinning take the other processes'
    cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def _expected(found: Fit, grown: Forecast, preset: Preset) -> Iterator[Expected | None]:
    """For each day of ``grown`` after its first, what changed since that."""
    volumes = [np.maximum(grown.volume_ml(name).numpy(), LEAST_ML) for name in EXPECTED_REGIONS]
    before, _ = _surfaces(grown, 0, preset)
    for day in range(1, len(grown.days)):
        after, share = _surfaces(grown, day, preset)
        change = after - before
        middle = np.median(change, axis=0)
        ratios = [np.log(v[day] / v[0]).clip(-LONGEST_LOG, LONGEST_LOG) for v in volumes]
        numbers = np.concatenate([_summary(found), *(_spread(ratio) for ratio in ratios)])
        maps = np.concatenate([middle, change.std(axis=0), share])
        if not (np.isfinite(maps).all() and np.isfinite(numbers).all()):
            yield None
            continue
        assert len(numbers) == EXPECTED_NUMBERS
        yield Expected(
            change=middle,
            spread=change.std(axis=0),
            share=share,
            numbers=numbers.astype(np.float32),
        )


def _surfaces(
    grown: Forecast, day: int, preset: Preset
) -> tuple[Float32[ndarray, "draw region x y z"], Float32[ndarray, "region x y z"]]:
    """Each draw's distances to the outlines of that day in the window, and the share of draws inside."""
    shape = (preset.size,) * 3
    found = []
    for draw in grown.visible[day].numpy():
        visible = np.zeros(shape, dtype=np.float32)
        visible[grown.box] = draw
        labels = np.where(visible >= COMPARTMENTS["whole"], LABELS["SNFH"], 0)
        labels = np.where(visible >= COMPARTMENTS["core"], LABELS["NETC"], labels).astype(np.uint8)
        found.append(distances(labels, preset)[: len(EXPECTED_REGIONS)])
    surfaces = np.stack(found)
    return surfaces, (surfaces < 0).mean(axis=0, dtype=np.float32)


def _summary(found: Fit) -> Float[ndarray, " number"]:
    """Speed and width with their uncertainty as logarithms, and how well the outlines are met."""
    numbers = []
    for quantity, typical in (
        ("front_speed_mm_per_day", TYPICAL_SPEED_MM_PER_DAY),
        ("front_width_mm", TYPICAL_WIDTH_MM),
    ):
        stated = interval(found, quantity, share=SURE)
        numbers += [np.log(stated.median / typical), np.log(stated.high / stated.low) / 2]
    return np.array([*numbers, min(found.misfit_mm, 10.0) / 3.0])


def _spread(ratio: Float32[ndarray, " draw"]) -> Float[ndarray, " 5"]:
    """Mean, standard deviation, lower end, middle and upper end of a volume's log ratio."""
    return np.array([ratio.mean(), ratio.std(), *np.quantile(ratio, [0.1, 0.5, 0.9])])


def _tissue(patient: Patient, seen: View) -> Integer[ndarray, "x y z"]:
    """The tissue that fills most of each voxel of the window; 0 where tissue fills less than half."""
    assert patient.tissue is not None
    fractions = sample_fractions(patient.tissue, seen.frame, list(TISSUES.values()))
    winner = np.array(list(TISSUES.values()))[fractions.argmax(axis=0)]
    return np.where(fractions.sum(axis=0) >= 0.5, winner, 0).astype(np.int64)


def _volume(labels: UInt8[ndarray, "x y z"], preset: Preset) -> float:
    tumor = np.isin(labels, [LABELS[name] for name in ("NETC", "SNFH", "ET")])
    return float(tumor.sum()) * preset.spacing_mm**3 / 1000


def _treatments(patient: Patient, preset: Preset, seen: View, *, until: int) -> Treatments:
    """What was given before ``until`` or is planned, on the window's grid. Immunotherapy has no law here."""
    courses = [course for course in patient.treatments if course.start_day < until]
    return Treatments(
        irradiations=tuple(
            Irradiation(
                total_dose_gy=_dose(course, dose_gy, patient, preset, seen),
                days=_fractions(course, dose_gy),
            )
            for course in courses
            if course.kind == "radiotherapy"
            and (dose_gy := USUAL_DOSE_GY if course.dose_gy is None else course.dose_gy)
        ),
        drugs=tuple(
            Drug(
                days=tuple(dosing_days(course.start_day, course.end_day)),
                half_life_day=TEMOZOLOMIDE_HALF_LIFE_DAY,
            )
            for course in courses
            if course.kind == "chemotherapy"
        ),
        resections=tuple(
            Resection(day=course.start_day, cavity=torch.from_numpy(_cavity(course, seen)))
            for course in courses
            if course.kind == "surgery"
        ),
    )


def _fractions(course: Treatment, dose_gy: float) -> tuple[int, ...]:
    count = course.fractions or max(1, round(dose_gy / USUAL_GY))
    return tuple(fraction_days(course.start_day, count))


def _dose(
    course: Treatment, dose_gy: float, patient: Patient, preset: Preset, seen: View
) -> Float[Tensor, "x y z"]:
    """The course's own planned map, else the table's dose around what had to be irradiated."""
    for visit in reversed(seen.visits):
        if visit.dose_gy is not None and course_of_map(visit, patient.treatments) == course:
            return torch.from_numpy(sample(visit.dose_gy, seen.frame)).clamp(min=0)
    labels = _labels_before(course, seen)
    core = np.isin(labels, [LABELS[name] for name in ("NETC", "ET", "RC")])
    target = core if core.any() else labels > 0
    if not target.any():
        return torch.zeros((preset.size,) * 3)
    away = ndimage.distance_transform_edt(~target, sampling=preset.spacing_mm)
    return torch.from_numpy(dose_gy / (1 + np.exp((away - MARGIN_MM) / PENUMBRA_MM))).float()


def _cavity(course: Treatment, seen: View) -> ndarray:
    """The cavity that a later visit shows; before there is one, the core that will be taken out."""
    for visit, labels in zip(seen.visits, seen.labels, strict=True):
        if visit.day > course.start_day and (labels == LABELS["RC"]).any():
            return np.asarray(labels == LABELS["RC"])
    core = [LABELS[name] for name in ("NETC", "ET")]
    return np.asarray(np.isin(_labels_before(course, seen), core))


def _labels_before(course: Treatment, seen: View) -> UInt8[ndarray, "x y z"]:
    """The window at the last visit before a course begins; the first visit where there is none."""
    known = [
        labels
        for visit, labels in zip(seen.visits, seen.labels, strict=True)
        if visit.day <= course.start_day
    ]
    return known[-1] if known else seen.labels[0]
