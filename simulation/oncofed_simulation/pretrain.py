"""How are the base weights made?

A network learns from virtual patients alone, so that no privacy is spent. Their hospitals lie in a
seed space of their own: no cohort and no demo uses one of them. A step's examples, noise, times and
missing conditions follow from the seed and the step's number, so a run that was killed and resumed
ends with the same weights (same machine), whatever number of threads its caller has given torch.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # the error alone: nothing is unpickled here
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from oncofed_common.diffusion.generate import narrowed
from oncofed_common.diffusion.losses import pretraining_loss
from oncofed_common.diffusion.processes import PROCESSES
from oncofed_common.durable import write_atomic
from oncofed_common.errors import SystemRefusal
from oncofed_common.model.network import Network, best_device, build, device_of
from oncofed_common.model.presets import preset
from oncofed_simulation.training_set import Examples, Settings, Wait, available

CHECKPOINT = "checkpoint.pt"
THREADS = 1
"""Torch's threads in training: the last bits of a sum depend on them, and the card names them."""
DAMAGE = (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, UnpicklingError)
"""What torch raises at a file that is cut, changed or none of its own."""


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
        prior = list(network.prior.parameters())
        rest = [one for name, one in network.named_parameters() if not name.startswith("prior.")]
        optimizer = torch.optim.AdamW(
            [
                {"params": rest, "most": settings.learning_rate},
                {"params": prior, "most": settings.prior_learning_rate},
            ],
            lr=0.0,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
        )
        return State(
            step=0,
            seconds=0.0,
            network=network,
            average=average,
            optimizer=optimizer,
            schedules=[(0, settings.steps)],
        )


def train(
    settings: Settings, cache: Path, out: Path, *, seconds: float, save_every_s: float, wait: Wait
) -> Iterator[Progress]:
    """Train from the checkpoint in ``out``, or from the start; yield after each step.

    Stops after the settings' steps, or after ``seconds`` of this call; either way the state is
    saved, and the next call goes on from it.

    Args:
        wait: that of ``making``.

    Raises:
        SystemRefusal: a checkpoint of another run (``other_run``), or patients without examples.
    """
    data = Examples.of(settings, cache)
    state = _load(settings, out)
    began = saved = time.monotonic()
    spent = state.seconds
    while state.step < settings.steps and time.monotonic() - began < seconds:
        patients = available(settings, state.step)
        wait(patients)
        data.reach(patients)
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


def pretraining_step(settings: Settings, state: State, data: Examples) -> float:
    """One step of training; its loss. What it draws follows from the seed and its number."""
    generator = torch.Generator().manual_seed(_step_seed(settings.seed, state.step))
    batch = data.draw(settings.rows, generator)
    share = learning_rate(settings, state.step) / settings.learning_rate
    for group in state.optimizer.param_groups:
        group["lr"] = share * group["most"]
    with narrowed(device_of(state.network), getattr(torch, settings.dtype)):
        loss = pretraining_loss(
            state.network, PROCESSES[settings.process], batch, generator=generator
        )
    state.optimizer.zero_grad()
    torch.autograd.backward(loss)
    for group in state.optimizer.param_groups:
        torch.nn.utils.clip_grad_norm_(group["params"], settings.gradient_norm)
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
    both = zip(state.average.parameters(), state.network.parameters(), strict=True)
    moving = [(mean, value) for mean, value in both if value.requires_grad]
    averages, values = (list(part) for part in zip(*moving, strict=True))
    follow = get_ema_multi_avg_fn(keep)  # type: ignore[no-untyped-call]  # torch ships no type of it
    follow(averages, values, None)


def _save(settings: Settings, state: State, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    kept = io.BytesIO()
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
        kept,
    )
    write_atomic(out / CHECKPOINT, kept.getvalue())


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
