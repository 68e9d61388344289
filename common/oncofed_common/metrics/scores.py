"""How good is a forecast that is a distribution?

CRPS = E|X - y| - E|X - X'| / 2 (Gneiting & Raftery 2007, eq. 21), X and X' independent draws of the
forecast, y what came: in the units of y, smaller is better, and the absolute error where the forecast
is a single value. Here X is the empirical distribution of the samples.

Volumes are scored as natural logarithms, so that 0.1 is about ten per cent whatever the tumour's
size. A volume counts as half a millilitre at least, a sphere of 10 mm across: RANO calls nothing
smaller measurable (Wen et al. 2010), and a tumour that is gone has no logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import brentq
from scipy.stats import norm

MEASURABLE_ML = 0.5


def crps(samples: Float[ndarray, " sample"], truth: float) -> float:
    """The CRPS of an ensemble, in the units of ``truth``; of one sample, its distance.

    The estimate is that of the distribution which the samples are drawn from, whatever their number
    (Ferro 2014): a large ensemble has no advantage over a small one.
    """
    ordered = np.sort(samples)
    count = len(ordered)
    rank = 2.0 * np.arange(1, count + 1) - count - 1.0
    spread = 2.0 * float((rank * ordered).sum()) / max(1, count * (count - 1))
    return float(np.abs(ordered - truth).mean()) - spread / 2.0


def gaussian_scale(values: Float[ndarray, " value"]) -> float:
    """The s for which N(0, s^2) forecasts the values best, by mean CRPS: that of s with mean phi(value / s) =
    1 / (2 sqrt(pi)), phi the standard normal density.

    The derivative of the CRPS of N(0, s^2) in s (Gneiting & Raftery 2007, eq. 21). Unlike the root mean
    square, it does not hang on the few largest.
    """
    sizes = np.abs(values)

    def slope(log_scale: float) -> float:
        return float(norm.pdf(sizes / np.exp(log_scale)).mean()) - 0.5 / math.sqrt(math.pi)

    low, high = np.log(sizes[sizes > 0].min()) - 9.0, np.log(sizes.max()) + 9.0
    return math.exp(brentq(slope, low, high))


def covered(samples: Float[ndarray, " sample"], truth: float, *, level: float) -> bool:
    """Whether the central interval of that probability holds the truth."""
    low, high = quantiles(samples, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return bool(low <= truth <= high)


def quantiles(samples: Float[ndarray, " sample"], shares: Sequence[float]) -> list[float]:
    """Edges below which the next value lies with these probabilities, if it is one more such sample.

    Of n samples the k-th smallest is such an edge for k / (n + 1) (Hyndman & Fan 1996, definition 6):
    an interval between the plain quantiles of 32 samples would hold not 90 but 85 % of what comes.
    """
    return [float(edge) for edge in np.quantile(samples, shares, method="weibull")]


def log_volume(volume_ml: Float[ndarray, "*n"]) -> Float[ndarray, "*n"]:
    """Natural logarithm of a volume in millilitres, of ``MEASURABLE_ML`` at least."""
    return np.asarray(np.log(np.maximum(volume_ml, MEASURABLE_ML)))
