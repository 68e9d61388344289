"""Who may be drawn: from a cohort on disk to the rows of every patient in the sampling frame.

A patient's rows depend on that patient and on the study alone. Train or held out is a keyed hash of
the lifelong key, fixed for life: nobody can choose it, and no other patient moves it. A patient that
cannot be read or breaks the study's terms is left out here, at the hospital; outside nobody is told.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oncofed_client.identities import read_identities
from oncofed_client.readers.cohort import Cohort
from oncofed_client.readers.patient import read_patient
from oncofed_common.errors import CohortRefusal
from oncofed_common.groups import groups_of
from oncofed_common.model.prepare import Batch, examples, stack
from oncofed_common.model.presets import Preset
from oncofed_common.outlook import outlook
from oncofed_common.study import Study

WORD = 1 << 64


@dataclass(frozen=True, kw_only=True)
class Member:
    """One patient who may be drawn, or measured on."""

    lifelong: str
    rows: Batch
    groups: frozenset[str]


def lifelong_keys(
    participants: Sequence[str], *, identities: Path, secret: bytes
) -> Mapping[str, str]:
    """The lifelong key of each participant, HMAC-SHA256(site secret, hospital number) in hex.

    Two participants with one hospital number are one patient: the later name is left out, so that
    nobody is in the frame twice. Who has no number, or two, is left out as well: a fault in one row keeps
    nobody else from taking part. A number is the same however its letters and zeros in front are written.

    Raises:
        CohortRefusal: the table cannot be read (``no_identity``).
    """
    numbers = read_identities(identities)
    keys: dict[str, str] = {}
    for name in sorted(set(participants) & set(numbers)):
        key = hmac.new(secret, b"patient\x00" + numbers[name].encode(), hashlib.sha256).hexdigest()
        if key not in keys.values():
            keys[name] = key
    return keys


def lifelong_key(participant: str, *, identities: Path, secret: bytes) -> str:
    """The lifelong key of one participant.

    Raises:
        CohortRefusal: ``no_identity``: no table, or no number for this participant in it.
    """
    keys = lifelong_keys([participant], identities=identities, secret=secret)
    if participant not in keys:
        raise CohortRefusal(
            "a participant without one hospital number",
            allowed="one row for this participant in the identity table",
            next="correct the participant's name, such as sub-001, or complete the table",
            code="no_identity",
        )
    return keys[participant]


def is_held_out(lifelong: str, *, secret: bytes, fraction: float) -> bool:
    """Whether this patient is never trained on: a keyed hash of the patient alone."""
    mark = hmac.new(secret, b"held out\x00" + lifelong.encode(), hashlib.sha256).digest()
    return int.from_bytes(mark[:8], "big") < int(fraction * WORD)


def members(
    cohort: Cohort,
    *,
    study: Study,
    preset: Preset,
    keys: Mapping[str, str],
    secret: bytes,
    held_out: bool = False,
    on_patient: Callable[[int, int], None],
) -> list[Member]:
    """Everybody who may be drawn, or all the others, in order of lifelong key; each is read and examined
    once, here."""
    fraction = study.cohort.held_out_fraction
    wanted = {
        name: key
        for name, key in keys.items()
        if is_held_out(key, secret=secret, fraction=fraction) == held_out
    }
    found: list[Member] = []
    for number, (name, key) in enumerate(sorted(wanted.items(), key=lambda pair: pair[1])):
        on_patient(number, len(wanted))
        read = _read(cohort, name, study=study, preset=preset)
        if read is not None:
            found.append(Member(lifelong=key, rows=read[0], groups=read[1]))
    on_patient(len(wanted), len(wanted))
    return found


def _read(
    cohort: Cohort, participant: str, *, study: Study, preset: Preset
) -> tuple[Batch, frozenset[str]] | None:
    try:
        patient = read_patient(cohort, participant, terms=study.cohort)
        made = examples(
            patient, preset, limit_pairs=study.training.pairs_per_patient, foresee=outlook
        )
        return (stack(made), groups_of(patient)) if made else None
    except Exception:  # noqa: BLE001  the check names the fault; whatever it is, one patient stops nobody
        return None
