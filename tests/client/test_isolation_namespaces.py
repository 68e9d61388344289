"""Isolation is read off the running process: namespaces of every shape, made for real."""

import subprocess
import sys

import pytest

PROBE = """
import fcntl, socket, struct, sys
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def raise_up(name):
    fcntl.ioctl(probe, 0x8914, struct.pack("16sh14x", name, 1))  # SIOCSIFFLAGS, IFF_UP
def add_bridge(name):
    fcntl.ioctl(probe, 0x89A0, name + bytes(16 - len(name)))  # SIOCBRADDBR
for step in sys.argv[1:]:
    what, name = step.split(":")
    {"up": raise_up, "add": add_bridge}[what](name.encode())
from oncofed_client.isolation import network_isolation
print(network_isolation())
"""


def _isolation_after(*steps):
    """What a process in a new network namespace says of itself after these changes to it."""
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", PROBE, *steps]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_a_namespace_of_its_own_is_no_network():
    assert _isolation_after() == "no_network"


def test_loopback_alone_as_in_a_container_without_network_is_no_network():
    assert _isolation_after("up:lo") == "no_network"


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(("add:br0", "up:br0"), id="an interface that is up"),
        pytest.param(("up:lo", "add:br0"), id="loopback up beside an interface that is down"),
        pytest.param(("up:lo", "add:br0", "up:br0"), id="both up"),
    ],
)
def test_a_namespace_that_has_or_could_get_a_network_is_told_apart(steps):
    assert _isolation_after(*steps) == "none"


def test_an_interface_that_is_down_beside_a_loopback_that_is_down_reaches_nothing():
    assert _isolation_after("add:br0") == "no_network"


SANDBOX = """
import ctypes, platform, struct
number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
rows = [  # the kernel's packet filter on system calls: socket() of AF_INET or AF_INET6 has no such family
    (0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16),
    (0x15, 2, 0, 2), (0x15, 1, 0, 10), (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | 97),
]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(rows), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, program) == 0, ctypes.get_errno()  # PR_SET_SECCOMP
import socket
for family in (socket.AF_INET, socket.AF_INET6):
    try:
        socket.socket(family, socket.SOCK_DGRAM)
        raise SystemExit("the sandbox does not hold")
    except OSError:
        pass
from oncofed_client.isolation import network_isolation
print(network_isolation())
"""


def test_a_sandbox_that_knows_no_family_of_a_network_is_no_network_and_no_failure():
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", SANDBOX]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "no_network"
