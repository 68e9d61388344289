"""How may one patient's tumour look on a later day?

Futures are sampled with a trained network and summed up: for each compartment the share of samples
in which a voxel belongs to it, the mean image of each channel, and volumes with central intervals.
For research use only. If the patient has a visit on the very day, it stands beside the forecast as
the truth; it takes no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8
from numpy import ndarray

from oncofed_common.cohort import CHANNELS, LABELS, Patient, Treatment
from oncofed_common.diffusion.generate import Sampling, futures
from oncofed_common.errors import CohortRefusal
from oncofed_common.model.frame import Frame
from oncofed_common.model.network import best_device, best_dtype
from oncofed_common.model.prepare import (
    FIELDS,
    VISIT_CHANNELS,
    Example,
    Query,
    query,
    states,
    target,
)
from oncofed_common.model.presets import Preset
from oncofed_common.model.regions import REGIONS, labels_from, masks, volumes_ml
from oncofed_common.model.weights import LIMITS, Weights, network_of
from oncofed_common.outlook import outlook

NOTICE = LIMITS
INTERVALS: Mapping[str, tuple[float, float]] = {
    "interval_50": (0.25, 0.75),
    "interval_90": (0.05, 0.95),
}
SHORTEST_DAYS, LONGEST_DAYS = 30, 400
"""Days ahead on which the shipped weights were trained; outside them a forecast warns."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A visit as it shows in the window.

    Args:
        images: a channel that was not acquired is missing.
        volumes_ml: by region.
    """

    day: int
    images: Mapping[str, Float32[ndarray, "x y z"]]
    labels: UInt8[ndarray, "x y z"]
    volumes_ml: Float[ndarray, " region"]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Sampled futures, summed up on the window's grid.

    Args:
        probability: for each compartment of ``LABELS`` and for ``whole`` (NETC + SNFH + ET), the
            share of samples in which a voxel belongs to it.
        images: mean of each channel that the last visit has, in scaled intensities.
        volumes_ml: volume of each region in each sample.
        past: up to three visits, in order of day.
        treatments: those that begin before the forecast's day, given or planned.
        truth: the visit on that day, if there is one.
        warnings: visits that are not read, and in what the input differs from what the model was
            trained on.
    """

    participant: str
    day: int
    frame: Frame
    preset: Preset
    probability: Mapping[str, Float32[ndarray, "x y z"]]
    images: Mapping[str, Float32[ndarray, "x y z"]]
    volumes_ml: Float[ndarray, "sample region"]
    past: tuple[Seen, ...]
    treatments: tuple[Treatment, ...]
    truth: Seen | None
    warnings: tuple[str, ...]
    weights_sha256: str
    evaluations: int
    seed: int


def forecast(
    patient: Patient,
    *,
    history: Sequence[int | str],
    day: int,
    weights: Weights,
    samples: int,
    steps: int,
    seed: int,
) -> Forecast:
    """Sample one patient's futures.

    Args:
        history: past visits by index or by session, in order of day; the model sees the latest.
        day: on the clock of the visits, whose day 0 is the patient's first visit.
        steps: network evaluations for each sample, 20 at most.

    Raises:
        CohortRefusal: an unknown session (``unknown_session``), a history that makes no sense, a day
            that is not after it, or no tumour in it.
        ModelRefusal: samples or steps outside their bounds.
    """
    device = best_device()
    how = Sampling(samples=samples, evaluations=steps, dtype=best_dtype())
    indices = [_index(patient, visit) for visit in history]
    asked = query(patient, weights.preset, history=indices, day=day, foresee=outlook)
    drawn = futures(network_of(weights).to(device), asked, how, seed=seed).numpy()
    labels = np.stack([labels_from(state[: len(REGIONS)]) for state in drawn])
    past = _past(patient, asked, indices, weights.preset)
    return Forecast(
        participant=patient.participant,
        day=day,
        frame=asked.frame,
        preset=weights.preset,
        probability=_probability(labels),
        images={
            name: drawn[:, len(REGIONS) + at].mean(axis=0)
            for at, name in enumerate(CHANNELS)
            if asked.acquired[len(REGIONS) + at]
        },
        volumes_ml=np.stack([volumes_ml(one, weights.preset) for one in labels]),
        past=past,
        treatments=tuple(course for course in patient.treatments if course.start_day < day),
        truth=_truth(patient, asked, indices, day=day, preset=weights.preset),
        warnings=(*_unread(indices, weights.preset), *_warnings(past[-1], day=day)),
        weights_sha256=weights.sha256,
        evaluations=steps,
        seed=seed,
    )


def as_dict(found: Forecast) -> dict[str, Any]:
    """What ``forecast.json`` holds: volumes in millilitres, days since the first visit."""
    return {
        "notice": NOTICE,
        "participant": found.participant,
        "history_days": [visit.day for visit in found.past],
        "day": found.day,
        "samples": len(found.volumes_ml),
        "evaluations": found.evaluations,
        "seed": found.seed,
        "preset": found.preset.name,
        "weights_sha256": found.weights_sha256,
        "warnings": list(found.warnings),
        "volumes_ml": {
            region: {
                "last_visit": float(found.past[-1].volumes_ml[at]),
                **spread(found.volumes_ml[:, at]),
                "truth": None if found.truth is None else float(found.truth.volumes_ml[at]),
            }
            for at, region in enumerate(REGIONS)
        },
    }


def spread(values: Float[ndarray, " sample"]) -> dict[str, float | list[float]]:
    """Median and central intervals of samples."""
    intervals = {
        name: [float(edge) for edge in np.quantile(values, edges)]
        for name, edges in INTERVALS.items()
    }
    return {"median": float(np.median(values)), **intervals}


def _index(patient: Patient, visit: int | str) -> int:
    sessions = [one.session for one in patient.visits]
    if isinstance(visit, str) and visit in sessions:
        return sessions.index(visit)
    if isinstance(visit, int) and 0 <= visit < len(sessions):
        return visit
    raise CohortRefusal(
        "a session that this patient does not have",
        allowed=", ".join(sessions),
        next="name past sessions of this patient",
        code="unknown_session",
    )


def _probability(labels: UInt8[ndarray, "sample x y z"]) -> dict[str, Float32[ndarray, "x y z"]]:
    whole = list(REGIONS).index("whole")
    shares = {name: (labels == value).mean(axis=0) for name, value in LABELS.items()}
    shares["whole"] = np.stack([masks(one)[whole] for one in labels]).mean(axis=0)
    return {name: share.astype(np.float32) for name, share in shares.items()}


def _past(
    patient: Patient, asked: Query, indices: Sequence[int], preset: Preset
) -> tuple[Seen, ...]:
    """The visits that the network sees, out of its own conditions."""
    shown = list(indices)[-preset.history :]
    channels = asked.conditions.numpy()
    found = []
    for slot, index in enumerate(reversed(shown)):
        state = channels[slot * VISIT_CHANNELS : slot * VISIT_CHANNELS + FIELDS]
        visit = patient.visits[index]
        found.append(_seen(state, day=visit.day, acquired=visit.images, preset=preset))
    return tuple(reversed(found))


def _truth(
    patient: Patient, asked: Query, indices: Sequence[int], *, day: int, preset: Preset
) -> Seen | None:
    later = [at for at, visit in enumerate(patient.visits) if visit.day == day]
    if not later or later[0] in indices:
        return None
    change, known = target(patient, preset, asked, index=later[0])
    state = states(Example(query=asked, target=change, known=known).query, change[None], preset)
    acquired = [name for at, name in enumerate(CHANNELS) if known[len(REGIONS) + at]]
    return _seen(state[0].numpy(), day=day, acquired=acquired, preset=preset)


def _seen(
    state: Float32[ndarray, "field x y z"],
    *,
    day: int,
    acquired: Sequence[str] | Mapping[str, Any],
    preset: Preset,
) -> Seen:
    labels = labels_from(state[: len(REGIONS)])
    return Seen(
        day=day,
        images={
            name: state[len(REGIONS) + at] for at, name in enumerate(CHANNELS) if name in acquired
        },
        labels=labels,
        volumes_ml=volumes_ml(labels, preset),
    )


def _unread(indices: Sequence[int], preset: Preset) -> tuple[str, ...]:
    given = len(indices)
    if given <= preset.history:
        return ()
    return (f"{preset.history} of {given} visits read: the model sees the latest {preset.history}",)


def _warnings(last: Seen, *, day: int) -> tuple[str, ...]:
    found = []
    ahead = day - last.day
    if not SHORTEST_DAYS <= ahead <= LONGEST_DAYS:
        found.append(
            f"{ahead} days ahead; the model was trained on {SHORTEST_DAYS} to {LONGEST_DAYS}"
        )
    inner = last.labels[2:-2, 2:-2, 2:-2]
    if (last.labels > 0).sum() > (inner > 0).sum():
        found.append("the tumour reaches the edge of the model's window")
    if not last.images:
        found.append("the last visit has no images; the forecast rests on outlines")
    return tuple(found)
