"""Landlock: what a process denies itself and its children, for good, without being root.

Rights are refused everywhere unless a rule grants them beneath a path. What the kernel at hand does not
know yet is left out; ``landlock_abi`` says how much it knows (``linux/landlock.h``).
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from enum import IntFlag
from pathlib import Path

from oncofed_client.courier.kernel import check, libc, refused

_ABI_QUERY, _PATH_BENEATH = 1, 1
_SYS_CREATE, _SYS_ADD, _SYS_RESTRICT = 444, 445, 446


class Access(IntFlag):
    """Landlock's rights on files; each is refused everywhere unless a rule grants it."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


_FILE_ONLY = (
    Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
)
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 3


class _Ruleset(ctypes.Structure):
    _fields_ = [
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    ]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def landlock_abi() -> int:
    """The version of Landlock that the kernel speaks; 0 where there is none."""
    version = libc.syscall(
        ctypes.c_long(_SYS_CREATE),
        None,
        ctypes.c_size_t(0),
        ctypes.c_uint32(_ABI_QUERY),
    )
    return max(int(version), 0)


def restrict(grants: Iterable[tuple[Path, Access]]) -> None:
    """Refuse this process and its children every file access but ``grants``, for good.

    Where the kernel can (ABI 6), signals and abstract sockets stay inside too. A path that does not
    exist grants nothing. Needs ``drop_privileges`` before it.
    """
    abi = landlock_abi()
    if abi == 0:
        raise refused("Landlock", "a kernel without it")
    handled = _handled(abi)
    ruleset = _Ruleset(handled_access_fs=int(handled), handled_access_net=0, scoped=0)
    size = 8 if abi < 4 else 16
    if abi >= 6:
        ruleset.scoped = _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS
        size = ctypes.sizeof(ruleset)
    rules = check(
        libc.syscall(
            ctypes.c_long(_SYS_CREATE),
            ctypes.byref(ruleset),
            ctypes.c_size_t(size),
            ctypes.c_uint32(0),
        ),
        "a Landlock ruleset",
    )
    for path, access in grants:
        _grant(rules, path, access & handled)
    check(
        libc.syscall(ctypes.c_long(_SYS_RESTRICT), ctypes.c_int(rules), ctypes.c_uint32(0)),
        "Landlock",
    )
    os.close(rules)


def _handled(abi: int) -> Access:
    rights = [access for access in Access if access <= Access.MAKE_SYM]
    for since, access in ((2, Access.REFER), (3, Access.TRUNCATE), (5, Access.IOCTL_DEV)):
        if abi >= since:
            rights.append(access)
    handled = Access(0)
    for access in rights:
        handled |= access
    return handled


def _grant(rules: int, path: Path, access: Access) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            access &= _FILE_ONLY
        rule = _PathBeneath(allowed_access=int(access), parent_fd=descriptor)
        check(
            libc.syscall(
                ctypes.c_long(_SYS_ADD),
                ctypes.c_int(rules),
                ctypes.c_int(_PATH_BENEATH),
                ctypes.byref(rule),
                ctypes.c_uint32(0),
            ),
            "a Landlock rule",
        )
    finally:
        os.close(descriptor)
