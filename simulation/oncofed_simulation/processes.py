"""The demo's processes: started side by side, waited for, stopped together, and never left behind.

``record`` names every process by id and start time, so that the next demo ends what a killed one may
have left (the kernel takes most of it: each child dies with its parent).
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from oncofed_common.errors import SystemRefusal
from oncofed_common.processes import Mark, end, load_marks, mark, save_marks, spawn

_POLL_S = 0.05


class Supervisor:
    """Everything that one command has started, in order; a context manager that stops it all.

    ``start`` must be called from a thread that lives as long as the children: the main thread.
    """

    def __init__(self, record: Path, *, grace_s: float) -> None:
        self._record = record
        self._grace_s = grace_s
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._marks: dict[str, Mark] = {}

    def __enter__(self) -> Supervisor:
        end_leftovers(self._record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        folder: Path,
    ) -> None:
        """Start ``argv`` in ``folder`` with exactly this environment, output appended to ``log``."""
        if name in self._children and self._children[name].poll() is None:
            raise _refusal(f"a second process called {name}", next="stop the first one")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            child = spawn(argv, environment=environment, log=output, folder=folder)
        self.adopt(name, child)

    def adopt(self, name: str, child: subprocess.Popen[bytes]) -> None:
        """Look after a child that something else of ours has started."""
        self._children[name] = child
        found = mark(name, child.pid)
        if found is not None:
            self._marks[name] = found
            self._record.parent.mkdir(parents=True, exist_ok=True)
            save_marks(self._record, list(self._marks.values()))

    def ended(self) -> dict[str, int]:
        """The children that ended by themselves, with their status (negative: by that signal)."""
        found = {name: child.poll() for name, child in self._children.items()}
        return {name: status for name, status in found.items() if status is not None}

    def wait_ready(self, ready: Callable[[], bool], *, what: str, within_s: float) -> None:
        """Return once ``ready`` says so. Raises SystemRefusal if any child ends, or time is up."""
        ends_s = time.monotonic() + within_s
        while not ready():
            for name, status in self.ended().items():
                raise _refusal(f"{name} ended with status {status}", next=f"read the log of {name}")
            if time.monotonic() > ends_s:
                raise _refusal(f"{what} not ready after {within_s:g} s", next="read the logs")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End every child, the last started first: asked, then killed after the grace time."""
        end(list(reversed(self._marks.values())), grace_s=self._grace_s)
        for child in self._children.values():
            child.wait()
        self._children.clear()
        self._marks.clear()
        self._record.unlink(missing_ok=True)


def end_leftovers(record: Path) -> int:
    """Kill what a dead command left running according to its record; how many processes.

    Raises:
        SystemRefusal: code ``bad_marks``; a record that cannot be read ends nobody.
    """
    left = end(load_marks(record), grace_s=0.0)
    record.unlink(missing_ok=True)
    return len(left)


def _refusal(found: str, *, next: str) -> SystemRefusal:
    return SystemRefusal(
        found,
        allowed="processes that start, and run until they are stopped",
        next=next,
        code="process",
    )
