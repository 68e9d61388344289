"""What a hospital has before its intake, small: two visits a patient, one channel, in four styles.

The heads are those of ``cohort_builder``; nothing says that they are virtual, so that what is made of them is
a real cohort to the programs, for a real home.
"""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

import cohort_builder as build
import dicom_builder as dicom
import nibabel as nib
import numpy as np
from guide_desks import Desk

CHANNEL = "ce-gadolinium_T1w"
DAYS = {"ses-01": date(2021, 3, 4), "ses-02": date(2021, 5, 3)}
STRUCTURES = {1: "GTV core", 2: "Edema", 3: "Enhancing"}
SERIES = "t1 mprage post gd"  # as dicom_builder describes this channel

IN_DICOM = "label\tname\nGTV core\tNETC\nEdema\tSNFH\nEnhancing\tET\n"
IN_NIFTI = "index\tname\n1\tNETC\n2\tSNFH\n3\tET\n"


def heads(root: Path, *, patients: int) -> Path:
    """A cohort of ``cohort_builder`` with one channel a visit, and without a word on who made it."""
    made = build.write_cohort(root, patients=patients)
    for path in made.rglob("*.nii.gz"):
        if not path.name.endswith((f"{CHANNEL}.nii.gz", "tumor_dseg.nii.gz")):
            path.unlink()
    build.edit(made / "dataset_description.json", "oncofed-simulate", "a hospital")
    return made


def bring_dicom(desk: Desk, made: Path, *, to: str) -> None:
    """Every head of ``made`` as series and segmentations, and what the site says of labels and treatment."""
    for image in sorted(made.rglob(f"*_{CHANNEL}.nii.gz")):
        participant, session = image.parts[-4:-2]
        about = {"patient": f"4711-{participant[-3:]}", "day": DAYS[session]}
        scan, outline = nib.load(image), nib.load(build.outline_path(made, participant, session))
        folder = desk.place(to) / f"{participant} {session}"
        data = np.asarray(scan.dataobj)
        files = dicom.write_series(folder, data, scan.affine, channel=CHANNEL, **about)
        labels = np.asarray(outline.dataobj)
        dicom.write_segmentation(folder / "seg.dcm", files, labels, STRUCTURES)
    desk.write("labels.tsv", IN_DICOM)
    course = "4711-001\tradiotherapy\t2021-03-14\t2021-04-23\t60\t30\tn/a\tn/a\n"
    columns = "participant_id\tkind\tstart\tend\tdose_gy\tfractions\tagent\tdose_mg_m2\n"
    for folder in ("data/tables", "tables"):
        desk.write(f"{folder}/treatments.tsv", columns + course)
    desk.write("series.tsv", f"description\tchannel\n{SERIES}\t{CHANNEL}\n")


def bring_brats(desk: Desk, made: Path) -> None:
    """The first patient, named as in the BraTS challenges."""
    for number, session in enumerate(DAYS):
        stem = f"BraTS-GLI-00001-{number:03d}"
        folder = desk.place("data/brats") / stem
        folder.mkdir(parents=True)
        scan = build.image_path(made, "sub-001", session, CHANNEL)
        shutil.copy(scan, folder / f"{stem}-t1c.nii.gz")
        outline = build.outline_path(made, "sub-001", session)
        shutil.copy(outline, folder / f"{stem}-seg.nii.gz")
    _say_when(desk, "BraTS-GLI-00001", ("000", "001"))


def bring_bids(desk: Desk, made: Path) -> None:
    """The whole folder, which is in the style of BIDS already, with the labels of BraTS 2021."""
    shutil.copytree(made, desk.place("data/bids"))
    for path in desk.place("data/bids").rglob("*_dseg.nii.gz"):
        build.rewrite(path, lambda data, affine: (np.where(data == 3, 4, data), affine))
    desk.write("numbers.tsv", "participant_id\thospital_number\nsub-001\t4711-001\n")


def bring_mapping(desk: Desk, made: Path) -> None:
    """The first patient under names that say nothing, and the table that says what they are."""
    rows = ["participant_id\tsession_id\tkind\tpath"]
    desk.place("data/nifti").mkdir(parents=True)
    for session in DAYS:
        kinds = {
            CHANNEL: build.image_path(made, "sub-001", session, CHANNEL),
            "outline": build.outline_path(made, "sub-001", session),
        }
        for kind, path in kinds.items():
            name = f"scan {len(rows)}.nii.gz"
            shutil.copy(path, desk.place("data/nifti") / name)
            rows.append(f"p1\t{session}\t{kind}\t{name}")
    desk.write("files.tsv", "\n".join(rows) + "\n")
    desk.write("labels.tsv", IN_NIFTI)
    _say_when(desk, "p1", tuple(DAYS))


def _say_when(desk: Desk, patient: str, sessions: tuple[str, ...]) -> None:
    rows = [
        f"{patient}\t{session}\t{day}\tn/a\tn/a\n"
        for session, day in zip(sessions, DAYS.values(), strict=True)
    ]
    columns = "participant_id\tsession_id\twhen\tsteroid_mg\tkps\n"
    desk.write("tables/sessions.tsv", columns + "".join(rows))
    desk.write("numbers.tsv", f"participant_id\thospital_number\n{patient}\t4711-001\n")
