"""How every command ends: exit 0 done, 1 failed, 2 refused, with one line on stderr.

With ``--json`` anywhere on the command line a refusal is also one JSON object on stdout. An error that
is not ours shows its class, module and line and a random incident id, never its text: the text of a
library's exception may hold a path or a patient's name.
"""

from __future__ import annotations

import logging
import secrets
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from types import FrameType
from typing import Annotated, NoReturn

import click
import typer
import typer.utils
from typer.models import ArgumentInfo

from oncofed_common.errors import OncofedError, UsageRefusal
from oncofed_common.places import no_memory, place_refusal
from oncofed_common.screen import open_streams, print_json, printable, write
from oncofed_common.usage import usage_refusal

MAX_SHOWN = 500
"""How many characters of each part of an error people are shown; ``--json`` holds all of them."""

INTERRUPTED = 130
"""What typer turns a KeyboardInterrupt into."""


def run_app(app: typer.Typer, argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code, having printed at most one line of error."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    open_streams()
    # While it loads, matplotlib warns of a home folder that it cannot write, with its path.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    code = 0
    try:
        code = _outcome(app, words, as_json=as_json)
        write("", to=sys.stdout)
    except OncofedError as error:  # the output; after a failure that was told, no second line
        return error.exit_code if code else report(error, as_json=False)
    return code


def command_of(app: typer.Typer) -> click.Command:
    """The program as click runs it, with the help of its arguments, which click 8.5 takes from typer's."""
    command = typer.main.get_command(app)
    made = command.commands if isinstance(command, click.Group) else {}
    for info in app.registered_commands:
        if info.callback is None:
            continue
        name = info.name or typer.main.get_command_name(info.callback.__name__)
        about = typer.utils.get_params_from_function(info.callback)
        for one in made[name].params if name in made else ():
            stated = about[str(one.name)].default if str(one.name) in about else None
            if isinstance(stated, ArgumentInfo):
                vars(one)["help"] = stated.help
    return command


def add_version(app: typer.Typer) -> None:
    """Give a program the option ``--version``."""
    app.callback()(_options)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end what runs here as Ctrl-C does: through every clean-up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets the main thread alone handle signals
        return

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def incident(error: BaseException) -> OncofedError:
    """An error that may be shown and logged, in place of one whose text may not."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{_module(frames[-1].filename)}:{frames[-1].lineno}" if frames else "unknown place"
    return OncofedError(
        f"an unexpected {type(error).__name__} in {where} (incident {secrets.token_hex(4)})",
        allowed="-",
        next="report the incident id, class and line; they hold no data",
        code="unexpected",
    )


def report(error: OncofedError, *, as_json: bool) -> int:
    """Say what is wrong in one line on stderr, and with ``as_json`` as one object on stdout.

    Returns:
        The exit code: the error's own, or 1 where an output takes nothing more.
    """
    found, allowed, what_next = map(_short, (error.found, error.allowed, error.next))
    line = printable(f"oncofed: {found}; allowed: {allowed}; next: {what_next}")
    code = error.exit_code
    try:
        write(f"{line}\n", to=sys.stderr)
    except OncofedError as unsaid:
        code = unsaid.exit_code
    try:
        if as_json:
            print_json({**error.facts, "error": error.as_dict()})
    except OncofedError as unsaid:
        code = unsaid.exit_code
    return code


def _outcome(app: typer.Typer, words: list[str], *, as_json: bool) -> int:
    command = command_of(app)
    try:
        with stopped_by_signals():
            outcome = command.main(args=words, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        outcome = _help(error)
    except click.exceptions.Exit as done:
        outcome = done.exit_code
    except (KeyboardInterrupt, click.Abort):
        outcome = INTERRUPTED
    except Exception as error:  # noqa: BLE001  the last line of defence: no text of it is shown
        return report(_ours(error), as_json=as_json)
    if outcome == INTERRUPTED:
        return report(_stopped(), as_json=as_json)
    return outcome if isinstance(outcome, int) else 0


def _ours(error: Exception) -> OncofedError:
    """The error of our family that says what ``error`` means, without its text."""
    match error:
        case OncofedError():
            return error
        case click.UsageError():
            return usage_refusal(error)
        case OSError():
            return place_refusal(error) or incident(error)
        case MemoryError():
            return no_memory()
    return incident(error)


def _show_version(asked: bool) -> bool:
    if asked:
        write(f"oncofed {version('oncofed')}\n", to=sys.stdout)
        raise typer.Exit
    return asked


def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="print the version"),
    ] = False,
) -> None:
    """What every program takes before a command: the option's own callback does the work."""


def _help(error: click.exceptions.NoArgsIsHelpError) -> int:
    """A program's name alone: what it can do, and no line that says nothing."""
    write(f"{error.ctx.get_help()}\n" if error.ctx else "", to=sys.stdout)
    return UsageRefusal.exit_code


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def _stopped() -> OncofedError:
    return OncofedError(
        "interrupted", allowed="to end by itself", next="run the command again", code="interrupted"
    )


def _module(filename: str) -> str:
    parts = filename.replace("\\", "/").rsplit("/", 2)
    return ".".join(parts[-2:]).removesuffix(".py")
