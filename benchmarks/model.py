"""How long do 32 futures take, and what does pretraining cost beside a plain loop over the same network?

The forecast is that of the command line: physics, 32 samples, certificate, in a process of its own, so
that its peak memory is its own. The plain loop draws the same rows and steps the same optimiser on the
mean squared error of one noised batch: no dropped conditions, no shaped noise, no weights of the loss,
no average, no clipping. Beside that, for information: a step in float32, and how long physics takes in the
window of each preset.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _figures import Figure, report

from oncofed_client.forecasts.forecast import forecast
from oncofed_common.diffusion.generate import Sampling, narrowed
from oncofed_common.model.network import best_dtype, build, device_of
from oncofed_common.model.prepare import FIELDS, condition_channels, view
from oncofed_common.model.presets import LARGE, MEDIUM, SMALL
from oncofed_common.model.tokens import FEATURES, TOKENS
from oncofed_common.model.weights import load_base
from oncofed_common.outlook import outlook
from oncofed_simulation.patients import hospital, virtual_patient
from oncofed_simulation.pretrain import State, pretraining_step
from oncofed_simulation.training_set import Examples, Settings

SAMPLES, EVALUATIONS = 32, 12
REPEATS = 6
PARTS = ("forecast", "outlook", "ours", "float32", "plain")
"""What is measured, each in a process of its own."""


def forecast_once() -> dict[str, float]:
    """Seconds and peak GiB of one forecast."""
    torch.set_num_threads(2)
    patient = virtual_patient(hospital(7, 1), seed=7, number=1).patient
    weights = load_base(SMALL, sha256=None)
    last = len(patient.visits) - 1
    began = time.perf_counter()
    forecast(
        patient,
        history=range(last),
        day=patient.visits[last].day,
        weights=weights,
        how=Sampling(samples=SAMPLES, evaluations=EVALUATIONS, dtype=best_dtype()),
        seed=0,
    )
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "gib": peak / 2**20}


def examples() -> Examples:
    """Rows of noise in the place of stored patients."""
    rng = np.random.default_rng(0)
    edge, channels = SMALL.size, condition_channels(SMALL)
    shape = (6, channels + FIELDS, edge, edge, edge)
    fields = [rng.normal(size=shape).astype(np.float16) for _ in range(4)]
    return Examples(
        fields=fields,
        tokens=[rng.normal(size=(6, TOKENS, FEATURES)).astype(np.float16) for _ in fields],
        known=[np.ones((6, FIELDS), dtype=np.float16) for _ in fields],
        where=[(p, 6) for p in range(len(fields))],
        file=Path,
        channels=channels,
    )


def our_step(settings: Settings, data: Examples) -> Callable[[], object]:
    state = State.fresh(settings)
    return lambda: pretraining_step(settings, state, data)


def plain_step(settings: Settings, data: Examples) -> Callable[[], object]:
    network = build(SMALL, seed=0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        batch = data.draw(settings.rows, generator)
        angle = torch.rand(settings.rows, generator=generator) * torch.pi / 2
        keep, add = (part[:, None, None, None, None] for part in (angle.cos(), angle.sin()))
        noise = torch.randn(batch.target.shape, generator=generator)
        with narrowed(device_of(network), best_dtype()):
            context = network.context(batch.conditions, batch.tokens)
            answer = network(keep * batch.target + add * noise, angle, context)
            loss = (answer.float() - batch.target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def outlooks() -> dict[str, float]:
    """Seconds of fitting physics to two visits and growing it on, in the window of each preset."""
    torch.set_num_threads(1)
    patient = virtual_patient(hospital(7, 1), seed=7, number=1).patient
    found = {}
    for preset in (SMALL, MEDIUM, LARGE):
        seen = view(patient, preset, history=range(2))
        began = time.perf_counter()
        (expected,) = outlook(patient, preset, seen, days=[patient.visits[2].day])
        assert expected is not None, "this patient has an outlook"
        found[preset.name] = time.perf_counter() - began
    return found


def alone(what: str) -> dict[str, float]:
    """One measurement in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--only", what, "--json", "-"],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def steps(which: str) -> dict[str, float]:
    """Seconds of the fastest step and peak GiB."""
    torch.set_num_threads(1)
    dtype = "float32" if which == "float32" else str(best_dtype()).removeprefix("torch.")
    settings = Settings(preset=SMALL.name, patients=4, steps=100, seed=0, dtype=dtype)
    step = (plain_step if which == "plain" else our_step)(settings, examples())
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        step()
        times.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": min(times), "gib": peak / 2**20}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        whole = {"forecast": forecast_once, "outlook": outlooks}.get(asked.only)
        print(json.dumps(steps(asked.only) if whole is None else whole()))
        return 0
    once, fitted, ours, wide, plain = (alone(what) for what in PARTS)
    figures = [
        Figure(name=f"{SAMPLES} samples of {SMALL.name}", value=once["seconds"], unit="s", bar=45),
        Figure(name="peak memory of that forecast", value=once["gib"], unit="GiB", bar=3.0),
        Figure(name="plain step, 8 rows", value=plain["seconds"], unit="s"),
        Figure(
            name="pretraining step over a plain loop",
            value=ours["seconds"] / plain["seconds"],
            unit="x",
            bar=1.05,
        ),
        Figure(
            name="its memory over a plain loop",
            value=ours["gib"] / plain["gib"],
            unit="x",
            bar=1.05,
        ),
        Figure(name=f"pretraining step, {best_dtype()}", value=ours["seconds"], unit="s"),
        Figure(name="pretraining step, torch.float32", value=wide["seconds"], unit="s"),
        *(
            Figure(name=f"physics of two visits, {name}", value=seconds, unit="s")
            for name, seconds in fitted.items()
        ),
    ]
    return report(figures, title="The model's speed", path=asked.json)


if __name__ == "__main__":
    raise SystemExit(main())
