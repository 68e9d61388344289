"""What happened to a patient's data, as plain data: the accountant says what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from oncofed_common.errors import PrivacyRefusal
from oncofed_common.privacy.mechanism import LEAST_NOISE, MOST_NOISE
from oncofed_common.privacy.sampling import inclusion_threshold

MOST_STEPS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class SubsampledGaussian:
    """``steps`` sums over Poisson samples, each with Gaussian noise; neighbours differ by one patient.

    Args:
        rate: probability with which the patient is in a sum; 1 means every sum.
        noise_multiplier: standard deviation of the noise over the clip norm.
        steps: number of sums, whether or not anybody was drawn.

    Raises:
        PrivacyRefusal: a number outside what can be accounted, NaN included.
    """

    rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        inclusion_threshold(self.rate)
        if not LEAST_NOISE <= self.noise_multiplier <= MOST_NOISE:
            raise PrivacyRefusal(
                f"a noise multiplier of {self.noise_multiplier:g}",
                allowed=f"between {LEAST_NOISE:g} and {MOST_NOISE:g}",
                next="correct the study",
                code="mechanism",
            )
        if not 1 <= self.steps <= MOST_STEPS:
            raise PrivacyRefusal(
                f"{self.steps} steps",
                allowed=f"between 1 and {MOST_STEPS}",
                next="correct the study",
                code="mechanism",
            )
