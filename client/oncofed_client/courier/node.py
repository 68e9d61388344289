"""How the courier is started: its key, its environment, its command line inside the jail.

Nothing here loads Flower; the process itself is ``supernode.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from oncofed_client.courier.jail import JailLevel, courier_command
from oncofed_common.carriage import PIECES

NODE_KEY_FILE = "node_key"
CA_FILE = "ca.pem"
NEVER_BY_PROXY = ("127.0.0.1", "localhost")
HEARD_FILE = "heard"  # touched whenever the coordinator answered
NOT_ENROLLED_FILE = "not_enrolled"  # there while the coordinator does not know the node's key

_TASK_POLL_S = 0.25  # how often the gate asks the SuperNode, over loopback


def make_node_key() -> tuple[bytes, str]:
    """A new Flower node key: the private half (OpenSSH PEM, P-384), and the public OpenSSH line."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private, public.decode("ascii")


def node_environment(
    *, home: Path, socket_path: Path, https_proxy: str | None, no_proxy: Sequence[str]
) -> dict[str, str]:
    """All of the courier's environment; nothing is inherited.

    ``https_proxy`` is the hospital's proxy as a URL, if there is one; ``no_proxy`` names hosts that
    are reached without it. Loopback never goes through a proxy.
    """
    direct = ",".join([*NEVER_BY_PROXY, *no_proxy])
    proxies = {"NO_PROXY": direct}
    if https_proxy is not None:
        proxies |= {"HTTPS_PROXY": https_proxy, "HTTP_PROXY": https_proxy}
    home = home.resolve()  # in the jail only real paths exist
    return {
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(_TASK_POLL_S),
        **PIECES,
        "ONCOFED_TRAINER_SOCKET": str(socket_path.parent.resolve() / socket_path.name),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "LANG": "C.UTF-8",
        **proxies,
        **{name.lower(): value for name, value in proxies.items()},
    }


def node_command(
    *,
    superlink: str,
    poll_s: float,
    level: JailLevel,
    home: Path,
    socket_path: Path,
    hidden: Sequence[Path],
) -> list[str]:
    """The command line that starts the courier in its jail; see ``courier_command`` for the last four.

    ``superlink`` is the coordinator's "host:port". ``poll_s`` is how long the node waits between two
    questions for work; Flower's own value is 3 s.
    """
    argv = [sys.executable, "-m", "oncofed_client.courier.supernode"]
    argv += ["--home", str(home.resolve()), "--superlink", superlink, "--poll-s", f"{poll_s:g}"]
    return courier_command(
        argv, level=level, home=home, socket_dir=socket_path.parent, hidden=hidden
    )
