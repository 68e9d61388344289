"""What a command prints: one JSON object for programs, tables and lines for people.

A title, a file name or a reason that somebody else wrote is text to read: no markup, no command to the
terminal, and no second line. A stdout or stderr that takes nothing more is a failure (exit 1).
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from oncofed_common.errors import OncofedError

Watch = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""

LINE_EVERY_S = 20.0


def open_streams() -> None:
    """See to it that stdout and stderr are there, and that no character is one too many for them."""
    sys.stdout, sys.stderr = sys.stdout or _Closed(), sys.stderr or _Closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write(text: str, *, to: Any) -> None:  # a stream of text, whoever made it
    """Put ``text`` on ``to``, and all that was held back before it.

    Raises:
        OncofedError: code ``output``; ``to`` takes nothing more.
    """
    with _writing_to(to):
        if text:
            to.write(text)
        to.flush()


def print_text(text: str) -> None:
    """Print ``text`` on stdout as it is: no markup, no folded lines.

    Raises:
        OncofedError: code ``output``; stdout takes nothing more.
    """
    write(text, to=sys.stdout)


def print_json(value: Any) -> None:  # any JSON value: each command documents its own
    """Print exactly one JSON object on stdout, in ASCII: no encoding of the terminal can spoil it.

    Raises:
        OncofedError: code ``output``; stdout takes nothing more.
    """
    write(json.dumps(value, indent=2, allow_nan=False) + "\n", to=sys.stdout)


def print_json_line(value: Any) -> None:  # as print_json, for a program that reads line by line
    """Print one JSON object on one line of stdout, at once. Raises OncofedError: code ``output``."""
    write(json.dumps(value) + "\n", to=sys.stdout)


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
        said = printable(in_words(value))
        if key.endswith("fingerprint"):
            said = read_aloud(said)
        table.add_row(Text(printable(key.replace("_", " "))), Text(said))
    return table


def read_aloud(fingerprint: str) -> str:
    """A fingerprint in groups of four, as two people compare it over a telephone; joined, it is the same."""
    return " ".join(fingerprint[at : at + 4] for at in range(0, len(fingerprint), 4))


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
    """A progress bar on stderr, or nothing when a program is reading, or no terminal is there."""
    if quiet or not sys.stderr.isatty():
        return nullcontext()
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


@contextmanager
def work_bar(*, quiet: bool) -> Iterator[Watch]:
    """A progress bar with one line for each kind of work, known by its words up to the first comma; in a log,
    where no bar can be, a line on stderr every ``LINE_EVERY_S``."""
    with progress_bar(quiet=quiet) as bar:
        tasks: dict[str, TaskID] = {}
        told_s = time.monotonic()

        def advance(what: str, done: int, total: int) -> None:
            nonlocal told_s
            if bar is None:
                if not quiet and total and time.monotonic() - told_s >= LINE_EVERY_S:
                    told_s = time.monotonic()
                    sys.stderr.write(printable(f"{what}: {done} of {total}") + "\n")
                    sys.stderr.flush()
                return
            kind = what.partition(",")[0]
            if kind not in tasks:
                tasks[kind] = bar.add_task(what, total=total)
            bar.update(tasks[kind], completed=done, total=total, description=what)

        yield advance


@contextmanager
def drawn(*, live: bool) -> Iterator[Callable[[Sequence[Table]], None]]:
    """Print tables; with ``live``, and on a terminal, in the place of those before."""
    screen = console()
    if not (live and screen.is_terminal):
        yield lambda tables: screen.print(*tables)
        return
    with Live(console=screen, auto_refresh=False) as place:
        yield lambda tables: place.update(Group(*tables), refresh=True)


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


class _Closed(io.TextIOBase):
    """A stream that the caller had closed already; Python has None for it."""

    def write(self, _text: str) -> NoReturn:
        raise OSError(errno.EBADF, "closed")


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
