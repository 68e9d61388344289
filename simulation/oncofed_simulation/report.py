"""The demo's page: one file that opens offline, with the picture, the scores and what was spent."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from scipy import stats


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


def in_words(scores: Mapping[str, float], *, gains: Sequence[float]) -> str:
    """Whether this federation helped, as far as its held-out patients can tell.

    Args:
        scores: mean CRPS of ``model``, ``base`` and ``no_change``.
        gains: for each held-out patient the base's CRPS less the model's.
    """
    model, base, still = scores["model"], scores["base"], scores["no_change"]
    against_still = (
        f"better than assuming no change by {1 - model / still:.0%}"
        if model < still
        else "not better than assuming no change"
    )
    change = abs(1 - model / base)
    if abs(float(np.mean(gains))) <= uncertainty(gains):
        helped = (
            "This federation made no measurable difference: the mean gain over the base weights is "
            "smaller than its uncertainty over these patients."
        )
    elif model < base:
        helped = f"This federation helped: its CRPS is {change:.0%} below that of the base weights."
    else:
        helped = (
            f"This federation did harm: its CRPS is {change:.0%} above that of the base weights."
        )
    return (
        f"On {len(gains)} held-out patients of these hospitals the released model is "
        f"{against_still}. {helped} So few patients and rounds decide little."
    )


def uncertainty(gains: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean gain, by Student's t; infinite for one patient."""
    count = len(gains)
    if count < 2:
        return math.inf
    quantile = float(stats.t.ppf(0.975, count - 1))
    return quantile * float(np.std(gains, ddof=1)) / math.sqrt(count)
