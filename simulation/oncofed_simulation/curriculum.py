"""Which hospitals does the pretraining learn from?

Wider ones than any that exists: every range about those of ``patients.hospital`` is stretched, so that a
real hospital lies within, and every patient comes from another one, so that no habit and no scanner can be
learned by heart. Treatment is drawn at random in every second one, as in a trial, and the dose of
radiotherapy varies in all: where only the severely ill are treated, treatment looks as if it did harm, and a
network would learn that. No cohort and no test draws its hospitals from here.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from oncofed_simulation.patients import Hospital, hospital
from oncofed_simulation.patients.hospitals import stream


def training_hospital(seed: int, number: int) -> Hospital:
    """The ``number``-th hospital of a pretraining."""
    home, rng = hospital(seed, number), stream("curriculum", seed, number)
    look = stream("contrast", seed, number)
    in_a_trial = number % 2 == 0
    return replace(
        home,
        scanner=replace(
            home.scanner,
            contrast={
                channel: tuple(float(v) for v in np.array(signals) * look.lognormal(0, 0.15, 7))
                for channel, signals in home.scanner.contrast.items()
            },
            noise=float(rng.uniform(0.01, 0.07)),
            bias=float(rng.uniform(0.05, 0.4)),
            motion_share=float(rng.uniform(0.0, 0.3)),
            missing_channel=float(rng.uniform(0.0, 0.25)),
            edge_wobble_mm=float(rng.uniform(0.2, 1.0)),
        ),
        prior=replace(
            home.prior,
            front_speed_mm_per_day=math.exp(rng.uniform(math.log(0.03), math.log(0.11))),
            front_speed_spread=0.9,
            front_width_mm=(2.0, 4.5),
            white_to_grey=(3.0, 12.0),
            first_volume_ml=(2.0, 50.0),
            alpha_per_gy=float(rng.uniform(0.01, 0.07)),
            resistant_share=(1e-3, 0.5),
            strain=(0.0, 0.3),
            fibre_ratio=float(rng.choice((1.0, 1.0, 1.0, 2.5))),
        ),
        habits=replace(
            home.habits,
            surgery=float(rng.uniform(0.1, 0.5)),
            radiotherapy=float(rng.uniform(0.4, 0.8)),
            chemotherapy=float(rng.uniform(0.2, 0.6)),
            severity_weight=0.0 if in_a_trial else float(rng.uniform(0.0, 1.0)),
            gap_day=(30, int(rng.integers(100, 201))),
            drop_out=float(rng.uniform(0.0, 0.3)),
            dose_times=(0.3, 1.3),
        ),
        idh_mutant=float(rng.uniform(0.05, 0.5)),
    )
