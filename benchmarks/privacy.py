"""What privacy for every patient costs: training step, memory, noise, accounting, ledger.

The step is that of the trainer: four patients, K = 4 noise draws each, a 3-D MONAI diffusion U-Net of two
million weights. "plain" is the same sixteen rows as one batch, without privacy. Ratios are of the fastest
of several alternating repetitions, in one process on one thread, in seconds of CPU time (so that whoever
shares the machine disturbs little); what waits for the disk is wall time.

    .venv/bin/python benchmarks/privacy.py --json out.json
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _figures import Figure, report
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from oncofed_client.ledger import Ledger
from oncofed_client.policy import Policy
from oncofed_common.identity import PublicKey, SigningKey
from oncofed_common.privacy import noise
from oncofed_common.privacy.accountant import pld_epsilon
from oncofed_common.privacy.engine import private_step
from oncofed_common.privacy.events import SubsampledGaussian
from oncofed_common.privacy.grid import to_grid
from oncofed_common.privacy.mechanism import Mechanism
from oncofed_common.privacy.noised_sum import noised_sum
from oncofed_common.privacy.prv import checked_epsilon
from oncofed_common.privacy.stream import Stream

PATIENTS, DRAWS = 4, 4
CHANNELS = 4
MECHANISM = Mechanism(
    clip_norm=1.0, noise_multiplier=1.0, sampling_rate=1.0, declared_patients=PATIENTS
)


def network(*, adapters_only: bool) -> nn.Module:
    """About two million weights, as in the project's measurements; or its norm scales alone."""
    torch.manual_seed(0)
    net = DiffusionModelUNet(
        spatial_dims=3,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_res_blocks=1,
        channels=(16, 32, 64),
        attention_levels=(False, False, True),
        norm_num_groups=8,
        num_head_channels=16,
        with_conditioning=True,
        cross_attention_dim=64,
    )
    if adapters_only:
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        for module in net.modules():
            if isinstance(module, nn.GroupNorm | nn.LayerNorm):
                for parameter in module.parameters():
                    parameter.requires_grad_(True)
    return net


def trained(net: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def loss_of_rows(net: nn.Module, *, half: bool) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Noise prediction for the rows of one patient (or of all at once)."""

    def loss_of(clean: Tensor, generator: torch.Generator) -> Tensor:
        target = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (len(clean),), generator=generator)
        context = torch.randn((len(clean), 2, 64), generator=generator)
        level = (timesteps / 1000).view(-1, 1, 1, 1, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext():
            guess = net(clean * (1 - level) + target * level, timesteps, context=context)
            return nn.functional.mse_loss(guess.float(), target)

    return loss_of


def plain_step(edge: int) -> Callable[[], None]:
    net = network(adapters_only=False)
    rows = torch.randn(PATIENTS * DRAWS, CHANNELS, edge, edge, edge)
    loss_of = loss_of_rows(net, half=False)

    def step() -> None:
        torch.autograd.grad(loss_of(rows, torch.Generator()), trained(net))

    return step


def our_step(edge: int, *, adapters_only: bool, half: bool) -> Callable[[], None]:
    net = network(adapters_only=adapters_only)
    frame = [torch.randn(DRAWS, CHANNELS, edge, edge, edge) for _ in range(PATIENTS)]
    stream = Stream.from_os()

    def step() -> None:
        outcome = private_step(
            frame,
            loss_of=loss_of_rows(net, half=half),
            parameters=trained(net),
            mechanism=MECHANISM,
            stream=stream,
        )
        if outcome.faults:
            raise SystemExit(f"a patient could not be computed: {outcome.faults[0]}")

    return step


def fastest(steps: dict[str, Callable[[], None]], *, repeats: int) -> dict[str, float]:
    """Seconds of the fastest repetition of each step; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            times[name].append(cpu_seconds(step))
    return {name: min(found) for name, found in times.items()}


def cpu_seconds(work: Callable[[], Any]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def seconds(work: Callable[[], Any]) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def peak_mib(which: str) -> float:
    """Resident memory that a step needs beyond its network and data, MiB, in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--peak", which],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},  # freed tensors leave at once
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def print_peak(which: str) -> None:
    """What ``peak_mib`` asks its child for."""
    step = plain_step(24) if which == "plain" else our_step(24, adapters_only=False, half=False)
    step()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status_kib("VmRSS")
    step()
    print((_status_kib("VmHWM") - before) / 1024)


def _status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise SystemExit(f"this kernel does not report {field}")


def step_figures() -> list[Figure]:
    found: list[Figure] = []
    for edge, bar, repeats in ((24, 1.1, 3), (32, 1.0, 2)):
        steps = {
            "plain": plain_step(edge),
            "ours": our_step(edge, adapters_only=False, half=False),
        }
        if edge == 24:
            steps["adapters"] = our_step(edge, adapters_only=True, half=False)
            steps["adapters bf16"] = our_step(edge, adapters_only=True, half=True)
        times = fastest(steps, repeats=repeats)
        cube = f"{edge}^3"
        found.append(Figure(name=f"plain step {cube}", value=times["plain"], unit="s"))
        found.append(
            Figure(name=f"ours {cube}", value=times["ours"] / times["plain"], unit="x", bar=bar)
        )
        if edge == 24:
            ratio = times["adapters"] / times["plain"]
            found.append(Figure(name=f"adapters {cube}", value=ratio, unit="x", bar=0.75))
            ratio = times["adapters bf16"] / times["plain"]
            found.append(Figure(name=f"adapters bf16 {cube}", value=ratio, unit="x", bar=0.45))
            found += arithmetic_figures(times["adapters"])
    memory = {which: peak_mib(which) for which in ("plain", "ours")}
    found.append(Figure(name="plain memory 24^3", value=memory["plain"], unit="MiB"))
    ratio = memory["ours"] / memory["plain"]
    found.append(Figure(name="our memory 24^3", value=ratio, unit="x", bar=0.5))
    return found


def arithmetic_figures(step_s: float) -> list[Figure]:
    """Noise and integer sum, for the adapters as a share of their step, for two million alone."""
    stream = Stream.from_os()

    def arithmetic(weights: int) -> Callable[[], None]:
        gradients = [torch.randn(weights) for _ in range(PATIENTS)]

        def work() -> None:
            vectors = [to_grid(gradient, mechanism=MECHANISM) for gradient in gradients]
            noised_sum(vectors, weights=weights, mechanism=MECHANISM, stream=stream)

        return work

    adapters = sum(parameter.numel() for parameter in trained(network(adapters_only=True)))
    share = min(cpu_seconds(arithmetic(adapters)) for _ in range(3)) / step_s
    values = min(
        cpu_seconds(lambda: noise.discrete_gaussian(stream, count=2_000_000)) for _ in range(3)
    )
    whole = min(cpu_seconds(arithmetic(2_000_000)) for _ in range(2))
    return [
        Figure(name=f"noise and sum, {adapters} adapters", value=100 * share, unit="%", bar=5),
        Figure(name="noise, 2 M values", value=values, unit="s"),
        Figure(name="noise and sum, 2 M weights", value=whole, unit="s"),
    ]


def accounting_figures() -> list[Figure]:
    """Two accountants on a study of 20 rounds, libraries loaded; later rounds find it cached."""
    checked_epsilon(SubsampledGaussian(rate=0.5, noise_multiplier=8.0, steps=1), 1e-3)
    event = SubsampledGaussian(rate=0.25, noise_multiplier=1.5, steps=200)
    pld = cpu_seconds(lambda: pld_epsilon(event, 1e-4))
    both = cpu_seconds(lambda: checked_epsilon(event, 1e-4)) + pld
    cached = cpu_seconds(lambda: checked_epsilon(event, 1e-4))
    return [
        Figure(name="accounting, first round", value=both, unit="s"),
        Figure(name="accounting, a round", value=(both + 19 * cached) / 20, unit="s", bar=1.0),
    ]


@dataclass(frozen=True, kw_only=True)
class BenchHome:
    """A home as far as its ledger sees it."""

    root: Path
    approver_signing: SigningKey
    trainer_signing: SigningKey
    site: str = "bench"

    @property
    def approver(self) -> PublicKey:
        return self.approver_signing.public

    @property
    def ledger_path(self) -> Path:
        return self.root / "ledger.sqlite"

    @property
    def head_path(self) -> Path:
        return self.root / "ledger-head.json"

    def trainer_key(self) -> SigningKey:
        return self.trainer_signing

    def secret(self) -> bytes:
        return bytes(32)

    def policy(self) -> Policy:
        return Policy.parse(
            lifetime_epsilon="12",
            lifetime_delta="1e-5",
            filter_order="4",
            declared_patients=200,
            bytes_per_round=200_000,
        )


def ledger_figures(root: Path, *, draws: int = 60, patients: int = 200) -> list[Figure]:
    """One draw on a frame of 200 patients, beside what the disk takes for one fsync."""
    home = BenchHome(
        root=root, approver_signing=SigningKey.generate(), trainer_signing=SigningKey.generate()
    )
    study = "a" * 64
    terms = {
        "study_hash": study,
        "site": home.site,
        "rounds": draws,
        "filter_rdp": "1",
        "filter_order": "4",
        "epsilon": "1",
        "delta": "0.00001",
        "bytes_per_round": 100_000,
        "expires": "2099-12-31",
        "sequence": 1,
    }
    signature = home.approver_signing.sign("approval", terms)
    frame = [f"{number:064x}" for number in range(patients)]
    with Ledger.create(home) as ledger:
        ledger.reserve({"approval": terms, "signature": signature})
        times = [
            seconds(
                lambda number=number: ledger.draw(
                    study, run="0" * 32, round=number, task_digest=f"{number:064x}", frame=frame
                )
            )
            for number in range(1, draws + 1)
        ]
    handle = os.open(root / "trial", os.O_WRONLY | os.O_CREAT)
    syncs = []
    for _ in range(30):
        os.write(handle, bytes(4096))
        syncs.append(seconds(lambda: os.fsync(handle)))
    os.close(handle)
    return [
        Figure(name="one fsync of this disk", value=1000 * statistics.median(syncs), unit="ms"),
        Figure(name="ledger charge", value=1000 * statistics.median(times), unit="ms", bar=20),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    parser.add_argument("--peak", choices=("plain", "ours"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.peak:
        print_peak(asked.peak)
        return 0
    table_s = cpu_seconds(noise.thresholds)
    figures = [Figure(name="noise table, once a process", value=table_s, unit="s", bar=2.0)]
    figures += step_figures() + accounting_figures()
    with tempfile.TemporaryDirectory() as folder:
        figures += ledger_figures(Path(folder))
    figures.append(Figure(name="on a GPU", value=None, unit=""))
    return report(figures, title="The price of privacy, one thread", path=asked.json)


if __name__ == "__main__":
    sys.exit(main())
