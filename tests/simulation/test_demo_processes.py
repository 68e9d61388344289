"""The demo's children: waited for, stopped together, and gone whatever becomes of the demo."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from oncofed_client.courier.jail import courier_command
from oncofed_common.errors import SystemRefusal
from oncofed_common.processes import mark, save_marks
from oncofed_simulation.processes import Supervisor, end_leftovers

HOLD = (
    "import fcntl, sys, time\n"
    "lock = open(sys.argv[1], 'w')\n"
    "fcntl.flock(lock, fcntl.LOCK_EX)\n"
    "open(sys.argv[1] + '.held', 'w').close()\n"
    "time.sleep(600)"
)


def holder(lock):
    """A command that holds ``lock`` for as long as it lives."""
    return [sys.executable, "-c", HOLD, str(lock)]


def lives(lock):
    """Whether some process still holds ``lock``."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def held(lock):
    return Path(f"{lock}.held").exists()


def ends_soon(lock):
    ends_s = time.monotonic() + 10
    while lives(lock) and time.monotonic() < ends_s:
        time.sleep(0.02)
    return not lives(lock)


def start(children, name, argv, folder):
    children.start(
        name, argv, environment=dict(os.environ), log=folder / f"{name}.log", folder=folder
    )


def test_children_are_waited_for_and_all_of_them_stopped(tmp_path):
    locks = [tmp_path / "a", tmp_path / "b"]
    with Supervisor(tmp_path / "record", grace_s=2.0) as children:
        for lock in locks:
            start(children, lock.name, holder(lock), tmp_path)
        children.wait_ready(lambda: all(map(held, locks)), what="both", within_s=20.0)
        assert all(map(lives, locks))
        assert children.ended() == {}
        with pytest.raises(SystemRefusal, match="second process called a"):
            start(children, "a", holder(locks[0]), tmp_path)
    assert not any(map(lives, locks))
    assert not (tmp_path / "record").exists()


def test_a_child_that_ignores_the_request_is_killed(tmp_path):
    lock = tmp_path / "a"
    stubborn = [
        sys.executable,
        "-c",
        "import signal; signal.signal(15, signal.SIG_IGN)\n" + HOLD,
    ]
    with Supervisor(tmp_path / "record", grace_s=0.2) as children:
        start(children, "a", [*stubborn, str(lock)], tmp_path)
        children.wait_ready(lambda: held(lock), what="it", within_s=20.0)
    assert not lives(lock)


def test_a_child_that_ends_is_named_instead_of_waited_for(tmp_path):
    with Supervisor(tmp_path / "record", grace_s=2.0) as children:
        start(children, "trainer-b", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path)
        with pytest.raises(SystemRefusal, match="trainer-b ended with status 3"):
            children.wait_ready(lambda: False, what="all", within_s=20.0)
        start(
            children, "trainer-b", [sys.executable, "-c", "import time; time.sleep(60)"], tmp_path
        )
        with pytest.raises(SystemRefusal, match="all not ready after 0.1 s"):
            children.wait_ready(lambda: False, what="all", within_s=0.1)


def test_after_kill_9_of_the_parent_neither_child_nor_jailed_courier_survives(tmp_path):
    for name in ("home", "run", "cohort"):
        (tmp_path / name).mkdir()
    plain, jailed = tmp_path / "plain", tmp_path / "home" / "jailed"
    command = courier_command(
        holder(jailed), level="namespaces+landlock", home=tmp_path / "home",
        socket_dir=tmp_path / "run", hidden=[tmp_path / "cohort"],
    )  # fmt: skip
    program = (
        "import os, time; from pathlib import Path\n"
        "from oncofed_simulation.processes import Supervisor\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "children = Supervisor(folder / 'record', grace_s=2.0).__enter__()\n"
        f"for name, argv in (('plain', {holder(plain)!r}), ('courier', {command!r})):\n"
        "    children.start(name, argv, environment=dict(os.environ), log=folder / name, folder=folder)\n"
        "time.sleep(600)"
    ).replace("folder / name,", "folder / (name + '.log'),")
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        ends_s = time.monotonic() + 30
        while not (held(plain) and held(jailed)) and time.monotonic() < ends_s:
            time.sleep(0.02)
        assert lives(plain)
        assert lives(jailed)
        parent.kill()
    assert ends_soon(plain)
    assert ends_soon(jailed)
    assert end_leftovers(tmp_path / "record") == 0


def test_the_next_demo_ends_what_a_dead_one_left_and_nobody_else(tmp_path):
    left, strange = tmp_path / "left", tmp_path / "strange"
    with (
        subprocess.Popen(holder(left), start_new_session=True) as leftover,
        subprocess.Popen(holder(strange), start_new_session=True) as stranger,
        closing(_Killing(leftover, stranger)),
    ):
        while not (held(left) and held(strange)):
            time.sleep(0.02)
        known, other = mark("left", leftover.pid), mark("strange", stranger.pid)
        reused = replace(other, started_ticks=other.started_ticks - 1)
        save_marks(tmp_path / "record", [known, reused])
        with Supervisor(tmp_path / "record", grace_s=2.0):
            assert leftover.wait(10) == -signal.SIGKILL
            assert lives(strange)
    assert not (tmp_path / "record").exists()


class _Killing:
    def __init__(self, *processes):
        self._processes = processes

    def close(self):
        for process in self._processes:
            process.kill()


def test_a_record_that_is_missing_or_damaged_ends_nobody(tmp_path):
    assert end_leftovers(tmp_path / "record") == 0
    (tmp_path / "record").write_text("[{]")
    with pytest.raises(SystemRefusal) as caught:
        end_leftovers(tmp_path / "record")
    assert caught.value.code == "bad_marks"
    assert (tmp_path / "record").exists()
