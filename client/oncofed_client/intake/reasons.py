"""Why is something not taken in, and what can the hospital do about it?

The reasons of the cohort check count here too: what it would find, intake never writes. Those below are
about what only a source has: names, dates, series.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from oncofed_client.findings import RULES


@dataclass(frozen=True, kw_only=True)
class Reason:
    """``found`` in words, and what to do ``next``."""

    found: str
    next: str


REASONS: Mapping[str, Reason] = {
    # the patient
    "no_number": Reason(
        found="no hospital number for this patient", next="add the patient's row to --numbers"
    ),
    "number_twice": Reason(
        found="a hospital number that another patient of the source has too",
        next="correct --numbers, or bring the two under one name",
    ),
    "not_in_source": Reason(
        found="a row of a table for which the source has no patient, or no visit",
        next="correct the name in the table; where it is right, nothing is to do",
    ),
    "clocks_mixed": Reason(
        found="dates and day numbers that cannot be brought onto one clock",
        next="give dates for all visits, or day numbers for all visits and treatments",
    ),
    "treatment_invalid": Reason(
        found="a treatment that ends before it starts", next="correct the treatments table"
    ),
    "few_visits": Reason(
        found="fewer than two visits that can be used",
        next="mend what the rows of its visits name, or wait for the next visit",
    ),
    "person_invalid": Reason(
        found="a row of the participants table that cannot be read",
        next="correct the row, or write n/a",
    ),
    "no_brain": Reason(
        found="a first visit in which no brain is found",
        next="look at its images: the whole brain has to be on them",
    ),
    "unexpected": Reason(
        found="something that intake did not foresee", next="report the class and line"
    ),
    # the visit
    "no_date": Reason(
        found="no date and no day for this visit", next="add the visit's row to sessions.tsv"
    ),
    "same_day": Reason(
        found="another visit of the same day", next="join the two under one name of a visit"
    ),
    # the file
    "unknown_name": Reason(
        found="a file whose name is not of the stated style",
        next="nothing, if it is no scan; else rename it, or use --style mapping",
    ),
    "ambiguous": Reason(
        found="more than one file for the same thing",
        next="keep one of them, or name the right one with --style mapping",
    ),
    "file_missing": Reason(
        found="a file of the mapping that is not there", next="correct the mapping"
    ),
    "link_outside": Reason(
        found="something that lies outside the source, or a link that leads nowhere",
        next="copy it into the source",
    ),
    "no_file": Reason(
        found="a folder, pipe or device in the place of a file", next="copy the file itself there"
    ),
    "unreachable": Reason(
        found="a file or folder that this account cannot reach",
        next="give this account the right to read it, or shorten its path",
    ),
    # DICOM
    "not_dicom": Reason(
        found="a file that is not DICOM", next="nothing, if it is no scan; else export it again"
    ),
    "mixed_patients": Reason(
        found="one series with the files of several patients",
        next="export the series again; do not mend it by hand",
    ),
    "no_patient": Reason(
        found="a file without a patient or a series", next="export it again with PatientID"
    ),
    "channel_unclear": Reason(
        found="a series that is none of the four channels, or not clearly one",
        next="nothing, if it is no such series; else name it in --series",
    ),
    "series_alike": Reason(
        found="several series or objects for the same thing, none with more slices than the others",
        next="keep one in the folder; of images also: name it in --series, and the other as -",
    ),
    "finer_taken": Reason(
        found="a second series of the same channel; the one with more slices was taken",
        next="name the right one in --series, and the other as -",
    ),
    "not_converted": Reason(
        found="a series that is not one regular volume",
        next="export it again whole, without reformatted or repeated slices",
    ),
    "slices_uneven": Reason(
        found="slices that are missing, doubled, or not evenly apart",
        next="export the series again",
    ),
    "structure_unknown": Reason(
        found="no structure that --labels names", next="add the structure's name to --labels"
    ),
    "contours_tilted": Reason(
        found="contours that do not lie in the slices of their image",
        next="export them together with the images on which they were drawn",
    ),
    "dose_unsupported": Reason(
        found="a dose that is not the physical dose of a whole plan in Gy",
        next="export RTDOSE with DoseSummationType PLAN and DoseUnits GY",
    ),
    "no_image_beside": Reason(
        found="contours without their image, or a dose without its image or planning CT",
        next="export them together with the images on which they were drawn, or planned",
    ),
    "planning_ct": Reason(
        found="a CT: it says where its dose lies, and stays out of the cohort", next="nothing"
    ),
    "planning_late": Reason(
        found="a dose planned more than 90 days after the visit before it",
        next="add the visit on whose images it was planned, or export the dose on those",
    ),
    "planning_not_found": Reason(
        found="a dose whose planning CT cannot be laid on the visit before it",
        next="lay the CT on the visit's images where the plan was made, and export the dose on those",
    ),
}


def reason(code: str) -> Reason:
    """What a code means, be it intake's own or the check's."""
    if code in REASONS:
        return REASONS[code]
    rule = RULES[code]
    return Reason(found=f"not {rule.allowed}", next=rule.fix)
