"""What the coordinator tells SuperLink over Flower's Control API: who is enrolled, and what to run.

The API has no accounts, so it is spoken on this machine alone; see ``superlink.py`` for how it is shut.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
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

from oncofed_common.durable import locked, write_atomic
from oncofed_common.errors import SystemRefusal
from oncofed_server.bundle import bundle_hash

NODES_FILE = "nodes.json"
LOOPBACK = "127.0.0.1"
_MOST_RUNS = 10_000

RunStatus = Literal["pending", "starting", "running", "finished"]


@dataclass(frozen=True, kw_only=True)
class Link:
    """A SuperLink that answers: the coordinator's home folder and the port on this machine."""

    home: Path
    port: int

    @property
    def ca_path(self) -> Path:
        return self.home / "tls" / "ca.pem"


def sync_nodes(link: Link, node_keys: Mapping[str, str]) -> dict[str, int]:
    """Make SuperLink know exactly these sites; their Flower node ids.

    ``node_keys`` maps a site to the public OpenSSH line of its node key. Keys that are missing there
    (a revoked site) are unregistered. Who a node id is, is written to ``nodes.json`` from this side
    alone: nothing that a node says of itself counts.
    """
    wanted = {_public_pem(line): site for site, line in node_keys.items()}
    with (
        locked(link.home / "nodes.lock", wait=True, busy="another registration of nodes"),
        _control(link) as control,
    ):
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


def stop_others(link: Link, run: str, *, but: int) -> list[int]:
    """Have Flower end whatever else it was handed for our run ``run``; its ids of what had not ended.

    A round loop that was killed leaves messages behind whose content it never sent. A node that has begun
    to fetch one asks for it, and hears of nothing new, until Flower takes their run for ended: by itself a
    minute later.

    Args:
        but: Flower's id of the one that goes on.
    """
    with _control(link) as control:
        runs = control.ListRuns(ListRunsRequest(limit=_MOST_RUNS)).run_dict
        others = [
            run_id
            for run_id, found in runs.items()
            if found.status.status != "finished"
            and found.override_config["run"].string == run
            and run_id != but
        ]
        for run_id in others:
            try:
                control.StopRun(StopRunRequest(run_id=run_id))
            except httpx.HTTPStatusError as error:  # by now it has ended by itself
                if error.response.status_code != httpx.codes.PRECONDITION_FAILED:
                    raise
    return others


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


def _public_pem(openssh_line: str) -> bytes:
    key = serialization.load_ssh_public_key(openssh_line.encode("ascii"))
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _no_run() -> SystemRefusal:
    return SystemRefusal(
        "a run that SuperLink does not know",
        allowed="a bundle that Flower accepts",
        next="read the log of SuperLink",
        code="superlink",
    )
