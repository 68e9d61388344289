"""The lifetime budget as a picture: what the most-charged patient has spent by when, and what is left."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from oncofed_common.durable import write_atomic

INK, QUIET, SPENT, RESERVED = "#1b2530", "#6b7785", "#d1495b", "#f2b134"
HOUR_S = 3600


def draw_budget(
    spent: Sequence[tuple[int, Decimal]], budget: Mapping[str, Any], path: Path, *, now_s: int
) -> None:
    """Write the chart as PNG.

    Args:
        spent, budget: of the ledger, Rényi losses at its one order.
        now_s: until when it is drawn, seconds since 1970.

    Raises:
        SystemRefusal: the file cannot be written.
    """
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK}):
        figure = Figure(figsize=(9, 4.2))
        FigureCanvasAgg(figure)
        axis = figure.add_axes((0.09, 0.14, 0.87, 0.66))
        _draw(axis, spent, budget, now_s=now_s)
        figure.text(0.02, 0.93, "Privacy spent for life", size=15, weight="bold", va="center")
        words = (
            f"the most-charged patient: ε = {budget['spent_epsilon']} of {budget['lifetime_epsilon']}"
            f" at δ = {budget['lifetime_delta']}; {budget['reserved_epsilon']} when open studies are done"
        )
        figure.text(0.02, 0.86, words, color=QUIET, va="center")
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=150, facecolor="white")
    write_atomic(path, picture.getvalue())


def _draw(
    axis: Any,
    spent: Sequence[tuple[int, Decimal]],
    budget: Mapping[str, Any],
    *,
    now_s: int,
) -> None:
    allowed, left = float(budget["allowed"]), float(budget["left"])
    first_s = spent[0][0] if spent else now_s
    begins_s = first_s - max(HOUR_S, (now_s - first_s) // 20)
    times = [_date(at_s) for at_s in (begins_s, *(at_s for at_s, _ in spent), now_s)]
    losses = [0.0, *(float(loss) for _, loss in spent)]
    losses.append(losses[-1])
    axis.fill_between(times, losses, step="post", color=SPENT, alpha=0.25, linewidth=0)
    axis.step(times, losses, where="post", color=SPENT, linewidth=2, label="spent")
    coming = allowed - left
    if coming > losses[-1]:
        ends = times[-1] + (times[-1] - times[0]) * 0.06
        axis.fill_between(
            [times[-1], ends],
            losses[-1],
            coming,
            color=RESERVED,
            alpha=0.6,
            linewidth=0,
            label="reserved by open studies",
        )
    axis.axhline(allowed, color=INK, linewidth=1.2, linestyle="--", label="allowed in a lifetime")
    locator = AutoDateLocator(maxticks=8)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axis.set_ylim(0, 1.08 * allowed)
    axis.set_ylabel(f"Rényi loss at order {budget['filter_order']}", color=QUIET)
    axis.tick_params(colors=QUIET, length=0)
    axis.grid(axis="y", color="#e6eaee")
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.0, 0.93), fontsize=9)


def _date(at_s: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at_s, tz=dt.UTC)
