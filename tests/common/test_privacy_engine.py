"""The private step against independent computations of the same thing."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from oncofed_common.privacy.engine import patient_gradient, private_step, shaped
from oncofed_common.privacy.grid import squared_norm, to_grid
from oncofed_common.privacy.mechanism import Mechanism
from oncofed_common.privacy.noise import discrete_gaussian
from oncofed_common.privacy.noised_sum import noised_sum
from oncofed_common.privacy.sampling import poisson_draw
from oncofed_common.privacy.stream import Stream

SEED = b"the private step, a test's seed."
CLIPS = {"all below the clip": 1e6, "some above": 1.0, "all above": 1e-4}


@dataclass(frozen=True)
class Rows:
    """A patient of the tests: inputs (row, 5), targets (row, 2)."""

    x: Tensor
    y: Tensor


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 8), nn.SiLU(), nn.GroupNorm(2, 8), nn.Linear(8, 2))


def patients(*row_counts: int) -> list[Rows]:
    generator = torch.Generator().manual_seed(4)
    return [
        Rows(
            torch.randn(rows, 5, generator=generator),
            10.0**index * torch.randn(rows, 2, generator=generator),
        )
        for index, rows in enumerate(row_counts)
    ]


def mechanism(*, clip_norm: float = 1.0, rate: float = 1.0) -> Mechanism:
    return Mechanism(
        clip_norm=clip_norm, noise_multiplier=0.5, sampling_rate=rate, declared_patients=10
    )


def squared_error(net: nn.Module):
    def loss_of(patient: Rows, generator: torch.Generator) -> Tensor:
        return nn.functional.mse_loss(net(patient.x), patient.y)

    return loss_of


def sum_without_noise(step_gradient: Tensor, *, setting: Mechanism, used: Stream) -> Tensor:
    """The integer sum under a step's noise, for a test that knows the seed."""
    noised = torch.round(step_gradient / setting.gradient_per_unit).to(torch.int64)
    return noised - torch.from_numpy(discrete_gaussian(used, count=len(noised)))


def integer_sum(frame, *, net: nn.Module, setting: Mechanism) -> Tensor:
    """The exact sum that ``private_step`` noised: the same seed, its noise taken off again."""
    step = private_step(
        frame,
        loss_of=squared_error(net),
        parameters=list(net.parameters()),
        mechanism=setting,
        stream=Stream.from_seed(SEED),
    )
    used = Stream.from_seed(SEED)
    mask = poisson_draw(used, patients=len(frame), rate=setting.sampling_rate)
    for _ in range(int(mask.sum())):
        used.torch_seed()
    return sum_without_noise(step.gradient, setting=setting, used=used)


def oracle(patient: Rows, *, net: nn.Module, clip_norm: float) -> Tensor:
    """Clipped gradient in float64 by ``torch.func``: vmap over rows, mean of the row gradients."""
    weights = {name: value.detach().double() for name, value in net.named_parameters()}

    def row_loss(given: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return ((functional_call(net, given, (x[None],)) - y[None]) ** 2).mean()

    per_row = vmap(grad(row_loss), in_dims=(None, 0, 0))(
        weights, patient.x.double(), patient.y.double()
    )
    flat = torch.cat([per_row[name].mean(dim=0).reshape(-1) for name in weights])
    return flat * min(1.0, clip_norm / float(flat.norm()))


@pytest.mark.parametrize("rows", [(2, 2, 2), (2, 5, 3, 1), (4,), ()], ids=str)
@pytest.mark.parametrize("clip_norm", CLIPS.values(), ids=CLIPS.keys())
def test_the_sum_under_the_noise_is_that_of_vmap_over_patients_of_any_size(rows, clip_norm):
    net, setting = network(), mechanism(clip_norm=clip_norm)
    frame = patients(*rows)
    ours = integer_sum(frame, net=net, setting=setting).double() * setting.grid_step
    theirs = torch.zeros_like(ours)
    for patient in frame:
        theirs += oracle(patient, net=net, clip_norm=clip_norm)
    units = len(frame) * setting.grid_step  # a truncation of below one unit per patient
    largest = float(theirs.abs().max()) if frame else 0.0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=units + 1e-5 * largest)


def test_the_sum_is_the_sum_of_single_patients_bit_for_bit_in_any_order():
    net, setting = network(), mechanism()
    frame = patients(2, 3, 4)
    whole = integer_sum(frame, net=net, setting=setting)
    alone = sum(integer_sum([patient], net=net, setting=setting) for patient in frame)
    assert torch.equal(whole, alone)
    for order in itertools.permutations(frame):
        assert torch.equal(integer_sum(order, net=net, setting=setting), whole)


def test_one_patient_more_moves_the_sum_by_the_sensitivity_and_no_further():
    """All gradients are far above the clip norm, so the bound 2^16/σ is reached."""
    net, setting = network(), mechanism(clip_norm=1e-4)
    frame = patients(2, 3, 4, 2)
    whole = integer_sum(frame, net=net, setting=setting)
    for left_out in range(len(frame)):
        without = integer_sum(frame[:left_out] + frame[left_out + 1 :], net=net, setting=setting)
        moved = squared_norm(whole - without)
        assert moved <= setting.squared_norm_limit
        assert math.sqrt(moved) == pytest.approx(2**16 / 0.5, rel=1e-3)


def test_without_a_clip_the_same_measure_would_show_it():
    """Planted fault: the raw gradient of one of these patients is far outside the grid."""
    net = network()
    gradient = patient_gradient(
        patients(2, 2, 2)[2],
        loss_of=squared_error(net),
        parameters=list(net.parameters()),
        generator=torch.Generator(),
    )
    setting = mechanism(clip_norm=1e-4)
    raw = torch.trunc(gradient.double() / setting.grid_step).to(torch.int64)
    for planted in (raw, 2 * to_grid(gradient, mechanism=setting)):
        released = noised_sum(
            [planted], weights=len(raw), mechanism=setting, stream=Stream.from_seed(SEED)
        )
        nothing = noised_sum([], weights=len(raw), mechanism=setting, stream=Stream.from_seed(SEED))
        assert torch.equal(released, nothing)


def test_the_clip_runs_over_all_layers_together():
    net, setting = network(), mechanism(clip_norm=1e-4)
    total = integer_sum(patients(3), net=net, setting=setting)
    parts = shaped(total.double(), like=list(net.parameters()))
    assert all(float(part.abs().max()) > 0 for part in parts)
    assert math.sqrt(sum(float((p.double() ** 2).sum()) for p in parts)) <= 2**16 / 0.5


def test_an_empty_draw_takes_a_noise_step_like_any_other():
    net = network()
    step = private_step(
        [],
        loss_of=squared_error(net),
        parameters=list(net.parameters()),
        mechanism=mechanism(rate=0.5),
        stream=Stream.from_os(),
    )
    assert step.drawn == 0
    assert step.protected
    assert float(step.gradient.std()) > 0


def test_every_kind_of_patient_that_cannot_be_computed_contributes_nothing():
    net, setting = network(), mechanism()
    good = patients(2, 3)
    broken = {
        "nan": Rows(torch.full((2, 5), float("nan")), torch.zeros(2, 2)),
        "inf": Rows(torch.ones(2, 5), torch.full((2, 2), 3e38)),
        "shape": Rows(torch.ones(2, 4), torch.zeros(2, 2)),
        "memory": Rows(torch.zeros(0), torch.zeros(0)),
    }

    def loss_of(patient: Rows, generator: torch.Generator) -> Tensor:
        if patient is broken["memory"]:
            raise torch.OutOfMemoryError("of one patient")
        return squared_error(net)(patient, generator)

    def step_of(frame):
        return private_step(
            frame,
            loss_of=loss_of,
            parameters=list(net.parameters()),
            mechanism=setting,
            stream=Stream.from_os(),
        )

    step = step_of([good[0], *broken.values(), good[1]])
    assert sorted(step.faults) == ["NotFinite", "NotFinite", "OutOfMemoryError", "RuntimeError"]
    assert torch.isfinite(step.gradient).all()
    assert step_of(good).faults == ()


def test_a_broken_patient_leaves_the_sum_of_the_others_as_it_was():
    net, setting = network(), mechanism()
    good = patients(2, 3)
    broken = Rows(torch.full((2, 5), float("nan")), torch.zeros(2, 2))
    with_it = integer_sum([good[0], broken, good[1]], net=net, setting=setting)
    assert torch.equal(with_it, integer_sum(good, net=net, setting=setting))


def test_a_stop_from_outside_is_not_mistaken_for_a_broken_patient():
    def loss_of(patient: Rows, generator: torch.Generator) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        private_step(
            patients(2),
            loss_of=loss_of,
            parameters=list(network().parameters()),
            mechanism=mechanism(),
            stream=Stream.from_os(),
        )


def test_a_vector_that_is_too_long_or_misshapen_never_reaches_the_sum():
    setting = mechanism()
    seeded = [Stream.from_seed(SEED) for _ in range(2)]
    wrong = [torch.full((4,), 2**40), torch.ones(3, dtype=torch.int64), torch.full((4,), 0.5)]
    noise_alone = noised_sum([], weights=4, mechanism=setting, stream=seeded[0])
    assert torch.equal(
        noised_sum(wrong, weights=4, mechanism=setting, stream=seeded[1]), noise_alone
    )


def test_the_released_gradient_is_unbiased_and_its_noise_is_sigma_times_the_clip_norm():
    """Against the Gaussian mechanism on paper: mean C/(rate · declared), spread σC/(rate · declared)."""
    setting = Mechanism(
        clip_norm=3.0, noise_multiplier=0.5, sampling_rate=0.25, declared_patients=8
    )
    weights = 20_000
    patient = to_grid(torch.ones(weights), mechanism=setting)
    stream = Stream.from_seed(SEED)
    released = noised_sum([patient] * 4, weights=weights, mechanism=setting, stream=stream)
    wanted = 4 * 3.0 / math.sqrt(weights) / 2
    spread = 0.5 * 3.0 / 2
    # Truncation shortens each of the four patients by half a unit on average.
    bias = 4 * setting.gradient_per_unit
    assert float(released.mean()) == pytest.approx(wanted, abs=5 * spread / weights**0.5 + bias)
    assert float(released.std()) == pytest.approx(spread, rel=5 / math.sqrt(2 * weights))


def test_the_divisor_is_the_declared_number_whatever_the_frame_holds():
    net = network()
    spreads = [
        float(
            private_step(
                patients(*[2] * size),
                loss_of=squared_error(net),
                parameters=list(net.parameters()),
                mechanism=mechanism(clip_norm=1e-4),
                stream=Stream.from_seed(SEED),
            ).gradient.std()
        )
        for size in (0, 4)
    ]
    assert spreads[0] == pytest.approx(1e-4 * 0.5 / 10, rel=0.35)
    assert spreads[1] == pytest.approx(spreads[0], rel=0.6)


def test_a_step_changes_neither_weights_nor_stored_gradients():
    net = network()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    private_step(
        patients(2, 2),
        loss_of=squared_error(net),
        parameters=list(net.parameters()),
        mechanism=mechanism(),
        stream=Stream.from_os(),
    )
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in net.parameters())


def test_frozen_layers_and_half_precision_forward_passes_are_ordinary_cases():
    net = network()
    for parameter in net[0].parameters():
        parameter.requires_grad_(False)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]

    def loss_of(patient: Rows, generator: torch.Generator) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return squared_error(net)(patient, generator)

    half = patient_gradient(
        patients(4)[0], loss_of=loss_of, parameters=trained, generator=torch.Generator()
    )
    full = patient_gradient(
        patients(4)[0],
        loss_of=squared_error(net),
        parameters=trained,
        generator=torch.Generator(),
    )
    assert half.dtype == torch.float32
    assert float((half - full).norm() / full.norm()) < 0.05


def test_seeds_give_the_same_step_twice_and_the_system_never_does():
    net = network()

    def loss_of(patient: Rows, generator: torch.Generator) -> Tensor:
        noise = torch.randn(patient.x.shape, generator=generator)
        return nn.functional.mse_loss(net(patient.x + noise), patient.y)

    def gradient(stream: Stream) -> np.ndarray:
        return private_step(
            patients(2, 2, 2),
            loss_of=loss_of,
            parameters=list(net.parameters()),
            mechanism=mechanism(rate=0.5),
            stream=stream,
        ).gradient.numpy()

    assert (gradient(Stream.from_seed(SEED)) == gradient(Stream.from_seed(SEED))).all()
    assert (gradient(Stream.from_os()) != gradient(Stream.from_os())).any()


def test_each_drawn_patient_gets_randomness_of_its_own():
    seen: list[int] = []
    net = network()

    def loss_of(patient: Rows, generator: torch.Generator) -> Tensor:
        seen.append(generator.initial_seed())
        return squared_error(net)(patient, generator)

    private_step(
        patients(2, 2, 2),
        loss_of=loss_of,
        parameters=list(net.parameters()),
        mechanism=mechanism(),
        stream=Stream.from_os(),
    )
    assert len(set(seen)) == 3


def test_a_flat_gradient_takes_the_shapes_of_the_parameters():
    net = network()
    weights = sum(parameter.numel() for parameter in net.parameters())
    parts = shaped(torch.arange(weights, dtype=torch.float64), like=list(net.parameters()))
    assert [part.shape for part in parts] == [p.shape for p in net.parameters()]
    assert [part.dtype for part in parts] == [torch.float32] * len(parts)
    assert torch.cat([part.reshape(-1) for part in parts]).tolist() == list(range(weights))
