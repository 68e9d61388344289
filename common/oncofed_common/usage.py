"""What is wrong with a command line, without the words that were typed: one may be a patient's name.

Options, commands and kinds of value are named; suggestions are words of our own.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import click

from oncofed_common.errors import UsageRefusal

_KINDS = {
    "integer": "a whole number",
    "integer range": "a whole number",
    "float": "a number",
    "float range": "a number",
    "boolean": "yes or no",
    "path": "a path",
    "text": "text",
}
_NEXT = "run the command with --help"


def usage_refusal(error: click.UsageError) -> UsageRefusal:
    """The refusal of a command line that click cannot read."""
    match error:
        case click.NoSuchOption():
            ours = _options(error.ctx)
            near = _near(error.option_name, ours)
            return _refusal("an option that this command does not have", _listed(ours), near)
        case click.MissingParameter(param=click.Parameter() as param):
            return _refusal(f"no {_name(param)}", f"{_name(param)} with {_kind(param)}", "")
        case click.BadParameter(param=click.Parameter() as param):
            return _bad_value(param)
        case click.BadOptionUsage():  # its name is the option's own spelling
            return _refusal(
                f"{error.option_name} without its value, or with one too many",
                "as many values as --help shows",
                "",
            )
    commands = _commands(error.ctx)
    if commands:
        typed = error.command_name if isinstance(error, click.exceptions.NoSuchCommand) else ""
        near = _near(typed, commands)
        return _refusal("a command that this program does not have", ", ".join(commands), near)
    return _refusal("more words than this command takes", "those that --help shows", "")


def seconds(value: float, *, option: str, least: float, most: float) -> float:
    """``value``, if it is a number of seconds that ``option`` may take.

    Raises:
        UsageRefusal: it is not; NaN is no number.
    """
    if not least <= value <= most:
        raise UsageRefusal(
            f"{option} {value:g}",
            allowed=f"{least:g} to {most:g} seconds",
            next=f"correct {option}",
        )
    return value


def _bad_value(param: click.Parameter) -> UsageRefusal:
    if isinstance(param.type, click.Path):
        return UsageRefusal(
            f"a path of {_name(param)} that this account may not read",
            allowed="a path that it may read",
            next="check its permissions, and those of the folders that it lies in",
        )
    return _refusal(f"a value of {_name(param)} that cannot be used", _kind(param), "")


def _refusal(found: str, allowed: str, near: str) -> UsageRefusal:
    return UsageRefusal(
        found, allowed=allowed, next=f"did you mean {near}? {_NEXT}" if near else _NEXT
    )


def _name(param: click.Parameter) -> str:
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    return param.make_metavar(click.Context(click.Command(None))).strip("[]")


def _kind(param: click.Parameter) -> str:
    """What a parameter takes, in words."""
    kind = param.type
    if isinstance(kind, click.Choice):
        return f"one of {', '.join(map(str, kind.choices))}"
    words = _KINDS.get(kind.name, kind.name)
    if isinstance(kind, click.IntRange | click.FloatRange):
        if kind.min is not None:
            words += f", {kind.min:g} or more" if kind.max is None else f" from {kind.min:g}"
        if kind.max is not None:
            words += f" to {kind.max:g}" if kind.min is not None else f", {kind.max:g} or less"
    return words


def _options(ctx: click.Context | None) -> list[str]:
    params = ctx.command.get_params(ctx) if ctx else []
    found = [name for one in params if isinstance(one, click.Option) for name in one.opts]
    return [name for name in found if name.startswith("--")]


def _commands(ctx: click.Context | None) -> list[str]:
    return list(ctx.command.commands) if ctx and isinstance(ctx.command, click.Group) else []


def _listed(ours: Iterable[str]) -> str:
    return ", ".join(ours) or "none"


def _near(typed: str, ours: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(typed, list(ours), n=1)), "")
