"""Can a site call a coordinator at this address? One rule for who states it, keeps it and uses it.

An address is ``host:port``: a host name (RFC 1123) or an IPv4 address that belongs to one machine, and a
port from 1 to 65535.
"""

from __future__ import annotations

import ipaddress
import re

HOST_PORT = "a host name or IPv4 address and a port from 1 to 65535, such as fed.example.org:443"
"""What is allowed, in words."""

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?:{_LABEL}\.)*(?!(?:\d+|0[xX][0-9A-Fa-f]*)\Z){_LABEL}")
"""Its last part is no number: resolvers read "", "0" and "0x0" as every address there is."""
_PORT = re.compile(r"[1-9][0-9]{0,4}")


def is_host_name(host: str) -> bool:
    """Whether a resolver may be asked for ``host``."""
    return len(host) <= 253 and _HOST_NAME.fullmatch(host) is not None


def is_ip_address(host: str) -> bool:
    """Whether ``host`` is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_callable(address: str) -> bool:
    """Whether a courier may try to connect to ``address``."""
    host, _, port = address.rpartition(":")
    if _PORT.fullmatch(port) is None or int(port) >= 2**16:
        return False
    return _is_one_machine(host) or ("_" not in host and is_host_name(host))


def _is_one_machine(host: str) -> bool:
    try:
        found = ipaddress.IPv4Address(host)
    except ValueError:
        return False
    nowhere = (
        found.is_unspecified or found.is_multicast or found == ipaddress.IPv4Address(2**32 - 1)
    )
    return not nowhere
