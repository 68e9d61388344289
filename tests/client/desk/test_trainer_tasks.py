"""A task is answered once, for the right study, site, round and time, or with a code."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from site_builder import (
    NOW_S,
    PASSPHRASE,
    PATIENTS,
    Coordinator,
    Site,
    a_home,
    approved,
    code_of,
    joined,
    reply_of,
    study_for,
    zeros,
)

from oncofed_client.trainer.training import Round
from oncofed_common.identity import SigningKey
from oncofed_common.wire import Head, unframe, verify_reply

SLOT_S = 1
"""``reply_after_s`` of the study."""


def drawn(site: Site) -> int:
    (row,) = site.ledger.budget()["studies"]
    return int(str(row["rounds"]).split("/")[0])


def test_a_task_is_answered_with_a_signed_update(site: Site, coordinator: Coordinator) -> None:
    """Signed by the trainer key that the approver certified; it waits for its slot."""
    body, leaves_at_s = site.desk().answer(coordinator.task(site))
    envelope, _ = unframe(body, cap_bytes=10**6)
    reply, _ = verify_reply(envelope, approver_key=site.home.approver, now_s=NOW_S)
    assert reply.code == "ok"
    assert leaves_at_s == site.now_s + SLOT_S
    assert reply.charge is not None
    assert reply.charge.epsilon == "4.0"


def test_the_same_task_twice_gets_the_same_bytes_and_one_charge(
    site: Site, coordinator: Coordinator
) -> None:
    """Also from a trainer that was started anew in between."""
    task = coordinator.task(site)
    first, _ = site.desk().answer(task)
    again, _ = site.desk().answer(task)
    assert first == again
    assert site.trained == [1]
    assert drawn(site) == 1


def test_a_task_that_arrives_twice_at_once_is_trained_once(
    site: Site, coordinator: Coordinator
) -> None:
    """The second waits for the first, and gets its bytes."""
    desk, task = site.desk(), coordinator.task(site)
    with ThreadPoolExecutor(4) as threads:
        replies = set(threads.map(lambda _: desk.answer(task)[0], range(4)))
    assert len(replies) == 1
    assert site.trained == [1]


def test_everybody_in_the_frame_is_charged_before_training(
    site: Site, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn or not: the ledger is read when training begins."""
    charged, train = [], site.work

    def work(*asked: Any) -> Round:
        charged.append(site.ledger.charged_in(site.study.hash, round=1))
        return train(*asked)

    monkeypatch.setattr(site, "work", work)
    assert code_of(site.desk().answer(coordinator.task(site))[0]) == "ok"
    assert charged == [PATIENTS]


def test_another_task_for_an_answered_round_is_refused(
    site: Site, coordinator: Coordinator
) -> None:
    """Whatever nonce, weights or run it names."""
    desk = site.desk()
    desk.answer(coordinator.task(site))
    other = {name: tensor + 1 for name, tensor in zeros(site.study).items()}
    assert code_of(desk.answer(coordinator.task(site))[0]) == "task_conflict"
    assert code_of(desk.answer(coordinator.task(site, weights=other))[0]) == "task_conflict"
    assert code_of(desk.answer(coordinator.task(site, run="9" * 32))[0]) == "task_conflict"
    assert drawn(site) == 1


def test_an_attempt_that_died_is_repeated_under_the_same_draw(
    site: Site, coordinator: Coordinator
) -> None:
    """Nothing had left: fresh noise, one charge; and another task cannot take its place."""
    task = coordinator.task(site)
    site.dies = True
    assert code_of(site.desk().answer(task)[0]) == "unavailable"
    assert drawn(site) == 1
    site.dies = False
    assert code_of(site.desk().answer(coordinator.task(site))[0]) == "task_conflict"
    assert code_of(site.desk().answer(task)[0]) == "ok"
    assert drawn(site) == 1


def test_no_text_of_an_exception_leaves_or_is_logged(site: Site, coordinator: Coordinator) -> None:
    """A canary in the exception is in neither the reply nor the log; class and line are."""
    site.dies = True
    reply, _ = site.desk().answer(coordinator.task(site))
    site.log.release(math.inf)
    log = (site.home.trainer / "log.jsonl").read_text()
    for canary in ("Jane", "Doe", "/data/scans"):
        assert canary.encode() not in reply
        assert canary not in log
    assert '"error_class": "MemoryError"' in log
    assert '"incident"' in log


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"study_hash": "e" * 64}, "not_approved"),
        ({"site": "south"}, "wrong_site"),
        ({"trainer_key": "e" * 64}, "wrong_site"),
        ({"round": 4}, "wrong_round"),
        ({"round": 2}, "wrong_round"),
        ({"expires_s": NOW_S}, "expired"),
        (
            {"not_before_s": NOW_S + 3000, "reply_at_s": NOW_S + 3001, "expires_s": NOW_S + 9000},
            "expired",
        ),
        ({"reply_at_s": NOW_S}, "malformed"),
        ({"reply_at_s": NOW_S + 700}, "malformed"),
        ({"schema_digest": "e" * 64}, "wrong_tensors"),
        ({"weights_digest": "e" * 64}, "wrong_tensors"),
        ({"ledger_head": Head(sequence=9, commitment="e" * 64)}, "ledger_behind"),
    ],
)
def test_a_task_that_is_not_for_this_site_now_is_refused_and_charges_nobody(
    site: Site, coordinator: Coordinator, changes: dict[str, object], code: str
) -> None:
    """Each field binds."""
    number = changes.pop("round", 1)
    assert isinstance(number, int)
    reply, _ = site.desk().answer(coordinator.task(site, number=number, **changes))
    assert code_of(reply) == code
    assert site.trained == []
    assert drawn(site) == 0


def test_a_task_signed_by_anybody_else_is_refused(site: Site, coordinator: Coordinator) -> None:
    """Neither another task key nor another coordinator's certificate will do."""
    desk = site.desk()
    forged = coordinator.task(site, key=SigningKey.generate())
    assert code_of(desk.answer(forged)[0]) == "bad_signature"
    stranger = Coordinator(run=coordinator.run)
    assert code_of(desk.answer(stranger.task(site))[0]) == "bad_certificate"
    assert drawn(site) == 0


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("extra", "wrong_tensors"),
        ("shape", "wrong_tensors"),
        ("nan", "not_finite"),
        ("long", "too_large"),
    ],
)
def test_weights_other_than_the_studys_are_refused(
    site: Site, coordinator: Coordinator, fault: str, code: str
) -> None:
    """Names, shapes, finiteness and size."""
    weights = zeros(site.study)
    first = sorted(weights)[0]
    if fault == "extra":
        weights["scan"] = np.zeros(3, dtype=np.float32)
    elif fault == "shape":
        weights[first] = weights[first][None]
    elif fault == "nan":
        weights[first] = np.full_like(weights[first], np.nan)
    else:
        weights["scan"] = np.zeros(100_000, dtype=np.float32)
    reply, _ = site.desk().answer(coordinator.task(site, weights=weights))
    assert code_of(reply) == code
    assert drawn(site) == 0


@pytest.mark.parametrize("cut", [0, 3, 11, 40, 400, -1])
def test_bytes_that_are_no_task_get_a_code(site: Site, coordinator: Coordinator, cut: int) -> None:
    """A cut task is malformed, wherever it was cut."""
    reply, _ = site.desk().answer(coordinator.task(site)[:cut])
    assert code_of(reply) == "malformed"


def test_the_next_round_needs_the_record_that_names_our_reply(
    site: Site, coordinator: Coordinator
) -> None:
    """A record that forgets the site, or names another reply, stops it; the true one does not."""
    desk = site.desk()
    first, _ = desk.answer(coordinator.task(site))
    forgotten = coordinator.record(site, number=1, reply=first).model_copy(update={"sites": ()})
    other = coordinator.record(site, number=1, reply=b"another reply")
    foreign = coordinator.record(site, number=1, reply=first, run="8" * 32)
    astray = coordinator.record(site, number=1, reply=first, weights_after="8" * 64)
    earlier = coordinator.record(site, number=0, reply=first)
    for record, code in (
        (earlier, "wrong_round"),
        (forgotten, "reply_missing"),
        (other, "reply_missing"),
        (foreign, "wrong_run"),
        (astray, "wrong_round"),
    ):
        assert code_of(desk.answer(coordinator.task(site, number=2, record=record))[0]) == code
    true = coordinator.record(site, number=1, reply=first)
    forged = coordinator.task(site, number=2, record=true, record_key=SigningKey.generate())
    assert code_of(desk.answer(forged)[0]) == "bad_signature"
    another = coordinator.task(site, number=2, record=true, participation_digest="e" * 64)
    assert code_of(desk.answer(another)[0]) == "wrong_round"
    assert code_of(desk.answer(coordinator.task(site, number=2, record=true))[0]) == "ok"
    assert drawn(site) == 2


def test_an_old_round_is_not_answered_after_a_later_one(
    site: Site, coordinator: Coordinator
) -> None:
    """A site that was left out of round 1 does not go back to it."""
    desk = site.desk()
    record = coordinator.record(site, number=1, reply=None)
    assert code_of(desk.answer(coordinator.task(site, number=2, record=record))[0]) == "ok"
    assert code_of(desk.answer(coordinator.task(site, number=1))[0]) == "wrong_round"


def test_a_withdrawn_study_a_distrusted_key_and_an_expired_study_are_refused(
    site: Site, coordinator: Coordinator
) -> None:
    """The hospital's word holds at once."""
    key = site.home.approver_key(PASSPHRASE)
    desk = site.desk()
    site.ledger.withdraw(site.study.hash, key=key)
    assert code_of(desk.answer(coordinator.task(site))[0]) == "withdrawn"
    site.ledger.distrust(coordinator.study_key.public.fingerprint, key=key)
    assert code_of(desk.answer(coordinator.task(site))[0]) == "bad_certificate"


def test_a_stored_reply_does_not_leave_once_its_study_is_withdrawn(
    site: Site, coordinator: Coordinator
) -> None:
    """It was never sent, or only to somebody; it is not sent again."""
    task = coordinator.task(site)
    assert code_of(site.desk().answer(task)[0]) == "ok"
    site.ledger.withdraw(site.study.hash, key=site.home.approver_key(PASSPHRASE))
    assert code_of(site.desk().answer(task)[0]) == "withdrawn"


def test_a_round_beyond_the_studys_last_is_refused_by_what_it_is(
    site: Site, coordinator: Coordinator
) -> None:
    """Also with a record of the round before it."""
    last = site.study.training.rounds
    record = coordinator.record(site, number=last, reply=None)
    beyond = coordinator.task(site, number=last + 1, record=record)
    assert code_of(site.desk().answer(beyond)[0]) == "wrong_round"


def test_a_task_of_a_withdrawn_study_writes_nothing_into_the_ledger(
    site: Site, coordinator: Coordinator
) -> None:
    """Not even the revocation epoch that it brings."""
    site.ledger.withdraw(site.study.hash, key=site.home.approver_key(PASSPHRASE))
    before = site.ledger.head()
    late = coordinator.task(site, revocation_epoch=3)
    assert code_of(site.desk().answer(late)[0]) == "withdrawn"
    assert site.ledger.head() == before


def test_a_full_disk_refuses_before_anybody_is_charged(
    site: Site, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside it is the one word unavailable."""
    monkeypatch.setattr("oncofed_client.trainer.tasks.SPARE_DISK_BYTES", 2**62)
    assert code_of(site.desk().answer(coordinator.task(site))[0]) == "unavailable"
    assert drawn(site) == 0
    assert site.trained == []


def test_a_cap_that_the_site_narrowed_after_its_approval_holds(
    site: Site, coordinator: Coordinator
) -> None:
    """The smaller of the study's and the site's own."""
    path = site.home.trainer / "policy.toml"
    path.write_text(path.read_text().replace("bytes_per_round = 200000", "bytes_per_round = 1024"))
    assert site.home.policy().bytes_per_round == 1024
    body, _ = site.desk().answer(coordinator.task(site))
    assert code_of(body) == "too_large"
    assert drawn(site) == 0
    assert site.trained == []


def test_a_changed_version_of_the_code_needs_a_new_approval(
    site: Site, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The approval names the code by its hash."""
    monkeypatch.setattr("oncofed_client.approval.code_hash", lambda: "7" * 64)
    assert code_of(site.desk().answer(coordinator.task(site))[0]) == "not_approved"


def test_refusals_say_nothing_of_charge_or_ledger(site: Site, coordinator: Coordinator) -> None:
    """Only an answer carries a head."""
    refused = reply_of(site.desk().answer(coordinator.task(site, site="south"))[0])
    assert refused.charge is None
    assert refused.ledger_head is None


def test_a_refusal_says_whether_patients_stand_behind_it(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    """A virtual home's replies are never called protected, a real home's always are."""
    for virtual in (True, False):
        home = joined(a_home(tmp_path / str(virtual), virtual=virtual), coordinator)
        site = approved(tmp_path / str(virtual), home, study_for(home), coordinator)
        with site.open:
            reply = reply_of(site.desk().answer(coordinator.task(site, site="south"))[0])
        assert reply.protected == (0 if virtual else 1)
