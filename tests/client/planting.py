"""A fault to plant in a cohort without one, and the ways to plant it."""

import gzip
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cohort_builder as build
import numpy as np

from oncofed_common.study_terms import CohortTerms

ILL, WELL = "sub-001", "sub-002"


@dataclass(frozen=True)
class Plant:
    """A fault: where it is planted, and what the check must say of it and leave out."""

    code: str
    file: str
    excludes: str
    plant: Callable[[Path], None]
    session: str | None = None
    also: frozenset[str] = frozenset()
    of_patient: bool = True
    terms: CohortTerms | None = None
    with_identities: bool = False


def terms(**changed):
    fields = {
        "modalities": ["T1w", "FLAIR"],
        "label_scheme": {"NETC": 1, "SNFH": 2, "ET": 3, "RC": 4},
        "spacing_mm": 3.0,
        "crop_voxels": 32,
        "fewest_visits": 2,
        "held_out_fraction": 0.25,
    }
    return CohortTerms.model_validate({**fields, **changed})


def image(root, channel="T1w", session="ses-02"):
    return build.image_path(root, ILL, session, channel)


def outline(root, session="ses-02"):
    return build.outline_path(root, ILL, session)


def header(path, place, value):
    """Write bytes into the header, as no library would."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[place : place + len(value)] = value
    path.write_bytes(gzip.compress(bytes(raw)))


def swell(path):
    """Append what unpacks to 300 MB of zeros and is packed in 300 kB."""
    with gzip.open(path, "ab") as file:
        for _ in range(300):
            file.write(bytes(10**6))


def pipe(path):
    """A named pipe in the file's place, to which nobody writes."""
    path.unlink()
    os.mkfifo(path)


def endless(path):
    """A link to a device that never ends."""
    path.unlink()
    path.symlink_to("/dev/zero")


def shift(*by_mm):
    def change(data, affine):
        moved = affine.copy()
        moved[:3, 3] += by_mm
        return data, moved

    return change


def flip(*axes):
    return lambda data, affine: (np.flip(data, axes), affine)


def voxel(value):
    def change(data, affine):
        data = data.astype(np.float32)
        data[16, 19, 15] = value
        return data, affine

    return change


def every_file(root, session, change):
    for channel in build.CHANNELS:
        build.rewrite(image(root, channel, session), change)
    build.rewrite(outline(root, session), change)


def rgb(root):
    colours = np.zeros(build.SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    build.save(image(root), colours, build.affine_mm())


def untreated_and_gone(root):
    table = root / ILL / f"{ILL}_treatments.tsv"
    table.write_text(table.read_text().split("\n")[0] + "\n")
    build.rewrite(outline(root), lambda data, affine: (0 * data, affine))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def metres(data, affine):
    return data, np.diag([1e-3, 1e-3, 1e-3, 1.0]) @ affine


def clip(data, affine):
    """A contrast that changes from voxel to voxel, cut off above a value that many reach."""
    shaded = data + 0.5 * np.indices(data.shape).sum(axis=0) * (data > 0)
    return np.minimum(shaded, np.quantile(shaded[data > 0], 0.9)).astype(np.float32), affine


def leaps(root):
    """Five days after the first visit the whole head is outlined."""
    build.edit(root / ILL / f"{ILL}_sessions.tsv", "\t60\t", "\t5\t")
    head = build.materials_of_head()
    build.rewrite(outline(root), lambda data, affine: (np.where(head, 2, data), affine))


def dwindles(root):
    """Nothing was treated, and at the last visit a few voxels are left."""
    table = root / ILL / f"{ILL}_treatments.tsv"
    table.write_text(table.read_text().split("\n")[0] + "\n")
    x, y, _ = np.indices(build.SHAPE) % 4
    spot = (x == 0) & (y == 0)
    build.rewrite(outline(root, "ses-03"), lambda data, affine: (np.where(spot, data, 0), affine))


def twin(root):
    """All of the other patient's images under this one's names."""
    for channel in build.CHANNELS:
        shutil.copy(build.image_path(root, WELL, "ses-02", channel), image(root, channel))


def identities(root):
    """Where the table of hospital numbers lies."""
    return root.with_name("identities.tsv")


def numbered(root, **numbers):
    """Hospital numbers of the two patients, by the end of their names."""
    rows = [f"sub-{name[1:]}\t{number}" for name, number in numbers.items()]
    identities(root).write_text("\n".join(["participant_id\thospital_number", *rows]) + "\n")
