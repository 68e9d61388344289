"""Is the shipped forecast right about how sure it is, and does it beat simple guesses?

Virtual patients of hospitals unlike any of the pretraining (``_foreign.py``). Each is forecast once, from
the visits up to some day, on a later visit's day. Beside the model: nothing changes, as a point and with
the spread of the other patients; logistic and Gompertz growth of the volume; the fitted reaction and
diffusion alone; and the model without each of its conditions, on every fourth patient. CRPS is of the
natural logarithm of the whole tumour's volume. Treatment: each patient whose radiotherapy lies between the
two visits is forecast under other doses with the same noise, and compared with what the simulator kept of
that world.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from _figures import Figure, report
from _foreign import Case, case, collected, untreated, with_dose
from jaxtyping import Float
from monai.metrics.regression import SSIMMetric
from numpy import ndarray

from oncofed_common import outlook
from oncofed_common.cohort import CHANNELS, Patient
from oncofed_common.diffusion.generate import Sampling, futures
from oncofed_common.metrics.baselines import LAWS, grown_ml, no_change_with_spread, rate_per_day
from oncofed_common.metrics.calibration import Reliability, reliability, together
from oncofed_common.metrics.certificate import certify
from oncofed_common.metrics.overlap import average_precision, dice, surface_distance_95_mm
from oncofed_common.metrics.scores import covered, crps, log_volume
from oncofed_common.model.dropout import LOSS_RATES, query_without
from oncofed_common.model.network import Network, best_dtype
from oncofed_common.model.prepare import Example, Query, query, states, target, view
from oncofed_common.model.presets import SMALL
from oncofed_common.model.regions import REGIONS, labels_from, masks, volumes_ml
from oncofed_common.model.weights import Weights, load_base, network_of, parse, preset_of

PATIENTS = 108
SAMPLES, FEW_SAMPLES = 32, 16
EVALUATIONS = 12
EVERY = 4
WHOLE = list(REGIONS).index("whole")
NEAR = 1.0
"""Voxels are judged within the distance limit of the last outline: farther away nothing is ever said."""
DOSES: Mapping[str, float] = {"half_dose": 0.5, "dose_plus_quarter": 1.25}
MODEL = "model"


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
    lawful: float
    effects: dict[str, tuple[float, float]]
    zero_dose: float | None


@lru_cache(maxsize=1)
def _network(path: str) -> tuple[Weights, Network]:
    data = Path(path).read_bytes() if path else b""
    weights = parse(data, preset_of(data), sha256=None) if path else load_base(SMALL, sha256=None)
    return weights, network_of(weights)


def row(index: int, path: str) -> Row:
    """Forecast one case in every way."""
    of = case(index)
    weights, network = _network(path)
    preset = weights.preset
    day = of.patient.visits[of.target].day
    seen = view(of.patient, preset, history=of.history)
    asked = ask(of.patient, of, weights)
    change, known = target(of.patient, preset, asked, index=of.target)
    came = Example(query=asked, target=change, known=known)
    truth = states(asked, change[None], preset)[0].numpy()
    truth_labels = labels_from(truth[: len(REGIONS)])
    seed = 1000 + index
    drawn = futures(network, asked, sampling(SAMPLES), seed=seed).numpy()
    samples = {MODEL: whole_ml(drawn, weights)}
    foreseen = outlook.volumes_ml(of.patient, preset, seen, day=day, draws=SAMPLES)
    if foreseen is not None:
        samples["physics"] = foreseen
    if index % EVERY == 0:
        for name in LOSS_RATES:
            bare = query_without(asked, [name], preset=preset)
            some = futures(network, bare, sampling(FEW_SAMPLES), seed=seed).numpy()
            samples[f"without {name}"] = whole_ml(some, weights)
        samples["few"] = samples[MODEL][:FEW_SAMPLES]
    effects, zero_dose = treatment(of, weights, network, drawn, seed=seed)
    places, bins = placed(drawn, truth, truth_labels, came, weights)
    return Row(
        hospital=index // 9,
        gap_days=of.gap_days,
        volumes_ml=tuple(float(v[WHOLE]) for v in seen.volumes_ml),
        days=tuple(visit.day for visit in seen.visits),
        truth_ml=float(volumes_ml(truth_labels, preset)[WHOLE]),
        samples_ml={name: tuple(float(v) for v in found) for name, found in samples.items()},
        places=places,
        bins=bins,
        lawful=float(certify(asked, drawn, preset).passed.mean()),
        effects=effects,
        zero_dose=zero_dose,
    )


def ask(patient: Patient, of: Case, weights: Weights) -> Query:
    """The case's question about a patient (its own, or the same one treated otherwise)."""
    day = of.patient.visits[of.target].day
    return query(patient, weights.preset, history=of.history, day=day, foresee=outlook.outlook)


def sampling(samples: int) -> Sampling:
    return Sampling(samples=samples, evaluations=EVALUATIONS, dtype=best_dtype())


def whole_ml(drawn: ndarray, weights: Weights) -> Float[ndarray, " sample"]:
    labels = [labels_from(state[: len(REGIONS)]) for state in drawn]
    return np.array([volumes_ml(one, weights.preset)[WHOLE] for one in labels])


def placed(
    drawn: ndarray, truth: ndarray, truth_labels: ndarray, came: Example, weights: Weights
) -> tuple[dict[str, float | None], Reliability]:
    """Where the tumour was put, voxel by voxel, by the model and by "no change"; and the images."""
    was = came.query.reference.numpy()
    before = masks(labels_from(was[: len(REGIONS)]))[WHOLE]
    after = masks(truth_labels)[WHOLE]
    inside = np.stack([masks(labels_from(s[: len(REGIONS)]))[WHOLE] for s in drawn])
    share = inside.mean(axis=0)
    near = np.abs(was[WHOLE]) < NEAR
    spacing_mm = weights.preset.spacing_mm
    moved = np.abs(share - before)
    found: dict[str, float | None] = {
        "dice model": dice(share >= 0.5, after),
        "dice no change": dice(before, after),
        "surface model": surface_distance_95_mm(share >= 0.5, after, spacing_mm=spacing_mm),
        "surface no change": surface_distance_95_mm(before, after, spacing_mm=spacing_mm),
        "change": average_precision(moved[near], (before != after)[near]),
        "change by chance": float((before != after)[near].mean()),
    }
    for at in range(len(REGIONS), len(REGIONS) + len(CHANNELS)):
        if came.known[at]:
            for name, image in (("model", drawn[:, at].mean(axis=0)), ("no change", was[at])):
                pair = (torch.from_numpy(x)[None, None] for x in (image, truth[at]))
                similar = SSIMMetric(spatial_dims=3, data_range=2.5, win_size=7)(*pair)
                channel = CHANNELS[at - len(REGIONS)]
                found[f"ssim {name} {channel}"] = float(similar)
                error = float(np.square(image - truth[at]).mean())
                found[f"psnr {name} {channel}"] = 10 * np.log10(2.5**2 / error)
    return found, reliability(share[near], after[near])


def treatment(
    of: Case, weights: Weights, network: Network, drawn: ndarray, *, seed: int
) -> tuple[dict[str, tuple[float, float]], float | None]:
    """For each other dose, the forecast and the true change of the median log volume; and how far a dose of
    zero is from no treatment, as a share of the volume."""
    course = of.dose_to_come
    if course is None:
        return {}, None
    planned = float(np.median(log_volume(whole_ml(drawn[:FEW_SAMPLES], weights))))

    def median(patient: Patient) -> float:
        some = futures(network, ask(patient, of, weights), sampling(FEW_SAMPLES), seed=seed)
        return float(np.median(log_volume(whole_ml(some.numpy(), weights))))

    def true(world: str) -> float:
        return float(log_volume(np.array([of.worlds_ml[world][0]]))[0])

    actual = true("actual")
    effects = {
        name: (median(with_dose(of.patient, course, times=times)) - planned, true(name) - actual)
        for name, times in DOSES.items()
    }
    none = median(untreated(of.patient, course))
    if of.history == (0,):
        effects["untreated"] = (none - planned, true("untreated") - actual)
    else:
        effects["none"] = (none - planned, np.nan)
    zero = median(with_dose(of.patient, course, times=0.0))
    return effects, float(np.expm1(abs(zero - none)))


def summary(rows: Sequence[Row]) -> list[Figure]:
    """The figures of all cases."""
    truth = log_volume(np.array([r.truth_ml for r in rows]))
    arms = baselines(rows) | {
        name: [None if name not in r.samples_ml else np.array(r.samples_ml[name]) for r in rows]
        for name in (MODEL, "physics", "few", *(f"without {what}" for what in LOSS_RATES))
    }
    scores = {
        name: np.array(
            [
                np.nan if s is None else crps(log_volume(s), t)
                for s, t in zip(of, truth, strict=True)
            ]
        )
        for name, of in arms.items()
    }
    shares = {"no change": 0.8, "logistic": 0.8, "no change with spread": 0.9, "physics": 1.0}
    model = scores[MODEL]
    figures = [
        Figure(
            name=f"CRPS, model over {name}", value=ratio(model, scores[name]), unit="", bar=share
        )
        for name, share in shares.items()
    ]
    logs = [log_volume(np.array(r.samples_ml[MODEL])) for r in rows]
    for level, floor, bar in ((0.5, None, None), (0.9, 0.85, 0.95)):
        held = [covered(s, t, level=level) for s, t in zip(logs, truth, strict=True)]
        figures.append(
            Figure(
                name=f"coverage of {level:.0%} intervals",
                value=mean(held),
                unit="",
                bar=bar,
                floor=floor,
            )
        )
    figures.append(
        Figure(
            name="reliability error of voxels",
            value=together([r.bins for r in rows]).error,
            unit="",
            bar=0.05,
        )
    )
    figures.append(
        Figure(
            name="raw samples that pass the physics certificate",
            value=mean([r.lawful for r in rows]),
            unit="",
            floor=0.95,
        )
    )
    figures += dose_figures(rows)
    figures += [
        Figure(name=f"CRPS, {name}", value=mean(scores[name]), unit="")
        for name in (MODEL, "physics", *(n for n in arms if n in baselines(rows)))
    ]
    figures += [
        Figure(name=f"CRPS without {what}, ratio", unit="x", value=ratio(without_it, scores["few"]))
        for what in LOSS_RATES
        if (without_it := scores[f"without {what}"]) is not None
    ]
    keys = sorted({key for r in rows for key in r.places})
    figures += [
        Figure(name=key, value=mean([r.places.get(key) for r in rows]), unit="") for key in keys
    ]
    edges = np.quantile([r.gap_days for r in rows], [0.25, 0.5, 0.75])
    quarter = np.searchsorted(edges, [r.gap_days for r in rows])
    for number in range(4):
        chosen = quarter == number
        gaps = [r.gap_days for r, yes in zip(rows, chosen, strict=True) if yes]
        for name in (MODEL, "physics", "no change", "no change with spread", "logistic"):
            figures.append(
                Figure(
                    name=f"CRPS, {name}, {min(gaps)} to {max(gaps)} days",
                    value=mean(scores[name][chosen]),
                    unit="",
                )
            )
    figures.append(Figure(name="patients", value=float(len(rows)), unit=""))
    return figures


def baselines(rows: Sequence[Row]) -> dict[str, list[ndarray | None]]:
    """Every baseline's samples for each row, fitted on the other hospitals' patients."""
    made: dict[str, list[ndarray | None]] = {
        name: [] for name in ("no change", "no change with spread", *LAWS)
    }
    for r in rows:
        last = r.volumes_ml[-1]
        others = [o for o in rows if o.hospital != r.hospital]
        ratios = [
            float(
                log_volume(np.array([o.truth_ml]))[0] - log_volume(np.array([o.volumes_ml[-1]]))[0]
            )
            for o in others
        ]
        made["no change"].append(np.array([last]))
        made["no change with spread"].append(no_change_with_spread(last, ratios))
        rates = np.array([x / o.gap_days for x, o in zip(ratios, others, strict=True)])
        usual, spread = float(np.median(rates)), float(np.std(rates))
        for law in LAWS:
            rate = rate_per_day(
                law,
                r.days,
                [max(v, 0.5) for v in r.volumes_ml],
                usual=usual,
                spread=spread,
            )
            made[law].append(np.array([grown_ml(law, max(last, 0.5), rate, r.gap_days)]))
    return made


def dose_figures(rows: Sequence[Row]) -> list[Figure]:
    """How the forecast answers to treatment, against the kept truth."""
    treated = [r.effects for r in rows if r.effects]
    monotone = [e["dose_plus_quarter"][0] <= 1e-9 and e["half_dose"][0] >= -1e-9 for e in treated]
    errors = {name: [abs(said - was) for e in treated for said, was in [e[name]]] for name in DOSES}
    nothing = {name: [abs(was) for e in treated for _, was in [e[name]]] for name in DOSES}
    zero = [r.zero_dose for r in rows if r.zero_dose is not None]
    return [
        Figure(name="more dose, never more tumour", value=mean(monotone), unit="", floor=0.95),
        Figure(
            name="zero dose against none, largest", value=max(zero, default=None), unit="", bar=0.05
        ),
        Figure(name="patients with a dose to come", value=float(len(treated)), unit=""),
        *(
            Figure(name=f"error of the effect of {name}", value=mean(errors[name]), unit="")
            for name in DOSES
        ),
        *(
            Figure(name=f"error if {name} did nothing", value=mean(nothing[name]), unit="")
            for name in DOSES
        ),
    ]


def told(index: int, of: Row) -> dict[str, object]:
    """What the JSON file keeps of a case: to see on whom a forecast fails."""
    truth = float(log_volume(np.array([of.truth_ml]))[0])
    drawn = {name: log_volume(np.array(ml)) for name, ml in of.samples_ml.items()}
    return {
        "case": index,
        "gap_days": of.gap_days,
        "before_ml": of.volumes_ml[-1],
        "came_ml": of.truth_ml,
        "median_ml": float(np.median(of.samples_ml[MODEL])),
        "crps": {name: crps(logs, truth) for name, logs in drawn.items()},
        "effects": of.effects,
    }


def ratio(one: Float[ndarray, " row"], other: Float[ndarray, " row"]) -> float:
    """Of means, over the rows that both have."""
    both = np.isfinite(one) & np.isfinite(other)
    return float(one[both].mean() / other[both].mean())


def mean(values: Sequence[float | None] | ndarray) -> float | None:
    kept = [float(v) for v in values if v is not None and np.isfinite(v)]
    return float(np.mean(kept)) if kept else None


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=PATIENTS)
    parser.add_argument("--weights", default="", help="a weights file; the shipped one without")
    asked = parser.parse_args(arguments)
    made = collected(partial(row, path=asked.weights), range(asked.patients))
    rows = [made[index] for index in sorted(made)]
    return report(
        summary(rows),
        title="Forecasts of patients from hospitals that training never saw the like of",
        path=asked.json,
        rows=[told(index, made[index]) for index in sorted(made)],
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
