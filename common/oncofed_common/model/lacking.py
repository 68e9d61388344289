"""How would a hospital ask that lacks one condition?

Not the model alone goes without it: physics is fitted and grown without it too, and the window is laid
without it. So what a condition is worth is not what its own channels add where everything else still
knows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from oncofed_common.cohort import Patient
from oncofed_common.model.dropout import EVERYTHING, without
from oncofed_common.model.prepare import Expected, Foresee, Query, View, query
from oncofed_common.model.presets import Preset


def ask_without(
    patient: Patient,
    preset: Preset,
    *,
    name: str,
    history: Sequence[int],
    day: int,
    foresee: Foresee,
) -> Query:
    """The query of ``prepare.query`` without one of ``dropout.LOSS_RATES``.

    Raises:
        CohortRefusal: see ``query``; ``no_tumor`` where only what is taken away showed one.
    """
    names = ALL if name == EVERYTHING else (name,)
    last_day = patient.visits[history[-1]].day
    for one in names:
        patient = _lacking(patient, one, last_day=last_day)
    blind = "physics" in names
    asked = query(
        patient,
        preset,
        history=history[-1:] if "earlier visit" in names else history,
        day=day,
        foresee=_nothing if blind else foresee,
    )
    conditions, tokens = without(asked.conditions[None], asked.tokens[None], [name], preset=preset)
    return replace(asked, conditions=conditions[0], tokens=tokens[0])


def remembered(foresee: Foresee) -> Foresee:
    """``foresee`` for one who asks of a patient again and again, each time without something else: images
    and clinical values are nothing to physics, and the same question is worked out once.

    What tells questions apart is all that ``outlook`` looks at. Volumes count as the same only where they are
    the same object, and are kept alive, so that no other can take their place.
    """
    known: dict[tuple[Any, ...], tuple[Patient, View, tuple[Expected | None, ...]]] = {}

    def ask(
        patient: Patient, preset: Preset, seen: View, *, days: Sequence[int]
    ) -> list[Expected | None]:
        question = (
            preset,
            tuple(days),
            patient.treatments,
            id(patient.tissue),
            seen.frame,
            tuple((visit.day, id(visit.dose_gy)) for visit in seen.visits),
            tuple(labels.tobytes() for labels in seen.labels),
        )
        if question not in known:
            known[question] = (patient, seen, tuple(foresee(patient, preset, seen, days=days)))
        return list(known[question][-1])

    return ask


ALL = ("tissue", "dose", "plan", "given treatment", "clinical value", "earlier visit", "physics")


def _lacking(patient: Patient, name: str, *, last_day: int) -> Patient:
    """The patient as that hospital knows it; images are taken away by ``without`` alone."""
    match name:
        case "tissue":
            return replace(patient, tissue=None, brain=None)
        case "dose":
            visits = tuple(replace(visit, dose_gy=None) for visit in patient.visits)
            return replace(patient, visits=visits)
        case "plan":
            given = tuple(one for one in patient.treatments if one.start_day <= last_day)
            return replace(patient, treatments=given)
        case "given treatment":
            planned = tuple(one for one in patient.treatments if one.start_day > last_day)
            return replace(patient, treatments=planned)
    return patient


def _nothing(
    patient: Patient, preset: Preset, seen: View, *, days: Sequence[int]
) -> list[Expected | None]:
    """No physics."""
    return [None for _ in days]
