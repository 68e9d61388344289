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
