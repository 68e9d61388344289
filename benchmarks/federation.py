"""Does it help to train together under privacy, and whom?

Three hospitals unlike any of the pretraining (``_foreign.py``), sixty patients each to learn from and
twelve to be judged on, who are others for every seed. From the base weights on: each hospital alone and
all three together, under epsilon 8 at delta 1e-5 for every patient; together without privacy; all
patients in one pool without privacy; together with twenty patients each; and together with a learning
rate of zero, which must score as the base does to the bit. Everything is the trainer's own: pairs,
loss, drawn patients, clipping, noise. All arms take the steps and the learning rate of the shipped
study, chosen under privacy: without it, others might do better. CRPS is of the natural logarithm of the
whole tumour's volume on each patient's last visit; a hospital alone is compared with what training
together does for its own patients.

``--choose`` compares adapter sets and learning rates instead, on patients who are judged in no seed:
the shipped study (``oncofed_simulation/demo.toml``) should be what that table favours.

Patients and results are kept in ``--cache``; a second call goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from _figures import Figure, report
from _foreign import SEED, foreign_hospital
from _training import Arm, Terms, loss_of, shipped, train
from jaxtyping import Float
from numpy import ndarray

from oncofed_common.diffusion.generate import Sampling
from oncofed_common.metrics.judge import judge, judge_no_change
from oncofed_common.model.adapters import ADAPTERS, select
from oncofed_common.model.network import best_dtype
from oncofed_common.model.prepare import Batch, Example, examples, stack
from oncofed_common.model.presets import SMALL
from oncofed_common.model.weights import load_base, network_of
from oncofed_common.outlook import outlook
from oncofed_common.privacy.engine import patient_gradient
from oncofed_common.workers import each
from oncofed_simulation.memory import hand_back, one_thread
from oncofed_simulation.patients import virtual_patient
from oncofed_simulation.training_set import scored_patients

HOSPITALS, LEARN, JUDGED, SEEDS = 3, 60, 12, 5
FIRST_HOSPITAL = 21
"""Those of ``forecast.py`` have smaller numbers."""
SAMPLES, EVALUATIONS = 16, 12
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
FEW = 20
VERSION = 1
"""Of what is cached: raise it with the code that makes patients or forecasts."""
STUDENT = 2.776
"""Of Student's t with four degrees of freedom, for 95 % over five seeds."""


def arms(terms: Terms) -> list[Arm]:
    """What is compared, but for the base itself."""
    everybody = tuple(range(HOSPITALS))
    together = Arm(name="together", terms=terms, hospitals=everybody, learn=LEARN)
    return [
        replace(together, name="learning rate zero", terms=replace(terms, learning_rate=0.0)),
        *(replace(together, name=f"hospital {h + 1} alone", hospitals=(h,)) for h in everybody),
        together,
        replace(together, name=f"together, {FEW} patients each", learn=FEW),
        replace(together, name="together without privacy", private=False),
        replace(together, name="pooled without privacy", private=False, pooled=True),
    ]


def choices(terms: Terms, clips: Mapping[str, float]) -> list[Arm]:
    """The shipped terms, and every adapter set at every learning rate."""
    everybody = tuple(range(HOSPITALS))
    return [
        Arm(name="as shipped", terms=terms, hospitals=everybody, learn=LEARN),
        *(
            Arm(
                name=f"{adapters}, learning rate {rate:g}",
                terms=replace(
                    terms, adapters=adapters, learning_rate=rate, clip_norm=clips[adapters]
                ),
                hospitals=everybody,
                learn=LEARN,
            )
            for adapters in sorted(ADAPTERS)
            for rate in RATES
        ),
    ]


def store(job: tuple[int, int], cache: str) -> None:
    """Make one patient's pairs; the first is the last visit from all before it."""
    hospital, place = job
    file = stored(cache, hospital, place)
    home = foreign_hospital(FIRST_HOSPITAL + hospital)
    patient = virtual_patient(home, seed=SEED, number=place).patient
    found = examples(patient, SMALL, limit_pairs=shipped().pairs_per_patient, foresee=outlook)
    draft = file.with_suffix(".draft")
    torch.save(found, draft)
    draft.rename(file)
    hand_back()


def stored(cache: str, hospital: int, place: int) -> Path:
    return Path(cache) / f"patient-{hospital}-{place:03d}.pt"


@lru_cache(maxsize=1)
def everyone(cache: str) -> list[list[list[Example]]]:
    """Each hospital's patients, each as its pairs; a patient without a pair takes no part."""
    files = [[stored(cache, h, n) for n in range(LEARN + JUDGED)] for h in range(HOSPITALS)]
    found = [[torch.load(file, weights_only=False) for file in of] for of in files]  # our own
    return [[pairs for pairs in patients if pairs] for patients in found]


def split(cache: str, fold: int) -> tuple[list[list[Batch]], list[Example]]:
    """Each hospital's patients to learn from, and all who are judged, for one fold."""
    learn, judged = [], []
    for patients in everyone(cache):
        assert len(patients) == LEARN + JUDGED, "every patient has a pair"
        first = fold * JUDGED
        order = [*patients[first:], *patients[:first]]
        judged += [pairs[0] for pairs in order[:JUDGED]]
        learn.append([stack(pairs) for pairs in order[JUDGED:]])
    return learn, judged


def score(job: tuple[Arm | None, int], cache: str) -> list[float]:
    """CRPS of every judged patient for one arm (None: the base) and seed."""
    arm, seed = job
    words = json.dumps([None if arm is None else asdict(arm), seed, base_digest()])
    kept = Path(cache) / f"score-{hashlib.sha256(words.encode()).hexdigest()[:16]}.json"
    if kept.exists():
        return list(json.loads(kept.read_text()))
    learn, judged = split(cache, seed)
    network = (
        network_of(load_base(SMALL, sha256=None)) if arm is None else train(arm, learn, seed=seed)
    )
    how = Sampling(samples=SAMPLES, evaluations=EVALUATIONS, dtype=best_dtype())
    found = [
        judge(network, example, how, seed=seed * 1000 + at).crps_log_volume
        for at, example in enumerate(judged)
    ]
    draft = kept.with_suffix(f".draft{os.getpid()}")
    draft.write_text(json.dumps(found))
    draft.rename(kept)
    return found


def base_digest() -> str:
    return load_base(SMALL, sha256=None).sha256


def clip_norms(terms: Terms) -> dict[str, float]:
    """For each adapter set, the median norm of a gradient over patients of other hospitals."""
    norms: dict[str, list[float]] = {name: [] for name in ADAPTERS}
    for number, patient in enumerate(scored_patients(SEED, JUDGED)):
        batch = stack(
            examples(patient, SMALL, limit_pairs=terms.pairs_per_patient, foresee=outlook)
        )
        for name in ADAPTERS:
            network = network_of(load_base(SMALL, sha256=None))
            gradient = patient_gradient(
                batch,
                loss_of=loss_of(network, terms),
                parameters=list(select(network, name).values()),
                generator=torch.Generator().manual_seed(number),
            )
            norms[name].append(float(gradient.norm()))
    return {name: float(f"{np.median(found):.2g}") for name, found in norms.items()}


def scores(
    jobs: Sequence[tuple[Arm | None, int]], cache: str, processes: int
) -> dict[tuple[str, int], Float[ndarray, " patient"]]:
    """Of every job, in two processes, with a line of progress."""
    found = {}
    for (arm, seed), values in each(
        partial(score, cache=cache), jobs, workers=processes, prepare=one_thread
    ):
        found["base" if arm is None else arm.name, seed] = np.array(values)
        print(f"\rtrained and judged {len(found)} of {len(jobs)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return found


def compared(cache: str, seeds: int, processes: int) -> list[Figure]:
    """The arms over seeds."""
    every = arms(shipped())
    found = scores([(arm, s) for s in range(seeds) for arm in (None, *every)], cache, processes)

    def mean(name: str, hospital: int | None = None) -> Float[ndarray, " seed"]:
        own = slice(None) if hospital is None else slice(hospital * JUDGED, (hospital + 1) * JUDGED)
        return np.array([found[name, seed][own].mean() for seed in range(seeds)])

    alone = np.mean([mean(f"hospital {h + 1} alone", h) for h in range(HOSPITALS)], axis=0)
    means = {"base": mean("base"), "alone, each on its own patients": alone}
    means |= {arm.name: mean(arm.name) for arm in every if len(arm.hospitals) > 1}
    still = [
        np.mean([judge_no_change(e, SMALL).crps_log_volume for e in split(cache, s)[1]])
        for s in range(seeds)
    ]
    figures = [Figure(name="CRPS, no change", value=float(np.mean(still)), unit="")]
    figures += [Figure(name=f"CRPS, {n}", value=float(m.mean()), unit="") for n, m in means.items()]
    for name in [name for name in means if name != "base"]:
        figures += gained(f"over the base, {name}", means["base"] - means[name])
    figures += gained("of training together over alone", alone - means["together"])
    zero = max(
        float(np.abs(found["learning rate zero", s] - found["base", s]).max()) for s in range(seeds)
    )
    name = "learning rate zero against the base, largest"
    return [*figures, Figure(name=name, value=zero, unit="", bar=0.0)]


def gained(name: str, gain: Float[ndarray, " seed"]) -> list[Figure]:
    """The mean gain, and its 95 % interval over seeds."""
    return [
        Figure(name=f"gain {name}", value=float(gain.mean()), unit=""),
        Figure(name=f"its 95 % interval, +-, {name}", value=half_width(gain), unit=""),
    ]


def half_width(gains: Float[ndarray, " seed"]) -> float | None:
    """Of the interval of the mean over seeds; None for fewer than five."""
    if len(gains) != SEEDS:
        return None
    return STUDENT * float(gains.std(ddof=1)) / math.sqrt(SEEDS)


def chosen(cache: str, processes: int) -> list[Figure]:
    """The table of adapter sets and rates, on the fold that no seed judges."""
    clips = clip_norms(shipped())
    every = choices(shipped(), clips)
    found = scores([(arm, SEEDS) for arm in (None, *every)], cache, processes)
    base = found["base", SEEDS]
    figures = [Figure(name="CRPS, base", value=float(base.mean()), unit="")]
    figures += [
        Figure(name=f"clip norm, {name}", value=clip, unit="") for name, clip in clips.items()
    ]
    for arm in every:
        gain = base - found[arm.name, SEEDS]
        error = float(gain.std(ddof=1)) / math.sqrt(len(gain))
        figures += [
            Figure(name=f"gain, {arm.name}", value=float(gain.mean()), unit=""),
            Figure(name=f"its standard error, {arm.name}", value=error, unit=""),
        ]
    return figures


def folder(cache: Path) -> Path:
    """Where patients and results of these constants lie."""
    constants = [VERSION, SEED, FIRST_HOSPITAL, LEARN, JUDGED, SAMPLES, EVALUATIONS]
    words = json.dumps([*constants, shipped().pairs_per_patient, str(best_dtype())])
    return cache / hashlib.sha256(words.encode()).hexdigest()[:12]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("bench-out/federation"))
    parser.add_argument("--seeds", type=int, default=SEEDS, choices=range(1, SEEDS + 1))
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args(arguments)
    cache, processes = str(folder(asked.cache)), asked.processes
    Path(cache).mkdir(parents=True, exist_ok=True)
    every = [(hospital, place) for place in range(LEARN + JUDGED) for hospital in range(HOSPITALS)]
    jobs = [job for job in every if not stored(cache, *job).exists()]
    for made, _ in enumerate(
        each(partial(store, cache=cache), jobs, workers=processes, prepare=one_thread), start=1
    ):
        print(f"\rpatient {made} of {len(jobs)}", end="", file=sys.stderr)
    figures = chosen(cache, processes) if asked.choose else compared(cache, asked.seeds, processes)
    return report(figures, title="Training together under privacy", path=asked.json)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
