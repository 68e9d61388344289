"""A hospital at work that its coordinator revokes: real SuperLink, courier and trainer, and what is said."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from cohort_builder import write_cohort
from site_builder import Coordinator, a_home, joined

from oncofed_client.courier.enrolled import ASK_AGAIN_S, is_unknown
from oncofed_client.courier.node import HEARD_FILE
from oncofed_common.processes import load_marks
from oncofed_server import superlink

PATIENCE_S = 180.0  # a trainer loads torch on a machine that may be busy


def until(there: Callable[[], bool], *, within_s: float = PATIENCE_S) -> None:
    ends_s = time.monotonic() + within_s
    while not there():
        assert time.monotonic() < ends_s
        time.sleep(0.2)


def kill_courier(home: Path) -> None:
    """With no leave taken; what it had heard is forgotten."""
    (found,) = (one for one in load_marks(home / "processes.json") if one.name == "courier")
    os.killpg(found.pid, signal.SIGKILL)
    (home / "courier" / HEARD_FILE).unlink()


def seen_until(coordinator: Path, moment_s: float) -> None:
    """Let SuperLink take its nodes for connected until then."""
    with closing(sqlite3.connect(coordinator / "superlink.sqlite", timeout=60)) as known, known:
        assert known.execute("UPDATE node SET online_until = ?", [moment_s]).rowcount == 1


@pytest.mark.slow
def test_a_revoked_site_is_told_so_once_and_one_that_comes_too_early_is_not(tmp_path: Path) -> None:
    """Not enrolled, it is told; let in; killed, its successor is refused in Flower's same words, and told
    nothing; revoked at work, it is told again."""
    coordinator = tmp_path / "coordinator"
    coordinator.mkdir()
    superlink.prepare(coordinator, names=["localhost"], now=dt.datetime.now(dt.UTC))
    running = superlink.start(
        home=coordinator, host="127.0.0.1", port=None, within_s=PATIENCE_S,
        environment=superlink.link_environment(coordinator),
    )  # fmt: skip
    home = joined(a_home(tmp_path), Coordinator())
    pem = running.link.ca_path.read_text()
    (home.courier / "ca.pem").write_text(pem)
    answer = json.loads((home.root / "answer.json").read_text())
    answer |= {"ca_pem": pem, "address": f"localhost:{running.link.port}"}
    (home.root / "answer.json").write_text(json.dumps(answer))
    node_key = json.loads((home.root / "enrolment.json").read_text())["request"]["node_key"]
    (tmp_path / "identities.tsv").write_text("participant_id\thospital_number\nsub-001\t1\n")
    cohort, screen = write_cohort(tmp_path / "cohort", patients=1), tmp_path / "screen"
    argv = [
        sys.executable,
        "-m",
        "oncofed_client",
        "start",
        "--home",
        str(home.root),
        "--poll-s",
        "1",
    ]
    argv += ["--cohort", str(cohort), "--identities", str(tmp_path / "identities.tsv")]
    log = home.courier / "process.log"

    def heard() -> bool:
        """Whether the coordinator answered the node that runs."""
        return (home.courier / HEARD_FILE).exists()

    def times(words: str) -> int:
        return " ".join(screen.read_text().split()).count(words)

    try:
        with screen.open("wb") as out, subprocess.Popen(argv, stdout=out, stderr=out) as site:
            try:
                until(lambda: times("coordinator does not know") == 1)
                superlink.sync_nodes(running.link, {"north": node_key})
                until(heard, within_s=ASK_AGAIN_S + PATIENCE_S)
                until(lambda: times("knows this site's node key now") == 1)
                assert not is_unknown(home.courier)

                kill_courier(home.root)
                seen_until(
                    coordinator, time.time() + 600
                )  # else a slow successor is let in at once
                until(lambda: "[code: 2004]" in log.read_text(errors="replace"))
                seen_until(coordinator, 0.0)
                until(heard)
                refused = log.read_text(errors="replace")
                assert "Exit Code: 305" in refused
                assert (times("does not know"), refused.count("not_enrolled: ")) == (1, 1)

                superlink.sync_nodes(running.link, {})
                until(lambda: times("does not know") == 2)
                started = times("courier started")
                time.sleep(15)  # three times what it takes where a courier is started again
                assert (times("does not know"), times("courier started")) == (2, started)
                assert log.read_text(errors="replace").count("not_enrolled: ") == 2
            finally:
                site.terminate()
                site.wait(timeout=30)
    finally:
        running.stop(grace_s=0.0)
