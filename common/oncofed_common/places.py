"""What an error of the operating system means for who typed a command, without the path in it.

Whatever touches a file may meet a name that is too long, a folder that this account may not enter, a
disk without room. Each known ``errno`` (POSIX.1-2017, ``errno.h``) is one refusal here; any other is
not the place's fault.
"""

from __future__ import annotations

import errno

from oncofed_common.errors import SystemRefusal

_PERMITTED = (
    "places that this account may read, and write where the command writes",
    "check owner and permissions of the place and of every folder above it",
)
_NAMES = (
    "names of at most 255 bytes, and paths of at most 4095",
    "name a shorter place",
)
_FOLDERS = (
    "a file where a file is asked for, a folder where a folder is",
    "check each part of the path",
)
_THERE = (  # what the library of temporary files says where none can be made
    "files and folders that are there, and a folder for temporary files with room",
    "check each part of the path, that the home is whole, and that TMPDIR takes files",
)
_ROOM = (
    "room for what has to be kept",
    "free some space, then run the command again; nothing was left half written",
)
_RESOURCES = (
    "a machine and an account with files, processes and memory to spare",
    "end other programs or raise the limits (ulimit), then run the command again",
)
_WRITABLE = (
    "a place on a file system that takes writes",
    "name another place, or mount its file system for writing",
)
_INTACT = (
    "a disk that reads and writes without errors",
    "look at the system's log, and mend or mount the disk again",
)

_MEANINGS: dict[int, tuple[str, str, tuple[str, str]]] = {
    errno.ENAMETOOLONG: ("disk", "a name or a path that is too long", _NAMES),
    errno.EACCES: ("disk", "a place that this account may not use", _PERMITTED),
    errno.EPERM: ("disk", "a place that this account may not use", _PERMITTED),
    errno.EROFS: ("disk", "a file system that is read-only", _WRITABLE),
    errno.ENOSPC: ("disk_full", "a full disk", _ROOM),
    errno.EDQUOT: ("disk_full", "an account whose share of the disk is full", _ROOM),
    errno.EFBIG: ("disk_full", "a file larger than this disk or account takes", _ROOM),
    errno.ENOTDIR: ("disk", "a file in the place of a folder", _FOLDERS),
    errno.EISDIR: ("disk", "a folder in the place of a file", _FOLDERS),
    errno.EEXIST: ("disk", "something that is there already", _FOLDERS),
    errno.ENOTEMPTY: ("disk", "a folder that is not empty", _FOLDERS),
    errno.ENOENT: ("disk", "a file or folder that is not there", _THERE),
    errno.ELOOP: ("disk", "links in a circle", ("links that end at a file or folder", _FOLDERS[1])),
    errno.EBUSY: ("disk", "a place that is in use, or a mount point", _WRITABLE),
    errno.EXDEV: ("disk", "a place that spans two file systems", _WRITABLE),
    errno.EOPNOTSUPP: ("disk", "a file system that cannot do what is needed", _WRITABLE),
    errno.ENODEV: ("disk", "a device that is not there", _INTACT),
    errno.ENXIO: ("disk", "a device that is not there", _INTACT),
    errno.EIO: ("disk", "a disk that reports an error", _INTACT),
    errno.ESTALE: ("disk", "a network disk that has gone", _INTACT),
    errno.EMFILE: ("resources", "too many open files", _RESOURCES),
    errno.ENFILE: ("resources", "too many open files", _RESOURCES),
    errno.EAGAIN: ("resources", "no process that may be added", _RESOURCES),
    errno.ENOMEM: ("resources", "no memory left", _RESOURCES),
}


def place_refusal(error: OSError) -> SystemRefusal | None:
    """The refusal that ``error`` stands for; None where its number says nothing about a place."""
    meaning = _MEANINGS.get(error.errno or 0)
    if meaning is None:
        return None
    code, found, (allowed, what_next) = meaning
    return SystemRefusal(found, allowed=allowed, next=what_next, code=code)


def no_memory() -> SystemRefusal:
    """What a ``MemoryError`` stands for."""
    allowed, what_next = _RESOURCES
    return SystemRefusal("no memory left", allowed=allowed, next=what_next, code="resources")
