"""The pictures of docs/forecasts.md: six test patients, two of them those on whom the forecast fails worst.

    PYTHONPATH=benchmarks .venv/bin/python docs/six_forecasts.py

The cases are the first of ``benchmarks/forecast.py``: hospitals unlike any of the pretraining. Ranked
by the CRPS of the log volume; drawn are the quantiles 0, 1/4, 1/2 and 3/4 and the two worst.
``forecasts.tsv`` is a table of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _foreign import Case, case

from oncofed_client.forecasts.forecast import INTERVALS, Forecast, forecast
from oncofed_client.forecasts.panel import draw
from oncofed_common.diffusion.generate import Sampling
from oncofed_common.metrics.scores import crps, log_volume, quantiles
from oncofed_common.model.network import best_dtype
from oncofed_common.model.presets import SMALL
from oncofed_common.model.regions import REGIONS
from oncofed_common.model.weights import load_base
from oncofed_common.workers import each
from oncofed_simulation.memory import one_thread

CASES = 36
HERE = Path(__file__).parent
WHOLE = list(REGIONS).index("whole")
SAMPLES, EVALUATIONS = 32, 12


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One case, forecast."""

    index: int
    case: Case
    found: Forecast
    crps: float


def drawn(index: int) -> Drawn:
    of = case(index)
    found = forecast(
        of.patient,
        history=of.history,
        day=of.patient.visits[of.target].day,
        weights=load_base(SMALL, sha256=None),
        how=Sampling(samples=SAMPLES, evaluations=EVALUATIONS, dtype=best_dtype()),
        seed=1000 + index,
    )
    assert found.truth is not None
    truth = float(log_volume(found.truth.volumes_ml)[WHOLE])
    return Drawn(
        index=index,
        case=of,
        found=found,
        crps=crps(log_volume(found.volumes_ml[:, WHOLE]), truth),
    )


def main() -> None:
    made = [one for _, one in each(drawn, range(CASES), workers=2, prepare=one_thread)]
    ranked = sorted(made, key=lambda one: one.crps)
    places = [round(share * (CASES - 1)) for share in (0.0, 0.25, 0.5, 0.75)]
    chosen = [ranked[at] for at in (*places, CASES - 2, CASES - 1)]
    rows = [
        [
            "picture",
            "case",
            "crps",
            "days",
            "before_ml",
            "median_ml",
            "low_ml",
            "high_ml",
            "came_ml",
        ]
    ]
    for number, one in enumerate(chosen, start=1):
        draw(one.found, HERE / f"forecasts-{number}.png")
        volumes = one.found.volumes_ml[:, WHOLE]
        assert one.found.truth is not None
        edges = [np.median(volumes), *quantiles(volumes, INTERVALS["interval_90"])]
        before, came = one.found.past[-1].volumes_ml[WHOLE], one.found.truth.volumes_ml[WHOLE]
        numbers = (f"{value:.1f}" for value in (before, *edges, came))
        rows.append(
            [f"{number}", f"{one.index}", f"{one.crps:.2f}", f"{one.case.gap_days}", *numbers]
        )
    text = "".join("\t".join(row) + "\n" for row in rows)
    (HERE / "forecasts.tsv").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
