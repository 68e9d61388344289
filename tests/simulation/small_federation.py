"""Two virtual hospitals whose runs repeat, in real processes: settings, homes, and who of them runs."""

from __future__ import annotations

import os
from pathlib import Path

from oncofed_simulation.demo import PLAN


def seeded_settings(root: Path, *, rounds: int = 2) -> Path:
    """The demo's study, a few short rounds of it, repeatable."""
    text = PLAN.settings.read_text()
    for old, new in (
        ("rounds = 3", f"rounds = {rounds}"),
        ("steps_per_round = 6", "steps_per_round = 1"),
        ("reply_after_s = 20", "reply_after_s = 0"),
        ("sampling_rate = 0.25", "sampling_rate = 0.5"),
        ("round_deadline_s = 180", "round_deadline_s = 900"),
    ):
        assert old in text
        text = text.replace(old, new)
    path = root / "settings.toml"
    path.write_text(text + "\n[virtual]\nseed = 5\n")
    return path


def processes_that_mention(text: str) -> list[int]:
    """By their command lines; not this one."""
    return [pid for pid in _others() if text.encode() in _told(pid, "cmdline")]


def processes_of(home: Path) -> dict[int, bytes]:
    """Those whose environment or command line names a home, with their command lines, oldest first."""
    name = str(home).encode()
    found = [pid for pid in _others() if name in _told(pid, "environ") + _told(pid, "cmdline")]
    return {pid: _told(pid, "cmdline") for pid in found}


def _others() -> list[int]:
    pids = sorted(int(e.name) for e in Path("/proc").iterdir() if e.name.isdigit())
    return [pid for pid in pids if pid != os.getpid()]


def _told(pid: int, what: str) -> bytes:
    try:
        return (Path("/proc") / str(pid) / what).read_bytes()
    except OSError:
        return b""  # it ended while we looked
