"""The few system calls that Python does not offer: namespaces, mounts, capabilities.

Only thin, checked wrappers live here; what they are used for is said in ``jail.py``. Numbers are the
kernel's own (``linux/mount.h``, ``linux/prctl.h``, ``linux/sched.h``).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
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
_SYS_CLOSE_RANGE, _SYS_MOUNT_SETATTR = 436, 442
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

libc = ctypes.CDLL(None, use_errno=True)


class MountFlag(IntFlag):
    """Attributes of one mount, for ``mount_setattr``."""

    READ_ONLY = 1
    NO_SETUID = 2
    NO_DEVICES = 4
    NO_EXEC = 8


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
    check(libc.unshare(ctypes.c_int(flags)), "new namespaces")
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
    check(
        libc.syscall(
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
        raise refused("pivot_root", "an unknown processor type")
    check(
        libc.syscall(ctypes.c_long(number), os.fsencode(new_root), os.fsencode(old_root)),
        "a new root directory",
    )
    os.chdir("/")


def detach(target: Path) -> None:
    """Unmount ``target`` and everything below it, also where something is still open."""
    check(libc.umount2(os.fsencode(target), ctypes.c_int(_MNT_DETACH)), "leaving the old root")


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send ``signal_number`` to this process when its parent thread dies."""
    check(libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal_number), 0, 0, 0), "parent's death")


def drop_privileges() -> None:
    """Give up every capability, and the right to gain any through a program that is executed."""
    for capability in range(64):
        if libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) != 0:
            if ctypes.get_errno() in (errno.EINVAL, errno.EPERM):
                break  # beyond the last capability; or no right to drop, then none to gain either
            raise refused("dropping capabilities", errno.errorcode[ctypes.get_errno()])
    libc.prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_CLEAR_ALL), 0, 0, 0)
    header, nothing = _CapHeader(_CAP_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    check(libc.capset(ctypes.byref(header), nothing), "dropping capabilities")
    check(libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0), "no new privileges")


def close_inherited_files() -> None:
    """Mark every open file beyond standard input, output and error to close at ``execve``."""
    close_on_exec = 4
    check(
        libc.syscall(
            ctypes.c_long(_SYS_CLOSE_RANGE),
            ctypes.c_uint(3),
            ctypes.c_uint(0xFFFFFFFF),
            ctypes.c_uint(close_on_exec),
        ),
        "closing inherited files",
    )


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str = ""
) -> None:
    check(
        libc.mount(
            os.fsencode(source) if source else None,
            os.fsencode(target),
            kind.encode() if kind else None,
            ctypes.c_ulong(flags),
            options.encode(),
        ),
        "a mount",
    )


def check(result: int, what: str) -> int:
    """``result``, unless it says that the kernel refused: then a SystemRefusal."""
    if result < 0:
        raise refused(what, errno.errorcode.get(ctypes.get_errno(), "an error"))
    return result


def refused(what: str, reason: str) -> SystemRefusal:
    """What to raise where the kernel does not let the courier be confined."""
    return SystemRefusal(
        f"the kernel answered {reason} to {what}",
        allowed="a kernel and a container runtime that let a process confine itself",
        next="allow user namespaces or Landlock on this machine, or give the courier a container",
        code="jail",
    )
