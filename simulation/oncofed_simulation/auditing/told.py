"""The audit as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table


def tables(found: dict[str, Any]) -> Iterator[Table]:
    """What the canaries betrayed, then each attack on the private run and on its twin."""
    betrayed = found["canaries"]
    stands = "stands" if found["holds"] else "REFUTED"
    canaries = Table(
        "canaries", "guesses", "right", "epsilon at least", "claimed", "the claim", title="Canaries"
    )
    canaries.add_row(
        f"{betrayed['canaries']}",
        f"{betrayed['guesses']}",
        f"{betrayed['right']}",
        f"{betrayed['least_epsilon']:.2f}",
        f"{betrayed['claimed_epsilon']:g}",
        stands,
    )
    yield canaries
    private, twin = found["runs"]["private"], found["runs"]["without privacy"]
    attacks = Table(
        "attack",
        f"epsilon {found['private_epsilon']:g}",
        "without privacy",
        "if nothing leaks",
        title=f"{found['patients']} virtual patients, half of them trained on: {found['adapters']}",
    )
    for name in private["membership"]:
        attacks.add_row(
            f"membership by the {name}, area",
            *(
                f"{of['area']:.2f} ({of['low']:.2f} to {of['high']:.2f})"
                for of in (run["membership"][name] for run in (private, twin))
            ),
            "0.50",
        )
    attacks.add_row(
        "follow-up from a gradient, correlation",
        *(f"{run['inversion']:.2f}" for run in (private, twin)),
        "0.00",
    )
    attacks.add_row(
        "rank of the own follow-up, members against others",
        *(
            f"{of['members']:.2f} against {of['others']:.2f}"
            for of in (run["memorisation"] for run in (private, twin))
        ),
        "no difference",
    )
    yield attacks
