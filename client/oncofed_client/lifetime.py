"""What a lifetime budget says: allowed, reserved, spent, left; by study and for the most-charged patient."""

from __future__ import annotations

from typing import Any

from oncofed_client.charges import Charges, summary
from oncofed_client.policy import UNITS, Policy
from oncofed_client.rules import loss
from oncofed_common.privacy.filter import filter_epsilon


def lifetime(charges: Charges, *, policy: Policy, today: str) -> dict[str, Any]:
    """The budget of a ledger's rows on ``today`` (ISO date).

    ``allowed``, ``reserved``, ``spent`` and ``left`` are Rényi losses at the policy's order: the
    lifetime's, all of open studies, the most-charged patient's, and what that patient has left
    when the open studies have drawn everything; ``reserved_epsilon`` is what it has spent then.
    """
    most, delta = charges.most_spent(), float(policy.lifetime_delta)
    left = charges.left(room=policy.room_units, today=today)
    spent, reserved = (
        filter_epsilon(units / UNITS, order=policy.filter_order, delta=delta)
        for units in (most, policy.room_units - left)
    )
    return {
        "studies": [summary(study, today=today) for study in charges.studies.values()],
        "lifetime_epsilon": policy.lifetime_epsilon,
        "lifetime_delta": policy.lifetime_delta,
        "filter_order": policy.filter_order,
        "allowed": str(loss(policy.room_units)),
        "reserved": str(loss(charges.reserved(today=today))),
        "spent": str(loss(most)),
        "spent_epsilon": f"{spent:.4f}",
        "reserved_epsilon": f"{reserved:.4f}",
        "left": str(loss(left)),
        "patients_ever": len(charges.numbers),
        "patients_excluded": len(charges.excluded),
    }
