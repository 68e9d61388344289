"""What no engine may lean on or leave behind, and faults that the conformance suite is seen to catch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from private_laws import ABSENT, KEY, SIGMA, conforms, integer_sum, mechanism, norms
from private_subjects import (
    DRAWS,
    ENGINES,
    PAIRS,
    SLOTS,
    Patient,
    Subject,
    by_loop,
    repeated,
    shipped,
    toy,
)
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.optim.swa_utils import get_ema_multi_avg_fn

from oncofed_common.errors import PrivacyRefusal
from oncofed_common.privacy.engine import Engine, OneByOne, private_step_by, shaped
from oncofed_common.privacy.grid import fits_the_grid, squared_norm, to_grid
from oncofed_common.privacy.stream import Stream

EACH = pytest.mark.parametrize("name", ENGINES)


def hooks_of(network: nn.Module) -> int:
    """Hooks of every module and every weight, and those of all modules there are."""
    found = 0
    for module in network.modules():
        kinds = [part for name, part in vars(module).items() if name.endswith("_hooks")]
        found += sum(len(part) for part in kinds)
    for weight in network.parameters():
        found += len(weight._backward_hooks or {}) + len(weight._post_accumulate_grad_hooks or {})
    return found + sum(len(part) for name, part in vars(modules).items() if _of_all(name, part))


def _of_all(name: str, part: object) -> bool:
    return name.startswith("_global_") and name.endswith("_hooks") and isinstance(part, dict)


def sum_of(engine: Engine[Patient], subject: Subject) -> Tensor:
    found, faults = integer_sum(engine, subject.frame, mechanism(0.1 * norms(subject)[0]))
    assert faults == ()
    return found


@EACH
@pytest.mark.parametrize("on", ["toy", "norm", "prior"])
def test_no_engine_hangs_a_hook_on_any_module_or_weight(name, on, monkeypatch):
    """Not before, not after, and not in between: the way to hang one is closed."""
    subject = toy() if on == "toy" else shipped(on)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a hook")

    for way in [way for way in vars(nn.Module) if way.startswith("register_") and "hook" in way]:
        monkeypatch.setattr(nn.Module, way, forbidden)
    for way in ("register_hook", "register_post_accumulate_grad_hook"):
        monkeypatch.setattr(Tensor, way, forbidden)
    before = hooks_of(subject.network)
    assert before == 0
    sum_of(ENGINES[name](subject), subject)
    assert hooks_of(subject.network) == 0


@EACH
@pytest.mark.parametrize("on", ["toy", "norm", "prior"])
def test_the_sum_is_the_same_where_no_hook_can_run(name, on, monkeypatch):
    subject = toy() if on == "toy" else shipped(on)
    usual = sum_of(ENGINES[name](subject), subject)
    monkeypatch.setattr(nn.Module, "__call__", lambda self, *a, **k: self.forward(*a, **k))
    assert torch.equal(sum_of(ENGINES[name](subject), subject), usual)


@EACH
@pytest.mark.parametrize("on", ["toy", "norm"])
def test_frozen_weights_and_stored_gradients_stay_as_they_were(name, on):
    subject = toy() if on == "toy" else shipped(on)
    frozen = [one for one in subject.network.parameters() if not one.requires_grad]
    assert frozen
    before = [one.detach().clone() for one in subject.network.parameters()]
    engine = ENGINES[name](subject)
    assert len(sum_of(engine, subject)) == sum(one.numel() for one in subject.trained.values())
    after = list(subject.network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(one.grad is None for one in after)
    assert not any(one.requires_grad for one in frozen)


@EACH
def test_an_average_of_the_weights_neither_changes_training_nor_is_changed_by_it(name):
    """Three steps with an average that follows, and three without: the same weights, bit for bit."""

    def trained(follow: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        subject = shipped.__wrapped__("norm")
        engine = ENGINES[name](subject)
        weights = list(subject.trained.values())
        average = copy.deepcopy(subject.network)
        averages = [dict(average.named_parameters())[key] for key in subject.trained]
        seen = [one.detach().clone() for one in averages]
        setting = mechanism(0.1 * norms(subject)[0])
        stream = Stream.from_seed(KEY)
        for _ in range(3):
            step = private_step_by(engine, subject.frame, mechanism=setting, stream=stream)
            with torch.no_grad():
                for weight, part in zip(weights, shaped(step.gradient, like=weights), strict=True):
                    weight.sub_(0.1 * part)
            if follow:
                get_ema_multi_avg_fn(0.5)(averages, weights, None)
                for mean, weight in zip(seen, weights, strict=True):
                    mean.lerp_(weight.detach(), 0.5)
        assert all(one.grad is None for one in average.parameters())
        return weights, averages, seen

    weights, averages, seen = trained(True)
    alone, still, first = trained(False)
    assert all(torch.equal(a, b) for a, b in zip(weights, alone, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(averages, seen, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(still, first, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(averages, still, strict=True))


def test_activations_computed_twice_change_no_bit():
    kept, twice = shipped("norm"), shipped("norm", checkpointing=True)
    assert torch.equal(sum_of(kept.one_by_one(), kept), sum_of(twice.one_by_one(), twice))


EXTREMES: Mapping[str, Tensor] = {
    "a million equal ones": torch.full((1_000_000,), 1e-3),
    "a million of 1e30": torch.full((1_000_000,), 1e30),
    "a million of 1e-30": torch.full((1_000_000,), 1e-30),
    "of every size": torch.logspace(-38, 38, 1001),
    "one giant among dwarfs": torch.cat([torch.tensor([3e38]), torch.full((9999,), 1e-3)]),
    "a thousand of the largest": torch.full((1000,), torch.finfo(torch.float32).max),
    "subnormal": torch.full((1000,), 1e-42),
    "both signs": torch.tensor([1.0, -1.0] * 70_001),
}


@pytest.mark.parametrize("clip_norm", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("name", EXTREMES)
def test_no_norm_overflows_vanishes_or_is_rounded_on_its_way(name, clip_norm):
    """Against exact integers: what is clipped lies at the limit, what is not is kept as it is."""
    gradient, setting = EXTREMES[name], mechanism(clip_norm)
    found = to_grid(gradient, mechanism=setting)
    assert fits_the_grid(found, mechanism=setting)
    # Python's integers: a fraction of every float32, no rounding anywhere.
    least = 2**150
    values, counts = torch.unique(gradient.double().abs(), return_counts=True)
    pairs = zip(values.tolist(), counts.tolist(), strict=True)
    norm = math.isqrt(sum(int(value * least) ** 2 * count for value, count in pairs)) / least
    wanted = gradient.double() * min(1.0, clip_norm / norm) / setting.grid_step
    assert float((found - wanted).abs().max()) < 1 + 2**-8
    if norm > clip_norm:
        assert math.sqrt(squared_norm(found)) >= 2**16 / SIGMA * (1 - 1e-8) - len(found) ** 0.5


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(FINITE, min_size=1, max_size=40), st.floats(1e-9, 1e9))
def test_no_gradient_whatever_leaves_the_grid_or_turns_round(values, clip_norm):
    setting = mechanism(clip_norm)
    gradient = torch.tensor(values)
    found = to_grid(gradient, mechanism=setting)
    assert fits_the_grid(found, mechanism=setting)
    assert bool((found * gradient.sign() >= 0).all())


def test_row_slices_are_not_for_real_patients():
    subject = toy()
    with pytest.raises(PrivacyRefusal) as refused:
        private_step_by(
            subject.row_slices(), subject.frame, mechanism=mechanism(1.0), stream=Stream.from_os()
        )
    assert refused.value.code == "engine"
    step = private_step_by(
        subject.one_by_one(), subject.frame, mechanism=mechanism(1.0), stream=Stream.from_os()
    )
    assert step.protected


@pytest.mark.parametrize("drawn", range(SLOTS + 1))
def test_a_batch_of_slices_has_the_same_shape_however_many_are_drawn(drawn):
    subject = toy()
    seen: list[list[torch.Size]] = []

    class Watched(nn.Module):
        def __init__(self, within: nn.Module) -> None:
            super().__init__()
            self.within = within

        def forward(self, *rows: Tensor) -> Tensor:
            whole = [torch._C._functorch.get_unwrapped(one) for one in rows]
            seen.append([one.shape for one in whole])
            return self.within(*rows)

    plain = subject.row_slices()
    engine = replace(
        plain,
        loss=Watched(plain.loss),
        trained={f"within.{name}": one for name, one in plain.trained.items()},
    )
    frame = [subject.frame[number % 3] for number in range(drawn)]
    integer_sum(engine, frame, mechanism(1.0))
    rows = DRAWS * max(PAIRS)
    assert seen == [[(SLOTS, rows, 5), (SLOTS, rows, 2), (SLOTS, rows)]]


@pytest.mark.parametrize(("patients", "rate", "slots"), [(60, 0.1, 23), (200, 0.25, 89)])
def test_the_slots_of_the_room_s_page_are_those_that_one_step_of_1e9_overflows(
    patients, rate, slots
):
    def more_than(most: int) -> float:
        return math.fsum(
            math.comb(patients, drawn) * rate**drawn * (1 - rate) ** (patients - drawn)
            for drawn in range(most + 1, patients + 1)
        )

    assert more_than(slots) <= 1e-9 < more_than(slots - 1)


def test_whoever_does_not_fit_into_the_slots_is_in_the_next_batch():
    subject = toy()
    conforms(subject.row_slices(), subject, subject.frame * 3, mechanism(norms(subject)[1]))


def test_one_broken_patient_takes_no_other_out_of_the_batch():
    subject = toy()
    first = subject.frame[0]
    odd = [
        ABSENT,
        replace(first, data=(first.data[0][:, :4], first.data[1])),
        replace(first, data=(first.data[0].double(), first.data[1])),
        replace(first, data=(first.data[0] * float("nan"), first.data[1])),
    ]
    engine, setting = subject.row_slices(), mechanism(1.0)
    for broken in odd:
        found, faults = integer_sum(engine, [*subject.frame[1:], broken], setting)
        assert len(faults) == 1
        assert torch.equal(found, integer_sum(engine, [*subject.frame[1:], ABSENT], setting)[0])


def test_slices_refuse_to_compute_activations_twice_instead_of_erring():
    subject = shipped("norm", checkpointing=True)
    with pytest.raises(RuntimeError):
        integer_sum(subject.row_slices(), subject.frame, mechanism(1.0))


@dataclass(frozen=True, kw_only=True)
class Planted:
    """An engine with a fault: ``spoil`` is given what a good one would compute with."""

    subject: Subject
    spoil: Callable[[Subject, Patient, torch.Generator], Tensor]

    @property
    def weights(self) -> int:
        return self.subject.one_by_one().weights

    @property
    def for_real_patients(self) -> bool:
        return True

    def gradients(
        self, patients: Sequence[Patient], generators: Sequence[torch.Generator]
    ) -> Iterator[Tensor | Exception]:
        for patient, generator in zip(patients, generators, strict=True):
            yield self.spoil(self.subject, patient, generator)


def of_parts(subject: Subject, patient: Patient, generator: torch.Generator, size: int) -> Tensor:
    """The mean over so many rows at a time, each clipped by itself."""
    rows = subject.drawn(patient, generator)
    parts = [
        _gradient(subject, tuple(part[first : first + size] for part in rows))
        for first in range(0, len(rows[0]), size)
    ]
    most = 0.2 * norms(subject)[1]
    return torch.stack([part * min(1.0, most / float(part.norm())) for part in parts]).sum(dim=0)


def _gradient(subject: Subject, rows: tuple[Tensor, ...]) -> Tensor:
    found = torch.autograd.grad(subject.loss(*rows), list(subject.trained.values()))
    return torch.cat([part.reshape(-1) for part in found])


def in_another_order(subject: Subject, patient: Patient, generator: torch.Generator) -> Tensor:
    backwards = list(subject.trained.values())[::-1]
    parts = torch.autograd.grad(subject.loss_of(patient, generator), backwards)
    return torch.cat([part.reshape(-1) for part in parts])


def without_a_layer(subject: Subject, patient: Patient, generator: torch.Generator) -> Tensor:
    parts = torch.autograd.grad(subject.loss_of(patient, generator), list(subject.trained.values()))
    return torch.cat([*(part.reshape(-1) for part in parts[:-1]), 0 * parts[-1].reshape(-1)])


def with_other_noise(subject: Subject, patient: Patient, generator: torch.Generator) -> Tensor:
    return by_loop(subject, patient, generator.initial_seed() ^ 1)


def in_half_precision(subject: Subject, patient: Patient, generator: torch.Generator) -> Tensor:
    found = by_loop(subject, patient, generator.initial_seed())
    return found.to(torch.float16).float()


FAULTS: Mapping[str, Callable[[Subject], Engine[Patient]]] = {
    "clipped pair by pair": lambda s: Planted(
        subject=s, spoil=lambda *given: of_parts(*given, size=DRAWS)
    ),
    "clipped draw by draw": lambda s: Planted(
        subject=s, spoil=lambda *given: of_parts(*given, size=1)
    ),
    "weights in another order": lambda s: Planted(subject=s, spoil=in_another_order),
    "a layer left out": lambda s: Planted(subject=s, spoil=without_a_layer),
    "randomness of another": lambda s: Planted(subject=s, spoil=with_other_noise),
    "gradients in float16": lambda s: Planted(subject=s, spoil=in_half_precision),
    "padding that counts": lambda s: replace(s.row_slices(), rows_of=_counted(s)),
}


def _counted(subject: Subject) -> Callable[[Patient, torch.Generator], tuple[Tensor, ...]]:
    def rows_of(patient: Patient, generator: torch.Generator) -> tuple[Tensor, ...]:
        *parts, share = repeated(subject.drawn(patient, generator), DRAWS * max(PAIRS))
        return (*parts, torch.full_like(share, 1.0 / len(share)))

    return rows_of


@pytest.mark.parametrize("on", ["toy", "norm"])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_engine_with_this_fault_does_not_conform(fault, on):
    """Planted. The patients have unequal numbers of pairs, and half of them are above the clip."""
    subject = toy() if on == "toy" else shipped("norm")
    setting = mechanism(sum(norms(subject)[:2]) / 2)
    with pytest.raises(AssertionError):
        conforms(FAULTS[fault](subject), subject, subject.frame, setting)


def test_an_engine_that_hangs_hooks_is_seen(monkeypatch):
    subject = toy()

    class Hooked(OneByOne[Patient]):
        def gradients(self, patients, generators):
            handle = subject.network[2].register_forward_hook(lambda *_: None)
            yield from super().gradients(patients, generators)
            assert hooks_of(subject.network) == 1
            handle.remove()

    engine = Hooked(loss_of=subject.loss_of, parameters=list(subject.trained.values()))
    sum_of(engine, subject)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a hook")

    monkeypatch.setattr(nn.Module, "register_forward_hook", forbidden)
    with pytest.raises(AssertionError, match="a hook"):
        sum_of(engine, subject)
