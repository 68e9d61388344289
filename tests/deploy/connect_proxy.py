"""A hospital's proxy: takes CONNECT to one place, carries the bytes, and counts who asked for what.

``python connect_proxy.py PORT HOST:PORT``: anything but CONNECT to that place is answered with 403.
Standard library alone; it runs in a container that has nothing else.
"""

from __future__ import annotations

import asyncio
import sys


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand on what comes, until the end of it."""
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def serve(port: int, allowed: str) -> None:
    """Proxy for ever."""

    async def caller(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            method, place, _ = head.split(b"\r\n")[0].decode("ascii").split(" ")
            if (method, place) != ("CONNECT", allowed):
                sys.stdout.write(f"refused {method} {place}\n")
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                writer.close()
                return
            host, _, number = place.rpartition(":")
            there, back = await asyncio.open_connection(host, int(number))
        except (OSError, ValueError, asyncio.IncompleteReadError, TimeoutError):
            writer.close()
            return
        sys.stdout.write(f"carried {place}\n")
        sys.stdout.flush()
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(carry(reader, back), carry(there, writer))

    server = await asyncio.start_server(caller, "0.0.0.0", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))
