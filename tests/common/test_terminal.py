"""Tables for people: values in words, and nothing that is read aloud or copied is ever cut."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from oncofed_common.terminal import grid, in_words, pairs

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
