"""What ``forecast.py`` says of its cases: every way of forecasting judged on the same patients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from _figures import Figure
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from oncofed_common.metrics.baselines import (
    LAWS,
    grown_ml,
    no_change_with_spread,
    rate_between,
    rate_per_day,
)
from oncofed_common.metrics.calibration import Reliability, together
from oncofed_common.metrics.scores import covered, crps, log_volume
from oncofed_common.model.dropout import LOSS_RATES

MODEL = "model"
SHARES: Mapping[str, float] = {
    "no change": 0.8,
    "logistic": 0.8,
    "no change with spread": 0.9,
    "physics": 1.0,
}
"""By how much the model must be better than each of these: the most that its CRPS may be of theirs."""
DOSES: Mapping[str, float] = {"half_dose": 0.5, "dose_plus_quarter": 1.25}
LEAST_ML = 0.5
BOOTSTRAP = 4000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case: what came, what was before, and what each way of forecasting said."""

    hospital: int
    gap_days: int
    volumes_ml: tuple[float, ...]
    days: tuple[int, ...]
    truth_ml: float
    samples_ml: dict[str, tuple[float, ...]]
    places: dict[str, float | None]
    bins: Reliability
    far_bins: Reliability
    lawful: float
    lawful_as_answered: float
    effects: dict[str, tuple[float, float]]
    zero_dose: float | None


Scores = dict[str, Float[ndarray, " row"]]


def summary(rows: Sequence[Row]) -> list[Figure]:
    """The figures of all cases: those with a bar first, then the rest, then each quarter of the gaps."""
    arms = baselines(rows) | {
        name: [None if name not in r.samples_ml else np.array(r.samples_ml[name]) for r in rows]
        for name in (MODEL, "physics", "few", *(f"without {what}" for what in LOSS_RATES))
    }
    scores = {name: scored(of, rows) for name, of in arms.items()}
    hospitals = np.array([r.hospital for r in rows])
    figures = []
    for name, share in SHARES.items():
        found = ratio(scores[MODEL], scores[name])
        figures.append(Figure(name=f"CRPS, model over {name}", value=found, unit="", bar=share))
        figures += likely(
            f"CRPS, model over {name}",
            lambda chosen, name=name: ratio(scores[MODEL][chosen], scores[name][chosen]),
            hospitals,
        )
    for level, floor, bar in ((0.5, None, None), (0.9, 0.85, 0.95)):
        held, name = holding(rows, level), f"coverage of {level:.0%} intervals"
        share = float(held.mean())
        figures.append(Figure(name=name, value=share, unit="", bar=bar, floor=floor))
        figures += likely(name, lambda chosen, held=held: float(held[chosen].mean()), hospitals)
    error = together([r.bins for r in rows]).error
    lawful = mean([r.lawful for r in rows])
    figures.append(Figure(name="reliability error of voxels", value=error, unit="", bar=0.05))
    far = together([r.far_bins for r in rows])
    name = "tumour farther out than is judged, forecast over came"
    figures.append(Figure(name=name, value=float(far.stated.sum() / far.happened.sum()), unit="x"))
    name = "raw samples that pass the physics certificate"
    figures.append(Figure(name=name, value=lawful, unit="", floor=0.95))
    answered = mean([r.lawful_as_answered for r in rows])
    name = "the same before tumour is kept out of fluid and air"
    figures.append(Figure(name=name, value=answered, unit=""))
    figures += dose_figures(rows)
    figures += [
        Figure(name=f"CRPS, {name}", value=mean(of), unit="")
        for name, of in scores.items()
        if name != "few" and not name.startswith("without ")
    ]
    figures += [
        Figure(
            name=f"CRPS without {what}, ratio",
            value=ratio(scores[f"without {what}"], scores["few"]),
            unit="x",
        )
        for what in LOSS_RATES
    ]
    everywhere = np.ones(len(rows), dtype=bool)
    figures += place_figures(rows, everywhere, "")
    figures += by_gap(rows, scores)
    patients = float(len(rows))
    return [*figures, Figure(name="patients", value=patients, unit="")]


def scored(of: Sequence[ndarray | None], rows: Sequence[Row]) -> Float[ndarray, " row"]:
    """The CRPS of the log volume of each row; NaN where nothing was said."""
    truth = log_volume(np.array([r.truth_ml for r in rows]))
    return np.array(
        [
            np.nan if said is None else crps(log_volume(said), came)
            for said, came in zip(of, truth, strict=True)
        ]
    )


def holding(rows: Sequence[Row], level: float) -> Bool[ndarray, " row"]:
    """Whether the model's central interval held what came."""
    truth = log_volume(np.array([r.truth_ml for r in rows]))
    said = [log_volume(np.array(r.samples_ml[MODEL])) for r in rows]
    return np.array([covered(s, t, level=level) for s, t in zip(said, truth, strict=True)])


def likely(
    name: str,
    value: Callable[[Int[ndarray, " row"]], float],
    hospitals: Int[ndarray, " row"],
) -> list[Figure]:
    """A 95 % interval for other hospitals like these: whole hospitals are drawn again (bootstrap)."""
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(hospitals == one) for one in np.unique(hospitals)]
    drawn = [
        value(np.concatenate([groups[at] for at in rng.integers(len(groups), size=len(groups))]))
        for _ in range(BOOTSTRAP)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return [
        Figure(name=f"{name}: 95 % from", value=float(low), unit=""),
        Figure(name=f"{name}: 95 % to", value=float(high), unit=""),
    ]


def by_gap(rows: Sequence[Row], scores: Scores) -> list[Figure]:
    """Everything by quarter of the days between the last visit and the target; and where the model loses."""
    gaps = np.array([r.gap_days for r in rows])
    quarter = np.searchsorted(np.quantile(gaps, [0.25, 0.5, 0.75]), gaps)
    others = ("physics", "no change", "no change with spread", *LAWS)
    figures, lost = [], dict.fromkeys(others, 0)
    for number in range(4):
        chosen = quarter == number
        when = f", {gaps[chosen].min()} to {gaps[chosen].max()} days"
        of = [r for r, yes in zip(rows, chosen, strict=True) if yes]
        for name in (MODEL, *others):
            crps_mean = mean(scores[name][chosen])
            figures.append(Figure(name=f"CRPS, {name}{when}", value=crps_mean, unit=""))
        for name in others:
            lost[name] += ratio(scores[MODEL][chosen], scores[name][chosen]) > 1
        for level in (0.5, 0.9):
            held = float(holding(of, level).mean())
            name = f"coverage of {level:.0%} intervals{when}"
            figures.append(Figure(name=name, value=held, unit=""))
        error = together([r.bins for r in of]).error
        figures.append(Figure(name=f"reliability error{when}", value=error, unit=""))
        figures += place_figures(rows, chosen, when)
    return [
        *(
            Figure(name=f"quarters in which {name} is better than the model", value=n, unit="")
            for name, n in lost.items()
        ),
        *figures,
    ]


def place_figures(rows: Sequence[Row], chosen: Bool[ndarray, " row"], when: str) -> list[Figure]:
    """Outlines and images of some rows."""
    of = [r.places for r, yes in zip(rows, chosen, strict=True) if yes]
    keys = sorted({key for places in of for key in places})
    return [
        Figure(name=key + when, value=mean([places.get(key) for places in of]), unit="")
        for key in keys
    ]


def baselines(rows: Sequence[Row]) -> dict[str, list[ndarray | None]]:
    """Every baseline's samples for each row, fitted on the other hospitals' patients."""
    made: dict[str, list[ndarray | None]] = {
        name: [] for name in ("no change", "no change with spread", *LAWS)
    }
    for r in rows:
        last = r.volumes_ml[-1]
        others = [o for o in rows if o.hospital != r.hospital]
        before, after = (
            log_volume(np.array(found))
            for found in ([o.volumes_ml[-1] for o in others], [o.truth_ml for o in others])
        )
        made["no change"].append(np.array([last]))
        made["no change with spread"].append(no_change_with_spread(last, after - before))
        for law in LAWS:
            rates = [
                rate_between(
                    law, max(o.volumes_ml[-1], LEAST_ML), max(o.truth_ml, LEAST_ML), o.gap_days
                )
                for o in others
            ]
            rate = rate_per_day(
                law,
                r.days,
                [max(v, LEAST_ML) for v in r.volumes_ml],
                usual=float(np.median(rates)),
                spread=float(np.std(rates)),
            )
            made[law].append(np.array([grown_ml(law, max(last, LEAST_ML), rate, r.gap_days)]))
    return made


def dose_figures(rows: Sequence[Row]) -> list[Figure]:
    """How the forecast answers to treatment, against the kept truth."""
    treated = [r.effects for r in rows if r.effects]
    monotone = [e["dose_plus_quarter"][0] <= 1e-9 and e["half_dose"][0] >= -1e-9 for e in treated]
    zero = [r.zero_dose for r in rows if r.zero_dose is not None]
    figures = [
        Figure(name="more dose, never more tumour", value=mean(monotone), unit="", floor=0.95),
        Figure(
            name="zero dose against none, largest", value=max(zero, default=None), unit="", bar=0.05
        ),
        Figure(name="patients with a dose to come", value=float(len(treated)), unit=""),
    ]
    for name in (*DOSES, "untreated"):
        known = [e[name] for e in treated if name in e]
        wrong, nothing = [abs(said - was) for said, was in known], [abs(was) for _, was in known]
        figures += [
            Figure(name=f"error of the effect of {name}", value=mean(wrong), unit=""),
            Figure(name=f"error if {name} did nothing", value=mean(nothing), unit=""),
        ]
    return figures


def ratio(one: Float[ndarray, " row"], other: Float[ndarray, " row"]) -> float:
    """Of means, over the rows that both have."""
    both = np.isfinite(one) & np.isfinite(other)
    return float(one[both].mean() / other[both].mean())


def mean(values: Sequence[float | None] | ndarray) -> float | None:
    kept = [float(v) for v in values if v is not None and np.isfinite(v)]
    return float(np.mean(kept)) if kept else None
