"""Does this container do its work? ``python healthcheck.py trainer|courier|coordinator``: exit 0 or 1.

    trainer      its service answers on the socket (with the one page that strangers get)
    courier      it can reach that service, and Flower's node listens for its gate on loopback
    coordinator  SuperLink answers over TLS, under the coordinator's own certificate authority

It runs inside the images, with the standard library alone, and says nothing but which part is silent.
"""

from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path

HOME = Path("/home/oncofed")
SUPERLINK_PORT = 8000
ANSWER_WITHIN_S = 10.0

_LISTENING = "0A"  # the state's number in /proc/net/tcp
_LOOPBACK = "0100007F"  # 127.0.0.1 there


def silent_parts(role: str, *, home: Path, port: int, connections: Path) -> list[str]:
    """What of ``role`` does not answer; ``connections`` is the kernel's table of TCP sockets.

    Raises:
        KeyError: there is no such role.
    """
    service = home / "run" / "trainer.sock"
    checks: dict[str, dict[str, Callable[[], bool]]] = {
        "trainer": {"service": lambda: _service_answers(service)},
        "courier": {
            "service": lambda: _service_answers(service),
            "node": lambda: _loopback_listens(connections),
        },
        "coordinator": {"superlink": lambda: _superlink_answers(home / "tls" / "ca.pem", port)},
    }
    return [part for part, answers in checks[role].items() if not answers()]


def _service_answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(ANSWER_WITHIN_S)
            line.connect(str(path))
            line.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return line.recv(32).startswith(b"HTTP/1.1 404 ")
    except OSError:
        return False


def _loopback_listens(connections: Path) -> bool:
    try:
        rows = [line.split() for line in connections.read_text(encoding="ascii").splitlines()[1:]]
    except OSError:
        return False
    return any(row[1].startswith(f"{_LOOPBACK}:") and row[3] == _LISTENING for row in rows)


def _superlink_answers(ca: Path, port: int) -> bool:
    try:
        trust = ssl.create_default_context(cafile=str(ca))
        with (
            socket.create_connection(("127.0.0.1", port), timeout=ANSWER_WITHIN_S) as plain,
            trust.wrap_socket(plain, server_hostname="127.0.0.1") as line,
        ):
            line.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            return line.recv(32).startswith(b"HTTP/1.1 200 ")
    except OSError:  # an SSLError is one
        return False


def main(arguments: list[str]) -> int:
    """0 if everything answers, 1 if not; 2 for a role that there is not."""
    try:
        (role,) = arguments
        silent = silent_parts(
            role, home=HOME, port=SUPERLINK_PORT, connections=Path("/proc/net/tcp")
        )
    except (KeyError, ValueError):
        print("usage: healthcheck.py trainer|courier|coordinator")
        return 2
    for part in silent:
        print(f"{part} does not answer")
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
