"""One forecast as a picture: what was seen, what may come, what came, and how fast it grows.

Above, one axial slice through the tumour, in the radiological way (the patient's right on the left):
past scans with outlines, the forecast's probability, the truth if it is known, and where the two
differ. Below, the volume of the whole tumour over days, with the 50 % and the 90 % interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy import ndarray
from scipy import ndimage

from oncofed_client.forecasts.cautions import Seen
from oncofed_client.forecasts.forecast import INTERVALS, NOTICE, Forecast, response
from oncofed_common.metrics.scores import quantiles
from oncofed_common.model.regions import REGIONS, masks

INK, QUIET, PAPER = "#1b2530", "#6b7785", "#ffffff"
WRONG = {"too much": "#b35806", "too little": "#542788"}
PAST, FUTURE, TRUTH = "#f2b134", "#d1495b", "#2ec4b6"
PROBABILITY = LinearSegmentedColormap.from_list(
    "probability", ["#3b1c5a", "#a52c60", "#ed6925", "#fcffa4"]
)
SHOWN = ("FLAIR", "T2w", "ce-gadolinium_T1w", "T1w")
"""Which channel is the background: the first of these that the shown visits have."""
WHOLE = list(REGIONS).index("whole")
CORE = list(REGIONS).index("core")
ROW = 0.105
WARNING_ROW = 0.07
"""Height of a line of words, of the axis."""
LATE = 0.65
"""A course that begins in the rest of the days has its name to the left of its end."""
FOLD = 6
"""A window voxel is drawn as this many points, smoothly interpolated."""


def draw(found: Forecast, path: Path) -> None:
    """Write the picture as PNG, about 2000 pixels wide."""
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK}):
        figure = _figure(found)
        figure.savefig(
            path, dpi=150, facecolor=PAPER, metadata={"Description": f"oncofed: {NOTICE}"}
        )


def _figure(found: Forecast) -> Figure:
    known = found.truth is not None
    columns = len(found.past) + (3 if known else 1)
    width = 2.35 * max(columns, 5)
    figure = Figure(figsize=(width, 6.7), layout=None)
    FigureCanvasAgg(figure)
    top = figure.add_gridspec(1, columns, left=0.03, right=0.97, top=0.84, bottom=0.46, wspace=0.05)
    slices = [figure.add_subplot(top[0, column]) for column in range(columns)]
    _slices(slices, found)
    bottom = figure.add_gridspec(
        1, 2, left=0.065, right=0.97, top=0.395, bottom=0.09, width_ratios=(2.1, 1), wspace=0.08
    )
    curve(figure.add_subplot(bottom[0, 0]), found)
    _words(figure.add_subplot(bottom[0, 1]), found)
    figure.text(
        0.03, 0.945, f"Tumour forecast for day {found.day}", size=17, weight="bold", va="center"
    )
    figure.text(
        0.97, 0.945, NOTICE.upper(), size=11, weight="bold", color=FUTURE, ha="right", va="center"
    )
    figure.text(
        0.97,
        0.025,
        "outlines in scans: solid the whole tumour, dotted its core (NETC + ET)",
        size=8.5,
        color=QUIET,
        ha="right",
        va="center",
    )
    return figure


def _slices(axes: Sequence[Any], found: Forecast) -> None:
    level = widest_level([found])
    channel = _channel(found)
    last = found.past[-1]
    white = _white(found, channel)
    for axis, visit in zip(axes, found.past, strict=False):
        scan(axis, _background(visit, channel), level, found, white=white)
        outline(axis, masks(visit.labels)[WHOLE], level, color=PAST, found=found)
        outline(axis, masks(visit.labels)[CORE], level, color=PAST, found=found, style="dotted")
        _title(axis, f"day {visit.day}", "seen")
    forecast_axis, *others = axes[len(found.past) :]
    background = found.images.get(channel) if channel else None
    scan(forecast_axis, background, level, found, white=white)
    probable(forecast_axis, found, level)
    outline(forecast_axis, masks(last.labels)[WHOLE], level, color=PAST, found=found)
    _title(forecast_axis, f"day {found.day}", "forecast: probability of tumour")
    if found.truth is not None:
        truth_axis, difference = others
        scan(truth_axis, _background(found.truth, channel), level, found, white=white)
        outline(truth_axis, masks(found.truth.labels)[WHOLE], level, color=TRUTH, found=found)
        _title(truth_axis, f"day {found.day}", "what came")
        _difference(difference, found, level)


def scan(
    axis: Any,
    image: Float[ndarray, "x y z"] | None,
    level: int,
    found: Forecast,
    *,
    white: float,
) -> None:
    """One slice of an image, the patient\'s right on the left; black, and said so, where there is none."""
    size = found.frame.size
    if image is None:
        image = np.full((size, size, size), -0.1)
        axis.text(0, 0.3 * size, "not acquired", color="white", size=8, ha="center", alpha=0.8)
    axis.imshow(
        image[:, :, level].T,
        cmap="gray",
        vmin=-0.1,
        vmax=white,
        origin="lower",
        interpolation="bicubic",
        extent=_extent(found),
    )
    half = size * found.frame.spacing_mm / 2
    axis.set(xlim=(half, -half), ylim=(-half, half), xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)
    for side, x in (("R", half - 4), ("L", -half + 4)):
        axis.text(x, -half + 5, side, color="white", size=8, ha="center", va="center", alpha=0.8)


def probable(axis: Any, found: Forecast, level: int) -> None:
    """The share of samples with tumour, over a slice, and its half-way line."""
    share = _smooth(found.probability["whole"][:, :, level])
    axis.imshow(
        np.ma.masked_less(share, 0.04).T,
        cmap=PROBABILITY,
        vmin=0,
        vmax=1,
        alpha=0.62,
        origin="lower",
        extent=_extent(found),
    )
    _contour(axis, share, 0.5, color=FUTURE, found=found)
    bar = axis.inset_axes((0.08, 0.93, 0.42, 0.03))
    bar.imshow(np.linspace(0, 1, 64)[None], cmap=PROBABILITY, aspect="auto", extent=(0, 1, 0, 1))
    bar.set(xticks=[], yticks=[])
    for x, text, side in ((-0.05, "0", "right"), (1.05, "1", "left")):
        bar.text(x, 0.4, text, color="white", size=8, ha=side, va="center")


def _difference(axis: Any, found: Forecast, level: int) -> None:
    assert found.truth is not None
    truth = masks(found.truth.labels)[WHOLE]
    error = found.probability["whole"] - truth
    axis.imshow(
        error[:, :, level].T,
        cmap="PuOr_r",
        vmin=-1,
        vmax=1,
        origin="lower",
        interpolation="nearest",
        extent=_extent(found),
    )
    outline(axis, truth, level, color=TRUTH, found=found)
    half = found.frame.size * found.frame.spacing_mm / 2
    axis.set(xlim=(half, -half), ylim=(-half, half), xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_color("#d5dae0")
    _title(axis, "difference", "forecast minus what came")
    signs = [Patch(color=of, label=word) for word, of in WRONG.items()]
    axis.legend(handles=signs, loc="lower center", ncols=2, fontsize=8, edgecolor="none")


def curve(axis: Any, found: Forecast) -> None:
    """Volume of the whole tumour over days: seen, forecast with its intervals, and what came."""
    days = [visit.day for visit in found.past]
    volumes = [float(visit.volumes_ml[WHOLE]) for visit in found.past]
    ahead = found.volumes_ml[:, WHOLE]
    start = (days[-1], volumes[-1])
    for name, shade in (("interval_90", 0.16), ("interval_50", 0.32)):
        low, high = quantiles(ahead, INTERVALS[name])
        level = round(100 * (INTERVALS[name][1] - INTERVALS[name][0]))
        axis.fill_between(
            [start[0], found.day],
            [start[1], low],
            [start[1], high],
            color=FUTURE,
            alpha=shade,
            linewidth=0,
            label=f"{level} % interval",
        )
    axis.plot(
        [start[0], found.day],
        [start[1], float(np.median(ahead))],
        color=FUTURE,
        linewidth=2,
        marker="o",
        markevery=[1],
        label="median of the forecast",
    )
    axis.plot(days, volumes, color=PAST, linewidth=2.2, marker="o", markersize=7, label="seen")
    if found.truth is not None:
        axis.plot(
            [found.day],
            [found.truth.volumes_ml[WHOLE]],
            color=TRUTH,
            marker="D",
            markersize=8,
            markeredgecolor=INK,
            linestyle="none",
            label="what came",
        )
    _treatments(axis, found)
    axis.set_xlabel("day, as in the sessions table (0: the first visit)", color=QUIET)
    axis.set_ylabel("whole tumour, ml", color=QUIET)
    axis.set_ylim(bottom=0)
    axis.margins(x=0.03)
    axis.grid(axis="y", color="#e6eaee")
    axis.set_axisbelow(True)
    tidy(axis)
    axis.legend(
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(-0.01, 0.98),
        ncols=5,
        fontsize=9,
        handlelength=1.4,
        handletextpad=0.5,
        columnspacing=1.1,
    )


def tidy(axis: Any) -> None:
    """No frame but the lower line, and quiet numbers."""
    axis.tick_params(colors=QUIET, length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color("#c8ced6")


def _treatments(axis: Any, found: Forecast) -> None:
    """A bar along the bottom for each course, up to the forecast's day."""
    top = axis.get_ylim()[1]
    first = found.past[0].day
    late = first + LATE * (found.day - first)
    for number, course in enumerate(found.treatments):
        end = min(course.end_day, found.day)
        low = top * (0.02 + 0.075 * number)
        axis.fill_between(
            [course.start_day, max(end, course.start_day + 1)],
            low,
            low + top * 0.06,
            color="#aab4c0",
            alpha=0.55,
            linewidth=0,
        )
        dose = "" if course.dose_gy is None else f" {course.dose_gy:g} Gy"
        place, side = (end, "right") if course.start_day > late else (course.start_day, "left")
        axis.text(place, low + top * 0.03, f" {course.kind}{dose} ", size=8, va="center", ha=side)


def _words(axis: Any, found: Forecast) -> None:
    axis.set_axis_off()
    ahead = found.volumes_ml[:, WHOLE]
    before = float(found.past[-1].volumes_ml[WHOLE])
    rows = [
        ("last seen", f"{before:.1f} ml on day {found.past[-1].day}"),
        ("forecast", f"{np.median(ahead):.1f} ml"),
        ("50 % interval", _range(ahead, "interval_50")),
        ("90 % interval", _range(ahead, "interval_90")),
    ]
    if found.truth is not None:
        rows.append(("what came", f"{found.truth.volumes_ml[WHOLE]:.1f} ml"))
    raw = found.certified.raw
    lawful = f"{100 * raw.passed.mean():.0f} % of first samples" if raw.kept else "not certified"
    answer = response(found)
    likeliest = max(answer["odds"], key=lambda name: answer["odds"][name])
    rows += [
        ("enhancing part", f"{likeliest}, {100 * answer['odds'][likeliest]:.0f} %"),
        ("keeps growth laws", lawful),
        ("samples", f"{len(found.volumes_ml)}, {found.how.evaluations} steps each"),
    ]
    for number, (name, value) in enumerate(rows):
        y = 0.95 - ROW * number
        axis.text(0.0, y, name, color=QUIET, transform=axis.transAxes, va="center")
        axis.text(0.42, y, value, color=INK, transform=axis.transAxes, va="center", weight="bold")
    lines = [
        part for one in found.warnings for part in wrap(f"! {one}", 52, subsequent_indent="  ")
    ]
    for number, line in enumerate(lines):
        y = 0.95 - ROW * len(rows) - WARNING_ROW * number
        axis.text(0.0, y, line, color=FUTURE, size=8.5, transform=axis.transAxes, va="center")


def widest_level(found: Sequence[Forecast]) -> int:
    """The axial slice with most tumour, now and probably, of one patient's forecasts; else the middle one."""
    share = sum(one.probability["whole"] + masks(one.past[-1].labels)[WHOLE] for one in found)
    amount = np.asarray(share).sum(axis=(0, 1))
    return int(amount.argmax()) if amount.any() else len(amount) // 2


def shown(found: Forecast) -> tuple[Float[ndarray, "x y z"] | None, float]:
    """The last scan in the channel that is shown, and the brightness drawn as white."""
    channel = _channel(found)
    return _background(found.past[-1], channel), _white(found, channel)


def _channel(found: Forecast) -> str | None:
    """That of all visits with what came, else of those that were seen."""
    for visits in ((*found.past, *filter(None, [found.truth])), found.past):
        for name in SHOWN:
            if all(name in visit.images for visit in visits):
                return name
    return None


def _white(found: Forecast, channel: str | None) -> float:
    """The brightness drawn as white: all but the brightest hundredth of what was seen."""
    images = [visit.images[channel] for visit in found.past] if channel else []
    return float(np.percentile(np.stack(images), 99.7)) if images else 1.0


def _background(visit: Seen, channel: str | None) -> Float[ndarray, "x y z"] | None:
    return visit.images.get(channel) if channel is not None else None


def outline(
    axis: Any,
    mask: Bool[ndarray, "x y z"],
    level: int,
    *,
    color: str,
    found: Forecast,
    style: str = "solid",
) -> None:
    """The border of a mask on a slice."""
    if mask[:, :, level].any():
        _contour(
            axis,
            _smooth(mask[:, :, level].astype(np.float64)),
            0.5,
            color=color,
            found=found,
            style=style,
        )


def _contour(
    axis: Any,
    field: Float[ndarray, "fx fy"],
    value: float,
    *,
    color: str,
    found: Forecast,
    style: str = "solid",
) -> None:
    half = found.frame.size * found.frame.spacing_mm / 2
    points = len(field)
    centres = -half + (np.arange(points) + 0.5) * 2 * half / points
    if field.min() < value < field.max():
        axis.contour(
            centres, centres, field.T, [value], colors=color, linewidths=1.6, linestyles=style
        )


def _smooth(plane: Float[ndarray, "x y"]) -> Float[ndarray, "fx fy"]:
    fine = np.kron(plane, np.ones((FOLD, FOLD)))
    return np.asarray(ndimage.gaussian_filter(fine, FOLD / 2))


def _extent(found: Forecast) -> tuple[float, float, float, float]:
    half = found.frame.size * found.frame.spacing_mm / 2
    return (-half, half, -half, half)


def _title(axis: Any, name: str, what: str) -> None:
    axis.set_title(f"{name}\n", size=12, weight="bold", color=INK, pad=4)
    axis.text(0.5, 1.03, what, size=8.5, color=QUIET, ha="center", transform=axis.transAxes)


def _range(volumes: Float[ndarray, " sample"], interval: str) -> str:
    low, high = quantiles(volumes, INTERVALS[interval])
    return f"{low:.1f} to {high:.1f} ml"
