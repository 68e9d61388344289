"""From a file of settings to a whole study: what people choose, and what is computed for them.

A settings file is a ``study.toml`` without ``[[sites]]``, ``[[tensors]]`` and ``model.base_sha256``. In
``[privacy]`` it states an epsilon, and the least noise that costs no more is computed; or a noise
multiplier, and what that costs is. ``[virtual]`` with a seed makes a run among virtual homes repeatable,
and unprotected.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from oncofed_common.durable import read_regular
from oncofed_common.errors import StudyRefusal
from oncofed_common.privacy.accountant import noise_multiplier_for
from oncofed_common.study import Study, refuse_training
from oncofed_common.study_terms import VirtualTerms
from oncofed_server.base import base_of_preset, trained_tensors
from oncofed_server.draft import draft_study, template
from oncofed_server.roster import Roster

OURS_ALONE = ("contact", "ethics_reference")
"""Of ``[study]``: what the template can only give an example of, and a real study must not keep."""
ROOMS = ("study", "cohort", "model", "training", "privacy", "aggregation", "outbound")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of ``path``.

    Raises:
        StudyRefusal: not readable, not TOML, a room is missing or unknown, or the template's example is kept.
    """
    try:
        settings = tomllib.loads(read_regular(path).decode("utf-8"))
    except (OSError, UnicodeDecodeError):
        raise _refusal("study settings that cannot be read", next="check the path") from None
    except tomllib.TOMLDecodeError as error:
        where = re.search(r"\(at (line \d+, column \d+|end of document)\)$", str(error))
        place = f" from {where[1]} on" if where else ""
        raise _refusal(
            f"study settings that are not TOML{place}",
            next="texts and dates as in draft --template",
        ) from None
    except RecursionError:
        raise _refusal("study settings that are not TOML", next="as in draft --template") from None
    for room in ROOMS:
        if not isinstance(settings.get(room), dict):
            raise _refusal(f"no [{room}]", next=f"state [{room}]")
    for room in sorted(set(settings) - {*ROOMS, "virtual"}):
        raise _refusal(
            f"an unknown room [{room}]", next="remove it; sites and tensors are filled in"
        )
    example = tomllib.loads(template())["study"]
    for key in OURS_ALONE:
        if settings["study"].get(key) == example[key]:
            raise _refusal(f"study.{key} as the template has it", next="state the study's own")
    return settings


def seed_of(settings: Mapping[str, Any]) -> int | None:
    """The seed in ``[virtual]``; None without one.

    Raises:
        StudyRefusal: ``[virtual]`` holds something else than one seed.
    """
    if "virtual" not in settings:
        return None
    try:
        return VirtualTerms.model_validate(settings["virtual"]).seed
    except ValidationError:
        raise _refusal(
            "a [virtual] that is not one seed", next="state seed, a whole number from 0, alone"
        ) from None


def complete(
    settings: Mapping[str, Any],
    roster: Roster,
    *,
    sites: Sequence[str] | None,
    base: Path | None,
    expires: dt.date | None,
) -> Study:
    """The whole study, for enrolled sites that weigh what they declare.

    Args:
        sites: who is invited; None: everybody who is enrolled and not revoked.
        base: the base weights; None: those shipped for the preset.
        expires: the last day, where the settings state none.

    Raises:
        StudyRefusal, PrivacyRefusal, ModelRefusal: what is wrong with the settings.
    """
    rooms = {room: dict(settings[room]) for room in ROOMS}
    if expires is not None:
        rooms["study"].setdefault("expires", expires)
    refuse_training(rooms["training"])
    _fill_in_noise(
        rooms["privacy"], rooms["training"], metrics=bool(rooms["outbound"].get("metrics"))
    )
    name = str(rooms["model"].get("preset"))
    weights = base or base_of_preset(name)
    invited = [m.site for m in roster.sites if not m.revoked] if sites is None else sites
    declared = {member.site: member.declared_patients for member in roster.sites}
    return draft_study(
        roster,
        base=weights,
        tensors=trained_tensors(weights, preset=name, adapters=str(rooms["model"].get("adapters"))),
        weights={site: declared.get(site, 1) for site in invited},
        seed=seed_of(settings),
        **rooms,
    )


def _fill_in_noise(privacy: dict[str, Any], training: Mapping[str, Any], *, metrics: bool) -> None:
    """Replace a wished epsilon by the least noise that costs no more, on updates and on metrics."""
    if ("epsilon" in privacy) == ("noise_multiplier" in privacy):
        raise _refusal(
            "settings with both privacy.epsilon and noise_multiplier, or neither",
            next="state one of them; the other is computed",
        )
    if "epsilon" not in privacy:
        return
    try:
        wished = {
            "epsilon": _positive(privacy.pop("epsilon")),
            "delta": _positive(privacy["delta"]),
        }
        rounds = int(training["rounds"])
        privacy["noise_multiplier"] = noise_multiplier_for(
            **wished,
            rate=float(training["sampling_rate"]),
            steps=rounds * int(training["steps_per_round"]),
        )
        if metrics:
            privacy["metric_noise_multiplier"] = noise_multiplier_for(
                **wished, rate=1.0, steps=rounds
            )
    except (KeyError, TypeError, ValueError, ArithmeticError):
        raise _refusal(
            "privacy.epsilon or delta from which no noise can be computed",
            next="state both, as numbers larger than 0; delta below 1",
        ) from None


def _positive(value: Any) -> float:  # whatever TOML holds
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError
    return float(value)


def _refusal(found: str, *, next: str) -> StudyRefusal:
    return StudyRefusal(
        found, allowed=f"a TOML file with [{'], ['.join(ROOMS)}]", next=next, code="settings"
    )
