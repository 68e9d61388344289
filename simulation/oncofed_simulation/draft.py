"""A study for virtual hospitals: a file of settings, completed by what is known only on the spot.

A settings file is a ``study.toml`` without ``[[sites]]``, ``[[tensors]]``, ``model.base_sha256``,
``privacy.noise_multiplier`` and ``study.expires``: sites and their keys come from the homes, tensors
and hash from the base weights, the noise from the epsilon that is wished for.
"""

from __future__ import annotations

import datetime as dt
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oncofed_common.errors import StudyRefusal
from oncofed_common.model import adapters
from oncofed_common.model.weights import Weights, network_of
from oncofed_common.privacy.accountant import noise_multiplier_for
from oncofed_simulation.founding import Site

LIFE_DAYS = 30


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of ``path``.

    Raises:
        StudyRefusal: not readable, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise StudyRefusal(
            "study settings that cannot be read",
            allowed="a TOML file",
            next="compare with the settings that the demo uses",
            code="unreadable",
        ) from None


def complete(
    settings: Mapping[str, Any], *, sites: Sequence[Site], base: Weights, today: dt.date
) -> str:
    """The text of a whole ``study.toml``; what is wrong with it the parser says.

    Fields that the settings state already are kept.
    """
    rooms: dict[str, Any] = {
        room: dict(value) if isinstance(value, Mapping) else value
        for room, value in settings.items()
    }
    for room in ("study", "model", "training", "privacy"):
        if not isinstance(rooms.get(room), dict):
            raise StudyRefusal(
                f"no [{room}]", allowed="every room of a study", next=f"state [{room}]"
            )
    rooms["study"].setdefault("expires", today + dt.timedelta(days=LIFE_DAYS))
    rooms["model"].setdefault("base_sha256", base.sha256)
    privacy, training = rooms["privacy"], rooms["training"]
    if "noise_multiplier" not in privacy and {"epsilon", "delta"} <= privacy.keys():
        privacy["noise_multiplier"] = noise_multiplier_for(
            epsilon=privacy["epsilon"],
            delta=privacy["delta"],
            rate=training["sampling_rate"],
            steps=training["rounds"] * training["steps_per_round"],
        )
    rooms.setdefault(
        "sites",
        [
            {
                "name": site.name,
                "fingerprint": site.home.approver.fingerprint,
                "declared_patients": site.home.declared_patients,
                "weight": site.home.declared_patients,
            }
            for site in sites
        ],
    )
    schema = adapters.schema(network_of(base), rooms["model"]["adapters"])
    rooms.setdefault(
        "tensors",
        [{"name": name, "shape": list(shape), "dtype": dtype} for name, shape, dtype in schema],
    )
    return _toml(rooms)


def _toml(rooms: Mapping[str, Any]) -> str:
    """Rooms of plain values, and lists of rooms: all that a study holds."""
    lines: list[str] = []
    for room, value in rooms.items():
        for header, fields in _tables(room, value):
            lines.append(header)
            lines.extend(f"{key} = {_value(inner)}" for key, inner in fields.items())
            lines.append("")
    return "\n".join(lines)


def _tables(room: str, value: Any) -> list[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        return [(f"[{room}]", value)]
    return [(f"[[{room}]]", fields) for fields in value]


def _value(value: Any) -> str:
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    return json.dumps(value)  # strings, numbers and booleans are spelled alike in both
