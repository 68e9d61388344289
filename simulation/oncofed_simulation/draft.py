"""A study for virtual hospitals, from a file of settings and what is known only on the spot.

A settings file is a ``study.toml`` without ``[[sites]]``, ``[[tensors]]``, ``model.base_sha256`` and
``study.expires``. In ``[privacy]`` it states an epsilon and no noise multiplier: the least noise that
costs no more is computed. ``[virtual]`` with a seed makes the run repeatable, and unprotected.
"""

from __future__ import annotations

import datetime as dt
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from oncofed_common.errors import StudyRefusal
from oncofed_common.model import adapters
from oncofed_common.model.network import build
from oncofed_common.model.presets import preset
from oncofed_common.model.weights import base_path
from oncofed_common.privacy.accountant import noise_multiplier_for
from oncofed_common.study import Study, VirtualTerms
from oncofed_common.tensors import TensorTerm
from oncofed_server.draft import draft_study
from oncofed_server.roster import read_roster

LIFE_DAYS = 30
ROOMS = ("study", "cohort", "model", "training", "privacy", "aggregation", "outbound")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of ``path``.

    Raises:
        StudyRefusal: not readable, not TOML, or a room is missing or unknown.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise _refusal("study settings that cannot be read", next="check the path") from None
    for room in ROOMS:
        if not isinstance(settings.get(room), dict):
            raise _refusal(f"no [{room}]", next=f"state [{room}]")
    for room in sorted(set(settings) - {*ROOMS, "virtual"}):
        raise _refusal(
            f"an unknown room [{room}]", next="remove it; sites and tensors are filled in"
        )
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
    settings: Mapping[str, Any], *, coordinator: Path, sites: Sequence[str], today: dt.date
) -> Study:
    """The whole study, for enrolled sites that weigh what they declare.

    Raises:
        StudyRefusal, PrivacyRefusal, ModelRefusal: what is wrong with the settings.
    """
    rooms = {room: dict(settings[room]) for room in ROOMS}
    rooms["study"].setdefault("expires", today + dt.timedelta(days=LIFE_DAYS))
    privacy, training = rooms["privacy"], rooms["training"]
    if "noise_multiplier" not in privacy:
        try:
            privacy["noise_multiplier"] = noise_multiplier_for(
                epsilon=float(privacy["epsilon"]),
                delta=float(privacy["delta"]),
                rate=float(training["sampling_rate"]),
                steps=int(training["rounds"]) * int(training["steps_per_round"]),
            )
        except (KeyError, TypeError, ValueError):
            raise _refusal(
                "settings from which no noise can be computed",
                next="state privacy.epsilon and delta, training.rounds, steps_per_round, sampling_rate",
            ) from None
    privacy.pop("epsilon", None)  # the study states what this noise costs, which is no more
    shape = preset(str(rooms["model"].get("preset")))
    schema = adapters.schema(build(shape, seed=0), str(rooms["model"].get("adapters")))
    roster = read_roster(coordinator)
    members = {member.site: member.declared_patients for member in roster.sites}
    return draft_study(
        roster,
        base=base_path(shape),
        tensors=[TensorTerm(name=name, shape=size) for name, size, _ in schema],
        weights={site: members.get(site, 1) for site in sites},
        seed=seed_of(settings),
        **rooms,
    )


def _refusal(found: str, *, next: str) -> StudyRefusal:
    return StudyRefusal(
        found, allowed=f"a TOML file with [{'], ['.join(ROOMS)}]", next=next, code="settings"
    )
