"""How bytes reach the disk so that they are whole after a crash: never half a file, never half a folder.

A file is written beside its place, synced, renamed over it, and its folder synced (POSIX rename is
atomic). A folder is filled beside its place and renamed as a whole. Locks are ``flock``: the kernel
releases them when a process dies, however it dies.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oncofed_common.errors import OncofedError, SystemRefusal
from oncofed_common.places import place_refusal

HEADROOM_BYTES = 16 * 2**20
"""What stays free for logs, locks and other programs."""
_TRIES, _TRY_AGAIN_S = 5, 0.01


def write_atomic(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Put ``data`` at ``path``: afterwards either the old bytes are there, or all of the new ones.

    Args:
        mode: permissions, whatever the umask is; None for those of any new file of this account.

    Raises:
        SystemRefusal: codes ``disk_full``, ``disk``; nothing changed.
    """
    # A name that nobody can guess, made by us: a draft in a shared folder is not a link to elsewhere.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        handle = os.open(
            draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600
        )
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if mode is not None:
                os.fchmod(handle, mode)
            file.flush()
            os.fsync(handle)
        draft.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        _discard(draft)
        if isinstance(error, OSError):
            raise disk_refusal(error) from None
        raise


def write_again(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, durably once the folder is synced: for what is written again after a crash.

    Raises:
        OSError: the disk; the file may be cut short.
    """
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_private(path: Path, data: bytes) -> None:
    """Replace a file at once and durably, mode 0600.

    In a folder whose group inherits (set-group-id) the group may read it too: that is how the courier,
    as a user of its own, gets its files.

    Raises:
        SystemRefusal: codes ``disk_full``, ``disk``; nothing changed.
    """
    shared = path.parent.stat().st_mode & stat.S_ISGID
    write_atomic(path, data, mode=0o640 if shared else 0o600)


def discard_drafts(path: Path) -> None:
    """Throw away what processes that died in ``write_atomic(path)`` have left; for its only writer.

    Raises:
        SystemRefusal: the disk.
    """
    try:
        for draft in path.parent.glob(f".{path.name}.*.tmp"):
            draft.unlink()
    except OSError as error:
        raise disk_refusal(error) from None


def discard_drafts_below(folder: Path) -> None:
    """The same for every file and folder of a tree that nobody else writes.

    Raises:
        SystemRefusal: the disk.
    """
    try:
        for draft in list(folder.rglob(".*.tmp")):
            if draft.is_dir() and not draft.is_symlink():
                shutil.rmtree(draft)
            else:
                draft.unlink(missing_ok=True)
    except OSError as error:
        raise disk_refusal(error) from None


def append_line(file_descriptor: int, line: bytes, *, sync: bool) -> None:
    """Add one line to an open file; with ``sync`` it and all lines before it are durable then.

    Raises:
        SystemRefusal: codes ``disk_full``, ``disk``.
    """
    try:
        written = os.write(file_descriptor, line)
        if written != len(line):
            raise OSError(errno.ENOSPC, "short write")
        if sync:
            os.fsync(file_descriptor)
    except OSError as error:
        raise disk_refusal(error) from None


@contextmanager
def new_folder(path: Path, *, mode: int = 0o755) -> Iterator[Path]:
    """A folder to fill, which appears at ``path`` as a whole when the block ends without an error.

    Everything in it is synced before that: plain writes will do inside the block. ``path`` may exist
    if it is an empty folder.

    Raises:
        SystemRefusal: codes ``disk_full``, ``disk``; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        make_folder(path.parent)
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(mode=mode)
        yield temporary
        sync_all(temporary)
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_refusal(error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_used(out: Path) -> bool:
    """Whether there is something already where an output should come: anything but an empty folder."""
    return os.path.lexists(out) and (not out.is_dir() or any(out.iterdir()))


def refuse_used(out: Path) -> None:
    """Nothing, for a folder that is not there yet, or is empty.

    Raises:
        SystemRefusal: code ``out_exists``.
    """
    if is_used(out):
        raise SystemRefusal(
            "an output that is there already",
            allowed="a new or empty folder",
            next="name another folder, or remove this one",
            code="out_exists",
        )


def make_folder(path: Path, *, mode: int = 0o777) -> None:
    """See to it that a folder is there, durably and with every folder that it lies in; a new one has ``mode``
    less the umask.

    Raises:
        SystemRefusal: the disk.
    """
    try:
        if not path.is_dir():
            make_folder(path.parent)
            path.mkdir(mode=mode)
            sync_folder(path.parent)
    except OSError as error:
        raise disk_refusal(error) from None


def sync_folder(path: Path) -> None:
    """Make renames inside ``path`` durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(path: Path) -> None:
    """Make every file and folder inside ``path`` durable."""
    for folder, _, names in os.walk(path):
        for name in names:
            _sync_file(Path(folder, name))
        sync_folder(Path(folder))


def require_room(folder: Path, *, wanted_bytes: int) -> None:
    """Refuse now what would fill the disk later.

    Raises:
        SystemRefusal: code ``disk_full``.
    """
    free = shutil.disk_usage(folder).free
    if free < wanted_bytes + HEADROOM_BYTES:
        raise SystemRefusal(
            f"{free // 2**20} MiB free on the disk",
            allowed=f"at least {(wanted_bytes + HEADROOM_BYTES) // 2**20} MiB for what comes next",
            next="free some space, then go on",
            code="disk_full",
        )


@contextmanager
def locked(path: Path, *, wait: bool, busy: str) -> Iterator[None]:
    """Hold the lock file at ``path``; ``busy`` says in words who else may hold it.

    Raises:
        SystemRefusal: code ``home_in_use``, when another process holds it and ``wait`` is false.
    """
    refusal = SystemRefusal(
        busy,
        allowed="one at a time in one home",
        next="wait until it ends, or stop it first",
        code="home_in_use",
    )
    with _held(_opened(path), wait=wait, refusal=refusal):
        yield


@contextmanager
def locked_folder(folder: Path, *, busy: str) -> Iterator[None]:
    """Hold a folder itself, which is made where there is none: it is written by one process at a time.

    Raises:
        SystemRefusal: code ``output_in_use``, when another process holds it; or the disk.
    """
    refusal = SystemRefusal(
        busy,
        allowed="one at a time in one folder",
        next="wait until it ends, or name another folder",
        code="output_in_use",
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise disk_refusal(error) from None
    with _held(handle, wait=False, refusal=refusal):
        yield


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock at ``path``; any number may look at once."""
    handle = _opened(path)
    try:
        return not _taken(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file; a pipe or a device, whose end may never come, is not read.

    Raises:
        OSError: it cannot be read, or is something else.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "not a regular file")
    return path.read_bytes()


def read_secret(path: Path) -> bytes:
    """The bytes of a regular file, or of what the caller's shell has opened (/dev/stdin, /dev/fd/N).

    A named pipe is not opened: that alone would wait for its writer, perhaps for ever.

    Raises:
        OSError: it cannot be read, or is something else.
    """
    opened = str(path) == "/dev/stdin" or str(path.parent) in ("/dev/fd", "/proc/self/fd")
    return path.read_bytes() if opened else read_regular(path)


def read_object(path: Path, *, what: str) -> dict[str, Any]:
    """The JSON object in ``path``; ``what`` names it in the error.

    Raises:
        SystemRefusal: code ``unreadable``.
    """
    try:
        value = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise SystemRefusal(
            f"{what} that cannot be read",
            allowed="a file with one JSON object",
            next="check the path, then its permissions",
            code="unreadable",
        )
    return value


def refuse_foreign(path: Path, *, keys: set[str], what: str) -> None:
    """Nothing, where nothing stands, or an earlier file of the same kind: a JSON object with ``keys``.

    Raises:
        SystemRefusal: code ``out_exists``; anything else, which is never replaced.
    """
    if not path.is_symlink() and not path.exists():
        return
    try:
        value = None if path.is_symlink() else json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not keys <= set(value):
        raise SystemRefusal(
            f"something else in the place of {what}",
            allowed="a new file, or an earlier one of the same kind",
            next="name another file",
            code="out_exists",
        )


def disk_refusal(error: OSError) -> OncofedError:
    """What a failed write means, without the path in it."""
    known = place_refusal(error)
    if known is not None:
        return known
    name = errno.errorcode.get(error.errno or 0, "unknown")
    return SystemRefusal(
        f"a folder that cannot be written ({name})",
        allowed="a folder that this account may write",
        next="check owner, permissions and mount of the folder",
        code="disk",
    )


@contextmanager
def _held(handle: int, *, wait: bool, refusal: SystemRefusal) -> Iterator[None]:
    try:
        if wait:
            fcntl.flock(handle, fcntl.LOCK_EX)
        elif not _taken_soon(handle):
            raise refusal
        yield
    finally:
        os.close(handle)


def _taken_soon(handle: int) -> bool:
    """Who looks whether a lock is held, holds it for an instant; that is worth a second try."""
    for _ in range(_TRIES):
        if _taken(handle, fcntl.LOCK_EX):
            return True
        time.sleep(_TRY_AGAIN_S)
    return False


def _taken(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise disk_refusal(error) from None


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # a leftover is overwritten by the next write; the first error is the one to report
