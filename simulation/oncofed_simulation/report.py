"""The demo's page: one file that opens offline, with the picture, the scores and what was spent."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def report_page(
    summary: Mapping[str, Any],
    *,
    title: str,
    rounds: Sequence[Mapping[str, Any]],
    study_hash: str,
    picture: Path,
) -> str:
    """The HTML of ``report.html``.

    Args:
        summary: the fields of ``summary.json``.
        rounds: for each round ``number``, ``sites`` (name to outcome) and ``weights_after``.
        picture: the forecast panel, PNG; it is embedded.
    """
    environment = Environment(
        loader=PackageLoader("oncofed_simulation", "."), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html.j2").render(
        summary=summary,
        title=title,
        rounds=rounds,
        study_hash=study_hash,
        picture=base64.b64encode(picture.read_bytes()).decode("ascii"),
    )


def in_words(scores: Mapping[str, float], *, patients: int) -> str:
    """Whether this federation helped, from the CRPS of ``model``, ``base`` and ``no_change``."""
    model, base, still = scores["model"], scores["base"], scores["no_change"]
    against_still = (
        f"better than assuming no change by {1 - model / still:.0%}"
        if model < still
        else "not better than assuming no change"
    )
    change = 1 - model / base
    if abs(change) < 0.01:
        helped = (
            "This federation neither helped nor harmed: the base weights score the same to 1 %."
        )
    elif change > 0:
        helped = f"This federation helped: its CRPS is {change:.0%} below that of the base weights."
    else:
        helped = f"This federation did not help: its CRPS is {-change:.0%} above that of the base weights."
    return (
        f"On {patients} held-out patients the released model is {against_still}. {helped} "
        "So few patients and rounds decide little."
    )
