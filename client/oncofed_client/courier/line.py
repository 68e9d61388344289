"""How far does a connection to the coordinator come, and what stood in its way?

The way is that of Flower's node: a name is looked up, TCP connects, a proxy is asked by CONNECT (RFC 9110,
9.3.6), TLS begins. Whatever ends it is a ``Broken`` that names the step and a short reason; no text of a
library.
"""

from __future__ import annotations

import base64
import errno
import http.client
import io
import re
import socket
import ssl
import struct
import urllib.parse
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME (OpenSSL 1.1): dates are judged apart, beside the coordinator's clock."""
SMALL_SEGMENT_BYTES = 536
"""Segments that every IPv4 link carries (RFC 9293, 3.7.1): what passes with these alone is lost by size."""
_TCP_MAXSEG = 2
_IP_MTU = 14
_TIMED_OUT = {errno.ETIMEDOUT, errno.EAGAIN}
_NAMES = {
    socket.EAI_NONAME: "unknown",
    socket.EAI_NODATA: "unknown",
    socket.EAI_AGAIN: "no_resolver",
    socket.EAI_FAIL: "resolver_fails",
}


class Broken(Exception):
    """Where a connection ended, why, and what was seen there."""

    def __init__(self, step: str, why: str, **seen: str | int) -> None:
        self.step, self.why, self.seen = step, why, seen
        super().__init__(step, why)


@runtime_checkable
class Stream(Protocol):
    """Bytes both ways."""

    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A proxy as the hospital names it."""

    host: str
    port: int
    tls: bool
    login: str | None

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """From a URL that ``start`` takes."""
        parts = urllib.parse.urlsplit(url)
        login = None
        if parts.username is not None:
            word = urllib.parse.unquote(parts.password or "")
            login = f"{urllib.parse.unquote(parts.username)}:{word}"
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(host=parts.hostname or "", port=port, tls=parts.scheme == "https", login=login)


class Secured:
    """TLS over any stream, so that it also goes through a proxy that is reached by TLS itself."""

    def __init__(self, below: Stream, context: ssl.SSLContext, *, host: str) -> None:
        self._below = below
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        while True:
            try:
                self._tls.do_handshake()
                self._flush()
                return
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()

    def certificate(self) -> bytes:
        """The certificate that the other side shows, as DER."""
        return self._tls.getpeercert(binary_form=True) or b""

    def sendall(self, data: bytes, /) -> None:
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view[: 2**14]) :]
            self._flush()

    def recv(self, size: int, /) -> bytes:
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                self._fill()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    def _flush(self) -> None:
        if said := self._out.read():
            self._below.sendall(said)

    def _fill(self) -> None:
        got = self._below.recv(2**16)
        if not got:
            self._in.write_eof()
            raise ConnectionResetError(errno.ECONNRESET, "closed")
        self._in.write(got)


def look_up(host: str, port: int) -> list[str]:
    """Addresses of a host, in the order in which they are tried. Raises Broken: ``name``."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise Broken("name", _NAMES.get(error.errno or 0, "resolver_fails")) from None
    except (OSError, UnicodeError):
        raise Broken("name", "resolver_fails") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def connect(
    addresses: list[str], port: int, *, within_s: float, segment_bytes: int | None = None
) -> socket.socket:
    """A TCP connection to the first address that takes one. Raises Broken: ``connect``."""
    why = "unreachable"
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        line = socket.socket(family, socket.SOCK_STREAM)
        line.settimeout(within_s / len(addresses))
        if segment_bytes is not None:
            line.setsockopt(socket.IPPROTO_TCP, _TCP_MAXSEG, segment_bytes)
        try:
            line.connect((address, port))
        except OSError as error:
            line.close()
            why = reason(error)
            continue
        line.settimeout(within_s)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return line
    raise Broken("connect", why)


def tunnel(line: Stream, proxy: Proxy, *, target: str) -> None:
    """Ask a proxy for a way to ``target`` ("host:port"). Raises Broken: ``proxy``."""
    ask = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
    if proxy.login is not None:
        coded = base64.b64encode(proxy.login.encode()).decode("ascii")
        ask += f"Proxy-Authorization: Basic {coded}\r\n"
    try:
        line.sendall(f"{ask}\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            got = line.recv(1)  # not one byte of what comes behind
            head += got
            if not got or len(head) > 2**16:
                raise Broken("proxy", "closes" if not head else "no_http")
    except OSError as error:
        raise Broken("proxy", reason(error)) from None
    status = re.match(rb"HTTP/1\.[01] (\d{3})", head)
    if status is None:
        raise Broken("proxy", "no_http")
    offered = re.findall(rb"(?im)^proxy-authenticate:\s*([A-Za-z]+)", head)
    code = int(status[1])
    if not 200 <= code < 300:
        kinds = ",".join(sorted({one.decode("ascii").lower() for one in offered}))
        raise Broken("proxy", "answers", status=code, kinds=kinds)


def secure(line: Stream, context: ssl.SSLContext, *, host: str, step: str = "tls") -> Secured:
    """TLS with ``host``. Raises Broken: ``step``."""
    try:
        return Secured(line, context, host=host)
    except ssl.SSLCertVerificationError as error:
        raise Broken(step, "not_verified", verify_code=int(error.verify_code)) from None
    except ssl.SSLError as error:
        word = (error.reason or "").upper()
        plain = any(part in word for part in ("WRONG_VERSION", "HTTP_REQUEST", "RECORD_LAYER"))
        old = "PROTOCOL_VERSION" in word or "UNSUPPORTED_PROTOCOL" in word
        raise Broken(step, "no_tls" if plain else "old_tls" if old else "refused") from None
    except OSError as error:
        raise Broken(step, reason(error)) from None


def any_certificate() -> ssl.SSLContext:
    """Takes whatever certificate comes, to be looked at; nothing is ever sent over such a line."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def only_ours(ca_pem: str) -> ssl.SSLContext:
    """Takes what the site's own authority certified for the name that is called; dates are left out."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca_pem)
    context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    return context


def mtu_bytes(line: socket.socket) -> int:
    """The largest packet that the kernel believes in on this way; 0 where it does not say."""
    try:
        return line.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    except OSError:
        return 0


def reason(error: OSError) -> str:
    """A short word for what the operating system said."""
    if isinstance(error, TimeoutError) or error.errno in _TIMED_OUT:
        return "silent"
    words = {
        errno.ECONNREFUSED: "refused",
        errno.ENETUNREACH: "no_route",
        errno.EHOSTUNREACH: "unreachable",
        errno.ENETDOWN: "no_route",
        errno.EACCES: "forbidden",
        errno.EPERM: "forbidden",
        errno.ECONNRESET: "closes",
        errno.EPIPE: "closes",
    }
    return words.get(error.errno or 0, "fails")


def end(line: socket.socket) -> None:
    """Close at once, without waiting for what is still under way."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.close()


class Answers(io.RawIOBase):
    """What ``http.client`` reads an answer from."""

    def __init__(self, line: Stream) -> None:
        self._line = line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # io's own is wider
        got = self._line.recv(len(buffer))
        buffer[: len(got)] = got
        return len(got)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)


def read_answer(line: Stream) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower case) and the first 4 KiB of an HTTP answer. Raises OSError, HTTPException."""
    answer = http.client.HTTPResponse(Answers(line))  # type: ignore[arg-type]  # all that it asks for
    answer.begin()
    headers = {name.lower(): value for name, value in answer.getheaders()}
    return answer.status, headers, answer.read(4096)
