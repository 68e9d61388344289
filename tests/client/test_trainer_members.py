"""Who may be drawn, what the trainer reads of them, and where its randomness comes from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cohort_builder
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from site_builder import NOW_S, Coordinator, a_home, approved, joined, study_for
from study_builder import a_study
from torch import nn

from oncofed_client.check import check
from oncofed_client.readers.cohort import Cohort, read_cohort
from oncofed_client.readers.patient import read_patient
from oncofed_client.trainer.members import is_held_out, lifelong_key, lifelong_keys, members
from oncofed_client.trainer.session import (
    refuse_broken,
    refuse_mixing,
    refuse_strangers,
    stream_for,
)
from oncofed_client.trainer.training import Setup
from oncofed_common.cohort import Patient
from oncofed_common.diffusion.processes import DEFAULT, PROCESSES
from oncofed_common.errors import CohortRefusal, ModelRefusal, PolicyRefusal
from oncofed_common.model import adapters
from oncofed_common.model.prepare import Batch
from oncofed_common.model.presets import SMALL
from oncofed_common.model.weights import load_base, network_of
from oncofed_common.study_terms import CohortTerms, VirtualTerms

SECRET = b"s" * 32


def a_cohort(root: Path, *, patients: int = 2, visits: int = 2) -> tuple[Path, Path]:
    """A cohort and its table of hospital numbers, which are the participants' own."""
    cohort = cohort_builder.write_cohort(root / "cohort", patients=patients, visits=visits)
    table = root / "identities.tsv"
    rows = [f"{name}\tH-{name}" for name in read_cohort(cohort).participants]
    table.write_text("\n".join(["participant_id\thospital_number", *rows]) + "\n")
    return cohort, table


def test_a_patient_keeps_its_lifelong_key_under_another_name(tmp_path: Path) -> None:
    """A second intake names it otherwise; the hospital number is the same."""
    for name, file in (("sub-a", "first.tsv"), ("sub-b", "second.tsv")):
        (tmp_path / file).write_text(f"participant_id\thospital_number\n{name}\t4711\n")
    before = lifelong_keys(["sub-a"], identities=tmp_path / "first.tsv", secret=SECRET)
    after = lifelong_keys(["sub-b"], identities=tmp_path / "second.tsv", secret=SECRET)
    assert before["sub-a"] == after["sub-b"]
    other = lifelong_keys(["sub-a"], identities=tmp_path / "first.tsv", secret=b"t" * 32)
    assert other["sub-a"] != before["sub-a"]


def test_two_participants_with_one_hospital_number_are_one_patient(tmp_path: Path) -> None:
    """Else one patient would be drawn, and clipped, twice."""
    table = tmp_path / "identities.tsv"
    table.write_text("participant_id\thospital_number\nsub-a\t1\nsub-b\t1\nsub-c\t2\n")
    keys = lifelong_keys(["sub-a", "sub-b", "sub-c"], identities=table, secret=SECRET)
    assert set(keys) == {"sub-a", "sub-c"}


@pytest.mark.parametrize("text", ["", "participant_id\n", "x\ty\nz\tw\n", "\xff"])
def test_a_file_that_is_no_identity_table_is_refused(tmp_path: Path, text: str) -> None:
    """Without numbers nobody's lifetime charge can be found."""
    (tmp_path / "identities.tsv").write_text(text, encoding="latin-1")
    with pytest.raises(CohortRefusal) as refused:
        lifelong_keys(["sub-a"], identities=tmp_path / "identities.tsv", secret=SECRET)
    assert refused.value.code == "no_identity"


@pytest.mark.parametrize(
    "rows", ["", "sub-b\t\n", "sub-b\t \n", "sub-b\n", "sub-b\t2\nsub-b\t3\n", " \t2\n"]
)
def test_whoever_has_no_number_or_two_is_left_out_and_nobody_else(
    tmp_path: Path, rows: str
) -> None:
    """A fault in one patient's row must not be seen from outside; asked for alone, it is refused."""
    table = tmp_path / "identities.tsv"
    table.write_text("participant_id\thospital_number\nsub-a\t1\n" + rows)
    assert set(lifelong_keys(["sub-a", "sub-b"], identities=table, secret=SECRET)) == {"sub-a"}
    with pytest.raises(CohortRefusal) as refused:
        lifelong_key("sub-b", identities=table, secret=SECRET)
    assert refused.value.code == "no_identity"


@pytest.mark.parametrize("other", ["0471a", "471A", " 471 a", "\N{FULLWIDTH DIGIT FOUR}71a"])
def test_a_hospital_number_is_the_same_however_it_is_written(tmp_path: Path, other: str) -> None:
    """Else a second export of one patient would begin a second lifetime."""
    table = tmp_path / "identities.tsv"
    table.write_text(f"participant_id\thospital_number\nsub-a\t471a\nsub-b\t{other}\nsub-c\t0\n")
    keys = {
        name: lifelong_key(name, identities=table, secret=SECRET)
        for name in ("sub-a", "sub-b", "sub-c")
    }
    assert keys["sub-a"] == keys["sub-b"] != keys["sub-c"]


@given(key=st.text("0123456789abcdef", min_size=64, max_size=64), few=st.floats(0.01, 0.98))
def test_a_held_out_patient_stays_held_out_when_more_are(key: str, few: float) -> None:
    """A keyed hash of the patient alone against the fraction: no shuffle, no count."""
    if is_held_out(key, secret=SECRET, fraction=few):
        assert is_held_out(key, secret=SECRET, fraction=few + 0.01)


def test_the_share_of_held_out_patients_is_the_studys() -> None:
    """Over two thousand keys, within four standard deviations."""
    held = sum(is_held_out(f"{n:064x}", secret=SECRET, fraction=0.2) for n in range(2000))
    assert abs(held - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5


def test_who_is_trained_on_depends_on_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty patients, half of them held out: take anyone away, and the others stay where they were."""
    cohort, _ = a_cohort(tmp_path, patients=1)
    one = torch.zeros(1)
    rows = Batch(
        conditions=one[:, None, None, None, None],
        tokens=one[:, None, None],
        target=one[:, None, None, None, None],
        known=one[:, None],
    )
    read = (rows, frozenset({"all"}))
    monkeypatch.setattr("oncofed_client.trainer.members._read", lambda *_, **__: read)
    keys = {f"sub-{n:02d}": f"{n:064x}" for n in range(30)}

    def trained(who: dict[str, str], *, held_out: bool = False) -> set[str]:
        found = members(
            read_cohort(cohort),
            study=a_study(cohort={"held_out_fraction": 0.5}),
            preset=SMALL,
            keys=who,
            secret=SECRET,
            held_out=held_out,
            on_patient=lambda done, total: None,
        )
        return {member.lifelong for member in found}

    everybody = trained(keys)
    assert 5 < len(everybody) < 25
    assert trained(keys, held_out=True) == set(keys.values()) - everybody
    for left_out, key in keys.items():
        others = {name: of for name, of in keys.items() if name != left_out}
        assert trained(others) == everybody - {key}


def test_a_patient_is_one_member_however_many_pairs(tmp_path: Path) -> None:
    """Three visits, several pairs: one vector is clipped, not one for each."""
    cohort, table = a_cohort(tmp_path, patients=1, visits=3)
    names = read_cohort(cohort).participants
    found = members(
        read_cohort(cohort),
        study=a_study(cohort={"held_out_fraction": 1e-9}, training={"pairs_per_patient": 4}),
        preset=SMALL,
        keys=lifelong_keys(names, identities=table, secret=SECRET),
        secret=SECRET,
        on_patient=lambda done, total: None,
    )
    assert len(found) == 1
    assert len(found[0].rows.target) > 1


def test_removing_a_patient_leaves_the_others_tensors_bit_identical(tmp_path: Path) -> None:
    """No cohort mean, no histogram, no outlier rule: a patient's rows are its own."""
    study = a_study(cohort={"held_out_fraction": 1e-9})
    cohort, table = a_cohort(tmp_path, patients=2)
    names = read_cohort(cohort).participants
    keys = lifelong_keys(names, identities=table, secret=SECRET)

    def rows(who: list[str]) -> dict[str, torch.Tensor]:
        found = members(
            read_cohort(cohort),
            study=study,
            preset=SMALL,
            keys={name: keys[name] for name in who},
            secret=SECRET,
            on_patient=lambda done, total: None,
        )
        return {
            member.lifelong: torch.cat([v.flatten() for v in vars(member.rows).values()])
            for member in found
        }

    together, alone = rows(list(names)), rows([names[1]])
    assert len(together) == 2
    assert torch.equal(together[keys[names[1]]], alone[keys[names[1]]])


def test_a_patient_that_cannot_be_read_is_left_out_and_the_rest_goes_on(tmp_path: Path) -> None:
    """At the hospital the check names it; here it simply is not drawn."""
    cohort, table = a_cohort(tmp_path, patients=2)
    names = read_cohort(cohort).participants
    keys = lifelong_keys(names, identities=table, secret=SECRET)
    for path in (cohort / names[0]).rglob("*.nii.gz"):
        path.write_bytes(b"not a scan")
    found = members(
        read_cohort(cohort),
        study=a_study(cohort={"held_out_fraction": 1e-9}),
        preset=SMALL,
        keys=keys,
        secret=SECRET,
        on_patient=lambda done, total: None,
    )
    assert [member.lifelong for member in found] == [keys[names[1]]]


@pytest.mark.parametrize("error", [ValueError, MemoryError, ZeroDivisionError])
def test_whatever_goes_wrong_with_one_patient_stops_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Else the trainer's death would tell of it."""
    cohort, table = a_cohort(tmp_path, patients=2)
    names = read_cohort(cohort).participants
    keys = lifelong_keys(names, identities=table, secret=SECRET)

    def read(of: Cohort, name: str, *, terms: CohortTerms) -> Patient:
        if name == names[0]:
            raise error("canary: Jane Doe")
        return read_patient(of, name, terms=terms)

    monkeypatch.setattr("oncofed_client.trainer.members.read_patient", read)
    found = members(
        read_cohort(cohort),
        study=a_study(cohort={"held_out_fraction": 1e-9}),
        preset=SMALL,
        keys=keys,
        secret=SECRET,
        on_patient=lambda done, total: None,
    )
    assert [member.lifelong for member in found] == [keys[names[1]]]


def test_exactly_those_whom_the_check_lets_in_are_drawn(tmp_path: Path) -> None:
    """One patient without fault, one with too few visits for this study, one with a cut scan."""
    cohort, table = a_cohort(tmp_path, patients=3, visits=3)
    _, few, cut = read_cohort(cohort).participants
    cohort_builder.outline_path(cohort, few, "ses-02").unlink()
    scan = cohort_builder.image_path(cohort, cut, "ses-03", "T1w")
    scan.write_bytes(scan.read_bytes()[:-100])
    study = a_study(cohort={"held_out_fraction": 1e-9, "fewest_visits": 3})
    lets_in = check(cohort, terms=study.cohort).takes_part
    assert len(lets_in) == 1
    keys = lifelong_keys(read_cohort(cohort).participants, identities=table, secret=SECRET)
    found = members(
        read_cohort(cohort),
        study=study,
        preset=SMALL,
        keys=keys,
        secret=SECRET,
        on_patient=lambda done, total: None,
    )
    assert [member.lifelong for member in found] == [keys[name] for name in lets_in]


def test_virtual_and_real_never_mix(tmp_path: Path) -> None:
    """A home serves cohorts of its own kind, for ever."""
    cohort, _ = a_cohort(tmp_path, patients=1)
    refuse_mixing(cohort, virtual=True)
    with pytest.raises(PolicyRefusal) as refused:
        refuse_mixing(cohort, virtual=False)
    assert refused.value.code == "virtual_mixed"
    description = cohort / "dataset_description.json"
    description.write_text(description.read_text().replace("oncofed-simulate", "dcm2niix"))
    with pytest.raises(PolicyRefusal):
        refuse_mixing(cohort, virtual=True)


def test_a_table_that_names_nobody_of_the_cohort_starts_no_trainer(tmp_path: Path) -> None:
    """With that of the source's names instead of intake's a site would train on nobody, for all to see as
    taking part."""
    cohort, identities = a_cohort(tmp_path, patients=2)
    refuse_strangers(cohort, identities)
    header, first, *_ = identities.read_text().splitlines()
    identities.write_text(f"{header}\n{first}\n")  # one is enough: others may have no number
    refuse_strangers(cohort, identities)
    identities.write_text(f"{header}\nBraTS-GLI-00001\t4711\n")
    with pytest.raises(CohortRefusal) as refused:
        refuse_strangers(cohort, identities)
    assert refused.value.code == "no_identity"


def test_a_seed_repeats_the_noise_of_one_round_only(tmp_path: Path) -> None:
    """Same study, site and round: same bytes; otherwise others. Without a seed never the same."""
    coordinator = Coordinator()
    home = joined(a_home(tmp_path), coordinator)
    seeded = study_for(home).model_copy(update={"virtual": VirtualTerms(seed=3)})
    site = approved(tmp_path, home, seeded, coordinator)
    from oncofed_client.approval import read_approved

    with site.open:
        kept = read_approved(home, seeded.hash, now_s=NOW_S)
    first, again, later = (stream_for(kept, home=home, round_number=n) for n in (1, 1, 2))
    assert not first.protected
    drawn = first.bytes(32)
    assert drawn == again.bytes(32)
    assert drawn != later.bytes(32)


def test_a_network_that_learns_nothing_is_found_before_anybody_is_charged() -> None:
    """Else every patient would silently contribute zero, and all would pay for noise."""
    network = network_of(load_base(SMALL, sha256=None))
    setup = Setup(
        study=a_study(),
        declared_patients=20,
        network=network,
        trained=adapters.select(network, "norm"),
        process=PROCESSES[DEFAULT],
        device=torch.device("cpu"),
    )
    refuse_broken(setup)
    beside = {"beside": nn.Parameter(torch.zeros(3))}
    with pytest.raises(ModelRefusal) as refused:
        refuse_broken(replace(setup, trained=beside))
    assert refused.value.code == "cannot_train"
