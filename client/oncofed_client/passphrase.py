"""The approver's passphrase, from a file that the approver names."""

from __future__ import annotations

from pathlib import Path

from oncofed_common.errors import SystemRefusal


def read_passphrase(path: Path) -> bytes:
    """The passphrase in ``path``. Raises SystemRefusal: code ``no_passphrase``."""
    try:
        return path.read_bytes().strip()
    except OSError:
        raise SystemRefusal(
            "a passphrase file that cannot be read",
            allowed="a file with the approver's passphrase",
            next="check the path and its permissions",
            code="no_passphrase",
        ) from None
