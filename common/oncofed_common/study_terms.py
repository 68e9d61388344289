"""The rooms of a study file: strict models, with units in their names. ``study`` puts them together."""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from oncofed_common.wire import DECIMAL, Hex64, Name

_UNSEEN = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Control characters, ends of lines, and what turns the order of reading."""

Text = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=rf"^[^{_UNSEEN}]+$")]
TensorName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]{1,200}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Group = Literal["all", "irradiated", "not_irradiated", "small", "large"]
"""A name of ``groups.GROUPS``."""
METRICS = "metrics"
"""The name under which noised means travel beside an update."""
Whole = Annotated[int, Field(ge=1, lt=2**53)]
"""A count that JSON can spell exactly."""
Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


def as_tuple(value: object) -> object:
    """TOML has lists only; the frozen model holds tuples."""
    return tuple(value) if isinstance(value, list) else value


def _sayable(value: float) -> float:
    """A number that every reply can repeat: as it is written here, with 12 decimals at most."""
    plain = format(Decimal(repr(value)), "f")
    if not re.fullmatch(DECIMAL, plain):
        raise ValueError(f"{value!r} has more than 12 decimals, or 9 digits before them")
    return value


class Terms(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class About(Terms):
    """What people read."""

    title: Text
    contact: Text
    ethics_reference: Text
    expires: date
    release: Literal["weights", "weights_and_audit"]


class CohortTerms(Terms):
    """What a patient must have to take part."""

    modalities: Annotated[tuple[Text, ...], BeforeValidator(as_tuple), Field(min_length=1)]
    label_scheme: Annotated[
        dict[TensorName, Annotated[int, Field(ge=1, lt=2**15)]], Field(min_length=1)
    ]
    spacing_mm: Positive
    crop_voxels: Annotated[int, Field(ge=16, le=256, multiple_of=8)]
    fewest_visits: Annotated[int, Field(ge=2, le=50)]
    held_out_fraction: Annotated[float, Field(gt=0, le=0.9, allow_inf_nan=False)]


class ModelTerms(Terms):
    """Which network, from which first values, and which weights are trained."""

    preset: Text
    base_sha256: Hex64
    adapters: Text


class TrainingTerms(Terms):
    """How one site trains in one round. ``sampling_rate`` is the Poisson rate of one patient; ``proximal``
    pulls weights back to those that the round began with (FedProx, Li et al. 2020)."""

    rounds: Annotated[int, Field(ge=1, le=10_000)]
    steps_per_round: Annotated[int, Field(ge=1, le=10_000)]
    sampling_rate: Annotated[float, Field(ge=1e-6, le=1, allow_inf_nan=False)]
    pairs_per_patient: Annotated[int, Field(ge=1, le=64)]
    draws_per_patient: Annotated[int, Field(ge=2, le=64)]
    optimizer: Literal["sgd", "adam"]
    learning_rate: Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)]
    dtype: Literal["float32", "bfloat16"]
    threads: Annotated[int, Field(ge=1, le=256)]
    proximal: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None


class PrivacyTerms(Terms):
    """What a study costs each patient; ``epsilon`` is recomputed by every site.

    The last two stand where ``outbound.metrics`` names groups, and cost those who are held out: the most that
    one patient's loss counts, and the noise on the sum of such losses.
    """

    clip_norm: Annotated[float, Field(ge=1e-9, le=1e9, allow_inf_nan=False)]
    noise_multiplier: Annotated[float, Field(ge=2**-4, le=2**8, allow_inf_nan=False)]
    epsilon: Annotated[Positive, AfterValidator(_sayable)]
    delta: Annotated[Fraction, AfterValidator(_sayable)]
    metric_bound: Annotated[float, Field(ge=1e-6, le=100, allow_inf_nan=False)] | None = None
    metric_noise_multiplier: (
        Annotated[float, Field(ge=2**-4, le=2**8, allow_inf_nan=False)] | None
    ) = None


class OutboundTerms(Terms):
    """What may leave a site, and when."""

    bytes_per_round: Annotated[int, Field(ge=1024, lt=2**53)]
    reply_after_s: Annotated[int, Field(ge=0, le=86_400)]
    metrics: Annotated[tuple[Group, ...], BeforeValidator(as_tuple)]


class SiteTerms(Terms):
    """One invited hospital: its approver key's fingerprint and its public, rounded size."""

    name: Name
    fingerprint: Hex64
    declared_patients: Whole
    weight: Annotated[int, Field(ge=1, le=2**20)]


class TensorTerms(Terms):
    """One trained tensor: the outbound door's whole vocabulary."""

    name: TensorName
    shape: Annotated[tuple[Whole, ...], BeforeValidator(as_tuple), Field(max_length=8)]
    dtype: Literal["float32"]


class VirtualTerms(Terms):
    """Only for homes made by ``init --virtual``: a seed makes a run repeatable and unprotected."""

    seed: Annotated[int, Field(ge=0, lt=2**53)]
