"""Which hospitals does a researcher want? From a TOML file; what it leaves open is drawn from the seed.

    [[hospitals]]
    name = "north"
    patients = 40
    idh_mutant = 0.3

    [hospitals.habits]
    surgery = 0.8

    [hospitals.prior]
    strain = [0.1, 0.2]
    fibre_ratio = 4.0

    [hospitals.scanner]
    voxel_mm = [1.0, 1.0, 3.0]

The keys are the fields of ``Hospital`` and of what it holds. A key that is none of them is refused.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from oncofed_common.durable import read_regular
from oncofed_common.errors import Refusal, UsageRefusal
from oncofed_common.wire import Name
from oncofed_simulation.patients.hospitals import Hospital, hospital
from oncofed_simulation.patients.writer import MOST_PATIENTS, MOST_SITES, Ward, wards_of

_HOSPITAL = TypeAdapter(Hospital)
_NAME = TypeAdapter(Name)


def read_wards(path: Path, *, seed: int, patients: int) -> list[Ward]:
    """The hospitals of a file, in its order; ``patients`` for those that do not say how many.

    Raises:
        UsageRefusal: not readable, not TOML, no hospital, two of one name, an unknown key, or a value out
            of its range (code ``hospitals``).
    """
    wards_of(sites=1, patients=patients, seed=seed)
    try:
        found = tomllib.loads(read_regular(path).decode("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError, Refusal):
        raise _refusal("a file of hospitals that cannot be read", "TOML 1.0 in UTF-8") from None
    rows = found.pop("hospitals", None)
    if found or not isinstance(rows, list) or not 1 <= len(rows) <= MOST_SITES:
        raise _refusal(
            f"a file without [[hospitals]], or with more than {MOST_SITES}, or with other keys",
            "[[hospitals]], one for each",
        )
    wards = [
        _ward(row, number=number, seed=seed, patients=patients)
        for number, row in enumerate(rows, start=1)
    ]
    names = [ward.hospital.name for ward in wards]
    if len(set(names)) != len(names):
        raise _refusal("two hospitals of one name", "a name for each")
    return wards


def _ward(row: object, *, number: int, seed: int, patients: int) -> Ward:
    if not isinstance(row, dict):
        raise _refusal("a hospital that is not a table", "[[hospitals]]")
    stated = dict(row)
    count = stated.pop("patients", patients)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_PATIENTS:
        raise _refusal("a number of patients out of range", f"1 to {MOST_PATIENTS}")
    drawn = asdict(hospital(seed, number))
    merged = _merged(drawn, stated, Hospital, where=f"hospital {number}")
    merged["number"] = number
    try:
        _NAME.validate_python(merged["name"])
        made = _HOSPITAL.validate_python(merged)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "name"
        raise _refusal(f"hospital {number}: {key}: {first['msg']}", "the key's range") from None
    except UsageRefusal as refusal:
        raise _refusal(f"hospital {number}: {refusal.found}", refusal.allowed) from None
    return Ward(hospital=made, patients=count)


def _merged(
    drawn: Mapping[str, Any], stated: Mapping[str, Any], kind: type, *, where: str
) -> dict[str, Any]:
    """``drawn`` with what is stated in its place; ``kind`` says which keys there are."""
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind) if field.name != "number"]
    result = dict(drawn)
    for key, value in stated.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "remove it"
            raise _refusal(f"{where}: an unknown key {key}", ", ".join(known), hint)
        if is_dataclass(hints[key]) and isinstance(value, dict):
            result[key] = _merged(drawn[key], value, hints[key], where=f"{where}, {key}")
        elif isinstance(drawn[key], Mapping) and isinstance(value, dict):
            result[key] = {**drawn[key], **value}
        else:
            result[key] = value
    return result


def _refusal(found: str, allowed: str, next: str = "correct the file of hospitals") -> UsageRefusal:
    return UsageRefusal(found, allowed=allowed, next=next, code="hospitals")
