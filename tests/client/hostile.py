"""What code in the courier's place would try. Prints, as JSON, what each attempt got (null: nothing).

    python hostile.py TARGETS.json

It uses nothing of ours, so that it says the same inside the jail and out.
"""

import contextlib
import ctypes
import http.client
import json
import os
import signal
import socket
import sys
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE, PTRACE_DETACH = 0x4206, 17
PR_GET_NO_NEW_PRIVS = 39
PIDFD_OPEN, PIDFD_GETFD = 434, 438
NEW_USER_AND_MOUNTS = 0x10020000


def read(path):
    return Path(path).read_text(encoding="latin-1")[:80]


def listing(path):
    return sorted(os.listdir(path))


def overwrite(path):
    Path(path).write_text("mine")
    return "written"


def hard_link(path):
    os.link(path, "stolen")
    return read("stolen")


def device():
    os.mknod("disk", 0o600 | 0o060000, os.makedev(254, 0))
    with open("disk", "rb") as disk:
        return f"{len(disk.read(512))} bytes"


def signalled(pid):
    os.kill(pid, signal.SIGUSR1)
    return "delivered"


def traced(pid):
    if LIBC.ptrace(PTRACE_SEIZE, pid, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    LIBC.ptrace(PTRACE_DETACH, pid, 0, 0)
    return "attached"


def memory(pid):
    with open(f"/proc/{pid}/mem", "rb") as file:
        return f"open {file.fileno()}"


def stolen_descriptor(pid):
    handle = LIBC.syscall(PIDFD_OPEN, pid, 0)
    if handle < 0:
        raise OSError(ctypes.get_errno(), "pidfd_open")
    for number in range(3, 12):
        taken = LIBC.syscall(PIDFD_GETFD, handle, number, 0)
        with contextlib.suppress(OSError):
            if taken >= 0 and (content := os.pread(taken, 80, 0)):
                return content.decode("latin-1")
    raise OSError("nothing to take")


def other_mounts():
    if LIBC.unshare(NEW_USER_AND_MOUNTS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    Path("mnt").mkdir(exist_ok=True)
    if LIBC.mount(b"proc", b"mnt", b"proc", 0, None) != 0 and (
        LIBC.mount(b"tmpfs", b"mnt", b"tmpfs", 0, None) != 0
    ):
        raise OSError(ctypes.get_errno(), "mount")
    return "mounted"


def capabilities():
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if LIBC.capget(header, sets) == 0 and any(sets):
        return f"{list(sets)}"
    return None


def new_privileges():
    return None if LIBC.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 else "possible"


def connected(address):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(2)
        line.connect(address)
    return "connected"


def other_route(path, *, method, route):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(5)
        line.connect(path)
        connection = http.client.HTTPConnection("trainer")
        connection.sock = line
        connection.request(method, route, b"x" if method == "POST" else None)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status == http.client.OK:
            return body.decode("latin-1")
        if body not in (b"", b"nothing here\n") or answer.headers.get("server"):
            return f"{answer.status} {body!r} {answer.headers}"
        return None


def in_child(work):
    """Run an attempt that changes this process in a child of its own."""
    source, sink = os.pipe()
    if os.fork() == 0:
        with contextlib.suppress(OSError):
            os.write(sink, work().encode())
        os._exit(0)
    os.close(sink)
    os.wait()
    said = os.read(source, 100).decode()
    if not said:
        raise OSError("the child got nothing")
    return said


def attempts(t):
    pid = t["pid"]
    yield "read a scan", lambda: read(t["scan"])
    yield "list the cohort", lambda: listing(t["cohort"])
    yield "read the trainer's key", lambda: read(t["key"])
    yield "list the trainer's home", lambda: listing(t["trainer"])
    yield "write into the trainer's home", lambda: overwrite(t["trainer"] + "/planted")
    yield "link the trainer's key", lambda: hard_link(t["key"])
    yield "read a file of the other site", lambda: read(t["other_file"])
    yield "read the trainer's key through its root", lambda: read(f"/proc/{pid}/root{t['key']}")
    yield "read the trainer's environment", lambda: read(f"/proc/{pid}/environ")
    yield "read the trainer's memory", lambda: memory(pid)
    yield "list the trainer's open files", lambda: listing(f"/proc/{pid}/fd")
    yield "trace the trainer", lambda: traced(pid)
    yield "take the trainer's open key", lambda: stolen_descriptor(pid)
    yield "signal the trainer", lambda: signalled(pid)
    yield "speak to an abstract socket", lambda: connected("\0" + t["abstract"])
    yield "read the machine's passwords", lambda: read("/etc/shadow")
    yield "write kernel settings", lambda: overwrite("/proc/sys/kernel/core_pattern")
    yield "make a disk device", device
    yield "hold a capability", capabilities
    yield "gain privileges", new_privileges
    yield "mount something", lambda: in_child(other_mounts)
    yield "speak to the other site's trainer", lambda: connected(t["other_socket"])
    for method, route in (
        ("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/v1/task"),
        ("POST", "/v1/files"), ("GET", "/v1/../../../etc/passwd"), ("PUT", "/v1/task"),
        ("DELETE", "/v1/task"), ("TRACE", "/v1/task"), ("POST", "/v1/task/status"),
    ):  # fmt: skip
        yield (
            f"ask its own trainer for {method} {route}",
            lambda m=method, r=route: other_route(t["own_socket"], method=m, route=r),
        )


def main():
    targets = json.loads(Path(sys.argv[1]).read_text())
    got = {}
    for name, attempt in attempts(targets):
        try:
            got[name] = attempt()
        except OSError:
            got[name] = None
    sys.stdout.write(json.dumps(got))


main()
