"""One step of training by six ways: what each costs in time and memory, or why it cannot.

"plain" is all rows as one batch, without privacy. Every other way has to give the sum of the patients'
clipped gradients, a patient's being the mean over its K rows; whoever gives another sum cannot do it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from _figures import resident_kib
from monai.networks.nets import DiffusionModelUNet
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from oncofed_common.privacy.engine import Engine, OneByOne, patient_gradient, private_step_by
from oncofed_common.privacy.mechanism import Mechanism
from oncofed_common.privacy.noise import discrete_gaussian
from oncofed_common.privacy.row_slices import RowSlices
from oncofed_common.privacy.sampling import poisson_draw
from oncofed_common.privacy.stream import Stream

PATIENTS = 4
CHANNELS = 4
CLIP_NORM = 0.1
"""Below the gradients of every network here, so that every patient is clipped."""
MECHANISM = Mechanism(
    clip_norm=CLIP_NORM, noise_multiplier=1.0, sampling_rate=1.0, declared_patients=PATIENTS
)
KEY = b"the same noise, to take it off.."
Rows = tuple[Tensor, ...]
"""Noised rows, their times, their context and what was clean: all that chance decides, the same for all."""
Step = Callable[[], Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained, and on what."""

    spatial_dims: int
    edge: int
    draws: int
    half: bool
    device: str
    adapters_only: bool = False
    channels: tuple[int, ...] = (16, 32, 64)

    @property
    def name(self) -> str:
        cells = f"{self.edge}^{self.spatial_dims}"
        dtype = "bf16" if self.half else "fp32"
        what = ", norm scales alone" if self.adapters_only else ""
        return f"{cells}, K = {self.draws}, {dtype}{what}"

    def network(self) -> nn.Module:
        """About two million weights in 3-D, as in the project's measurements; or its norm scales alone."""
        torch.manual_seed(0)
        net = DiffusionModelUNet(
            spatial_dims=self.spatial_dims,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_res_blocks=1,
            channels=self.channels,
            attention_levels=(*(False for _ in self.channels[1:]), True),
            norm_num_groups=8,
            num_head_channels=16,
            with_conditioning=True,
            cross_attention_dim=64,
        )
        with torch.no_grad():
            for parameter in net.parameters():  # MONAI's zeros would leave gradients of zero
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        if self.adapters_only:
            net.requires_grad_(False)
            for module in net.modules():
                if isinstance(module, nn.GroupNorm | nn.LayerNorm):
                    module.requires_grad_(True)
        return net.to(self.device)

    def frame(self) -> list[Rows]:
        """Every patient's rows."""
        generator = torch.Generator().manual_seed(1)

        def rows() -> Rows:
            shape = (self.draws, CHANNELS, *(self.edge,) * self.spatial_dims)
            clean, noise = (torch.randn(shape, generator=generator) for _ in range(2))
            steps = torch.randint(0, 1000, (self.draws,), generator=generator)
            level = (steps / 1000).view(-1, *(1,) * (len(shape) - 1))
            context = torch.randn((self.draws, 2, 64), generator=generator)
            parts = (clean * (1 - level) + noise * level, steps, context, noise)
            return tuple(part.to(self.device) for part in parts)

        return [rows() for _ in range(PATIENTS)]

    def narrow(self) -> AbstractContextManager[object]:
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.bfloat16) if self.half else nullcontext()

    def losses(self, net: nn.Module, noised: Tensor, *rest: Tensor) -> Tensor:
        """Each row's squared error of the predicted noise."""
        steps, context, noise = rest
        with self.narrow():
            guess = net(noised, steps, context=context)
            return (guess.float() - noise).square().flatten(1).mean(dim=1)


def trained(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: one for name, one in net.named_parameters() if one.requires_grad}


def plain(setting: Setting) -> Step:
    net = setting.network()
    rows = _together(setting.frame())

    def step() -> None:
        torch.autograd.grad(setting.losses(net, *rows).mean(), list(trained(net).values()))

    return step


def ours(setting: Setting) -> Step:
    net = setting.network()

    def loss_of(rows: Rows, generator: torch.Generator) -> Tensor:
        return setting.losses(net, *rows).mean()

    return _by(OneByOne(loss_of=loss_of, parameters=list(trained(net).values())), setting)


def row_slices(setting: Setting) -> Step:
    loss = _MeanLoss(setting)
    frame = setting.frame()
    engine = RowSlices(
        rows_of=lambda rows, generator: rows,
        loss=loss,
        trained=trained(loss),
        nobody=frame[0],
        slots=PATIENTS,
    )
    return _by(engine, setting)


def by_vmap(setting: Setting) -> Step:
    loss = _MeanLoss(setting)
    rows = [torch.stack(parts) for parts in zip(*setting.frame(), strict=True)]
    weights = {name: one.detach() for name, one in trained(loss).items()}

    def loss_of(given: dict[str, Tensor], *part: Tensor) -> Tensor:
        found: Tensor = functional_call(loss, given, part)
        return found

    each = vmap(grad(loss_of), in_dims=(None, *(0 for _ in rows)))
    return lambda: _clipped_sum(list(each(weights, *rows).values()))


def opacus_hooks(setting: Setting) -> Step:
    net = GradSampleModule(setting.network())
    rows = _together(setting.frame())

    def step() -> Tensor:
        setting.losses(net, *rows).mean().backward()
        samples = [one.grad_sample for one in trained(net).values()]
        patients = [one.unflatten(0, (PATIENTS, setting.draws)).mean(dim=1) for one in samples]
        found = _clipped_sum(patients)
        net.zero_grad()
        return found

    return step


def opacus_ghost(setting: Setting) -> Step:
    """It knows rows: with K > 1 it clips every draw by itself."""
    net = GradSampleModuleFastGradientClipping(
        setting.network(), max_grad_norm=CLIP_NORM, use_ghost_clipping=True
    )
    rows, weights = _together(setting.frame()), list(trained(net).values())
    forgets = torch.optim.SGD(weights, lr=1.0)

    def step() -> Tensor:
        losses = setting.losses(net, *rows)
        DPTensorFastGradientClipping(net, forgets, losses, "mean").backward()
        found = torch.cat([one.grad.reshape(-1) for one in weights]) / setting.draws
        net.zero_grad()
        return found

    return step


WAYS: Mapping[str, Callable[[Setting], Step]] = {
    "plain": plain,
    "ours": ours,
    "row slices": row_slices,
    "vmap": by_vmap,
    "Opacus hooks": opacus_hooks,
    "Opacus ghost": opacus_ghost,
}


@dataclass(kw_only=True)
class Cost:
    """What one way costs in one setting, or why it cannot."""

    seconds: float | None = None
    mib: float | None = None
    cannot: str | None = None
    times: list[float] = field(default_factory=list)


def costs(setting: Setting, ways: Sequence[str], *, repeats: int) -> dict[str, Cost]:
    """Every way in turn, ``repeats`` times, the fastest counts; then the memory of each, alone.

    In a process that nothing else ran in, and plain and ours before the others: what a way of three times the
    memory leaves of its heap makes the plain step up to a third faster than it is by itself.
    """
    with _process() as alone:
        found = alone.submit(costs_here, setting, ways, repeats=repeats).result()
    if setting.device == "cpu":
        peaks = resident_mib(setting, [way for way, cost in found.items() if not cost.cannot])
        for way, mib in peaks.items():
            found[way].mib = mib
    return found


def costs_here(setting: Setting, ways: Sequence[str], *, repeats: int) -> dict[str, Cost]:
    """The same in this process, without the memory of a CPU."""
    torch.set_num_threads(1)
    found = {way: Cost() for way in ways}
    steps: dict[str, Step] = {}
    for group in (ways[:2], ways[2:]):
        fresh: dict[str, Step] = {}
        for way in group:
            try:
                fresh[way] = WAYS[way](setting)
                fresh[way]()
            except Exception as fault:  # noqa: BLE001  a library that cannot is what is asked
                words = str(fault).strip().splitlines() or [""]
                found[way].cannot = f"{type(fault).__name__}: {words[0][:160]}"
                fresh.pop(way, None)
        for _ in range(repeats):
            for way, step in fresh.items():
                found[way].times.append(seconds_of(step, setting.device))
        steps |= fresh
    truth = _truth(setting)
    for way, step in steps.items():
        found[way].cannot = _departs(step(), truth, setting) or None
        if found[way].cannot:
            continue
        found[way].seconds = min(found[way].times)
        if setting.device != "cpu":
            found[way].mib = peak_mib(step)
    return found


def seconds_of(step: Callable[[], Any], device: str) -> float:
    """CPU seconds, which whoever shares the machine disturbs little; of a GPU, those that pass."""
    if device == "cpu":
        before = time.process_time()
        step()
        return time.process_time() - before
    torch.cuda.synchronize()
    before = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - before


def peak_mib(step: Callable[[], Any]) -> float:
    """Memory of the GPU that a step needs beyond its network and data, MiB."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def resident_mib(setting: Setting, ways: Sequence[str]) -> dict[str, float]:
    """Memory that each way's second step needs beyond what is there after its first, MiB.

    Each in a process of its own in which freed tensors leave at once: where other steps ran before, their
    holes in the heap would be counted, or filled.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)
    try:
        with _process() as alone:
            return dict(zip(ways, alone.map(_resident_mib, repeat(setting), ways), strict=True))
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"]


def _process() -> ProcessPoolExecutor:
    """Each call in a process of its own, one after the other."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["_private_steps"])
    return ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1)


def _resident_mib(setting: Setting, way: str) -> float:
    torch.set_num_threads(1)
    step = WAYS[way](setting)
    step()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    resident = resident_kib("VmRSS")
    step()
    return (resident_kib("VmHWM") - resident) / 1024


class _MeanLoss(nn.Module):
    """A patient's loss as a module of its rows."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.net = setting.network()
        self.setting = setting

    def forward(self, *rows: Tensor) -> Tensor:
        return self.setting.losses(self.net, *rows).mean()


def _together(frame: Sequence[Rows]) -> list[Tensor]:
    return [torch.cat(parts) for parts in zip(*frame, strict=True)]


def _by(engine: Engine[Rows], setting: Setting) -> Step:
    """A private step, noise and all; then the noise is taken off, which its seed allows."""
    frame = setting.frame()

    def step() -> Tensor:
        outcome = private_step_by(engine, frame, mechanism=MECHANISM, stream=Stream.from_seed(KEY))
        if outcome.faults:
            raise RuntimeError(f"a patient could not be computed: {outcome.faults[0]}")
        return outcome.gradient

    return step


def without_noise(gradient: Tensor) -> Tensor:
    """The sum under the noise of ``_by``."""
    stream = Stream.from_seed(KEY)
    for _ in range(int(poisson_draw(stream, patients=PATIENTS, rate=1.0).sum())):
        stream.torch_seed()
    noise = torch.from_numpy(discrete_gaussian(stream, count=len(gradient)))
    return (torch.round(gradient / MECHANISM.gradient_per_unit) - noise) * MECHANISM.grid_step


def _clipped_sum(patients: Sequence[Tensor]) -> Tensor:
    """Of gradients (patient, ...) of each weight."""
    flat = torch.cat([part.reshape(PATIENTS, -1) for part in patients], dim=1)
    norms = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return (flat * (CLIP_NORM / norms).clamp(max=1.0)).sum(dim=0)


def _truth(setting: Setting) -> Tensor:
    """The sum of clipped gradients, patient by patient."""
    net = setting.network()
    total = torch.zeros(())
    for rows in setting.frame():
        gradient = patient_gradient(
            rows,
            loss_of=lambda given, _: setting.losses(net, *given).mean(),
            parameters=list(trained(net).values()),
            generator=torch.Generator(),
        ).double()
        total = total + gradient.cpu() * min(1.0, CLIP_NORM / float(gradient.norm()))
    return total


def _departs(found: Tensor | None, truth: Tensor, setting: Setting) -> str:
    """By what a sum of clipped gradients is another one; nothing for a step that states none."""
    if found is None:
        return ""
    given = found.detach().double().cpu()
    if found.dtype == torch.float64:  # a noised gradient
        given = without_noise(given)
    off = float((given - truth).norm() / truth.norm())
    most = 0.1 if setting.half else 0.02
    return "" if off <= most else f"another sum of clipped gradients, {100 * off:.0f} % off"
