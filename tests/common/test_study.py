"""The study: strict, frozen, and the same if and only if its hash is."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_builder import a_study

from oncofed_common.errors import IdentityRefusal, StudyRefusal
from oncofed_common.identity import SigningKey
from oncofed_common.study import parse_study, read_study, sign_study, verify_study

DATA = Path(__file__).parent / "data"
TEXT = (DATA / "study.toml").read_text(encoding="utf-8")
HASH = (DATA / "study.sha256").read_text(encoding="ascii").strip()
LINES = [n for n, line in enumerate(TEXT.splitlines()) if " = " in line and "[]" not in line]


def changed(old: str, new: str) -> str:
    assert TEXT.count(old) == 1, old
    return TEXT.replace(old, new)


def test_the_stored_study_has_its_stored_hash():
    assert read_study(DATA / "study.toml").hash == HASH


def test_the_stored_hash_is_that_of_plain_sorted_json():
    """A second computation, which knows nothing of the models: RFC 8785 by hand."""
    fields = tomllib.loads(TEXT)
    fields["study"]["expires"] = fields["study"]["expires"].isoformat()
    text = json.dumps(_whole(fields), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    text = text.replace("1e-05", "0.00001")  # RFC 8785 writes 1e-7 and smaller with an exponent
    assert hashlib.sha256(text.encode()).hexdigest() == HASH


def _whole(value):
    """Whole floats as JSON spells them: 1.0 is 1."""
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def test_an_equal_study_written_with_a_seed_has_its_stored_hash():
    seeded = (DATA / "study-seeded.sha256").read_text(encoding="ascii").strip()
    assert parse_study(TEXT + "\n[virtual]\nseed = 9007199254740991\n").hash == seeded
    assert seeded != HASH


def test_comments_and_layout_do_not_change_the_hash():
    respelled = [
        "# another comment\n\n" + TEXT,
        re.sub(r"#.*", "", TEXT),
        TEXT.replace(" = ", "="),
        TEXT.replace("\n", "\r\n"),
        changed("200000", "200_000"),
        changed("0.00001", "1e-5"),
        changed("clip_norm = 1.0", "clip_norm = 1"),
        changed('"Forecasts of glioma growth"', "'Forecasts of glioma growth'"),
    ]
    for text in respelled:
        assert text != TEXT
        assert parse_study(text).hash == HASH


@given(order=st.permutations(range(7)))
def test_the_order_of_tables_and_keys_does_not_change_the_hash(order):
    head, *rest = re.split(r"(?m)^(?=\[\w+\]$)", TEXT.split("[[", 1)[0])
    tables = ["\n".join([t.splitlines()[0], *reversed(t.splitlines()[1:])]) for t in rest]
    shuffled = "\n".join(tables[place] for place in order)
    assert parse_study(head + shuffled + "\n[[" + TEXT.split("[[", 1)[1]).hash == HASH


@pytest.mark.parametrize("number", LINES)
def test_any_setting_changes_the_hash_or_is_refused(number):
    """Every line with a setting, by a change of its last digit or letter."""
    lines = TEXT.splitlines()
    name, _, value = lines[number].partition(" = ")
    code = value.partition("  #")[0]
    place = max(i for i, char in enumerate(code) if char.isalnum())
    old = code[place]
    new = {"9": "8", "z": "y"}.get(old, chr(ord(old) + 1))
    lines[number] = f"{name} = {code[:place]}{new}{code[place + 1 :]}"
    try:
        found = parse_study("\n".join(lines)).hash
    except StudyRefusal as refusal:
        found = refusal.code
    assert found not in (HASH, "unreadable")


def test_the_order_of_sites_is_a_setting():
    sites = a_study().model_dump()["sites"]
    assert a_study(sites=list(sites)).hash != a_study(sites=list(reversed(sites))).hash


def test_an_unknown_key_is_refused_with_the_nearest_known_one():
    with pytest.raises(StudyRefusal) as refused:
        parse_study(changed("clip_norm", "clip_nrom"))
    assert "privacy.clip_nrom" in refused.value.found
    assert "did you mean clip_norm?" in refused.value.next


@pytest.mark.parametrize(
    "line",
    [line for line in TEXT.splitlines() if " = " in line],
)
def test_a_study_lacking_any_key_is_refused_by_its_name(line):
    with pytest.raises(StudyRefusal) as refused:
        parse_study(TEXT.replace(line + "\n", "", 1))
    assert line.split(" = ")[0] in refused.value.found + refused.value.next


@pytest.mark.parametrize("value", ["-1.0", "0.0", "nan", "inf", '"3"', "true"])
def test_an_epsilon_that_is_not_a_positive_number_is_refused(value):
    with pytest.raises(StudyRefusal) as refused:
        parse_study(re.sub(r"(?m)^epsilon = [\d.]+", f"epsilon = {value}", TEXT))
    assert "privacy.epsilon" in refused.value.found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("delta = 0.00001", "delta = 1.0"),
        ("draws_per_patient = 2", "draws_per_patient = 1"),
        ("sampling_rate = 0.25", "sampling_rate = 0.00000099"),
        ("crop_voxels = 32", "crop_voxels = 33"),
        ("fewest_visits = 2", "fewest_visits = 51"),
        ("held_out_fraction = 0.25", "held_out_fraction = 0.91"),
        ("label_scheme = { NETC = 1, SNFH = 2, ET = 3, RC = 4 }", "label_scheme = {}"),
        ("expires = 2027-06-30 ", "expires = 2027-06-30T12:00:00 "),
        ("fewest_sites = 2", "fewest_sites = 3"),
        ("reply_after_s = 0", "reply_after_s = 3600"),
        ('strategy = "weighted_mean"', 'strategy = "krum"'),
        ("metrics = []", 'metrics = ["loss"]'),
        ("metrics = []", 'metrics = ["all"]'),
        ("metrics = []", 'metrics = ["all", "all"]'),
        ("delta = 0.00001", "delta = 0.00001\nmetric_bound = 1.0"),
        ("delta = 0.00001", "delta = 0.00001\nmetric_noise_multiplier = 1.0"),
        ('name = "south"', 'name = "north"'),
        ('name = "south"', 'name = "South"'),
        ('name = "south"', 'name = "../south"'),
        ('"' + "1" * 64 + '"', '"' + "0" * 64 + '"'),
        ("RC = 4", "RC = 3"),
        ("RC = 4", "XX = 4"),
        ("bytes_per_round = 200000", "bytes_per_round = 9007199254740992"),
        ("shape = [32]", "shape = [0]"),
        ("shape = [32]", "shape = [9007199254740992]"),
        ('dtype = "float32"\nthreads', 'dtype = "float16"\nthreads'),
        ('title = "Forecasts', 'title = "Fore\\u0000casts'),
    ],
)
def test_a_setting_out_of_its_range_is_refused(old, new):
    with pytest.raises(StudyRefusal) as refused:
        parse_study(changed(old, new))
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    "sign", ["0085", "009b", "007f", "2028", "2029", "061c", "200f", "202e", "2066"]
)
def test_a_title_that_looks_other_than_it_reads_is_refused(sign):
    with pytest.raises(StudyRefusal):
        parse_study(changed('title = "Forecasts', f'title = "Fore\\u{sign}casts'))


def test_a_title_may_be_in_any_language():
    assert parse_study(changed('title = "Forecasts', 'title = "Prévision ρ × 腫瘍')).study.title


@pytest.mark.parametrize("text", ["", "not toml at all", "x = ", "x = " + "[" * 5000])
def test_what_is_no_study_at_all_is_refused_in_words(text):
    with pytest.raises(StudyRefusal):
        parse_study(text)


def test_a_file_that_is_missing_or_not_utf_8_is_refused_without_its_path(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b"title = '\xe9'")
    for name in ("latin.toml", "missing.toml"):
        with pytest.raises(StudyRefusal) as refused:
            read_study(tmp_path / name)
        assert str(tmp_path) not in str(refused.value)


def test_a_study_lasts_through_its_last_day_in_utc():
    study = read_study(DATA / "study.toml")
    midnight_after_s = 1_814_400_000  # 2027-07-01T00:00:00Z
    study.check_not_expired(midnight_after_s - 1)
    with pytest.raises(StudyRefusal) as refused:
        study.check_not_expired(midnight_after_s)
    assert refused.value.code == "expired"


def test_the_trained_tensors_come_in_order_of_name_whatever_their_order_in_the_file():
    study = a_study()
    assert [term.name for term in study.schema_terms] == ["norm.bias", "norm.weight"]
    turned = a_study(tensors=[t.model_dump() for t in reversed(study.tensors)])
    assert turned.schema_digest == study.schema_digest


def test_a_site_that_is_not_invited_is_refused():
    with pytest.raises(StudyRefusal) as refused:
        a_study().site("west")
    assert refused.value.code == "unknown_site"
    assert a_study().site("north").weight == 20


def test_a_signature_holds_for_its_study_and_its_coordinator_alone():
    key, other = SigningKey.generate(), SigningKey.generate()
    study = a_study()
    signed = sign_study(study, key)
    assert verify_study(study, signed, coordinator=key.public.fingerprint) == key.public
    assert verify_study(study, signed, coordinator=None) == key.public
    with pytest.raises(StudyRefusal, match="another coordinator"):
        verify_study(study, signed, coordinator=other.public.fingerprint)
    with pytest.raises(StudyRefusal, match="another study"):
        verify_study(a_study(privacy={"epsilon": 9.0}), signed, coordinator=None)
    with pytest.raises(IdentityRefusal):
        verify_study(study, signed | {"coordinator_key": other.public.hex}, coordinator=None)
    with pytest.raises(StudyRefusal, match="other fields"):
        verify_study(study, signed | {"note": "x"}, coordinator=None)


@pytest.mark.parametrize(
    ("old", "new", "found", "allowed"),
    [
        ("rounds = 5", "rounds = 0", "training.rounds: 0", "greater than or equal to 1"),
        ("rounds = 5", 'rounds = "5"', "training.rounds: 5", "a whole number"),
        ("delta = 0.00001", "delta = true", "privacy.delta: true", "a number"),
        ("crop_voxels = 32", "crop_voxels = 33", "cohort.crop_voxels: 33", "a multiple of 8"),
        (
            'strategy = "weighted_mean"',
            'strategy = "average"',
            "aggregation.strategy: average",
            "'weighted_mean', 'norm_bounded_mean', 'adaptive_clipping', 'coordinate_median', "
            "'trimmed_mean', 'krum' or 'multi_krum'",
        ),
        (
            "metrics = []",
            'metrics = ["loss"]',
            "outbound.metrics.0: loss",
            "'all', 'irradiated', 'not_irradiated', 'small' or 'large'",
        ),
        (
            "{ NETC = 1, SNFH = 2, ET = 3, RC = 4 }",
            "{}",
            "cohort.label_scheme: an empty table",
            "at least 1 item",
        ),
    ],
)
def test_a_refusal_names_what_stands_there_and_what_may(old, new, found, allowed):
    with pytest.raises(StudyRefusal) as refused:
        parse_study(changed(old, new))
    assert (refused.value.found, refused.value.allowed) == (found, allowed)
