"""Has the trainer truly no network, and does the courier's jail hold, on this machine and for this user?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from oncofed_client.courier.jail import JailLevel, jail_level
from oncofed_client.doctor.finding import Finding, fault, warning, well
from oncofed_client.isolation import isolated_command, network_isolation
from oncofed_common.errors import OncofedError

_WITHIN_S = 20.0
_INSIDE = """
import socket, sys
from oncofed_client.isolation import network_isolation
reached = 0
for address in sys.argv[1:]:
    family = socket.AF_INET6 if ":" in address.rpartition(",")[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as line:
        line.settimeout(1.0)
        host, _, port = address.rpartition(",")
        reached += line.connect_ex((host, int(port))) == 0
print(network_isolation(), reached)
"""


def isolation(*, virtual: bool, reach: Sequence[str], with_courier: bool) -> Finding:
    """A process is started as the trainer is, looks at its network, and calls what this process reaches.

    Args:
        with_courier: whether the courier would run here; beside a container without network it does not.
        reach: "address,port" of what was reached from here, to be called from inside in vain.
    """
    say = warning if virtual else fault
    try:
        level: JailLevel = jail_level()
    except OncofedError as error:
        return fault("isolation", "jail_fails", error.found, whose="this machine", next=error.next)
    if not _alone(reach):
        return say(
            "isolation",
            "trainer_has_network",
            "a process that is started as the trainer is has a network",
            whose="this machine",
            next="run start as root, allow user namespaces (sysctl user.max_user_namespaces), install "
            "util-linux, or use the container files with network_mode none; where it has to be, the approver "
            "signs it: approve --networked-trainer",
        )
    if level == "none" and with_courier:
        return say(
            "isolation",
            "courier_unjailed",
            "this kernel or account gives the courier no jail",
            whose="this machine",
            next="allow user namespaces, use Linux 6.12 or later for Landlock, or two containers",
        )
    courier = f"; courier behind {level}" if with_courier else ""
    return well("isolation", f"trainer without network{courier}")


def has_network() -> bool:
    """Whether this process could reach anything at all."""
    return network_isolation() != "no_network"


def _alone(reach: Sequence[str]) -> bool:
    command = isolated_command([sys.executable, "-c", _INSIDE, *reach])
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=_WITHIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return said.stdout.split() == ["no_network", "0"]
