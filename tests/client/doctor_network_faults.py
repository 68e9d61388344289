"""What may be wrong with a network, ready to plant in one of its own: routes, name servers, lost packets.

The site stands in a network namespace with one cable (veth). At its other end is a second namespace, in which
the coordinator listens on 10.99.0.2.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import doctor_servers as servers
from doctor_lab import Lab, ip, mount, own_network
from doctor_line_faults import Plant

HERE, THERE = "10.99.0.1", "10.99.0.2"
NAME = "fed.example.org"
OUTSIDE = "203.0.113.9"
PORT = 8443
_SIOCETHTOOL = 0x8946
_OFFLOADS = (0x19, 0x1F, 0x24, 0x2C)  # scatter, TSO, GSO, GRO


def cable(lab: Lab) -> None:
    """One cable, and the coordinator at its other end."""
    ready, gone = threading.Event(), threading.Event()
    found: list[int] = []

    def there() -> None:
        own_network()
        found.append(threading.get_native_id())
        ready.set()
        gone.wait()

    thread = threading.Thread(target=there)
    thread.start()
    lab.open.callback(thread.join)
    lab.open.callback(gone.set)
    assert ready.wait(10)
    ip("link", "add", "here", "type", "veth", "peer", "name", "there", "netns", str(found[0]))
    ip("addr", "add", f"{HERE}/24", "dev", "here")
    ip("link", "set", "here", "up")
    _offload_nothing("here")
    enter = _entering(found[0])

    def first() -> None:
        enter()
        ip("addr", "add", f"{THERE}/24", "dev", "there")
        ip("link", "set", "there", "up")
        _offload_nothing("there")

    lab.open.enter_context(
        servers.serving(
            servers.superlink(),
            host=THERE,
            port=PORT,
            tls=servers.certificate_of(lab.tls),
            first=first,
        )
    )
    lab.enter_far = enter


def at(address: str, *then: Callable[[Lab], None]) -> Plant:
    """The coordinator's address is this one; then what is wrong."""

    def plant(lab: Lab) -> None:
        cable(lab)
        lab.joined(address)
        for one in then:
            one(lab)

    return plant


def routed(*words: str) -> Callable[[Lab], None]:
    """A route of this machine."""
    return lambda _lab: ip("route", "add", *words)


def asks(server: str) -> Callable[[Lab], None]:
    """This machine's name server."""

    def plant(lab: Lab) -> None:
        place = lab.home.root.parent / "resolv.conf"
        place.write_text(f"nameserver {server}\noptions timeout:1 attempts:1\n")
        mount(place, Path(os.path.realpath("/etc/resolv.conf")))
        order = lab.home.root.parent / "nsswitch.conf"
        order.write_text("hosts: files dns\n")
        mount(order, Path("/etc/nsswitch.conf"))

    return plant


def name_server(address: str | None, *, code: int = 0) -> Callable[[Lab], None]:
    """A name server on loopback: every name has this address; None: an answer with this code (RFC 1035)."""

    def plant(lab: Lab) -> None:
        asks("127.0.0.1")(lab)
        line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        line.bind(("127.0.0.1", 53))
        lab.open.callback(line.close)
        threading.Thread(target=_answer_names, args=(line, address, code), daemon=True).start()

    return plant


def dropped_beyond(lab: Lab) -> None:
    """The way leads through the far end, which drops what goes further, and tells nobody."""
    ip("route", "add", "default", "via", THERE)
    _far(lab, "route", "add", "blackhole", OUTSIDE)


def large_answers_vanish(lab: Lab) -> None:
    """As ``large_packets_vanish``, on the way back."""
    ip("link", "set", "here", "mtu", "900")
    ip("route", "replace", f"{THERE}/32", "dev", "here", "advmss", "1460")


def large_packets_vanish(lab: Lab) -> None:
    """Its far end takes 900 bytes, says nothing, and lets nobody know: a tunnel without its ICMP."""
    _far(lab, "link", "set", "there", "mtu", "900")
    _far(lab, "route", "replace", f"{HERE}/32", "dev", "there", "advmss", "1460")
    ip("route", "replace", f"{THERE}/32", "dev", "here", "advmss", "1460")


def small_packets_only(_lab: Lab) -> None:
    ip("link", "set", "here", "mtu", "1000")


def by_proxy(url: str) -> Callable[[Lab], None]:
    return lambda lab: lab.words.extend(["--https-proxy", url])


def _far(lab: Lab, *words: str) -> None:
    """An ip command at the other end of the cable."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            lab.enter_far()
            ip(*words)
        except BaseException as error:  # noqa: BLE001  the caller says it
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _entering(thread: int) -> Callable[[], None]:
    """What takes the calling thread into the network of another thread of this process (setns(2))."""

    def enter() -> None:
        handle = os.open(f"/proc/self/task/{thread}/ns/net", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(handle, 0x40000000) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(handle)

    return enter


def _offload_nothing(name: str) -> None:
    """Packets leave as they will arrive: no card joins or splits them (ethtool(8) -K)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        for number in _OFFLOADS:
            value = array.array("B", struct.pack("II", number, 0))
            request = struct.pack("16sP", name.encode(), value.buffer_info()[0])
            try:
                fcntl.ioctl(line.fileno(), _SIOCETHTOOL, request)
            except OSError:
                continue


def _answer_names(line: socket.socket, address: str | None, code: int) -> None:
    while True:
        try:
            asked, caller = line.recvfrom(512)
        except OSError:
            return
        if not asked:
            return
        end = asked.index(b"\0", 12) + 5
        kind = struct.unpack("!H", asked[end - 4 : end - 2])[0]
        gives = address is not None and kind == 1
        head = asked[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, int(gives), 0, 0)
        record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4)
        said = record + socket.inet_aton(address) if address is not None and gives else b""
        line.sendto(head + asked[12:end] + said, caller)


def unplugged(lab: Lab) -> None:
    lab.joined(f"{OUTSIDE}:443")


NETWORK_FAULTS: dict[str, tuple[str, Plant]] = {
    "no cable": ("no_network", unplugged),
    "no default route": ("no_route", at(f"{OUTSIDE}:443")),
    "a gateway that is not there": (
        "unreachable", at(f"{OUTSIDE}:443", routed("default", "via", "10.99.0.77"))),
    "a firewall that drops": ("dropped", at(f"{OUTSIDE}:443", dropped_beyond)),
    "a route that this machine prohibits": (
        "local_firewall", at(f"{OUTSIDE}:443", routed("prohibit", OUTSIDE))),
    "a name that nobody knows": ("dns_unknown", at(f"{NAME}:{PORT}", name_server(None, code=3))),
    "a name server that fails": ("dns_silent", at(f"{NAME}:{PORT}", name_server(None, code=2))),
    "a name server that is down": ("dns_silent", at(f"{NAME}:{PORT}", asks("127.0.0.1"))),
    "a name server behind a firewall": (
        "dns_silent", at(f"{NAME}:{PORT}", asks(OUTSIDE), dropped_beyond)),
    "a name server that leads into a sinkhole": (
        "dns_wrong_address", at(f"{NAME}:{PORT}", name_server("127.0.0.1"))),
    "a misspelt proxy": (
        "proxy_dns_unknown",
        at(f"{NAME}:{PORT}", name_server(None, code=3), by_proxy("http://prxy.example.org:3128"))),
    "no name server for the proxy": (
        "proxy_dns_silent",
        at(f"{NAME}:{PORT}", asks("127.0.0.1"), by_proxy("http://proxy.example.org:3128"))),
    "a proxy behind a firewall": (
        "proxy_dropped",
        at(f"{NAME}:{PORT}", dropped_beyond, by_proxy(f"http://{OUTSIDE}:3128"))),
    "no route to the proxy": (
        "proxy_no_route", at(f"{NAME}:{PORT}", by_proxy(f"http://{OUTSIDE}:3128"))),
    "large packets that vanish": ("mtu", at(f"{THERE}:{PORT}", large_packets_vanish)),
    "large answers that vanish": ("mtu", at(f"{THERE}:{PORT}", large_answers_vanish)),
}  # fmt: skip
"""As ``LINE_FAULTS``; each in a process with a network and mounts of its own."""

NETWORK_WARNINGS: dict[str, tuple[str, Plant]] = {
    "small packets only": ("mtu_small", at(f"{THERE}:{PORT}", small_packets_only)),
}
