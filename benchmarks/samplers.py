"""Which way from noise to a forecast, and in how many steps?

Every process with every sampler at 20 evaluations of the network, ``angular`` with 4 to 200, the
distilled one with 4, and guidance of several strengths, on the same test cases and from the same noise
as ``forecast.py``. The weights are the shipped ones: they serve every process. CRPS is of the natural
logarithm of the whole tumour's volume.

Each patient's scores are kept in ``--cache``; a second call goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _figures import Figure, report
from _foreign import case, collected

from oncofed_common.diffusion.generate import Sampling
from oncofed_common.diffusion.processes import PROCESSES
from oncofed_common.diffusion.samplers import (
    DISTILLED,
    DISTILLED_EVALUATIONS,
    LEANS,
    SAMPLERS,
    TIMES,
)
from oncofed_common.metrics.judge import judge
from oncofed_common.model.network import best_dtype
from oncofed_common.model.prepare import Example, query, target
from oncofed_common.model.presets import SMALL
from oncofed_common.model.weights import load_base, network_of, parse, preset_of
from oncofed_common.outlook import outlook

PATIENTS = 18
VERSION = 1
"""Of what is cached: raise it with the code that makes patients or forecasts."""
SAMPLES = 16
MANY = 200
FEW = (4, 8, 12, 20, MANY)
GUIDANCE = (0.5, 1.5, 2.0)
SHIPPED = "angular, rectified_flow, 12"
"""What ``oncofed-site forecast`` does."""
FEWEST = "distilled, rectified_flow, 4"


@dataclass(frozen=True, kw_only=True)
class AnyNumber(Sampling):
    """Sampling with as many evaluations as wished, to see what the limit costs."""

    samples: int = SAMPLES
    dtype: torch.dtype = field(default_factory=best_dtype)

    def __post_init__(self) -> None:
        """Refuses nothing: 200 evaluations are the yardstick that no forecast may use."""


def ways() -> Mapping[str, Sampling]:
    """What is compared, by name."""
    found: dict[str, Sampling] = {
        f"{sampler}, {process}, 20": AnyNumber(evaluations=20, sampler=sampler, process=process)
        for process in PROCESSES
        for sampler in SAMPLERS
        if sampler != DISTILLED
    }
    found[FEWEST] = AnyNumber(evaluations=DISTILLED_EVALUATIONS, sampler=DISTILLED)
    for count in FEW:
        found[f"angular, rectified_flow, {count}"] = AnyNumber(evaluations=count)
    for strength in GUIDANCE:
        found[f"{SHIPPED}, guidance {strength:g}"] = AnyNumber(evaluations=12, guidance=strength)
    return found


def row(index: int, path: str, cache: str) -> dict[str, tuple[float, float]]:
    """CRPS of one case, and whether its 90 % interval held the truth, for every way."""
    data = Path(path).read_bytes() if path else b""
    weights = parse(data, preset_of(data), sha256=None) if path else load_base(SMALL, sha256=None)
    told = [VERSION, index, weights.sha256, {name: repr(how) for name, how in ways().items()}]
    told += [repr(TIMES), repr(LEANS)]
    kept = Path(cache) / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]}.json"
    if kept.exists():
        return {name: (crps, held) for name, (crps, held) in json.loads(kept.read_text()).items()}
    of = case(index)
    day = of.patient.visits[of.target].day
    asked = query(of.patient, weights.preset, history=of.history, day=day, foresee=outlook)
    change, known = target(of.patient, weights.preset, asked, index=of.target)
    example = Example(query=asked, target=change, known=known)
    network = network_of(weights)
    found = {}
    for name, how in ways().items():
        score = judge(network, example, how, seed=1000 + index)
        found[name] = (score.crps_log_volume, float(bool(score.covered_90)))
    draft = kept.with_suffix(".draft")
    draft.write_text(json.dumps(found))
    draft.rename(kept)
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=PATIENTS)
    parser.add_argument("--weights", default="", help="a weights file; the shipped one without")
    parser.add_argument("--cache", type=Path, default=Path("bench-out/samplers"))
    asked = parser.parse_args(arguments)
    asked.cache.mkdir(parents=True, exist_ok=True)
    indices = [3 * number for number in range(asked.patients)]
    rows = list(
        collected(partial(row, path=asked.weights, cache=str(asked.cache)), indices).values()
    )
    means = {name: np.mean([r[name] for r in rows], axis=0) for name in ways()}
    many = means[f"angular, rectified_flow, {MANY}"][0]
    figures = [
        Figure(
            name="CRPS of the default, 12 evaluations, over 200",
            value=means[SHIPPED][0] / many,
            unit="x",
            bar=1.02,
        ),
        Figure(name="CRPS of the distilled 4 over 200", value=means[FEWEST][0] / many, unit="x"),
    ]
    for name, (crps, held) in means.items():
        figures.append(Figure(name=f"CRPS, {name}", value=float(crps), unit=""))
        figures.append(
            Figure(name=f"coverage of 90 % intervals, {name}", value=float(held), unit="")
        )
    return report(figures, title="Ways from noise to a forecast", path=asked.json, rows=rows)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
