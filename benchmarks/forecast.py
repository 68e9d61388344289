"""Is the shipped forecast right about how sure it is, and does it beat simple guesses?

Virtual patients of hospitals unlike any of the pretraining (``_foreign.py``). Each is forecast once, from
the visits up to some day, on a later visit's day. Beside the model: nothing changes, as a point and with
the spread of the other patients; logistic and Gompertz growth of the volume; the fitted reaction and
diffusion alone; and the model without each of its conditions (of which physics then knows nothing either),
on every fourth patient. CRPS is of the natural logarithm of the whole tumour's volume. Treatment: each
patient whose radiotherapy lies between the two visits is forecast under other doses with the same noise,
and compared with what the simulator kept of that world. Intervals: hospitals drawn again (bootstrap).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from _figures import report
from _forecast_figures import DOSES, MODEL, Row, summary
from _foreign import PATIENTS_PER_HOSPITAL, Case, case, collected, untreated, with_dose
from jaxtyping import Float
from monai.metrics.regression import SSIMMetric
from numpy import ndarray

from oncofed_common import outlook
from oncofed_common.cohort import CHANNELS, Patient
from oncofed_common.diffusion.generate import Sampling, as_answered, futures
from oncofed_common.errors import CohortRefusal
from oncofed_common.metrics.calibration import Reliability, reliability
from oncofed_common.metrics.certificate import certify
from oncofed_common.metrics.overlap import average_precision, dice, surface_distance_95_mm
from oncofed_common.metrics.scores import crps, log_volume
from oncofed_common.model.barren import barren, kept_out
from oncofed_common.model.dropout import LOSS_RATES
from oncofed_common.model.lacking import ask_without
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
"""Voxels are judged within the distance limit of the last outline, and those without tumour farther away
apart from them: there are so many that what is said of them would hide the rest."""


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
    answered = as_answered(network, asked, sampling(SAMPLES), seed=seed)
    drawn = kept_out(answered, barren(asked, preset)).numpy()
    samples = {MODEL: whole_ml(drawn, weights)}
    foreseen = outlook.volumes_ml(of.patient, preset, seen, day=day, draws=SAMPLES)
    if foreseen is not None:
        samples["physics"] = foreseen
    if index % EVERY == 0:
        for name in LOSS_RATES:
            try:
                bare = ask_without(
                    of.patient,
                    preset,
                    name=name,
                    history=of.history,
                    day=day,
                    foresee=outlook.outlook,
                )
            except CohortRefusal:
                continue  # without it there is nothing to forecast
            some = futures(network, bare, sampling(FEW_SAMPLES), seed=seed).numpy()
            samples[f"without {name}"] = whole_ml(some, weights)
        samples["few"] = samples[MODEL][:FEW_SAMPLES]
    effects, zero_dose = treatment(of, weights, network, drawn, seed=seed)
    places, bins, far_bins = placed(drawn, truth, truth_labels, came, weights)
    return Row(
        hospital=index // PATIENTS_PER_HOSPITAL,
        gap_days=of.gap_days,
        volumes_ml=tuple(float(v[WHOLE]) for v in seen.volumes_ml),
        days=tuple(visit.day for visit in seen.visits),
        truth_ml=float(volumes_ml(truth_labels, preset)[WHOLE]),
        samples_ml={name: tuple(float(v) for v in found) for name, found in samples.items()},
        places=places,
        bins=bins,
        far_bins=far_bins,
        lawful=lawful(asked, drawn, weights),
        lawful_as_answered=lawful(asked, answered.numpy(), weights),
        effects=effects,
        zero_dose=zero_dose,
    )


def lawful(asked: Query, drawn: ndarray, weights: Weights) -> float:
    """The share of samples that pass the physics certificate."""
    return float(certify(asked, drawn, weights.preset).passed.mean())


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
) -> tuple[dict[str, float | None], Reliability, Reliability]:
    """Where the tumour was put, voxel by voxel, by the model and by "no change", and the images; how right
    the model's probabilities were near the last outline, and farther out."""
    was = came.query.reference.numpy()
    before = masks(labels_from(was[: len(REGIONS)]))[WHOLE]
    after = masks(truth_labels)[WHOLE]
    inside = np.stack([masks(labels_from(s[: len(REGIONS)]))[WHOLE] for s in drawn])
    share = inside.mean(axis=0)
    near = np.abs(was[WHOLE]) < NEAR
    spacing_mm = weights.preset.spacing_mm
    moved = np.abs(share - before)
    surfaces = [
        surface_distance_95_mm(one, after, spacing_mm=spacing_mm) for one in (share >= 0.5, before)
    ]
    both = None not in surfaces
    changed = average_precision(moved[near], (before != after)[near])
    chance = float((before != after)[near].mean()) if near.any() else None
    found: dict[str, float | None] = {
        "dice model": dice(share >= 0.5, after),
        "dice no change": dice(before, after),
        "surface model": surfaces[0] if both else None,
        "surface no change": surfaces[1] if both else None,
        "change": changed,
        "change by chance": chance if changed is not None else None,
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
    far = ~near & ~before
    return found, reliability(share[near], after[near]), reliability(share[far], after[far])


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
    if of.history == (0,):  # else the untreated world was another one before the history ended
        effects["untreated"] = (none - planned, true("untreated") - actual)
    zero = median(with_dose(of.patient, course, times=0.0))
    return effects, float(np.expm1(abs(zero - none)))


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
