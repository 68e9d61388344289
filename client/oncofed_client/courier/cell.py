"""What the courier is given on disk, and what must stay hidden from it.

An allow-list: Python, its libraries and our two packages to run; a few devices and files that every
program needs; its own home; the folder of its trainer's socket. Nothing else is shown.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import oncofed_client
import oncofed_common
from oncofed_common.errors import SystemRefusal

_SYSTEM_FILES = (
    "/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64",
    "/etc/ld.so.cache", "/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf",
    "/etc/gai.conf", "/etc/localtime", "/usr/share/zoneinfo",
    "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted",
    "/usr/share/ca-certificates", "/usr/local/share/ca-certificates",
)  # fmt: skip
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What the courier is given, and what must stay hidden from it. Paths are absolute.

    ``program`` holds paths that may be read and executed, each with the real place of its content;
    ``listed`` are folders whose names alone may be read, for Python to find our packages there.
    """

    home: Path
    socket_dir: Path
    hidden: tuple[Path, ...]
    program: tuple[tuple[Path, Path], ...]
    listed: tuple[Path, ...]


def make_cell(*, home: Path, socket_dir: Path, hidden: Sequence[Path]) -> Cell:
    """What a courier with this home gets. Raises SystemRefusal if that would show what is hidden."""
    program = _program()
    cell = Cell(
        home=Path(os.path.realpath(home)),
        socket_dir=Path(os.path.realpath(socket_dir)),
        hidden=tuple(Path(os.path.realpath(path)) for path in hidden),
        program=program,
        listed=tuple(package.parent for package in _packages()),
    )
    given = [cell.home, cell.socket_dir, *cell.listed, *(real for _, real in program)]
    for secret in cell.hidden:
        if any(secret.is_relative_to(path) for path in given):
            raise SystemRefusal(
                "a hidden folder lies within a folder that the courier is given",
                allowed="cohort, trainer and other sites beside the courier's home and socket folder",
                next="move the courier's home, the socket or the data to a folder of its own",
                code="jail",
            )
    return cell


def _program() -> tuple[tuple[Path, Path], ...]:
    """Where Python, its libraries and our two packages are: (path as it is named, real place)."""
    named = [Path(path) for path in _SYSTEM_FILES]
    named += [Path(path) for path in (sys.prefix, sys.exec_prefix, sys.base_prefix)]
    named += _packages()
    hop = Path(sys.executable)
    while hop.is_symlink():
        hop = hop.parent / os.readlink(hop)
        named.append(Path(os.path.normpath(hop)))
    kept: list[tuple[Path, Path]] = []
    for path in sorted(set(named)):
        if path.exists() and not any(path.is_relative_to(outer) for outer, _ in kept):
            kept.append((path, Path(os.path.realpath(path))))
    return tuple(kept)


def _packages() -> list[Path]:
    return [Path(package.__path__[0]).absolute() for package in (oncofed_common, oncofed_client)]
