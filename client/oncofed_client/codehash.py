"""Which code is this? One hash over everything that runs where the scans are.

The hash covers the Python files and shipped weights of ``oncofed_common`` and ``oncofed_client`` by
relative path and SHA-256, so that a wheel and an editable install of the same sources agree.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

import oncofed_client
import oncofed_common
from oncofed_common.identity import canonical, digest

SUFFIXES = {".py", ".safetensors", ".json", ".toml"}


@cache
def code_hash() -> str:
    """SHA-256 in hex of the code that an approval names (``wheel_hash`` on the wire)."""
    return hash_of(oncofed_common, oncofed_client)


def hash_of(*packages: ModuleType) -> str:
    """SHA-256 in hex of the code and weights of ``packages``."""
    files: dict[str, str] = {}
    for package in packages:
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                name = f"{package.__name__}/{path.relative_to(root).as_posix()}"
                files[name] = digest(path.read_bytes())
    return digest(canonical({"files": files}))
