"""The command lines of the guides, as they stand there, and which of them have been taken.

A line is one command of a code block without a language: continued lines joined, comments left out. Nothing
of a guide is written down a second time: a test asks for the next line of a page by program and command.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import click
from click.core import ParameterSource
from house_commands import commands_of

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/hospital.md",
    "docs/intake.md",
    "docs/doctor.md",
    "docs/coordinator.md",
    "docs/governance.md",
    "docs/researcher.md",
    "docs/physics.md",
)

_BLOCK = re.compile(r"^```([a-z]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Line:
    """One command line; ``number``: which of its page's."""

    page: str
    number: int
    words: tuple[str, ...]

    def begins(self, words: str) -> bool:
        """Whether it begins with these words."""
        wanted = tuple(words.split())
        return self.words[: len(wanted)] == wanted

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


@dataclass(frozen=True)
class Guides:
    """Every command line of the guides; ``taken`` fills as a test goes through them."""

    lines: tuple[Line, ...]
    taken: set[Line] = field(default_factory=set)

    def next(self, page: str, words: str) -> Line:
        """The page's next line that begins with ``words`` and was not taken; it is now."""
        found = [line for line in self.left(page) if line.begins(words)]
        assert found, f"{page} shows no further line that begins with {words!r}"
        self.taken.add(found[0])
        return found[0]

    def alike(self, page: str, words: str) -> Line:
        """As ``next``, for a line that asks the same as one which was run: the same command with the same
        options, whatever the names and numbers in it."""
        shapes = {shape(line) for line in self.taken}
        line = self.next(page, words)
        assert shape(line) in shapes, f"nothing like it was run: {line}"
        return line

    def typed_before(self, line: Line) -> bool:
        """Whether the same words were taken from another place."""
        return any(line.words == taken.words for taken in self.taken)

    def left(self, page: str) -> list[Line]:
        """The page's lines that were not taken, in their order."""
        return [line for line in self.lines if line.page == page and line not in self.taken]


def guides() -> Guides:
    """All of ``PAGES``."""
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    return Guides(tuple(line for page, text in texts.items() for line in lines_of(page, text)))


def lines_of(page: str, markdown: str) -> list[Line]:
    """The command lines of one page."""
    blocks = "\n".join(text for language, text in _BLOCK.findall(markdown) if not language)
    joined = re.sub(r"\\\n", " ", blocks).splitlines()
    found = [words for line in joined if (words := shlex.split(line, comments=True))]
    return [Line(page, number, tuple(words)) for number, words in enumerate(found)]


def block_of(page: str, language: str) -> str:
    """The text of the page's one code block in that language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    (found,) = [block for named, block in _BLOCK.findall(text) if named == language]
    return str(found)


def shape(line: Line) -> tuple[str, ...]:
    """Program, command, and the names of what is given to it, in order; a line of another program itself."""
    program, name = line.words[0], next(iter(line.words[1:2]), "")
    command = commands_of(program).get(name)
    if command is None:
        return line.words
    context: click.Context = command.make_context(name, list(line.words[2:]))
    typed = [
        key
        for key in context.params
        if context.get_parameter_source(key) is ParameterSource.COMMANDLINE
    ]
    return (program, name, *sorted(typed))
