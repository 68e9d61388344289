"""What a site may still do with a ledger that was lost, crashed, or cannot be written; and who may."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from decimal import Decimal

import pytest
from grown_ledger import PATIENTS, RUN, A, by_force, draw, opened, refused_code
from ledger_site import patient, study_hash

from oncofed_client import chain, charges
from oncofed_client.ledger import Ledger
from oncofed_common.errors import BudgetRefusal, IdentityRefusal, SystemRefusal
from oncofed_common.identity import SigningKey
from oncofed_common.wire import Head


def test_settling_charges_everybody_the_most_that_can_have_been_lost(grown, tmp_path):
    path = grown.ledger_path
    shutil.copy(path, tmp_path / "backup")
    newcomer = patient(77)
    with opened(grown) as ledger:
        draw(ledger, 3, [*PATIENTS, newcomer])
        lost_head = ledger.commit_head()
    shutil.copy(tmp_path / "backup", path)
    unknown = grown.approval("c", number=2, rounds=2, rdp="0.5")["approval"]
    with Ledger.settle(
        grown, key=grown.approver_signing, lost=[unknown], clock=grown.clock
    ) as ledger:
        spent = ledger.spent_by_patient()
        # 2 of 9 rounds are known (0.2); the other 7 and all of the unknown study are charged.
        assert {str(loss) for loss in spent.values()} == {"1.4"}
        assert ledger.exhausted([newcomer], charge=ledger_room(grown, "1.2")) == []
        assert ledger.exhausted([newcomer], charge=ledger_room(grown, "1.1")) == [newcomer]
        assert not ledger.is_standing(A)
        ledger.check_head(lost_head)
        ledger.reserve(grown.approval("b", number=2))
        ledger.draw(study_hash("b"), run=RUN, round=1, task_digest="4" * 64, frame=PATIENTS)
        assert ledger.commit_head().sequence > lost_head.sequence
    opened(grown).close()


@pytest.mark.parametrize(("lost_draws", "spent"), [(5, "0.9"), (6, "7.8")])
def test_draws_of_which_the_copied_head_does_not_tell_cost_the_whole_lifetime(
    grown, lost_draws, spent, tmp_path
):
    """The ledger was restored, or the whole home: then nothing in it tells of a study approved later,
    which may have been dearer than all that is known."""
    shutil.copy(grown.ledger_path, tmp_path / "backup")
    with opened(grown) as ledger:
        for number in (3, 4, 5):
            draw(ledger, number)
    shutil.copy(tmp_path / "backup", grown.ledger_path)
    copied = grown.head_path.read_bytes()
    grown.head_path.unlink()
    chain.write_head(
        grown.head_path,
        opened_row(grown),
        approvals=1,
        draws=2,
        everyone=0,
        key=grown.trainer_signing,
    )
    with opened(grown) as ledger, pytest.raises(BudgetRefusal):
        ledger.check_head(shown_later(grown, by=lost_draws - 2))
    grown.head_path.write_bytes(copied)
    with Ledger.settle(grown, key=grown.approver_signing, lost=[], clock=grown.clock) as ledger:
        newcomer = patient(500)
        assert ledger.spent_by_patient()[PATIENTS[0]] >= Decimal(spent)
        exhausted = ledger.exhausted([newcomer], charge=Decimal("0.000000001"))
        assert exhausted == ([newcomer] if lost_draws == 6 else [])


def opened_row(site):
    """The last row of a ledger, whatever its copied head says."""
    found = chain.Chain(site.ledger_path)
    try:
        return found.rows(after=0)[-1]
    finally:
        found.close()


def shown_later(site, *, by):
    """A commitment that this site made so many draws after its last one."""
    with opened(site) as ledger:
        number = ledger.commit_head().sequence + by
    first = "5" * 32
    return Head(
        sequence=number, commitment=first + charges._mark(number, first, secret=site.secret())
    )


@pytest.mark.parametrize("copy", ["whole", "gone", "torn", "forged"])
def test_only_a_copied_head_that_accounts_for_all_studies_spares_the_lifetime(grown, copy):
    """One study is known; the copy says that there was one, or nothing that can be believed."""
    by_force(grown.ledger_path, ("DELETE FROM ledger WHERE sequence > 3",))
    if copy == "gone":
        grown.head_path.unlink()
    elif copy == "torn":
        grown.head_path.write_bytes(b"no head")
    elif copy == "forged":
        fewer = grown.head_path.read_bytes().replace(b'"draws":2', b'"draws":0')
        assert fewer != grown.head_path.read_bytes()
        grown.head_path.write_bytes(fewer)
    with Ledger.settle(grown, key=grown.approver_signing, lost=[], clock=grown.clock) as ledger:
        assert (ledger.budget()["left"] == "0") == (copy != "whole")
        assert (str(ledger.budget()["spent"]) == "0.9") == (copy == "whole")


def test_an_approval_of_which_only_the_copied_head_knows_costs_the_whole_lifetime(grown, tmp_path):
    """The second study's row is gone, and its folder too."""
    shutil.copy(grown.ledger_path, tmp_path / "backup")
    with opened(grown) as ledger:
        ledger.reserve(grown.approval("b", number=2))
    shutil.copy(tmp_path / "backup", grown.ledger_path)
    with Ledger.settle(grown, key=grown.approver_signing, lost=[], clock=grown.clock) as ledger:
        assert ledger.budget()["left"] == "0"


def test_after_a_fork_everybody_pays_the_lifetime(grown, tmp_path):
    """A cloned disk: both copies used the same numbers, and neither knows whom the other drew."""
    clone = grown.but(root=tmp_path / "clone")
    shutil.copytree(grown.root, clone.root)
    with opened(grown) as ledger, opened(clone) as twin:
        for number in range(3, 10):
            draw(ledger, number)
            draw(twin, number, PATIENTS[:1])
        shown = twin.commit_head()
        with pytest.raises(BudgetRefusal):
            ledger.check_head(shown)
    with Ledger.settle(grown, key=grown.approver_signing, lost=[], clock=grown.clock) as ledger:
        assert ledger.budget()["left"] == "0"


def test_a_lost_study_whose_numbers_another_took_costs_the_lifetime(grown, tmp_path):
    """The whole home was restored, and went on: another study stands where the lost one stood."""
    shutil.copytree(grown.root, tmp_path / "backup")
    with opened(grown) as ledger:
        ledger.reserve(grown.approval("c", number=2, rounds=4, rdp="4"))
        ledger.draw(study_hash("c"), run=RUN, round=1, task_digest="6" * 64, frame=PATIENTS)
        shown = ledger.commit_head()
    shutil.rmtree(grown.root)
    shutil.copytree(tmp_path / "backup", grown.root)
    with opened(grown) as ledger:
        ledger.reserve(grown.approval("b", number=2, rounds=2, rdp="0.2"))
        ledger.draw(study_hash("b"), run=RUN, round=1, task_digest="4" * 64, frame=PATIENTS)
        with pytest.raises(BudgetRefusal):
            ledger.check_head(shown)
    with Ledger.settle(grown, key=grown.approver_signing, lost=[], clock=grown.clock) as ledger:
        assert ledger.budget()["left"] == "0"


def test_a_second_settlement_forgets_nothing_of_the_first(grown, tmp_path):
    """The old ledger comes back once more; the copied head knows what everybody was charged since."""
    shutil.copy(grown.ledger_path, tmp_path / "backup")
    with opened(grown) as ledger, pytest.raises(BudgetRefusal):
        ledger.check_head(shown_later(grown, by=50))
    for _ in range(2):
        with Ledger.settle(grown, key=grown.approver_signing, lost=[], clock=grown.clock) as ledger:
            assert ledger.budget()["left"] == "0"
        shutil.copy(tmp_path / "backup", grown.ledger_path)
        assert refused_code(grown) == "ledger_behind"


def test_a_settlement_of_a_ledger_of_one_row_that_dies_leaves_its_evidence(grown, monkeypatch):
    """Restored from a backup made right after init; the head is set aside, and then there is no power."""
    by_force(grown.ledger_path, ("DELETE FROM ledger WHERE sequence > 1",))

    def dies(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(chain.Chain, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        Ledger.settle(grown, key=grown.approver_signing, lost=[], clock=grown.clock)
    monkeypatch.undo()
    for _ in range(2):
        assert refused_code(grown) == "ledger_behind"
    known = grown.approval("a", number=1, rounds=9, rdp="0.9")["approval"]
    with Ledger.settle(
        grown, key=grown.approver_signing, lost=[known], clock=grown.clock
    ) as ledger:
        assert str(ledger.budget()["spent"]) == "0.9"


def test_under_another_secret_no_withdrawn_consent_is_kept_under_a_name_that_nobody_has(grown):
    """They must all be made again, and the budget says that there are none."""
    with opened(grown) as ledger:
        ledger.exclude(PATIENTS[0], key=grown.approver_signing)
        assert ledger.budget()["patients_excluded"] == 1
    other = grown.but(site_secret=b"another secret: nobody is known.")
    with Ledger.settle(other, key=grown.approver_signing, lost=[], clock=grown.clock) as ledger:
        assert ledger.budget()["patients_excluded"] == 0


def ledger_room(site, spent: str):
    """The loss that is left when ``spent`` was spent."""
    return Decimal(site.limits.room_units) / 10**9 - Decimal(spent)


def test_only_the_approver_can_settle(grown):
    path = grown.ledger_path
    by_force(path, ("DELETE FROM ledger WHERE sequence > 3",))
    with pytest.raises(IdentityRefusal):
        Ledger.settle(grown, key=grown.trainer_signing, lost=[], clock=grown.clock)
    Ledger.settle(grown, key=grown.approver_signing, lost=[], clock=grown.clock).close()
    opened(grown).close()


def test_without_the_site_secret_every_charge_falls_on_everybody(grown):
    with opened(grown) as ledger:
        draw(ledger, 3)
        draw(ledger, 4, PATIENTS[:1])
    other = grown.but(site_secret=b"another secret: nobody is known.")
    assert refused_code(other) == "secret_changed"
    with Ledger.settle(other, key=grown.approver_signing, lost=[], clock=grown.clock) as ledger:
        # The dearest patient stood at 0.4; the 5 rounds left of 9 make 0.5 more.
        assert str(ledger.budget()["spent"]) == "0.9"
        assert ledger.exhausted([patient(500)], charge=ledger_room(grown, "0.8")) == [patient(500)]


def test_a_trainer_key_changes_only_with_old_new_and_approver(grown):
    new = SigningKey.generate()
    with opened(grown) as ledger:
        ledger.rotate(new, key=grown.approver_signing)
        draw(ledger, 3)
    assert refused_code(grown) == "key_mismatch"
    with opened(grown.but(trainer_signing=new)) as ledger:
        draw(ledger, 4)


def test_acts_of_the_approver_need_the_approvers_signature(grown):
    with opened(grown) as ledger:
        for act in (
            lambda key: ledger.withdraw(A, key=key),
            lambda key: ledger.exclude(PATIENTS[0], key=key),
            lambda key: ledger.distrust("7" * 64, key=key),
        ):
            with pytest.raises(IdentityRefusal):
                act(grown.trainer_signing)
    opened(grown).close()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("exclude", {"patient": PATIENTS[0]}),
        ("withdrawal", {"study": A}),
        ("distrust", {"fingerprint": "7" * 64}),
        ("settle", {"units": 0, "number": 9, "secret_mark": "7" * 64}),
        ("clock", {}),
    ],
)
def test_an_act_of_the_approver_that_only_the_trainer_signed_is_noticed(grown, kind, fields):
    """Planted: a row as the trainer could write it alone."""
    rows = chain.Chain(grown.ledger_path)
    body = {**fields, "at_s": 1, "approver": "0" * 128}
    rows.add(chain.make_row(kind, body, after=rows.rows(after=4)[0], key=grown.trainer_signing))
    rows.close()
    assert refused_code(grown) == "ledger_damaged"


def test_a_disk_without_room_refuses_before_anything_is_charged(grown, monkeypatch):
    with opened(grown) as ledger:
        rows = ledger.head().sequence
        real = os.statvfs(grown.root)
        monkeypatch.setattr(
            os, "statvfs", lambda path: os.statvfs_result((*real[:4], 10, *real[5:10]))
        )
        with pytest.raises(SystemRefusal) as refusal:
            draw(ledger, 3)
        monkeypatch.undo()
        assert refusal.value.code == "disk_full"
        assert ledger.head().sequence == rows


def test_a_database_that_is_full_keeps_what_it_had(grown):
    """SQLite's own limit on pages stands in for a full disk."""
    with opened(grown) as ledger:
        ledger._book._chain._connection.execute("PRAGMA max_page_count = 1")
        codes = set()
        for number in range(3, 9):
            try:
                draw(ledger, number, [patient(100 * number + n) for n in range(40)])
            except SystemRefusal as refusal:
                codes.add(refusal.code)
        assert codes == {"disk_full"}
        rows = ledger.head().sequence
    with opened(grown) as ledger:
        assert ledger.head().sequence == rows


def test_two_processes_write_one_chain(grown):
    with opened(grown) as ledger:
        writers = [
            multiprocessing.get_context("fork").Process(target=_exclude, args=(grown, start))
            for start in (100, 200)
        ]
        for writer in writers:
            writer.start()
        for number in range(3, 8):
            draw(ledger, number)
        for writer in writers:
            writer.join(60)
        assert [writer.exitcode for writer in writers] == [0, 0]
        assert len(ledger.excluded()) == 10
    with opened(grown) as ledger:
        assert ledger.head().sequence == 5 + 5 + 10


def _exclude(site, start):
    with Ledger.open(site, clock=site.clock) as ledger:
        for number in range(start, start + 5):
            ledger.exclude(patient(number), key=site.approver_signing)


@pytest.mark.parametrize("step", ["chain.add", "write_head"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_either_side_of_a_write_charges_once_and_never_less(
    grown, monkeypatch, step, when
):
    """The row is written, or not; the repeated task then finds it, or writes it."""

    class Killed(BaseException):
        pass

    real_add, real_head = chain.Chain.add, chain.write_head

    def add(self, row):
        if when == "after":
            real_add(self, row)
        raise Killed

    def head(path, row, **told):
        if when == "after":
            real_head(path, row, **told)
        raise Killed

    ledger = opened(grown)
    if step == "chain.add":
        monkeypatch.setattr(chain.Chain, "add", add)
    else:
        monkeypatch.setattr("oncofed_client.book.write_head", head)
    with pytest.raises(Killed):
        draw(ledger, 3)
    monkeypatch.undo()
    ledger.close()
    with opened(grown) as ledger:
        assert draw(ledger, 3) == PATIENTS
        assert {str(loss) for loss in ledger.spent_by_patient().values()} == {"0.3"}
