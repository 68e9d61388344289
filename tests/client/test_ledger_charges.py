"""What a hospital's ledger charges, reserves and refuses."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_site import new_site, patient, study_hash

from oncofed_client.ledger import Ledger
from oncofed_common.errors import (
    BudgetRefusal,
    IdentityRefusal,
    PolicyRefusal,
    Refusal,
    SystemRefusal,
    WireRefusal,
)
from oncofed_common.identity import SigningKey
from oncofed_common.wire import Head as Commitment

RUN = "5" * 32
A, B = study_hash("a"), study_hash("b")
PATIENTS = [patient(n) for n in range(6)]


def draw(ledger, study, round_number, frame=PATIENTS, *, digest=None, run=RUN):
    task = digest or f"{round_number:064x}"
    return ledger.draw(study, run=run, round=round_number, task_digest=task, frame=frame)


def spent(ledger):
    return {key: str(loss) for key, loss in ledger.spent_by_patient().items()}


def test_everybody_who_could_be_drawn_is_charged_and_nobody_else(site, ledger):
    ledger.reserve(site.approval("a", number=1, rounds=3, rdp="0.9"))
    assert draw(ledger, A, 1, PATIENTS[:3]) == PATIENTS[:3]
    assert draw(ledger, A, 2, PATIENTS[1:4]) == PATIENTS[1:4]
    assert [spent(ledger).get(p) for p in PATIENTS[:5]] == ["0.3", "0.6", "0.6", "0.3", None]
    assert ledger.charged_in(A, round=2) == PATIENTS[1:4]
    assert ledger.charged_in(A, round=3) == []


def test_an_empty_frame_is_a_draw_like_any_other(site, ledger):
    ledger.reserve(site.approval("a", number=1))
    assert draw(ledger, A, 1, []) == []
    assert ledger.is_drawn(A, round=1, task_digest=f"{1:064x}")
    assert ledger.commit_head() is not None


def test_a_charge_that_does_not_divide_is_rounded_up_for_each_round(site, ledger):
    ledger.reserve(site.approval("a", number=1, rounds=3, rdp="1"))
    for round_number in (1, 2, 3):
        draw(ledger, A, round_number)
    assert spent(ledger)[PATIENTS[0]] == "1.000000002"


def test_the_same_task_again_charges_nobody_and_names_the_same_patients(site, ledger):
    ledger.reserve(site.approval("a", number=1))
    first = draw(ledger, A, 1, PATIENTS[:3])
    rows, before = ledger.head().sequence, spent(ledger)
    assert draw(ledger, A, 1, PATIENTS) == first
    assert (ledger.head().sequence, spent(ledger)) == (rows, before)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"digest": "9" * 64}, "task_conflict"),
        ({"digest": "9" * 64, "run": "6" * 32}, "task_conflict"),
    ],
)
def test_a_second_task_for_one_round_is_refused_whatever_run_it_names(site, ledger, change, code):
    ledger.reserve(site.approval("a", number=1))
    draw(ledger, A, 1)
    before = spent(ledger)
    with pytest.raises(WireRefusal) as refusal:
        draw(ledger, A, 1, **change)
    assert refusal.value.code == code
    assert spent(ledger) == before


def test_a_study_has_one_run_and_its_rounds_one_order(site, ledger):
    ledger.reserve(site.approval("a", number=1, rounds=5))
    draw(ledger, A, 2)
    for change, code in (({"run": "6" * 32}, "wrong_run"), ({}, "wrong_round")):
        number = 3 if code == "wrong_run" else 1
        with pytest.raises(WireRefusal) as refusal:
            draw(ledger, A, number, **change)
        assert refusal.value.code == code
        with pytest.raises(WireRefusal):
            ledger.refuse_old(
                A, run=change.get("run", RUN), round=number, task_digest=f"{number:064x}"
            )
    ledger.refuse_old(A, run=RUN, round=3, task_digest="c" * 64)


def test_nothing_is_drawn_that_was_not_reserved(site, ledger):
    with pytest.raises(PolicyRefusal) as refusal:
        draw(ledger, A, 1)
    assert refusal.value.code == "not_approved"
    ledger.reserve(site.approval("a", number=1, rounds=2))
    for beyond in (0, 3):
        with pytest.raises(BudgetRefusal):
            draw(ledger, A, beyond)
    assert spent(ledger) == {}


def test_a_study_for_which_there_is_no_room_is_refused_before_anything_is_written(site, ledger):
    """Room here is 7.679666735 at order 4."""
    ledger.reserve(site.approval("a", number=1, rdp="4"))
    rows = ledger.head().sequence
    with pytest.raises(BudgetRefusal):
        ledger.refuse_reservation(site.approval("b", number=2, rdp="4")["approval"])
    with pytest.raises(BudgetRefusal):
        ledger.reserve(site.approval("b", number=2, rdp="4"))
    assert ledger.head().sequence == rows
    ledger.reserve(site.approval("b", number=2, rdp="3.6"))


def test_a_reservation_stands_whole_until_its_study_ends(site, ledger):
    ledger.reserve(site.approval("a", number=1, rounds=2, rdp="7"))
    draw(ledger, A, 1)
    asked = site.approval("b", number=2, rdp="7")
    with pytest.raises(BudgetRefusal):
        ledger.reserve(asked)
    draw(ledger, A, 2)
    ledger.reserve(asked)
    assert spent(ledger)[PATIENTS[0]] == "7"


@pytest.mark.parametrize("how", ["withdrawn", "expired"])
def test_a_study_that_ended_early_frees_its_reservation_and_refunds_nothing(site, ledger, how):
    ledger.reserve(site.approval("a", number=1, rounds=2, rdp="7", expires="2030-01-01"))
    draw(ledger, A, 1)
    if how == "withdrawn":
        ledger.withdraw(A, key=site.approver_signing)
    else:
        site.now[0] += 5 * 365 * 86_400
    with pytest.raises(Refusal):
        draw(ledger, A, 2)
    ledger.reserve(site.approval("b", number=2, rdp="7"))
    assert spent(ledger)[PATIENTS[0]] == "3.5"
    assert ledger.budget()["studies"][0]["state"] == how


def test_an_exhausted_patient_silently_leaves_the_frame_and_a_new_one_does_not(site, ledger):
    ledger.reserve(site.approval("a", number=1, rounds=1, rdp="7"))
    draw(ledger, A, 1, PATIENTS[:4])
    ledger.reserve(site.approval("b", number=2, rounds=2, rdp="1.2"))
    assert ledger.exhausted(PATIENTS, charge=Decimal("0.7")) == PATIENTS[:4]
    assert ledger.exhausted(PATIENTS, charge=Decimal("0.6")) == []
    assert draw(ledger, B, 1) == PATIENTS
    # Now the first four stand at 7.6 of 7.68: no room for 0.6 more.
    assert ledger.may_be_drawn(B, PATIENTS) == PATIENTS[4:]
    assert draw(ledger, B, 2) == PATIENTS[4:]
    assert max(map(Decimal, spent(ledger).values())) <= Decimal("7.679666735")


def test_a_narrower_policy_empties_the_frame_and_refuses_nothing(site, tmp_path):
    with Ledger.create(site, clock=site.clock) as ledger:
        ledger.reserve(site.approval("a", number=1, rounds=3, rdp="6"))
        draw(ledger, A, 1)
    narrow = site.but(limits=site.limits.model_copy(update={"lifetime_epsilon": "5"}))
    with Ledger.open(narrow, clock=site.clock) as ledger:
        assert draw(ledger, A, 2) == []


def test_losses_at_two_orders_are_never_added(site, ledger):
    with pytest.raises(PolicyRefusal) as refusal:
        ledger.reserve(site.approval("a", number=1, filter_order="5"))
    assert refusal.value.code == "filter_order"
    moved = site.but(limits=site.limits.model_copy(update={"filter_order": 5}))
    with Ledger.open(moved, clock=site.clock) as other, pytest.raises(PolicyRefusal) as refusal:
        other.reserve(moved.approval("a", number=1))
    assert refusal.value.code == "filter_order"


def test_who_withdrew_consent_is_never_drawn_again_and_nobody_pays_for_it(site, ledger):
    ledger.reserve(site.approval("a", number=1))
    draw(ledger, A, 1)
    ledger.exclude(PATIENTS[2], key=site.approver_signing)
    before = spent(ledger)
    assert draw(ledger, A, 2) == PATIENTS[:2] + PATIENTS[3:]
    after = spent(ledger)
    assert after[PATIENTS[2]] == before[PATIENTS[2]] == "0.3"
    assert {after[p] for p in PATIENTS if p != PATIENTS[2]} == {"0.6"}
    assert ledger.excluded() == {PATIENTS[2]}


def test_two_studies_at_once_add_up_in_who_was_in_both(site, ledger):
    ledger.reserve(site.approval("a", number=1, rounds=3, rdp="0.9"))
    ledger.reserve(site.approval("b", number=2, rounds=2, rdp="0.4"))
    draw(ledger, A, 1, PATIENTS[:2])
    draw(ledger, B, 1, PATIENTS[1:3], run="6" * 32)
    assert [spent(ledger)[p] for p in PATIENTS[:3]] == ["0.3", "0.5", "0.2"]


def test_a_study_is_approved_once_in_order_and_by_the_approver(site, ledger):
    ledger.reserve(site.approval("a", number=1))
    assert ledger.next_approval() == 2
    for wrong, error in (
        (site.approval("a", number=2), PolicyRefusal),
        (site.approval("b", number=1), PolicyRefusal),
        (site.approval("b", number=3), PolicyRefusal),
        (site.approval("b", number=2, site="south"), PolicyRefusal),
        (site.approval("b", number=2, rounds=0), PolicyRefusal),
        (site.approval("b", number=2, rdp="0"), PolicyRefusal),
        (site.approval("b", number=2, rdp="NaN"), PolicyRefusal),
        (site.approval("b", number=2, rdp="Infinity"), PolicyRefusal),
        (site.approval("b", number=2, key=SigningKey.generate()), IdentityRefusal),
        (site.approval("b", number=2, key=site.trainer_signing), IdentityRefusal),
    ):
        with pytest.raises(error):
            ledger.reserve(wrong)
    ledger.withdraw(A, key=site.approver_signing)
    with pytest.raises(PolicyRefusal):
        ledger.reserve(site.approval("a", number=2))
    assert not ledger.is_standing(A)
    with pytest.raises(PolicyRefusal) as refusal:
        ledger.refuse_old(A, run="1" * 32, round=1, task_digest="1" * 64)
    assert refusal.value.code == "withdrawn"


def test_a_reply_is_noted_once_and_needs_a_draw(site, ledger):
    ledger.reserve(site.approval("a", number=1))
    with pytest.raises(BudgetRefusal):
        ledger.record_reply(A, round=1, reply_digest="1" * 64, size=10)
    draw(ledger, A, 1)
    for _ in range(2):
        ledger.record_reply(A, round=1, reply_digest="1" * 64, size=10)
    with pytest.raises(WireRefusal) as refusal:
        ledger.record_reply(A, round=1, reply_digest="2" * 64, size=10)
    assert refusal.value.code == "task_conflict"
    assert [(row["round"], row["size"]) for row in ledger.left()] == [(1, 10)]


def test_one_draw_pays_for_one_result_even_if_the_stored_reply_is_gone(site, ledger):
    ledger.reserve(site.approval("a", number=1))
    draw(ledger, A, 1)
    ledger.record_reply(A, round=1, reply_digest="1" * 64, size=10)
    with pytest.raises(SystemRefusal) as refusal:
        draw(ledger, A, 1)
    assert refusal.value.code == "reply_lost"


def test_the_bytes_of_a_day_are_counted_over_all_studies(tmp_path):
    site = new_site(tmp_path / "home")
    site = site.but(limits=site.limits.model_copy(update={"bytes_per_day": 250_000}))
    with Ledger.create(site, clock=site.clock) as ledger:
        ledger.reserve(site.approval("a", number=1, bytes_per_round=100_000))
        ledger.reserve(site.approval("b", number=2, bytes_per_round=100_000))
        for study in (A, B):
            draw(ledger, study, 1)
            ledger.record_reply(study, round=1, reply_digest="1" * 64, size=90_000)
        before = spent(ledger)
        with pytest.raises(PolicyRefusal) as refusal:
            draw(ledger, A, 2)
        assert refusal.value.code == "bytes_per_day"
        assert spent(ledger) == before
        site.now[0] += 86_401
        draw(ledger, A, 2)


def test_a_distrusted_key_is_refused_for_ever(site, ledger):
    ledger.refuse_distrusted("7" * 64)
    ledger.distrust("7" * 64, key=site.approver_signing)
    with pytest.raises(IdentityRefusal):
        ledger.refuse_distrusted("7" * 64)
    ledger.refuse_distrusted("8" * 64)


def test_revocation_epochs_never_go_down(site, ledger):
    ledger.keep_epoch(3)
    ledger.keep_epoch(3)
    with pytest.raises(IdentityRefusal):
        ledger.keep_epoch(2)


def test_what_leaves_of_the_head_counts_tasks_and_hides_the_rest(site, ledger):
    """Exclusions and approvals move nothing that the outside sees."""
    ledger.reserve(site.approval("a", number=1, rounds=3))
    assert ledger.commit_head() is None
    draw(ledger, A, 1)
    first = ledger.commit_head()
    assert first.sequence == 1
    ledger.exclude(PATIENTS[0], key=site.approver_signing)
    ledger.record_reply(A, round=1, reply_digest="1" * 64, size=10)
    assert ledger.commit_head() == first
    assert ledger.head().hash not in first.commitment
    draw(ledger, A, 2)
    second = ledger.commit_head()
    assert second.sequence == 2
    assert second.commitment != first.commitment
    for head in (None, first, second):
        ledger.check_head(head)


def test_the_same_history_leaves_different_commitments(tmp_path):
    """Fresh salts: nobody can try out histories against a commitment."""
    seen = set()
    keys = {"approver_signing": SigningKey.generate(), "trainer_signing": SigningKey.generate()}
    for copy in range(3):
        site = new_site(tmp_path / str(copy), **keys)
        with Ledger.create(site, clock=site.clock) as ledger:
            ledger.reserve(site.approval("a", number=1))
            draw(ledger, A, 1)
            seen.add(ledger.commit_head().commitment)
    assert len(seen) == 3


def test_a_head_that_this_site_never_stated_refuses_the_task_and_no_other(site, ledger):
    ledger.reserve(site.approval("a", number=1))
    draw(ledger, A, 1)
    for lie in (
        Commitment(sequence=9, commitment="f" * 64),
        Commitment(sequence=1, commitment="f" * 64),
    ):
        with pytest.raises(BudgetRefusal) as refusal:
            ledger.check_head(lie)
        assert refusal.value.code == "ledger_behind"
    ledger.check_head(ledger.commit_head())
    draw(ledger, A, 2)


acts = st.lists(
    st.tuples(
        st.sampled_from(["draw", "draw", "draw", "again", "reopen", "exclude", "reply", "other"]),
        st.sampled_from("ab"),
        st.integers(1, 4),
        st.frozensets(st.integers(0, 5), max_size=6),
    ),
    max_size=14,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(acts=acts)
def test_never_is_less_charged_than_drawn_and_never_twice(tmp_path_factory, acts):
    """Against a model of five lines, through crashes and repeated tasks."""
    site = new_site(tmp_path_factory.mktemp("home") / "h")
    ledger = Ledger.create(site, clock=site.clock)
    ledger.reserve(site.approval("a", number=1, rounds=3, rdp="6"))
    ledger.reserve(site.approval("b", number=2, rounds=4, rdp="1.6"))
    units = {"a": 2_000_000_000, "b": 400_000_000}
    room = site.limits.room_units
    charged: dict[tuple[str, int], list[str]] = {}
    model = dict.fromkeys(PATIENTS, 0)
    for act, name, number, members in acts:
        frame = [PATIENTS[n] for n in sorted(members)]
        study = study_hash(name)
        if act == "reopen":
            ledger.close()
            ledger = Ledger.open(site, clock=site.clock)
        elif act == "exclude":
            ledger.exclude(PATIENTS[number], key=site.approver_signing)
        elif act == "reply" and (name, number) in charged:
            ledger.record_reply(study, round=number, reply_digest="1" * 64, size=5)
        else:
            digest = f"{ord(name):032x}{number:032x}"
            if act == "other":
                digest = "e" * 64
            try:
                got = draw(ledger, study, number, frame, digest=digest)
            except Refusal:
                continue
            if (name, number) in charged:
                assert got == charged[name, number]
                continue
            fits = [p for p in frame if model[p] + units[name] <= room]
            assert sorted(got) == sorted(set(fits) - ledger.excluded())
            charged[name, number] = got
            for key in got:
                model[key] += units[name]
    found = ledger.spent_by_patient()
    assert {p: int(found.get(p, 0) * 10**9) for p in PATIENTS} == model
    assert max(model.values()) <= room
    ledger.close()
