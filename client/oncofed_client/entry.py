"""``oncofed-site`` as it is installed: quiet when interrupted, even while it loads."""

from __future__ import annotations

from oncofed_common.entry import start


def main() -> None:
    start("oncofed_client.__main__")
