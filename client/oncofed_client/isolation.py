"""What the kernel forbids: no network for the trainer, no scan for the courier.

The trainer runs in a network namespace of its own, in which even loopback is down. As root that is
``unshare --net``; as an ordinary user ``unshare --user --map-root-user --net``; in a container it is
``network none``, where loopback is up and nothing else is there. What is checked is the state of the
running process, never how it was started.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import socket
import struct
import subprocess
from collections.abc import Iterable, Sequence
from typing import Literal

from oncofed_common.errors import PolicyRefusal, SystemRefusal

Isolation = Literal["no_network", "none"]

NETWORKED = "trainer_may_reach_network"
"""What an approval says in the place of ``no_network`` where the approver lets a trainer have a network."""

_PR_SET_DUMPABLE = 4
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 0x1
_LOOPBACK = "lo"
_FALLBACK_TUNNELS = {
    "tunl0",
    "sit0",
    "ip6tnl0",
    "gre0",
    "gretap0",
    "erspan0",
    "ip_vti0",
    "ip6_vti0",
    "ip6gre0",
}  # the kernel puts these, down, into every namespace once their module is loaded


def isolated_command(argv: Sequence[str]) -> list[str]:
    """``argv`` started without any network, where the kernel lets us.

    The command dies with its parent. Where no way works the command is returned as it is, and the
    trainer itself notices (``network_isolation``) and refuses real cohorts.
    """
    for prefix in (
        ["unshare", "--net", "--fork", "--kill-child"],
        ["unshare", "--user", "--map-root-user", "--net", "--fork", "--kill-child"],
    ):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            tried = subprocess.run([*prefix, "true"], capture_output=True, timeout=10, check=False)
            if tried.returncode == 0:
                return [*prefix, *argv]
    return list(argv)


def network_isolation() -> Isolation:
    """``no_network`` if this very process has no interface that is up and no route to anywhere.

    A loopback that is up is let pass where it is alone: so it is in a container without network. Beside
    an interface that is down it is a machine whose cable somebody may plug in.
    """
    others = [name for _, name in socket.if_nameindex() if name != _LOOPBACK]
    if any(_is_up(name) for name in others):
        return "none"
    if _is_up(_LOOPBACK) and set(others) - _FALLBACK_TUNNELS:
        return "none"
    probes = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
    for family, address in probes:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(
                    (address, 9)
                )  # a datagram socket: the route is looked up, nothing is sent
        except OSError as error:
            if error.errno in (errno.ENETUNREACH, errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                continue
        return "none"
    return "no_network"


def signed_isolation(*, virtual: bool, networked: bool) -> str:
    """What an approval says of the trainer's isolation: the line that the approver signs.

    Args:
        networked: real scans may be computed on by a trainer that can reach a network.
    """
    if virtual:
        return "virtual"
    return NETWORKED if networked else "no_network"


def may_serve(found: Isolation, *, virtual: bool, signed: str) -> bool:
    """Whether a trainer in this state may compute under an approval that says ``signed``."""
    return virtual or found == "no_network" or signed.split("+", maxsplit=1)[0] == NETWORKED


def require_isolation(found: Isolation, *, virtual: bool, signed: Iterable[str]) -> None:
    """A home that is not virtual is served without network or not at all, unless an approval says otherwise.

    Args:
        signed: what each approval that stands says of isolation.

    Raises:
        PolicyRefusal: code ``not_isolated``.
    """
    if may_serve(found, virtual=virtual, signed="no_network"):
        return
    if not any(may_serve(found, virtual=virtual, signed=one) for one in signed):
        raise PolicyRefusal(
            "a trainer that can reach a network",
            allowed="a trainer in a network namespace of its own",
            next="start it with oncofed-site start as root, with user namespaces, or network none; where it "
            "has to be, the approver signs it: approve --networked-trainer",
            code="not_isolated",
        )


def harden_process() -> None:
    """No core dumps, and no look into this process by others of the same user.

    Raises:
        SystemRefusal: code ``not_hardened``; the kernel refused.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise SystemRefusal(
            "a kernel that does not let a process hide its memory",
            allowed="prctl(PR_SET_DUMPABLE, 0)",
            next="run the trainer on Linux",
            code="not_hardened",
        )
    os.umask(0o077)


def _is_up(name: str) -> bool:
    request = struct.pack("16sh14x", name.encode(), 0)
    # Any socket will do, and a sandbox may forbid those of a network.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFFLAGS, request)
        except OSError:
            return True  # an interface that cannot be asked counts as one that works
    (flags,) = struct.unpack_from("h", answer, 16)
    return bool(flags & _IFF_UP)
