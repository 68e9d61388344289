"""The trainer's one door inwards: an HTTP service on a unix socket.

It answers ``POST /v1/task`` with a framed, signed reply, and everything else with one fixed page. No
header, error page or API description says what runs here or how it is doing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from oncofed_common.errors import SystemRefusal

NOTHING_HERE = b"nothing here\n"
TASK_CAP_BYTES = 64 * 1024 * 1024
CONNECTIONS = 32
"""More than these are closed without a word."""
STALLED_S = 30.0
"""A connection that sends no whole request for so long is closed, after twice that at the latest."""

Answer = Callable[[bytes], tuple[bytes, float]]
"""A task body in; the reply body and the time (seconds since 1970) at which it may leave out."""


class Quiet(H11Protocol):
    """uvicorn's HTTP, with the one fixed page in the place of its own, and no room for who only waits."""

    _stalled: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self.loop.call_later(STALLED_S, self._look)

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(NOTHING_HERE.decode("ascii"))

    def _look(self) -> None:
        """Close a connection that has waited for the same rest of a request since the last look."""
        if self.transport.is_closing():
            return
        waiting = self.cycle is None or self.cycle.more_body
        if waiting and self._stalled == (self.cycle,):
            self.transport.abort()
            return
        self._stalled = (self.cycle,) if waiting else None
        self.loop.call_later(STALLED_S, self._look)


def create_app(answer: Answer, *, log: logging.Logger) -> FastAPI:
    """The service around ``answer``, which is called in a thread of its own for each request."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    async def task(request: Request) -> Response:
        body = await _read(request)
        if body is None:
            return _nothing(413)
        reply, leaves_at_s = await asyncio.to_thread(answer, body)
        await asyncio.sleep(max(0.0, leaves_at_s - time.time()))
        return Response(reply, media_type="application/octet-stream")

    async def nothing(_request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return _nothing(404)
        log.error("", extra={"event": "request_failed", "error_class": type(error).__name__})
        return _nothing(500)

    app.add_api_route("/v1/task", task, methods=["POST"], response_model=None)
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
    config = uvicorn.Config(
        create_app(answer, log=log),
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=16 * 1024,
        http=Quiet,
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


async def _read(request: Request) -> bytes | None:
    """The body, or None as soon as it is over the cap: memory stays bounded."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > TASK_CAP_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


def _nothing(status: int) -> Response:
    return Response(NOTHING_HERE, status_code=status, media_type="text/plain")
