"""Does it help to train together under privacy, and whom?

Three hospitals unlike any of the pretraining (``_foreign.py``), sixty patients each to learn from and
twelve to be judged on, who are others for every seed. From the base weights on, under epsilon 8 at delta 1e-5
for every patient: each hospital alone, every two of them, all three together, each with sixty patients and
with twenty; without privacy: together, and all patients in one pool. A learning rate of zero must score as
the base does to the bit. Everything is the trainer's own: pairs, loss, drawn patients, clipping, noise. All
arms take the steps and the learning rate of the shipped study, chosen under privacy: without it, others might
do better. Judged are the last visits of patients of the hospitals that took part: the CRPS of the natural
logarithm of the whole tumour's volume, and the denoising loss, which is of every voxel and far less noisy.

Seeds share the hospitals and most of the patients who are learned from: their interval is about other draws,
noise and judged patients, not about other hospitals.

``--choose`` compares adapter sets, learning rates and steps instead, on three hospitals of their own: all by
the loss, which tells them apart, and the best of each set by the CRPS, too. The shipped study
(``oncofed_simulation/demo.toml``) should be what that table favours.

Patients and results are kept in ``--cache``; a second call goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from itertools import combinations, product
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from _figures import Figure, report
from _foreign import SEED, foreign_hospital
from _gains import SEEDS, gained, verdict, with_error
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
from oncofed_simulation.arms import Arm, Terms, held_out_loss, loss_of, shipped, train
from oncofed_simulation.memory import hand_back, one_thread
from oncofed_simulation.patients import virtual_patient
from oncofed_simulation.training_set import scored_patients

HOSPITALS, LEARN, JUDGED = 3, 60, 12
EVERYBODY = tuple(range(HOSPITALS))
COMPARED, CHOSEN = 21, 24
"""The first hospital of those that are compared, and of those on which to choose. Those of ``forecast.py``
have smaller numbers."""
HOW = Sampling(samples=8, evaluations=4, sampler="distilled", dtype=best_dtype())
"""How the CRPS is judged: arms are compared, so by the sampler that costs least (it loses 0.9 %)."""
DRAWS = 8
RATES = (3e-3, 1e-2, 3e-2)
STEPS = (6, 18)
DRAWN = 2
FEW = 20
AS_SHIPPED = "as shipped"
VERSION = 2
"""Of what is cached: raise it with the code that makes patients or forecasts."""


def arms(terms: Terms) -> list[Arm]:
    """What is compared, but for the base itself."""
    together = Arm(name="together", terms=terms, hospitals=EVERYBODY, learn=LEARN)
    return [
        *(
            replace(together, name=name, hospitals=group, learn=learn)
            for learn in (LEARN, FEW)
            for name, group in groups(learn).items()
        ),
        replace(together, name="together without privacy", private=False),
        replace(together, name="pooled without privacy", private=False, pooled=True),
    ]


def groups(learn: int) -> dict[str, tuple[int, ...]]:
    """Who trains together: one hospital, two of them, all; a name for each."""
    found = [group for size in range(1, HOSPITALS + 1) for group in combinations(EVERYBODY, size)]
    return {f"{who(len(g))} {'+'.join(str(h + 1) for h in g)}, {learn}": g for g in found}


def who(hospitals: int) -> str:
    return "alone" if hospitals == 1 else f"{hospitals} together"


def choices(terms: Terms, clips: Mapping[str, float]) -> dict[str, list[Arm]]:
    """The shipped terms, every adapter set at every learning rate, and those worth it in more steps.

    Each with several draws of patients and noise, but for sets that need the whole network: those cost ten
    times as much.
    """
    as_shipped = Arm(name=AS_SHIPPED, terms=terms, hospitals=EVERYBODY, learn=LEARN)
    found = {as_shipped.name: [as_shipped]}
    for adapters in sorted(ADAPTERS):
        cheap = adapters == "prior"
        for rate, steps in product(RATES, STEPS if cheap else STEPS[:1]):
            name = f"{adapters}, learning rate {rate:g}, {steps} steps a round"
            tried = replace(
                terms,
                adapters=adapters,
                learning_rate=rate,
                steps_per_round=steps,
                clip_norm=clips[adapters],
            )
            found[name] = [
                replace(as_shipped, name=f"{name}, draw {number}", terms=tried)
                for number in range(DRAWN if cheap else 1)
            ]
    return found


def store(job: tuple[int, int], cache: str) -> None:
    """Make one patient's pairs; the first is the last visit from all before it."""
    hospital, place = job
    file = stored(cache, hospital, place)
    home = foreign_hospital(hospital)
    patient = virtual_patient(home, seed=SEED, number=place).patient
    found = examples(patient, SMALL, limit_pairs=shipped().pairs_per_patient, foresee=outlook)
    draft = file.with_suffix(".draft")
    torch.save(found, draft)
    draft.rename(file)
    hand_back()


def stored(cache: str, hospital: int, place: int) -> Path:
    return Path(cache) / f"patient-{hospital}-{place:03d}.pt"


@lru_cache(maxsize=1)
def everyone(cache: str, first: int) -> list[list[list[Example]]]:
    """Each hospital's patients, each as its pairs."""
    files = [[stored(cache, first + h, n) for n in range(LEARN + JUDGED)] for h in EVERYBODY]
    return [[torch.load(file, weights_only=False) for file in of] for of in files]  # our own


def split(cache: str, first: int, fold: int) -> tuple[list[list[Batch]], list[list[Example]]]:
    """Each hospital's patients to learn from, and those who are judged, for one fold."""
    learn, judged = [], []
    for patients in everyone(cache, first):
        assert all(patients), "every patient has a pair"
        order = [*patients[fold * JUDGED :], *patients[: fold * JUDGED]]
        judged.append([pairs[0] for pairs in order[:JUDGED]])
        learn.append([stack(pairs) for pairs in order[JUDGED:]])
    return learn, judged


Measure = Literal["crps", "loss"]
BOTH: tuple[Measure, ...] = ("crps", "loss")
Job = tuple[Arm | None, int]
"""An arm (None: the base) and a seed."""


def score(
    job: Job, cache: str, first: int, measures: tuple[Measure, ...]
) -> dict[Measure, list[list[float]]]:
    """What is measured of its hospitals' judged patients."""
    arm, seed = job
    told = [
        None if arm is None else asdict(arm),
        seed,
        base_digest(),
        repr(HOW) if "crps" in measures else None,
        DRAWS,
        first,
        measures,
    ]
    name = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    kept = Path(cache) / f"score-{name}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    learn, judged = split(cache, first, seed)
    network = (
        network_of(load_base(SMALL, sha256=None)) if arm is None else train(arm, learn, seed=seed)
    )

    def measured(measure: Measure, example: Example, number: int) -> float:
        if measure == "crps":
            return judge(network, example, HOW, seed=number).crps_log_volume
        return held_out_loss(network, example, draws=DRAWS, seed=number)

    found = {
        measure: [
            [
                measured(measure, example, (seed * HOSPITALS + hospital) * JUDGED + at)
                for at, example in enumerate(judged[hospital])
            ]
            for hospital in (EVERYBODY if arm is None else arm.hospitals)
        ]
        for measure in measures
    }
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
                loss_of=loss_of(network, replace(terms, adapters=name)),
                parameters=list(select(network, name).values()),
                generator=torch.Generator().manual_seed(number),
            )
            norms[name].append(float(gradient.norm()))
    return {name: float(f"{np.median(found):.2g}") for name, found in norms.items()}


Found = dict[tuple[str, int], dict[Measure, Float[ndarray, "hospital patient"]]]


def scores(
    jobs: Sequence[Job],
    cache: str,
    first: int,
    processes: int,
    measures: tuple[Measure, ...] = BOTH,
) -> Found:
    """Of every job, in so many processes, with a line of progress."""
    found: Found = {}
    of = partial(score, cache=cache, first=first, measures=measures)
    for (arm, seed), values in each(of, jobs, workers=processes, prepare=one_thread):
        found["base" if arm is None else arm.name, seed] = {
            measure: np.array(each_hospital) for measure, each_hospital in values.items()
        }
        print(f"\rtrained and judged {len(found)} of {len(jobs)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return found


def compared(cache: str, seeds: int, processes: int) -> list[Figure]:
    """The arms over seeds."""
    every = arms(shipped())
    still = replace(
        every[-1],
        name="learning rate zero",
        terms=replace(shipped(), learning_rate=0.0),
        private=True,
        pooled=False,
    )
    jobs = [(arm, seed) for seed in range(seeds) for arm in (None, *every)]
    found = scores([*jobs, (still, 0)], cache, COMPARED, processes)
    judged = [split(cache, COMPARED, seed)[1] for seed in range(seeds)]
    unchanged = [judge_no_change(e, SMALL).crps_log_volume for of in judged for h in of for e in h]
    base = np.mean([found["base", seed]["crps"].mean() for seed in range(seeds)])
    figures = [
        Figure(name="CRPS, no change", value=float(np.mean(unchanged)), unit=""),
        Figure(name="CRPS, base", value=float(base), unit=""),
    ]
    for name, members in sides(every).items():
        for measure in BOTH:
            gains = [
                np.mean([gain(found, arm, seed, measure).mean() for arm in members])
                for seed in range(seeds)
            ]
            figures += gained(f"in {measure}, {name}", np.array(gains))
            print(f"{name}, {measure}: {verdict(np.array(gains))}")
    zero = np.abs(gain(found, still, 0, "crps")).max() + np.abs(gain(found, still, 0, "loss")).max()
    name = "learning rate zero against the base, largest"
    return [*figures, Figure(name=name, value=float(zero), unit="", bar=0.0)]


def sides(every: Sequence[Arm]) -> dict[str, list[Arm]]:
    """What is reported as one: groups of as many hospitals with as many patients."""
    found: dict[str, list[Arm]] = {}
    for arm in every:
        of = f"{who(len(arm.hospitals))}, {arm.learn} patients each" if arm.private else arm.name
        found.setdefault(of, []).append(arm)
    return found


def gain(found: Found, arm: Arm, seed: int, measure: Measure) -> Float[ndarray, "hospital patient"]:
    """By how much the base is worse than an arm, for each patient of the arm's own hospitals."""
    base = found["base", seed][measure][list(arm.hospitals)]
    return np.asarray(base - found[arm.name, seed][measure])


def chosen(cache: str, processes: int) -> list[Figure]:
    """The table of adapter sets, rates and steps, on hospitals that are compared in no seed."""
    clips = clip_norms(shipped())
    every = choices(shipped(), clips)

    def found_of(names: Sequence[str], measure: Measure) -> Found:
        jobs = [(None, 0), *((arm, 0) for name in names for arm in every[name])]
        return scores(jobs, cache, CHOSEN, processes, measures=(measure,))

    by_loss = found_of(list(every), "loss")
    gains = {
        name: np.mean([gain(by_loss, arm, 0, "loss").ravel() for arm in drawn], axis=0)
        for name, drawn in every.items()
    }
    best = [
        max((n for n in every if n.startswith(f"{adapters},")), key=lambda n: gains[n].mean())
        for adapters in sorted(ADAPTERS)
    ]
    by_crps = found_of([AS_SHIPPED, *best], "crps")
    base = by_crps["base", 0]["crps"]
    figures = [Figure(name="CRPS, base", value=float(base.mean()), unit="")]
    figures += [
        Figure(name=f"clip norm, {name}", value=clip, unit="") for name, clip in clips.items()
    ]
    for name, found in gains.items():
        figures += with_error(f"loss, {name}", found)
    for name in (AS_SHIPPED, *best):
        found = np.mean([gain(by_crps, arm, 0, "crps").ravel() for arm in every[name]], axis=0)
        figures += with_error(f"crps, {name}", found)
    return figures


def folder(cache: Path) -> Path:
    """Where patients and results of these constants lie."""
    words = json.dumps([VERSION, SEED, LEARN, JUDGED, shipped().pairs_per_patient])
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
    first = CHOSEN if asked.choose else COMPARED
    every = [(first + hospital, n) for n in range(LEARN + JUDGED) for hospital in EVERYBODY]
    jobs = [job for job in every if not stored(cache, *job).exists()]
    for made, _ in enumerate(
        each(partial(store, cache=cache), jobs, workers=processes, prepare=one_thread), start=1
    ):
        print(f"\rpatient {made} of {len(jobs)}", end="", file=sys.stderr)
    figures = chosen(cache, processes) if asked.choose else compared(cache, asked.seeds, processes)
    return report(figures, title="Training together under privacy", path=asked.json)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
