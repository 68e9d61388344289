"""An explanation as a picture: which conditions mattered, where, and whether that is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from oncofed_client.forecasts.explain import Explanation
from oncofed_client.forecasts.forecast import NOTICE, Forecast
from oncofed_client.forecasts.panel import (
    FUTURE,
    INK,
    PAPER,
    PAST,
    QUIET,
    WHOLE,
    outline,
    scan,
    shown,
    tidy,
)
from oncofed_common.model.regions import masks


def draw(why: Explanation, found: Forecast, path: Path) -> None:
    """Write the picture as PNG."""
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK}):
        figure = Figure(figsize=(13.5, 4.8), layout=None)
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(
            1,
            3,
            left=0.11,
            right=0.97,
            top=0.79,
            bottom=0.14,
            wspace=0.22,
            width_ratios=(1, 1, 1.1),
        )
        conditions, places, curve = (figure.add_subplot(grid[0, at]) for at in range(3))
        _conditions(conditions, why)
        _places(places, why, found)
        _curve(curve, why)
        title = f"What the forecast for day {found.day} rests on"
        figure.text(0.03, 0.93, title, size=16, weight="bold", va="center")
        figure.text(
            0.97,
            0.93,
            NOTICE.upper(),
            size=10,
            weight="bold",
            color=FUTURE,
            ha="right",
            va="center",
        )
        figure.savefig(
            path, dpi=150, facecolor=PAPER, metadata={"Description": f"oncofed: {NOTICE}"}
        )


def _conditions(axis: Any, why: Explanation) -> None:
    names = list(why.conditions)[::-1]
    sizes = [100 * np.expm1(why.conditions[name][0]) for name in names]
    axis.barh(names, sizes, color=FUTURE, alpha=0.75, height=0.6)
    for row, size in enumerate(sizes):
        axis.text(size, row, f" {size:.0f} %", va="center", size=8.5, color=QUIET)
    axis.set_title("mean change of the volume without it", size=10, loc="left", color=INK)
    axis.set_xlim(0, max([*sizes, 1.0]) * 1.2)
    axis.set_xticks([])
    tidy(axis)
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(colors=INK)


def _places(axis: Any, why: Explanation, found: Forecast) -> None:
    level = int(why.places_mm.sum(axis=(0, 1)).argmax())
    image, white = shown(found)
    scan(axis, image, level, found, white=white)
    most = max(float(why.places_mm.max()), 1e-6)
    half = found.frame.size * found.frame.spacing_mm / 2
    axis.imshow(
        np.ma.masked_less(why.places_mm[:, :, level], 0.1 * most).T,
        cmap="magma",
        vmin=0,
        vmax=most,
        alpha=0.6,
        origin="lower",
        extent=(-half, half, -half, half),
    )
    outline(axis, masks(found.past[-1].labels)[WHOLE], level, color=PAST, found=found)
    axis.set_title("where the images matter most", size=10, loc="left", color=INK)


def _curve(axis: Any, why: Explanation) -> None:
    share = [100 * value for value in why.shares]
    axis.plot(share, why.most_first_mm, color=FUTURE, linewidth=2.2, label="most important first")
    axis.plot(share, why.random_mm, color=QUIET, linewidth=2, linestyle="--", label="random order")
    axis.set_xlabel("% of the places blanked", color=QUIET)
    axis.set_ylabel("outline moved, mm (mean)", color=QUIET)
    axis.set_ylim(bottom=0)
    words = "passed" if why.faithful else "failed, do not trust the map"
    axis.set_title(f"test of the map: {words}", size=10, loc="left", color=INK)
    axis.legend(frameon=False, fontsize=9)
    tidy(axis)
