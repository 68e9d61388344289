"""What whoever reads a forecast should know: what was not read, is unusual, not modelled, or breaks a law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Float32, UInt8
from numpy import ndarray

from oncofed_common.cohort import Treatment
from oncofed_common.metrics.certificate import LAWS, Certificate
from oncofed_common.model.presets import Preset
from oncofed_common.model.tokens import USUAL_DOSE_GY


@dataclass(frozen=True, kw_only=True)
class Certified:
    """How the samples of a forecast keep to the laws fitted to its patient.

    Args:
        raw: of the first samples.
        redrawn: how many samples more were drawn in the place of such as failed.
        failing: how many of the forecast's samples still fail.
    """

    raw: Certificate
    redrawn: int
    failing: int


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


def unlawful(certified: Certified) -> tuple[str, ...]:
    found = []
    if certified.failing:
        found.append(
            f"{certified.failing} of {len(certified.raw.passed)} samples break a fitted law of growth"
        )
    if not certified.raw.kept:
        found.append("no tissue map: no law of growth is fitted, and nothing is certified")
    elif len(certified.raw.kept) < len(LAWS):
        found.append("no growth law could be fitted to this history; only the place is certified")
    return tuple(found)


def unread(indices: Sequence[int], preset: Preset) -> tuple[str, ...]:
    given = len(indices)
    if given <= preset.history:
        return ()
    return (f"{preset.history} of {given} visits read: the model sees the latest {preset.history}",)


def not_modelled(treatments: Sequence[Treatment], *, before: int) -> tuple[str, ...]:
    """Of what treatments the forecast knows less than the table says."""
    courses = [course for course in treatments if course.start_day < before]
    found = []
    if any(course.kind == "immunotherapy" for course in courses):
        found.append("immunotherapy is not modelled: the forecast is as if there were none")
    if any(course.kind == "radiotherapy" and course.dose_gy is None for course in courses):
        found.append(f"radiotherapy without a dose is taken for {USUAL_DOSE_GY:g} Gy")
    agents = {course.agent for course in courses if course.kind == "chemotherapy" and course.agent}
    if agents - {"temozolomide"}:
        found.append("every drug is taken for temozolomide")
    return tuple(found)


EDGE_VOXELS = 2


def unusual(
    last: Seen,
    *,
    ahead: Float32[ndarray, "x y z"],
    day: int,
    practised: tuple[int, int] | None,
) -> tuple[str, ...]:
    """
    Args:
        ahead: the share of samples in which a voxel is tumour.
        practised: the days ahead that the weights were trained on.
    """
    found = []
    days = day - last.day
    if practised is None:
        found.append("no card beside these weights says for how many days ahead they were trained")
    elif not practised[0] <= days <= practised[1]:
        found.append(
            f"{days} days ahead; the model was trained on {practised[0]} to {practised[1]}"
        )
    if _at_the_edge(last.labels > 0):
        found.append("the tumour reaches the edge of the model's window")
    elif _at_the_edge(ahead >= 0.5):
        found.append("the forecast reaches the edge of the model's window and is cut off there")
    if not last.images:
        found.append("the last visit has no images; the forecast rests on outlines")
    return tuple(found)


def _at_the_edge(tumor: Bool[ndarray, "x y z"]) -> bool:
    inner = (slice(EDGE_VOXELS, -EDGE_VOXELS),) * tumor.ndim
    return bool(tumor.sum() > tumor[inner].sum())
