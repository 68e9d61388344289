"""When a reply leaves, and what it says of training: nothing, whatever happened."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_builder import NOW_S, Coordinator, Site, code_of

from oncofed_client.approval import Approved
from oncofed_client.ledger import Ledger
from oncofed_client.trainer import door
from oncofed_client.trainer.tasks import leaves_at
from oncofed_client.trainer.training import Round
from oncofed_common.errors import WireRefusal
from oncofed_common.tensors import reply_bytes, unpack_tensors
from oncofed_common.update_bound import norm_limit_units
from oncofed_common.wire import unframe


@given(took_s=st.floats(0, 1e4), slot_s=st.integers(1, 1000))
def test_a_slot_ends_after_whole_multiples_of_its_length(took_s: float, slot_s: int) -> None:
    """Not before the work has ended, and less than one slot after it."""
    leaves = leaves_at(0.0, now_s=took_s, slot_s=slot_s)
    assert leaves % slot_s == 0
    assert leaves >= max(took_s, slot_s)
    assert leaves == slot_s or leaves - slot_s < took_s
    assert leaves_at(5.0, now_s=7.5, slot_s=0) == 7.5


@pytest.mark.parametrize("took_s", [0.0, 0.1, 0.99, 1.0, 1.5, 7.2])
@pytest.mark.parametrize("end", ["ok", "dies", "door"])
def test_when_a_reply_leaves_says_how_many_slots_training_took_and_no_more(
    site: Site,
    coordinator: Coordinator,
    monkeypatch: pytest.MonkeyPatch,
    took_s: float,
    end: str,
) -> None:
    """However old the task is, and whatever came of it: for what cannot leave there is one code."""
    site.now_s = came_s = NOW_S + 300.0
    train = site.work

    def work(*asked: Any) -> Round:
        site.now_s += took_s
        return train(*asked)

    monkeypatch.setattr(site, "work", work)
    site.dies = end == "dies"
    if end == "door":
        monkeypatch.setattr(door, "check_tensors", not_finite)
    body, leaves_at_s = site.desk().answer(coordinator.task(site))
    assert leaves_at_s == came_s + max(1, math.ceil(took_s))
    assert code_of(body) == ("ok" if end == "ok" else "unavailable")


def not_finite(*_: Any, **__: Any) -> None:
    raise WireRefusal("canary", allowed="", next="", code="not_finite")


def test_the_log_tells_when_a_reply_left_and_not_when_training_ended(
    site: Site, coordinator: Coordinator
) -> None:
    """Nothing of the round's end is written before, and then it bears the slot's time."""
    path = site.home.trainer / "log.jsonl"

    def events() -> dict[str, int]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return {row["event"]: row["time_s"] for row in rows}

    site_task = coordinator.task(site)
    _, leaves_at_s = site.desk().answer(site_task)
    site.log.release(leaves_at_s - 0.001)
    assert set(events()) == {"accepted"}
    site.log.release(leaves_at_s)
    assert events()["answered"] == int(leaves_at_s)
    record = coordinator.record(site, number=1, reply=b"no reply of this site")
    for sent, event in (
        (coordinator.task(site, number=2, record=record), "refused"),
        (site_task, "repeated"),
    ):
        _, leaves_at_s = site.desk().answer(sent)
        site.log.release(leaves_at_s - 0.001)
        assert event not in events()
        site.log.release(leaves_at_s)
        assert events()[event] == int(leaves_at_s)


def test_what_the_door_refused_is_the_rounds_one_result(
    site: Site, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking again trains nobody again: each refusal would tell a little, and one charge paid for one."""
    task = coordinator.task(site)
    with monkeypatch.context() as patch:
        patch.setattr(door, "check_tensors", not_finite)
        first, leaves_at_s = site.desk().answer(task)
    assert site.desk().answer(task) == (first, leaves_at_s)
    assert code_of(first) == "unavailable"
    assert site.trained == [1]


def test_a_refusal_that_asks_no_patient_does_not_wait_for_one_who_trains(
    site: Site, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the moment of its answer would tell when training ended."""
    begun, over, train = threading.Event(), threading.Event(), site.work

    def work(*asked: Any) -> Round:
        begun.set()
        assert over.wait(30)
        return train(*asked)

    monkeypatch.setattr(site, "work", work)
    desk, task = site.desk(), coordinator.task(site)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(desk.answer, task)
        assert begun.wait(30)
        for body, code in (
            (task[:30], "malformed"),
            (coordinator.task(site, site="south"), "wrong_site"),
            (coordinator.task(site), "task_conflict"),
        ):
            answer, leaves_at_s = desk.answer(body)
            assert (code_of(answer), leaves_at_s) == (code, 0)
        again = threads.submit(desk.answer, task)
        over.set()
        assert first.result() == again.result(), "the same bytes at the same time"


def test_a_probe_with_the_next_rounds_task_does_not_learn_when_training_ends(
    site: Site, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record names a reply that this site never gave: said at a slot, whether or not there is one yet;
    and a second task for the round that trains is refused in the same way before its end and after it."""
    begun, over, train = threading.Event(), threading.Event(), site.work

    def work(*asked: Any) -> Round:
        begun.set()
        assert over.wait(30)
        return train(*asked)

    monkeypatch.setattr(site, "work", work)
    desk, task = site.desk(), coordinator.task(site)
    record = coordinator.record(site, number=1, reply=b"no reply of this site")
    probe = coordinator.task(site, number=2, record=record)
    other = coordinator.task(site)
    seen: list[str] = []
    for name in ("is_standing", "refuse_old"):
        real = getattr(site.ledger, name)

        def watched(*asked: Any, real: Any = real, name: str = name, **more: Any) -> Any:
            seen.append(name)
            return real(*asked, **more)

        monkeypatch.setattr(site.ledger, name, watched)

    def refused() -> list[str]:
        seen.clear()
        body, leaves_at_s = desk.answer(other)
        assert (code_of(body), leaves_at_s) == ("task_conflict", 0)
        return list(seen)

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(desk.answer, task)
        assert begun.wait(30)
        before = refused()
        during = threads.submit(desk.answer, probe)
        while len(seen) < 2:
            time.sleep(0.01)
        over.set()
        assert code_of(first.result()[0]) == "ok"
        early, leaves_early_s = during.result()
    late, leaves_late_s = desk.answer(probe)
    assert code_of(early) == code_of(late) == "reply_missing"
    assert leaves_early_s > site.now_s
    assert leaves_late_s > site.now_s
    assert refused() == before == ["refuse_old"]
    assert site.trained == [1]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, np.float32(1e38), -1e-40])
def test_what_cannot_leave_as_it_is_takes_its_round_with_it(
    site: Site, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """A number that is none is held back; one that is too large leaves shrunk: either is the one result."""

    def work(approved: Approved, weights: Mapping[str, Any], number: int) -> Round:
        site.trained.append(number)
        update = {name: np.full(w.shape, value, dtype=np.float32) for name, w in weights.items()}
        return Round(update=update, protected=True, faults=())

    monkeypatch.setattr(site, "work", work)
    task = coordinator.task(site)
    first, leaves_at_s = site.desk().answer(task)
    assert code_of(first) == ("ok" if np.isfinite(value) else "unavailable")
    assert leaves_at_s == site.now_s + 1
    assert site.desk().answer(task) == (first, leaves_at_s)
    assert site.trained == [1]
    if np.isfinite(value):
        _, tensors = unframe(first, cap_bytes=10**6)
        units = unpack_tensors(tensors, schema=site.study.schema_terms, dtype="int32")
        limit = norm_limit_units(site.study, declared_patients=site.home.declared_patients)
        assert sum(int(x) ** 2 for tensor in units.values() for x in tensor) <= limit**2


def test_whatever_stops_the_door_is_the_rounds_one_result(
    site: Site, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is no refusal of ours: training ended, and nobody trains again for the same charge."""

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("canary")

    task = coordinator.task(site)
    with monkeypatch.context() as patch:
        patch.setattr(door, "check_tensors", broken)
        first, leaves_at_s = site.desk().answer(task)
    assert code_of(first) == "unavailable"
    assert site.desk().answer(task) == (first, leaves_at_s)
    assert site.trained == [1]


def test_the_bytes_of_a_study_are_counted_over_a_restart(
    site: Site, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the ledger's rows; where no whole reply would fit any more, nobody is charged."""
    first, _ = site.desk().answer(coordinator.task(site))
    site.ledger.close()
    with Ledger.open(site.home) as ledger:
        site.ledger = ledger
        assert ledger.sent_bytes(site.study.hash) == len(first)
        record = coordinator.record(site, number=1, reply=first)
        task = coordinator.task(site, number=2, record=record)
        room = len(first) + reply_bytes(site.study.schema_terms)
        with monkeypatch.context() as patch:
            patch.setattr(door, "study_cap_bytes", lambda study: room - 1)
            assert code_of(site.desk().answer(task)[0]) == "too_large"
            assert site.trained == [1]
            assert ledger.charged_in(site.study.hash, round=2) == []
            patch.setattr(door, "study_cap_bytes", lambda study: room)
            assert code_of(site.desk().answer(task)[0]) == "ok"
