"""``oncofed-coordinator``'s commands about runs: when one begins, how it is watched, ended and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing

import pytest
from honest_sites import HonestSites, enrolled_home, federation, refusing

from oncofed_common.durable import locked
from oncofed_common.errors import OncofedError, SystemRefusal
from oncofed_server import operate, superlink
from oncofed_server.operate import connected_sites, follow, refuse_absent
from oncofed_server.rounds import conduct
from oncofed_server.runlog import RunLog
from oncofed_server.runs import list_runs
from oncofed_server.sites import SystemClock

WEIGHTS = {"north": 3, "south": 5}


def test_a_run_waits_until_every_invited_site_is_connected():
    refuse_absent(("north", "south"), {"north", "south", "west"})
    with pytest.raises(SystemRefusal, match="not connected: south") as found:
        refuse_absent(("north", "south"), {"north"})
    assert found.value.code == "not_connected"


def test_a_home_that_is_not_started_does_not_know_who_is_connected(cli, tmp_path):
    enrolled_home(tmp_path, tuple(WEIGHTS))
    found = cli("status", "--home", tmp_path / "home", "--json")[1]
    assert (found["superlink_up"], found["runs_going_on"]) == (False, 0)
    assert [site["connected"] for site in found["sites"]] == [None, None]


def test_a_run_is_watched_site_by_site(cli, tmp_path):
    fed = federation(tmp_path, WEIGHTS, aggregation={"fewest_sites": 1})
    script = {("south", 2): refusing("budget")}
    fed.conduct(HonestSites(fed.sites, script=script))
    code, found, _ = cli("status", fed.run, "--home", fed.home, "--json")
    assert (code, found["status"], found["rounds_closed"]) == (0, "partial", 3)
    assert found["sites"][1]["left_out"] == {"refused": 1}
    assert "1 × refused" in cli("status", fed.run[:8], "--home", fed.home)[1]
    code, text, _ = cli("status", fed.run, "--home", fed.home, "--watch")
    assert (code, "partial" in text) == (0, True)
    for command in ("resume", "stop"):
        code, found, _ = cli(command, fed.run[:8], "--home", fed.home, "--json")
        assert (code, found["error"]["code"]) == (2, "run_ended")


def test_watching_ends_without_a_complaint_when_somebody_ends_it(tmp_path):
    """By the Ctrl-C of the help; a home without any run would be watched for ever."""
    enrolled_home(tmp_path, tuple(WEIGHTS))
    argv = [sys.executable, "-m", "oncofed_server", "status", "--watch", "--json"]
    argv += ["--home", str(tmp_path / "home")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watching:
        watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=60)
    assert (watching.returncode, said) == (0, b"")


def _started(fed):
    with closing(RunLog.open(fed.folder / "log.jsonl", run=fed.run, watch=None)) as log:
        log.write("run_started", at_s=1)


def test_who_follows_a_run_hears_from_its_lock_that_its_round_loop_died(tmp_path, monkeypatch):
    """Long before Flower says so, which here never does; and is shown the run until then."""
    fed = federation(tmp_path, WEIGHTS)
    _started(fed)
    monkeypatch.setattr(superlink, "run_status", lambda *_: ("running", False))
    link = superlink.Link(home=fed.home, port=1)
    shown = []
    with ExitStack() as works:
        works.enter_context(locked(fed.folder / "run.lock", wait=False, busy=""))

        def show(found):
            shown.append(found["status"])
            works.close()

        with pytest.raises(OncofedError) as gone:
            follow(link, fed.run, 7, on_status=show)
    assert (gone.value.code, shown) == ("interrupted", ["running", "interrupted"])


def test_a_run_goes_on_as_long_as_any_round_loop_works_on_it(tmp_path, monkeypatch):
    """Two handed the same run over: one of the two loops finds it in use and ends, and that is no end."""
    fed = federation(tmp_path, WEIGHTS)
    _started(fed)
    monkeypatch.setattr(superlink, "run_status", lambda *_: ("finished", False))
    shown = []
    with ExitStack() as works:
        works.enter_context(locked(fed.folder / "run.lock", wait=False, busy=""))

        def show(found):
            shown.append(found["status"])
            if len(shown) == 3:
                works.close()

        with pytest.raises(OncofedError) as gone:
            follow(superlink.Link(home=fed.home, port=1), fed.run, 7, on_status=show)
    assert (gone.value.code, shown) == ("interrupted", ["running"] * 3 + ["interrupted"])


def test_who_follows_a_run_hears_of_a_round_loop_that_lived_between_two_looks(
    tmp_path, monkeypatch
):
    fed = federation(tmp_path, WEIGHTS)
    _started(fed)
    monkeypatch.setattr(superlink, "run_status", lambda *_: ("running", False))
    shown = []

    def show(found):
        shown.append(found["status"])
        if len(shown) == 2:
            _started(fed)

    with pytest.raises(OncofedError) as gone:
        follow(superlink.Link(home=fed.home, port=1), fed.run, 7, on_status=show)
    assert (gone.value.code, shown) == ("interrupted", ["interrupted"] * 3)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_log_reads_how_far_a_run_is_and_a_program_reads_nothing_beside_its_object(
    cli, tmp_path, monkeypatch, flags
):
    """No terminal is here; what Flower would start runs to its end at once."""
    fed = federation(tmp_path, WEIGHTS)
    monkeypatch.setattr(operate, "open_link", lambda home: superlink.Link(home=home, port=1))
    monkeypatch.setattr(operate, "launch", lambda *_: bool(fed.conduct()))
    monkeypatch.setattr(superlink, "run_status", lambda *_: ("finished", True))
    code, found, err = cli("resume", fed.run, "--home", fed.home, *flags)
    assert (code, "complete" in str(found)) == (0, True)
    assert err == ("" if flags else "3 of 3 rounds; run ended\n")


@pytest.mark.parametrize("said", ["{}", '{"port": "x"}', '{"port": null}', '{"port": 0}', "[]"])
def test_a_file_of_the_port_that_holds_none_is_a_superlink_that_does_not_run(tmp_path, said):
    enrolled_home(tmp_path, tuple(WEIGHTS))
    (tmp_path / "home/link.json").write_text(said)
    with locked(tmp_path / "home/link.lock", wait=False, busy=""):
        assert connected_sites(tmp_path / "home") is None


def test_a_run_that_nobody_works_on_is_ended_by_stop(cli, tmp_path):
    fed = federation(tmp_path, WEIGHTS, now_s=int(time.time()))

    class Dying(HonestSites):
        def send(self, tasks, *, expires_s):
            if len(self.sent) == 2:
                raise OSError("gone")
            super().send(tasks, expires_s=expires_s)

    with pytest.raises(OSError, match="gone"):
        conduct(fed.home, fed.run, Dying(fed.sites))
    code, found, _ = cli("stop", fed.run, "--home", fed.home, "--json")
    assert (code, found["status"], found["rounds_closed"]) == (0, "partial", 1)
    assert os.path.isdir(found["release"])
    code, verdict, _ = cli(
        "verify", found["release"], "--audit", found["audit"], "--base", fed.base, "--json"
    )
    assert (code, verdict["ok"], verdict["checked"]["sums"]) == (0, True, 1)


def test_a_run_that_failed_exits_1(cli, tmp_path):
    fed = federation(tmp_path, WEIGHTS, now_s=int(time.time()))
    code, found, err = cli("stop", fed.run, "--home", fed.home, "--json")
    assert (code, found["status"]) == (1, "failed")  # nothing was counted
    assert found["error"]["code"] == "run_failed"
    assert "before any round was closed" in err
    assert err.count("\n") == 1


def test_stop_says_so_when_the_round_loop_does_not_end_in_time(cli, tmp_path):
    fed = federation(tmp_path, WEIGHTS)
    with locked(fed.folder / "run.lock", wait=False, busy=""):
        code, printed, _ = cli("stop", fed.run, "--home", fed.home, "--within-s", "0.1", "--json")
    assert (code, printed["error"]["code"]) == (1, "still_running")


def test_a_run_is_conducted_on_the_clock_of_the_machine(tmp_path):
    """The one test here that does not bring a clock of its own."""
    fed = federation(tmp_path, WEIGHTS, training={"rounds": 1}, now_s=int(time.time()))
    started_s = time.monotonic()
    outcome = conduct(fed.home, fed.run, HonestSites(fed.sites))
    assert outcome.status == "complete"
    assert time.monotonic() - started_s < 70
    assert abs(SystemClock().now_s() - time.time()) <= 1


@pytest.fixture
def processes():
    """Processes to start; those that are left are killed, and those that they started die with them."""
    started: list[subprocess.Popen] = []

    def start(*words):
        command = [sys.executable, "-m", "oncofed_server", *(str(word) for word in words)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def until(condition, within_s=60):
    ends_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends_s
        time.sleep(0.1)


@pytest.mark.slow
def test_start_run_stop_and_resume_through_real_flower_processes(tmp_path, processes):
    """No site is online: the run waits, its SuperLink is killed, it is resumed, and stopped."""
    now_s = int(time.time())
    fed = federation(tmp_path, WEIGHTS, aggregation={"round_deadline_s": 600}, now_s=now_s)
    shutil.rmtree(fed.folder)  # run makes its own
    home = fed.home
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    first = processes("start", "--home", home, "--port", port)
    until((home / "link.json").exists)
    second = processes("start", "--home", home, "--port", port)
    assert second.wait(timeout=30) == 2
    early = processes("run", fed.study.hash, "--home", home, "--json")
    assert "not_connected" in early.communicate(timeout=60)[0]
    assert list_runs(home) == []
    run = processes("run", fed.study.hash, "--home", home, "--partial", "--json")
    until(lambda: list_runs(home))
    name = list_runs(home)[0].run
    log = home / "runs" / name / "log.jsonl"
    until(lambda: log.exists() and b"round_opened" in log.read_bytes())
    first.kill()
    said = json.loads(run.communicate(timeout=60)[0])["error"]
    assert run.returncode != 0
    assert f"resume {name}" in said["next"]
    assert [card.run for card in list_runs(home)] == [name]

    refused = processes("resume", name, "--home", home, "--json")
    assert "not_started" in refused.communicate(timeout=30)[0]
    (home / "link.json").unlink()  # what the killed start left
    again = processes("start", "--home", home, "--port", port)
    until((home / "link.json").exists)
    resumed = processes("resume", name, "--home", home, "--json")
    until(lambda: b"run_resumed" in log.read_bytes())
    assert (home / "logs/superlink.log").read_text().count("ControlServicer.StopRun") == 1
    stopped = processes("stop", name, "--home", home, "--json")
    assert json.loads(stopped.communicate(timeout=60)[0])["status"] == "failed"  # nobody counted
    assert stopped.returncode == 1
    assert json.loads(resumed.communicate(timeout=60)[0])["status"] == "failed"
    again.send_signal(signal.SIGTERM)
    assert again.wait(timeout=30) == 0
    assert not (home / "link.json").exists()
