"""Has this machine, container or account what the trainer needs: packages, memory, processes, files?"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import resource
import sys
from pathlib import Path

from oncofed_client.doctor.finding import Finding, fault, warning, well

LEAST_BYTES = 2**30
ENOUGH_BYTES = 2 * 2**30
LEAST_FILES = 256
LEAST_PROCESSES = 128
LEAST_FILE_BYTES = 64 * 2**20
PYTHON = (3, 11)
_PINNED = re.compile(r"([A-Za-z0-9_.-]+)(==([0-9][^;\s]*))?[^;]*;\s*extra\s*==\s*[\"'](\w+)[\"']")


def versions(*, with_courier: bool) -> Finding:
    """Python and every package of trainer and courier, against what this release asks for."""
    if sys.version_info[:2] != PYTHON:
        return fault(
            "versions",
            "python_version",
            f"Python {platform.python_version()}",
            whose="this machine",
            next=f"install oncofed in a Python {PYTHON[0]}.{PYTHON[1]}",
        )
    extras = {"trainer", "courier"} if with_courier else {"trainer"}
    missing, other = [], []
    for asked in importlib.metadata.requires("oncofed") or ():
        found = _PINNED.match(asked)
        if found is None or found[4] not in extras:
            continue
        try:
            there = importlib.metadata.version(found[1])
        except importlib.metadata.PackageNotFoundError:
            missing.append(found[1])
            continue
        if found[3] and there.partition("+")[0] != found[3]:
            other.append(f"{found[1]} {there} instead of {found[3]}")
    if missing or other:
        return fault(
            "versions",
            "package_missing" if missing else "package_version",
            "; ".join([*(f"{name} is missing" for name in missing), *other]),
            whose="this machine",
            next="install again with requirements.lock as constraints",
        )
    ours = importlib.metadata.version("oncofed")
    return well("versions", f"oncofed {ours}, Python {platform.python_version()}, {_kernel()}")


def memory() -> Finding:
    """What a trainer started now could get: of the machine, of its container, of its account."""
    free = _available_bytes()
    limit, by = _memory_limit()
    if limit is not None and limit < min(free, ENOUGH_BYTES):
        return _scarce(limit, "memory_limit", f"{by} allows {_mib(limit)}", by=by)
    return _scarce(free, "memory_low", f"{_mib(free)} available", by="")


def limits() -> Finding:
    """Open files, processes, file size, processor time: of account and container."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= files < LEAST_FILES:
        return _too_few("few_files", f"{files} open files", f"ulimit -n {LEAST_FILES} or more")
    processes = _processes_left()
    if processes is not None and processes < LEAST_PROCESSES:
        return _too_few(
            "few_processes",
            f"{processes} more processes and threads",
            f"raise ulimit -u, or the container's pids limit, by {LEAST_PROCESSES} or more",
        )
    size = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if 0 <= size < LEAST_FILE_BYTES:
        return _too_few("small_files", f"files of {_mib(size)} at most", "ulimit -f unlimited")
    seconds = resource.getrlimit(resource.RLIMIT_CPU)[0]
    if seconds >= 0:
        return _too_few("cpu_time", f"{seconds} s of processor time", "ulimit -t unlimited")
    cores = _cores()
    if cores is not None and cores < 1:
        return warning(
            "limits",
            "cpu_quota",
            f"a container that gets {cores:.2g} of a processor",
            whose="this machine",
            next="give the container one processor or more (cpus)",
        )
    quota = "" if cores is None else f", {cores:.2g} processors"
    return well("limits", f"{files if files >= 0 else 'any number of'} files{quota}")


def _scarce(size: int, code: str, seen: str, *, by: str) -> Finding:
    if size >= ENOUGH_BYTES:
        return well("memory", seen)
    wanted = "for the small preset; medium and large take more"
    doing = f"raise {by} to {_mib(ENOUGH_BYTES)}" if by else f"free {_mib(ENOUGH_BYTES)}"
    say = fault if size < LEAST_BYTES else warning
    return say("memory", code, seen, whose="this machine", next=f"{doing} {wanted}")


def _too_few(code: str, seen: str, doing: str) -> Finding:
    return fault(
        "limits",
        code,
        f"no more than {seen}",
        whose="this machine",
        next=f"for this account: {doing}",
    )


def _available_bytes() -> int:
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    found = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else ENOUGH_BYTES


def _memory_limit() -> tuple[int | None, str]:
    """The tightest limit, and who sets it."""
    found: list[tuple[int, str]] = []
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space >= 0:
        found.append((space, "this account's ulimit -v"))
    for folder in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(folder / name)
            if limit is not None and limit < 2**60:  # version 1 says "none" by a huge number
                found.append((limit, "the container's memory limit"))
    return min(found, default=(None, ""))


def _processes_left() -> int | None:
    found = []
    own = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if own >= 0:
        found.append(own)
    for folder in _groups("pids"):
        limit, now = _number(folder / "pids.max"), _number(folder / "pids.current")
        if limit is not None:
            found.append(limit - (now or 0))
    return min(found, default=None)


def _cores() -> float | None:
    found = []
    for folder in _groups("cpu"):
        words = _text(folder / "cpu.max").split()
        if len(words) == 2 and words[0].isdigit():
            found.append(int(words[0]) / int(words[1]))
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota is not None and period and quota > 0:
            found.append(quota / period)
    return min(found, default=None)


def _groups(controller: str) -> list[Path]:
    """Folders of the control groups of this process, from its own up to the root (cgroups(7))."""
    found = []
    for entry in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, place = entry.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        bases = [f"/sys/fs/cgroup/{controllers}", f"/sys/fs/cgroup/{controller}"]
        bases = bases if controllers else ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        for base in map(Path, bases):
            own = base / place.lstrip("/")
            found += [own, *(one for one in own.parents if one.is_relative_to(base))]
    return list(dict.fromkeys(found))


def _number(path: Path) -> int | None:
    word = _text(path).strip()
    return int(word) if re.fullmatch(r"-?\d+", word) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _mib(size: int) -> str:
    return f"{size // 2**20} MiB"


def _kernel() -> str:
    return f"{platform.system()} {platform.release()}"
