"""Does a model forecast better than the guess that nothing changes?

Each patient's last visit is forecast from all the visits before it. Scored: the CRPS of the
log volume of the whole tumour (NETC + SNFH + ET, within the window), and the Dice overlap of its
outline where the samples' share is one half or more. "No change" is the last visit of the history,
as a point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from oncofed_common.cohort import Patient
from oncofed_common.diffusion.generate import Sampling, futures
from oncofed_common.metrics.overlap import dice
from oncofed_common.metrics.scores import covered, crps, log_volume
from oncofed_common.model.network import Network, best_device
from oncofed_common.model.prepare import Example, query, target
from oncofed_common.model.prepare import states as states_of
from oncofed_common.model.presets import Preset
from oncofed_common.model.regions import REGIONS, labels_from, masks, volumes_ml
from oncofed_common.model.weights import Weights, network_of
from oncofed_common.outlook import outlook

NO_CHANGE = "no_change"
WHOLE = list(REGIONS).index("whole")


@dataclass(frozen=True, kw_only=True)
class Score:
    """One forecast of one patient against what came.

    Args:
        crps_log_volume: of the whole tumour, in natural log units.
        dice: of the whole tumour.
        covered_50, covered_90: whether that central interval of the volume held the truth; None
            for a point forecast.
    """

    crps_log_volume: float
    dice: float
    covered_50: bool | None
    covered_90: bool | None


def last_visit(patient: Patient, preset: Preset) -> Example:
    """The patient's last visit, to be forecast from every visit before it.

    Raises:
        CohortRefusal: fewer than two visits (``bad_history``), or no tumour before the last
            (``no_tumor``).
    """
    index = len(patient.visits) - 1
    asked = query(
        patient, preset, history=range(index), day=patient.visits[index].day, foresee=outlook
    )
    change, known = target(patient, preset, asked, index=index)
    return Example(query=asked, target=change, known=known)


def judge(network: Network, example: Example, how: Sampling, *, seed: int) -> Score:
    """Forecast one example and score it."""
    drawn = futures(network, example.query, how, seed=seed).numpy()
    labels = np.stack([labels_from(state[: len(REGIONS)]) for state in drawn])
    whole = np.stack([masks(one)[WHOLE] for one in labels])
    volumes = np.array([volumes_ml(one, network.preset)[WHOLE] for one in labels])
    return _score(whole.mean(axis=0) >= 0.5, volumes, example, network.preset)


def judge_no_change(example: Example, preset: Preset) -> Score:
    """Score the last visit of the history as if it were the forecast."""
    before = labels_from(example.query.reference.numpy()[: len(REGIONS)])
    volume = volumes_ml(before, preset)[WHOLE : WHOLE + 1]
    score = _score(masks(before)[WHOLE], volume, example, preset)
    return Score(
        crps_log_volume=score.crps_log_volume, dice=score.dice, covered_50=None, covered_90=None
    )


def evaluate(
    patients: Sequence[Patient],
    weights: Mapping[str, Weights],
    *,
    how: Sampling,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Mean scores over patients, for each named set of weights and for "no change".

    Args:
        patients: at least two visits each; the preset is that of the weights, the same for all.
        weights: name to weights; each draws the same noise.

    Returns:
        ``crps_log_volume``, ``dice``, ``coverage_50`` and ``coverage_90``, each name to mean.

    Raises:
        CohortRefusal: a patient of whom nothing can be forecast.
    """
    shape = next(iter(weights.values())).preset
    examples = [last_visit(patient, shape) for patient in patients]
    scores: dict[str, list[Score]] = {
        name: [
            judge(network, example, how, seed=seed + number)
            for network in [network_of(found).to(best_device())]
            for number, example in enumerate(examples)
        ]
        for name, found in weights.items()
    }
    scores[NO_CHANGE] = [judge_no_change(example, shape) for example in examples]
    return summary(scores)


def summary(scores: Mapping[str, Sequence[Score]]) -> dict[str, dict[str, float]]:
    """Means of each score for each name; coverage only where there is an interval."""
    means: dict[str, dict[str, float]] = {}
    for what in ("crps_log_volume", "dice", "covered_50", "covered_90"):
        for name, many in scores.items():
            values = [value for one in many if (value := getattr(one, what)) is not None]
            if values:
                title = what.replace("covered", "coverage")
                means.setdefault(title, {})[name] = float(np.mean(values))
    return means


def _score(
    outline: Bool[ndarray, "x y z"],
    volumes: Float[ndarray, " sample"],
    example: Example,
    preset: Preset,
) -> Score:
    came = states_of(example.query, example.target[None], preset)[0].numpy()
    truth = labels_from(came[: len(REGIONS)])
    log_truth = float(log_volume(volumes_ml(truth, preset)[WHOLE : WHOLE + 1])[0])
    logs = log_volume(volumes)
    return Score(
        crps_log_volume=crps(logs, log_truth),
        dice=dice(outline, masks(truth)[WHOLE]),
        covered_50=covered(logs, log_truth, level=0.5),
        covered_90=covered(logs, log_truth, level=0.9),
    )
