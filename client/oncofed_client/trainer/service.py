"""The trainer's one door inwards: an HTTP service on a unix socket.

It answers ``POST /v1/task`` with a framed, signed reply, and everything else with one fixed page. No
header, error page or API description says what runs here or how it is doing.

A request that was begun counts until its reply has left, whoever still listens: so many at a time, each
with a thread of its own. Else those who ask again and again, and hang up, would take the threads, and the
moment at which one is free again would tell when training ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from oncofed_client.trainer.log import Slotted
from oncofed_client.trainer.refused import Word, note_refusal
from oncofed_common.errors import SystemRefusal

TASK_ROUTE = "/v1/task"
NOTHING_HERE = b"nothing here\n"
NO_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"connection: close\r\n\r\n%b" % (len(NOTHING_HERE), NOTHING_HERE)
)
TASK_CAP_BYTES = 64 * 1024 * 1024
ROOM_BYTES = 2 * TASK_CAP_BYTES
"""What all requests together may hold that are not answered yet."""
CONNECTIONS = 32
"""More than these are closed without a word."""
STALLED_S = 30.0
"""A connection that sends no whole request, or takes no reply, for so long is closed, after twice that at
the latest."""

Answer = Callable[[bytes], tuple[bytes, float]]
"""A task body in; the reply body and the time (seconds since 1970) at which it may leave out."""


class Quiet(H11Protocol):
    """uvicorn's HTTP, with the one fixed page in the place of its own, and no room for who only waits."""

    log = logging.Logger("nobody")
    _stalled: object = None
    _last = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        idle = sum(_is_idle(other) for other in self.connections)
        if idle + len(self.tasks) > CONNECTIONS:
            note_refusal(self.log, "too_many", request=b"", sent=b"")
            transport.abort()
        else:
            self.loop.call_later(STALLED_S, self._look)

    def data_received(self, data: bytes) -> None:
        self._last = data
        super().data_received(data)
        self._last = b""

    def send_400_response(self, msg: str) -> None:
        note_refusal(self.log, "no_http", request=self._last, sent=NOTHING_HERE)
        if _is_idle(self) or not self.cycle.response_started:
            self.transport.write(NO_HTTP)
        self.transport.close()

    def _look(self) -> None:
        """Close what stands where it stood at the last look: half a request, or an unread reply."""
        unread = self.transport.get_write_buffer_size() > 0
        if self.transport.is_closing() and not unread:
            return
        waiting = unread or _is_idle(self) or self.cycle.more_body
        if waiting and self._stalled == (self.cycle,):
            note_refusal(self.log, "stalled", request=b"", sent=b"")
            self.transport.abort()
            return
        self._stalled = (self.cycle,) if waiting else None
        self.loop.call_later(STALLED_S, self._look)


def create_app(answer: Answer, *, log: logging.Logger) -> FastAPI:
    """The service around ``answer``, which is called in a thread of its own for each request."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    threads = ThreadPoolExecutor(CONNECTIONS)
    room = _Room()

    async def task(request: Request) -> Response:
        if request.scope["raw_path"] != TASK_ROUTE.encode() or request.scope["query_string"]:
            return nothing_there(request)
        with room.taken() as taken:
            body, fault = await _read(request, taken)
            if fault is not None:
                note_refusal(log, fault, request=body, sent=NOTHING_HERE)
                return _nothing(413)
            loop = asyncio.get_running_loop()
            reply, leaves_at_s = await loop.run_in_executor(threads, answer, body)
            del (
                body
            )  # its room is kept until the reply leaves: when it comes free tells no more than that
            await asyncio.sleep(max(0.0, leaves_at_s - time.time()))
        if isinstance(log, Slotted):
            log.release(max(time.time(), leaves_at_s))
        return Response(reply, media_type="application/octet-stream")

    def nothing_there(request: Request) -> Response:
        asked = request.method.encode() + b" " + request.scope["raw_path"]
        note_refusal(log, "no_route", request=asked, sent=NOTHING_HERE)
        return _nothing(404)

    async def nothing(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return nothing_there(request)
        log.error("", extra={"event": "request_failed", "error_class": type(error).__name__})
        note_refusal(log, "failed", request=b"", sent=NOTHING_HERE)
        return _nothing(500)

    app.add_api_route(TASK_ROUTE, task, methods=["POST"], response_model=None)
    app.add_exception_handler(HTTPException, nothing)
    app.add_exception_handler(Exception, nothing)
    return app


def serve(answer: Answer, *, path: Path, shared_group: int | None, log: logging.Logger) -> None:
    """Listen on the unix socket at ``path`` until told to stop.

    Args:
        shared_group: group that may connect as well (mode 0660), where the courier is another user;
            None for mode 0600.

    Raises:
        SystemRefusal: code ``socket_in_use``: another trainer listens there.
    """
    listener = _listen(path, shared_group=shared_group)
    quiet = type("QuietHere", (Quiet,), {"log": log})
    config = uvicorn.Config(
        create_app(answer, log=log),
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=16 * 1024,
        http=quiet,
        ws="none",
        loop="asyncio",
        lifespan="off",
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        path.unlink(missing_ok=True)


def _listen(path: Path, *, shared_group: int | None) -> socket.socket:
    if path.exists():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(os.fspath(path))
            except OSError:
                path.unlink()
            else:
                raise SystemRefusal(
                    "a trainer that is running already",
                    allowed="one trainer for each home",
                    next="run oncofed-site stop first",
                    code="socket_in_use",
                )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_mask = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
        if shared_group is not None:
            os.chown(path, -1, shared_group)
            path.chmod(0o660)
    except OSError:
        listener.close()
        raise SystemRefusal(
            "a socket that cannot be made",
            allowed="a writable home whose path is shorter than 90 characters",
            next="use a home folder with a shorter path",
            code="socket_path",
        ) from None
    finally:
        os.umask(old_mask)
    listener.listen(16)
    listener.setblocking(False)
    return listener


class _Taken:
    """How much of the room one request holds."""

    def __init__(self, room: _Room) -> None:
        self._room = room
        self.size = 0

    def more(self, size: int) -> bool:
        """Whether there was room for ``size`` bytes more; then they are taken."""
        if self.size + size > TASK_CAP_BYTES or self._room.held + size > ROOM_BYTES:
            return False
        self.size += size
        self._room.held += size
        return True


class _Room:
    """What all requests hold together, in bytes."""

    def __init__(self) -> None:
        self.held = 0

    @contextmanager
    def taken(self) -> Iterator[_Taken]:
        """A share that is given back in the end."""
        taken = _Taken(self)
        try:
            yield taken
        finally:
            self.held -= taken.size


def _is_idle(protocol: H11Protocol | Any) -> bool:
    """Whether a connection has no request that counts by itself."""
    return protocol.cycle is None or protocol.cycle.response_complete


async def _read(request: Request, taken: _Taken) -> tuple[bytes, Word | None]:
    """The body, or what came of it and why no more: it is over the cap, all are together, or it was cut."""
    parts: list[bytes] = []
    try:
        async for part in request.stream():
            if not taken.more(len(part)):
                return b"".join(parts), "too_large"
            parts.append(part)
    except ClientDisconnect:
        return b"".join(parts), "cut"
    return b"".join(parts), None


def _nothing(status: int) -> Response:
    return Response(NOTHING_HERE, status_code=status, media_type="text/plain")
