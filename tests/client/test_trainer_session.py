"""What a trainer holds, whom it trains on, and how one round begins and ends."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from made_trainer import Made, draw, first_weights
from site_builder import PASSPHRASE, a_home

from oncofed_client.readers.cohort import read_cohort
from oncofed_client.trainer import session as sessions
from oncofed_client.trainer.members import is_held_out, lifelong_keys
from oncofed_client.trainer.session import stream_for
from oncofed_client.trainer.training import train_round
from oncofed_common.errors import ModelRefusal, PolicyRefusal
from oncofed_common.model.network import build
from oncofed_common.model.presets import SMALL
from oncofed_common.model.weights import dump
from oncofed_common.privacy.stream import Stream


def test_only_those_who_were_charged_for_a_round_are_trained_on(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who withdrew is in no frame; who was not charged is in memory, and is not drawn."""
    trainer = made()
    ready = trainer.session.ready(trainer.approved)
    everybody = [member.lifelong for member in ready.members]
    assert trainer.session.frame(trainer.approved) == everybody
    key = trainer.site.home.approver_key(PASSPHRASE)
    trainer.site.ledger.exclude(everybody[1], key=key)
    left = [everybody[0], everybody[2]]
    assert trainer.session.frame(trainer.approved) == left
    assert draw(trainer, 1) == left
    seen: list[object] = []

    def watched(frame, **settings):
        seen.extend(frame)
        return train_round(frame, **settings)

    monkeypatch.setattr(sessions, "train_round", watched)
    done = trainer.session.work(trainer.approved, first_weights(trainer), 1)
    assert seen == [ready.members[0].rows, ready.members[2].rows]
    assert done.protected
    assert all(np.isfinite(value).all() for value in done.update.values())
    assert any(value.any() for value in done.update.values())


def test_an_attempt_that_is_repeated_trains_under_other_noise(made: Made) -> None:
    """Under the same draw: two results of one sum under the same noise would give it away."""
    trainer = made()
    draw(trainer, 1)
    weights = first_weights(trainer)
    first, again = (trainer.session.work(trainer.approved, weights, 1) for _ in range(2))
    assert first.protected
    assert again.protected
    for name in weights:
        assert not np.array_equal(first.update[name], again.update[name])


def test_a_network_that_learns_nothing_is_refused_when_the_trainer_gets_ready(made: Made) -> None:
    """Weights that are all zero: a study could name them, and every patient would pay for noise."""
    network = build(SMALL, seed=0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
    trainer = made(base=dump(network))
    with pytest.raises(ModelRefusal) as refused:
        trainer.session.ready(trainer.approved)
    assert refused.value.code == "cannot_train"


def test_a_seed_never_works_at_a_real_site(made: Made, tmp_path: Path) -> None:
    """Whatever was approved: the home's own key certificate says what it is."""
    trainer = made(virtual={"seed": 3})
    assert not stream_for(trainer.approved, home=trainer.site.home, round_number=1).protected
    real = a_home(tmp_path / "real", virtual=False)
    with pytest.raises(PolicyRefusal) as refused:
        stream_for(trainer.approved, home=real, round_number=1)
    assert refused.value.code == "seed_forbidden"


@pytest.mark.parametrize(
    ("stated", "rounded"), [(20, True), (21, False), (95, True), (120, True), (125, False)]
)
def test_a_real_site_states_a_rounded_number_of_patients(
    tmp_path: Path, stated: int, rounded: bool
) -> None:
    """47 of 47 would be a count of everybody who is there."""
    if rounded:
        assert a_home(tmp_path, virtual=False, declared_patients=stated).declared_patients == stated
        return
    with pytest.raises(PolicyRefusal) as refused:
        a_home(tmp_path, virtual=False, declared_patients=stated)
    assert refused.value.code == "exact_number"
    assert not list(tmp_path.iterdir())
    assert a_home(tmp_path, virtual=True, declared_patients=stated).declared_patients == stated


def test_a_real_site_cannot_be_given_its_secret(tmp_path: Path) -> None:
    """Whoever chose it could tell patients from their lifelong keys, and who is held out."""
    with pytest.raises(PolicyRefusal) as refused:
        a_home(tmp_path, name="real", virtual=False, secret=b"s" * 32)
    assert refused.value.code == "secret_forbidden"
    assert not list(tmp_path.iterdir())
    assert a_home(tmp_path, name="unreal", secret=b"s" * 32).secret() == b"s" * 32


def test_a_round_starts_from_the_weights_of_its_task_on_the_studys_terms(made: Made) -> None:
    """Not from the base's; one thread, deterministic kernels, and neither outlives the round."""
    trainer = made(
        privacy={"clip_norm": 1e-9, "noise_multiplier": 2.0, "epsilon": 4.0},
        training={"threads": 1, "steps_per_round": 2},
    )
    ready = trainer.session.ready(trainer.approved)
    elsewhere = {name: value + 1 for name, value in first_weights(trainer).items()}
    found: list[tuple[int, bool]] = []
    torch.set_num_threads(2)
    try:
        done = train_round(
            [ready.members[0].rows],
            setup=ready.setup,
            weights=elsewhere,
            stream=Stream.from_os(),
            on_step=lambda done, total: found.append(
                (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
            ),
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert not torch.are_deterministic_algorithms_enabled()
    assert found == [(1, True), (1, True)]
    assert max(np.abs(value).max() for value in done.update.values()) < 1e-6


def test_held_out_patients_are_not_read(made: Made, tmp_path: Path) -> None:
    """Under hospital numbers that are all held out, nobody is in memory."""
    trainer = made(cohort={"held_out_fraction": 0.9})
    table, secret = tmp_path / "identities.tsv", trainer.site.home.secret()
    text = table.read_text()
    names = read_cohort(tmp_path / "cohort").participants
    for attempt in itertools.count():  # chance 0.73 each
        table.write_text(text.replace("\tH-", f"\tH-{attempt}-"))
        keys = lifelong_keys(names, identities=table, secret=secret).values()
        if all(is_held_out(key, secret=secret, fraction=0.9) for key in keys):
            break
    assert trainer.session.ready(trainer.approved).members == ()
    assert trainer.session.frame(trainer.approved) == []
