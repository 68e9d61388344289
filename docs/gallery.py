"""The gallery's pictures: one virtual patient of each hospital, drawn from the simulator itself.

    .venv/bin/python docs/gallery.py

Rows are visits; columns the four channels in the axial slice with most tumour, with the rater's outlines;
at the right the visible volume as it was, untreated, and under other doses.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from oncofed_common.cohort import CHANNELS, LABELS, Volume
from oncofed_simulation.patients import VirtualPatient, hospital, virtual_patient

SEED = 7
PATIENTS = ((1, 9), (2, 2), (3, 7))
"""Hospital and patient: one irradiated, one with everything, one operated on only."""
SHOWN = 3
CONTRAST = "ce-gadolinium_T1w"
COLOURS = {"NETC": "#4c78ff", "SNFH": "#ffd34d", "ET": "#ff5a4d", "RC": "#39d6c0"}
WORLDS = {
    "actual": ("as it was", "#111111", "-"),
    "untreated": ("untreated", "#c0392b", "--"),
    "half_dose": ("half the dose", "#e08e2b", ":"),
    "dose_plus_quarter": ("a quarter more dose", "#2b7bba", ":"),
}


def axial(volume: Volume, z_mm: float) -> NDArray[np.float64]:
    """The axial slice at ``z_mm``: anterior up, the patient's right on the left of the picture."""
    affine = volume.affine_mm
    index = round(float((z_mm - affine[2, 3]) / affine[2, 2]))
    plane = np.asarray(volume.data[:, :, np.clip(index, 0, volume.data.shape[2] - 1)], dtype=float)
    plane = plane[:: int(-np.sign(affine[0, 0])), :: int(np.sign(affine[1, 1]))]
    return plane.T[::-1]


def draw_visit(row: list[Axes], virtual: VirtualPatient, visit_number: int, z_mm: float) -> None:
    visit = virtual.patient.visits[visit_number]
    labels = axial(visit.tumor, z_mm)
    x_mm, y_mm = visit.tumor.spacing_mm[:2]
    for axis, channel in zip(row, CHANNELS, strict=False):
        axis.set_xticks([])
        axis.set_yticks([])
        image = visit.images.get(channel)
        if image is None:
            axis.text(0.5, 0.5, "missing", ha="center", transform=axis.transAxes)
            continue
        plane = axial(image, z_mm)
        top = np.percentile(plane[plane > 0], 99.5)
        axis.imshow(plane, cmap="gray", vmin=0, vmax=top, aspect=y_mm / x_mm)
        for name in ("SNFH", "ET", "RC", "NETC"):
            value = LABELS[name]
            drawn = channel == "FLAIR" or (channel == CONTRAST and name != "SNFH")
            if drawn and (labels == value).any():
                axis.contour(labels == value, [0.5], colors=COLOURS[name], linewidths=0.9)
    row[0].set_ylabel(f"day {visit.day}", size=9)


def draw_volumes(axis: Axes, virtual: VirtualPatient) -> None:
    days = virtual.truth.visit_days
    for name, world in virtual.worlds.items():
        label, colour, line = WORLDS[name]
        axis.plot(days, world.volumes_ml, line, color=colour, label=label, marker="o", ms=3)
    top = axis.get_ylim()[1]
    for course in virtual.patient.treatments:
        shade = {"radiotherapy": "#f5b7b1", "chemotherapy": "#d2b4de", "surgery": "#39d6c0"}[
            course.kind
        ]
        end = max(min(course.end_day, days[-1]), course.start_day + 2)
        axis.axvspan(course.start_day, end, color=shade, alpha=0.5, lw=0)
        axis.text(course.start_day, top * 0.98, f" {course.kind}", size=7, rotation=90, va="top")
    axis.set_ylim(0, top)
    axis.set_xlabel("days since the first visit")
    axis.set_ylabel("visible volume, ml")
    axis.legend(fontsize=7, frameon=False, loc="best")


def picture(virtual: VirtualPatient, title: str) -> Figure:
    count = len(virtual.patient.visits)
    shown = sorted({0, count // 2, count - 1})[:SHOWN]
    last = virtual.patient.visits[0].tumor
    per_slice = (last.data > 0).sum(axis=(0, 1))
    z_mm = float(last.affine_mm[2, 2] * int(per_slice.argmax()) + last.affine_mm[2, 3])
    figure = Figure(figsize=(11.5, 2.1 * len(shown) + 0.7), layout="constrained")
    grid = figure.add_gridspec(len(shown), 5, width_ratios=[1, 1, 1, 1, 2.1])
    for place, visit_number in enumerate(shown):
        row = [figure.add_subplot(grid[place, column]) for column in range(4)]
        draw_visit(row, virtual, visit_number, z_mm)
        if place == 0:
            for axis, channel in zip(row, CHANNELS, strict=True):
                axis.set_title(channel.replace(CONTRAST, "contrast T1w"), size=9)
    draw_volumes(figure.add_subplot(grid[:, 4]), virtual)
    handles = [mpl.lines.Line2D([], [], color=COLOURS[n], label=n) for n in LABELS]
    figure.legend(handles=handles, loc="outside lower left", ncols=4, fontsize=7, frameon=False)
    figure.suptitle(f"{title}: a virtual patient; research use only", size=10)
    return figure


def main() -> None:
    folder = Path(__file__).parent
    for number, patient in PATIENTS:
        site = hospital(SEED, number)
        virtual = virtual_patient(site, seed=SEED, number=patient, with_worlds=True)
        scanner = site.scanner
        voxels = " x ".join(f"{edge:g}" for edge in scanner.voxel_mm)
        made = picture(virtual, f"hospital {number}, voxels of {voxels} mm")
        made.savefig(folder / f"gallery-{number}.png", dpi=95)


if __name__ == "__main__":
    main()
