"""How a hospital reads its ledger: what is allowed, reserved, spent and left, and which study is meant."""

from __future__ import annotations

from decimal import Decimal

import pytest
from grown_ledger import A, draw

from oncofed_common.errors import PolicyRefusal
from oncofed_common.privacy.accountant import noise_multiplier_for, rdp_at
from oncofed_common.privacy.events import SubsampledGaussian
from oncofed_common.privacy.filter import filter_room


def test_what_is_left_falls_with_reservations_and_with_what_was_spent(site, ledger):
    def lifetime():
        found = ledger.budget()
        return tuple(Decimal(found[key]) for key in ("allowed", "reserved", "spent", "left"))

    allowed = lifetime()[0]
    assert lifetime() == (allowed, 0, 0, allowed)
    ledger.reserve(site.approval("a", number=1, rounds=3, rdp="0.9"))
    assert lifetime() == (allowed, Decimal("0.9"), 0, allowed - Decimal("0.9"))
    draw(ledger, 1)
    assert lifetime() == (allowed, Decimal("0.9"), Decimal("0.3"), allowed - Decimal("0.9"))
    ledger.withdraw(A, key=site.approver_signing)
    assert lifetime() == (allowed, 0, Decimal("0.3"), allowed - Decimal("0.3"))


def test_each_study_says_what_it_spent_and_has_left(site, ledger):
    """What is left falls with each round, and is nothing once the study has ended."""

    def of_study():
        (row,) = ledger.budget()["studies"]
        return tuple(Decimal(row[key]) for key in ("reserved", "drawn", "left"))

    ledger.reserve(site.approval("a", number=1, rounds=3, rdp="0.9"))
    assert of_study() == (Decimal("0.9"), 0, Decimal("0.9"))
    draw(ledger, 1)
    assert of_study() == (Decimal("0.9"), Decimal("0.3"), Decimal("0.6"))
    ledger.withdraw(A, key=site.approver_signing)
    assert of_study() == (Decimal("0.9"), Decimal("0.3"), 0)


def test_what_was_spent_by_when_ends_at_what_is_spent_now(site, ledger):
    ledger.reserve(site.approval("a", number=1, rounds=3, rdp="0.9"))
    times = []
    for number in (1, 2):
        site.now[0] += 1000
        times.append(int(site.now[0]))
        draw(ledger, number)
    assert ledger.spent_over_time() == [
        (at_s, Decimal(spent)) for at_s, spent in zip(times, ("0.3", "0.6"), strict=True)
    ]
    assert Decimal(ledger.budget()["spent"]) == ledger.spent_over_time()[-1][1]


def test_a_study_is_known_by_the_start_of_its_hash(site, ledger):
    ledger.reserve(site.approval("a", number=1))
    assert ledger.resolve(A[:6]) == A
    for prefix in ("", "zz", A + "0"):
        with pytest.raises(PolicyRefusal) as refusal:
            ledger.resolve(prefix)
        assert refusal.value.code == "unknown_study"


@pytest.mark.parametrize(
    ("order", "epsilon", "studies"),
    [(3, 2.0, 15), (3, 4.0, 4), (4, 2.0, 14), (4, 4.0, 4), (8, 2.0, 8), (8, 4.0, 1)],
)
def test_the_guide_says_how_many_studies_fit_into_a_lifetime(order, epsilon, studies):
    """docs/hospital.md: a lifetime epsilon of 10, rate 0.25, 40 steps, delta 1e-5 throughout."""
    noise = noise_multiplier_for(epsilon=epsilon, delta=1e-5, rate=0.25, steps=40)
    event = SubsampledGaussian(rate=0.25, noise_multiplier=noise, steps=40)
    room = filter_room(10.0, order=order, delta=1e-5)
    assert int(room / rdp_at(event, order)) == studies
