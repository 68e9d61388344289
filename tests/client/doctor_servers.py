"""Coordinators, doors and proxies for the doctor to call, honest ones and others, each in its own thread."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import email.utils
import json
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextmanager
def serving(
    handler: Handler,
    *,
    host: str,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    first: Callable[[], None] = lambda: None,
) -> Iterator[int]:
    """A TCP server, and the port on which it listens; ``first`` is done in its thread before."""
    loop, ready, found = asyncio.new_event_loop(), threading.Event(), []
    ends: list[asyncio.Event] = []

    async def run() -> None:
        ends.append(asyncio.Event())
        server = await asyncio.start_server(_quietly(handler), host, port, ssl=tls)
        found.append(server.sockets[0].getsockname()[1])
        ready.set()
        await ends[0].wait()
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def live() -> None:
        first()
        loop.set_exception_handler(lambda *_: None)  # a client that goes away is what is tested
        loop.run_until_complete(run())
        loop.close()

    thread = threading.Thread(target=live)
    thread.start()
    assert ready.wait(10)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(ends[0].set)
        thread.join()


def certificate_of(folder: Path) -> ssl.SSLContext:
    """TLS as a server shows it with the certificate of a coordinator's ``tls`` folder."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return context


def superlink(*, ahead_s: float = 0.0, known: bool = True, bytes_per_s: float = 0.0) -> Handler:
    """What SuperLink answers, by its own clock: ``test_doctor_superlink`` holds it to the real one."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            path, headers, body = await _request(reader, bytes_per_s=bytes_per_s)
            signed = headers.get("flwr-timestamp")
            now_s = time.time() + ahead_s
            age_s = now_s - dt.datetime.fromisoformat(signed).timestamp() if signed else 10**6
            if not body or not -5 < age_s < 305:
                said = 401, {"detail": "Invalid SuperNode authentication"}
            elif path == "/v1/fleet/activate-node" and not known:
                said = 412, {"code": 2004, "detail": "Failed to activate SuperNode."}
            else:
                said = 400, {"code": 2003, "detail": "Invalid heartbeat interval."}
            _say(writer, said[0], json.dumps(said[1]).encode(), date_s=now_s)

    return answer


def page(status: int, *, only: str = "") -> Handler:
    """A web page of some door, whatever is asked; with ``only``, to paths that hold it, else SuperLink."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            path, _, _ = await _request(reader, bytes_per_s=0.0)
            if only and only not in path:
                _say(writer, 400, b'{"code":2003,"detail":"Invalid heartbeat interval."}')
                continue
            _say(writer, status, b"<html>blocked</html>")

    return answer


def proxy(
    *,
    login: str | None = None,
    kind: str = "Basic",
    says: int = 0,
    onto: ssl.SSLContext | None = None,
    most_bytes: int = 0,
) -> Handler:
    """A CONNECT proxy. ``login``: NAME:PASSWORD that it wants; ``says``: answers that instead of a way;
    ``onto``: reads along with a certificate of its own; ``most_bytes``: cuts a line that carried more up.
    """

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
        wanted = "" if login is None else base64.b64encode(login.encode()).decode("ascii")
        if kind != "Basic" or (login is not None and f"Basic {wanted}" not in head):
            writer.write(
                f"HTTP/1.1 407 Login\r\nProxy-Authenticate: {kind} realm=x\r\n\r\n".encode()
            )
            await writer.drain()
            return
        host, _, port = head.split()[1].rpartition(":")
        far: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        if not says:
            secured = _trusting_all() if onto is not None else None
            with suppress(OSError):
                far = await asyncio.open_connection(host, int(port), ssl=secured)
        if far is None:
            writer.write(f"HTTP/1.1 {says or 502} No\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        await writer.drain()
        if onto is not None:
            await writer.start_tls(onto)
        await asyncio.gather(
            _carry(reader, far[1], most_bytes=most_bytes), _carry(far[0], writer, most_bytes=0)
        )

    return connect


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes everything and says nothing."""
    while await reader.read(2**16):
        pass


async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes the first bytes, and closes."""
    await reader.read(16)


async def plain_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A web server without TLS."""
    await reader.read(16)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()


async def other_protocol(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that greets in no HTTP at all."""
    await reader.read(16)
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    await writer.drain()


async def alert(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A filter that answers a client's hello with TLS's own "access denied" (alert 49)."""
    await reader.read(16)
    writer.write(bytes([21, 3, 3, 0, 2, 2, 49]))
    await writer.drain()


async def too_old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that knows no TLS of today: alert 70, "protocol version"."""
    await reader.read(16)
    writer.write(bytes([21, 3, 1, 0, 2, 2, 70]))
    await writer.drain()


async def unsigned(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A SuperLink that takes no signature of this node, whatever its time."""
    while True:
        await _request(reader, bytes_per_s=0.0)
        _say(writer, 401, b'{"detail": "Invalid SuperNode authentication"}')


async def answers_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Behind TLS: takes a question, and closes without an answer."""
    await reader.readuntil(b"\r\n\r\n")


def stalls_after(most_bytes: int) -> Handler:
    """Behind TLS: answers as SuperLink while requests are small, then reads no further."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
            size = int(_headers(head)["content-length"])
            if size > most_bytes:
                await asyncio.sleep(3600)
            await reader.readexactly(size)
            _say(writer, 400, b'{"code":2003,"detail":"Invalid heartbeat interval."}')

    return answer


async def _request(
    reader: asyncio.StreamReader, *, bytes_per_s: float
) -> tuple[str, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
    headers = _headers(head)
    size = int(headers.get("content-length", 0))
    body = await reader.readexactly(size)
    if bytes_per_s:
        await asyncio.sleep(size / bytes_per_s)
    return head.split()[1], headers, body


def _headers(head: str) -> dict[str, str]:
    pairs = (line.partition(": ") for line in head.splitlines()[1:] if line)
    return {name.lower(): value for name, _, value in pairs}


def _say(
    writer: asyncio.StreamWriter, status: int, body: bytes, *, date_s: float | None = None
) -> None:
    date = email.utils.formatdate(time.time() if date_s is None else date_s, usegmt=True)
    lines = [f"HTTP/1.1 {status} Said", f"Date: {date}", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", "", ""]
    writer.write("\r\n".join(lines).encode("ascii") + body)


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, most_bytes: int
) -> None:
    carried = 0
    with suppress(OSError, ssl.SSLError):
        while piece := await reader.read(2**16):
            carried += len(piece)
            if most_bytes and carried > most_bytes:
                break
            writer.write(piece)
            await writer.drain()
    writer.transport.abort()


def _trusting_all() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _quietly(handler: Handler) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, EOFError, asyncio.IncompleteReadError, ssl.SSLError):
                await handler(reader, writer)
        finally:
            writer.close()

    return handle
