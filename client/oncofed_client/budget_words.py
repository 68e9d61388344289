"""What does a budget say to a person who has to decide about the next study?

Losses add up as Rényi losses at one order; people think in epsilon. Both are told, each by its name, and
why one study alone costs a lifetime more than its own epsilon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

COLUMNS = ("study", "its own ε", "δ", "rounds drawn", "Rényi loss spent", "left", "state")

Study = Mapping[str, Any]


def study_rows(budget: Mapping[str, Any]) -> list[list[Any]]:
    """One row a study, under ``COLUMNS``."""
    keys = ("study", "epsilon", "delta", "rounds", "drawn", "left", "state")
    return [[study[key] for key in keys] for study in budget["studies"]]


def lifetime_rows(budget: Mapping[str, Any]) -> dict[str, str]:
    """What the most-charged patient has spent and has left, by its name."""
    most = f"{budget['lifetime_epsilon']} at δ = {budget['lifetime_delta']}"
    rows = {
        "allowed in a lifetime": f"ε = {most}: Rényi loss {budget['allowed']}",
        "spent": f"ε = {budget['spent_epsilon']}: Rényi loss {budget['spent']}",
        "when open studies are done": f"ε = {budget['reserved_epsilon']}",
        "left": f"Rényi loss {budget['left']}{_room(budget['studies'], budget['left'])}",
        "patients ever charged": str(budget["patients_ever"]),
    }
    if budget["patients_excluded"]:
        rows["patients who withdrew"] = str(budget["patients_excluded"])
    return rows


def why(budget: Mapping[str, Any]) -> str:
    """Why a lifetime's ε is not the sum of the studies' own, in a sentence or two."""
    return (
        f"A study's own ε holds for that study alone. Over a lifetime the Rényi losses at order "
        f"{budget['filter_order']} add up, and their sum is told as an ε again; that is more than the own "
        "ε of one study, and is what allows each study to be chosen after the last. No study is approved "
        f"that would take any patient beyond {budget['lifetime_epsilon']}."
    )


def _room(studies: Sequence[Study], left: str) -> str:
    """For how many more studies like the last one there is room; nothing where there was none."""
    losses = [Decimal(study["reserved"]) for study in studies if Decimal(study["reserved"])]
    if not losses:
        return ""
    more = int(Decimal(left) // losses[-1])
    return f", room for {more} more like the last study"
