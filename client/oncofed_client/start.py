"""Start and stop: trainer and courier of one home, as two processes that never outlive this one.

The trainer starts first, without a network; when its socket is there the courier starts in its jail.
A courier that ends is started again (a wrong key or an unreachable coordinator ends a SuperNode); a
trainer that ends, ends everything: whoever supervises this command starts it again. A courier that the
coordinator does not know waits (``courier/enrolled.py``); ``told.py`` says so on the screen, once, and its
end, and what becomes of tasks.

``stop`` is the kill switch. Everything here is safe against sudden death, so nothing is asked first.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from oncofed_client.courier.jail import jail_level
from oncofed_client.courier.node import NOT_ENROLLED_FILE, node_command, node_environment
from oncofed_client.home import Home
from oncofed_client.isolation import isolated_command
from oncofed_client.told import OnEvent, Told
from oncofed_common.errors import CohortRefusal, OncofedError, PolicyRefusal, SystemRefusal
from oncofed_common.processes import Mark, end, is_alive, load_marks, mark, save_marks, spawn

RESTART_AFTER_S = 5.0
WATCH_EVERY_S = 0.2
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What ``start`` was asked to run."""

    cohort: Path
    identities: Path
    https_proxy: str | None
    poll_s: float
    ready_within_s: float


def run(home: Home, settings: Settings, *, on_event: OnEvent) -> None:
    """Run both processes until SIGTERM, SIGINT, or the trainer's end.

    Raises:
        CohortRefusal: no cohort, or no table of hospital numbers, where the settings say.
        SystemRefusal: they run already, or the trainer does not come up.
        PolicyRefusal: a real home on a machine that cannot keep the courier from the scans.
        Refusal: what the trainer itself refused, such as a virtual cohort in a real home.
    """
    if is_running(home):
        raise SystemRefusal(
            "a trainer or courier of this home that runs already",
            allowed="one of each",
            next="run oncofed-site stop first",
            code="already_running",
        )
    _refuse_missing(settings)
    level = jail_level()
    if level == "none" and not home.virtual:
        raise PolicyRefusal(
            "a machine on which the courier could open the scans",
            allowed="Linux with Landlock or user namespaces, or two containers",
            next="use the container files in deploy/",
            code="not_isolated",
        )
    address = str(home.answer()["address"])
    _stopped(home).unlink(missing_ok=True)
    asked = _on_signals()

    def stopping() -> bool:
        return asked() or _stopped(home).exists()

    log = home.trainer / "process.log"
    said_before = log.stat().st_size if log.exists() else 0
    running: list[Mark] = []
    try:
        trainer = _spawn_trainer(home, settings)
        running.append(_marked("trainer", trainer))
        save_marks(_marks(home), running)
        on_event("trainer started; it reads the cohort")
        _wait_for_socket(
            home,
            trainer,
            within_s=settings.ready_within_s,
            stopping=stopping,
            said_before=said_before,
        )
        if stopping():
            return
        on_event("trainer ready")
        command = node_command(
            superlink=address,
            poll_s=settings.poll_s,
            level=level,
            home=home.courier,
            socket_path=home.socket,
            hidden=[*home.hidden_from_courier(), settings.cohort, settings.identities],
        )
        (home.courier / NOT_ENROLLED_FILE).unlink(missing_ok=True)
        told = Told(trainer=home.trainer, courier=home.courier, on_event=on_event)
        while not stopping():
            courier = _spawn_courier(home, settings, command)
            running[1:] = [_marked("courier", courier)]
            save_marks(_marks(home), running)
            told.courier_started()
            _watch(trainer, courier, stopping=stopping, told=told)
            if trainer.poll() is not None and not stopping():
                raise OncofedError(
                    "a trainer that ended by itself",
                    allowed="a trainer that runs until it is stopped",
                    next="read trainer/process.log in the home, then start again",
                    code="trainer_ended",
                )
            if not stopping():
                on_event("courier ended; starting it again")
                end(running[1:], grace_s=0.0)
                _sleep(RESTART_AFTER_S, stopping=stopping)
    finally:
        if _stopped(home).exists():
            on_event("stopped by oncofed-site stop")
        end(running, grace_s=0.0)
        home.socket.unlink(missing_ok=True)
        _marks(home).unlink(missing_ok=True)


def is_running(home: Home) -> bool:
    """Whether a trainer or courier that ``run`` started for this home is alive."""
    return any(is_alive(process) for process in load_marks(_marks(home)))


def stop(home: Home) -> list[str]:
    """Kill whatever of this home runs; returns the names of what was running.

    The mark that ``run`` finds says that nothing ended by itself; a disk too full for it stops nothing.
    """
    with suppress(OSError):
        _stopped(home).touch(mode=0o600)
    return [process.name for process in end(load_marks(_marks(home)), grace_s=0.0)]


def _refuse_missing(settings: Settings) -> None:
    if not (settings.cohort / "dataset_description.json").is_file():
        raise CohortRefusal(
            "a folder that is not a cohort",
            allowed="a folder with dataset_description.json",
            next="correct --cohort",
            code="no_cohort",
        )
    if not settings.identities.is_file():
        raise CohortRefusal(
            "no table of hospital numbers",
            allowed="the table that the intake wrote beside the cohort",
            next="correct --identities",
            code="no_identity",
        )


def _stopped(home: Home) -> Path:
    """There when ``stop`` has ended what ``run`` started."""
    return home.root / "stopped"


def _marks(home: Home) -> Path:
    return home.root / "processes.json"


def _spawn_trainer(home: Home, settings: Settings) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "oncofed_client.trainer", "--home", str(home.root)]
    argv += ["--cohort", str(settings.cohort), "--identities", str(settings.identities)]
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    environment |= {"LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    with (home.trainer / "process.log").open("ab") as log:
        return spawn(isolated_command(argv), environment=environment, log=log, folder=home.trainer)


def _spawn_courier(home: Home, settings: Settings, command: list[str]) -> subprocess.Popen[bytes]:
    environment = node_environment(
        home=home.courier,
        socket_path=home.socket,
        https_proxy=settings.https_proxy,
        no_proxy=[],
    )
    with (home.courier / "process.log").open("ab") as log:
        return spawn(command, environment=os_path(environment), log=log, folder=home.courier)


def os_path(environment: dict[str, str]) -> dict[str, str]:
    """The launcher needs ``unshare`` and the like; inside the jail they do not exist."""
    return {"PATH": os.environ.get("PATH", os.defpath), **environment}


def _wait_for_socket(
    home: Home,
    trainer: subprocess.Popen[bytes],
    *,
    within_s: float,
    stopping: Callable[[], bool],
    said_before: int,
) -> None:
    until = time.monotonic() + within_s
    while not home.socket.exists() and not stopping():
        if trainer.poll() is not None:
            _relay(home.trainer / "process.log", said_before=said_before)
        if trainer.poll() is not None or time.monotonic() > until:
            raise SystemRefusal(
                "a trainer that did not come up",
                allowed=f"a listening trainer within {within_s:g} s",
                next="read trainer/process.log in the home",
                code="trainer_down",
            )
        time.sleep(WATCH_EVERY_S / 4)


def _relay(log: Path, *, said_before: int) -> None:
    """Raise what the trainer refused, in its own words; its one line holds no name and no path."""
    lines = log.read_bytes()[said_before:].decode("utf-8", errors="replace").splitlines()
    said = re.fullmatch(r"oncofed: (.*); allowed: (.*); next: (.*)", lines[-1] if lines else "")
    if said is not None:
        raise SystemRefusal(said[1], allowed=said[2], next=said[3], code="trainer_down")


def _watch(
    trainer: subprocess.Popen[bytes],
    courier: subprocess.Popen[bytes],
    *,
    stopping: Callable[[], bool],
    told: Told,
) -> None:
    while not stopping() and trainer.poll() is None and courier.poll() is None:
        told.look()
        time.sleep(WATCH_EVERY_S)


def _sleep(seconds: float, *, stopping: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stopping():
        time.sleep(WATCH_EVERY_S)


def _marked(name: str, process: subprocess.Popen[bytes]) -> Mark:
    found = mark(name, process.pid)
    if found is None:
        raise SystemRefusal(
            f"a {name} that ended at once",
            allowed=f"a running {name}",
            next=f"read {name}/process.log in the home",
            code=f"{name}_down",
        )
    return found


def _on_signals() -> Callable[[], bool]:
    """SIGTERM and SIGINT ask the loop to end; it looks several times a second."""
    asked: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    return lambda: bool(asked)
