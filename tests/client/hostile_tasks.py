"""Tasks that no honest coordinator sends, most of them under its true key: by name, with their code.

The site has answered round 1; ``Kit.second`` makes what would be round 2, and each attack changes one
thing of it.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from typing import Any

from hostile_kit import Attack, Kit, Make
from hostile_requests import CANARY
from hostile_tensors import TENSORS
from site_builder import zeros

from oncofed_common.identity import SigningKey
from oncofed_common.wire import Head, frame, unframe


def _outer(change: Callable[[dict[str, Any]], Any]) -> Make:
    """The envelope as JSON, changed and spelled canonically where it can be."""

    def make(kit: Kit) -> bytes:
        return kit.spelled(lambda envelope: json.dumps(change(json.loads(envelope))).encode())

    return make


def _flip(position: int) -> Make:
    def make(kit: Kit) -> bytes:
        task = bytearray(kit.second())
        task[position] ^= 1
        return bytes(task)

    return make


def _task(**changes: Any) -> Make:
    return lambda kit: kit.second(**changes)


def _at(seconds: int, *, slot: int = 1, lasts: int = 600) -> Make:
    """Round 2 for another time than now."""

    def make(kit: Kit) -> bytes:
        start = int(time.time()) + seconds
        return kit.second(not_before_s=start, reply_at_s=start + slot, expires_s=start + lasts)

    return make


def _record(number: int = 1, *, reply: bytes | None = b"", **changes: Any) -> Make:
    """Round 2 with another record of round 1."""

    def make(kit: Kit) -> bytes:
        said = kit.reply if reply == b"" else reply
        record = kit.coordinator.record(kit.site, number=number, reply=said, **changes)
        return kit.coordinator.task(kit.site, number=2, record=record)

    return make


FRAMES: list[Attack] = [
    ("nothing", "malformed", lambda kit: b""),
    ("one byte", "malformed", lambda kit: b"O"),
    ("the first word alone", "malformed", lambda kit: b"OFD1"),
    ("another first word", "malformed", lambda kit: b"OFD2" + kit.second()[4:]),
    ("an empty envelope", "malformed", lambda kit: frame(b"", b"")),
    ("a length beyond all memory", "malformed", lambda kit: b"OFD1" + b"\xff" * 8 + b"x" * 40),
    ("a length that turns negative", "malformed", lambda kit: b"OFD1\x80" + bytes(7) + b"x" * 40),
    ("a length one short", "malformed", _flip(11)),
    ("no tensors where some are announced", "malformed", lambda kit: kit.second()[:-1]),
    ("a byte behind the end", "malformed", lambda kit: kit.second() + b"x"),
    ("two tasks in one", "malformed", lambda kit: kit.second() * 2),
    ("an envelope of 300 KB", "too_large", lambda kit: frame(b"{" + b" " * 300_000, b"")),
    ("a pickle", "malformed", lambda kit: pickle.dumps({"message": CANARY})),
    ("a pickle in a frame", "malformed", lambda kit: frame(pickle.dumps([CANARY]), b"")),
    ("a reply for a task", "malformed", lambda kit: kit.reply),
    ("JSON that is no object", "malformed", lambda kit: frame(b"[]", b"")),
    ("JSON of a hundred thousand levels", "malformed", lambda kit: frame(b"[" * 100_000, b"")),
    ("objects of twenty thousand levels", "malformed", lambda kit: frame(b'{"a":' * 20_000, b"")),
    ("a number of a hundred thousand digits", "malformed", lambda kit: frame(b"9" * 100_000, b"")),
    ("text that is not UTF-8", "malformed", lambda kit: frame(b'{"message":"\xff"}', b"")),
    ("another part beside the message", "malformed", _outer(lambda o: o | {"note": CANARY})),
    ("no signature at all", "malformed", _outer(lambda o: {"message": o["message"]})),
    ("a number for a signature", "malformed", _outer(lambda o: o | {"signature": 1})),
    ("a list for a message", "malformed", _outer(lambda o: o | {"message": [o["message"]]})),
    ("spaces between", "malformed", _outer(lambda o: o)),
    ("a space behind", "malformed", lambda kit: kit.spelled(lambda e: e + b" ")),
    ("a mark of byte order", "malformed", lambda kit: kit.spelled(lambda e: b"\xef\xbb\xbf" + e)),
    (
        "a field given twice",
        "unknown_version",
        lambda kit: kit.spelled(lambda e: e[:-1] + b',"message":{}}'),
    ),
    (
        "letters as escapes",
        "malformed",
        lambda kit: kit.spelled(lambda e: e.replace(b"north", b"\\u006eorth")),
    ),
    (
        "a round with a fraction",
        "malformed",
        lambda kit: kit.spelled(lambda e: e.replace(b'"round":2', b'"round":2.0')),
    ),
    (
        "a round that is no number",
        "malformed",
        lambda kit: kit.spelled(lambda e: e.replace(b'"round":2', b'"round":NaN')),
    ),
    (
        "a field that is null",
        "malformed",
        _outer(lambda o: o | {"message": o["message"] | {"round": None}}),
    ),
]
FIELDS: list[Attack] = [
    ("a metric asked for", "malformed", lambda kit: kit.signed(metrics=["dice"])),
    ("a learning rate", "malformed", lambda kit: kit.signed(learning_rate="1000")),
    ("a path to write to", "malformed", lambda kit: kit.signed(spool="../../outbox")),
    ("a note", "malformed", lambda kit: kit.signed(note=CANARY)),
    ("no nonce", "malformed", lambda kit: kit.signed(nonce=...)),
    ("round nought", "malformed", lambda kit: kit.signed(round=0)),
    ("a negative round", "malformed", lambda kit: kit.signed(round=-1)),
    ("a round beyond 31 bits", "malformed", lambda kit: kit.signed(round=2**31)),
    ("a round in words", "malformed", lambda kit: kit.signed(round="2")),
    (
        "a study that is a path",
        "malformed",
        lambda kit: kit.signed(study_hash="../../../etc/passwd"),
    ),
    ("a study in capitals", "malformed", lambda kit: kit.signed(study_hash="A" * 64)),
    (
        "a study with an end of line",
        "malformed",
        lambda kit: kit.signed(study_hash="a" * 64 + "\n"),
    ),
    ("a run that is a path", "malformed", lambda kit: kit.signed(run="../spool/" + "a" * 23)),
    ("a site that is a path", "malformed", lambda kit: kit.signed(site="../north")),
    ("a site with a NUL", "malformed", lambda kit: kit.signed(site="north\x00")),
    ("a negative time", "malformed", lambda kit: kit.signed(not_before_s=-1)),
    (
        "a time beyond 53 bits",
        "malformed",
        lambda kit: kit.spelled(lambda e: e.replace(b'"expires_s":1', b'"expires_s":99999991')),
    ),
    ("an epoch that is negative", "malformed", lambda kit: kit.signed(revocation_epoch=-1)),
    (
        "a head with a note",
        "malformed",
        lambda kit: kit.signed(ledger_head={"sequence": 1, "commitment": "a" * 64, "note": 1}),
    ),
    ("a record with a note", "malformed", lambda kit: kit.signed(participation={"note": CANARY})),
    ("another wire version", "unknown_version", lambda kit: kit.signed(wire_version=2)),
    ("a negative wire version", "unknown_version", lambda kit: kit.signed(wire_version=-1)),
    ("a wire version in words", "unknown_version", lambda kit: kit.signed(wire_version="1")),
]
KEYS: list[Attack] = [
    ("another key's signature", "bad_signature", _task(key=SigningKey.generate())),
    (
        "the study key's signature",
        "bad_signature",
        lambda kit: kit.second(key=kit.coordinator.study_key),
    ),
    (
        "the trainer's own signature",
        "bad_signature",
        lambda kit: kit.second(key=kit.site.home.trainer_key()),
    ),
    ("an empty signature", "bad_signature", lambda kit: kit.resigned("")),
    ("a signature of nought", "bad_signature", lambda kit: kit.resigned("0" * 128)),
    ("a signature in capitals", "bad_signature", lambda kit: kit.resigned(str.upper)),
    (
        "the signature of the first task",
        "bad_signature",
        lambda kit: kit.resigned(json.loads(unframe(kit.first, cap_bytes=10**6)[0])["signature"]),
    ),
    (
        "a field changed after signing",
        "bad_signature",
        lambda kit: kit.spelled(
            lambda e: e.replace(b'"revocation_epoch":0', b'"revocation_epoch":9')
        ),
    ),
    ("a weight changed after signing", "wrong_tensors", _flip(-1)),
    ("another coordinator's task", "bad_certificate", lambda kit: kit.stranger.task(kit.site)),
    (
        "another coordinator's certificate",
        "bad_certificate",
        lambda kit: kit.second(task_certificate=kit.stranger.certificate()),
    ),
    (
        "a certificate in the true name that another signed",
        "bad_signature",
        lambda kit: kit.forged(),
    ),
    (
        "a certificate that has ended",
        "bad_certificate",
        lambda kit: kit.certified(not_after_s=kit.coordinator.now_s - 1),
    ),
    (
        "a certificate that has not begun",
        "bad_certificate",
        lambda kit: kit.certified(not_before_s=kit.coordinator.now_s + 900),
    ),
    (
        "a certificate for a trainer",
        "bad_certificate",
        lambda kit: kit.certified(purpose="trainer"),
    ),
    (
        "a certificate of another task key",
        "bad_signature",
        lambda kit: kit.certified(subject=SigningKey.generate().public),
    ),
    (
        "the trainer's own certificate",
        "bad_certificate",
        lambda kit: kit.second(task_certificate=kit.site.home.trainer_certificate().as_dict()),
    ),
    ("an empty certificate", "bad_certificate", _task(task_certificate={})),
    (
        "a certificate with a note",
        "bad_certificate",
        lambda kit: kit.second(task_certificate=kit.coordinator.certificate() | {"note": CANARY}),
    ),
    (
        "a certificate whose epoch is a word",
        "bad_certificate",
        lambda kit: kit.second(task_certificate=kit.coordinator.certificate() | {"epoch": "1"}),
    ),
]
ORDER: list[Attack] = [
    (
        "the first task with another nonce",
        "task_conflict",
        lambda kit: kit.coordinator.task(kit.site),
    ),
    (
        "the first round with other weights",
        "task_conflict",
        lambda kit: kit.coordinator.task(
            kit.site, weights={n: w + 1 for n, w in zeros(kit.site.study).items()}
        ),
    ),
    (
        "the first round in another run",
        "task_conflict",
        lambda kit: kit.coordinator.task(kit.site, run="9" * 32),
    ),
    ("the first round with a record", "task_conflict", lambda kit: kit.second(number=1)),
    ("a study that nobody approved", "not_approved", _task(study_hash="e" * 64)),
    ("another site", "wrong_site", _task(site="south")),
    ("another trainer", "wrong_site", _task(trainer_key="e" * 64)),
    ("a task that has ended", "expired", _at(-700)),
    ("a task that ends now", "expired", _at(-60, lasts=60)),
    ("a task of tomorrow", "expired", _at(86_400)),
    ("a task of the year 200 million", "expired", _at(2**52)),
    ("an earlier slot", "malformed", _at(0, slot=0)),
    ("a later slot", "malformed", _at(0, slot=500)),
    ("a round beyond the last", "wrong_round", _task(number=4)),
    ("a round far beyond the last", "wrong_round", _task(number=2**31 - 1)),
    ("round 3 before round 2", "wrong_round", _task(number=3)),
    (
        "round 2 without a record",
        "wrong_round",
        lambda kit: kit.coordinator.task(kit.site, number=2),
    ),
    ("another run", "wrong_run", _task(run="9" * 32)),
    ("a record under another key", "bad_signature", _task(record_key=SigningKey.generate())),
    ("a record of another digest", "wrong_round", _task(participation_digest="e" * 64)),
    ("a record of round 0", "wrong_round", _record(0)),
    ("a record of another run", "wrong_run", _record(run="8" * 32)),
    ("a record of another study", "wrong_run", _record(study_hash="8" * 64)),
    ("a record of other weights", "wrong_round", _record(weights_after="8" * 64)),
    ("a record that forgets the site", "reply_missing", _record(sites=())),
    ("a record of another reply", "reply_missing", _record(reply=b"another")),
    (
        "a head that the site never stated",
        "ledger_behind",
        _task(ledger_head=Head(sequence=9, commitment="e" * 64)),
    ),
    (
        "a head of the right number that is another",
        "ledger_behind",
        _task(ledger_head=Head(sequence=1, commitment="e" * 64)),
    ),
    ("another schema", "wrong_tensors", _task(schema_digest="e" * 64)),
    ("weights other than it names", "wrong_tensors", _task(weights_digest="e" * 64)),
]

TASKS = [*FRAMES, *FIELDS, *KEYS, *ORDER, *TENSORS]
