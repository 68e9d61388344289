"""What callers learn of the room that others take, and when the log is written: nothing, and in time."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from oncofed_client.trainer import service
from oncofed_client.trainer.log import open_log
from oncofed_common.identity import SigningKey


async def post(app: Any, size: int) -> int:
    """The status of a request to the service itself, without a socket."""
    codes: list[int] = []
    body = [{"type": "http.request", "body": bytes(size), "more_body": False}]

    async def receive() -> dict[str, Any]:
        return body.pop() if body else await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            codes.append(message["status"])

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/task",
        "raw_path": b"/v1/task",
        "query_string": b"",
        "headers": [],
    }
    await app(scope, receive, send)
    return codes[0]


def test_what_becomes_of_a_round_is_in_the_log_when_its_reply_has_left(tmp_path: Path) -> None:
    """Not only when something else happens."""
    with open_log(
        tmp_path / "log.jsonl", head=tmp_path / "head.json", key=SigningKey.generate()
    ) as log:

        def answer(body: bytes) -> tuple[bytes, float]:
            leaves_at_s = time.time() + 0.2
            log.info("", extra={"event": "answered", "at_s": leaves_at_s})
            return body, leaves_at_s

        assert asyncio.run(post(service.create_app(answer, log=log), 10)) == 200
        assert '"event": "answered"' in (tmp_path / "log.jsonl").read_text()


def test_room_is_kept_until_the_reply_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second caller for whom there is no room learns nothing of when the first one's training ended."""
    monkeypatch.setattr(service, "ROOM_BYTES", 1000)
    app = service.create_app(lambda body: (body[:1], 0.0), log=logging.getLogger("room"))

    async def callers() -> list[int]:
        trained, leaves = asyncio.Event(), asyncio.Event()

        async def until_the_slot(_seconds: float) -> None:
            trained.set()
            await leaves.wait()

        monkeypatch.setattr(service.asyncio, "sleep", until_the_slot)
        first = asyncio.create_task(post(app, 800))
        await trained.wait()
        second = await post(app, 300)
        leaves.set()
        return [second, await first, await post(app, 300)]

    assert asyncio.run(callers()) == [413, 200, 200]
