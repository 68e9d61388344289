"""Tables for people: values in words, and nothing that is read aloud or copied is ever cut."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
from rich.console import Console
from rich.text import Text

from oncofed_common import screen
from oncofed_common.identity import plain_fingerprint
from oncofed_common.screen import (
    console,
    drawn,
    grid,
    in_words,
    pairs,
    printable,
    read_aloud,
    work_bar,
)

LONG = "0123456789abcdef" * 4


def printed(table) -> str:
    screen = Console(file=io.StringIO(), width=80)
    screen.print(table)
    return screen.file.getvalue()


def column(text: str, number: int) -> str:
    """Everything that stands in one column, its lines joined."""
    rows = [line.replace("┃", "│").split("│") for line in text.splitlines() if "│" in line]
    return "".join(row[number].strip() for row in rows)


def test_a_hash_goes_on_in_the_next_line_and_is_never_cut():
    text = printed(grid(("site", "one", "other"), [("north", LONG, LONG[::-1])], title="Hashes"))
    assert "…" not in text
    assert (column(text, 2), column(text, 3)) == (LONG, LONG[::-1])
    assert column(printed(pairs({"hash": LONG})), 2) == LONG


@pytest.mark.parametrize("between", [" ", "\n", " \r\n", "\t", ""])
def test_a_fingerprint_is_read_as_it_is_shown_on_whichever_screen(between):
    assert plain_fingerprint(between.join(read_aloud(LONG.upper()).split(" "))) == LONG


def test_a_fingerprint_is_shown_as_it_is_read_aloud():
    """In groups of four, all of them; joined they are the fingerprint."""
    shown = column(printed(pairs({"site_fingerprint": LONG})), 2)
    assert shown.replace(" ", "") == LONG
    assert read_aloud(LONG).split(" ") == [LONG[at : at + 4] for at in range(0, 64, 4)]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (True, "yes"),
        (False, "no"),
        (None, "-"),
        ("", "-"),
        ([], "-"),
        (["north", "south"], "north, south"),
        (0, "0"),
        (2.5, "2.5"),
    ],
)
def test_a_value_is_shown_in_words(value, words):
    assert in_words(value) == words


def test_a_title_that_somebody_else_chose_is_no_markup():
    assert "[red]free[/red]" in printed(pairs({"study": "[red]free[/red]"}))


FOREIGN = "[/bold] x [red] :warning:"
SIGNS = "\x1b]0;t\x07 \x85\x9b2J a\nb \u2028 \u2029 \u202e \u2066 \ud800 \x7f"
"""A terminal's commands in seven and eight bits, ends of lines, turned reading, half a character."""


def on_the_screen(capsys, *what) -> str:
    for each in what:
        console().print(each)
    return capsys.readouterr().out


def test_brackets_that_somebody_else_wrote_are_shown_as_brackets(capsys):
    tables = (
        pairs({FOREIGN: FOREIGN}, title=FOREIGN),
        grid(("title",), [(FOREIGN,)], title=FOREIGN),
    )
    text = on_the_screen(capsys, FOREIGN, *tables)
    assert text.count(FOREIGN) == 6
    for table in tables:
        assert FOREIGN in printed(table)  # on any console


def test_no_foreign_text_commands_the_terminal_or_begins_a_line(capsys):
    tables = (
        pairs({"title": SIGNS}, title=SIGNS),
        grid(("title",), [(SIGNS,)], title=SIGNS),
        Text(SIGNS.replace("\n", " ")),
        SIGNS.replace("\n", " "),
    )
    text = on_the_screen(capsys, *tables)
    assert all(line.isprintable() for line in text.split("\n"))
    assert "\\u202e" in text
    assert r"a\nb" in text


def test_letters_of_every_script_stay_as_they_are():
    assert printable("Universität 東京 × 5 – ρ") == "Universität 東京 × 5 – ρ"
    assert printable(SIGNS).isprintable()
    assert printable("\x1b\u2028\ud800") == r"\x1b\u2028\ud800"


PROGRAM = """
import sys, typer
from oncofed_common.errors import StudyRefusal
from oncofed_common.screen import console, print_json, show
from oncofed_common.terminal import run_app
app = typer.Typer(no_args_is_help=True)

@app.callback()
def programs() -> None:
    "One program with commands."

@app.command()
def tell(kind: str, as_json: bool = typer.Option(False, "--json")) -> None:
    if kind == "refusal":
        raise StudyRefusal("tumeur × \\ud800\\u2028\\x1b" + "x" * 9000, allowed="\\u0085", next="–")
    if kind == "line":
        console().print("tumeur × 腫瘍 \\ud800")
    else:
        show({"title": "tumeur × 腫瘍 \\ud800 " * 9000}, as_json=as_json)

raise SystemExit(run_app(app))
"""


def told(words: str, *, redirect: str = "", encoding: str = "utf-8") -> tuple[int, bytes, bytes]:
    """Exit code, stdout and stderr of a small program as a shell runs it."""
    words = f"tell {words}" if words else ""
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {words} {redirect}', sys.executable, PROGRAM],
        env={"PYTHONIOENCODING": encoding, "PATH": os.environ["PATH"]},
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


OUTPUTS = {"stdout": ("> /dev/full", ">&-"), "stderr": ("2> /dev/full", "2>&-")}
NEEDED = {
    "line": ("stdout",),
    "table": ("stdout",),
    "table --json": ("stdout",),
    "": ("stdout",),
    "refusal": ("stderr",),
    "refusal --json": ("stdout", "stderr"),
}
REFUSED = ("", "refusal", "refusal --json")


@pytest.mark.parametrize("words", NEEDED)
@pytest.mark.parametrize("stream", OUTPUTS)
@pytest.mark.parametrize("number", [0, 1])
def test_an_output_that_takes_nothing_ends_in_one_line_at_most(words, stream, number):
    code, stdout, stderr = told(words, redirect=OUTPUTS[stream][number])
    if words == "refusal --json" and stream == "stderr":
        assert json.loads(stdout)["error"]["code"] == "study"
    assert code == (1 if stream in NEEDED[words] else 2 if words in REFUSED else 0)
    assert stderr.count(b"\n") <= 1
    assert b"Traceback" not in stderr


def test_nothing_is_left_to_say_when_both_outputs_are_closed():
    assert told("table --json", redirect=">&- 2>&-") == (1, b"", b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("words", ["line", "table", "table --json", "refusal", "refusal --json"])
def test_no_terminal_is_too_plain_for_what_has_to_be_said(words, encoding):
    code, stdout, stderr = told(words, encoding=encoding)
    assert code == (2 if "refusal" in words else 0)
    assert stderr.count(b"\n") == (1 if "refusal" in words else 0)
    if "--json" in words:
        assert json.loads(stdout.decode("ascii"))


def test_a_refusal_is_one_line_of_readable_length_and_whole_in_json():
    _, stdout, stderr = told("refusal --json")
    line = stderr.decode()
    assert line.removesuffix("\n").isprintable()
    assert len(line) < 1600
    assert "…" in line
    assert len(json.loads(stdout)["error"]["found"]) > 9000


def test_long_work_tells_how_far_it_is_where_no_bar_can_be(capsys, monkeypatch):
    """A log gets a line now and then, a program that reads JSON none."""
    monkeypatch.setattr(screen, "LINE_EVERY_S", 0.0)
    for quiet, told in (
        (False, "patients\\x1b[2J: 1 of 3\npatients, the last: 3 of 3\n"),
        (True, ""),
    ):
        with work_bar(quiet=quiet) as watch:
            watch("patients\x1b[2J", 1, 3)
            watch("patients, the last", 3, 3)
        assert capsys.readouterr() == ("", told)
    monkeypatch.setattr(screen, "LINE_EVERY_S", 3600.0)
    with work_bar(quiet=False) as watch:
        watch("patients", 1, 3)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_watched_on_a_terminal_takes_the_place_of_what_was_there(monkeypatch, terminal):
    file = io.StringIO()
    shown = screen._Screen(file=file, width=80, force_terminal=terminal)
    monkeypatch.setattr(screen, "console", lambda: shown)
    with drawn(live=True) as draw:
        for said in ("ready", "complete"):
            draw([pairs({"status": said, "title": "two\x1b[2Jlines"})])
    between = file.getvalue().partition("ready")[2].partition("complete")[0]
    assert ("\x1b[1A\x1b[2K" in between) == terminal  # a line up, and cleared
    assert "\x1b[2J" not in file.getvalue()
