"""How the coordinator's Flower processes are started, told who is enrolled, and given a run.

Two processes: SuperLink (TLS, node authentication, SQLite state, everything on one port) and SuperExec,
which starts the ServerApp. Flower's Control API has no accounts: whoever reaches it can start a run. So
SuperLink listens on loopback unless told otherwise, a proxy in front shows sites ``/v1/fleet/`` only,
and no site runs a bundle that it has not approved.
"""

from __future__ import annotations

import datetime
import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
from cryptography.hazmat.primitives import serialization
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab

from oncofed_common.errors import SystemRefusal
from oncofed_common.processes import Mark, end, mark, spawn
from oncofed_server.bundle import bundle_hash
from oncofed_server.certificates import make_certificates
from oncofed_server.durable import write_atomic

HOME_VARIABLE = "ONCOFED_COORDINATOR_HOME"
NODES_FILE = "nodes.json"
LOOPBACK = "127.0.0.1"

RunStatus = Literal["pending", "starting", "running", "finished"]

_ATTEMPTS = 3  # a free port can be taken by somebody else before SuperLink has it
_IN_USE = b"address already in use"
_TASK_POLL_S = 0.25
_WATCH_EVERY_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Link:
    """A SuperLink that answers: the coordinator's home folder and the port on this machine."""

    home: Path
    port: int

    @property
    def ca_path(self) -> Path:
        return self.home / "tls" / "ca.pem"


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
    ``port_in_use``, or ``superlink`` if it does not answer after ``within_s``.
    """
    if port is not None and not _is_free(host, port):
        raise _port_in_use()
    logs = home / "logs"
    logs.mkdir(exist_ok=True)
    for attempt in range(_ATTEMPTS):
        link = Link(home=home, port=free_port() if port is None else port)
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


def sync_nodes(link: Link, node_keys: Mapping[str, str]) -> dict[str, int]:
    """Make SuperLink know exactly these sites; their Flower node ids.

    ``node_keys`` maps a site to the public OpenSSH line of its node key. Keys that are missing there
    (a revoked site) are unregistered. Who a node id is, is written to ``nodes.json`` from this side
    alone: nothing that a node says of itself counts.
    """
    wanted = {_public_pem(line): site for site, line in node_keys.items()}
    with _control(link) as control:
        known = {
            node.public_key: node.node_id
            for node in control.ListNodes(ListNodesRequest()).nodes_info
            if node.status != "unregistered"
        }
        for key, node_id in known.items():
            if key not in wanted:
                control.UnregisterNode(UnregisterNodeRequest(node_id=node_id))
        ids: dict[str, int] = {}
        for key, site in wanted.items():
            if key not in known:
                known[key] = control.RegisterNode(
                    RegisterNodeRequest(public_key=key, name=site)
                ).node_id
            ids[site] = known[key]
    rows = {str(node_id): site for site, node_id in sorted(ids.items())}
    write_atomic(link.home / NODES_FILE, json.dumps(rows, indent=1).encode(), mode=0o600)
    return ids


def online_sites(link: Link) -> set[str]:
    """Sites whose node SuperLink has heard of lately."""
    names = read_nodes(link.home)
    with _control(link) as control:
        nodes = control.ListNodes(ListNodesRequest()).nodes_info
    return {
        names[node.node_id] for node in nodes if node.status == "online" and node.node_id in names
    }


def read_nodes(home: Path) -> dict[int, str]:
    """Which site each Flower node id is, as written by ``sync_nodes``."""
    try:
        rows = json.loads((home / NODES_FILE).read_text(encoding="utf-8"))
        return {int(node_id): str(site) for node_id, site in rows.items()}
    except (OSError, ValueError, AttributeError):
        raise SystemRefusal(
            "no list of the sites' nodes",
            allowed="a coordinator that has registered its sites",
            next="start the coordinator: oncofed-coordinator start",
            code="nodes",
        ) from None


def submit(link: Link, bundle: bytes, *, run: str) -> int:
    """Start the ServerApp of ``bundle`` for our run ``run`` (hex); Flower's own id of it."""
    fab = Fab(bundle_hash(bundle), bundle, {})
    request = StartRunRequest(
        fab=fab_to_proto(fab), override_config=user_config_to_proto({"run": run})
    )
    with _control(link) as control:
        answer = control.StartRun(request)
    if not answer.HasField("run_id"):
        raise _no_run()
    return int(answer.run_id)


def run_status(link: Link, run_id: int) -> tuple[RunStatus, bool]:
    """How far Flower is with a run, and whether it finished without failing."""
    with _control(link) as control:
        found = control.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
    if run_id not in found:
        raise _no_run()
    status = found[run_id].status
    return status.status, status.sub_status == "completed"


def stop_run(link: Link, run_id: int) -> None:
    """Have Flower end the ServerApp; our round loop resumes from its checkpoint, if ever."""
    with _control(link) as control:
        control.StopRun(StopRunRequest(run_id=run_id))


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


class _Control(ControlHttpClient):  # type: ignore[misc]  # flwr is not followed by mypy
    """Flower's client of the Control API, which here is on this machine: no proxy, no redirect."""

    def __init__(self, base_url: str, *, verify: Any, **settings: Any) -> None:
        super().__init__(base_url, verify=verify, **settings)
        self._client: httpx.Client
        self._client.close()
        self._client = httpx.Client(verify=verify, timeout=30.0, trust_env=False)


@contextmanager
def _control(link: Link) -> Iterator[_Control]:
    verify = ssl.create_default_context(cafile=str(link.ca_path))
    with _Control(f"https://{LOOPBACK}:{link.port}", verify=verify) as control:
        try:
            yield control
        except httpx.HTTPError:
            raise SystemRefusal(
                "a SuperLink that does not do as it was asked",
                allowed="a running SuperLink that knows these nodes and this run",
                next="read its log",
                code="superlink",
            ) from None


def _answers(link: Link) -> bool:
    verify = ssl.create_default_context(cafile=str(link.ca_path))
    try:
        with httpx.Client(verify=verify, trust_env=False) as client:
            return (
                client.get(f"https://{LOOPBACK}:{link.port}/health").status_code == httpx.codes.OK
            )
    except httpx.HTTPError:
        return False


def _public_pem(openssh_line: str) -> bytes:
    key = serialization.load_ssh_public_key(openssh_line.encode("ascii"))
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
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


def _no_run() -> SystemRefusal:
    return SystemRefusal(
        "a run that SuperLink does not know",
        allowed="a bundle that Flower accepts",
        next="read the log of SuperLink",
        code="superlink",
    )
