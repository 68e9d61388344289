"""Processes that we start, and that never outlive us.

A child is told by the kernel to die when its parent does (``PR_SET_PDEATHSIG``), also after ``kill -9``.
A process is known by its id and its start time together, so that a recycled id is never mistaken for
it: what a crashed command left behind can be ended safely by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from oncofed_common.durable import read_regular, write_atomic
from oncofed_common.errors import SystemRefusal

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One process: its id, and its start in clock ticks since boot."""

    name: str
    pid: int
    started_ticks: int


def spawn(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: IO[bytes],
    folder: Path,
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own that is killed when this one ends, however it ends.

    To the kernel the parent is the calling thread: call this from one that lives as long as the child.
    """
    parent = os.getpid()

    def die_with_parent() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the kernel was told
            os._exit(1)

    return subprocess.Popen(
        list(argv),
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=folder,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509  two system calls, nothing that locks
    )


def mark(name: str, pid: int) -> Mark | None:
    """The process with this id, or None if there is none."""
    started = _started_ticks(pid)
    return None if started is None else Mark(name=name, pid=pid, started_ticks=started)


def is_alive(process: Mark) -> bool:
    """Whether this very process still runs (a zombie does not)."""
    return _started_ticks(process.pid) == process.started_ticks


def end(processes: Sequence[Mark], *, grace_s: float) -> list[Mark]:
    """Ask the processes' groups to end, then kill them; returns those that were alive before.

    A process that leads no group of its own is signalled alone.
    """
    alive = [process for process in processes if is_alive(process)]
    if grace_s > 0:
        for process in alive:
            _signal(process, signal.SIGTERM)
        _wait(alive, timeout_s=grace_s)
    for process in alive:
        _signal(process, signal.SIGKILL)
    _wait(alive, timeout_s=5.0)
    return alive


def save_marks(path: Path, processes: Sequence[Mark]) -> None:
    """Write down what runs, at once."""
    write_atomic(path, json.dumps([asdict(process) for process in processes]).encode())


def load_marks(path: Path) -> list[Mark]:
    """What was written down; nothing if there is no file.

    Raises:
        SystemRefusal: code ``bad_marks``; a file that cannot be read, or says something else.
    """
    try:
        return [_read_mark(fields) for fields in _list(json.loads(read_regular(path)))]
    except FileNotFoundError:
        if not path.is_symlink() and not path.exists():
            return []
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    raise SystemRefusal(
        "a list of what runs that cannot be read, so nothing was ended",
        allowed="the file that the running command wrote",
        next="end what still runs by its ids (ps), then remove processes.json",
        code="bad_marks",
    )


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _read_mark(fields: Any) -> Mark:
    found = Mark(**fields)
    if not isinstance(found.name, str) or type(found.pid) is not int or found.pid < 1:
        raise TypeError
    if type(found.started_ticks) is not int:
        raise TypeError
    return found


def _signal(process: Mark, number: signal.Signals) -> None:
    """To the whole group that the process leads, whose members may outlive their leader."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, number)
        elif is_alive(process):
            os.kill(process.pid, number)


def _wait(processes: Sequence[Mark], *, timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while any(is_alive(process) for process in processes) and time.monotonic() < until:
        time.sleep(_POLL_S)


def _started_ticks(pid: int) -> int | None:
    """Field 22 of ``/proc/PID/stat`` (proc(5)); None for a process that is gone or a zombie."""
    try:
        text = Path("/proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in ("Z", "X") else int(fields[18])
