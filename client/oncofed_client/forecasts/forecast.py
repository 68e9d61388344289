"""How may one patient's tumour look on a later day?

Futures are sampled with a trained network, held against the laws that were fitted to this patient (a sample
that breaks one is drawn again), and summed up: for each compartment the share of samples in which a voxel
belongs to it, the mean image of each channel, volumes with central intervals, and the odds of each response.
For research use only. If the patient has a visit on the very day, it stands beside the forecast as
the truth; it takes no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8
from numpy import ndarray

from oncofed_client.forecasts import cautions
from oncofed_client.forecasts.cautions import Certified, Seen
from oncofed_common.cohort import CHANNELS, LABELS, Patient, Treatment, Visit
from oncofed_common.diffusion.generate import Sampling, futures
from oncofed_common.errors import CohortRefusal
from oncofed_common.metrics.certificate import LAWS, certify
from oncofed_common.metrics.response import odds
from oncofed_common.metrics.scores import MEASURABLE_ML, quantiles
from oncofed_common.model.frame import Frame, sample_labels
from oncofed_common.model.network import Network, best_device
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
RESEED = 1_000_003
REDRAWS = 3
"""How often samples that break a law are drawn again before they are kept with a warning."""


@dataclass(frozen=True, kw_only=True)
class Native:
    """The grid of the last visit's outline, on which the maps are handed over."""

    shape: tuple[int, int, int]
    affine_mm: Float[ndarray, "4 4"]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Sampled futures, summed up on the window's grid.

    Args:
        probability: for each compartment of ``LABELS`` and for ``whole`` (NETC + SNFH + ET), the
            share of samples in which a voxel belongs to it.
        images: mean of each channel that the last visit has, in scaled intensities.
        volumes_ml: volume of each region in each sample.
        history_ml: volume of each region at each visit of the history, in order of day.
        certified: what physics says of the samples.
        past: up to three visits, in order of day.
        treatments: those that begin before the forecast's day, given or planned.
        truth: the visit on that day, if there is one.
        warnings: visits that are not read, and in what the input differs from what the model was
            trained on.
    """

    participant: str
    day: int
    frame: Frame
    native: Native
    preset: Preset
    probability: Mapping[str, Float32[ndarray, "x y z"]]
    images: Mapping[str, Float32[ndarray, "x y z"]]
    volumes_ml: Float[ndarray, "sample region"]
    history_ml: Float[ndarray, "visit region"]
    certified: Certified
    past: tuple[Seen, ...]
    treatments: tuple[Treatment, ...]
    truth: Seen | None
    warnings: tuple[str, ...]
    weights_sha256: str
    how: Sampling
    seed: int


def forecast(
    patient: Patient,
    *,
    history: Sequence[int | str],
    day: int,
    weights: Weights,
    how: Sampling,
    seed: int,
) -> Forecast:
    """Sample one patient's futures.

    Args:
        history: past visits by index or by session, in order of day; the model sees the latest.
        day: on the clock of the visits, whose day 0 is the patient's first visit.

    Raises:
        CohortRefusal: an unknown session (``unknown_session``), a history that makes no sense, a day
            that is not after it, or no tumour in it.
    """
    device = best_device()
    indices = visits_of(patient, history)
    asked = query(patient, weights.preset, history=indices, day=day, foresee=outlook)
    drawn, certified = _drawn(network_of(weights).to(device), asked, how, seed=seed)
    labels = np.stack([labels_from(state[: len(REGIONS)]) for state in drawn])
    past, probability = _past(patient, asked, indices, weights.preset), _probability(labels)
    return Forecast(
        participant=patient.participant,
        day=day,
        frame=asked.frame,
        native=_native(patient.visits[indices[-1]]),
        preset=weights.preset,
        probability=probability,
        images={
            name: drawn[:, len(REGIONS) + at].mean(axis=0)
            for at, name in enumerate(CHANNELS)
            if asked.acquired[len(REGIONS) + at]
        },
        volumes_ml=np.stack([volumes_ml(one, weights.preset) for one in labels]),
        history_ml=np.stack(
            [
                volumes_ml(sample_labels(patient.visits[at].tumor, asked.frame), weights.preset)
                for at in indices
            ]
        ),
        certified=certified,
        past=past,
        treatments=tuple(course for course in patient.treatments if course.start_day < day),
        truth=_truth(patient, asked, indices, day=day, preset=weights.preset),
        warnings=(
            *cautions.unread(indices, weights.preset),
            *cautions.unusual(
                past[-1], ahead=probability["whole"], day=day, practised=weights.days_ahead
            ),
            *cautions.not_modelled(patient.treatments, before=day),
            *cautions.unlawful(certified),
        ),
        weights_sha256=weights.sha256,
        how=how,
        seed=seed,
    )


def visits_of(patient: Patient, history: Sequence[int | str]) -> list[int]:
    """The indices of visits named by index or by session.

    Raises:
        CohortRefusal: a session that the patient does not have (``unknown_session``).
    """
    return [_index(patient, visit) for visit in history]


def as_dict(found: Forecast) -> dict[str, Any]:
    """What ``forecast.json`` holds: volumes in millilitres, days since the first visit."""
    return {
        "notice": NOTICE,
        "participant": found.participant,
        "history_days": [visit.day for visit in found.past],
        "day": found.day,
        "samples": len(found.volumes_ml),
        "evaluations": found.how.evaluations,
        "sampler": found.how.sampler,
        "guidance": found.how.guidance,
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
        "response": response(found),
        "certificate": certificate(found.certified),
    }


def response(found: Forecast) -> dict[str, Any]:
    """The odds of each category of response, by the enhancing tumour where the first visit of the
    history has a
    measurable one, else by the whole tumour."""
    enhancing, whole = (list(REGIONS).index(name) for name in ("enhancing", "whole"))
    at = enhancing if found.history_ml[0, enhancing] >= MEASURABLE_ML else whole
    past = found.history_ml[:, at]
    return {
        "by": list(REGIONS)[at],
        "baseline_ml": float(past[0]),
        "nadir_ml": float(past.min()),
        "odds": dict(odds(found.volumes_ml[:, at], history_ml=past)),
    }


def certificate(found: Certified) -> dict[str, Any]:
    """What physics says, as numbers: shares of the first samples, and limits of this patient."""
    raw = found.raw
    fitted = len(raw.kept) == len(LAWS)
    return {
        "passed": float(raw.passed.mean()) if raw.kept else None,
        "kept": {law: float(kept.mean()) for law, kept in raw.kept.items()},
        "redrawn": found.redrawn,
        "failing": found.failing,
        "fitted": fitted,
        "front_mm": float(np.median(raw.front_mm)),
        "front_permitted_mm": raw.permitted_mm if fitted else None,
        "log_growth": float(np.median(raw.growth)),
        "log_growth_permitted": raw.permitted_growth if fitted else None,
        "equation_rms": float(np.median(raw.rms)) if fitted else None,
    }


def spread(values: Float[ndarray, " sample"]) -> dict[str, float | list[float]]:
    """Median and central intervals of samples."""
    intervals = {name: quantiles(values, edges) for name, edges in INTERVALS.items()}
    return {"median": float(np.median(values)), **intervals}


def _drawn(
    network: Network, asked: Query, how: Sampling, *, seed: int
) -> tuple[Float32[ndarray, "sample field x y z"], Certified]:
    """Samples, of which those that break a law were drawn again."""
    drawn = futures(network, asked, how, seed=seed).numpy()
    raw = certify(asked, drawn, network.preset)
    failing = np.flatnonzero(~raw.passed)
    redrawn = 0
    for turn in range(1, REDRAWS + 1):
        if not len(failing):
            break
        fewer = replace(how, samples=max(2, len(failing)))
        again = futures(network, asked, fewer, seed=seed + turn * RESEED).numpy()[: len(failing)]
        redrawn += len(failing)
        lawful = certify(asked, again, network.preset).passed
        drawn[failing[lawful]] = again[lawful]
        failing = failing[~lawful]
    return drawn, Certified(raw=raw, redrawn=redrawn, failing=len(failing))


def _native(last: Visit) -> Native:
    x, y, z = last.tumor.data.shape
    return Native(shape=(x, y, z), affine_mm=last.tumor.affine_mm)


def _index(patient: Patient, visit: int | str) -> int:
    sessions = [one.session for one in patient.visits]
    if isinstance(visit, str) and visit in sessions:
        return sessions.index(visit)
    if isinstance(visit, int) and 0 <= visit < len(sessions):
        return visit
    raise CohortRefusal(
        "a session that this patient does not have, or that the check excludes",
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
