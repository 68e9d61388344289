"""How are the base weights made?

A network learns from virtual patients alone, so that no privacy is spent. Their hospitals lie in a
seed space of their own: no cohort and no demo uses one of them. A step's examples, noise, times and
missing conditions follow from the seed and the step's number, so a run that was killed and resumed
ends with the same weights (same machine), whatever number of threads its caller has given torch.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError  # the error alone: nothing is unpickled here
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from oncofed_common.cohort import Patient
from oncofed_common.diffusion.generate import narrowed
from oncofed_common.diffusion.losses import denoising_loss
from oncofed_common.diffusion.processes import DEFAULT, PROCESSES
from oncofed_common.errors import SystemRefusal, UsageRefusal
from oncofed_common.model.network import Network, best_device, build, device_of
from oncofed_common.model.prepare import Batch, condition_channels, examples
from oncofed_common.model.presets import Preset, preset
from oncofed_common.outlook import outlook
from oncofed_common.workers import each
from oncofed_simulation.curriculum import training_hospital
from oncofed_simulation.memory import hand_back, one_thread
from oncofed_simulation.patients import hospital, virtual_patient
from oncofed_simulation.patients.hospitals import COHORT_SEEDS

PATIENTS_PER_HOSPITAL = 12
CHECKPOINT = "checkpoint.pt"
THREADS = 1
"""Torch's threads in training: the last bits of a sum depend on them, and the card names them."""
DAMAGE = (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, UnpicklingError)
"""What torch raises at a file that is cut, changed or none of its own."""
SCORED_HOSPITAL = 100_000
"""Hospitals from this number on are scored on and never trained on."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a pretraining run is: everything that its result depends on."""

    preset: str
    patients: int
    steps: int
    seed: int
    rows: int = 8
    pairs: int = 6
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 200
    ema: float = 0.999
    gradient_norm: float = 1.0
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        preset(self.preset)
        if min(self.patients, self.steps) < 1 or not 0 <= self.seed < COHORT_SEEDS:
            raise UsageRefusal(
                f"{self.patients} patients, {self.steps} steps, seed {self.seed}",
                allowed=f"1 or more of each, and a seed from 0 to {COHORT_SEEDS - 1}",
                next="correct the numbers",
            )


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands."""

    step: int
    steps: int
    loss: float
    seconds: float


@dataclass
class State:
    """A run between two steps.

    ``schedules``: from which step on the learning rate fell to zero by which step. More than one pair
    if a resumed run was made shorter or longer.
    """

    step: int
    seconds: float
    network: Network
    average: Network
    optimizer: torch.optim.AdamW
    schedules: list[tuple[int, int]]

    @staticmethod
    def fresh(settings: Settings) -> State:
        """Before the first step."""
        shape = preset(settings.preset)
        network, average = (build(shape, seed=settings.seed).to(best_device()) for _ in range(2))
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=settings.weight_decay
        )
        return State(
            step=0,
            seconds=0.0,
            network=network,
            average=average,
            optimizer=optimizer,
            schedules=[(0, settings.steps)],
        )


def patient_of(settings: Settings, index: int) -> Patient:
    """The training patient of that number."""
    number, place = divmod(index, PATIENTS_PER_HOSPITAL)
    home = training_hospital(COHORT_SEEDS + settings.seed, number + 1)
    return virtual_patient(home, seed=COHORT_SEEDS + settings.seed, number=place).patient


def scored_patients(seed: int, count: int) -> Iterator[Patient]:
    """Patients for the score, each of a hospital that training never sees."""
    for index in range(count):
        home = hospital(COHORT_SEEDS + seed, SCORED_HOSPITAL + index)
        yield virtual_patient(home, seed=COHORT_SEEDS + seed, number=0).patient


def prepare(settings: Settings, cache: Path, *, processes: int) -> Iterator[int]:
    """Make and store the tensors of every training patient; yield how many are ready.

    A patient that is stored already is not made again. Files are float16, written under another
    name first.
    """
    cache.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(settings.patients) if not _stored(settings, cache, i).exists()]
    ready = settings.patients - len(missing)
    yield ready
    store = partial(_store, settings, cache)
    for _ in each(store, missing, workers=processes, prepare=one_thread):
        ready += 1
        yield ready


def train(
    settings: Settings, cache: Path, out: Path, *, seconds: float, save_every_s: float
) -> Iterator[Progress]:
    """Train from the checkpoint in ``out``, or from the start; yield after each step.

    Stops after the settings' steps, or after ``seconds`` of this call; either way the state is
    saved, and the next call goes on from it.

    Raises:
        SystemRefusal: a checkpoint of another run (``other_run``), or patients without examples.
    """
    data = Examples.open(settings, cache)
    state = _load(settings, out)
    began = saved = time.monotonic()
    spent = state.seconds
    while state.step < settings.steps and time.monotonic() - began < seconds:
        with _on_threads(THREADS):
            loss = pretraining_step(settings, state, data)
        state.seconds = spent + time.monotonic() - began
        if time.monotonic() - saved > save_every_s:
            _save(settings, state, out)
            saved = time.monotonic()
        yield Progress(step=state.step, steps=settings.steps, loss=loss, seconds=state.seconds)
    _save(settings, state, out)


def learning_rate(settings: Settings, step: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def checkpoint(settings: Settings, out: Path) -> State:
    """Where the run in ``out`` stands; its ``average`` is what is exported.

    Raises:
        SystemRefusal: a checkpoint of another run (``other_run``).
    """
    return _load(settings, out)


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Stored examples, mapped from disk."""

    fields: tuple[np.ndarray[Any, np.dtype[np.float16]], ...]
    tokens: tuple[np.ndarray[Any, np.dtype[np.float16]], ...]
    known: tuple[np.ndarray[Any, np.dtype[np.float16]], ...]
    where: tuple[tuple[int, int], ...]
    channels: int

    @staticmethod
    def open(settings: Settings, cache: Path) -> Examples:
        """Every stored patient of the run, in order."""
        files = [_stored(settings, cache, index) for index in range(settings.patients)]
        fields = tuple(np.load(file / "fields.npy", mmap_mode="r") for file in files)
        return Examples(
            fields=fields,
            tokens=tuple(np.load(file / "tokens.npy") for file in files),
            known=tuple(np.load(file / "known.npy") for file in files),
            where=tuple((p, e) for p, many in enumerate(fields) for e in range(len(many))),
            channels=condition_channels(preset(settings.preset)),
        )

    def draw(self, rows: int, generator: torch.Generator) -> Batch:
        """Patients at random, one pair of each; half of the rows are mirrored left to right."""
        if not self.where:
            raise SystemRefusal(
                "no examples to train on",
                allowed="at least one patient with a pair of visits",
                next="make more virtual patients",
            )
        chosen = torch.randint(len(self.where), (rows,), generator=generator).tolist()
        flips = torch.rand(rows, generator=generator) < 0.5
        places = [self.where[index] for index in chosen]
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


def pretraining_step(settings: Settings, state: State, data: Examples) -> float:
    """One step of training; its loss. What it draws follows from the seed and its number."""
    generator = torch.Generator().manual_seed(_step_seed(settings.seed, state.step))
    batch = data.draw(settings.rows, generator)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(settings, state.step)
    with narrowed(device_of(state.network), getattr(torch, settings.dtype)):
        loss = denoising_loss(
            state.network, PROCESSES[DEFAULT], batch, draws=1, generator=generator
        )
    state.optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), settings.gradient_norm)
    state.optimizer.step()
    _follow(state, settings.ema)
    state.step += 1
    return float(loss.detach())


@contextmanager
def _on_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


def _follow(state: State, ema: float) -> None:
    """Move the average towards the network; early on faster, so that it forgets the start."""
    keep = min(ema, (1.0 + state.step) / (10.0 + state.step))
    with torch.no_grad():
        for mean, value in zip(state.average.parameters(), state.network.parameters(), strict=True):
            mean.lerp_(value, 1.0 - keep)


def _save(settings: Settings, state: State, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    draft = out / "checkpoint.draft"
    torch.save(
        {
            "settings": vars(settings),
            "step": state.step,
            "seconds": state.seconds,
            "schedules": [list(pair) for pair in state.schedules],
            "network": state.network.state_dict(),
            "average": state.average.state_dict(),
            "optimizer": state.optimizer.state_dict(),
        },
        draft,
    )
    draft.replace(out / CHECKPOINT)


def _load(settings: Settings, out: Path) -> State:
    state = State.fresh(settings)
    path = out / CHECKPOINT
    if not path.exists():
        return state
    stored = _read(path)
    if {**stored["settings"], "steps": settings.steps} != vars(settings):
        raise SystemRefusal(
            "a checkpoint of a run with other settings",
            allowed="a checkpoint of this very run",
            next="choose another output folder, or give the settings of the first call; only the "
            "number of steps may differ",
            code="other_run",
        )
    try:
        state.network.load_state_dict(stored["network"])
        state.average.load_state_dict(stored["average"])
        state.optimizer.load_state_dict(stored["optimizer"])
        state.step, state.seconds = stored["step"], stored["seconds"]
        state.schedules = [(begin, steps) for begin, steps in stored["schedules"]]
    except DAMAGE:
        raise _damaged() from None
    if state.schedules[-1][1] != settings.steps:
        state.schedules.append((state.step, settings.steps))
    return state


def _read(path: Path) -> dict[str, Any]:
    try:
        stored = torch.load(path, weights_only=True, map_location="cpu")
    except (*DAMAGE, OSError):
        raise _damaged() from None
    if not isinstance(stored, dict) or not isinstance(stored.get("settings"), dict):
        raise _damaged()
    return stored


def _damaged() -> SystemRefusal:
    return SystemRefusal(
        "a checkpoint that cannot be read",
        allowed="one that pretrain wrote, whole",
        next="restore it from a backup, or choose another folder and begin anew",
        code="damaged_checkpoint",
    )
