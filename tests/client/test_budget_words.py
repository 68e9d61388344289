"""What a hospital reads of its budget: both units by name, and how many more studies there is room for."""

from __future__ import annotations

from decimal import Decimal

from grown_ledger import draw

from oncofed_client.budget_words import lifetime_rows, study_rows, why


def test_room_is_told_in_studies_like_the_last_one(site, ledger):
    """As many more may be approved, and no further one."""
    assert "room for" not in lifetime_rows(ledger.budget())["left"]
    ledger.reserve(site.approval("a", number=1, rounds=3, rdp="0.9"))
    budget = ledger.budget()
    more = int(Decimal(budget["left"]) / Decimal("0.9"))
    assert f"room for {more} more" in lifetime_rows(budget)["left"]
    for number in range(2, 2 + more):
        ledger.reserve(site.approval(chr(96 + number), number=number, rounds=3, rdp="0.9"))
    assert "room for 0 more" in lifetime_rows(ledger.budget())["left"]


def test_what_is_reserved_is_told_as_an_epsilon_too(site, ledger):
    """Nothing is spent before the first round, and all of it is once a study has drawn everything."""
    ledger.reserve(site.approval("a", number=1, rounds=3, rdp="0.9"))
    before = ledger.budget()
    assert float(before["spent_epsilon"]) == 0 < float(before["reserved_epsilon"])
    for number in (1, 2, 3):
        draw(ledger, number)
    after = ledger.budget()
    assert after["spent_epsilon"] == after["reserved_epsilon"] == before["reserved_epsilon"]


def test_the_page_names_both_units_and_says_why_they_differ(site, ledger):
    ledger.reserve(site.approval("a", number=1, rounds=3, rdp="0.9"))
    found = ledger.budget()
    ((_, _, _, rounds, spent, left, state),) = study_rows(found)
    assert (rounds, Decimal(spent), Decimal(left), state) == ("0/3", 0, Decimal("0.9"), "open")
    assert f"order {found['filter_order']}" in why(found)
