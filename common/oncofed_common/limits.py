"""What a strict model found in a field, and what it allows there, in words for people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text in quotes",
    "date_type": "a date, such as 2027-06-30",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "finite_number": "a finite number",
}
_SHOWN = 60
"""Characters of a value that are shown."""


def fault_in_words(fault: Mapping[str, Any]) -> tuple[str, str]:
    """What stands in a field and what may stand there, from one of a pydantic error's faults.

    A model's own rule is a sentence that says what was found; what it allows follows from it.
    """
    message = str(fault["msg"])
    if fault["type"] == "value_error":
        sentence = message.removeprefix("Value error, ")
        return sentence, "settings that hang together"
    found = _value(fault.get("input"))
    limits: Mapping[str, Any] = fault.get("ctx", {})
    if fault["type"] in _KINDS:
        return found, _KINDS[fault["type"]]
    if "pattern" in limits:
        return found, f"text of the form {limits['pattern']}"
    allowed = re.sub(r"^.* should (be|have) ", "", message)
    return found, re.sub(r" after validation, not \d+$", "", allowed)


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "a table" if value else "an empty table"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    plain = "".join(one if one.isprintable() else "?" for one in text)
    return plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN]}…"
