"""Does this container do its work? ``python healthcheck.py trainer|courier|coordinator``: exit 0 or 1.

    trainer      its service answers on the socket (with the one page that strangers get), and a round that
                 it has begun goes on
    courier      it can reach that service, Flower's node listens for its gate on loopback, and the
                 coordinator has answered the node a moment ago
    coordinator  SuperLink answers over TLS, under the coordinator's own certificate authority, SuperExec
                 runs, and no run that somebody conducts has been silent for longer than a round may last

It runs inside the images, with the standard library alone, and says nothing but which part is silent.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

HOME = Path("/home/oncofed")
SUPERLINK_PORT = 8000
ANSWER_WITHIN_S = 10.0
HEARD_WITHIN_S = 30.0  # the node asks every few seconds
STEP_WITHIN_S = 1800.0  # of training, however slow the machine
CLOSED_WITHIN_S = 300.0  # after a round's deadline
PROCESSES = Path("/proc")

_LISTENING = "0A"  # the state's number in /proc/net/tcp
_LOOPBACK = "0100007F"  # 127.0.0.1 there


def silent_parts(role: str, *, home: Path, port: int, connections: Path) -> list[str]:
    """What of ``role`` does not answer; ``connections`` is the kernel's table of TCP sockets.

    Raises:
        KeyError: there is no such role.
    """
    service = home / "run" / "trainer.sock"
    checks: dict[str, dict[str, Callable[[], bool]]] = {
        "trainer": {
            "service": lambda: _service_answers(service),
            "training": lambda: _training_goes_on(home / "trainer"),
        },
        "courier": {
            "service": lambda: _service_answers(service),
            "node": lambda: _loopback_listens(connections),
            "coordinator": lambda: _age_s(home / "courier" / "heard") < HEARD_WITHIN_S,
        },
        "coordinator": {
            "superlink": lambda: _superlink_answers(home / "tls" / "ca.pem", port),
            "superexec": lambda: _runs(b"flower_superexec"),
            "run": lambda: all(map(_run_goes_on, (home / "runs").glob("*"))),
        },
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


def _training_goes_on(trainer: Path) -> bool:
    """Whether the last step is done, is fresh, or is of a trainer that ended before this one began."""
    try:
        told = json.loads((trainer / "progress.json").read_text(encoding="utf-8"))
        ended = told["done"] >= told["total"]
    except (OSError, ValueError, KeyError, TypeError):
        return True  # no step yet
    age_s = _age_s(trainer / "progress.json")
    return ended or age_s < STEP_WITHIN_S or age_s > _age_s(trainer / "state.json")


def _run_goes_on(run: Path) -> bool:
    """Whether nobody conducts this run, or its log grew within the time that one round may take."""
    if not _is_held(run / "run.lock"):
        return True
    try:
        card = json.loads((run / "run.json").read_text(encoding="utf-8"))
        study = run.parents[1] / "studies" / card["study_hash"] / "study.toml"
        rules = tomllib.loads(study.read_text(encoding="utf-8"))["aggregation"]
        deadline_s = float(rules["round_deadline_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return _age_s(run / "log.jsonl") < deadline_s + CLOSED_WITHIN_S


def _is_held(lock: Path) -> bool:
    """Whether a living process holds the lock; read from the kernel's list, so that nobody is in its way."""
    try:
        inode = lock.stat().st_ino
        rows = (PROCESSES / "locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    return any(f":{inode} " in row for row in rows)


def _runs(word: bytes) -> bool:
    for line in PROCESSES.glob("[0-9]*/cmdline"):
        try:
            if word in line.read_bytes():
                return True
        except OSError:
            continue  # it ended while we looked
    return False


def _age_s(path: Path) -> float:
    """Seconds since the file was written; infinite if it is not there."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")


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
        print(f"{part}: silent")
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
