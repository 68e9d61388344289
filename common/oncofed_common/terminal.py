"""How every command ends: exit 0 done, 1 failed, 2 refused, with one line on stderr.

With ``--json`` anywhere on the command line a refusal is also one JSON object on stdout. An error that
is not ours shows its class, module and line and a random incident id, never its text: the text of a
library's exception may hold a path or a patient's name.

A title, a file name or a reason that somebody else wrote is text to read: no markup, no command to the
terminal, and no second line. A stdout or stderr that takes nothing more is a failure (exit 1).
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import secrets
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from types import FrameType
from typing import Annotated, Any, NoReturn

import click
import typer
import typer.utils
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from typer.models import ArgumentInfo

from oncofed_common.errors import OncofedError, UsageRefusal

MAX_SHOWN = 500
"""How many characters of each part of an error people are shown; ``--json`` holds all of them."""

INTERRUPTED = 130
"""What typer turns a KeyboardInterrupt into."""


def run_app(app: typer.Typer, argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code, having printed at most one line of error."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    _open_streams()
    # While it loads, matplotlib warns of a home folder that it cannot write, with its path.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    code = 0
    try:
        code = _outcome(app, words, as_json=as_json)
        _write("", to=sys.stdout)
    except OncofedError as error:  # the output; after a failure that was told, no second line
        return error.exit_code if code else _report(error, as_json=False)
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


def print_json(value: Any) -> None:  # any JSON value: each command documents its own
    """Print exactly one JSON object on stdout, in ASCII: no encoding of the terminal can spoil it.

    Raises:
        OncofedError: code ``output``; stdout takes nothing more.
    """
    _write(json.dumps(value, indent=2, allow_nan=False) + "\n", to=sys.stdout)


def print_json_line(value: Any) -> None:  # as print_json, for a program that reads line by line
    """Print one JSON object on one line of stdout, at once. Raises OncofedError: code ``output``."""
    _write(json.dumps(value) + "\n", to=sys.stdout)


def show(rows: Mapping[str, Any], *, as_json: bool, title: str | None = None) -> None:
    """Print named values: one JSON object for programs, a table of two columns for people."""
    if as_json:
        print_json(dict(rows))
        return
    console().print(pairs(rows, title=title))


def pairs(rows: Mapping[str, Any], *, title: str | None = None) -> Table:
    """Named values, one a line."""
    table = Table(title=_title(title), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # a fingerprint is read aloud whole
    for key, value in rows.items():
        table.add_row(Text(printable(key.replace("_", " "))), Text(printable(in_words(value))))
    return table


def grid(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str) -> Table:
    """One row a thing; whatever is too long for its column goes on below, and is never cut."""
    table = Table(title=_title(title))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(in_words(value))) for value in row))
    return table


def in_words(value: Any) -> str:  # whatever a command has to show
    """A value as people read it."""
    if value is None or value in ("", [], ()):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(in_words(part) for part in value)
    return str(value)


def printable(text: str) -> str:
    """``text`` in one line: what has no shape of its own, or turns the order of reading, is spelt out."""
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )


def console() -> Console:
    """Where people read: stdout, plain when it is not a terminal; brackets in a text are brackets."""
    return _Screen(highlight=False, markup=False, emoji=False)


def progress_bar(*, quiet: bool) -> AbstractContextManager[Progress | None]:
    """A progress bar on stderr, or nothing when a program is reading."""
    if quiet:
        return nullcontext()
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


class _Screen(Console):
    """A console on which only the house's own newlines and styles are more than signs to read."""

    def print(self, *objects: Any, **how: Any) -> None:
        """Print as rich does. Raises OncofedError: code ``output``."""
        with _writing_to(self.file):
            super().print(*objects, **how)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                lines = (printable(line) for line in segment.text.split("\n"))
                yield Segment("\n".join(lines), segment.style)


def _title(title: str | None) -> Text | None:
    return None if title is None else Text(printable(title), style="table.title")


def _outcome(app: typer.Typer, words: list[str], *, as_json: bool) -> int:
    command = command_of(app)
    try:
        with stopped_by_signals():
            outcome = command.main(args=words, standalone_mode=False)
    except OncofedError as error:
        return _report(error, as_json=as_json)
    except click.exceptions.NoArgsIsHelpError as error:
        outcome = _help(error)
    except click.UsageError as error:
        return _report(_usage(error), as_json=as_json)
    except click.exceptions.Exit as done:
        outcome = done.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _report(_stopped(), as_json=as_json)
    except Exception as error:  # noqa: BLE001  the last line of defence: no text of it is shown
        return _report(incident(error), as_json=as_json)
    if outcome == INTERRUPTED:
        return _report(_stopped(), as_json=as_json)
    return outcome if isinstance(outcome, int) else 0


def _show_version(asked: bool) -> bool:
    if asked:
        _write(f"oncofed {version('oncofed')}\n", to=sys.stdout)
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
    _write(f"{error.ctx.get_help()}\n" if error.ctx else "", to=sys.stdout)
    return UsageRefusal.exit_code


def _report(error: OncofedError, *, as_json: bool) -> int:
    found, allowed, what_next = map(_short, (error.found, error.allowed, error.next))
    line = printable(f"oncofed: {found}; allowed: {allowed}; next: {what_next}")
    code = error.exit_code
    try:
        _write(f"{line}\n", to=sys.stderr)
    except OncofedError as unsaid:
        code = unsaid.exit_code
    try:
        if as_json:
            print_json(error.facts | {"error": error.as_dict()})
    except OncofedError as unsaid:
        code = unsaid.exit_code
    return code


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


class _Closed(io.TextIOBase):
    """A stream that the caller had closed already; Python has None for it."""

    def write(self, _text: str) -> NoReturn:
        raise OSError(errno.EBADF, "closed")


def _open_streams() -> None:
    """See to it that stdout and stderr are there, and that no character is one too many for them."""
    sys.stdout, sys.stderr = sys.stdout or _Closed(), sys.stderr or _Closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _write(text: str, *, to: Any) -> None:
    with _writing_to(to):
        if text:
            to.write(text)
        to.flush()


@contextmanager
def _writing_to(stream: Any) -> Iterator[None]:  # a stream of text, whoever made it
    """Raises OncofedError: code ``output``, when ``stream`` takes nothing more."""
    try:
        yield
    except OSError:
        _give_up(stream)
        raise OncofedError(
            "an output that takes nothing more",
            allowed="a stdout and a stderr that are open, on a disk with room",
            next="redirect the output elsewhere; what the command did stands",
            code="output",
        ) from None


def _give_up(stream: Any) -> None:
    """Send what is still unwritten nowhere, or the interpreter's last flush fails once more."""
    try:
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
    except (OSError, ValueError):
        return  # it has no file beneath it, or none can be opened: nothing is left to do


def _stopped() -> OncofedError:
    return OncofedError(
        "interrupted", allowed="-", next="run the command again", code="interrupted"
    )


def _usage(error: click.UsageError) -> UsageRefusal:
    return UsageRefusal(
        error.format_message().replace("\n", " ").rstrip("."),
        allowed="the options that --help lists",
        next="run the command with --help",
    )


def _module(filename: str) -> str:
    parts = filename.replace("\\", "/").rsplit("/", 2)
    return ".".join(parts[-2:]).removesuffix(".py")
