"""Keys, signatures and certificates: one spelling, one purpose, one holder."""

from __future__ import annotations

import base64
import stat
from dataclasses import replace

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from oncofed_common.errors import IdentityRefusal
from oncofed_common.identity import (
    Certificate,
    PublicKey,
    SigningKey,
    canonical,
    certify,
    digest,
)

KEY = SigningKey.generate()
OTHER = SigningKey.generate()
NOW_S = 1_800_000_000

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ascii_texts = st.text(st.characters(max_codepoint=127))
integers = st.integers(-(2**53) + 1, 2**53 - 1)
payloads = st.dictionaries(
    texts,
    st.recursive(
        integers | texts, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3)
    ),
    max_size=4,
)


def a_certificate(**changes):
    fields = {
        "purpose": "trainer",
        "holder": "north",
        "epoch": 1,
        "not_before_s": NOW_S,
        "not_after_s": NOW_S + 100,
        "virtual": False,
    }
    return certify(KEY, OTHER.public, **{**fields, **changes})


@given(payload=payloads)
def test_a_signature_holds_for_its_payload_in_any_order_of_keys(payload):
    signature = KEY.sign("task", payload)
    KEY.public.verify("task", dict(reversed(payload.items())), signature)


@given(payload=payloads, label=st.sampled_from(["study", "reply", "certificate", "approval"]))
def test_a_signature_made_for_one_purpose_does_not_pass_for_another(payload, label):
    signature = KEY.sign("task", payload)
    with pytest.raises(IdentityRefusal, match="does not hold"):
        KEY.public.verify(label, payload, signature)


@given(place=st.integers(0, 63), bit=st.integers(0, 7))
def test_one_flipped_bit_of_a_signature_is_refused(place, bit):
    raw = bytearray.fromhex(KEY.sign("task", {"round": 1}))
    raw[place] ^= 1 << bit
    with pytest.raises(IdentityRefusal) as refused:
        KEY.public.verify("task", {"round": 1}, raw.hex())
    assert refused.value.code == "bad_signature"


@pytest.mark.parametrize(
    "respell",
    [str.upper, lambda s: s[:2] + " " + s[2:], lambda s: s + "\n", lambda s: s[:-2], lambda s: ""],
)
def test_a_signature_has_one_spelling(respell):
    signature = KEY.sign("task", {"round": 1})
    with pytest.raises(IdentityRefusal):
        KEY.public.verify("task", {"round": 1}, respell(signature))


@pytest.mark.parametrize(
    "respell",
    [
        str.upper,
        lambda s: s[:2] + " " + s[2:],
        lambda s: s + "\n",
        lambda s: s[:-2],
        lambda s: "g" * 64,
    ],
)
def test_a_public_key_has_one_spelling(respell):
    known = SigningKey.generate().public
    while known.hex == respell(known.hex):  # a key of digits alone has no upper case
        known = SigningKey.generate().public
    with pytest.raises(IdentityRefusal) as refused:
        PublicKey(respell(known.hex))
    assert refused.value.code == "bad_key"


@pytest.mark.parametrize(
    "value", [1.0, float("nan"), None, True, b"bytes", 2**53, "\ud800", {1: "x"}, {"x": {"y": 0.5}}]
)
def test_what_has_no_single_spelling_is_never_signed(value):
    with pytest.raises(IdentityRefusal) as refused:
        canonical({"value": value})
    assert refused.value.code == "bad_payload"


def test_a_payload_nested_beyond_reason_is_refused_not_a_crash():
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(IdentityRefusal):
        canonical({"deep": deep})


@given(payload=payloads)
def test_canonical_json_is_that_of_the_library(payload):
    assert canonical(payload) == rfc8785.dumps(payload)


@given(payload=st.dictionaries(st.text(st.characters(max_codepoint=127)), integers | ascii_texts))
def test_and_so_it_is_where_all_is_ascii_controls_and_all(payload):
    """The way that the standard library spells."""
    assert canonical(payload) == rfc8785.dumps(payload)


def test_canonical_json_is_that_of_rfc_8785():
    # sorted by UTF-16 code units, as in the RFC's own example of keys
    payload = {"\u20ac": "Euro", "\r": "CR", "1": "One", "\U0001f600": "Smile", "\u0080": "Control"}
    keys = [line.split(":")[0] for line in canonical(payload).decode()[1:-1].split(",")]
    assert keys == ['"\\r"', '"1"', '"\u0080"', '"\u20ac"', '"\U0001f600"']


def test_a_fingerprint_is_the_sha_256_of_the_raw_key():
    assert KEY.public.fingerprint == digest(bytes.fromhex(KEY.public.hex))


def test_a_key_is_read_back_with_its_passphrase_only(tmp_path):
    KEY.save(tmp_path / "key.pem", passphrase=b"correct horse")
    assert SigningKey.load(tmp_path / "key.pem", passphrase=b"correct horse").public == KEY.public
    for wrong in (b"wrong", None):
        with pytest.raises(IdentityRefusal) as refused:
            SigningKey.load(tmp_path / "key.pem", passphrase=wrong)
        assert refused.value.code == "key_unreadable"


@pytest.mark.parametrize("place", range(16))
def test_a_private_key_with_a_damaged_byte_is_a_key_that_cannot_be_read(tmp_path, place):
    """Also in the name of its algorithm, for which the library has errors of its own."""
    KEY.save(tmp_path / "key.pem", passphrase=None)
    first, text, last = (tmp_path / "key.pem").read_text().splitlines()
    for bit in range(8):
        damaged = bytearray(base64.b64decode(text))  # 16 bytes of wrapping, and then the key itself
        damaged[place] ^= 1 << bit
        lines = [first, base64.b64encode(damaged).decode(), last, ""]
        (tmp_path / "key.pem").write_text("\n".join(lines))
        with pytest.raises(IdentityRefusal) as refused:
            SigningKey.load(tmp_path / "key.pem", passphrase=None)
        assert refused.value.code == "key_unreadable"


def test_a_private_key_is_readable_by_its_owner_alone_and_never_overwritten(tmp_path):
    KEY.save(tmp_path / "key.pem", passphrase=None)
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    with pytest.raises(IdentityRefusal) as refused:
        OTHER.save(tmp_path / "key.pem", passphrase=None)
    assert refused.value.code == "key_exists"
    assert SigningKey.load(tmp_path / "key.pem", passphrase=None).public == KEY.public


def test_a_private_key_never_shows_itself():
    assert KEY.public.hex not in repr(KEY)
    assert KEY.public.fingerprint[:16] in repr(KEY)


def test_a_certificate_holds_for_its_issuer_purpose_and_time():
    given_key = a_certificate().check(issuer=KEY.public, purpose="trainer", now_s=NOW_S)
    assert given_key == OTHER.public


@pytest.mark.parametrize("now_s", [NOW_S - 1, NOW_S + 100])
def test_a_certificate_does_not_hold_outside_its_time_also_when_it_held_before(now_s):
    found = a_certificate()
    found.check(issuer=KEY.public, purpose="trainer", now_s=NOW_S)
    with pytest.raises(IdentityRefusal, match="not valid at this time"):
        found.check(issuer=KEY.public, purpose="trainer", now_s=now_s)


def test_a_certificate_for_one_purpose_or_of_one_issuer_is_not_that_of_another():
    with pytest.raises(IdentityRefusal, match="for trainer"):
        a_certificate().check(issuer=KEY.public, purpose="task", now_s=NOW_S)
    with pytest.raises(IdentityRefusal, match="another issuer"):
        a_certificate().check(issuer=OTHER.public, purpose="trainer", now_s=NOW_S)


@pytest.mark.parametrize(
    "change",
    [
        {"holder": "south"},
        {"epoch": 2},
        {"not_after_s": NOW_S + 101},
        {"virtual": True},
        {"subject": SigningKey.generate().public.hex},
        {"signature": "0" * 128},
    ],
)
def test_a_changed_certificate_is_refused_also_after_the_true_one_was_verified(change):
    true = a_certificate()
    true.check(issuer=KEY.public, purpose="trainer", now_s=NOW_S)
    for _ in range(2):
        with pytest.raises(IdentityRefusal) as refused:
            replace(true, **change).check(issuer=KEY.public, purpose="trainer", now_s=NOW_S)
        assert refused.value.code == "bad_signature"


def test_a_key_cannot_certify_itself():
    with pytest.raises(IdentityRefusal, match="certifies itself"):
        certify(
            KEY,
            KEY.public,
            purpose="trainer",
            holder="north",
            epoch=1,
            not_before_s=0,
            not_after_s=1,
            virtual=False,
        )


def test_a_certificate_survives_writing_and_reading():
    assert Certificate.from_dict(a_certificate(virtual=True).as_dict()) == a_certificate(
        virtual=True
    )


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"epoch": "1"},
        {"epoch": True},
        {"virtual": 2},
        {"purpose": "root"},
        {"holder": 7},
    ],
)
def test_a_certificate_with_other_fields_is_refused(change):
    with pytest.raises(IdentityRefusal) as refused:
        Certificate.from_dict(a_certificate().as_dict() | change)
    assert refused.value.code == "bad_certificate"
    fields = a_certificate().as_dict()
    del fields["epoch"]
    with pytest.raises(IdentityRefusal):
        Certificate.from_dict(fields)
