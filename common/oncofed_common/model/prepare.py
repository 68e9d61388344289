"""How does a patient become tensors?

A forecast is conditioned on up to three past visits, the tissue, the planned dose and the tokens; it
generates the change since the last visit of the history, so that zero means "as it was". Everything
depends on that patient's own history and on the preset's constants: no other patient takes part, and
no future visit touches a condition.

Layout of ``conditions`` (40 channels): for each of three past visits, latest first,
its four region distances, its four image channels and a presence flag; then fluid, grey and white
fractions and their flag; then the planned dose (in 60 Gy) and its flag; then
what physics expects: change of the whole tumour's and of the core's distance, in the units in which it
is generated, the standard deviation of both, the share of draws inside of both, and a flag.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from numpy import ndarray
from torch import Tensor

from oncofed_common.cohort import CHANNELS, TISSUES, Patient, Visit
from oncofed_common.errors import CohortRefusal
from oncofed_common.model import frame as window
from oncofed_common.model.frame import Frame
from oncofed_common.model.presets import Preset
from oncofed_common.model.regions import REGIONS, distances, volumes_ml
from oncofed_common.model.tokens import tokens

FIELDS = len(REGIONS) + len(CHANNELS)
"""Generated channels: region distances first, then image channels."""
VISIT_CHANNELS = FIELDS + 1
MAPS = len(TISSUES) + 1 + 2
"""Channels after the visits: tissue and flag, dose and flag."""
EXPECTED_REGIONS = tuple(REGIONS)[:2]
"""Regions of which physics can say something: the whole tumour and its core."""
EXPECTED_MAPS = 3 * len(EXPECTED_REGIONS) + 1
"""The last channels: change, standard deviation and share of each such region, and a flag."""


def condition_channels(preset: Preset) -> int:
    """How many channels ``conditions`` has."""
    return preset.history * VISIT_CHANNELS + MAPS + EXPECTED_MAPS


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What physics, fitted to a history, expects of one later day.

    Args:
        change: of the distance to each of ``EXPECTED_REGIONS`` since the last visit, in units of the
            distance limit: the median over draws, voxel by voxel; some may have no tumour left.
        spread: its standard deviation.
        share: of draws in which a voxel lies inside.
        numbers: ``tokens.EXPECTED_NUMBERS`` of them.
    """

    change: Float32[ndarray, "region x y z"]
    spread: Float32[ndarray, "region x y z"]
    share: Float32[ndarray, "region x y z"]
    numbers: Float32[ndarray, " number"]


@dataclass(frozen=True, kw_only=True)
class View:
    """What a history shows: the parts of a ``Query`` that no day changes."""

    visits: tuple[Visit, ...]
    volumes_ml: tuple[Float[ndarray, " region"], ...]
    labels: tuple[UInt8[ndarray, "x y z"], ...]
    conditions: Float[Tensor, "condition x y z"]
    reference: Float[Tensor, "field x y z"]
    acquired: Float[Tensor, " field"]
    frame: Frame


Foresee = Callable[..., Sequence[Expected | None]]
"""(patient, preset, view, days=...) -> what physics expects of each day: ``oncofed_common.outlook``."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """What a forecast starts from.

    Args:
        conditions: see the module's layout.
        tokens: rows of ``oncofed_common.model.tokens``.
        reference: the state at the last visit of the history: region distances in [-1, 1], scaled
            images; a channel that was not acquired is zero.
        acquired: 1 for each reference channel that exists.
        frame: where the window lies.
    """

    conditions: Float[Tensor, "condition x y z"]
    tokens: Float[Tensor, "token feature"]
    reference: Float[Tensor, "field x y z"]
    acquired: Float[Tensor, " field"]
    frame: Frame


@dataclass(frozen=True, kw_only=True)
class Example:
    """A query and what really came.

    Args:
        target: (state at the target day - reference) times the preset's gains.
        known: 1 for each target channel that was acquired then and at the last visit, else 0.
    """

    query: Query
    target: Float[Tensor, "field x y z"]
    known: Float[Tensor, " field"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples stacked along a first axis."""

    conditions: Float[Tensor, "row condition x y z"]
    tokens: Float[Tensor, "row token feature"]
    target: Float[Tensor, "row field x y z"]
    known: Float[Tensor, "row field"]


def pairs(patient: Patient, *, limit: int) -> list[tuple[tuple[int, ...], int]]:
    """Which histories forecast which visit: at most ``limit`` pairs, always the same ones.

    A history is every visit up to some visit that precedes the target and by which a tumour or a
    cavity has been seen. Neighbouring visits come first, late ones before early ones.
    """
    seen = [bool((np.asarray(visit.tumor.data) > 0).any()) for visit in patient.visits]
    found = [
        (last, target)
        for target in range(1, len(seen))
        for last in range(target)
        if any(seen[: last + 1]) and patient.visits[target].day > patient.visits[last].day
    ]
    found.sort(key=lambda pair: (pair[1] - pair[0], -pair[0]))
    return [(tuple(range(last + 1)), target) for last, target in found[:limit]]


def query(
    patient: Patient, preset: Preset, *, history: Sequence[int], day: int, foresee: Foresee
) -> Query:
    """What a forecast of ``day`` from these visits starts from.

    Args:
        history: indices of past visits, in order of day; the latest ``preset.history`` are shown.
        day: days since the patient's first visit.

    Raises:
        CohortRefusal: an empty or unordered history (``bad_history``), a day that is not after it
            (``day_not_after_history``), or no tumour in it (``no_tumor``).
    """
    seen = view(patient, preset, history=history)
    _after(seen, day)
    (expected,) = foresee(patient, preset, seen, days=[day])
    return at_day(patient, preset, seen, day=day, expected=expected)


def view(patient: Patient, preset: Preset, *, history: Sequence[int]) -> View:
    """What these past visits show, whatever day is asked for.

    Raises:
        CohortRefusal: see ``query``.
    """
    whole = [patient.visits[index] for index in history]
    visits = whole[-preset.history :]
    if not visits or any(a.day >= b.day for a, b in pairwise(whole)):
        raise CohortRefusal(
            "a history that is empty or out of order",
            allowed="one or more visits in order of day",
            next="name the past visits in order",
            code="bad_history",
        )
    place = window.frame(whole, preset)
    labels = [window.sample_labels(visit.tumor, place) for visit in visits]
    states = [
        _state(visit, marks, patient, place, preset)
        for visit, marks in zip(visits, labels, strict=True)
    ]
    shape = (place.size,) * 3
    channels = np.zeros((condition_channels(preset), *shape), dtype=np.float32)
    for slot, state in enumerate(reversed(states)):
        at = slot * VISIT_CHANNELS
        channels[at : at + FIELDS] = state
        channels[at + FIELDS] = 1.0
    maps = channels[preset.history * VISIT_CHANNELS :][:MAPS]
    if patient.tissue is not None:
        maps[: len(TISSUES)] = window.sample_fractions(
            patient.tissue, place, list(TISSUES.values())
        )
        maps[len(TISSUES)] = 1.0
    dose = next((visit.dose_gy for visit in reversed(visits) if visit.dose_gy is not None), None)
    if dose is not None and (np.asarray(dose.data) != 0).any():
        maps[-2] = window.sample(dose, place) / 60.0
        maps[-1] = 1.0
    return View(
        visits=tuple(visits),
        volumes_ml=tuple(volumes_ml(marks, preset) for marks in labels),
        labels=tuple(labels),
        conditions=torch.from_numpy(channels),
        reference=torch.from_numpy(states[-1]),
        acquired=torch.from_numpy(_acquired(visits[-1])),
        frame=place,
    )


def at_day(
    patient: Patient, preset: Preset, seen: View, *, day: int, expected: Expected | None
) -> Query:
    """A view, asked about one day: the tokens and what physics expects are all that the day changes.

    Raises:
        CohortRefusal: a day that is not after the history (``day_not_after_history``).
    """
    _after(seen, day)
    rows = tokens(
        patient,
        seen.visits,
        day=day,
        volumes_ml=seen.volumes_ml,
        preset=preset,
        expected=None if expected is None else expected.numbers,
    )
    conditions = seen.conditions
    if expected is not None:
        gain = preset.distance_gain
        maps = [gain * expected.change, gain * expected.spread, expected.share]
        conditions = conditions.clone()
        conditions[-EXPECTED_MAPS:-1] = torch.from_numpy(np.concatenate(maps))
        conditions[-1] = 1.0
    return Query(
        conditions=conditions,
        tokens=torch.from_numpy(rows),
        reference=seen.reference,
        acquired=seen.acquired,
        frame=seen.frame,
    )


def target(
    patient: Patient, preset: Preset, asked: Query, *, index: int
) -> tuple[Float[Tensor, "field x y z"], Float[Tensor, " field"]]:
    """What visit ``index`` really showed, in the query's window: ``Example``'s target and known."""
    visit = patient.visits[index]
    marks = window.sample_labels(visit.tumor, asked.frame)
    state = torch.from_numpy(_state(visit, marks, patient, asked.frame, preset))
    known = asked.acquired * torch.from_numpy(_acquired(visit))
    return (state - asked.reference) * gains(preset) * known[:, None, None, None], known


def examples(
    patient: Patient, preset: Preset, *, limit_pairs: int, foresee: Foresee
) -> list[Example]:
    """Every pair of ``pairs`` as tensors; empty for a patient without any."""
    chosen = pairs(patient, limit=limit_pairs)
    made: dict[tuple[tuple[int, ...], int], Example] = {}
    for history in dict.fromkeys(history for history, _ in chosen):
        seen = view(patient, preset, history=history)
        later = [index for of, index in chosen if of == history]
        days = [patient.visits[index].day for index in later]
        foreseen = foresee(patient, preset, seen, days=days)
        for index, day, expected in zip(later, days, foreseen, strict=True):
            asked = at_day(patient, preset, seen, day=day, expected=expected)
            change, known = target(patient, preset, asked, index=index)
            made[history, index] = Example(query=asked, target=change, known=known)
    return [made[pair] for pair in chosen]


def stack(examples: Sequence[Example]) -> Batch:
    """Examples as one batch, in their order.

    Raises:
        CohortRefusal: no examples (``no_pairs``).
    """
    if not examples:
        raise CohortRefusal(
            "no pair of visits",
            allowed="at least one pair of visits on different days",
            next="leave this patient out",
            code="no_pairs",
        )
    return Batch(
        conditions=torch.stack([example.query.conditions for example in examples]),
        tokens=torch.stack([example.query.tokens for example in examples]),
        target=torch.stack([example.target for example in examples]),
        known=torch.stack([example.known for example in examples]),
    )


def gains(preset: Preset) -> Float32[Tensor, "field 1 1 1"]:
    """What a change of each generated channel is multiplied by."""
    values = [preset.distance_gain] * len(REGIONS) + [preset.image_gain] * len(CHANNELS)
    return torch.tensor(values)[:, None, None, None]


def states(
    asked: Query, changes: Float[Tensor, "sample field x y z"], preset: Preset
) -> Float[Tensor, "sample field x y z"]:
    """Generated changes as states: distances in units of the limit, scaled intensities."""
    return asked.reference + changes / gains(preset)


def _after(seen: View, day: int) -> None:
    if day <= seen.visits[-1].day:
        raise CohortRefusal(
            "a forecast day that is not after the history",
            allowed="a day after the last visit of the history",
            next="choose a later day or a shorter history",
            code="day_not_after_history",
        )


def _state(
    visit: Visit,
    labels: UInt8[ndarray, "x y z"],
    patient: Patient,
    place: Frame,
    preset: Preset,
) -> Float32[ndarray, "field x y z"]:
    shape = (place.size,) * 3
    images = [
        window.scaled(visit.images[name], place, patient.brain)
        if name in visit.images
        else np.zeros(shape, dtype=np.float32)
        for name in CHANNELS
    ]
    return np.concatenate([distances(labels, preset), np.stack(images)])


def _acquired(visit: Visit) -> Float32[ndarray, " field"]:
    present = [1.0] * len(REGIONS) + [float(name in visit.images) for name in CHANNELS]
    return np.array(present, dtype=np.float32)
