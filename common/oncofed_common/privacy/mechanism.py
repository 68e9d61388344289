"""What does one private step do to the data, in numbers?

Each patient's gradient is clipped to the norm C and laid onto the integer grid of ``σC / 2^16``; on that
grid its norm is at most ``2^16 / σ``, and the noise has the standard deviation 2^16 whatever C and σ are.
The sum is divided by ``rate × declared``, a public number: the true number of patients appears nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from oncofed_common.errors import PrivacyRefusal
from oncofed_common.privacy.sampling import inclusion_threshold

NOISE_UNITS = 1 << 16
"""Standard deviation of the noise, in grid units."""

LEAST_NOISE, MOST_NOISE = 2.0**-4, 2.0**8
"""Noise multipliers between which the grid neither overflows nor loses the gradient."""


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """The constants of a subsampled Gaussian step, all from the study.

    Args:
        clip_norm: C, the largest L2 norm that one patient's gradient keeps.
        noise_multiplier: σ; the noise on the sum has standard deviation σC.
        sampling_rate: probability with which a patient of the frame is drawn for a step.
        declared_patients: the site's public, rounded number of patients.

    Raises:
        PrivacyRefusal: a constant under which no privacy can be stated, NaN included.
    """

    clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    declared_patients: int

    def __post_init__(self) -> None:
        if not 1e-9 <= self.clip_norm <= 1e9:
            raise _unusable("clip norm", self.clip_norm, "between 1e-9 and 1e9")
        if not LEAST_NOISE <= self.noise_multiplier <= MOST_NOISE:
            raise _unusable(
                "noise multiplier",
                self.noise_multiplier,
                f"between {LEAST_NOISE:g} and {MOST_NOISE:g}",
            )
        inclusion_threshold(self.sampling_rate)
        if self.declared_patients < 1:
            raise _unusable("declared cohort size", self.declared_patients, "1 or more")

    @property
    def grid_step(self) -> float:
        """One grid unit in units of the gradient: ``σC / 2^16``."""
        return self.noise_multiplier * self.clip_norm / NOISE_UNITS

    @property
    def squared_norm_limit(self) -> int:
        """The largest squared norm of a patient on the grid: ``floor((2^16 / σ)²)``, exactly."""
        return int((NOISE_UNITS / Fraction(self.noise_multiplier)) ** 2)

    @property
    def gradient_per_unit(self) -> float:
        """What one grid unit of the noised sum adds to the mean gradient."""
        return self.grid_step / (self.sampling_rate * self.declared_patients)


def _unusable(what: str, found: float | int, allowed: str) -> PrivacyRefusal:
    return PrivacyRefusal(
        f"a {what} of {found:g}", allowed=allowed, next="correct the study", code="mechanism"
    )
