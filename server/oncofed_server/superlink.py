"""How the coordinator's Flower processes are started; ``control.py`` is what they are then told.

Two processes: SuperLink (TLS, node authentication, SQLite state, everything on one port) and SuperExec,
which starts the ServerApp. Flower's Control API has no accounts: whoever reaches it can start a run. So
SuperLink listens on loopback unless told otherwise, a proxy in front shows sites ``/v1/fleet/`` only,
and no site runs a bundle that it has not approved.
"""

from __future__ import annotations

import datetime
import os
import secrets
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from oncofed_common.address import is_host_name, is_ip_address
from oncofed_common.carriage import PIECES
from oncofed_common.durable import write_atomic
from oncofed_common.errors import SystemRefusal
from oncofed_common.processes import Mark, end, mark, spawn
from oncofed_server.certificates import make_certificates
from oncofed_server.control import (
    LOOPBACK,
    Link,
    online_sites,
    read_nodes,
    run_status,
    stop_others,
    submit,
    sync_nodes,
)

__all__ = [
    "HOME_VARIABLE",
    "LOOPBACK",
    "Link",
    "Running",
    "free_port",
    "link_environment",
    "online_sites",
    "prepare",
    "read_nodes",
    "run_status",
    "start",
    "stop_others",
    "submit",
    "sync_nodes",
]

HOME_VARIABLE = "ONCOFED_COORDINATOR_HOME"

_ATTEMPTS = 3  # a free port can be taken by somebody else before SuperLink has it
_IN_USE = b"address already in use"
_TASK_POLL_S = 0.25
_WATCH_EVERY_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Running:
    """The two processes behind a link."""

    link: Link
    superlink: subprocess.Popen[bytes]
    superexec: subprocess.Popen[bytes]

    def stop(self, *, grace_s: float) -> None:
        """End both, asked first; SuperLink's database keeps what it knew."""
        for process in (self.superexec, self.superlink):
            _end(process, grace_s=grace_s)


def prepare(home: Path, *, names: Sequence[str], now: datetime.datetime) -> None:
    """Make certificates for ``names`` and the secret between SuperLink and SuperExec, once."""
    make_certificates(home / "tls", names=names, now=now)
    secret = home / "tls" / "superexec.secret"
    if not secret.exists():
        write_atomic(secret, secrets.token_bytes(32), mode=0o600)


def start(
    *,
    home: Path,
    host: str,
    port: int | None,
    environment: Mapping[str, str],
    within_s: float,
) -> Running:
    """Start SuperLink and SuperExec, and return as soon as SuperLink answers.

    ``port`` None takes a free one. ``environment`` is ``link_environment``, with additions if need be.
    Both die with the calling thread; their output goes to ``logs/`` of the home. Raises SystemRefusal:
    ``bad_host``, ``port_in_use``, or ``superlink`` if it does not answer after ``within_s``.
    """
    _refuse_host(host)
    if port is not None and not _is_free(host, port):
        raise _port_in_use()
    logs = home / "logs"
    logs.mkdir(exist_ok=True)
    for attempt in range(_ATTEMPTS):
        link = Link(home=home.absolute(), port=free_port() if port is None else port)
        written = _size(logs / "superlink.log")
        superlink = _spawn(_superlink_command(link, host=host), "superlink", link, environment)
        if _comes_up(link, superlink, within_s=within_s):
            superexec = _spawn(_superexec_command(link), "superexec", link, environment)
            return Running(link=link, superlink=superlink, superexec=superexec)
        _end(superlink)
        lost_race = _IN_USE in (logs / "superlink.log").read_bytes()[written:]
        if not lost_race or port is not None or attempt == _ATTEMPTS - 1:
            raise _port_in_use() if lost_race else _not_up(within_s)
    raise AssertionError  # the last attempt returned or raised


def link_environment(home: Path) -> dict[str, str]:
    """All of the environment of SuperLink, SuperExec and ServerApp; nothing is inherited."""
    return {
        "HOME": str(home.absolute()),
        "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
        "FLWR_HOME": str(home.absolute() / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(_TASK_POLL_S),
        **PIECES,
        HOME_VARIABLE: str(home.absolute()),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "LANG": "C.UTF-8",
    }


def free_port() -> int:
    """A TCP port on loopback that nobody holds now; be ready to lose the race for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def _spawn(
    argv: Sequence[str], name: str, link: Link, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with (link.home / "logs" / f"{name}.log").open("ab") as log:
        return spawn(argv, environment=environment, log=log, folder=link.home)


def _comes_up(link: Link, superlink: subprocess.Popen[bytes], *, within_s: float) -> bool:
    ends_s = time.monotonic() + within_s
    while superlink.poll() is None and time.monotonic() < ends_s:
        if _answers(link):
            return superlink.poll() is None
        time.sleep(_WATCH_EVERY_S)
    return False


def _end(process: subprocess.Popen[bytes], *, grace_s: float = 0.0) -> None:
    found: Mark | None = mark("flower", process.pid)
    if found is not None:
        end([found], grace_s=grace_s)
    process.wait()


def _superlink_command(link: Link, *, host: str) -> list[str]:
    tls = link.home / "tls"
    command = [sys.executable, "-c", _START.format("flwr.superlink.cli", "flower_superlink")]
    command += ["--host", host, "--port", str(link.port)]
    command += ["--ssl-ca-certfile", str(tls / "ca.pem")]
    command += ["--ssl-certfile", str(tls / "server.pem")]
    command += ["--ssl-keyfile", str(tls / "server.key")]
    command += ["--enable-supernode-auth", "--database", str(link.home / "superlink.sqlite")]
    command += ["--disable-runtime-dependency-installation", "--isolation", "process"]
    return [*command, "--superexec-auth-secret-file", str(tls / "superexec.secret")]


def _superexec_command(link: Link) -> list[str]:
    tls = link.home / "tls"
    command = [sys.executable, "-c", _START.format("flwr.supercore.cli", "flower_superexec")]
    command += ["--runtime-api-address", f"{LOOPBACK}:{link.port}"]
    command += ["--root-certificates", str(tls / "ca.pem")]
    return [*command, "--superexec-auth-secret-file", str(tls / "superexec.secret")]


_START = "from {0} import {1} as main; main()"


def _answers(link: Link) -> bool:
    verify = ssl.create_default_context(cafile=str(link.ca_path))
    try:
        with httpx.Client(verify=verify, trust_env=False) as client:
            return (
                client.get(f"https://{LOOPBACK}:{link.port}/health").status_code == httpx.codes.OK
            )
    except httpx.HTTPError:
        return False


def _refuse_host(host: str) -> None:
    if not (is_ip_address(host) or is_host_name(host)) or not _is_free(host, 0):
        raise SystemRefusal(
            "an address to listen on that this machine does not have",
            allowed="127.0.0.1, 0.0.0.0, or an address or host name of this machine",
            next="correct --host",
            code="bad_host",
        )


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError):  # UnicodeError: a name that no resolver can be asked for
            return False
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _not_up(within_s: float) -> SystemRefusal:
    return SystemRefusal(
        "a SuperLink that does not come up",
        allowed=f"an answer within {within_s:g} s",
        next="read logs/superlink.log of the coordinator's home",
        code="superlink",
    )


def _port_in_use() -> SystemRefusal:
    return SystemRefusal(
        "a port that another program holds",
        allowed="a free port for SuperLink",
        next="name another --port, or stop the other program",
        code="port_in_use",
    )
