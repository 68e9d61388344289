"""How much surer is a network than it may be?

One that has learned from some hundred patients knows those too well: of others, what all of its futures
have in common is off by more than they differ. Most of it is how far the front went as a whole, which
decides the volume; details average out. So futures begin with noise whose part that the window has in
common is stronger (``noise.widened``), by as much as virtual patients ask for that took no part in training.

One pair of visits of each is forecast. With s the prior's deviation of the whole tumour's distance, the
common part of a field x is <x, s> / <s, s>. A patient's error is that part of what came less the mean
future, over the standard deviation of the futures' own; the widening is the scale of the Gaussian that
foretells these errors best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from oncofed_common.diffusion.generate import Sampling, futures
from oncofed_common.metrics.judge import WHOLE
from oncofed_common.metrics.scores import gaussian_scale
from oncofed_common.model.network import Network, device_of
from oncofed_common.model.prepare import Example, pairs, query, states, target
from oncofed_common.model.presets import Preset
from oncofed_common.outlook import outlook
from oncofed_common.workers import each
from oncofed_simulation.curriculum import training_hospital
from oncofed_simulation.memory import one_thread
from oncofed_simulation.patients import virtual_patient
from oncofed_simulation.patients.hospitals import COHORT_SEEDS, stream

WIDENED_HOSPITAL = 200_000
"""Hospitals from this number on set the widening, and are neither trained nor scored on."""


def errors(
    network: Network, *, seed: int, patients: int, how: Sampling, processes: int
) -> Iterator[tuple[int, float | None]]:
    """The common error of each patient, by number, as they come; None without a pair of visits."""
    work = partial(_error, network=network, seed=seed, how=how)
    yield from each(work, range(patients), workers=processes, prepare=one_thread)


def widen(network: Network, found: Mapping[int, float | None]) -> dict[str, Any]:
    """Set the network's widening by the errors; what its card says of it."""
    told = [error for _, error in sorted(found.items()) if error is not None]
    network.widening.fill_(gaussian_scale(np.array(told)))
    return {"factor": round(float(network.widening), 4), "patients": len(told)}


def common_error(
    drawn: Float[Tensor, "sample x y z"],
    came: Float[Tensor, "x y z"],
    spread: Float[Tensor, "x y z"],
) -> float:
    """By how many standard deviations of the futures' common part that of what came is off their mean's."""
    share = spread / spread.square().sum()
    apart = ((drawn - drawn.mean(0)) * share).sum(dim=(1, 2, 3)).std()
    return float(((came - drawn.mean(0)) * share).sum() / apart)


def _error(index: int, *, network: Network, seed: int, how: Sampling) -> float | None:
    example = _example(seed, index, network.preset)
    if example is None:
        return None
    asked = example.query
    drawn = futures(network, asked, how, seed=seed + index)[:, WHOLE]
    came = states(asked, example.target[None], network.preset)[0, WHOLE]
    device = device_of(network)
    with torch.inference_mode():
        shown = (part[None].to(device) for part in (asked.conditions, asked.tokens))
        spread = network.context(*shown).spread[0, WHOLE].cpu()
    return common_error(drawn, came, spread)


def _example(seed: int, index: int, preset: Preset) -> Example | None:
    """One pair of visits, any, of a patient from a hospital of its own."""
    home = training_hospital(COHORT_SEEDS + seed, WIDENED_HOSPITAL + index)
    patient = virtual_patient(home, seed=COHORT_SEEDS + seed, number=0).patient
    found = pairs(patient, limit=len(patient.visits) ** 2)
    if not found:
        return None
    history, last = found[int(stream("widening", seed, index).integers(len(found)))]
    day = patient.visits[last].day
    asked = query(patient, preset, history=history, day=day, foresee=outlook)
    change, known = target(patient, preset, asked, index=last)
    return Example(query=asked, target=change, known=known)
