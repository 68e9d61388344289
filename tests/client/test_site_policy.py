"""The hospital's own limits: how they are written, read and held against a study."""

from __future__ import annotations

import json
import stat
from decimal import Decimal

import pytest
from grown_ledger import A, draw
from hypothesis import assume, given
from hypothesis import strategies as st
from ledger_site import NOW_S, new_site
from study_builder import a_study

from oncofed_client.ledger import Ledger
from oncofed_client.policy import Policy, units_up
from oncofed_common.errors import PolicyRefusal, StudyRefusal
from oncofed_common.privacy.filter import filter_epsilon

GOOD = {
    "lifetime_epsilon": "10",
    "lifetime_delta": "0.0001",
    "filter_order": "4",
    "declared_patients": 20,
    "bytes_per_round": 200_000,
}


def policy(**changes) -> Policy:
    return Policy.parse(**{**GOOD, **changes})


def test_what_is_written_is_what_is_read_by_its_owner_alone(tmp_path):
    path = tmp_path / "policy.toml"
    policy().write(path)
    assert Policy.read(path) == policy()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_policy_is_never_overwritten(tmp_path):
    policy().write(tmp_path / "policy.toml")
    with pytest.raises(FileExistsError):
        policy(lifetime_epsilon="50").write(tmp_path / "policy.toml")


@pytest.mark.parametrize(
    "fault",
    [
        {"lifetime_delta": "0.00051"},  # above 1/(100 x 20)
        {"lifetime_delta": "0"},
        {"lifetime_delta": "nan"},
        {"lifetime_delta": "-0.0001"},
        {"lifetime_epsilon": "-1"},
        {"lifetime_epsilon": "0"},
        {"lifetime_epsilon": "inf"},
        {"lifetime_epsilon": "much"},
        {"lifetime_epsilon": "1", "filter_order": "2"},  # no room at this order
        {"filter_order": "1"},
        {"filter_order": "3.5"},
        {"filter_order": "257"},
        {"declared_patients": 0},
        {"bytes_per_round": 0},
    ],
)
def test_a_limit_that_limits_nothing_is_refused(fault):
    with pytest.raises(PolicyRefusal):
        policy(**fault)


def test_a_delta_of_exactly_one_in_a_hundred_patients_is_allowed():
    assert policy(lifetime_delta="5e-4").lifetime_delta == "0.0005"


def test_a_misspelt_key_is_named_with_its_neighbour(tmp_path):
    path = tmp_path / "policy.toml"
    policy().write(path)
    path.write_text(path.read_text() + "bytes_per_rond = 5000\n")
    with pytest.raises(PolicyRefusal) as refusal:
        Policy.read(path)
    assert refusal.value.next == "did you mean bytes_per_round?"


@pytest.mark.parametrize("key", list(Policy.model_fields))
def test_no_key_has_a_default(tmp_path, key):
    path = tmp_path / "policy.toml"
    policy().write(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith(key)))
    with pytest.raises(PolicyRefusal) as refusal:
        Policy.read(path)
    assert key in refusal.value.found


@pytest.mark.parametrize("number", ["0", "3", "true", "'2'", "2.0", "[1]"])
def test_one_or_two_persons_say_yes(tmp_path, number):
    path = tmp_path / "policy.toml"
    policy().write(path)
    path.write_text(path.read_text().replace("approvers = 1\n", f"approvers = {number}\n"))
    with pytest.raises(PolicyRefusal) as refusal:
        Policy.read(path)
    assert refusal.value.next == "correct approvers"


@pytest.mark.parametrize("content", [b"not = [toml", b"\xff\xfe", None])
def test_a_policy_that_cannot_be_read_is_refused(tmp_path, content):
    path = tmp_path / "policy.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PolicyRefusal):
        Policy.read(path)


def test_the_room_is_the_loss_that_means_the_lifetime_epsilon_and_not_a_unit_more():
    room = policy().room_units
    spent = filter_epsilon(room / 1e9, order=4, delta=1e-4)
    assert spent <= 10
    assert filter_epsilon((room + 2) / 1e9, order=4, delta=1e-4) > 10


def test_losses_are_rounded_against_the_spender():
    assert units_up("0.0000000001") == 1
    assert units_up(Decimal("1.5")) == 1_500_000_000


def study(**changes):
    return a_study(**{"privacy": {"epsilon": 2.0, "delta": 1e-4}, **changes})


def test_a_study_within_all_limits_is_not_declined():
    assert policy().refusals(study(), site="north") == []
    policy().refuse_study(study(), site="north")


@pytest.mark.parametrize(
    ("change", "limits", "word"),
    [
        ({"privacy": {"epsilon": 10.5, "delta": 1e-4}}, {}, "epsilon"),
        ({"privacy": {"epsilon": 2.0, "delta": 2e-4}}, {}, "delta"),
        ({}, {"declared_patients": 25}, "declared"),
        ({}, {"bytes_per_round": 199_999}, "bytes"),
    ],
)
def test_a_study_beyond_one_limit_is_declined_with_that_reason(change, limits, word):
    with pytest.raises(PolicyRefusal) as refusal:
        policy(**limits).refuse_study(study(**change), site="north")
    assert word in refusal.value.found
    assert ";" not in refusal.value.found


def test_a_release_that_the_hospital_does_not_allow_is_declined():
    narrow = policy().model_copy(update={"releases": ("weights",)})
    with pytest.raises(PolicyRefusal) as refusal:
        narrow.refuse_study(study(), site="north")
    assert "weights_and_audit" in refusal.value.found


def test_all_reasons_come_in_one_answer():
    dear = study(privacy={"epsilon": 11.0, "delta": 0.5})
    assert len(policy(bytes_per_round=100_000).refusals(dear, site="north")) == 3


def test_a_study_that_does_not_invite_the_site_is_refused():
    with pytest.raises(StudyRefusal):
        policy().refuse_study(study(), site="nowhere")


@given(first=st.integers(0, 24), end=st.integers(0, 24), hour=st.integers(0, 23))
def test_hours_and_their_opposite_share_out_the_day(first, end, hour):
    """Also over midnight; two hours that are the same would say nothing."""
    assume(first % 24 != end % 24)
    inside, outside = policy_of_hours(first, end), policy_of_hours(end, first)
    assert inside.may_begin(hour) != outside.may_begin(hour)
    assert policy().may_begin(hour), "as init writes it: always"


def policy_of_hours(first: int, end: int) -> Policy:
    return Policy.model_validate({**policy().model_dump(), "hours_utc": [first, end]})


@pytest.mark.parametrize("hours", [[6, 6], [0, 25], [-1, 5], [1], [1, 2, 3], ["1", 2], [0, 24]])
def test_hours_that_say_nothing_are_refused(tmp_path, hours):
    """The policy is not read at all then; a whole day is one that may be written."""
    path = tmp_path / "policy.toml"
    policy().write(path)
    text = path.read_text()
    assert text.count("hours_utc = [0, 24]") == 1
    path.write_text(text.replace("hours_utc = [0, 24]", f"hours_utc = {json.dumps(hours)}"))
    if hours == [0, 24]:
        assert all(Policy.read(path).may_begin(hour) for hour in range(24))
        return
    with pytest.raises(PolicyRefusal):
        Policy.read(path)


def test_a_round_begins_in_the_sites_hours_only(tmp_path):
    """Nobody is charged outside of them; the same round may be asked for again."""
    site = new_site(tmp_path / "home")
    limits = Policy.model_validate({**site.limits.model_dump(), "hours_utc": [20, 6]})
    site = site.but(limits=limits)
    with Ledger.create(site, clock=site.clock) as ledger:
        ledger.reserve(site.approval("a", number=1))
        site.now[0] += (12 - NOW_S % 86_400 // 3600) % 24 * 3600.0
        with pytest.raises(PolicyRefusal) as refusal:
            draw(ledger, 1)
        assert refusal.value.code == "hours"
        assert ledger.spent_by_patient() == {}
        site.now[0] += 9 * 3600.0
        draw(ledger, 1)


def test_so_many_studies_are_open_and_no_more(tmp_path):
    """One that is withdrawn, done or expired makes room."""
    site = new_site(tmp_path / "home")
    site = site.but(limits=site.limits.model_copy(update={"studies_at_once": 1}))
    with Ledger.create(site, clock=site.clock) as ledger:
        ledger.reserve(site.approval("a", number=1))
        with pytest.raises(PolicyRefusal) as refusal:
            ledger.reserve(site.approval("b", number=2))
        assert refusal.value.code == "studies_at_once"
        ledger.withdraw(A, key=site.approver_signing)
        ledger.reserve(site.approval("b", number=2))
