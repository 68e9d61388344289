"""What does the pretraining learn from?

Virtual patients of hospitals in a seed space of their own: no cohort and no demo uses one of them. They
are made while it trains; from how many a step may draw follows from its number, and it waits for those who
are not ready, so the same settings always learn from the same rows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from oncofed_common.cohort import Patient
from oncofed_common.diffusion.processes import DEFAULT, PROCESSES
from oncofed_common.errors import SystemRefusal, UsageRefusal
from oncofed_common.model.prepare import Batch, condition_channels, examples
from oncofed_common.model.presets import Preset, preset
from oncofed_common.model.tokens import HORIZON, HORIZON_DAYS
from oncofed_common.outlook import outlook
from oncofed_common.workers import begun
from oncofed_simulation.curriculum import training_hospital
from oncofed_simulation.memory import hand_back, one_thread
from oncofed_simulation.patients import hospital, virtual_patient
from oncofed_simulation.patients.hospitals import COHORT_SEEDS

Wait = Callable[[int], None]
"""Until so many patients, the first ones, are ready."""

SCORED_HOSPITAL = 100_000
"""Hospitals from this number on are scored on and never trained on."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a pretraining run is: everything that its result depends on.

    ``pairs``: most pairs of a patient; 15 are all that a virtual patient's six visits have, so that a year
    ahead is practised like a month. ``prior_learning_rate``: of the few weights of the network's prior, which
    learn by a loss of their own. The first steps draw from ``patients_at_start``, and after every
    ``steps_per_patient`` there is one more. ``process``: how often each angle of noise is practised
    (``diffusion.processes``); the weights serve every process, whichever they practised.
    """

    preset: str
    patients: int
    steps: int
    seed: int
    rows: int = 8
    pairs: int = 15
    patients_at_start: int = 96
    steps_per_patient: int = 10
    learning_rate: float = 1e-3
    prior_learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 200
    ema: float = 0.999
    gradient_norm: float = 1.0
    dtype: str = "bfloat16"
    process: str = DEFAULT

    def __post_init__(self) -> None:
        preset(self.preset)
        assert min(self.patients_at_start, self.steps_per_patient) >= 1, "set in code alone"
        if self.process not in PROCESSES:
            raise UsageRefusal(
                "a process that there is not",
                allowed=", ".join(sorted(PROCESSES)),
                next="choose one of these, or add a file to diffusion/processes",
            )
        if min(self.patients, self.steps) < 1 or not 0 <= self.seed < COHORT_SEEDS:
            raise UsageRefusal(
                f"{self.patients} patients, {self.steps} steps, seed {self.seed}",
                allowed=f"1 or more of each, and a seed from 0 to {COHORT_SEEDS - 1}",
                next="correct the numbers",
            )


Stored = np.ndarray[Any, np.dtype[np.float16]]


@dataclass(kw_only=True)
class Examples:
    """Stored examples, mapped from disk; ``where``: the patients that have any, and how many."""

    file: Callable[[int], Path]
    channels: int
    fields: list[Stored] = field(default_factory=list)
    tokens: list[Stored] = field(default_factory=list)
    known: list[Stored] = field(default_factory=list)
    where: list[tuple[int, int]] = field(default_factory=list)

    @staticmethod
    def of(settings: Settings, cache: Path) -> Examples:
        """Those of a run; none is opened yet."""
        return Examples(
            file=partial(_stored, settings, cache),
            channels=condition_channels(preset(settings.preset)),
        )

    def reach(self, patients: int) -> None:
        """Open the first so many patients, all of them stored."""
        for index in range(len(self.fields), patients):
            file = self.file(index)
            self.fields.append(np.load(file / "fields.npy", mmap_mode="r"))
            self.tokens.append(np.load(file / "tokens.npy"))
            self.known.append(np.load(file / "known.npy"))
            if len(self.fields[index]):
                self.where.append((index, len(self.fields[index])))

    def draw(self, rows: int, generator: torch.Generator) -> Batch:
        """Patients at random, one pair of each at random; half of the rows are mirrored left to right."""
        if not self.where:
            raise SystemRefusal(
                "no examples to train on",
                allowed="at least one patient with a pair of visits",
                next="make more virtual patients",
            )
        chosen = torch.randint(len(self.where), (rows,), generator=generator).tolist()
        flips = torch.rand(rows, generator=generator) < 0.5
        which = torch.rand(rows, generator=generator).tolist()
        found = zip(which, (self.where[index] for index in chosen), strict=True)
        places = [(patient, int(part * pairs)) for part, (patient, pairs) in found]
        fields = torch.stack([self._field(p, e) for p, e in places])
        fields = torch.where(flips[:, None, None, None, None], fields.flip(2), fields)
        return Batch(
            conditions=fields[:, : self.channels],
            tokens=torch.stack([torch.from_numpy(self.tokens[p][e]).float() for p, e in places]),
            target=fields[:, self.channels :],
            known=torch.stack([torch.from_numpy(self.known[p][e]).float() for p, e in places]),
        )

    def _field(self, patient: int, pair: int) -> Float[Tensor, "channel x y z"]:
        return torch.from_numpy(np.array(self.fields[patient][pair])).float()


def patient_of(settings: Settings, index: int) -> Patient:
    """The training patient of that number, from a hospital of its own."""
    home = training_hospital(COHORT_SEEDS + settings.seed, index + 1)
    return virtual_patient(home, seed=COHORT_SEEDS + settings.seed, number=0).patient


def scored_patients(seed: int, count: int) -> Iterator[Patient]:
    """Patients for the score, each of a hospital that training never sees."""
    for index in range(count):
        home = hospital(COHORT_SEEDS + seed, SCORED_HOSPITAL + index)
        yield virtual_patient(home, seed=COHORT_SEEDS + seed, number=0).patient


@contextmanager
def making(settings: Settings, cache: Path, *, processes: int) -> Iterator[Wait]:
    """Make and store the tensors of every patient that a step draws from, in other processes, in order.

    What is yielded waits until the first so many are stored. A patient that is stored already is not made
    again; whoever leaves the block gives up the rest. Files are float16, written under another name first.

    Raises:
        SystemRefusal: code ``worker_ended``, when a process is killed.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for torn in cache.glob("*.draft*"):
        shutil.rmtree(torn, ignore_errors=True)
    needed = available(settings, settings.steps - 1)
    missing = [i for i in range(needed) if not _stored(settings, cache, i).exists()]
    store = partial(_store, settings, cache)
    with begun(store, missing, workers=processes, prepare=one_thread) as futures:
        left = {index: future for future, index in futures.items()}

        def wait(count: int) -> None:
            for index in [index for index in left if index < count]:
                left[index].result()
                del left[index]

        yield wait


def available(settings: Settings, step: int) -> int:
    """From how many patients, the first ones, a step draws."""
    return min(settings.patients, settings.patients_at_start + step // settings.steps_per_patient)


def days_ahead(settings: Settings, cache: Path, *, patients: int) -> tuple[int, int]:
    """Between which days ahead all but 1 % on either side of the practised pairs lie: a patient is drawn
    as often as any other, however many pairs it has."""
    data = Examples.of(settings, cache)
    data.reach(patients)
    days = [data.tokens[index][:, HORIZON, 0] * np.float64(HORIZON_DAYS) for index, _ in data.where]
    share = np.concatenate([np.full(len(of), 1 / len(of)) for of in days])
    every = np.concatenate(days)
    order = np.argsort(every)
    reached = np.cumsum(share[order]) / share.sum()
    first, last = (every[order][np.searchsorted(reached, edge)] for edge in (0.01, 0.99))
    return round(float(first)), round(float(last))


def _stored(settings: Settings, cache: Path, index: int) -> Path:
    return cache / f"{settings.preset}-{settings.seed}-{settings.pairs}-{index:05d}"


def _store(settings: Settings, cache: Path, index: int) -> None:
    shape: Preset = preset(settings.preset)
    made = examples(patient_of(settings, index), shape, limit_pairs=settings.pairs, foresee=outlook)
    final = _stored(settings, cache, index)
    draft = final.with_name(f"{final.name}.draft{os.getpid()}")
    draft.mkdir()
    both = [torch.cat([example.query.conditions, example.target]) for example in made]
    _dump(draft / "fields.npy", both)
    _dump(draft / "tokens.npy", [example.query.tokens for example in made])
    _dump(draft / "known.npy", [example.known for example in made])
    draft.rename(final)
    hand_back()


def _dump(path: Path, tensors: Sequence[Tensor]) -> None:
    values = torch.stack(list(tensors)).numpy() if tensors else np.zeros((0, 1))
    np.save(path, values.astype(np.float16))
