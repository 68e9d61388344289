"""Children end with their parent, and only our own are ever ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oncofed_common.errors import SystemRefusal
from oncofed_common.processes import Mark, end, is_alive, load_marks, mark, save_marks, spawn

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
PARENT = """
import sys, time
from pathlib import Path
from oncofed_common.processes import spawn
with open(sys.argv[1], "wb") as log:
    child = spawn([sys.executable, "-c", "import time; time.sleep(60)"],
                  environment={}, log=log, folder=Path("/"))
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_a_child_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    """Also when the parent had no chance to clean up."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = mark("child", int(parent.stdout.readline()))
    parent.stdout.close()
    assert child is not None
    assert is_alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 5
    while is_alive(child) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_alive(child)


def test_a_process_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    """Asked first, then ended."""
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    with (tmp_path / "log").open("wb") as log:
        process = spawn([sys.executable, "-c", stubborn], environment={}, log=log, folder=tmp_path)
    while not (tmp_path / "log").read_bytes():
        time.sleep(0.01)
    found = mark("stubborn", process.pid)
    assert found is not None
    assert end([found], grace_s=0.1) == [found]
    assert process.wait() == -signal.SIGKILL


def test_a_recycled_id_is_left_alone(tmp_path: Path) -> None:
    """Another process with the same id is not ours."""
    with (tmp_path / "log").open("wb") as log:
        process = spawn(SLEEP, environment={}, log=log, folder=tmp_path)
    found = mark("ours", process.pid)
    assert found is not None
    other = Mark(name="ours", pid=found.pid, started_ticks=found.started_ticks - 1)
    assert end([other], grace_s=0.0) == []
    assert is_alive(found)
    end([found], grace_s=0.0)
    process.wait()


def test_marks_survive_on_disk_and_where_no_file_is_nothing_runs(tmp_path: Path) -> None:
    """A process is known by its mark."""
    ourselves = mark("test", os.getpid())
    assert ourselves is not None
    save_marks(tmp_path / "marks.json", [ourselves])
    assert load_marks(tmp_path / "marks.json") == [ourselves]
    assert load_marks(tmp_path / "missing.json") == []


@pytest.mark.parametrize(
    "text",
    ["", "[", "{}", "null", "3", '[{"pid": 2}]', "[3]", "[" * 100_000]
    + [
        json.dumps([{"name": "trainer", "pid": pid, "started_ticks": ticks}])
        for pid, ticks in (("2", 1), (0, 1), (-1, 1), (True, 1), (2, "1"), (2.5, 1))
    ],
)
def test_a_damaged_list_of_marks_is_not_taken_for_an_empty_one(tmp_path: Path, text: str) -> None:
    """What cannot be read ends nothing, and says so."""
    (tmp_path / "marks.json").write_text(text)
    with pytest.raises(SystemRefusal) as caught:
        load_marks(tmp_path / "marks.json")
    assert caught.value.code == "bad_marks"
