"""In which four steps does a forecast end nearest to where twenty would have ended?

Finds ``TIMES`` and ``LEANS`` of ``diffusion/samplers.py`` for the shipped weights. It draws futures of
virtual patients whom the pretraining has not seen, in twenty steps of ``angular`` and in four of its
own from the same noise, and changes times and leans (six numbers that count) so that the squared
distance between both, over the region channels, falls. The network is not touched. What the steps are
worth: ``samplers.py``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from _figures import Figure, report
from jaxtyping import Float
from torch import Tensor

from oncofed_common.diffusion import noise
from oncofed_common.diffusion.generate import Sampling, narrowed, read
from oncofed_common.diffusion.samplers import DISTILLED_EVALUATIONS, angular, follow
from oncofed_common.metrics.judge import last_visit
from oncofed_common.model.network import Network, best_dtype, device_of
from oncofed_common.model.prepare import Query
from oncofed_common.model.presets import SMALL
from oncofed_common.model.regions import REGIONS
from oncofed_common.model.weights import load_base, network_of
from oncofed_simulation.memory import one_thread
from oncofed_simulation.training_set import scored_patients

SEED = 77
PATIENTS, ROUNDS, ROWS = 24, 6, 2
TEACHER = Sampling(samples=ROWS, evaluations=20, dtype=best_dtype())
LEARNING_RATE = 0.03


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One patient's question, a noise, and where twenty steps lead from there."""

    asked: Query
    start: Float[Tensor, "row field x y z"]
    end: Float[Tensor, "row region x y z"]


class Solver(torch.nn.Module):
    """Times between 1 and 0 that fall, and leans."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.gaps = torch.nn.Parameter(torch.zeros(steps, dtype=torch.float64))
        self.leans = torch.nn.Parameter(torch.ones(steps, dtype=torch.float64))

    def times(self) -> Float[Tensor, " time"]:
        """1, the learned ones, 0."""
        fallen = 1.0 - self.gaps.softmax(0).cumsum(0)
        return torch.cat([torch.ones(1).double(), fallen[:-1], torch.zeros(1).double()])

    def solve(self, network: Network, lesson: Lesson) -> Float[Tensor, "row region x y z"]:
        """Where its steps lead."""
        with narrowed(device_of(network), TEACHER.dtype):
            denoiser, path = read(network, lesson.asked, TEACHER)
            found = follow(denoiser, path, lesson.start, times=self.times(), leans=self.leans)
            return path.clean(found)[:, : len(REGIONS)]


def lessons(network: Network, count: int) -> list[Lesson]:
    """Patients of hospitals of their own, each with a noise of its own and where it leads."""
    generator = torch.Generator().manual_seed(SEED)
    made = []
    for patient in scored_patients(SEED, count):
        asked = last_visit(patient, network.preset).query
        shape = (ROWS, *asked.reference.shape)
        drawn = noise.draw(shape, spacing_mm=network.preset.spacing_mm, generator=generator)
        start = noise.widened(drawn, float(network.widening), channels=len(REGIONS))
        with torch.inference_mode(), narrowed(device_of(network), TEACHER.dtype):
            denoiser, path = read(network, asked, TEACHER)
            end = angular(denoiser, path, start, evaluations=TEACHER.evaluations, fresh=start.clone)
            end = path.clean(end)[:, : len(REGIONS)].clone()
        made.append(Lesson(asked=asked, start=start, end=end))
        print(f"\rpatient {len(made)} of {count}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return made


def learn(network: Network, taught: Sequence[Lesson], *, rounds: int) -> tuple[Solver, list[float]]:
    """The solver after so many rounds over the lessons, and each round's mean squared distance."""
    for weight in network.parameters():
        weight.requires_grad_(False)
    solver = Solver(DISTILLED_EVALUATIONS)
    optimizer = torch.optim.Adam(solver.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds * len(taught))
    distances = []
    for _ in range(rounds):
        total = 0.0
        for lesson in taught:
            distance = (solver.solve(network, lesson) - lesson.end).square().mean()
            optimizer.zero_grad()
            torch.autograd.backward(distance)
            optimizer.step()
            schedule.step()
            total += distance.item()
        distances.append(total / len(taught))
        print(f"mean squared distance {distances[-1]:.3e}", file=sys.stderr)
    return solver, distances


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=PATIENTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args(arguments)
    one_thread()
    network = network_of(load_base(SMALL, sha256=None))
    solver, distances = learn(network, lessons(network, asked.patients), rounds=asked.rounds)
    figures = [
        *(
            Figure(name=f"TIMES[{n}]", value=v, unit="")
            for n, v in enumerate(solver.times()[1:-1].tolist())
        ),
        *(
            Figure(name=f"LEANS[{n}]", value=v, unit="")
            for n, v in enumerate(solver.leans.tolist())
        ),
        Figure(
            name="distance in the last round over the first",
            value=distances[-1] / distances[0],
            unit="x",
        ),
    ]
    return report(figures, title="Four steps for twenty", path=asked.json)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
