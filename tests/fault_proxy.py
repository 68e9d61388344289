"""A bad link between a site and its coordinator: thin, slow, cut again and again, or silent.

It carries bytes of TCP connections and knows nothing of what they mean.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

PIECE_BYTES = 8 * 1024


@dataclass(kw_only=True)
class Link:
    """Connections to ``port`` go on to ``target_port``, both on loopback.

    Args:
        bytes_per_s: of the whole link, each way.
        delay_s: of every piece, each way.
        reset_every_s: so often all connections are cut by a reset; 0: never.
        hole_every_s, hole_s: so often, and for so long, nothing gets through and nobody is told.

    Attributes:
        carried: bytes that reached their end, both ways.
        resets: connections that were cut.
        holes: how often nothing got through.
    """

    target_port: int
    bytes_per_s: float
    delay_s: float = 0.0
    reset_every_s: float = 0.0
    hole_every_s: float = 0.0
    hole_s: float = 0.0
    port: int = 0
    carried: int = 0
    resets: int = 0
    holes: int = 0
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    @contextmanager
    def up(self) -> Iterator[Link]:
        """The link, until the block ends."""
        loop = asyncio.new_event_loop()
        ready = threading.Event()
        thread = threading.Thread(target=self._run, args=(loop, ready))
        thread.start()
        ready.wait()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(self._end.set)
            thread.join()

    def _run(self, loop: asyncio.AbstractEventLoop, ready: threading.Event) -> None:
        asyncio.set_event_loop(loop)
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(self._serve(ready))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        self._end, self._through = asyncio.Event(), asyncio.Event()
        self._through.set()
        self._turn = {way: asyncio.Lock() for way in ("out", "back")}
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        faults = [asyncio.create_task(one) for one in (self._cut(), self._fall_silent())]
        ready.set()
        await self._end.wait()
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*faults, *others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, far_writer}
        ways = (
            self._carry(reader, far_writer, self._turn["out"]),
            self._carry(far_reader, writer, self._turn["back"]),
        )
        try:
            await asyncio.gather(*ways)
        except asyncio.CancelledError:
            return  # the link is taken down
        finally:
            for one in (writer, far_writer):
                self._open.discard(one)
                one.transport.abort()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, turn: asyncio.Lock
    ) -> None:
        loop = asyncio.get_running_loop()
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)

        async def arrive() -> None:
            while True:
                due_s, piece = await on_the_way.get()
                await asyncio.sleep(due_s - loop.time())
                if not piece:
                    with suppress(OSError):
                        writer.write_eof()
                    return
                writer.write(piece)
                await writer.drain()
                self.carried += len(piece)

        arrives = asyncio.create_task(arrive())
        try:
            while True:
                piece = await reader.read(PIECE_BYTES)
                await self._through.wait()
                async with turn:
                    await asyncio.sleep(len(piece) / self.bytes_per_s)
                await on_the_way.put((loop.time() + self.delay_s, piece))
                if not piece:
                    break
            await arrives
        except OSError:
            writer.transport.abort()
        finally:
            arrives.cancel()

    async def _cut(self) -> None:
        while self.reset_every_s:
            await asyncio.sleep(self.reset_every_s)
            for writer in list(self._open):
                self.resets += 1
                found = writer.get_extra_info("socket")
                with suppress(OSError):  # no lingering: the other side gets a reset
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

    async def _fall_silent(self) -> None:
        while self.hole_every_s:
            await asyncio.sleep(self.hole_every_s)
            self.holes += 1
            self._through.clear()
            await asyncio.sleep(self.hole_s)
            self._through.set()
