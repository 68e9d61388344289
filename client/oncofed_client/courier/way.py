"""The way from this site to its coordinator, walked anew for each connection, and the question at its end.

The question is that of ``question.signed``: does SuperLink know this node's key, and what time is it there?
It changes nothing there.
"""

from __future__ import annotations

import email.utils
import json
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass

from oncofed_client.courier import line
from oncofed_client.courier.line import Proxy, Secured, Stream
from oncofed_client.courier.node import NEVER_BY_PROXY
from oncofed_client.courier.question import ASK, post, signed

CONNECT_WITHIN_S = 4.0
ANSWER_WITHIN_S = 6.0
_SUPERLINKS = {400, 401, 412}
"""What SuperLink itself answers; anything else comes from something in front of it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was said to the question. ``code`` is SuperLink's own, 0 where something else answered; ``date_s``
    is the time there, 0 where none was stated."""

    status: int
    code: int
    date_s: int
    local_s: float
    took_s: float


class Way:
    """The way to one coordinator."""

    def __init__(self, *, host: str, port: int, proxy: Proxy | None) -> None:
        self.host, self.port, self.proxy = host, port, proxy
        self._addresses: list[str] = []
        self.socket: socket.socket | None = None

    @classmethod
    def to(cls, superlink: str, *, proxy: Proxy | None) -> Way:
        """The way to a coordinator's "host:port"."""
        host, _, port = superlink.rpartition(":")
        return cls(host=host, port=int(port), proxy=proxy)

    @property
    def called(self) -> str:
        """The coordinator as HTTP names it."""
        return f"{self.host}:{self.port}"

    def look_up(self) -> list[str]:
        first = self.proxy or self
        self._addresses = line.look_up(first.host, first.port)
        return self._addresses

    def open(self, *, segment_bytes: int | None = None) -> Stream:
        """A line to the coordinator on which nothing was said yet."""
        first = self.proxy or self
        self.socket = line.connect(
            self._addresses, first.port, within_s=CONNECT_WITHIN_S, segment_bytes=segment_bytes
        )
        self.socket.settimeout(ANSWER_WITHIN_S)
        if self.proxy is None:
            return self.socket
        below: Stream = self.socket
        if self.proxy.tls:
            trusted = ssl.create_default_context()
            below = line.secure(below, trusted, host=self.proxy.host, step="proxy_tls")
        line.tunnel(below, self.proxy, target=self.called)
        return below

    def close(self) -> None:
        if self.socket is not None:
            line.end(self.socket)
            self.socket = None


def proxy_to(superlink: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy that the courier's environment names for this coordinator, if there is one."""
    host = superlink.rpartition(":")[0]
    url = None if host in NEVER_BY_PROXY else environment.get("HTTPS_PROXY")
    return Proxy.parse(url) if url else None


def verified(way: Way, *, ca_pem: str) -> Secured:
    """A line on which the certificate was found to be of the site's own authority."""
    return line.secure(way.open(), line.only_ours(ca_pem), host=way.host, step="verify")


def ask(way: Way, *, ca_pem: str, node_key: bytes) -> Answer:
    """Put the question; the name was looked up before.

    Raises:
        Broken: where the way, or the answer, ended.
    """
    body, headers = signed(node_key)
    try:
        secured = verified(way, ca_pem=ca_pem)
        began_s = time.monotonic()
        status, said, text = post(secured, ASK, host=way.called, body=body, headers=headers)
        took_s = time.monotonic() - began_s
    finally:
        way.close()
    try:
        told = json.loads(text)
        code = int(told.get("code", status)) if status in _SUPERLINKS and "detail" in told else 0
    except (ValueError, TypeError, AttributeError):
        code = 0
    date = email.utils.parsedate_to_datetime(said["date"]) if said.get("date") else None
    return Answer(
        status=status,
        code=code,
        date_s=int(date.timestamp()) if date is not None else 0,
        local_s=time.time() - took_s / 2,
        took_s=took_s,
    )
