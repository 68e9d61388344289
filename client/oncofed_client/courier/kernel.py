"""The few system calls that Python does not offer: namespaces, mounts, capabilities, Landlock.

Only thin, checked wrappers live here; what they are used for is said in ``jail.py``. Numbers are the
kernel's own (``linux/landlock.h``, ``linux/mount.h``, ``linux/prctl.h``, ``linux/sched.h``).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
from collections.abc import Iterable
from enum import IntFlag
from pathlib import Path

from oncofed_common.errors import SystemRefusal

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000

_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MNT_DETACH, _AT_FDCWD, _AT_RECURSIVE = 2, -100, 0x8000
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAP_VERSION_3 = 0x20080522
_LANDLOCK_ABI_QUERY, _LANDLOCK_PATH_BENEATH = 1, 1
_SYS_CLOSE_RANGE, _SYS_MOUNT_SETATTR = 436, 442
_SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 444, 445, 446
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


class MountFlag(IntFlag):
    """Attributes of one mount, for ``mount_setattr``."""

    READ_ONLY = 1
    NO_SETUID = 2
    NO_DEVICES = 4
    NO_EXEC = 8


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


class _MountAttributes(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def enter_namespaces(flags: int, *, inner_id: int) -> None:
    """Leave for new namespaces, in which this user and group are called ``inner_id``.

    Supplementary groups are given up where the kernel lets us (as root). Must run with one thread.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        os.setgroups([])
    _check(_libc.unshare(ctypes.c_int(flags)), "new namespaces")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{inner_id} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{inner_id} {gid} 1")


def make_mounts_private() -> None:
    """Keep every mount made from here on inside this mount namespace."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)


def mount_tmpfs(target: Path) -> None:
    """Cover ``target`` with an empty file system of 1 MiB at most."""
    _mount("tmpfs", str(target), "tmpfs", 0, "size=1m,mode=0755")


def bind(source: Path, target: Path, flags: MountFlag) -> None:
    """Show ``source``, with whatever is mounted below it, at ``target``, with ``flags`` added."""
    _mount(str(source), str(target), None, _MS_BIND | _MS_REC)
    set_mount_flags(target, flags, recursive=True)


def set_mount_flags(target: Path, flags: MountFlag, *, recursive: bool) -> None:
    """Add ``flags`` to the mount at ``target``."""
    attributes = _MountAttributes(attr_set=int(flags))
    _check(
        _libc.syscall(
            ctypes.c_long(_SYS_MOUNT_SETATTR),
            ctypes.c_int(_AT_FDCWD),
            os.fsencode(target),
            ctypes.c_uint(_AT_RECURSIVE if recursive else 0),
            ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
        ),
        "mount attributes",
    )


def pivot_root(new_root: Path, old_root: Path) -> None:
    """Make ``new_root`` the root directory; the old one appears at ``old_root`` below it."""
    number = _SYS_PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise _refused("pivot_root", "an unknown processor type")
    _check(
        _libc.syscall(ctypes.c_long(number), os.fsencode(new_root), os.fsencode(old_root)),
        "a new root directory",
    )
    os.chdir("/")


def detach(target: Path) -> None:
    """Unmount ``target`` and everything below it, also where something is still open."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(_MNT_DETACH)), "leaving the old root")


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send ``signal_number`` to this process when its parent thread dies."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal_number), 0, 0, 0), "parent's death")


def drop_privileges() -> None:
    """Give up every capability, and the right to gain any through a program that is executed."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) != 0:
            if ctypes.get_errno() in (errno.EINVAL, errno.EPERM):
                break  # beyond the last capability; or no right to drop, then none to gain either
            raise _refused("dropping capabilities", errno.errorcode[ctypes.get_errno()])
    _libc.prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_CLEAR_ALL), 0, 0, 0)
    header, nothing = _CapHeader(_CAP_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    _check(_libc.capset(ctypes.byref(header), nothing), "dropping capabilities")
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0), "no new privileges")


def close_inherited_files() -> None:
    """Mark every open file beyond standard input, output and error to close at ``execve``."""
    close_on_exec = 4
    _check(
        _libc.syscall(
            ctypes.c_long(_SYS_CLOSE_RANGE),
            ctypes.c_uint(3),
            ctypes.c_uint(0xFFFFFFFF),
            ctypes.c_uint(close_on_exec),
        ),
        "closing inherited files",
    )


def landlock_abi() -> int:
    """The version of Landlock that the kernel speaks; 0 where there is none."""
    version = _libc.syscall(
        ctypes.c_long(_SYS_LANDLOCK_CREATE),
        None,
        ctypes.c_size_t(0),
        ctypes.c_uint32(_LANDLOCK_ABI_QUERY),
    )
    return max(int(version), 0)


def restrict(grants: Iterable[tuple[Path, Access]]) -> None:
    """Refuse this process and its children every file access but ``grants``, for good.

    Where the kernel can (ABI 6), signals and abstract sockets stay inside too. A path that does not
    exist grants nothing. Needs ``drop_privileges`` before it.
    """
    abi = landlock_abi()
    if abi == 0:
        raise _refused("Landlock", "a kernel without it")
    handled = _handled(abi)
    ruleset = _Ruleset(handled_access_fs=int(handled), handled_access_net=0, scoped=0)
    size = 8 if abi < 4 else 16
    if abi >= 6:
        ruleset.scoped = _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS
        size = ctypes.sizeof(ruleset)
    rules = _check(
        _libc.syscall(
            ctypes.c_long(_SYS_LANDLOCK_CREATE),
            ctypes.byref(ruleset),
            ctypes.c_size_t(size),
            ctypes.c_uint32(0),
        ),
        "a Landlock ruleset",
    )
    for path, access in grants:
        _grant(rules, path, access & handled)
    _check(
        _libc.syscall(
            ctypes.c_long(_SYS_LANDLOCK_RESTRICT), ctypes.c_int(rules), ctypes.c_uint32(0)
        ),
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
        _check(
            _libc.syscall(
                ctypes.c_long(_SYS_LANDLOCK_ADD),
                ctypes.c_int(rules),
                ctypes.c_int(_LANDLOCK_PATH_BENEATH),
                ctypes.byref(rule),
                ctypes.c_uint32(0),
            ),
            "a Landlock rule",
        )
    finally:
        os.close(descriptor)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str = ""
) -> None:
    _check(
        _libc.mount(
            os.fsencode(source) if source else None,
            os.fsencode(target),
            kind.encode() if kind else None,
            ctypes.c_ulong(flags),
            options.encode(),
        ),
        "a mount",
    )


def _check(result: int, what: str) -> int:
    if result < 0:
        raise _refused(what, errno.errorcode.get(ctypes.get_errno(), "an error"))
    return result


def _refused(what: str, reason: str) -> SystemRefusal:
    return SystemRefusal(
        f"the kernel answered {reason} to {what}",
        allowed="a kernel and a container runtime that let a process confine itself",
        next="allow user namespaces or Landlock on this machine, or give the courier a container",
        code="jail",
    )
