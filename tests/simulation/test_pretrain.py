"""Pretraining: resumable, on hospitals of its own, and honest about what it made."""

import json
import math
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from growing_tumour import growing_tumour

from oncofed_common.diffusion.generate import Sampling
from oncofed_common.diffusion.processes import PROCESSES
from oncofed_common.errors import SystemRefusal, UsageRefusal
from oncofed_common.metrics.judge import Score
from oncofed_common.model.prepare import FIELDS, condition_channels
from oncofed_common.model.presets import SMALL
from oncofed_common.model.tokens import HORIZON, HORIZON_DAYS
from oncofed_common.model.weights import card as shipped_card
from oncofed_common.model.weights import parse
from oncofed_simulation.base_weights import CACHE, export, pretrain
from oncofed_simulation.patients import hospital
from oncofed_simulation.patients.hospitals import COHORT_SEEDS
from oncofed_simulation.pretrain import (
    CHECKPOINT,
    State,
    checkpoint,
    learning_rate,
    pretraining_step,
    train,
)
from oncofed_simulation.training_set import (
    SCORED_HOSPITAL,
    Examples,
    Settings,
    available,
    days_ahead,
    making,
    patient_of,
    scored_patients,
)
from oncofed_simulation.widening import WIDENED_HOSPITAL

SETTINGS = Settings(
    preset="small",
    patients=2,
    patients_at_start=1,
    steps_per_patient=2,
    steps=4,
    seed=5,
    rows=2,
    pairs=2,
    dtype="float32",
)
FOREVER = 1e9


def _ready(patients):
    assert patients <= SETTINGS.patients, "all of them are stored"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with making(SETTINGS, folder, processes=1) as wait:
        wait(1)
        assert (folder / "small-5-2-00000" / "known.npy").exists()
        wait(2)
    return folder


def _run(out, *, resume):
    watched = []
    card = pretrain(
        SETTINGS,
        out,
        resume=resume,
        processes=1,
        seconds=FOREVER,
        widened=1,
        scored=1,
        how=Sampling(samples=2, evaluations=2, dtype=torch.float32),
        command="pretrain",
        watch=lambda *words: watched.append(words),
    )
    return card, watched


@pytest.mark.slow
def test_a_whole_run_is_watched_and_may_be_resumed_but_not_overwritten(cache, tmp_path):
    (tmp_path / "patients").symlink_to(cache)
    card, watched = _run(tmp_path, resume=False)
    assert [words[0].split(",")[0] for words in watched] == [
        "making the first patients",
        *["training"] * 4,
        "setting the width of forecasts",
        "scoring",
    ]
    assert card["score"]["patients"] == 1
    made = parse((tmp_path / "small.safetensors").read_bytes(), SMALL, sha256=card["sha256"])
    width = card["widening"]
    assert width["patients"] == 1
    assert float(made.tensors["widening"]) == pytest.approx(width["factor"], abs=1e-4)
    with pytest.raises(SystemRefusal) as refusal:
        _run(tmp_path, resume=False)
    assert refusal.value.code == "out_exists"
    assert _run(tmp_path, resume=True)[0]["sha256"] == card["sha256"]


@pytest.fixture(scope="module")
def straight(cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight")
    (out / CACHE).symlink_to(cache)
    steps = list(train(SETTINGS, cache, out, seconds=FOREVER, save_every_s=FOREVER, wait=_ready))
    assert [one.step for one in steps] == [1, 2, 3, 4]
    return out


def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_weights(cache, straight, tmp_path):
    interrupted = train(SETTINGS, cache, tmp_path, seconds=FOREVER, save_every_s=0.0, wait=_ready)
    list(islice(interrupted, 2))
    interrupted.close()
    assert checkpoint(SETTINGS, tmp_path).step == 2
    list(train(SETTINGS, cache, tmp_path, seconds=FOREVER, save_every_s=FOREVER, wait=_ready))
    one, other = (checkpoint(SETTINGS, out).average.state_dict() for out in (straight, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_callers_threads_change_no_weight_and_are_given_back(cache, straight, tmp_path):
    """Sums of two threads and of one differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in train(
            SETTINGS, cache, tmp_path, seconds=FOREVER, save_every_s=FOREVER, wait=_ready
        ):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    one, other = (checkpoint(SETTINGS, out).average.state_dict() for out in (straight, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_seed_ends_with_other_weights(straight):
    fresh = checkpoint(SETTINGS, straight / "nowhere").average.state_dict()
    trained = checkpoint(SETTINGS, straight).average.state_dict()
    assert any(not torch.equal(fresh[name], trained[name]) for name in fresh)


def test_a_checkpoint_of_other_settings_is_refused(cache, straight):
    other = replace(SETTINGS, rows=3)
    with pytest.raises(SystemRefusal) as refusal:
        next(train(other, cache, straight, seconds=FOREVER, save_every_s=FOREVER, wait=_ready))
    assert refusal.value.code == "other_run"


def test_a_run_may_be_made_longer_and_the_card_says_so(cache, straight, tmp_path):
    (tmp_path / CHECKPOINT).write_bytes((straight / CHECKPOINT).read_bytes())
    (tmp_path / CACHE).symlink_to(cache)
    longer = replace(SETTINGS, steps=5)
    list(train(longer, cache, tmp_path, seconds=FOREVER, save_every_s=FOREVER, wait=_ready))
    how = Sampling(samples=2, evaluations=2, dtype=torch.float32)
    network = checkpoint(longer, tmp_path).average
    card = export(longer, tmp_path, network, width={}, scores=[], how=how, command="pretrain")
    assert card["steps_done"] == 5
    assert card["schedules"] == [{"from_step": 0, "to_step": 4}, {"from_step": 4, "to_step": 5}]


def test_what_is_stored_is_not_made_again(cache):
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    with making(SETTINGS, cache, processes=1) as wait:
        wait(2)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == before


def test_a_row_is_a_stored_example_or_its_mirror_image(cache):
    data = Examples.of(SETTINGS, cache)
    data.reach(2)
    batch = data.draw(12, torch.Generator().manual_seed(1))
    stored = [
        np.asarray(many[e], dtype=np.float32) for many in data.fields for e in range(len(many))
    ]
    mirrored = 0
    for row in torch.cat([batch.conditions, batch.target], dim=1).numpy():
        straight = any(np.array_equal(row, one) for one in stored)
        mirror = any(np.array_equal(row, one[:, ::-1]) for one in stored)
        assert straight != mirror
        mirrored += mirror
    assert 0 < mirrored < 12


def test_no_hospital_is_trained_on_and_scored_on_or_asked_for_the_width():
    scored = next(scored_patients(SETTINGS.seed, 1))
    assert patient_of(SETTINGS, 0).participant != scored.participant
    card = shipped_card(SMALL)
    assert card["patients"] < SCORED_HOSPITAL
    assert SCORED_HOSPITAL + card["score"]["patients"] < WIDENED_HOSPITAL


def test_every_training_patient_is_of_another_hospital(monkeypatch):
    homes = []

    def patient(home, *, seed, number):
        homes.append(home)
        return made

    made = SimpleNamespace(patient=growing_tumour())  # nobody looks at it
    monkeypatch.setattr("oncofed_simulation.training_set.virtual_patient", patient)
    for index in range(20):
        patient_of(SETTINGS, index)
    assert all(one != other for one, other in combinations(homes, 2))


def test_the_prior_learns_at_a_rate_of_its_own_and_all_the_rest_at_the_other():
    state = State.fresh(replace(SETTINGS, learning_rate=1e-3, prior_learning_rate=7e-3))
    rates = {
        one: group["most"] for group in state.optimizer.param_groups for one in group["params"]
    }
    names = dict(state.network.named_parameters())
    assert {name: rates[one] for name, one in names.items()} == {
        name: 7e-3 if name.startswith("prior.") else 1e-3 for name in names
    }


def test_the_average_follows_the_network_by_its_formula(cache):
    """After every step mean = keep * mean + (1 - keep) * weights, early on with a smaller keep; computed
    beside it in float64."""
    data = Examples.of(SETTINGS, cache)
    data.reach(2)
    state = State.fresh(SETTINGS)
    name = "unet.conv_in.conv.weight"
    mean = dict(state.average.named_parameters())[name].detach().double().clone()
    for step in range(1, 4):
        pretraining_step(SETTINGS, state, data)
        value = dict(state.network.named_parameters())[name].detach().double()
        keep = min(SETTINGS.ema, (1 + step - 1) / (10 + step - 1))
        mean = keep * mean + (1 - keep) * value
    found = dict(state.average.named_parameters())[name].detach().double()
    torch.testing.assert_close(found, mean, rtol=0, atol=1e-7)
    assert not torch.equal(found.float(), value.float())


def test_another_process_practises_other_angles_and_an_unknown_one_is_refused(cache, tmp_path):
    data = Examples.of(SETTINGS, cache)
    data.reach(2)
    losses = set()
    for process in PROCESSES:
        settings = replace(SETTINGS, process=process)
        losses.add(pretraining_step(settings, State.fresh(settings), data))
    assert len(losses) == len(PROCESSES) > 1
    with pytest.raises(UsageRefusal):
        replace(SETTINGS, process="brownian")


def test_the_days_ahead_that_were_practised_are_those_of_the_pairs(cache):
    """Each patient counts as one, whatever the number of its pairs: here by copying pairs."""
    data = Examples.of(SETTINGS, cache)
    data.reach(2)
    days = [sorted(data.tokens[p][:, HORIZON, 0] * float(HORIZON_DAYS)) for p, _ in data.where]
    pairs = math.lcm(*(len(of) for of in days))
    every = sorted(day for of in days for day in of for _ in range(pairs // len(of)))
    first, last = days_ahead(SETTINGS, cache, patients=2)
    assert first == round(every[0])
    assert last == round(every[-1])


def test_the_hospitals_of_pretraining_are_not_those_of_a_cohort_with_the_same_seed():
    assert hospital(COHORT_SEEDS + 7, 1) != hospital(7, 1)


def test_the_rate_rises_to_its_top_and_falls_to_nothing():
    settings = replace(SETTINGS, steps=1000, warmup_steps=100)
    rates = [learning_rate(settings, step) for step in range(1001)]
    assert rates[99] == max(rates) == settings.learning_rate
    assert rates[0] == pytest.approx(settings.learning_rate / 100)
    assert rates[1000] == pytest.approx(0.0, abs=1e-12)
    assert (np.diff(rates[99:]) <= 0).all()


def test_the_card_describes_the_file_beside_it(straight):
    good, bad = (
        Score(crps_log_volume=crps, dice=0.8, covered_50=True, covered_90=None)
        for crps in (0.1, 0.3)
    )
    how = Sampling(samples=2, evaluations=2, dtype=torch.float32)
    card = export(
        SETTINGS,
        straight,
        checkpoint(SETTINGS, straight).average,
        width={"factor": 1.0, "patients": 0},
        scores=[(good, bad)],
        how=how,
        command="pretrain",
    )
    data = (straight / "small.safetensors").read_bytes()
    assert json.loads((straight / "small.json").read_text()) == card
    parse(data, SMALL, sha256=card["sha256"])
    assert card["score"]["crps_log_volume"] == {"base": 0.1, "no_change": 0.3}
    assert card["limits"].startswith("research use only")
    assert card["adapters"]["norm"] == shipped_card(SMALL)["adapters"]["norm"]
    assert len(data) < 16 * 2**20


def test_a_patient_is_drawn_as_often_as_any_other_however_many_pairs_it_has():
    pairs = (1, 0, 15)
    channels = condition_channels(SMALL)
    data = Examples(
        fields=[np.zeros((n, channels + FIELDS, 2, 2, 2), dtype=np.float16) for n in pairs],
        tokens=[
            np.array([[[p, e]] for e in range(n)], dtype=np.float16).reshape(n, 1, 2)
            for p, n in enumerate(pairs)
        ],
        known=[np.ones((n, FIELDS), dtype=np.float16) for n in pairs],
        where=[(0, 1), (2, 15)],
        file=Path,
        channels=channels,
    )
    drawn = data.draw(3000, torch.Generator().manual_seed(0)).tokens[:, 0]
    first = drawn[:, 0] == 0
    assert first.float().mean().item() == pytest.approx(0.5, abs=0.04)
    each = torch.bincount(drawn[~first, 1].long(), minlength=15)
    assert each.min() > 60
    assert each.sum() == (~first).sum()


def test_which_patients_a_step_draws_from_follows_from_its_number_alone(
    cache, tmp_path, monkeypatch
):
    assert [available(SETTINGS, step) for step in range(6)] == [1, 1, 2, 2, 2, 2]
    waited, drawn = [], []

    def draw(data, rows, generator):
        drawn.append([patient for patient, _ in data.where])
        return plain(data, rows, generator)

    plain = Examples.draw
    monkeypatch.setattr(Examples, "draw", draw)
    list(train(SETTINGS, cache, tmp_path, seconds=FOREVER, save_every_s=0.0, wait=waited.append))
    assert waited == [1, 1, 2, 2]
    assert drawn == [[0], [0], [0, 1], [0, 1]]
