"""What keeps the courier from the trainer's files: nothing that it was not given exists for it.

The courier talks to the network, so it is the part of a hospital that is attacked first. It runs in a
root directory of its own that holds the Python it needs, its home, and the folder with the one socket
of its trainer; in a process namespace of its own; without capabilities; and under Landlock, which
also forbids to mount anything again, to signal or to trace a process outside, and abstract sockets.
There is no ``/proc`` in it. The network stays.

Three levels, and the kernel decides which: ``namespaces+landlock`` as above; ``landlock`` where a
container runtime forbids namespaces (it must then keep the trainer's files out of this container: what
Landlock does not mediate, such as sockets with a name, is up to file permissions); ``none``.

The launcher ends by trying what must fail: if a hidden path can be opened, it does not start the
courier. It stays as parent of the jail, hands signals on, and takes the jail with it when it dies.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NoReturn

from oncofed_client.courier import kernel
from oncofed_client.courier.cell import DEVICES, Cell, make_cell
from oncofed_client.courier.kernel import MountFlag
from oncofed_client.courier.landlock import Access, landlock_abi, restrict
from oncofed_common.errors import OncofedError, SystemRefusal

JailLevel = Literal["namespaces+landlock", "landlock", "none"]

_LANDLOCK_ABI_THAT_SUFFICES_ALONE = 6  # the first that keeps signals and abstract sockets inside
_INNER_ID = 1000  # not 0: nothing inside should take itself for root
_OLD_ROOT = Path("/.old-root")
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

_READ = Access.READ_FILE | Access.READ_DIR
_RUN = _READ | Access.EXECUTE
_KEEP = (
    _READ
    | Access.WRITE_FILE
    | Access.TRUNCATE
    | Access.REFER
    | Access.REMOVE_DIR
    | Access.REMOVE_FILE
    | Access.MAKE_DIR
    | Access.MAKE_REG
    | Access.MAKE_SYM
    | Access.MAKE_SOCK
    | Access.MAKE_FIFO
)


def courier_command(
    argv: Sequence[str],
    *,
    level: JailLevel,
    home: Path,
    socket_dir: Path,
    hidden: Sequence[Path],
) -> list[str]:
    """The command line that runs ``argv`` as the courier of one site, at ``level``.

    ``argv[0]`` is an absolute path: Python, or a program beside it (there is no other in the jail).
    ``home`` is the courier's own folder (it may write there alone), ``socket_dir`` the folder that
    holds the trainer's socket and nothing else. ``hidden`` are the cohort, the trainer's home, the
    other sites: whatever must not be opened. With level ``none`` it is ``argv`` itself, which only a
    home of virtual patients may use.

    Raises SystemRefusal where what is hidden lies within what is given.
    """
    make_cell(home=home, socket_dir=socket_dir, hidden=hidden)
    if level == "none":
        return list(argv)
    command = [sys.executable, "-m", "oncofed_client.courier.jail", "--level", level]
    command += ["--home", str(home.absolute()), "--socket-dir", str(socket_dir.absolute())]
    for path in hidden:
        command += ["--hidden", str(path.absolute())]
    return [*command, "--", *argv]


@cache
def jail_level() -> JailLevel:
    """The strongest level that this machine and this user can have, found by starting one.

    Raises SystemRefusal if a trial fails for another reason than the kernel's refusal.
    """
    levels: tuple[JailLevel, ...] = ("namespaces+landlock", "landlock")
    with tempfile.TemporaryDirectory() as folder:
        home, sockets, hidden = (Path(folder, name) for name in ("home", "sockets", "hidden"))
        for path in (home, sockets, hidden):
            path.mkdir(mode=0o700)
        for level in levels:
            argv = [sys.executable, "-c", "raise SystemExit(0)"]
            command = courier_command(
                argv, level=level, home=home, socket_dir=sockets, hidden=[hidden]
            )
            tried = subprocess.run(command, check=False, capture_output=True, timeout=60)
            if tried.returncode == 0:
                return level
            if tried.returncode != SystemRefusal.exit_code:
                raise SystemRefusal(
                    f"a trial of the jail that ended with status {tried.returncode}",
                    allowed="a jail that holds, or one that the kernel refuses",
                    next="report this: the jail itself is at fault",
                    code="jail",
                )
    return "none"


def main(arguments: Sequence[str]) -> int:
    """Build the jail and run the command in it; its exit status, or 2 if the jail was refused."""
    parser = argparse.ArgumentParser(prog="courier-jail")
    parser.add_argument("--level", required=True, choices=["namespaces+landlock", "landlock"])
    parser.add_argument("--home", required=True, type=Path)
    parser.add_argument("--socket-dir", required=True, type=Path)
    parser.add_argument("--hidden", action="append", default=[], type=Path)
    parser.add_argument("argv", nargs="+")
    asked = parser.parse_args(arguments)
    try:
        cell = make_cell(home=asked.home, socket_dir=asked.socket_dir, hidden=asked.hidden)
        if asked.level == "landlock":
            _run_under_landlock(cell, asked.argv)
        return _run_in_namespaces(cell, asked.argv)
    except OncofedError as refusal:
        sys.stderr.write(f"{refusal}\n")
        return refusal.exit_code
    except OSError as error:
        sys.stderr.write(f"{_os_refusal(error)}\n")
        return 2


def _run_under_landlock(cell: Cell, argv: Sequence[str]) -> NoReturn:
    if landlock_abi() < _LANDLOCK_ABI_THAT_SUFFICES_ALONE:
        raise SystemRefusal(
            "this kernel's Landlock does not keep signals inside",
            allowed=f"Landlock version {_LANDLOCK_ABI_THAT_SUFFICES_ALONE}, or user namespaces",
            next="use a newer kernel, allow user namespaces, or give the courier a container",
            code="jail",
        )
    _confine_and_execute(cell, argv)


def _run_in_namespaces(cell: Cell, argv: Sequence[str]) -> int:
    kernel.enter_namespaces(
        kernel.CLONE_NEWUSER
        | kernel.CLONE_NEWNS
        | kernel.CLONE_NEWPID
        | kernel.CLONE_NEWIPC
        | kernel.CLONE_NEWUTS,
        inner_id=_INNER_ID,
    )
    parent_lives, parent_holds = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            os.close(parent_holds)
            kernel.die_with_parent(signal.SIGKILL)
            if select.select([parent_lives], [], [], 0)[0]:  # closed: the parent died before this
                os._exit(1)
            _build_root(cell)
            _confine_and_execute(cell, argv)
        except OncofedError as refusal:
            os.write(2, f"{refusal}\n".encode())
            os._exit(refusal.exit_code)
        except OSError as error:
            os.write(2, f"{_os_refusal(error)}\n".encode())
            os._exit(2)
    for number in _FORWARDED:
        signal.signal(number, lambda received, _frame: os.kill(child, received))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _build_root(cell: Cell) -> None:
    kernel.make_mounts_private()
    base = cell.home  # any folder will do as the place where the new root is mounted
    kernel.mount_tmpfs(base)
    (base / _OLD_ROOT.name).mkdir()
    kernel.pivot_root(base, base / _OLD_ROOT.name)
    closed = MountFlag.READ_ONLY | MountFlag.NO_SETUID
    for path, real in cell.program:
        _show(real, path, closed | MountFlag.NO_DEVICES)
    for device in map(Path, DEVICES):
        _show(device, device, closed)
    _show(cell.socket_dir, cell.socket_dir, closed | MountFlag.NO_DEVICES | MountFlag.NO_EXEC)
    _show(cell.home, cell.home, MountFlag.NO_SETUID | MountFlag.NO_DEVICES | MountFlag.NO_EXEC)
    kernel.detach(_OLD_ROOT)
    _OLD_ROOT.rmdir()
    kernel.set_mount_flags(Path("/"), closed | MountFlag.NO_DEVICES, recursive=False)


def _show(real: Path, path: Path, flags: MountFlag) -> None:
    source = _OLD_ROOT / real.relative_to("/")
    if source.is_dir():
        path.mkdir(parents=True, exist_ok=True)
    elif source.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    else:
        return
    kernel.bind(source, path, flags)


def _confine_and_execute(cell: Cell, argv: Sequence[str]) -> NoReturn:
    os.chdir(cell.home)
    kernel.drop_privileges()
    grants = [(path, _RUN) for path, _ in cell.program]
    grants += [(path, Access.READ_DIR) for path in cell.listed]
    grants += [(Path(device), Access.READ_FILE | Access.WRITE_FILE) for device in DEVICES]
    grants += [(cell.socket_dir, _READ), (cell.home, _KEEP)]
    restrict(grants)
    for secret in cell.hidden:
        _must_stay_shut(secret)
    kernel.close_inherited_files()
    os.execv(argv[0], list(argv))  # noqa: S606


def _must_stay_shut(secret: Path) -> None:
    try:
        os.close(os.open(secret, os.O_RDONLY | os.O_NONBLOCK))
    except OSError:
        return
    raise SystemRefusal(
        "a hidden path can be opened from inside the jail",
        allowed="no access to cohort, trainer and other sites",
        next="report this: the jail does not hold on this machine",
        code="jail",
    )


def _os_refusal(error: OSError) -> SystemRefusal:
    reason = os.strerror(error.errno) if error.errno else "an error"
    return SystemRefusal(
        f"a jail that could not be built or entered ({reason})",
        allowed="a courier's home, a socket folder and a program that exist",
        next="see that the home folder is whole: oncofed-site doctor",
        code="jail",
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
