"""Every fault of images, outlines and maps that the check knows."""

import shutil

import cohort_builder as build
import numpy as np
from planting import (
    ILL,
    WELL,
    Plant,
    clip,
    dwindles,
    endless,
    every_file,
    flip,
    header,
    image,
    leaps,
    metres,
    outline,
    pipe,
    rgb,
    shift,
    swell,
    terms,
    truncate,
    twin,
    untreated_and_gone,
    voxel,
)

IN_SCANS = {
    "a channel is missing": Plant(
        "channel_missing", "image", "nothing", lambda r: image(r).unlink(), session="ses-02"
    ),
    "a channel that the study needs is missing": Plant(
        "channel_missing",
        "image",
        "visit",
        lambda r: image(r).unlink(),
        session="ses-02",
        terms=terms(crop_voxels=64),
    ),
    "all channels are missing": Plant(
        "images_missing",
        "image",
        "visit",
        lambda r: [image(r, channel).unlink() for channel in build.CHANNELS],
        session="ses-02",
        also=frozenset({"channel_missing"}),
    ),
    "the outline is missing": Plant(
        "outline_missing", "outline", "visit", lambda r: outline(r).unlink(), session="ses-02"
    ),
    "the first outline is empty": Plant(
        "outline_empty",
        "outline",
        "visit",
        lambda r: build.rewrite(outline(r, "ses-01"), lambda d, a: (0 * d, a)),
        session="ses-01",
    ),
    "an outline is empty though nothing was treated": Plant(
        "outline_empty", "outline", "visit", untreated_and_gone, session="ses-02"
    ),
    "the outline has a label that nobody named": Plant(
        "label_unknown",
        "outline",
        "visit",
        lambda r: build.rewrite(outline(r), voxel(7)),
        session="ses-02",
    ),
    "the outline was interpolated": Plant(
        "label_unknown",
        "outline",
        "visit",
        lambda r: build.rewrite(outline(r), voxel(0.5)),
        session="ses-02",
    ),
    "the tissue map has a label that nobody named": Plant(
        "tissue_label_unknown",
        "tissue map",
        "nothing",
        lambda r: build.rewrite(build.tissue_path(r, ILL), voxel(4)),
    ),
    "the brain mask is not one": Plant(
        "tissue_label_unknown",
        "brain mask",
        "nothing",
        lambda r: build.rewrite(build.brain_path(r, ILL), voxel(0.5)),
    ),
    "the dose map is in centigray": Plant(
        "dose_implausible",
        "dose map",
        "nothing",
        lambda r: build.rewrite(build.dose_path(r, ILL, "ses-01"), lambda d, a: (100 * d, a)),
        session="ses-01",
    ),
    "the dose map is a share of the dose": Plant(
        "dose_implausible",
        "dose map",
        "nothing",
        lambda r: build.rewrite(build.dose_path(r, ILL, "ses-01"), lambda d, a: (d / 60, a)),
        session="ses-01",
    ),
    "the dose map is negative": Plant(
        "dose_implausible",
        "dose map",
        "nothing",
        lambda r: build.rewrite(build.dose_path(r, ILL, "ses-01"), voxel(-3)),
        session="ses-01",
    ),
    "a file is not NIfTI": Plant(
        "unreadable", "image", "visit", lambda r: image(r).write_text("scan"), session="ses-02"
    ),
    "a small file unpacks to far more than its header says": Plant(
        "too_large", "image", "visit", lambda r: swell(image(r)), session="ses-02"
    ),
    "a header speaks of more voxels than any head has": Plant(
        "too_large",
        "outline",
        "visit",
        lambda r: header(outline(r), 42, np.array([3000] * 3, dtype="<i2").tobytes()),
        session="ses-02",
    ),
    "a scan is a pipe": Plant(
        "unreadable", "image", "visit", lambda r: pipe(image(r)), session="ses-02"
    ),
    "an outline is an endless device": Plant(
        "unreadable", "outline", "visit", lambda r: endless(outline(r)), session="ses-02"
    ),
    "a file is cut off": Plant(
        "truncated", "image", "visit", lambda r: truncate(image(r)), session="ses-02"
    ),
    "an outline is cut off": Plant(
        "truncated",
        "outline",
        "visit",
        lambda r: outline(r).write_bytes(outline(r).read_bytes()[:-40]),
        session="ses-02",
    ),
    "an image has four axes": Plant(
        "not_3d",
        "image",
        "visit",
        lambda r: build.rewrite(image(r), lambda d, a: (np.stack([d, d], axis=3), a)),
        session="ses-02",
    ),
    "an image has colours": Plant("not_scalar", "image", "visit", rgb, session="ses-02"),
    "an image does not say where it lies": Plant(
        "affine_missing",
        "image",
        "visit",
        lambda r: header(image(r), 252, b"\0\0\0\0"),
        session="ses-02",
    ),
    "an affine is singular": Plant(
        "affine_singular",
        "image",
        "visit",
        lambda r: header(image(r), 312, np.zeros(4, dtype="<f4").tobytes()),
        session="ses-02",
    ),
    "an affine is in metres": Plant(
        "geometry_implausible",
        "image",
        "visit",
        lambda r: build.rewrite(image(r), metres),
        session="ses-02",
    ),
    "an image holds NaN": Plant(
        "not_finite",
        "image",
        "visit",
        lambda r: build.rewrite(image(r), voxel(np.nan)),
        session="ses-02",
    ),
    "a dose map holds infinity": Plant(
        "not_finite",
        "dose map",
        "nothing",
        lambda r: build.rewrite(build.dose_path(r, ILL, "ses-01"), voxel(np.inf)),
        session="ses-01",
    ),
    "an image is blank": Plant(
        "blank",
        "image",
        "visit",
        lambda r: build.rewrite(image(r), lambda d, a: (0 * d + 7, a)),
        session="ses-02",
    ),
    "a tissue map is blank": Plant(
        "blank",
        "tissue map",
        "nothing",
        lambda r: build.rewrite(build.tissue_path(r, ILL), lambda d, a: (0 * d, a)),
    ),
    "an image lies elsewhere": Plant(
        "elsewhere",
        "image",
        "visit",
        lambda r: build.rewrite(image(r), shift(0, 90, 0)),
        session="ses-02",
    ),
    "an image lies in another room": Plant(
        "elsewhere",
        "image",
        "visit",
        lambda r: build.rewrite(image(r), shift(5000, 0, 0)),
        session="ses-02",
    ),
    "an outline lies elsewhere": Plant(
        "elsewhere",
        "outline",
        "visit",
        lambda r: build.rewrite(outline(r), shift(0, 0, 700)),
        session="ses-02",
    ),
    "a dose map lies elsewhere": Plant(
        "elsewhere",
        "dose map",
        "nothing",
        lambda r: build.rewrite(build.dose_path(r, ILL, "ses-01"), shift(120, 0, 0)),
        session="ses-01",
    ),
    "a brain mask lies elsewhere": Plant(
        "elsewhere",
        "brain mask",
        "nothing",
        lambda r: build.rewrite(build.brain_path(r, ILL), shift(0, 80, 0)),
    ),
    "an outline lies off the brain": Plant(
        "off_brain",
        "outline",
        "visit",
        lambda r: build.rewrite(outline(r), shift(50, 0, 0)),
        session="ses-02",
    ),
    "an image is mirrored left to right": Plant(
        "mirrored",
        "image",
        "visit",
        lambda r: build.rewrite(image(r, "FLAIR"), flip(0)),
        session="ses-02",
    ),
    "an outline is mirrored left to right": Plant(
        "mirrored",
        "outline",
        "visit",
        lambda r: build.rewrite(outline(r), flip(0)),
        session="ses-02",
    ),
    "a tissue map is mirrored front to back": Plant(
        "mirrored",
        "tissue map",
        "nothing",
        lambda r: build.rewrite(build.tissue_path(r, ILL), flip(1)),
    ),
    "a visit is in a space of its own": Plant(
        "world_differs",
        "image",
        "visit",
        lambda r: every_file(r, "ses-02", shift(70, 0, 0)),
        session="ses-02",
    ),
    "a visit is mirrored as a whole": Plant(
        "world_differs",
        "image",
        "visit",
        lambda r: every_file(r, "ses-02", flip(0)),
        session="ses-02",
    ),
    "an image is clipped": Plant(
        "clipped",
        "image",
        "nothing",
        lambda r: build.rewrite(image(r), clip),
        session="ses-02",
    ),
    "a tumour grows faster than any": Plant(
        "volume_jump", "outline", "nothing", leaps, session="ses-02"
    ),
    "an untreated tumour vanishes but for a spot": Plant(
        "volume_jump", "outline", "nothing", dwindles, session="ses-03"
    ),
    "a visit has the scan of the visit before": Plant(
        "scan_repeated",
        "image",
        "nothing",
        lambda r: shutil.copy(image(r, session="ses-01"), image(r)),
        session="ses-02",
    ),
    "a channel is a copy of another": Plant(
        "scan_repeated",
        "image",
        "nothing",
        lambda r: shutil.copy(image(r), image(r, "T2w")),
        session="ses-02",
    ),
    "two patients have one scan": Plant(
        "scan_shared",
        "image",
        "nothing",
        lambda r: shutil.copy(build.image_path(r, WELL, "ses-02", "T1w"), image(r)),
        session="ses-02",
        also=frozenset({"scan_shared"}),
    ),
    "a patient is there twice under two names": Plant(
        "scan_shared",
        "image",
        "nothing",
        twin,
        session="ses-02",
        also=frozenset({"scan_shared"}),
    ),
    "the tumour is larger than the crop": Plant(
        "outside_crop",
        "outline",
        "nothing",
        lambda r: build.rewrite(outline(r), voxel(1)),
        session="ses-02",
        terms=terms(crop_voxels=16),
    ),
}
