"""A small disk of one's own: a file system in memory, in a process that alone sees it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000
PRIVATE_BELOW = 0x4000 | 0x40000
READ_ONLY_AGAIN = 32 | 1


def on_own_disk(folder: Path, *, size_bytes: int, act: Callable[[], Any]) -> Any:
    """What ``act`` returns in a process in which ``folder`` is a disk of ``size_bytes``."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(
        target=_child, args=(theirs, folder, size_bytes, act)
    )
    child.start()
    theirs.close()
    try:
        done, result = ours.recv()
    except BaseException:  # the clock of the test, while the child hangs
        child.kill()
        raise
    finally:
        child.join()
        ours.close()
    assert done, result
    return result


def fill(file: Path, *, leaving_bytes: int) -> None:
    """Write until the disk under ``file`` has ``leaving_bytes`` left, or a little less."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    state = os.fstatvfs(handle)
    os.posix_fallocate(handle, 0, state.f_bavail * state.f_frsize - leaving_bytes)
    os.close(handle)


def make_read_only(folder: Path) -> None:
    """Mount the disk again, for reading alone; nothing on it may be open for writing."""
    _call(LIBC.mount(None, os.fsencode(folder), None, READ_ONLY_AGAIN, None), "read-only")


def _child(line: Any, folder: Path, size_bytes: int, act: Callable[[], Any]) -> None:
    try:
        _call(LIBC.unshare(NEW_MOUNTS if os.geteuid() == 0 else NEW_MOUNTS | NEW_USER), "unshare")
        _call(LIBC.mount(b"none", b"/", None, PRIVATE_BELOW, None), "private")
        size = f"size={size_bytes}".encode()
        _call(LIBC.mount(b"none", os.fsencode(folder), b"tmpfs", 0, size), "mount")
        line.send((True, act()))
    except BaseException:  # noqa: BLE001  the parent says it
        line.send((False, traceback.format_exc()))


def _call(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), what)
