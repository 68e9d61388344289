"""The commands of the house as its three programs know them, and the command lines in a text."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import click
import typer

PROGRAMS = {
    "oncofed-site": "oncofed_client.__main__",
    "oncofed-coordinator": "oncofed_server.__main__",
    "oncofed-simulate": "oncofed_simulation.__main__",
}

_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")


def commands_of(program: str) -> dict[str, click.Command]:
    """The commands of one program by name; none for a program that there is not."""
    if program not in PROGRAMS:
        return {}
    group = typer.main.get_command(importlib.import_module(PROGRAMS[program]).app)
    return {name: command for name, command in group.commands.items() if not command.hidden}


def command_lines(markdown: str) -> list[list[str]]:
    """The words of every command line of ours in code blocks, continued lines joined."""
    blocks = "\n".join(_FENCED.findall(markdown))
    return [words for line in re.sub(r"\\\n", " ", blocks).splitlines() if (words := _ours(line))]


def mentions(markdown: str) -> list[list[str]]:
    """The words of every command of ours between single backticks, complete or not."""
    return [words for code in _INLINE.findall(_FENCED.sub("", markdown)) if (words := _ours(code))]


def refusal(words: list[str]) -> str | None:
    """Why the program would not take this command line; None if it would. Nothing is run."""
    program, name = words[0], next(iter(words[1:2]), "")
    command = commands_of(program).get(name)
    if command is None:
        return f"{program} has no command {name!r}"
    try:
        command.make_context(name, list(words[2:]))
    except click.exceptions.Exit:
        return None  # --help
    except click.UsageError as error:
        return f"{program} {name}: {error.format_message()}"
    return None


def unknown(words: list[str]) -> str | None:
    """As ``refusal``, for a mention that may leave out arguments: names alone are looked at."""
    if len(words) == 1 or words[1] == "--help":
        return None
    command = commands_of(words[0]).get(words[1])
    if command is None:
        return f"{words[0]} has no command {words[1]!r}"
    options = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    extra = {word.partition("=")[0] for word in words[2:] if word.startswith("--")} - options
    return f"{words[0]} {words[1]} has no {', '.join(sorted(extra))}" if extra else None


def _ours(line: str) -> list[str]:
    """The words from the name of our program on; ``run --rm site`` starts that program in a container."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return []
    for index, word in enumerate(words):
        if Path(word).name in PROGRAMS:
            return [Path(word).name, *words[index + 1 :]]
        if words[max(index - 2, 0) : index] == ["run", "--rm"] and word in {"site", "manage"}:
            return [
                {"site": "oncofed-site", "manage": "oncofed-coordinator"}[word],
                *words[index + 1 :],
            ]
    return []
