"""Is there a GPU, does its driver work, and does the trainer's torch see it where the trainer runs?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oncofed_client.doctor.finding import Finding, fault, warning, well
from oncofed_client.isolation import isolated_command
from oncofed_client.start import KEPT_VARIABLES

WITHIN_S = 20.0
LEAST_FREE_MIB = 2048
_QUERY = "name,driver_version,memory.total,memory.free"
_TRY = """
import json, warnings
warnings.simplefilter("ignore")
import torch
seen = {"built": torch.version.cuda, "available": torch.cuda.is_available(), "works": False}
if seen["available"]:
    try:
        one = torch.ones(64, 64, device="cuda")
        seen["works"] = float((one @ one).sum()) == 64.0**3
    except RuntimeError:
        pass
print(json.dumps(seen))
"""


def gpu() -> Finding:
    """The driver is asked by its own program; then torch computes something, without a network."""
    devices = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    asked = _ask_driver()
    if asked is None and not devices:
        return well(
            "gpu", "no GPU: the trainer computes on the processor, for the small preset only"
        )
    if isinstance(asked, Finding):
        return asked
    return _judge(asked or [], _try_torch())


def _ask_driver() -> list[list[str]] | Finding | None:
    """One row a GPU; a finding where the driver says what is wrong; None without a driver's program."""
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10.0, check=False)
    except FileNotFoundError:
        return None
    except (OSError, subprocess.TimeoutExpired):
        return _broken("gpu_hangs", "the driver does not answer", "restart the machine")
    if "version mismatch" in said.stdout + said.stderr:
        seen = "the driver was updated, and the kernel still runs the old one"
        return _broken("gpu_driver_mismatch", seen, "restart the machine")
    if said.returncode != 0:
        seen = "the driver's own program fails"
        return _broken("gpu_driver", seen, "install the NVIDIA driver for this kernel, and restart")
    rows = [[word.strip() for word in row.split(",")] for row in said.stdout.splitlines()]
    return [row for row in rows if len(row) == 4]


def _try_torch() -> Mapping[str, Any]:
    """What torch sees where the trainer runs: {"built", "available", "works"}; empty if it fails."""
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    command = isolated_command([sys.executable, "-W", "ignore", "-c", _TRY])
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=WITHIN_S, env=environment, check=True
        )
        found: Mapping[str, Any] = json.loads(said.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}
    return found


def _judge(rows: list[list[str]], torch: Mapping[str, Any]) -> Finding:
    seen = "; ".join(f"{name}, driver {driver}" for name, driver, *_ in rows) or "a GPU"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch:
        return _broken("gpu_fails", f"{seen}; torch does not start", "install oncofed again")
    if torch["built"] is None:
        return _broken(
            "torch_without_cuda",
            f"{seen}; torch was installed without CUDA",
            "install torch for CUDA (see the head of deploy/trainer.Containerfile)",
        )
    if not torch["available"] and hidden is not None and hidden.strip() in ("", "-1"):
        return _broken(
            "gpu_hidden", f"{seen}; CUDA_VISIBLE_DEVICES hides it", "unset that variable"
        )
    if not torch["available"]:
        return _broken(
            "gpu_unseen",
            f"{seen}; torch for CUDA {torch['built']} does not see it",
            "update the driver for that CUDA; in a container give it the device (compose.gpu.yaml)",
        )
    if not torch["works"]:
        return _broken("gpu_fails", f"{seen}; a small computation fails on it", "see dmesg")
    return _room(rows, seen)


def _room(rows: list[list[str]], seen: str) -> Finding:
    free = [int(row[3]) for row in rows if row[3].isdigit()]
    if free and max(free) < LEAST_FREE_MIB:
        return warning(
            "gpu",
            "gpu_memory",
            f"{seen}; {max(free)} MiB free",
            whose="this machine",
            next="end what else uses the GPU (nvidia-smi lists it)",
        )
    return well("gpu", seen)


def _broken(code: str, seen: str, doing: str) -> Finding:
    return fault("gpu", code, seen, whose="this machine", next=doing)
