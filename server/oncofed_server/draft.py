"""How a study file is written: from settings that people choose, the roster, and the base weights.

What can be computed is computed: fingerprints and declared sizes come from the roster, the SHA-256 from
the base weights, epsilon from the accountant. The file is TOML in one layout, by a writer that knows
the study's few kinds of value and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from oncofed_common.errors import StudyRefusal
from oncofed_common.privacy.accountant import stated_epsilon
from oncofed_common.privacy.events import SubsampledGaussian
from oncofed_common.study import Study, parse_study
from oncofed_common.tensors import Schema
from oncofed_server.base import file_sha256
from oncofed_server.roster import Roster

Table = Mapping[str, Any]


def draft_study(
    roster: Roster,
    *,
    base: Path,
    tensors: Schema,
    weights: Mapping[str, int],
    study: Table,
    cohort: Table,
    model: Table,
    training: Table,
    privacy: Table,
    aggregation: Table,
    outbound: Table,
    seed: int | None,
) -> Study:
    """A study for the sites of ``weights``, with everything filled in that can be computed.

    Args:
        tensors: the trained tensors, as the model's adapters name them.
        weights: the integer weight of each invited site, by name.
        model: without ``base_sha256``.
        privacy: without ``epsilon``.
        seed: for a study among virtual homes that has to be repeatable; None otherwise.

    Raises:
        StudyRefusal: a setting is missing, unknown or out of range, or a site is not enrolled.
        PrivacyRefusal: nothing can be stated. ModelRefusal: the base weights cannot be read.
    """
    event = SubsampledGaussian(
        rate=_number(training, "sampling_rate"),
        noise_multiplier=_number(privacy, "noise_multiplier"),
        steps=int(_number(training, "rounds") * _number(training, "steps_per_round")),
    )
    delta = _number(privacy, "delta")
    epsilon = float(stated_epsilon(event, delta))
    if "metric_noise_multiplier" in privacy:
        noise = _number(privacy, "metric_noise_multiplier")
        rounds = int(_number(training, "rounds"))
        metrics = SubsampledGaussian(rate=1.0, noise_multiplier=noise, steps=rounds)
        epsilon = max(epsilon, float(stated_epsilon(metrics, delta)))
    fields: dict[str, Any] = {
        "study": dict(study),
        "cohort": dict(cohort),
        "model": {**model, "base_sha256": file_sha256(base)},
        "training": dict(training),
        "privacy": {**privacy, "epsilon": epsilon},
        "aggregation": dict(aggregation),
        "outbound": dict(outbound),
        "sites": [_site(roster, name, weight) for name, weight in weights.items()],
        "tensors": [
            {"name": t.name, "shape": list(t.shape), "dtype": t.dtype}
            for t in sorted(tensors, key=lambda t: t.name)
        ],
    }
    if seed is not None:
        fields["virtual"] = {"seed": seed}
    return parse_study(_toml(fields))


def study_toml(study: Study) -> str:
    """``study`` as a file: reading it gives the same study, with the same hash."""
    return _toml(study.model_dump(mode="python", exclude_none=True))


def template() -> str:
    """A settings file with every key, to be changed by hand and completed by ``settings.complete``."""
    return (Path(__file__).parent / "template.toml").read_text(encoding="utf-8")


def _site(roster: Roster, name: str, weight: int) -> dict[str, Any]:
    member = roster.invited(name)
    return {
        "name": name,
        "fingerprint": member.fingerprint,
        "declared_patients": member.declared_patients,
        "weight": weight,
    }


def _number(table: Table, key: str) -> float:
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        raise StudyRefusal(f"no {key}", allowed="a finite number", next=f"state {key}")  # NaN too
    return float(value)


def _toml(fields: Table) -> str:
    lines: list[str] = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{name}]", *_pairs(value)]
        else:
            for entry in value:
                lines += ["", f"[[{name}]]", *_pairs(entry)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _pairs(table: Table) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in table.items()]


def _value(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # no control characters: the study has none
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_value(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    raise StudyRefusal(
        "a value that a study has no room for",
        allowed="text, whole and decimal numbers, dates, lists and tables of them",
        next="compare with oncofed-coordinator draft --template",
    )
