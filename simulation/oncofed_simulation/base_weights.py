"""What does a pretraining run ship, and what does it say of itself?

The moving average of the weights as ``PRESET.safetensors``, and ``PRESET.json``, the card: how they
were made, on what, how well they forecast virtual patients of hospitals that training never saw, and
what they must not be used for. A released file is exactly what its card's digest says.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from oncofed_common.cohort import Patient
from oncofed_common.diffusion.generate import Sampling
from oncofed_common.durable import disk_refusal, make_folder, write_atomic
from oncofed_common.errors import SystemRefusal, UsageRefusal
from oncofed_common.metrics.judge import (
    NO_CHANGE,
    Score,
    judge,
    judge_no_change,
    last_visit,
    summary,
)
from oncofed_common.model import adapters
from oncofed_common.model.network import Network
from oncofed_common.model.weights import LIMITS, dump
from oncofed_common.screen import Watch
from oncofed_simulation.patients.hospitals import COHORT_SEEDS
from oncofed_simulation.pretrain import CHECKPOINT, THREADS, checkpoint, train
from oncofed_simulation.training_set import (
    SCORED_HOSPITAL,
    Settings,
    available,
    days_ahead,
    making,
    scored_patients,
)
from oncofed_simulation.widening import WIDENED_HOSPITAL, errors, widen

CACHE = "patients"
SAVE_EVERY_S = 180.0
NOTICE = (
    f"{LIMITS}: learned from virtual patients alone, never shown a real scan; its forecasts say "
    "nothing about any person and must not be used to decide about one"
)


def pretrain(
    settings: Settings,
    out: Path,
    *,
    resume: bool,
    processes: int,
    seconds: float,
    widened: int,
    scored: int,
    how: Sampling,
    command: str,
    watch: Watch,
) -> dict[str, Any]:
    """Make the patients, train, set the widening, score, write weights and card into ``out``; the card.

    Args:
        resume: go on from the checkpoint in ``out``; without it there must be none.
        processes: how many make patients at once, while another one trains.
        seconds: train no longer than this in this call.
        widened: patients by whom the widening is set (``widening``), each of a hospital of its own.
        scored: patients to score on, the same.
        how: how their futures are drawn.
        command: the words that made the run, for the card.

    Raises:
        SystemRefusal: a checkpoint that nobody asked to resume (``out_exists``), or one of a run with
            other settings (``other_run``).
    """
    if math.isnan(seconds) or out == Path():
        raise UsageRefusal(
            "minutes that are no number, or an output folder without a name",
            allowed="a number from 0, and a folder of its own",
            next="correct --minutes or --out",
        )
    if (out / CHECKPOINT).exists() and not resume:
        raise SystemRefusal(
            "an output folder that holds a checkpoint",
            allowed="a folder without one, or --resume",
            next="add --resume to go on, or choose another folder",
            code="out_exists",
        )
    make_folder(out)
    if not os.access(out, os.W_OK):
        raise disk_refusal(PermissionError(errno.EACCES, "read only"))
    if (out / CHECKPOINT).exists():
        checkpoint(settings, out)  # refused before an hour is spent on patients
    torch.set_num_threads(THREADS)
    cache = out / CACHE
    make_folder(cache)
    recent: list[float] = []
    with making(settings, cache, processes=processes) as wait:
        first = available(settings, 0)
        for ready in range(1, first + 1):
            wait(ready)
            watch("making the first patients", ready, first)
        steps = train(settings, cache, out, seconds=seconds, save_every_s=SAVE_EVERY_S, wait=wait)
        for at in steps:
            recent = [*recent[-99:], at.loss]
            watch(f"training, loss {sum(recent) / len(recent):.4f}", at.step, at.steps)
    network = checkpoint(settings, out).average
    measured: dict[int, float | None] = {}
    asked = errors(network, seed=settings.seed, patients=widened, how=how, processes=processes)
    for number, error in asked:
        measured[number] = error
        watch("setting the width of forecasts", len(measured), widened)
    width = widen(network, measured)
    scores = []
    for pair in score(network, scored_patients(settings.seed, scored), how, seed=settings.seed):
        scores.append(pair)
        watch("scoring", len(scores), scored)
    return export(settings, out, network, width=width, scores=scores, how=how, command=command)


def score(
    network: Network, patients: Iterator[Patient], how: Sampling, *, seed: int
) -> Iterator[tuple[Score, Score]]:
    """Each patient's score of the network and of "no change", as they come."""
    for number, patient in enumerate(patients):
        example = last_visit(patient, network.preset)
        yield (
            judge(network, example, how, seed=seed + number),
            judge_no_change(example, network.preset),
        )


def export(
    settings: Settings,
    out: Path,
    network: Network,
    *,
    width: Mapping[str, Any],
    scores: list[tuple[Score, Score]],
    how: Sampling,
    command: str,
) -> dict[str, Any]:
    """Write weights and card into ``out`` and return the card.

    Args:
        network: the averaged weights, their widening set.
        width: what ``widen`` said of it.
        scores: what ``score`` yielded for them.
        command: the words that made the run.
    """
    state = checkpoint(settings, out)
    learned_from = available(settings, max(0, state.step - 1))
    data = dump(network)
    card: dict[str, Any] = {
        "preset": settings.preset,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "limits": NOTICE,
        "command": command,
        "settings": vars(settings),
        "steps_done": state.step,
        "schedules": [{"from_step": begin, "to_step": end} for begin, end in state.schedules],
        "seed_space": f"hospitals of seed {COHORT_SEEDS} + seed, which no cohort uses; those numbered "
        f"{SCORED_HOSPITAL} and up are scored on only, {WIDENED_HOSPITAL} and up set the widening only",
        "patients": learned_from,
        "hospitals": learned_from,
        "days_ahead": list(days_ahead(settings, out / CACHE, patients=learned_from)),
        "seconds": round(state.seconds),
        "machine": f"{platform.machine()}, {THREADS} thread(s), "
        f"torch {torch.__version__}, oncofed {version('oncofed')}",
        "adapters": {
            name: [key for key, _, _ in adapters.schema(network, name)]
            for name in sorted(adapters.ADAPTERS)
        },
        "widening": dict(width),
        "score": {
            **summary(
                {"base": [one for one, _ in scores], NO_CHANGE: [other for _, other in scores]}
            ),
            "patients": len(scores),
            "samples": how.samples,
            "evaluations": how.evaluations,
            "sampler": how.sampler,
            "dtype": str(how.dtype).removeprefix("torch."),
            "of": "log volume of NETC + SNFH + ET within the window, 0.5 ml at least; Dice of the "
            "same outline; each patient's last visit from all visits before it",
        },
    }
    write_atomic(out / f"{settings.preset}.safetensors", data)
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    write_atomic(out / f"{settings.preset}.json", text.encode())
    return card
