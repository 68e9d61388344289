"""Several plans for one patient, side by side: same noise, so that only the plan differs.

For each plan a row: where the tumour will probably be, how its volume goes on, and the odds of each response.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from oncofed_client.forecasts.forecast import NOTICE, Forecast, as_dict, response
from oncofed_client.forecasts.panel import (
    FUTURE,
    INK,
    PAPER,
    PAST,
    QUIET,
    WHOLE,
    curve,
    outline,
    probable,
    scan,
    shown,
    tidy,
    widest_level,
)
from oncofed_common.metrics.response import CATEGORIES
from oncofed_common.model.regions import masks

SHADES = ("#2ec4b6", "#8fd694", "#c8ced6", "#d1495b", "#eef1f4")
ROW_INCHES = 3.4


def _numbers(found: Forecast) -> dict[str, Any]:
    """One plan's numbers."""
    whole = as_dict(found)
    return {key: whole[key] for key in ("volumes_ml", "response", "certificate", "warnings")}


def as_dict_plans(found: Mapping[str, Forecast]) -> dict[str, Any]:
    """What ``comparison.json`` holds."""
    first = as_dict(next(iter(found.values())))
    shared = ("notice", "participant", "history_days", "day", "samples", "seed", "weights_sha256")
    return {
        **{key: first[key] for key in shared},
        "plans": {name: _numbers(one) for name, one in found.items()},
    }


def draw(found: Mapping[str, Forecast], path: Path) -> None:
    """Write the page as PNG."""
    rows = len(found)
    height = ROW_INCHES * rows + 1.2
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK}):
        figure = Figure(figsize=(13.5, height), layout=None)
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(
            rows,
            3,
            left=0.02,
            right=0.97,
            top=1 - 1.05 / height,
            bottom=0.65 / height,
            wspace=0.4,
            hspace=0.42,
            width_ratios=(0.85, 1.5, 0.9),
        )
        level = widest_level(list(found.values()))
        highest = max(_highest(one) for one in found.values())
        for row, (name, one) in enumerate(found.items()):
            slices, volumes, odds = (figure.add_subplot(grid[row, at]) for at in range(3))
            image, white = shown(one)
            scan(slices, image, level, one, white=white)
            probable(slices, one, level)
            outline(slices, masks(one.past[-1].labels)[WHOLE], level, color=PAST, found=one)
            slices.set_title(name, size=12, weight="bold", loc="left", color=INK, parse_math=False)
            curve(volumes, one)
            volumes.set_ylim(0, highest)
            if row < rows - 1:
                volumes.set_xlabel("")
            if row > 0 and (legend := volumes.get_legend()) is not None:
                legend.remove()
            _odds(odds, one)
        day = next(iter(found.values())).day
        y = 1 - 0.42 / height
        figure.text(0.02, y, f"Plans compared for day {day}", size=17, weight="bold", va="center")
        figure.text(
            0.97, y, NOTICE.upper(), size=11, weight="bold", color=FUTURE, ha="right", va="center"
        )
        with warnings.catch_warnings():
            # a plan's name that the font cannot spell is shown as boxes
            warnings.filterwarnings("ignore", "Glyph", UserWarning)
            figure.savefig(
                path, dpi=130, facecolor=PAPER, metadata={"Description": f"oncofed: {NOTICE}"}
            )


def _odds(axis: Any, found: Forecast) -> None:
    what = response(found)
    names = [name for name in CATEGORIES if name != "not evaluable" or what["odds"][name] > 0]
    for row, name in enumerate(reversed(names)):
        share = 100 * what["odds"][name]
        axis.barh(row, share, color=SHADES[CATEGORIES.index(name)], height=0.62)
        axis.text(share + 1.5, row, f"{share:.0f} %", va="center", size=9, color=QUIET)
    axis.set_yticks(range(len(names)), list(reversed(names)))
    axis.set_xlim(0, 115)
    axis.set_xticks([])
    axis.set_title(f"odds, by the {what['by']} tumour", size=10, loc="left", color=INK)
    tidy(axis)
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(colors=INK)


def _highest(found: Forecast) -> float:
    """The top of the shared axis of volumes."""
    seen = [visit.volumes_ml[WHOLE] for visit in found.past]
    return 1.1 * float(max(np.quantile(found.volumes_ml[:, WHOLE], 0.95), *seen, 1.0))
