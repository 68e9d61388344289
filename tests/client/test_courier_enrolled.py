"""A courier that the coordinator does not know: told from one that comes too early, said once, waiting."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from doctor_lab import HOST, NAMES, a_lab
from doctor_servers import certificate_of, serving, superlink
from hypothesis import example, given
from hypothesis import strategies as st

from oncofed_client.courier import enrolled
from oncofed_client.courier.enrolled import ASK_AGAIN_S, ASK_TWICE_S, is_unknown, put
from oncofed_client.courier.question import KNOWN, NOT_SIGNED, UNKNOWN

NO_ANSWER = 0


def waited(home: Path, answers: list[int]) -> list[float]:
    """How long it slept, answer by answer, until it let the node start."""
    slept: list[float] = []
    left = iter(answers)
    enrolled.wait_until_known(home, asked=lambda: next(left), sleep=slept.append)
    return slept


@example(other=KNOWN)
@example(other=NO_ANSWER)
@example(other=NOT_SIGNED)
@given(other=st.integers(0, 9999).filter(lambda code: code != UNKNOWN))
def test_only_the_answer_that_the_key_is_unknown_holds_a_courier_back(tmp_path_factory, other):
    home = tmp_path_factory.mktemp("courier")
    assert waited(home, [other]) == []
    assert not is_unknown(home)


def test_a_coordinator_that_begins_anew_is_asked_twice_before_it_is_believed(tmp_path, caplog):
    assert waited(tmp_path, [UNKNOWN, KNOWN]) == [ASK_TWICE_S]
    assert caplog.text == ""


def test_a_site_that_is_not_known_is_told_once_asks_seldom_and_is_told_when_it_is_let_in(
    tmp_path, caplog
):
    caplog.set_level(logging.INFO, "oncofed.courier")
    answers = [UNKNOWN, UNKNOWN, UNKNOWN, NO_ANSWER, NOT_SIGNED, UNKNOWN, KNOWN]
    assert waited(tmp_path, answers) == [ASK_TWICE_S] + [ASK_AGAIN_S] * 5
    said = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[0] for line in said] == ["not_enrolled", "enrolled"]
    assert "revoked" in said[0]
    assert str(tmp_path) not in caplog.text
    assert not is_unknown(tmp_path)


@pytest.mark.parametrize(("known", "code"), [(True, KNOWN), (False, UNKNOWN)])
def test_the_question_is_put_over_tls_and_its_code_comes_back(tmp_path, known, code):
    with a_lab(tmp_path) as lab:
        port = lab.coordinator(superlink(known=known))
        (lab.home.courier / "ca.pem").write_bytes((lab.tls / "ca.pem").read_bytes())
        assert put(lab.home.courier, superlink=f"{HOST}:{port}", environment={}) == code


def test_who_cannot_ask_lets_the_node_try(tmp_path):
    """Nobody answers; no key; a proxy that is none: of each the node itself says more."""
    with (
        a_lab(tmp_path) as lab,
        serving(superlink(), host=HOST, tls=certificate_of(lab.tls)) as port,
    ):
        courier = lab.home.courier
        assert put(courier, superlink=f"{HOST}:1", environment={}) == NO_ANSWER
        assert (
            put(
                courier,
                superlink=f"{HOST}:{port}",
                environment={"HTTPS_PROXY": f"http://{NAMES[2]}:x"},
            )
            == 0
        )
        (courier / "node_key").unlink()
        assert put(courier, superlink=f"{HOST}:{port}", environment={}) == NO_ANSWER


def test_a_courier_that_waits_ends_when_it_is_told_to(tmp_path):
    """It is the first process of its jail, which hears no signal that it has no handler for."""
    with a_lab(tmp_path) as lab:
        port = lab.coordinator(superlink(known=False))
        argv = [sys.executable, "-m", "oncofed_client.courier.supernode"]
        argv += ["--home", str(lab.home.courier), "--superlink", f"{HOST}:{port}", "--poll-s", "1"]
        (lab.home.courier / "ca.pem").write_bytes((lab.tls / "ca.pem").read_bytes())
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=os.environ)
        until = time.monotonic() + 60
        while not is_unknown(lab.home.courier):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=10)
        assert process.returncode == 0
        assert said.count("not_enrolled: ") == 1
        assert "Exit Code" not in said  # Flower's node was never begun
