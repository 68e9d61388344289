"""Tasks and replies: framed, canonical, signed; nothing changes on the way unnoticed."""

from __future__ import annotations

import json
import struct

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from oncofed_common.errors import IdentityRefusal, OncofedError, WireRefusal
from oncofed_common.identity import PublicKey, SigningKey, canonical, certify, digest
from oncofed_common.wire import (
    ENVELOPE_CAP_BYTES,
    MAGIC,
    NO_DIGEST,
    WIRE_VERSION,
    Charge,
    Head,
    Reply,
    Task,
    frame,
    read_reply,
    read_task,
    seal,
    unframe,
    verify_reply,
)

NOW_S = 1_800_000_000
STUDY_KEY, TASK_KEY = SigningKey.generate(), SigningKey.generate()
APPROVER, TRAINER = SigningKey.generate(), SigningKey.generate()

CERTIFICATE = certify(
    APPROVER,
    TRAINER.public,
    purpose="trainer",
    holder="north",
    epoch=1,
    not_before_s=NOW_S - 10,
    not_after_s=NOW_S + 1000,
    virtual=False,
)
TASK_CERTIFICATE = certify(
    STUDY_KEY,
    TASK_KEY.public,
    purpose="task",
    holder="coordinator",
    epoch=1,
    not_before_s=NOW_S - 10,
    not_after_s=NOW_S + 1000,
    virtual=False,
)

hexes = st.text("0123456789abcdef", min_size=64, max_size=64)
counts = st.integers(0, 2**53 - 1)
heads = st.none() | st.builds(Head, sequence=counts, commitment=hexes)


def a_reply(**changes) -> Reply:
    fields = {
        "wire_version": WIRE_VERSION,
        "task_digest": "a" * 64,
        "study_hash": "b" * 64,
        "run": "c" * 32,
        "round": 2,
        "site": "north",
        "code": "ok",
        "payload_kind": "plain",
        "update_digest": "d" * 64,
        "charge": Charge(epsilon="2.5", delta="0.00001"),
        "protected": 1,
        "wheel_hash": "e" * 64,
        "ledger_head": Head(sequence=7, commitment="f" * 64),
        "trainer_certificate": CERTIFICATE.as_dict(),
    }
    return Reply(**{**fields, **changes})


def a_task(**changes) -> Task:
    fields = {
        "wire_version": WIRE_VERSION,
        "study_hash": "b" * 64,
        "run": "c" * 32,
        "round": 1,
        "site": "north",
        "trainer_key": TRAINER.public.fingerprint,
        "task_certificate": TASK_CERTIFICATE.as_dict(),
        "nonce": "9" * 64,
        "not_before_s": NOW_S,
        "expires_s": NOW_S + 60,
        "reply_at_s": NOW_S,
        "weights_digest": "d" * 64,
        "schema_digest": "e" * 64,
        "participation_digest": NO_DIGEST,
        "revocation_epoch": 0,
    }
    return Task(**{**fields, **changes})


def resealed(envelope: bytes, key: SigningKey, label, **changes) -> bytes:
    """The envelope with fields changed, signed by ``key``: whatever an insider could make."""
    message = json.loads(envelope)["message"] | changes
    return canonical({"message": message, "signature": key.sign(label, message)})


@given(
    head=heads,
    nonce=hexes,
    round=st.integers(1, 2**31 - 1),
    times=st.tuples(counts, counts, counts),
)
def test_a_task_is_read_back_as_it_was_sealed(head, nonce, round, times):
    task = a_task(
        ledger_head=head,
        nonce=nonce,
        round=round,
        not_before_s=times[0],
        expires_s=times[1],
        reply_at_s=times[2],
    )
    envelope = seal(task, TASK_KEY)
    back, signature = read_task(envelope)
    assert back == task
    assert envelope == rfc8785.dumps({"message": task.payload(), "signature": signature})
    TASK_KEY.public.verify("task", back.payload(), signature)


@given(
    head=heads,
    task_digest=hexes,
    round=st.integers(0, 2**31 - 1),
    protected=st.sampled_from([0, 1]),
)
def test_a_reply_is_read_back_and_its_trainer_is_certified(head, task_digest, round, protected):
    reply = a_reply(ledger_head=head, task_digest=task_digest, round=round, protected=protected)
    back, certificate = verify_reply(
        seal(reply, TRAINER), approver_key=APPROVER.public, now_s=NOW_S
    )
    assert back == reply
    assert certificate == CERTIFICATE


@given(place=st.integers(0), bit=st.integers(0, 7))
def test_a_reply_with_one_flipped_bit_is_refused(place, bit):
    envelope = bytearray(seal(a_reply(), TRAINER))
    envelope[place % len(envelope)] ^= 1 << bit
    with pytest.raises((WireRefusal, IdentityRefusal)):
        verify_reply(bytes(envelope), approver_key=APPROVER.public, now_s=NOW_S)


def test_a_reply_signed_by_a_key_that_the_approver_did_not_certify_is_refused():
    with pytest.raises(IdentityRefusal) as refused:
        verify_reply(seal(a_reply(), TASK_KEY), approver_key=APPROVER.public, now_s=NOW_S)
    assert refused.value.code == "bad_signature"
    with pytest.raises(IdentityRefusal) as refused:
        verify_reply(seal(a_reply(), TRAINER), approver_key=STUDY_KEY.public, now_s=NOW_S)
    assert refused.value.code == "bad_certificate"


def test_a_reply_in_another_spelling_of_its_signature_is_refused():
    outer = json.loads(seal(a_reply(), TRAINER))
    outer["signature"] = outer["signature"].upper()
    with pytest.raises(IdentityRefusal) as refused:
        verify_reply(canonical(outer), approver_key=APPROVER.public, now_s=NOW_S)
    assert refused.value.code == "bad_signature"


def test_a_task_does_not_pass_for_a_reply():
    with pytest.raises(WireRefusal) as refused:
        read_reply(seal(a_task(), TASK_KEY))
    assert refused.value.code == "malformed"


@pytest.mark.parametrize(
    "changes",
    [
        {"note": "hello"},
        {"code": "weather"},
        {"site": "../north"},
        {"run": "C" * 32},
        {"protected": 2},
        {"round": -1},
        {"charge": {"epsilon": "2.5e3", "delta": "0"}},
        {"charge": {"epsilon": "2.5", "delta": "0.1", "patient": 7}},
        {"ledger_head": {"sequence": 2**53, "commitment": "f" * 64}},
        {"payload_kind": "masked"},
    ],
)
def test_a_reply_with_unknown_or_malformed_fields_is_refused_though_it_is_signed(changes):
    message = json.loads(seal(a_reply(), TRAINER))["message"] | changes
    envelope = json.dumps(
        {"message": message, "signature": "0" * 128}, sort_keys=True, separators=(",", ":")
    ).encode()
    with pytest.raises(WireRefusal) as refused:
        read_reply(envelope)
    assert refused.value.code == "malformed"


@pytest.mark.parametrize("version", [WIRE_VERSION + 1, -1, "1", None])
def test_an_unknown_wire_version_is_refused_by_its_own_code(version):
    message = json.loads(seal(a_reply(), TRAINER))["message"] | {"wire_version": version}
    envelope = json.dumps({"message": message, "signature": "00"}, separators=(",", ":")).encode()
    with pytest.raises(WireRefusal) as refused:
        read_reply(envelope)
    assert refused.value.code == "unknown_version"


@pytest.mark.parametrize("value", ["1.5", "true", "null", "1e400", str(2**60), '"\\ud800"', "NaN"])
def test_json_that_has_no_single_spelling_is_malformed(value):
    envelope = b'{"message":{"a":%s,"wire_version":1},"signature":"00"}' % value.encode()
    with pytest.raises(WireRefusal) as refused:
        read_task(envelope)
    assert refused.value.code == "malformed"


@pytest.mark.parametrize(
    "respell",
    [
        lambda e: e.replace(b'":', b'": ', 1),
        lambda e: e + b"\n",
        lambda e: e.decode().encode("utf-16"),
        lambda e: b"\xef\xbb\xbf" + e,
        lambda e: e.replace(b'"code":"ok"', b'"code":"ok","code":"ok"'),
        lambda e: e.replace(b'"north"', b'"n\\u006frth"'),
    ],
)
def test_an_envelope_has_one_spelling(respell):
    envelope = seal(a_reply(), TRAINER)
    assert respell(envelope) != envelope
    with pytest.raises(WireRefusal) as refused:
        read_reply(respell(envelope))
    assert refused.value.code == "malformed"


@given(depth=st.integers(1, 3000))
def test_nesting_of_any_depth_is_malformed_and_no_crash(depth):
    envelope = b'{"message":{"a":%s,"wire_version":1},"signature":"00"}' % (
        b"[" * depth + b"]" * depth
    )
    with pytest.raises(WireRefusal) as refused:
        read_task(envelope)
    assert refused.value.code == "malformed"


@given(envelope=st.binary(max_size=300), tensors=st.binary(max_size=300))
def test_a_frame_gives_its_two_parts_back(envelope, tensors):
    body = frame(envelope, tensors)
    assert unframe(body, cap_bytes=len(body)) == (envelope, tensors)
    with pytest.raises(WireRefusal) as refused:
        unframe(body, cap_bytes=len(body) - 1)
    assert refused.value.code == "too_large"


@given(envelope=st.binary(max_size=40), tensors=st.binary(max_size=40), cut=st.integers(1))
def test_a_frame_cut_short_or_with_more_behind_it_is_malformed(envelope, tensors, cut):
    body = frame(envelope, tensors)
    for other in (body[: -(cut % len(body)) or -1], body + b"x"):
        with pytest.raises(WireRefusal) as refused:
            unframe(other, cap_bytes=1000)
        assert refused.value.code == "malformed"


@given(body=st.binary(max_size=100))
def test_arbitrary_bytes_are_no_frame(body):
    with pytest.raises(WireRefusal):
        unframe(MAGIC[:3] + body, cap_bytes=1000)


@pytest.mark.parametrize("length", [2**63 - 1, 2**63, 2**64 - 1, 2**64 - 13])
def test_an_absurd_length_is_malformed(length):
    with pytest.raises(WireRefusal) as refused:
        unframe(MAGIC + struct.pack(">Q", length) + b"x" * 40, cap_bytes=1000)
    assert refused.value.code == "malformed"


def test_an_envelope_over_its_own_cap_is_refused():
    body = frame(b"x" * (ENVELOPE_CAP_BYTES + 1), b"")
    with pytest.raises(WireRefusal) as refused:
        unframe(body, cap_bytes=10 * ENVELOPE_CAP_BYTES)
    assert refused.value.code == "too_large"


def test_an_insider_who_signs_for_another_site_is_still_seen_as_himself():
    envelope = resealed(seal(a_reply(), TRAINER), TRAINER, "reply", site="south")
    reply, certificate = verify_reply(envelope, approver_key=APPROVER.public, now_s=NOW_S)
    assert (reply.site, certificate.holder) == ("south", "north")  # the round loop compares them


def test_the_key_of_a_certificate_is_the_one_that_signed():
    envelope = seal(a_reply(), TRAINER)
    _, certificate = verify_reply(envelope, approver_key=APPROVER.public, now_s=NOW_S)
    assert PublicKey(certificate.subject) == TRAINER.public
    assert digest(envelope) != digest(seal(a_reply(round=3), TRAINER))


def test_every_error_here_is_one_of_ours():
    for bad in (b"", b"[]", b"{}", b"\xff", b'{"message":[],"signature":""}', b"1" * 5000):
        with pytest.raises(OncofedError):
            read_task(bad)
