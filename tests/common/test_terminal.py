"""Tables for people: values in words, and nothing that is read aloud or copied is ever cut."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from oncofed_common.terminal import console, grid, in_words, pairs, printable

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
    assert column(printed(pairs({"fingerprint": LONG})), 2) == LONG


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
