"""What privacy for every patient costs: training step, memory, noise, accounting, ledger.

Steps of one network by six ways (``_private_steps``), 2-D and 3-D, K = 1, 4 and 8 noise draws a patient,
float32 and bfloat16; then the step of the trainer itself, with the shipped network and its adapters. "plain"
is the same rows as one batch, without privacy, every weight trained. Ratios are of the fastest of several
alternating repetitions against plain at equal precision (adapters: against float32), in one fresh process a
setting, on one thread, in seconds of CPU time (so that whoever shares the machine disturbs little); what
waits for the disk is wall time. One table has every way, the other the figures with a bar, those of ours.

    .venv/bin/python benchmarks/privacy.py --json out.json
    .venv/bin/python benchmarks/privacy.py --barred          # only what has a bar, in a quarter of the time
    .venv/bin/python benchmarks/privacy.py --trial           # does it run? numbers of a toy, no verdict
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _books import accounting_figures, ledger_figures
from _figures import Figure, report
from _private_steps import MECHANISM, PATIENTS, WAYS, Cost, Setting, costs, seconds_of
from rich.console import Console
from rich.table import Table

from oncofed_common.diffusion.losses import denoising_loss
from oncofed_common.diffusion.processes import DEFAULT, PROCESSES
from oncofed_common.model.adapters import select
from oncofed_common.model.network import build
from oncofed_common.model.prepare import FIELDS, Batch, condition_channels
from oncofed_common.model.presets import SMALL, Preset
from oncofed_common.model.tokens import FEATURES, TOKENS
from oncofed_common.privacy import noise
from oncofed_common.privacy.engine import private_step
from oncofed_common.privacy.grid import to_grid
from oncofed_common.privacy.noised_sum import noised_sum
from oncofed_common.privacy.stream import Stream
from oncofed_simulation.arms import loss_of, shipped

DRAWS = 4
BARS = {24: 1.1, 32: 1.0}
"""Most that ours may take of a plain step's time, K = 4, by the edge of the volume."""
MEMORY_BAR = 0.5
ADAPTER_BARS = {False: 0.75, True: 0.45}
"""Of the trainer's step with the default adapters in float32 and in bfloat16, against the plain one in
float32."""


def settings(*, device: str, trial: bool) -> dict[Setting, tuple[str, ...]]:
    """What is measured, and by which ways."""
    small = {"device": device, "channels": (8, 16)} if trial else {"device": device}
    two, three, large = (8, 8, 12) if trial else (64, 24, 32)
    found: dict[Setting, tuple[str, ...]] = {}
    for half in (False, True):
        for dims, edge in ((2, two), (3, three)):
            for draws in (1, DRAWS) if trial else (1, DRAWS, 8):
                setting = Setting(spatial_dims=dims, edge=edge, draws=draws, half=half, **small)
                found[setting] = tuple(WAYS)
        big = Setting(spatial_dims=3, edge=large, draws=DRAWS, half=half, **small)
        found[big] = ("plain", "ours")
        found[replace(big, edge=three, adapters_only=True)] = ("ours", "row slices")
    return found


def matrix(*, trial: bool, barred_only: bool) -> dict[Setting, dict[str, Cost]]:
    """Every cost, or only those that have a bar; of a GPU only where there is one."""
    found = {}
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        for setting, ways in settings(device=device, trial=trial).items():
            barred = setting.draws == DRAWS and setting.spatial_dims == 3
            repeats = 4 if barred else 1
            if barred_only and not barred:
                continue
            taken = [way for way in ways if way in ("plain", "ours") or not barred_only]
            print(f"{device}: {setting.name}", file=sys.stderr, flush=True)
            found[setting] = costs(setting, taken, repeats=1 if trial else repeats)
    return found


def plain_of(setting: Setting, found: dict[Setting, dict[str, Cost]]) -> Cost:
    """What a setting is compared with: adapters with the step of all weights in float32."""
    if setting.adapters_only:
        return found[replace(setting, adapters_only=False, half=False)]["plain"]
    return found[setting]["plain"]


def rows_of(found: dict[Setting, dict[str, Cost]]) -> list[dict[str, object]]:
    """One row a setting and way, ratios against plain."""
    rows: list[dict[str, object]] = []
    for setting, ways in found.items():
        plain = plain_of(setting, found)
        for way, cost in ways.items():
            row = {"device": setting.device, "setting": setting.name, "way": way}
            if cost.cannot is not None:
                rows.append({**row, "cannot": cost.cannot})
                continue
            rows.append(
                {
                    **row,
                    "seconds": cost.seconds,
                    "mib": cost.mib,
                    "time_ratio": cost.seconds / plain.seconds,
                    "memory_ratio": cost.mib / plain.mib,
                }
            )
    return rows


def show(rows: Sequence[dict[str, object]]) -> None:
    """The table of every way: time and memory against plain, and below it why some cannot."""
    table = Table("device", "step", *WAYS, title="time x, memory x, of the plain step")
    names = list(dict.fromkeys((str(row["device"]), str(row["setting"])) for row in rows))
    for device, name in names:
        here = {
            row["way"]: row for row in rows if (row["device"], row["setting"]) == (device, name)
        }
        table.add_row(device, name, *(_cell(here.get(way)) for way in WAYS))
    if not torch.cuda.is_available():
        table.add_row("GPU", "all of them", *["not measured"] * len(WAYS))
    Console(width=150).print(table)
    reasons = {f"{row['way']}, {row['setting']}": row["cannot"] for row in rows if "cannot" in row}
    for where, why in reasons.items():
        print(f"cannot: {where}: {why}")


def _cell(row: dict[str, object] | None) -> str:
    if row is None:
        return ""
    if "cannot" in row:
        return "cannot"
    if row["way"] == "plain":
        return f"{row['seconds']:.3g} s, {row['mib']:.0f} MiB"
    return f"{row['time_ratio']:.2f} x, {row['memory_ratio']:.2f} x"


def step_figures(found: dict[Setting, dict[str, Cost]], *, trial: bool) -> list[Figure]:
    """Ours against its bars; ways that cannot state nothing here."""
    figures: list[Figure] = []
    for setting, ways in found.items():
        cost, plain = ways["ours"], plain_of(setting, found)
        if cost.cannot is not None:
            raise SystemExit(f"ours cannot: {setting.name}: {cost.cannot}")
        where = f"{setting.name}, {setting.device}"
        main = setting.spatial_dims == 3 and setting.draws == DRAWS and not trial
        bar = None if setting.adapters_only else BARS.get(setting.edge)
        ratio = cost.seconds / plain.seconds
        figures.append(
            Figure(name=f"ours, {where}", value=ratio, unit="x", bar=bar if main else None)
        )
        share = cost.mib / plain.mib
        bar = MEMORY_BAR if main else None
        figures.append(Figure(name=f"memory of ours, {where}", value=share, unit="x", bar=bar))
    return figures


def patients_of(shape: Preset) -> list[Batch]:
    """Four patients with one pair each; what their voxels say costs nothing."""
    generator = torch.Generator().manual_seed(2)
    cube = (shape.size,) * 3

    def batch() -> Batch:
        return Batch(
            conditions=torch.rand(1, condition_channels(shape), *cube, generator=generator),
            tokens=torch.randn(1, TOKENS, FEATURES, generator=generator),
            target=torch.randn(1, FIELDS, *cube, generator=generator),
            known=torch.ones(1, FIELDS),
        )

    return [batch() for _ in range(PATIENTS)]


def trainer_step(shape: Preset, adapters: str, dtype: str) -> tuple[Callable[[], Any], int]:
    """A private step as the trainer takes it, and how many weights it trains."""
    network, frame = build(shape, seed=1), patients_of(shape)
    weights = list(select(network, adapters).values())
    terms = replace(shipped(), adapters=adapters, dtype=dtype, draws_per_patient=DRAWS)
    loss, stream = loss_of(network, terms), Stream.from_os()

    def step() -> None:
        outcome = private_step(
            frame, loss_of=loss, parameters=weights, mechanism=MECHANISM, stream=stream
        )
        if outcome.faults:
            raise SystemExit(f"a patient could not be computed: {outcome.faults[0]}")

    return step, sum(one.numel() for one in weights)


def trainer_plain(shape: Preset) -> Callable[[], Any]:
    """The same rows as one batch, every weight of the network trained, without privacy."""
    network, frame = build(shape, seed=1), patients_of(shape)
    names = ("conditions", "tokens", "target", "known")
    rows = Batch(**{name: torch.cat([getattr(one, name) for one in frame]) for name in names})
    weights = [one for one in network.parameters() if one.requires_grad]

    def step() -> None:
        loss = denoising_loss(
            network, PROCESSES[DEFAULT], rows, draws=DRAWS, generator=torch.Generator()
        )
        torch.autograd.grad(loss, weights, allow_unused=True)

    return step


def trainer_figures(*, trial: bool) -> list[Figure]:
    """What the trainer does: the default adapters, which learn by a loss of their own, and ``norm``."""
    shape = replace(SMALL, size=8) if trial else SMALL
    default, repeats = shipped().adapters, 1 if trial else 3
    steps: dict[tuple[str, str], Callable[[], Any]] = {("plain", "float32"): trainer_plain(shape)}
    weights: dict[str, int] = {}
    for adapters in dict.fromkeys((default, "norm")):
        for dtype in ("float32", "bfloat16"):
            steps[adapters, dtype], weights[adapters] = trainer_step(shape, adapters, dtype)
    times = fastest(steps, repeats=repeats)
    plain = times.pop(("plain", "float32"))
    figures = [Figure(name="the trainer's network, plain step", value=plain, unit="s")]
    for (adapters, dtype), found in times.items():
        bar = ADAPTER_BARS[dtype == "bfloat16"] if adapters == default and not trial else None
        name = f"the trainer, adapters {adapters}, {dtype}"
        figures.append(Figure(name=name, value=found / plain, unit="x", bar=bar))
    for adapters, count in weights.items():
        share = arithmetic_s(count, repeats=3) / times[adapters, "float32"]
        name = f"noise and sum, {count} weights of {adapters}"
        bar = None if trial else 5.0
        figures.append(Figure(name=name, value=100 * share, unit="%", bar=bar))
    return figures


def fastest(
    steps: dict[tuple[str, str], Callable[[], Any]], *, repeats: int
) -> dict[tuple[str, str], float]:
    """Seconds of the fastest repetition of each step; they take turns."""
    times: dict[tuple[str, str], list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            times[name].append(cpu_seconds(step))
    return {name: min(found) for name, found in times.items()}


def arithmetic_s(weights: int, *, repeats: int) -> float:
    """Grid, noise and exact sum of one step."""
    stream = Stream.from_os()
    gradients = [torch.randn(weights) for _ in range(PATIENTS)]

    def work() -> None:
        vectors = [to_grid(gradient, mechanism=MECHANISM) for gradient in gradients]
        noised_sum(vectors, weights=weights, mechanism=MECHANISM, stream=stream)

    return min(cpu_seconds(work) for _ in range(repeats))


def noise_figures() -> list[Figure]:
    stream = Stream.from_os()
    values = min(
        cpu_seconds(lambda: noise.discrete_gaussian(stream, count=2_000_000)) for _ in range(3)
    )
    whole = arithmetic_s(2_000_000, repeats=2)
    return [
        Figure(name="noise, 2 M values", value=values, unit="s"),
        Figure(name="noise and sum, 2 M weights", value=whole, unit="s"),
    ]


def cpu_seconds(work: Callable[[], Any]) -> float:
    return seconds_of(work, "cpu")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    parser.add_argument("--trial", action="store_true", help="a toy, in a minute, without bars")
    parser.add_argument(
        "--barred", action="store_true", help="plain and ours, where there is a bar"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    table_s = cpu_seconds(noise.thresholds)
    figures = [Figure(name="noise table, once a process", value=table_s, unit="s", bar=2.0)]
    found = matrix(trial=asked.trial, barred_only=asked.barred)
    rows = rows_of(found)
    show(rows)
    figures += step_figures(found, trial=asked.trial) + trainer_figures(trial=asked.trial)
    figures += noise_figures() + accounting_figures()
    with tempfile.TemporaryDirectory() as folder:
        figures += ledger_figures(Path(folder))
    if not torch.cuda.is_available():
        figures.append(Figure(name="on a GPU", value=None, unit=""))
    return report(figures, title="The price of privacy, one thread", path=asked.json, rows=rows)


if __name__ == "__main__":
    sys.exit(main())
