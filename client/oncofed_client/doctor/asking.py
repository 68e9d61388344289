"""Look at the way to the coordinator from where the courier stands: in its jail, in its environment."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from oncofed_client.courier.jail import JailLevel, courier_command
from oncofed_client.courier.node import node_environment
from oncofed_client.courier.probe import Seen
from oncofed_client.home import Home
from oncofed_client.start import os_path

WITHIN_S = 90.0


def ask(
    home: Home, *, address: str, https_proxy: str | None, level: JailLevel, upload_bytes: int
) -> Seen | None:
    """What the probe saw; None if it does not run in the jail at all."""
    argv = [sys.executable, "-W", "ignore", "-m", "oncofed_client.courier.probe"]
    argv += ["--home", str(home.courier.resolve()), "--superlink", address]
    argv += ["--upload-bytes", str(upload_bytes)]
    command = courier_command(
        argv,
        level=level,
        home=home.courier,
        socket_dir=home.socket.parent,
        hidden=home.hidden_from_courier(),
    )
    environment = node_environment(
        home=home.courier, socket_path=home.socket, https_proxy=https_proxy, no_proxy=[]
    )
    try:
        said = subprocess.run(
            command,
            env=os_path(environment),
            cwd=home.courier,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=True,
        )
        found: Mapping[str, Any] = json.loads(said.stderr.splitlines()[-1])
        return Seen(
            **{**found, "addresses": tuple(found["addresses"]), "names": tuple(found["names"])}
        )
    except (OSError, ValueError, TypeError, LookupError, subprocess.SubprocessError):
        return None
