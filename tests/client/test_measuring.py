"""Metrics at the trainer: whom they are of, what they cost, and that nothing but noised means leaves."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_trainer import Made, Trainer, draw, first_weights
from site_builder import PASSPHRASE, Coordinator, a_home, a_site, code_of, joined, study_for
from study_builder import a_study
from test_trainer_door import an_update, passed

from oncofed_client import approval, consent
from oncofed_client.readers.cohort import read_cohort
from oncofed_client.trainer import measuring
from oncofed_client.trainer import session as sessions
from oncofed_client.trainer.members import is_held_out, lifelong_keys
from oncofed_client.trainer.training import Round
from oncofed_common.errors import PrivacyRefusal, StudyRefusal, WireRefusal
from oncofed_common.pricing import events_of
from oncofed_common.privacy import noised_sum as sums
from oncofed_common.privacy.accountant import rdp_at
from oncofed_common.privacy.stream import Stream
from oncofed_common.study_terms import METRICS
from oncofed_common.tensors import to_units, unpack_tensors
from oncofed_common.wire import unframe

ASKED = ["all", "small"]
MEASURED = {
    "outbound": {"metrics": ASKED},
    "privacy": {
        "noise_multiplier": 2.0,
        "epsilon": 4.0,
        "metric_bound": 0.5,
        "metric_noise_multiplier": 5.0,
    },
}


AT_THE_DOOR = a_study(
    outbound=MEASURED["outbound"],
    privacy={"metric_bound": 0.5, "metric_noise_multiplier": 5.0},
)


def half_held_out(made: Made, tmp_path: Path) -> Trainer:
    """A trainer of three patients, one of them held out."""
    trainer = made(cohort={"held_out_fraction": 0.4}, **MEASURED)
    table, secret = tmp_path / "identities.tsv", trainer.site.home.secret()
    text, names = table.read_text(), read_cohort(tmp_path / "cohort").participants
    for attempt in itertools.count():
        table.write_text(text.replace("\tH-", f"\tH-{attempt}-"))
        keys = lifelong_keys(names, identities=table, secret=secret).values()
        if sum(is_held_out(key, secret=secret, fraction=0.4) for key in keys) == 1:
            return trainer
    raise AssertionError


def test_those_held_out_are_charged_and_measured_and_nobody_else(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is either trained on or measured on; both pay, and who withdrew is neither."""
    trainer = half_held_out(made, tmp_path)
    ready = trainer.session.ready(trainer.approved)
    trained = {member.lifelong for member in ready.members}
    (other,) = ready.held_out
    assert len(trained) == 2
    assert other.lifelong not in trained
    assert set(draw(trainer, 1)) == trained | {other.lifelong}
    seen: list[list[str]] = []
    real = measuring.measure

    def watched(held_out, **given):
        seen.append([member.lifelong for member in held_out])
        return real(held_out, **given)

    monkeypatch.setattr(sessions, "measure", watched)
    done = trainer.session.work(trainer.approved, first_weights(trainer), 1)
    assert done.means is not None
    assert done.means.shape == (2,)
    assert METRICS not in done.update
    key = trainer.site.home.approver_key(PASSPHRASE)
    trainer.site.ledger.exclude(other.lifelong, key=key)
    assert set(draw(trainer, 2)) == trained
    later = trainer.session.work(trainer.approved, first_weights(trainer), 2)
    assert later.means is not None
    assert later.means.shape == (2,)
    assert seen == [[other.lifelong], []]


def test_a_loss_counts_up_to_the_bound_and_a_broken_patient_as_nothing(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the noise: three patients' losses are 0.2, 9 and none; twenty are declared, two held out."""
    trainer = made(**MEASURED)
    ready = trainer.session.ready(trainer.approved)
    monkeypatch.setattr(
        sums, "discrete_gaussian", lambda stream, *, count: np.zeros(count, dtype=np.int64)
    )
    losses = iter([0.2, 9.0])

    def loss_of(rows, generator):
        try:
            return torch.tensor(next(losses))
        except StopIteration:
            raise MemoryError("canary") from None

    monkeypatch.setattr(measuring, "loss_for", lambda *_, **__: loss_of)
    study = trainer.approved.study.model_copy(
        update={
            "cohort": trainer.approved.study.cohort.model_copy(update={"held_out_fraction": 0.1})
        }
    )
    found = measuring.measure(
        ready.members,
        setup=replace(ready.setup, study=study),
        weights=first_weights(trainer),
        stream=Stream.from_os(),
    )
    assert found[0] == pytest.approx((0.2 + 0.5) / 2, abs=1e-3)


def test_the_weights_that_are_measured_are_those_of_the_task(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when training moved them before."""
    trainer = made(**MEASURED)
    ready = trainer.session.ready(trainer.approved)
    weights = {name: value + 1 for name, value in first_weights(trainer).items()}
    trained = ready.setup.trained
    seen: list[bool] = []

    def loss_of(rows, generator):
        seen.append(all(np.array_equal(trained[n].detach().numpy(), weights[n]) for n in weights))
        return torch.tensor(0.1)

    monkeypatch.setattr(measuring, "loss_for", lambda *_, **__: loss_of)
    given = {"weights": weights, "stream": Stream.from_os()}
    measuring.measure(ready.members, setup=ready.setup, **given)
    assert seen == [True] * 3
    none = trainer.approved.study.privacy.model_copy(update={"metric_bound": None})
    study = trainer.approved.study.model_copy(update={"privacy": none})
    with pytest.raises(StudyRefusal):
        measuring.measure([], setup=replace(ready.setup, study=study), **given)


def test_means_leave_beside_the_update_through_the_same_door(tmp_path: Path) -> None:
    """As one more tensor of the study's schema; without them, or with others, nothing leaves."""
    coordinator = Coordinator()
    site = a_site(tmp_path, coordinator, **MEASURED)
    means = np.array([0.25, -3.5])
    train = site.work

    def work(*asked):
        done = train(*asked)
        return Round(update=done.update, protected=True, faults=(), means=means)

    site.work = work  # type: ignore[method-assign]
    with site.open:
        body, _ = site.desk().answer(coordinator.task(site))
        assert code_of(body) == "ok"
        _, tensors = unframe(body, cap_bytes=10**6)
        found = unpack_tensors(tensors, schema=site.study.reply_terms, dtype="int32")
        assert found[METRICS].tolist() == [2**22, -7 * 2**23]
    told = an_update(AT_THE_DOOR)
    for wrong in (told, told | {METRICS: np.zeros(3, dtype=np.int32)}):
        with pytest.raises(WireRefusal):
            passed(AT_THE_DOOR, wrong)


def test_means_are_not_shrunk_with_an_update_that_is_too_long() -> None:
    study = AT_THE_DOOR
    long = {t.name: np.full(t.shape, 2**30, dtype=np.int32) for t in study.schema_terms}
    means = to_units({METRICS: np.array([0.5, 1.0], dtype=np.float32)})
    _, tensors = unframe(passed(study, long | dict(means)), cap_bytes=10**6)
    found = unpack_tensors(tensors, schema=study.reply_terms, dtype="int32")
    assert found[METRICS].tolist() == means[METRICS].tolist()
    assert all(np.abs(found[t.name]).max() < 2**30 for t in study.schema_terms)


def test_what_metrics_cost_is_part_of_the_price(tmp_path: Path) -> None:
    """Noise that costs more than the study states refuses it; else the dearer of both is reserved."""
    home = joined(a_home(tmp_path), Coordinator())
    study = study_for(home, **MEASURED)
    approval.refuse_mispriced(study)
    quiet = {**MEASURED["privacy"], "metric_noise_multiplier": 0.5}
    with pytest.raises(PrivacyRefusal) as refused:
        approval.refuse_mispriced(study_for(home, outbound={"metrics": ASKED}, privacy=quiet))
    assert refused.value.code == "understated"
    training, metrics = events_of(study)
    assert metrics.steps == study.training.rounds
    assert rdp_at(metrics, 3) != rdp_at(training, 3)
    assert "all, small" in consent._leaves(study)
