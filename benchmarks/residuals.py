"""How far off is a forecast by fitted physics, and what shape has its error?

What the kernel of ``diffusion/noise.py`` and the deviations of ``model/prior.py`` follow. Virtual
patients of the pretraining's kind, every pair of visits: the change of the whole tumour's distance that
came, less the one that physics expected, in the units in which the model generates it. Its correlation
over distances, where physics' draws differ at all; and its root mean square by how much they differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from _figures import Figure, report
from _foreign import collected
from jaxtyping import Float
from numpy import ndarray

from oncofed_common.model.prepare import EXPECTED_MAPS, examples
from oncofed_common.model.presets import SMALL
from oncofed_common.outlook import outlook
from oncofed_simulation.training_set import Settings, patient_of

PATIENTS = 60
SEED = 5
LAGS_VOXELS = (1, 4, 12)
BINS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.8, 9.0)
DIFFER = 0.05


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The whole tumour's error in one forecast, and the standard deviation of physics' draws."""

    error: Float[ndarray, "x y z"]
    spread: Float[ndarray, "x y z"]


def pairs(index: int) -> list[Pair]:
    """Those of one patient of whom physics could say something."""
    settings = Settings(preset=SMALL.name, patients=PATIENTS, steps=1, seed=SEED)
    found = examples(
        patient_of(settings, index), SMALL, limit_pairs=settings.pairs, foresee=outlook
    )
    return [
        Pair(
            error=(one.target[0] - one.query.conditions[-EXPECTED_MAPS]).numpy(),
            spread=one.query.conditions[2 - EXPECTED_MAPS].numpy(),
        )
        for one in found
        if one.query.conditions[-1].any()
    ]


def correlation(found: Sequence[Pair], lag: int) -> float:
    """Of the errors at two places that many voxels apart along x, where draws differ at both."""
    products = np.zeros(3)
    for pair in found:
        differ = pair.spread > DIFFER
        both = differ[:-lag] & differ[lag:]
        one, other = pair.error[:-lag][both], pair.error[lag:][both]
        products += [(one * other).sum(), (one**2).sum(), (other**2).sum()]
    return float(products[0] / np.sqrt(products[1] * products[2]))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=PATIENTS)
    asked = parser.parse_args(arguments)
    found = [pair for made in collected(pairs, range(asked.patients)).values() for pair in made]
    figures = [Figure(name="pairs", value=float(len(found)), unit="")]
    figures += [
        Figure(
            name=f"correlation at {lag * SMALL.spacing_mm:g} mm",
            value=correlation(found, lag),
            unit="",
        )
        for lag in LAGS_VOXELS
    ]
    errors, spreads = (
        np.concatenate([getattr(p, name).ravel() for p in found]) for name in Pair.__annotations__
    )
    for low, high in pairwise(BINS):
        chosen = (spreads >= low) & (spreads < high)
        figures.append(
            Figure(
                name=f"error where draws differ by {low:g} to {high:g}, root mean square",
                value=float(np.sqrt(np.square(errors[chosen]).mean())) if chosen.any() else None,
                unit="",
            )
        )
    return report(figures, title="The errors of fitted physics", path=asked.json)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
