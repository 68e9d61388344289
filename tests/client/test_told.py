"""What a hospital sees on its screen: each thing once, and nothing that stops the work."""

import json
import os
import time
from types import SimpleNamespace

import pytest

from oncofed_client.courier.node import HEARD_FILE, NOT_ENROLLED_FILE
from oncofed_client.told import SILENT_S, Told


@pytest.fixture
def site(tmp_path):
    """A home's two folders, what was said, and how the trainer logs."""
    trainer, courier = tmp_path / "trainer", tmp_path / "courier"
    trainer.mkdir()
    courier.mkdir()
    log, said = trainer / "log.jsonl", []

    def logs(event, *, study="a" * 16, number=1, **more):
        row = {"event": event, "site": "north", "study": study, "run": "0" * 32, "round": number}
        with log.open("a") as file:
            file.write(json.dumps(row | more) + "\n")

    return SimpleNamespace(trainer=trainer, courier=courier, log=log, logs=logs, said=said)


def told(site):
    return Told(trainer=site.trainer, courier=site.courier, on_event=site.said.append)


def test_what_becomes_of_tasks_is_said_once_for_each_study_until_it_changes(site):
    site.logs("refused", code="expired")  # of an earlier start
    screen = told(site)
    for _ in range(3):
        site.logs("refused", code="not_approved")
        screen.look()
    site.logs("refused", study="b" * 16, code="budget")
    site.logs("accepted")
    site.logs("repeated")
    site.logs("answered")
    screen.look()
    screen.look()
    study = f"study {'a' * 16}"
    assert site.said == [
        f"refused a task of {study}: not_approved; look at the study, then run oncofed-site approve",
        f"refused a task of study {'b' * 16}: budget; oncofed-site budget says what is left",
        f"round 1 of {study}: at work",
        f"round 1 of {study}: answered",
    ]


def test_a_line_that_is_still_being_written_is_read_when_it_is_whole(site):
    screen = told(site)
    site.logs("accepted")
    whole = site.log.read_bytes()
    for end in range(len(whole)):
        site.log.write_bytes(whole[:end])
        screen.look()
    assert site.said == []
    site.log.write_bytes(whole)
    screen.look()
    assert len(site.said) == 1


def test_a_log_that_begins_anew_is_read_from_its_beginning(site):
    for _ in range(3):
        site.logs("repeated")
    screen = told(site)
    site.log.rename(site.log.with_name("log.jsonl.1"))
    screen.look()
    site.logs("accepted")
    screen.look()
    assert len(site.said) == 1


def test_a_damaged_line_or_one_without_a_study_ends_nothing(site):
    screen = told(site)
    with site.log.open("ab") as file:
        file.write(b'{"event": "acc\n\xff\xfe\n{"event": "refused", "code": "malformed"}\n[]\n')
        file.write(
            b'{"event":["x"],"study":"s","round":1}\n{"event":"accepted","study":["s"],"round":1}\n'
        )
        file.write(b"[" * 200_000 + b"\n")
    site.logs("answered")
    screen.look()
    assert site.said[-1] == f"round 1 of study {'a' * 16}: answered"


def test_a_coordinator_that_answers_is_said_once_for_each_courier(site):
    heard = site.courier / HEARD_FILE
    heard.touch()
    os.utime(heard, (1.0, 1.0))  # an earlier courier's
    screen = told(site)
    screen.courier_started()
    screen.look()
    assert site.said == ["courier started"]
    for _ in range(2):
        os.utime(heard, (time.time() + 1, time.time() + 1))
        screen.look()
    assert site.said[1:] == ["connected: the coordinator answers"]


def test_a_coordinator_that_is_gone_for_a_while_is_said_once_and_that_it_is_back(site):
    heard, begun_s = site.courier / HEARD_FILE, time.time()
    screen = told(site)
    screen.courier_started()

    def answered(at_s):
        heard.touch()
        os.utime(heard, (at_s, at_s))
        screen.look()
        screen.look()

    answered(begun_s + 1)
    answered(begun_s - SILENT_S + 5)  # not yet for long
    assert len(site.said) == 2
    answered(begun_s - SILENT_S - 1)
    answered(time.time() + 1)
    assert site.said[1:] == [
        "connected: the coordinator answers",
        "the coordinator does not answer; the courier asks until it does",
        "connected: the coordinator answers",
    ]


def test_a_site_that_is_not_known_is_told_so_and_when_it_is(site):
    screen = told(site)
    mark = site.courier / NOT_ENROLLED_FILE
    screen.look()
    assert site.said == []
    mark.touch()
    screen.look()
    screen.look()
    mark.unlink()
    screen.look()
    screen.look()
    assert [line.split(";")[0] for line in site.said] == [
        "a node key that the coordinator does not know: this site was revoked, or is not enrolled yet",
        "the coordinator knows this site's node key now",
    ]
