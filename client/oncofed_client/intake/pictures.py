"""What does a visit look like that was taken in? One picture a visit, for the eyes of who runs the intake.

A row for each channel, cut along three planes through the tumour, with the outline, the edges of the brain
mask and of the white matter, and where a dose is planned the lines of half of it and of 95 %. What is out of
place is seen at once: an outline beside its tumour, a mask that cuts the brain, a dose beside its target,
channels that do not lie on each other. Pictures lie in the cohort and show no name but the new one.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from oncofed_client.intake.lattice import Lattice
from oncofed_common.cohort import CHANNELS, TISSUES, Patient, Visit
from oncofed_common.durable import write_atomic

PITCH_MM = 1.5
WIDE_MM = 192.0
LABEL_COLOURS = {1: "#f2b134", 2: "#3da35d", 3: "#d1495b", 4: "#3b6fb6"}
LABEL_NAMES = {1: "NETC", 2: "SNFH", 3: "ET", 4: "RC"}
BRAIN_COLOUR, WHITE_COLOUR, DOSE_COLOUR = "#7fd7ff", "#9aa3ad", "#ff8fd0"
DOSE_SHARES = (0.5, 0.95)
PLANE_WORDS = {"coronal": "coronal, left is left"}
PLANES = (("axial", 2), ("coronal", 1), ("sagittal", 0))


def draw_visit(patient: Patient, visit: Visit, path: Path) -> None:
    """Write the picture of one visit as PNG.

    Raises:
        SystemRefusal: the file cannot be written.
    """
    here = _around(patient, visit)
    at = _through(here, visit)
    outline = here.sampled(visit.tumor)
    edges = [] if patient.brain is None else [(here.sampled(patient.brain), BRAIN_COLOUR)]
    if patient.tissue is not None:
        white = here.sampled(patient.tissue) == TISSUES["white"]
        edges.append((white.astype(np.float32), WHITE_COLOUR))
    if visit.dose_gy is not None:
        dose = here.sampled(visit.dose_gy, order=1) / max(float(visit.dose_gy.data.max()), 1e-6)
        edges += [((dose >= share).astype(np.float32), DOSE_COLOUR) for share in DOSE_SHARES]
    shown = [name for name in CHANNELS if name in visit.images]
    size = {"font.family": "DejaVu Sans", "font.size": 9, "text.color": "white"}
    with mpl.rc_context(size):
        figure = Figure(figsize=(8.4, 2.75 * len(shown) + 0.6), facecolor="black")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(shown), 3, squeeze=False)
        for row, name in zip(axes, shown, strict=True):
            values = here.sampled(visit.images[name], order=1)
            for axis, (plane, along) in zip(row, PLANES, strict=True):
                _draw(axis, values, along=along, at=at[along], outline=outline, edges=edges)
                if axis is row[0]:
                    axis.set_title(f"{name}, {plane}", size=8, color="white", loc="left", pad=2)
                else:
                    axis.set_title(
                        PLANE_WORDS.get(plane, plane), size=8, color="white", loc="left", pad=2
                    )
        _caption(figure, patient, visit)
        figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.75 / figure.get_figheight(), 0.01, 0.09)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110, facecolor="black")
    write_atomic(path, picture.getvalue())


def _caption(figure: Any, patient: Patient, visit: Visit) -> None:
    top = 1 - 0.24 / figure.get_figheight()
    figure.text(0.01, top, f"{patient.participant}  {visit.session}  day {visit.day}", size=10)
    words = [
        (LABEL_NAMES[label], colour)
        for label, colour in LABEL_COLOURS.items()
        if (visit.tumor.data == label).any()
    ]
    if visit.dose_gy is not None:
        words.append(("dose", DOSE_COLOUR))
    words += [("brain mask", BRAIN_COLOUR), ("white matter", WHITE_COLOUR)]
    for number, (word, colour) in enumerate(words):
        place = 0.99 - 0.105 * (len(words) - 1 - number)
        figure.text(place, top, word, size=8, color=colour, ha="right")


def _draw(
    axis: Any,
    values: NDArray[np.float32],
    *,
    along: int,
    at: int,
    outline: NDArray[np.float32],
    edges: list[tuple[NDArray[np.float32], str]],
) -> None:
    cut = np.take(values, at, axis=along).T
    high = float(np.quantile(values[values > 0], 0.995)) if (values > 0).any() else 1.0
    axis.imshow(cut, cmap="gray", vmin=0, vmax=high, origin="lower", interpolation="bilinear")
    for mask, colour in edges:
        flat = np.take(mask, at, axis=along).T
        if 0 < flat.mean() < 1:
            axis.contour(flat, levels=[0.5], colors=colour, linewidths=0.5, alpha=0.8)
    for label in (2, 4, 3, 1):  # what lies inside is drawn last
        flat = np.take(outline == label, at, axis=along).T.astype(float)
        if flat.any():
            axis.contour(flat, levels=[0.5], colors=LABEL_COLOURS[label], linewidths=0.9)
    axis.set_axis_off()


def _around(patient: Patient, visit: Visit) -> Lattice:
    """A lattice about the brain, or about the tumour's own grid where no brain is known."""
    about = patient.brain or visit.tumor
    marked = np.argwhere(about.data > 0) if about.data.any() else np.array([about.data.shape]) / 2
    middle = (marked.min(axis=0) + marked.max(axis=0)) / 2
    centre: NDArray[np.float64] = about.affine_mm[:3, :3] @ middle + about.affine_mm[:3, 3]
    edge = int(WIDE_MM / PITCH_MM)
    corner = np.round(centre) - WIDE_MM / 2
    return Lattice(
        values=np.zeros((edge, edge, edge), dtype=np.float32),
        origin_mm=(float(corner[0]), float(corner[1]), float(corner[2])),
        pitch_mm=PITCH_MM,
    )


def _through(here: Lattice, visit: Visit) -> tuple[int, int, int]:
    """The middle of the tumour, or of the view where there is none."""
    marked = np.argwhere(visit.tumor.data > 0)
    edge = here.values.shape[0]
    if not len(marked):
        return edge // 2, edge // 2, edge // 2
    world = visit.tumor.affine_mm[:3, :3] @ marked.mean(axis=0) + visit.tumor.affine_mm[:3, 3]
    index = np.rint((world - np.asarray(here.origin_mm)) / PITCH_MM).astype(int)
    x, y, z = (int(i) for i in index.clip(0, edge - 1))
    return x, y, z
