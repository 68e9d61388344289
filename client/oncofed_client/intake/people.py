"""Under which new name does a patient enter a cohort? A random one, and the same one again.

A hospital number that the table of identities holds already keeps its participant's name, so a second
intake, or one that goes on after an interrupt, gives nobody two. Names are drawn, never derived: from a
name alone nobody finds the number.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from oncofed_client.identities import read_numbers, spelling
from oncofed_client.intake.found import FoundPatient
from oncofed_common.errors import CohortRefusal


def read_source_numbers(path: Path | None) -> dict[str, str]:
    """Hospital number by the source's name of a patient: the table that ``--numbers`` names.

    Raises:
        CohortRefusal: ``no_identity``, or ``number_twice`` for a patient with two numbers.
    """
    if path is None:
        return {}
    return _one_each(path)


def known_people(path: Path) -> dict[str, str]:
    """The rows of a table of identities that is there already: hospital number by participant.

    Raises:
        CohortRefusal: ``no_identity``, or ``number_twice`` for a participant with two numbers.
    """
    return _one_each(path) if path.is_symlink() or path.exists() else {}


def new_names(
    patients: Sequence[FoundPatient],
    known: Mapping[str, str],
    begun: Mapping[str, str],
) -> dict[str, str]:
    """The participant's name of each patient, by the source's name.

    Args:
        known: hospital number by participant, from the table of identities.
        begun: names given by an earlier call that was interrupted, by the source's name.
    """
    by_number: dict[str, str] = {}
    for participant, number in known.items():
        by_number.setdefault(spelling(number), participant)
    taken = set(known) | set(begun.values())
    names: dict[str, str] = {}
    for patient in patients:
        name = by_number.get(spelling(patient.number or "")) or begun.get(patient.name)
        while name is None or (name in names.values()):
            drawn = f"sub-{secrets.token_hex(4)}"
            name = None if drawn in taken else drawn
        names[patient.name] = name
    return names


def _one_each(path: Path) -> dict[str, str]:
    """Raises CohortRefusal: ``no_identity``, or ``number_twice``."""
    numbers: dict[str, str] = {}
    for name, number in read_numbers(path):
        before = numbers.setdefault(name.strip(), number.strip())
        if spelling(before) != spelling(number):
            raise CohortRefusal(
                "a table with two hospital numbers for one patient",
                allowed="one row a patient",
                next="correct --numbers, or the table of --identities",
                code="number_twice",
            )
    return numbers
