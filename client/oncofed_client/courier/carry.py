"""One task to the trainer's socket, and its reply back: the only thing the courier does.

It looks at nothing inside. What goes wrong becomes one of a few reason codes, the same for every
cause that could depend on data; an exception's text never leaves this process.
"""

from __future__ import annotations

import http.client
import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Literal, get_args

from oncofed_common.errors import WireRefusal
from oncofed_common.wire import unframe

CarriageCode = Literal["ok", "unavailable", "too_large", "malformed", "not_approved", "expired"]
"""What a courier can say. Each is also a code of the wire; ``ok`` means that the trainer spoke."""

BODY_CAP_BYTES = 64 * 1024 * 1024
"""The longest task or reply that is carried, as long as the trainer's own cap on a task."""

_log = logging.getLogger("oncofed.courier")

_CHUNK_BYTES = 1024 * 1024
_TASK_ROUTE = "/v1/task"


def carry(
    task: bytes,
    *,
    socket_path: Path,
    expires_s: float,
    clock: Callable[[], float] = time.time,
) -> bytes:
    """Post a task's frame to the trainer; its reply's frame, waited for until ``expires_s``.

    Args:
        expires_s: seconds since 1970.

    Raises:
        WireRefusal: its code is a ``CarriageCode``.
    """
    if len(task) > BODY_CAP_BYTES:
        raise _refusal("too_large")
    try:
        reply = _post(task, socket_path=socket_path, expires_s=expires_s, clock=clock)
    except (OSError, http.client.HTTPException) as error:
        _log.warning("the trainer could not be asked: %s", type(error).__name__)
        raise _refusal("expired" if clock() >= expires_s else "unavailable") from None
    try:
        unframe(reply, cap_bytes=BODY_CAP_BYTES)
    except WireRefusal:
        raise _refusal("malformed") from None
    return reply


def carriage_code(refusal: WireRefusal) -> CarriageCode:
    """The code of ``refusal`` if a courier may say it, else ``unavailable``."""
    for code in get_args(CarriageCode):
        if code == refusal.code:
            return code  # type: ignore[no-any-return]  # get_args forgets the literals
    return "unavailable"


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the socket of this site's trainer, and over nothing else."""

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        super().__init__("trainer", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


def _post(body: bytes, *, socket_path: Path, expires_s: float, clock: Callable[[], float]) -> bytes:
    connection = _UnixConnection(socket_path, timeout_s=_left_s(expires_s, clock))
    with closing(connection):
        connection.request(
            "POST", _TASK_ROUTE, body, headers={"Content-Type": "application/octet-stream"}
        )
        line = connection.sock  # a reply that closes the connection takes it from there
        with connection.getresponse() as response:
            if response.status == http.client.REQUEST_ENTITY_TOO_LARGE:
                raise _refusal("too_large")
            if response.status != http.client.OK:
                raise _refusal("unavailable")
            parts: list[bytes] = []
            size = 0
            while not response.isclosed():
                line.settimeout(_left_s(expires_s, clock))
                parts.append(response.read(_CHUNK_BYTES))
                size += len(parts[-1])
                if size > BODY_CAP_BYTES:
                    raise _refusal("too_large")
            return b"".join(parts)


def _left_s(expires_s: float, clock: Callable[[], float]) -> float:
    left_s = expires_s - clock()
    if left_s <= 0:
        raise _refusal("expired")
    return left_s


def _refusal(code: CarriageCode) -> WireRefusal:
    return WireRefusal(
        "a task that could not be carried",
        allowed="a whole task to a running trainer, a whole reply back, before it expires",
        next="see that the trainer of this site runs: oncofed-site doctor",
        code=code,
    )
