"""How a run lies on disk: whole files or none, a log that binds itself, checkpoints that prove themselves."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from honest_sites import FIRST, NOW_S, HonestSites, federation

from oncofed_common.durable import is_locked, locked, new_folder, write_atomic
from oncofed_common.errors import SystemRefusal
from oncofed_common.identity import canonical
from oncofed_server.checkpoint import State, load_newest, save_checkpoint
from oncofed_server.runlog import RunLog, parse_log
from oncofed_server.runs import describe, request_stop

RUN = "a" * 32
WEIGHTS = {"north": 3, "south": 5}


@pytest.fixture
def fed(tmp_path):
    return federation(tmp_path, WEIGHTS)


def a_log(path, events=("run_started", "round_opened", "round_closed")):
    log = RunLog.open(path, run=RUN, watch=None)
    for number, event in enumerate(events):
        log.write(event, at_s=NOW_S + number, round=number)
    log.close()
    return path.read_bytes()


def test_a_log_goes_on_where_it_ended(tmp_path):
    a_log(tmp_path / "log.jsonl")
    rows = parse_log(a_log(tmp_path / "log.jsonl", ("run_resumed", "run_ended")))
    assert [row.event for row in rows][-2:] == ["run_resumed", "run_ended"]
    assert [row.sequence for row in rows] == list(range(5))


def test_a_line_cut_short_by_a_crash_is_dropped_and_the_chain_goes_on(tmp_path):
    data = a_log(tmp_path / "log.jsonl")
    for cut in (1, 50, len(data.splitlines()[-1])):
        (tmp_path / "log.jsonl").write_bytes(data[:-cut])
        rows = parse_log(a_log(tmp_path / "log.jsonl", ("run_resumed",)))
        assert [row.event for row in rows] == ["run_started", "round_opened", "run_resumed"]


def test_a_log_whose_chain_is_broken_is_refused_by_its_line(tmp_path):
    data = a_log(tmp_path / "log.jsonl")
    lines = data.splitlines(keepends=True)
    row = json.loads(lines[1]) | {"at_s": 5}
    for broken, line in (
        (lines[1:], 1),
        ([lines[0], lines[2]], 2),
        ([lines[0], canonical(row) + b"\n", lines[2]], 3),
        ([lines[0], lines[1].replace(b",", b", ", 1), lines[2]], 2),
        ([*lines, b"rust\n"], 4),
    ):
        with pytest.raises(SystemRefusal, match=f"line {line} "):
            parse_log(b"".join(broken))


def test_a_log_takes_no_words_that_were_not_foreseen(tmp_path):
    log = RunLog.open(tmp_path / "log.jsonl", run=RUN, watch=None)
    for fields in ({"code": "Müller, Anna"}, {"site": "../etc"}, {"code": "x" * 100}):
        with pytest.raises(ValueError, match="validation error"):
            log.write("run_interrupted", at_s=NOW_S, **fields)
    log.close()
    assert (tmp_path / "log.jsonl").read_bytes() == b""


def test_every_row_is_shown_to_whoever_watches(tmp_path):
    seen = []
    log = RunLog.open(tmp_path / "log.jsonl", run=RUN, watch=seen.append)
    log.write("run_started", at_s=NOW_S)
    log.close()
    assert seen == [json.loads((tmp_path / "log.jsonl").read_bytes())]


def states(fed, count):
    folder = fed.folder / "checkpoints"
    for number in range(count):
        state = State(
            round=number,
            weights=FIRST,
            memory={},
            last=None,
            statuses=("complete",) * number,
        )
        save_checkpoint(folder, state, study_hash=fed.study.hash, run=fed.run)
    return folder


def test_the_newest_two_checkpoints_are_kept(fed):
    folder = states(fed, 5)
    assert sorted(path.name for path in folder.iterdir()) == ["0003.ckpt", "0004.ckpt"]
    found = load_newest(folder, study=fed.study, run=fed.run)
    assert (found.state.round, found.skipped) == (4, ())
    assert all((found.state.weights[name] == FIRST[name]).all() for name in FIRST)


@pytest.mark.parametrize("place", [0, 30, 64, 65, 80, 200, -60, -1])
def test_any_changed_byte_of_a_checkpoint_makes_the_one_before_count(fed, place):
    folder = states(fed, 3)
    data = bytearray((folder / "0002.ckpt").read_bytes())
    data[place] ^= 1
    (folder / "0002.ckpt").write_bytes(data)
    found = load_newest(folder, study=fed.study, run=fed.run)
    assert (found.state.round, found.skipped) == (1, (2,))


def test_a_copy_that_somebody_made_of_a_checkpoint_is_none(fed):
    folder = states(fed, 3)
    for name in ("0002-old.ckpt", "0002 (copy).ckpt", "x.ckpt"):
        (folder / name).write_bytes(b"?")
    found = load_newest(folder, study=fed.study, run=fed.run)
    assert (found.state.round, found.skipped) == (2, ())


def test_a_checkpoint_of_another_run_or_study_does_not_count(fed):
    folder = states(fed, 1)
    with pytest.raises(SystemRefusal) as refused:
        load_newest(folder, study=fed.study, run=RUN)
    assert refused.value.code == "no_checkpoint"


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def die_inside():
        with new_folder(tmp_path / "made") as folder:
            (folder / "first").write_bytes(b"1")
            raise KeyError

    with pytest.raises(KeyError):
        die_inside()
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "made") as folder:
        (folder / "first").write_bytes(b"1")
        assert not (tmp_path / "made").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "first"]


def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(tmp_path):
    """A process that may write files of 1 KiB at most stands for a disk without room."""
    script = textwrap.dedent(
        """
        import resource, signal, sys
        from pathlib import Path
        from oncofed_common.errors import SystemRefusal
        from oncofed_common.durable import new_folder, write_atomic
        from oncofed_server.runlog import RunLog
        root = Path(sys.argv[1])
        write_atomic(root / "file", b"old")
        log = RunLog.open(root / "log.jsonl", run="a" * 32, watch=None)
        log.write("run_started", at_s=1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
        codes = []
        def attempt(work):
            try:
                work()
            except SystemRefusal as refusal:
                codes.append(refusal.code)
        def folder():
            with new_folder(root / "folder") as made:
                (made / "big").write_bytes(b"x" * 2000)
        def rows():
            for _ in range(10):
                log.write("run_resumed", at_s=1)
        attempt(lambda: write_atomic(root / "file", b"x" * 2000))
        attempt(folder)
        attempt(rows)
        print(codes)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(["disk_full"] * 3)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "log.jsonl"]
    log = RunLog.open(tmp_path / "log.jsonl", run=RUN, watch=None)  # the torn line is dropped
    log.close()
    assert len(parse_log((tmp_path / "log.jsonl").read_bytes())) > 1


def test_a_lock_dies_with_its_process(tmp_path):
    script = (
        "import sys, pathlib, time\n"
        "from oncofed_common.durable import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), wait=False, busy=''):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    assert is_locked(tmp_path / "lock")
    with pytest.raises(SystemRefusal), locked(tmp_path / "lock", wait=False, busy="another"):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    assert not is_locked(tmp_path / "lock")


def test_any_number_may_look_whether_a_lock_is_held_and_are_in_nobodys_way(tmp_path):
    """Not in each other's, nor in that of one who takes it, although who looks holds it a moment."""
    lock, seen, ended = tmp_path / "lock", [], threading.Event()

    def look():
        while not ended.wait(0.001):
            seen.append(is_locked(lock))

    watchers = [threading.Thread(target=look) for _ in range(3)]
    for watcher in watchers:
        watcher.start()
    try:
        while len(seen) < 2000:
            time.sleep(0.01)
        assert not any(seen)
        for _ in range(1000):
            with locked(lock, wait=False, busy="another"):
                pass
    finally:
        ended.set()
        for watcher in watchers:
            watcher.join()


def test_a_folder_that_cannot_be_written_is_refused_without_its_path(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SystemRefusal) as refused:
        write_atomic(tmp_path / "file" / "inside", b"x")
    assert refused.value.code == "disk"
    assert str(tmp_path) not in str(refused.value)


def test_a_run_is_described_from_its_files_at_every_stage(fed):
    assert describe(fed.home, fed.run)["status"] == "ready"
    seen = []

    class Watched(HonestSites):
        def poll(self):
            seen.append(describe(fed.home, fed.run))
            if len(seen) == 4:
                raise KeyboardInterrupt
            return super().poll()

    with pytest.raises(KeyboardInterrupt):
        fed.conduct(Watched(fed.sites))
    assert {found["status"] for found in seen} == {"running"}
    assert [found["rounds_closed"] for found in seen] == [0, 0, 1, 1]
    assert describe(fed.home, fed.run)["status"] == "interrupted"
    fed.conduct()
    found = describe(fed.home, fed.run)
    assert (found["status"], found["rounds_closed"], found["rounds"]) == ("complete", 3, 3)
    assert found["sites"][0] == {
        "name": "north",
        "declared_patients": 20,
        "rounds_counted": 3,
        "left_out": {},
        "last_code": "ok",
    }
    with pytest.raises(SystemRefusal) as refused:
        request_stop(fed.home, fed.run)
    assert refused.value.code == "run_ended"
