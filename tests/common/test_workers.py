"""Processes that share out work: whole results, one line for a death, nothing for an interrupt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from oncofed_common.errors import SystemRefusal
from oncofed_common.workers import begun, each

PROGRAM = """
import sys, time
from pathlib import Path
from oncofed_common.workers import each

if __name__ == "__mp_main__":
    time.sleep(1)  # as a worker does that loads libraries

def work(job):
    Path(sys.argv[1], "begun").touch()
    time.sleep(60)

if __name__ == "__main__":
    try:
        Path(sys.argv[1], "ready").touch()
        list(each(work, [1, 2, 3], workers=2))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        raise SystemExit(130)
"""


def square(job: int) -> int:
    return job * job


def die(job: int) -> int:
    if job == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_every_job_has_its_result_whatever_the_number_of_processes(workers):
    assert dict(each(square, [3, 1, 2], workers=workers)) == {1: 1, 2: 4, 3: 9}
    assert list(each(square, [], workers=workers)) == []


def process(job: int) -> int:
    time.sleep(60 * (job == 2))
    return os.getpid()


def test_work_goes_on_beside_who_began_it_and_what_is_not_done_is_given_up():
    with begun(process, [0, 1, 2, 3], workers=1) as futures:
        of = {job: future for future, job in futures.items()}
        assert of[0].result() == of[1].result() != os.getpid()
    assert of[3].cancelled() or of[3].exception() is not None
    assert not psutil.pid_exists(of[0].result())


def test_a_process_that_is_killed_is_said_in_words():
    with pytest.raises(SystemRefusal) as caught:
        list(each(die, [0, 1, 2], workers=2))
    assert caught.value.code == "worker_ended"
    assert psutil.Process().children() == [] or all(
        "resource_tracker" in " ".join(child.cmdline()) for child in psutil.Process().children()
    )


@pytest.mark.parametrize("stage", ["ready", "begun"])
def test_an_interrupt_of_a_terminal_is_quiet_also_while_workers_load(tmp_path: Path, stage: str):
    """Ctrl-C reaches every process of the group at once."""
    (tmp_path / "program.py").write_text(PROGRAM)
    argv = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        until = time.monotonic() + 60
        while not (tmp_path / stage).exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(0.5 if stage == "ready" else 0.0)  # the workers load for a second
        family = psutil.Process(process.pid).children(recursive=True)
        for one in family:  # the parent may be slower to notice than they are
            one.send_signal(signal.SIGINT)
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)
        said, complaints = process.communicate(timeout=30)
    assert (process.returncode, said, complaints) == (130, "interrupted\n", "")
    assert not psutil.wait_procs(family, timeout=5)[1]
