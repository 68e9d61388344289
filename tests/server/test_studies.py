"""Publishing: everything that can be wrong with a study is found before anybody approves it."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from honest_sites import FIRST, NOW_S, SCHEMA, Site, drafted, enrolled_home
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from study_builder import a_study

from oncofed_common.errors import IdentityRefusal, OncofedError, Refusal, StudyRefusal
from oncofed_common.identity import Certificate
from oncofed_common.model.adapters import schema
from oncofed_common.model.network import build
from oncofed_common.model.presets import SMALL
from oncofed_common.pricing import event_of
from oncofed_common.privacy.accountant import pld_epsilon
from oncofed_common.study import parse_study, verify_study
from oncofed_common.tensors import pack_tensors
from oncofed_server.base import base_of_preset, shipped_base, trained_tensors
from oncofed_server.draft import study_toml, template
from oncofed_server.home import load_study_key
from oncofed_server.registry import revoke
from oncofed_server.roster import read_roster
from oncofed_server.runs import create_run, list_runs, run_names
from oncofed_server.settings import complete, read_settings
from oncofed_server.studies import (
    load_published,
    publish,
    refuse_overflow,
    resolve_study,
)

WEIGHTS = {"north": 3, "south": 5}
OWN = {"study-office@example.org": "the study office", "2026-0147": "2026-7"}
"""What the people of a study write in place of the template's examples."""


@pytest.fixture
def root(tmp_path):
    enrolled_home(tmp_path, tuple(WEIGHTS))
    return tmp_path


def put(root, text, *, now_s=NOW_S, base=None):
    (root / "study.toml").write_text(text, encoding="utf-8")
    return publish(
        root / "home",
        root / "study.toml",
        base=base or root / "base.safetensors",
        passphrase=None,
        now_s=now_s,
    )


def refused(root, text, **more):
    """The refusal, after seeing that nothing was published."""
    with pytest.raises(Refusal) as found:
        put(root, text, **more)
    assert list((root / "home/studies").iterdir()) == []
    assert found.value.exit_code == 2
    return found.value


def test_a_published_study_is_signed_by_the_study_key_and_keeps_its_first_values(root):
    study = drafted(root, WEIGHTS)
    text = "# for the committee\n" + study_toml(study)
    found, cost = put(root, text)
    published = load_published(root / "home", study.hash)
    assert found == published.study == study
    assert published.toml.decode() == text
    assert pack_tensors(published.first) == pack_tensors(FIRST)
    key = load_study_key(root / "home", passphrase=None).public
    assert verify_study(study, json.loads(published.sig), coordinator=key.fingerprint) == key
    assert cost.epsilon_pld <= cost.epsilon_stated <= cost.epsilon_pld + 2e-4
    assert cost.steps == 6


def test_publishing_twice_changes_nothing(root):
    text = study_toml(drafted(root, WEIGHTS))
    put(root, text)
    files = {p: p.read_bytes() for p in (root / "home/studies").rglob("*") if p.is_file()}
    put(root, text)
    assert {p: p.read_bytes() for p in (root / "home/studies").rglob("*") if p.is_file()} == files


def test_the_task_key_is_certified_until_the_study_has_ended(root):
    put(root, study_toml(drafted(root, WEIGHTS, study={"expires": date(2029, 1, 1)})))
    last_second_s = 1_861_919_999 + 1  # 2029-01-01T00:00:00Z
    roster = read_roster(root / "home")
    certificate = Certificate.from_dict(roster.coordinator.task_certificate)
    key = roster.task_key(now_s=last_second_s + 86_400)
    assert key.hex == certificate.subject
    with pytest.raises(IdentityRefusal):
        roster.task_key(now_s=certificate.not_after_s + 1)


def test_a_study_that_states_less_than_it_costs_is_refused(root):
    study = drafted(root, WEIGHTS)
    cost = pld_epsilon(event_of(study), study.privacy.delta)
    text = study_toml(study)
    understated = re.sub(r"(?m)^epsilon = .*$", f"epsilon = {cost * 0.999:.6f}", text)
    assert refused(root, understated).code == "understated"
    put(root, re.sub(r"(?m)^epsilon = .*$", f"epsilon = {cost * 1.001:.6f}", text))


@pytest.mark.parametrize("value", ["-1.0", "nan"])
def test_a_negative_epsilon_is_refused(root, value):
    text = re.sub(r"(?m)^epsilon = .*$", f"epsilon = {value}", study_toml(drafted(root, WEIGHTS)))
    assert refused(root, text).code == "study"


def test_a_missing_epsilon_is_refused(root):
    text = re.sub(r"(?m)^epsilon = .*\n", "", study_toml(drafted(root, WEIGHTS)))
    assert "privacy.epsilon" in refused(root, text).found


def test_an_unknown_key_is_refused(root):
    text = study_toml(drafted(root, WEIGHTS)).replace("clip_norm", "clip_nrom")
    assert "clip_norm" in refused(root, text).next


def test_an_expired_study_is_refused(root):
    text = study_toml(drafted(root, WEIGHTS, study={"expires": date(2027, 1, 14)}))
    assert refused(root, text).code == "expired"
    put(root, study_toml(drafted(root, WEIGHTS, study={"expires": date(2027, 1, 15)})))


def test_base_weights_of_another_hash_are_refused(root):
    text = study_toml(drafted(root, WEIGHTS))
    data = bytearray((root / "base.safetensors").read_bytes())
    data[-1] ^= 1
    (root / "base.safetensors").write_bytes(data)
    assert refused(root, text).code == "base_hash"
    assert refused(root, text, base=root / "nowhere").code == "base_missing"


@pytest.mark.parametrize(
    "tensors",
    [
        {"norm.bias": FIRST["norm.bias"]},
        {**FIRST, "norm.bias": np.zeros(4, np.float32)},
        {**FIRST, "norm.bias": FIRST["norm.bias"].astype(np.float16)},
        {**FIRST, "norm.bias": np.full(3, np.nan, np.float32)},
    ],
)
def test_base_weights_without_the_trained_tensors_are_refused(root, tensors):
    save_file(tensors, root / "base.safetensors")
    assert refused(root, study_toml(drafted(root, WEIGHTS))).code == "base_tensors"


def test_base_weights_that_are_no_safetensors_file_are_refused(root):
    (root / "base.safetensors").write_bytes(b"not weights")
    assert refused(root, study_toml(drafted(root, WEIGHTS))).code == "base_tensors"


def test_a_site_that_is_unknown_revoked_or_under_another_key_is_refused(root):
    text = study_toml(drafted(root, WEIGHTS))
    assert refused(root, text.replace('"south"', '"west"')).code == "unknown_site"
    stranger = Site(name="south").approver.public.fingerprint
    known = read_roster(root / "home").member("south").fingerprint
    assert refused(root, text.replace(known, stranger)).code == "wrong_fingerprint"
    revoke(root / "home", "south")
    assert refused(root, text).code == "revoked_site"


def test_a_study_that_needs_more_sites_than_it_invites_is_refused(root):
    text = study_toml(drafted(root, WEIGHTS)).replace("fewest_sites = 2", "fewest_sites = 3")
    assert "fewest_sites" in refused(root, text).found


def test_a_seed_needs_virtual_homes_only(tmp_path):
    enrolled_home(tmp_path, tuple(WEIGHTS), virtual=False)
    assert refused(tmp_path, study_toml(drafted(tmp_path, WEIGHTS, seed=7))).code == "virtual"
    put(tmp_path, study_toml(drafted(tmp_path, WEIGHTS)))


def test_replies_of_real_patients_need_a_slot(tmp_path):
    """A reply that leaves when training ends says how long it took; a seeded one protects nobody."""
    enrolled_home(tmp_path, tuple(WEIGHTS))
    at_once = {"outbound": {"reply_after_s": 0}}
    assert refused(tmp_path, study_toml(drafted(tmp_path, WEIGHTS, **at_once))).code == "no_slot"
    put(tmp_path, study_toml(drafted(tmp_path, WEIGHTS, seed=7, **at_once)))


def test_a_late_reply_still_comes_before_the_deadline(root):
    """It leaves when the next slot ends."""
    half = study_toml(drafted(root, WEIGHTS, outbound={"reply_after_s": 30}))
    assert refused(root, half).code == "one_slot"
    put(root, half.replace("round_deadline_s = 60", "round_deadline_s = 61"))


def test_an_update_that_does_not_fit_its_cap_is_refused(root):
    text = study_toml(drafted(root, WEIGHTS, outbound={"bytes_per_round": 8192}))
    assert refused(root, text).code == "byte_cap"


def test_weights_of_sites_that_could_wrap_the_sum_are_refused():
    """2^20 is the most for one site: it takes more than 4096 of them."""
    many = [
        {"name": f"s{n}", "fingerprint": f"{n:064x}", "declared_patients": 1, "weight": 2**20}
        for n in range(4097)
    ]
    refuse_overflow(a_study(sites=many[:4096]))
    with pytest.raises(StudyRefusal) as found:
        refuse_overflow(a_study(sites=many))
    assert found.value.code == "weights"


def test_a_wrong_passphrase_publishes_nothing(root):
    (root / "study.toml").write_text(study_toml(drafted(root, WEIGHTS)))
    with pytest.raises(IdentityRefusal):
        publish(
            root / "home",
            root / "study.toml",
            base=root / "base.safetensors",
            passphrase=b"wrong",
            now_s=NOW_S,
        )
    assert list((root / "home/studies").iterdir()) == []


def test_a_published_study_that_was_changed_is_not_run(root):
    study, _ = put(root, study_toml(drafted(root, WEIGHTS)))
    path = root / "home/studies" / study.hash / "study.toml"
    path.write_text(path.read_text().replace("learning_rate = 0.1", "learning_rate = 0.2"))
    with pytest.raises(OncofedError):
        create_run(root / "home", study.hash, now_s=NOW_S)


def test_a_study_has_one_run_and_none_after_it_expired(root):
    study, _ = put(root, study_toml(drafted(root, WEIGHTS)))
    with pytest.raises(StudyRefusal) as late:
        create_run(root / "home", study.hash, now_s=NOW_S + 100 * 365 * 86_400)
    assert late.value.code == "expired"
    create_run(root / "home", study.hash, now_s=NOW_S)
    with pytest.raises(Refusal) as second:
        create_run(root / "home", study.hash, now_s=NOW_S)
    assert second.value.code == "run_exists"


@pytest.mark.parametrize("written", [b"", b"{"])
def test_a_run_that_is_still_being_made_is_no_run_yet(root, written):
    study, _ = put(root, study_toml(drafted(root, WEIGHTS)))
    draft = root / "home/runs" / f".{'0' * 32}.tmp"
    draft.mkdir(parents=True)
    (draft / "run.json").write_bytes(written)
    assert list_runs(root / "home") == []
    assert run_names(root / "home") == []
    name = create_run(root / "home", study.hash, now_s=NOW_S)
    assert [card.run for card in list_runs(root / "home")] == run_names(root / "home") == [name]


def test_a_study_is_named_by_the_start_of_its_hash(root):
    study, _ = put(root, study_toml(drafted(root, WEIGHTS)))
    assert resolve_study(root / "home", study.hash[:8]) == study.hash
    for prefix in ("", "zz", study.hash + "0"):
        with pytest.raises(StudyRefusal):
            resolve_study(root / "home", prefix)


def from_settings(root, text, *, sites=None, base=None, own=OWN):
    for old, new in own.items():
        text = text.replace(old, new)
    (root / "settings.toml").write_text(text, encoding="utf-8")
    roster = read_roster(root / "home")
    return complete(
        read_settings(root / "settings.toml"), roster, sites=sites, base=base, expires=None
    )


def test_the_template_becomes_a_study_with_the_least_noise_for_its_epsilon(root):
    study = from_settings(root, template())
    wished = tomllib.loads(template())["privacy"]["epsilon"]
    assert pld_epsilon(event_of(study), study.privacy.delta) <= study.privacy.epsilon <= wished
    less = replace(event_of(study), noise_multiplier=study.privacy.noise_multiplier - 2e-4)
    assert pld_epsilon(less, study.privacy.delta) > wished - 1e-4
    assert [(site.name, site.weight) for site in study.sites] == [("north", 20), ("south", 20)]


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("epsilon = 4.0", "epsilon = 4.0\nnoise_multiplier = 2.0", "settings"),
        ("epsilon = 4.0", "", "settings"),
        ("expires = 2027-06-30", "", "study"),
        ('preset = "small"', 'preset = "../small"', "no_base"),
        ('adapters = "prior"', 'adapters = "all"', "unknown_adapters"),
        ("fewest_sites = 2", "fewest_sites = 3", "study"),
        ("[study]", "[[sites]]\n[study]", "settings"),
        ("rounds = 5", "rounds = inf", "study"),
        ("rounds = 5", "rounds = nan", "study"),
        ("rounds = 5", f"rounds = 1{'0' * 400}", "study"),
        ("rounds = 5\n", "", "study"),
        ("sampling_rate = 0.25", "sampling_rate = 2.5", "study"),
        ("epsilon = 4.0", "epsilon = inf", "settings"),
        ("epsilon = 4.0", "epsilon = nan", "settings"),
        ("epsilon = 4.0", "epsilon = true", "settings"),
        ("epsilon = 4.0", f"epsilon = 1{'0' * 400}", "settings"),
        ("epsilon = 4.0", "noise_multiplier = inf", "study"),
        ("epsilon = 4.0", "noise_multiplier = nan", "study"),
        ("delta = 0.00001", "delta = 0.0", "settings"),
        ("delta = 0.00001", "delta = nan", "settings"),
        ("fewest_visits = 2", "fewest_visits = 51", "study"),
        ("held_out_fraction = 0.25", "held_out_fraction = 0.999999", "study"),
        ("{ NETC = 1, SNFH = 2, ET = 3, RC = 4 }", "{}", "study"),
    ],
)
def test_settings_from_which_no_study_can_be_drafted_are_refused(root, old, new, code):
    assert old in template()
    with pytest.raises(Refusal) as found:
        from_settings(root, template().replace(old, new))
    assert found.value.code == code


@pytest.mark.parametrize("kept", OWN)
def test_a_study_keeps_neither_contact_nor_ethics_number_of_the_template(root, kept):
    own = {old: new for old, new in OWN.items() if old != kept}
    assert kept in template()
    with pytest.raises(StudyRefusal) as found:
        from_settings(root, template(), own=own)
    assert "as the template has it" in str(found.value)


def test_a_draft_names_the_tensors_that_the_model_trains():
    """The card's names, the file's shapes: what the coordinator reads without torch is what torch says."""
    found = trained_tensors(base_of_preset("small"), preset="small", adapters="norm")
    assert [(term.name, term.shape, term.dtype) for term in found] == schema(
        build(SMALL, seed=0), "norm"
    )


def test_base_weights_without_the_named_tensors_are_refused(root):
    """Those of the test's home hold two tensors."""
    with pytest.raises(Refusal) as found:
        from_settings(root, template(), base=root / "base.safetensors")
    assert found.value.code == "base_tensors"
    with pytest.raises(Refusal) as found:
        from_settings(root, template(), base=root / "nowhere")
    assert found.value.code == "base_missing"


texts = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"]), min_size=1, max_size=20
)
positive = st.floats(1e-9, 1e9)


@settings(max_examples=50)
@given(
    title=texts,
    contact=texts,
    numbers=st.tuples(positive, st.floats(0, 1e3), st.integers(1, 10**12 // 2)),
    seed=st.none() | st.integers(0, 2**53 - 1),
    shape=st.lists(st.integers(1, 9), max_size=3),
)
def test_a_written_study_is_read_back_as_the_same_study(*, title, contact, numbers, seed, shape):
    study = a_study(
        study={"title": title, "contact": contact},
        privacy={"clip_norm": numbers[0], "delta": numbers[2] / 10**12},
        training={"learning_rate": numbers[1]},
        tensors=[{"name": "x.weight", "shape": shape, "dtype": "float32"}],
        virtual=None if seed is None else {"seed": seed},
    )
    again = parse_study(study_toml(study))
    assert again == study
    assert again.hash == study.hash


def test_a_draft_fills_in_what_can_be_computed(root):
    study = drafted(root, WEIGHTS, seed=3)
    roster = read_roster(root / "home")
    assert [(s.name, s.fingerprint, s.weight) for s in study.sites] == [
        (name, roster.member(name).fingerprint, weight) for name, weight in WEIGHTS.items()
    ]
    assert study.schema_terms == SCHEMA
    assert study.virtual.seed == 3
    with pytest.raises(StudyRefusal) as stranger:
        drafted(root, {"west": 1})
    assert stranger.value.code == "unknown_site"
    revoke(root / "home", "south")
    with pytest.raises(StudyRefusal, match="site south, revoked") as gone:
        drafted(root, WEIGHTS)
    assert gone.value.code == "revoked_site"
    with pytest.raises(StudyRefusal, match="noise_multiplier"):
        drafted(root, WEIGHTS, privacy={"noise_multiplier": "two"})


def test_installed_base_weights_are_used_only_under_the_hash_that_the_study_names():
    assert shipped_base(a_study()) is None  # its hash is all zeros
    assert shipped_base(a_study(model={"preset": "../../secrets"})) is None
