"""The courier as a process: Flower's SuperNode, and beside it the gate that answers its tasks.

The SuperNode keeps the line to the coordinator (HTTPS, outbound, signed by its node key); its own
Runtime API listens on loopback and hands tasks only to whoever knows a secret made at start. If either
half dies, both do: whoever started the courier starts it again.

Before that it asks whether the coordinator knows this site at all, and waits where not (``enrolled``).

The environment must be that of ``node.node_environment``: Flower reads it when it is imported.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, ClassVar, NoReturn

import httpx
from flwr.supercore import heartbeat
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_push_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError, pull_objects
from flwr.supercore.retry import http_retry
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.cli import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient

from oncofed_client.courier import enrolled, gate, kernel
from oncofed_client.courier.node import CA_FILE, HEARD_FILE, NODE_KEY_FILE
from oncofed_common.durable import write_atomic

_SECRET_FILE = "runtime.secret"  # noqa: S105  the name of a file
_GATE_WAITS_S = 60
_HEARTBEAT_S = (
    10  # the least that SuperLink takes; twice that after the last one it lets a new node in
)
_RETRY_WITHIN_S = 5
_PULL_WITHIN_S = 2
_LET_IN_WITHIN_S = 3 * _HEARTBEAT_S
_LET_IN_EVERY_S = 1.0


def main(arguments: Sequence[str]) -> int:
    """Run SuperNode and gate until told to stop, or until one of them is gone."""
    parser = argparse.ArgumentParser(prog="courier")
    parser.add_argument("--home", required=True, type=Path)
    parser.add_argument("--superlink", required=True)
    parser.add_argument("--poll-s", required=True, type=float)
    asked = parser.parse_args(arguments)
    _log_to_stderr()
    for folder in ("tmp", "flwr"):
        (asked.home / folder).mkdir(mode=0o700, exist_ok=True)
    _wait_until_known(asked.home, superlink=asked.superlink)
    _mend_flower(poll_s=asked.poll_s, heard=asked.home / HEARD_FILE)
    secret = secrets.token_bytes(32)
    write_atomic(asked.home / _SECRET_FILE, secret, mode=0o600)
    port = _free_port()
    child = os.fork()
    if child == 0:
        _be_the_gate(asked.home, port=port, secret=secret)
    threading.Thread(target=_end_with, args=(child,), daemon=True).start()
    _be_the_node(asked.home, superlink=asked.superlink, port=port)
    return 1  # Flower gave up without a signal: the caller starts the courier again


def _wait_until_known(home: Path, *, superlink: str) -> None:
    def leave(_number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(
            number, leave
        )  # the first process of a jail hears nothing that it has no handler for
    enrolled.wait_until_known(
        home, asked=lambda: enrolled.put(home, superlink=superlink, environment=os.environ)
    )


def _log_to_stderr() -> None:
    """Our own lines, beside Flower's; the root logger stays silent (Flower would say all twice)."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.getLogger("oncofed").addHandler(handler)


def _mend_flower(*, poll_s: float, heard: Path) -> None:
    """Eight things that Flower 1.41 has no setting for; ``heard`` is touched whenever SuperLink answered."""
    # A proxy that is away for a while would leave the node alive but silent for ever.
    http_retry._RETRYABLE_TRANSPORT_ERRORS += (httpx.ProxyError,)
    # A coordinator that was away for a minute would be tried again after up to twenty seconds more.
    http_retry.MAX_RETRY_DELAY = _RETRY_WITHIN_S
    # A piece that was stored and whose answer was lost is not stored again when it is repeated, which Flower
    # takes for a failure, and forgets the reply. If it is not there after all, the task will come again.
    fleet_http_connection.make_push_object_fn_protobuf = _pushing

    # Where a round loop dies in the middle of a task, its nodes ask for the rest, soon every ten seconds;
    # that nothing will come they hear when they ask.
    start_client_internal.pull_objects = partial(pull_objects, backoff_cap=_PULL_WITHIN_S)

    # A courier that is killed takes no leave, and as long as it seems to be there its successor is refused:
    # the node would end, be started again, and miss the moment by many seconds.
    _PatientClient.heard = heard
    fleet_http_connection.FleetHttpClient = _PatientClient
    fleet_http_connection.HEARTBEAT_DEFAULT_INTERVAL = _HEARTBEAT_S
    heartbeat.HEARTBEAT_DEFAULT_INTERVAL = _HEARTBEAT_S

    def wait(seconds: float | int) -> None:
        time.sleep(min(seconds, poll_s))

    start_client_internal.time = SimpleNamespace(sleep=wait)


class _PatientClient(FleetHttpClient):  # type: ignore[misc]  # flwr is not followed by mypy
    """Flower's client of SuperLink, which knocks until it is let in, and notes when it was answered."""

    heard: ClassVar[Path]

    def _unary_unary(self, **request: Any) -> Any:
        answer = super()._unary_unary(**request)
        with suppress(OSError):  # a full disk ends no courier
            self.heard.touch(mode=0o600)
        return answer

    def ActivateNode(self, request: Any) -> Any:  # noqa: N802  Flower's name
        """Raises httpx.HTTPStatusError: what SuperLink still says when the predecessor must be gone."""
        ends_s = time.monotonic() + _LET_IN_WITHIN_S
        while True:
            try:
                return super().ActivateNode(request)
            except httpx.HTTPStatusError as error:
                refused = error.response.status_code == httpx.codes.PRECONDITION_FAILED
                if not refused or time.monotonic() > ends_s:
                    raise
            time.sleep(_LET_IN_EVERY_S)


def _pushing(*session: Any) -> Callable[[str, bytes], None]:
    push = make_push_object_fn_protobuf(*session)

    def push_or_go_on(name: str, piece: bytes) -> None:
        with suppress(ObjectPushError):
            push(name, piece)

    return push_or_go_on


def _be_the_gate(home: Path, *, port: int, secret: bytes) -> None:
    """The child's whole life; never returns."""
    try:
        kernel.die_with_parent(signal.SIGKILL)
        _wait_for_port(port)
        gate.serve_tasks(home=home, runtime_address=f"127.0.0.1:{port}", secret=secret)
    finally:
        os._exit(1)


def _be_the_node(home: Path, *, superlink: str, port: int) -> None:
    sys.argv = ["flower-supernode", "--superlink", superlink]
    sys.argv += ["--root-certificates", str(home / CA_FILE)]
    sys.argv += ["--auth-supernode-private-key", str(home / NODE_KEY_FILE)]
    sys.argv += ["--host", "127.0.0.1", "--port", str(port), "--isolation", "process"]
    sys.argv += ["--superexec-auth-secret-file", str(home / _SECRET_FILE)]
    flower_supernode()


def _end_with(child: int) -> None:
    os.waitpid(child, 0)
    os._exit(1)


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_for_port(port: int) -> None:
    ends_s = time.monotonic() + _GATE_WAITS_S
    while time.monotonic() < ends_s:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # Flower's server thread would keep a dead node alive
