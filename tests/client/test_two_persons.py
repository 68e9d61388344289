"""A yes of two persons: one alone reserves nothing and trains nothing, at the command and at the trainer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest
from site_builder import (
    PASSPHRASE,
    PATIENTS,
    Coordinator,
    Site,
    a_home,
    approved,
    code_of,
    joined,
    published,
    study_for,
)

from oncofed_client import approval, consent, second_person
from oncofed_client.__main__ import app
from oncofed_client.audit_trail import read_rows, trail
from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_client.trainer.log import open_log
from oncofed_common.errors import IdentityRefusal, OncofedError, PolicyRefusal, SystemRefusal
from oncofed_common.identity import SigningKey, canonical
from oncofed_common.terminal import run_app

SECOND = b"another person's own words"
WORDS = {"first": PASSPHRASE, "second": SECOND}


def two(home: Home, number: int = 2) -> None:
    """The hospital writes into its policy how many persons say yes."""
    path = home.trainer / "policy.toml"
    before = "1" if number != 1 else "2"
    path.write_text(path.read_text().replace(f"approvers = {before}\n", f"approvers = {number}\n"))
    assert home.policy().approvers == number


@dataclass
class Office:
    """A site with a second approver, and a study that nobody approved yet."""

    root: Path
    home: Home
    coordinator: Coordinator
    folder: Path
    study: str

    def yes(self, who: str) -> approval.Approved | None:
        with Ledger.open(self.home) as ledger:
            proposal = consent.propose(
                self.home, ledger, self.folder, base=self.root / "base.safetensors"
            )
            return consent.agree(self.home, ledger, proposal, passphrase=WORDS[who])

    def reserved(self) -> list[str]:
        with Ledger.open(self.home) as ledger:
            return [str(row["study"]) for row in ledger.budget()["studies"]]

    def let_in(self) -> list[str]:
        found: list[str] = json.loads((self.home.courier / "approved_bundles.json").read_text())
        return found


@pytest.fixture
def office(tmp_path: Path) -> Office:
    coordinator = Coordinator()
    home = joined(a_home(tmp_path), coordinator)
    second_person.add(home, passphrase=PASSPHRASE, second=SECOND)
    two(home)
    study = study_for(home)
    folder = published(tmp_path, study, coordinator)
    return Office(
        root=tmp_path, home=home, coordinator=coordinator, folder=folder, study=study.hash
    )


@pytest.fixture
def at_work(office: Office) -> Iterator[Site]:
    """The same site with its desk; nobody has said yes."""
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger.open(office.home))
        log = stack.enter_context(
            open_log(
                office.home.trainer / "log.jsonl",
                head=office.home.refused_head_path,
                key=office.home.trainer_key(),
            )
        )
        study = study_for(office.home)
        yield Site(home=office.home, study=study, ledger=ledger, log=log, open=stack)


def test_a_first_yes_waits_and_the_second_reserves_what_the_first_one_signed(
    office: Office, at_work: Site
) -> None:
    """In between nothing is reserved, no bundle let in, and a task is refused."""
    assert office.yes("first") is None
    assert (office.reserved(), office.let_in(), office.home.studies()) == ([], [], [])
    task = office.coordinator.task(at_work)
    assert code_of(at_work.desk().answer(task)[0]) == "not_approved"
    assert at_work.trained == []
    both = office.yes("second")
    assert both is not None
    assert office.reserved() == [office.study]
    assert office.let_in() == ["b" * 64]
    assert list(office.home.study_folder("").glob(f"{approval.WAITING}*")) == []
    with Ledger.open(office.home) as ledger:
        key = ledger.second_approver()
    key.verify("approval", both.approval.payload, both.approval.second)
    office.home.approver.verify("approval", both.approval.payload, both.approval.signature)
    assert code_of(at_work.desk().answer(task)[0]) == "ok"
    assert at_work.trained == [1]
    told = [event["said"] for event in trail(read_rows(office.home)) if event["kind"] == "approval"]
    assert [said["approvers"] for said in told] == [2]


def test_in_whatever_order_they_come_only_the_approver_and_then_the_other_make_a_yes(
    office: Office,
) -> None:
    """Every order of up to four: the approver twice is one person, the other before the approver nobody."""
    with Ledger.open(office.home) as ledger:
        terms = consent.propose(
            office.home, ledger, office.folder, base=office.root / "base.safetensors"
        ).terms
        for persons in (order for n in range(1, 5) for order in product(WORDS, repeat=n)):
            second_person.forget(office.home, office.study)
            said = [_said(office, ledger, terms, who) for who in persons]
            begun = persons.index("first") if "first" in persons else len(persons)
            expected = ["first_missing"] * begun + ["waits"] * (begun < len(persons))
            expected += [
                {"first": "same_person", "second": "yes"}[who] for who in persons[begun + 1 :]
            ]
            assert said == expected
        assert ledger.budget()["studies"] == []


def _said(office: Office, ledger: Ledger, terms: Mapping[str, object], who: str) -> str:
    try:
        found = second_person.both(office.home, ledger, terms, passphrase=WORDS[who])
    except PolicyRefusal as refusal:
        return refusal.code
    return "waits" if found is None else "yes"


def test_one_person_twice_is_refused_and_reserves_nothing(office: Office) -> None:
    """The passphrase decides who it is."""
    office.yes("first")
    with pytest.raises(PolicyRefusal) as caught:
        office.yes("first")
    assert caught.value.code == "same_person"
    assert office.reserved() == []


def test_one_passphrase_for_two_is_refused_and_so_is_the_approvers_own_key(office: Office) -> None:
    """Both before anything is written."""
    with Ledger.open(office.home) as ledger:
        rows = ledger.head().sequence
        key = office.home.approver_key(PASSPHRASE)
        with pytest.raises(PolicyRefusal) as twice:
            ledger.add_approver(key, key=key)
    with pytest.raises(PolicyRefusal) as same:
        second_person.add(office.home, passphrase=PASSPHRASE, second=PASSPHRASE)
    assert (twice.value.code, same.value.code) == ("same_person", "same_person")
    with Ledger.open(office.home) as ledger:
        assert ledger.head().sequence == rows


def test_a_policy_of_two_at_a_site_of_one_says_what_to_do(tmp_path: Path) -> None:
    """Before the page is shown."""
    coordinator = Coordinator()
    home = joined(a_home(tmp_path), coordinator)
    two(home)
    folder = published(tmp_path, study_for(home), coordinator)
    with Ledger.open(home) as ledger, pytest.raises(PolicyRefusal) as caught:
        consent.propose(home, ledger, folder, base=tmp_path / "base.safetensors")
    assert caught.value.code == "no_second_approver"
    assert "add-approver" in caught.value.next


def test_a_first_yes_to_other_terms_counts_for_nothing(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code changed in between: the approver reads the page again, and then the other person."""
    office.yes("first")
    monkeypatch.setattr(approval, "code_hash", lambda: "7" * 64)
    with pytest.raises(PolicyRefusal) as caught:
        office.yes("second")
    assert caught.value.code == "first_missing"
    assert office.yes("first") is None
    assert office.yes("second") is not None


def test_a_damaged_first_yes_counts_for_nothing(office: Office) -> None:
    """Somebody else's signature too."""
    office.yes("first")
    path = office.home.study_folder(f"{approval.WAITING}{office.study}")
    fields = json.loads(path.read_text())
    forged = approval.sign(fields["approval"], SigningKey.generate())
    for content in (b"{", canonical(forged.as_dict())):
        path.write_bytes(content)
        with pytest.raises(PolicyRefusal) as caught:
            office.yes("second")
        assert caught.value.code == "first_missing"


def test_the_ledger_takes_no_signature_but_the_second_approvers_over_the_same_bytes(
    office: Office,
) -> None:
    """Whatever the command would have said."""
    office.yes("first")
    with Ledger.open(office.home) as ledger:
        terms = consent.propose(
            office.home, ledger, office.folder, base=office.root / "base.safetensors"
        ).terms
        first = second_person.waiting(office.home, terms)
        assert first is not None
        key, other = SigningKey.load(office.home.second_key_path, passphrase=SECOND), dict(terms)
        other["bytes_per_round"] = 7
        tries = {
            "": "second_missing",
            office.home.approver_key(PASSPHRASE).sign("approval", first.payload): "bad_signature",
            SigningKey.generate().sign("approval", first.payload): "bad_signature",
            key.sign("approval", other): "bad_signature",
            key.sign("ledger-row", first.payload): "bad_signature",
        }
        for second, code in tries.items():
            with pytest.raises(OncofedError) as caught:
                ledger.reserve(replace(first, second=second).as_dict())
            assert caught.value.code == code
        assert ledger.budget()["studies"] == []


def test_a_row_that_a_stolen_trainer_key_forged_is_no_yes_of_two(office: Office) -> None:
    """Rows are signed by the trainer's key; the persons' signatures in them are verified all the same."""
    office.yes("first")
    with Ledger.open(office.home) as ledger:
        terms = consent.propose(
            office.home, ledger, office.folder, base=office.root / "base.safetensors"
        ).terms
        first = second_person.waiting(office.home, terms)
        assert first is not None
        forged = SigningKey.generate().sign("approval", first.payload)
        with pytest.raises(SystemRefusal) as caught, ledger._book.turn():
            ledger._book.append("approval", {**first.as_dict(), "second": forged})
    assert caught.value.code == "ledger_damaged"


def test_a_row_that_makes_the_approver_the_second_one_as_well_is_damage(office: Office) -> None:
    """The approver alone could write it, with a copy of the program that does not ask."""
    key = office.home.approver_key(PASSPHRASE)
    with (
        Ledger.open(office.home) as ledger,
        ledger._book.turn(),
        pytest.raises(SystemRefusal) as caught,
    ):
        ledger._book.append("approver", ledger._shown(key), approver=key)
    assert caught.value.code == "ledger_damaged"


def test_a_second_approver_whom_the_trainers_key_alone_let_in_is_damage(office: Office) -> None:
    """The new key's own proof holds; the approver's signature is missing."""
    with (
        Ledger.open(office.home) as ledger,
        ledger._book.turn(),
        pytest.raises(SystemRefusal) as caught,
    ):
        ledger._book.append("approver", ledger._shown(SigningKey.generate()))
    assert caught.value.code == "ledger_damaged"


def test_the_trainer_answers_no_task_of_a_study_that_one_person_approved(tmp_path: Path) -> None:
    """Approved under a policy of one, which says two by now: nobody trains and nobody is charged."""
    coordinator = Coordinator()
    home = joined(a_home(tmp_path), coordinator)
    site = approved(tmp_path, home, study_for(home), coordinator)
    second_person.add(home, passphrase=PASSPHRASE, second=SECOND)
    two(home)
    with site.open:
        assert code_of(site.desk().answer(coordinator.task(site))[0]) == "not_approved"
        with pytest.raises(PolicyRefusal) as caught:
            site.ledger.draw(
                site.study.hash, run="5" * 32, round=1, task_digest="6" * 64, frame=PATIENTS
            )
        assert caught.value.code == "not_approved"
        assert site.trained == []
        assert site.ledger.spent_by_patient() == {}
        two(home, 1)
        assert code_of(site.desk().answer(coordinator.task(site))[0]) == "ok"


def test_the_trainer_goes_by_the_terms_that_both_signed(office: Office, at_work: Site) -> None:
    """The copy beside the study is put in the place of another that the approver signed alone."""
    both = office.yes("second") if office.yes("first") is None else None
    assert both is not None
    wider = {**both.approval.payload, "bundle_hash": "c" * 64}
    alone = approval.sign(wider, office.home.approver_key(PASSPHRASE))
    (both.folder / "approval.json").write_bytes(canonical(alone.as_dict()))
    task = office.coordinator.task(at_work)
    assert code_of(at_work.desk().answer(task)[0]) == "not_approved"
    assert at_work.trained == []
    (both.folder / "approval.json").write_bytes(canonical(both.approval.as_dict()))
    assert code_of(at_work.desk().answer(task)[0]) == "ok"


def test_a_second_approver_who_left_signs_nothing_more_and_what_they_signed_stands(
    office: Office, at_work: Site
) -> None:
    """Their old key, brought back, is not the one that the ledger names."""
    office.yes("first")
    office.yes("second")
    old = office.home.second_key_path.read_bytes()
    second_person.add(office.home, passphrase=PASSPHRASE, second=b"a third person's own words")
    assert code_of(at_work.desk().answer(office.coordinator.task(at_work))[0]) == "ok"
    office.folder = published(
        office.root, study_for(office.home, study={"title": "another"}), office.coordinator
    )
    office.yes("first")
    office.home.second_key_path.write_bytes(old)
    with pytest.raises(IdentityRefusal) as caught:
        office.yes("second")
    assert caught.value.code == "bad_key"


def test_one_person_takes_back_what_two_have_approved_and_what_waits(
    office: Office, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command, with the approver's passphrase."""
    (tmp_path / "word").write_bytes(PASSPHRASE)
    line = ["--home", str(office.home.root), "--passphrase-file", str(tmp_path / "word"), "--json"]
    office.yes("first")
    assert run_app(app, ["withdraw", office.study[:9], *line]) == 0
    assert json.loads(capsys.readouterr().out) == {"withdrawn": office.study}
    with pytest.raises(PolicyRefusal):
        office.yes("second")
    office.yes("first")
    office.yes("second")
    assert run_app(app, ["withdraw", office.study[:9], *line]) == 0
    with Ledger.open(office.home) as ledger:
        assert not ledger.is_standing(office.study)
    assert office.let_in() == []


def test_the_commands_let_a_person_in_and_say_what_they_wait_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a site of one to a study of two."""
    coordinator = Coordinator()
    home = joined(a_home(tmp_path), coordinator)
    folder = published(tmp_path, study_for(home), coordinator)
    for name, word in (("one", PASSPHRASE), ("two", SECOND)):
        (tmp_path / name).write_bytes(word)
    line = ["--home", str(home.root), "--json", "--passphrase-file"]

    def said(*words: str, code: int = 0) -> dict[str, object]:
        assert run_app(app, list(words)) == code
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    added = said(
        "add-approver", *line, str(tmp_path / "one"),
        "--second-passphrase-file", str(tmp_path / "two"),
    )  # fmt: skip
    assert added["approvers"] == 1
    two(home)
    yes = ["approve", str(folder), "--yes", "--base", str(tmp_path / "base.safetensors"), *line]
    assert said(*yes, str(tmp_path / "one")) == {
        "waits_for_the_second_person": folder_study(folder)
    }
    again = said(*yes, str(tmp_path / "one"), code=2)
    assert isinstance(again["error"], dict)
    assert again["error"]["code"] == "same_person"
    assert said(*yes, str(tmp_path / "two"))["approved"] == folder_study(folder)


def folder_study(folder: Path) -> str:
    from oncofed_common.study import read_study

    return read_study(folder / "study.toml").hash
