"""Nothing unapproved passes the outbound door, and a stored reply never changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from study_builder import a_study

from oncofed_client.codehash import code_hash
from oncofed_client.trainer import door, spool
from oncofed_client.trainer.spool import Stored
from oncofed_common.errors import OncofedError, SystemRefusal
from oncofed_common.identity import SigningKey, certify, digest
from oncofed_common.study import Study
from oncofed_common.tensors import UPDATE_SCALE, reply_bytes, to_units, unpack_tensors
from oncofed_common.update_bound import norm_limit_units
from oncofed_common.wire import NO_DIGEST, WIRE_VERSION, Charge, Head, Reply, unframe, verify_reply

APPROVER, TRAINER = SigningKey.generate(), SigningKey.generate()
CERTIFICATE = certify(
    APPROVER,
    TRAINER.public,
    purpose="trainer",
    holder="north",
    epoch=1,
    not_before_s=0,
    not_after_s=2**40,
    virtual=True,
)


def a_reply(study: Study, code: str = "ok") -> Reply:
    return Reply.model_validate(
        {
            "wire_version": WIRE_VERSION,
            "task_digest": "1" * 64,
            "study_hash": study.hash,
            "run": "2" * 32,
            "round": 1,
            "site": "north",
            "code": code,
            "payload_kind": "none",
            "update_digest": NO_DIGEST,
            "charge": Charge(epsilon="8.0", delta="0.00001"),
            "protected": 0,
            "wheel_hash": code_hash(),
            "trainer_certificate": CERTIFICATE.as_dict(),
        }
    )


def an_update(study: Study) -> dict[str, np.ndarray]:
    return {term.name: np.full(term.shape, 7, dtype=np.int32) for term in study.schema_terms}


def passed(study: Study, update: dict[str, np.ndarray], **changes: object) -> bytes:
    settings = {
        "reply": a_reply(study),
        "cap_bytes": study.outbound.bytes_per_round,
        "sent_bytes": 0,
        "charged": True,
    } | changes
    reply = settings.pop("reply")
    return door.pass_update(reply, update, study=study, key=TRAINER, **settings)


def test_an_approved_update_passes_and_reads_back_as_it_was() -> None:
    """What leaves is the int32 tensors of the study and a signed envelope that binds them."""
    study = a_study()
    envelope, tensors = unframe(passed(study, an_update(study)), cap_bytes=10**6)
    reply, _ = verify_reply(envelope, approver_key=APPROVER.public, now_s=10)
    assert reply.update_digest == digest(tensors)
    assert reply.payload_kind == "plain"
    found = unpack_tensors(tensors, schema=study.schema_terms, dtype="int32")
    assert all((tensor == 7).all() for tensor in found.values())


@pytest.mark.parametrize("fault", ["extra", "missing", "shape", "float", "int64", "renamed"])
def test_any_other_tensor_stays_inside(fault: str) -> None:
    """The study's vocabulary is the only one."""
    study = a_study()
    update = an_update(study)
    first = sorted(update)[0]
    if fault == "extra":
        update["scan"] = np.zeros((4, 4), dtype=np.int32)
    elif fault == "missing":
        del update[first]
    elif fault == "shape":
        update[first] = np.zeros((1, *update[first].shape), dtype=np.int32)
    elif fault == "renamed":
        update["other"] = update.pop(first)
    else:
        update[first] = update[first].astype({"float": np.float32, "int64": np.int64}[fault])
    with pytest.raises(OncofedError) as refused:
        passed(study, update)
    assert refused.value.code == "wrong_tensors"


def test_an_update_that_nobody_charged_stays_inside() -> None:
    """No draw in the ledger, no byte outside."""
    study = a_study()
    with pytest.raises(OncofedError) as refused:
        passed(study, an_update(study), charged=False)
    assert refused.value.code == "budget"


def test_a_reply_over_the_cap_stays_inside() -> None:
    """The cap counts every byte of the frame."""
    study = a_study()
    whole = passed(study, an_update(study))
    assert passed(study, an_update(study), cap_bytes=len(whole)) == whole
    with pytest.raises(OncofedError) as refused:
        passed(study, an_update(study), cap_bytes=len(whole) - 1)
    assert refused.value.code == "too_large"


def test_all_replies_of_a_study_have_one_cap_together() -> None:
    """One whole reply a round: what left before counts, to the byte."""
    study = a_study()
    whole = passed(study, an_update(study))
    most = study.training.rounds * reply_bytes(study.schema_terms)
    assert passed(study, an_update(study), sent_bytes=most - len(whole)) == whole
    with pytest.raises(OncofedError) as refused:
        passed(study, an_update(study), sent_bytes=most - len(whole) + 1)
    assert refused.value.code == "too_large"


def test_a_longer_update_leaves_at_the_studys_own_bound() -> None:
    """As an ordinary reply of ordinary size: a refusal would tell of its values."""
    study = a_study()
    huge = {name: np.full_like(tensor, 2**31 - 1) for name, tensor in an_update(study).items()}
    body = passed(study, huge)
    _, tensors = unframe(body, cap_bytes=10**6)
    found = unpack_tensors(tensors, schema=study.schema_terms, dtype="int32")
    squared = sum(int(value) ** 2 for tensor in found.values() for value in tensor.ravel())
    limit = norm_limit_units(study, declared_patients=20)
    assert 0.99 * limit**2 < squared <= limit**2
    assert len(body) == len(passed(study, an_update(study)))


@pytest.mark.parametrize(
    "words",
    [
        {"code": "unavailable"},
        {"study_hash": "4" * 64},
        {"round": 0},
        {"round": 4},
        {"charge": None},
        {"charge": Charge(epsilon="8.000000000001", delta="0.00001")},
        {"charge": Charge(epsilon="8.0000", delta="0.00001")},
        {"charge": Charge(epsilon="8.0", delta="0.000010")},
        {"wheel_hash": "3" * 64},
        {"wire_version": 77},
        {"site": "south"},
        {"trainer_certificate": CERTIFICATE.as_dict() | {"note": "a scan, in words"}},
        {"trainer_certificate": CERTIFICATE.as_dict() | {"holder": "Jane Doe"}},
        {"trainer_certificate": CERTIFICATE.as_dict() | {"subject": "5" * 64}},
    ],
    ids="-".join,
)
def test_an_update_leaves_with_no_word_that_nobody_approved(words: dict[str, object]) -> None:
    """No number, no digit more, no text: each would be a channel beside the noise."""
    study = a_study()
    with pytest.raises(OncofedError):
        passed(study, an_update(study), reply=a_reply(study).model_copy(update=words))


def test_a_refusal_leaves_without_a_charge_or_a_head() -> None:
    """Whatever it was built with."""
    study = a_study()
    head = Head(sequence=9, commitment="6" * 64)
    told = a_reply(study, "unavailable").model_copy(update={"ledger_head": head})
    envelope, _ = unframe(door.pass_refusal(told, key=TRAINER, cap_bytes=10**6), cap_bytes=10**6)
    reply, _ = verify_reply(envelope, approver_key=APPROVER.public, now_s=10)
    assert (reply.charge, reply.ledger_head) == (None, None)


def test_a_reply_has_no_room_for_a_metric() -> None:
    """Its numbers are the wire version, the round, a yes or no, and a count of draws; all else is a digest
    or a public word."""
    numbers = {name for name, field in Reply.model_fields.items() if "int" in str(field.annotation)}
    assert numbers == {"wire_version", "round"}
    assert set(Reply.model_fields) == {
        *("wire_version", "task_digest", "study_hash", "run", "round", "site", "code"),
        *("payload_kind", "update_digest", "charge", "protected", "wheel_hash", "ledger_head"),
        "trainer_certificate",
    }
    assert set(Head.model_fields) == {"sequence", "commitment"}
    with pytest.raises(ValidationError):
        a_study(outbound={"metrics": ["dice"]})


@given(
    units=st.lists(st.integers(-1000, 1000), min_size=8, max_size=8),
    shifts=st.lists(st.floats(-0.49, 0.49), min_size=8, max_size=8),
)
def test_what_lies_below_one_unit_does_not_leave(units: list[int], shifts: list[float]) -> None:
    """Nor does the sign of a zero, nor a number too small to be normal."""
    study = a_study()

    def sent(values: np.ndarray) -> bytes:
        scaled = values * UPDATE_SCALE
        parts = dict(zip(("norm.bias", "norm.weight"), np.split(scaled, 2), strict=True))
        return passed(study, to_units(parts))

    plain = np.array(units, dtype=np.float64)
    assert sent(plain + np.array(shifts)) == sent(plain)
    assert sent(plain * 0.0) == sent(plain * -0.0) == sent(np.full(8, 5e-324)) != b""


def test_what_says_ok_leaves_with_its_update_or_not_at_all() -> None:
    """A refusal carries a code other than ok, and nothing else."""
    study = a_study()
    with pytest.raises(OncofedError):
        door.pass_refusal(a_reply(study), key=TRAINER, cap_bytes=10**6)
    body = door.pass_refusal(a_reply(study, "unavailable"), key=TRAINER, cap_bytes=10**6)
    envelope, tensors = unframe(body, cap_bytes=10**6)
    reply, _ = verify_reply(envelope, approver_key=APPROVER.public, now_s=10)
    assert (reply.code, reply.payload_kind, tensors) == ("unavailable", "none", b"")


def test_the_size_of_a_reply_says_nothing_about_its_values() -> None:
    """Zeros and extremes leave as the same number of bytes."""
    study = a_study()
    sizes = {
        len(passed(study, {n: np.full_like(t, value) for n, t in an_update(study).items()}))
        for value in (0, 1, -(2**31), 2**31 - 1)
    }
    assert len(sizes) == 1


@given(body=st.binary(max_size=300))
def test_a_stored_reply_is_given_again_byte_for_byte(
    body: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the bytes are, newlines included."""
    folder = tmp_path_factory.mktemp("spool")
    stored = Stored(task_digest="a" * 64, run="b" * 32, leaves_at_s=7.5, body=body)
    spool.store(folder, study_hash="c" * 64, round_number=3, stored=stored)
    assert spool.recall(folder, study_hash="c" * 64, round_number=3) == stored
    assert spool.recall(folder, study_hash="c" * 64, round_number=4) is None


def test_a_second_reply_for_a_round_is_never_stored(tmp_path: Path) -> None:
    """The first one stands."""
    first = Stored(task_digest="a" * 64, run="b" * 32, leaves_at_s=7.5, body=b"first")
    spool.store(tmp_path, study_hash="c" * 64, round_number=1, stored=first)
    with pytest.raises(SystemRefusal):
        spool.store(
            tmp_path,
            study_hash="c" * 64,
            round_number=1,
            stored=Stored(task_digest="d" * 64, run="b" * 32, leaves_at_s=7.5, body=b"second"),
        )
    assert spool.recall(tmp_path, study_hash="c" * 64, round_number=1) == first


def test_a_damaged_stored_reply_is_refused(tmp_path: Path) -> None:
    """Other bytes than those written never leave."""
    stored = Stored(task_digest="a" * 64, run="b" * 32, leaves_at_s=7.5, body=b"bytes")
    spool.store(tmp_path, study_hash="c" * 64, round_number=1, stored=stored)
    (file,) = (tmp_path / ("c" * 64)).iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"S")
    with pytest.raises(SystemRefusal) as refused:
        spool.recall(tmp_path, study_hash="c" * 64, round_number=1)
    assert refused.value.code == "reply_damaged"
