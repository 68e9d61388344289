"""What the check of a cohort can find, and what each finding excludes.

Every finding has a reason code, says in words what was found and how to mend it, and excludes a
visit, a patient, the cohort, or nothing. What it excludes follows from the file it is about:

    image, outline                               the visit
    sessions table, treatments table             the patient
    identity table                               the patient
    participants table, label table, description the cohort
    dose map, tissue map, brain mask             nothing: the map is left out, the model gets its missing flag

unless the rule of the code says otherwise. Findings name patients: they are for the hospital's own
screen and for ``findings.json`` (mode 0600), never for a log, an exception or the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, TypeVar

from oncofed_common.errors import CohortRefusal

T = TypeVar("T")
Excludes = Literal["visit", "patient", "cohort", "nothing"]
FileKind = Literal[
    "image",
    "outline",
    "dose map",
    "tissue map",
    "brain mask",
    "sessions table",
    "treatments table",
    "participants table",
    "label table",
    "identity table",
    "description",
    "folder",
]

EXCLUDED_BY_FILE: Mapping[FileKind, Excludes] = {
    "image": "visit",
    "outline": "visit",
    "dose map": "nothing",
    "tissue map": "nothing",
    "brain mask": "nothing",
    "sessions table": "patient",
    "treatments table": "patient",
    "participants table": "cohort",
    "label table": "cohort",
    "identity table": "patient",
    "description": "cohort",
    "folder": "cohort",
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a code means: what would have been allowed, how to mend it, what it excludes."""

    allowed: str
    fix: str
    excludes: Excludes | None = None
    """None: by the kind of file."""


RULES: Mapping[str, Rule] = {
    # the folder and its tables
    "no_cohort": Rule(
        allowed="a folder in the cohort layout",
        fix="give the folder that holds participants.tsv, and check its permissions",
    ),
    "description_malformed": Rule(
        allowed="a JSON object with Name, BIDSVersion and DatasetType",
        fix="write dataset_description.json with these three keys",
    ),
    "table_missing": Rule(
        allowed="a table in its place",
        fix="write the table; a header alone says that there is nothing",
    ),
    "table_malformed": Rule(
        allowed="UTF-8 text, columns parted by tabs, one header, every row as long as the header",
        fix="export the table again as tab-separated UTF-8",
    ),
    "column_missing": Rule(
        allowed="every column of the cohort contract, with n/a where a value is unknown",
        fix="add the column; write n/a where a value is unknown",
    ),
    "row_invalid": Rule(
        allowed="values of the kind and range that the column states, or n/a",
        fix="correct the value in the named column, or write n/a",
    ),
    "scheme_unknown_name": Rule(
        allowed="NETC, SNFH, ET, RC (BraTS 2023 post-treatment)",
        fix="name each label by the compartment it outlines; outline again what has no such name",
    ),
    "scheme_lacks_compartment": Rule(
        allowed="a label for every compartment of the study",
        fix="if this site outlines the compartment, add it to derivatives/tumor/dseg.tsv",
        excludes="nothing",
    ),
    "no_patients": Rule(
        allowed="one patient at least", fix="run intake again, or give another folder"
    ),
    # the patient
    "participant_duplicate": Rule(
        allowed="one row a patient",
        fix="remove the row that is wrong; two patients need two names",
        excludes="patient",
    ),
    "participant_unlisted": Rule(
        allowed="a row of participants.tsv for every patient folder",
        fix="add the row, or remove the folder",
        excludes="patient",
    ),
    "participant_folder_missing": Rule(
        allowed="a folder for every row of participants.tsv",
        fix="add the folder, or remove the row",
        excludes="patient",
    ),
    "identity_missing": Rule(
        allowed="one hospital number for every participant",
        fix="complete the identity table; who has no number, or two, is not trained on",
    ),
    "identity_shared": Rule(
        allowed="one participant for every hospital number",
        fix="keep one name for this patient, or correct the number; the other name is not trained on",
    ),
    "session_duplicate": Rule(
        allowed="one row a session", fix="remove the row that is wrong; two visits need two names"
    ),
    "session_unlisted": Rule(
        allowed="a row of the sessions table for every session folder",
        fix="add the row with its day, or remove the folder",
        excludes="visit",
    ),
    "session_folder_missing": Rule(
        allowed="a folder for every row of the sessions table",
        fix="add the folder, or remove the row",
        excludes="visit",
    ),
    "days_not_increasing": Rule(
        allowed="days_from_baseline that increase from row to row",
        fix="correct the days and sort the visits; two scans of one day are one visit",
    ),
    "treatment_ends_before_start": Rule(
        allowed="end_day on or after start_day", fix="correct the two days of the treatment"
    ),
    "few_visits": Rule(
        allowed="as many usable visits as the study asks for, two at least",
        fix="add visits, or mend those that other findings exclude",
        excludes="patient",
    ),
    "world_differs": Rule(
        allowed="all visits of a patient in one world space",
        fix="register the visits of this patient to each other again",
        excludes="visit",
    ),
    # the files of a visit
    "channel_missing": Rule(
        allowed="T1w, ce-gadolinium_T1w, T2w and FLAIR",
        fix="add the channel if it was acquired; without it the model gets its missing flag",
        excludes="nothing",
    ),
    "images_missing": Rule(
        allowed="one image channel at least", fix="add the images of this visit", excludes="visit"
    ),
    "outline_missing": Rule(
        allowed="a tumour outline for every visit", fix="outline the tumour of this visit"
    ),
    "outline_empty": Rule(
        allowed="an outlined tumour, unless an earlier visit shows one that was treated since",
        fix="outline the tumour (a cavity is RC), or complete the treatments table",
    ),
    "label_unknown": Rule(
        allowed="0 and the labels that derivatives/tumor/dseg.tsv names",
        fix="correct the outline, or name the label in derivatives/tumor/dseg.tsv",
    ),
    "tissue_label_unknown": Rule(
        allowed="0, 1 CSF, 2 grey, 3 white (tissue map); 0 and 1 (brain mask)",
        fix="write the map with these labels",
    ),
    "dose_implausible": Rule(
        allowed="a planned dose in Gy, not negative, with a maximum of 2 to 120 Gy",
        fix="write the dose in Gy (1 Gy = 100 cGy), summed over all fractions",
    ),
    # any volume
    "unreadable": Rule(
        allowed="gzip-compressed NIfTI-1 that this account may read",
        fix="check the permissions, or write the file again",
    ),
    "truncated": Rule(
        allowed="a file as long as its header says", fix="copy or export the file again"
    ),
    "too_large": Rule(
        allowed="512 x 512 x 512 voxels (134 million) at most, and nothing behind the last voxel",
        fix="crop to the head, or resample to voxels of 0.5 mm or more, and write the file again",
    ),
    "not_3d": Rule(allowed="3 axes", fix="split the series into single volumes"),
    "not_scalar": Rule(
        allowed="one real number a voxel", fix="export grey values, not colours or complex numbers"
    ),
    "affine_missing": Rule(
        allowed="a sform or qform code above 0: the header must state where the voxels lie",
        fix="export the file again with its orientation; do not guess it",
    ),
    "affine_singular": Rule(
        allowed="a finite, invertible affine", fix="export the file again with its orientation"
    ),
    "geometry_implausible": Rule(
        allowed="voxels of 0.2 to 12 mm, a view under 1 m, within 10 m of the origin, in mm",
        fix="write the affine in millimetres",
    ),
    "not_finite": Rule(
        allowed="finite voxels", fix="find the step that made NaN or infinity, and repeat it"
    ),
    "blank": Rule(allowed="voxels that differ", fix="export the file again"),
    # where files lie
    "elsewhere": Rule(
        allowed="files of a visit that cover the same head",
        fix="compare the affine of this file with the others of its visit; write it again",
    ),
    "mirrored": Rule(
        allowed="left, front and top on the same side in all files of a visit",
        fix="this file fits the others better when it is mirrored: write it again from its source",
    ),
    "off_brain": Rule(
        allowed="an outline that lies in the head, and in the brain where there is a mask",
        fix="compare the affine of the outline with that of the images it was drawn on",
    ),
    # what is not plausible, and may have a reason
    "clipped": Rule(
        allowed="an image whose brightest voxels are not cut off at one value",
        fix="export the image again without windowing or percentile clipping",
        excludes="nothing",
    ),
    "volume_jump": Rule(
        allowed="a radius that grows by at most 12 mm and 0.5 mm a day; no loss of nine tenths untreated",
        fix="compare days, outline and patient with the visit before; complete the treatments table",
        excludes="nothing",
    ),
    "days_unit": Rule(
        allowed="days: visits more than two weeks apart, at most three fractions a day",
        fix="if the table counts weeks or months, write days",
        excludes="nothing",
    ),
    "dose_unit": Rule(
        allowed="dose_gy of the whole course in Gy, 0.5 to 30 Gy a fraction",
        fix="write the dose of all fractions together, in Gy, and how many fractions there were",
        excludes="nothing",
    ),
    "scan_repeated": Rule(
        allowed="images of one patient that are each another",
        fix="copy the right file; a scan of one day is one visit",
        excludes="nothing",
    ),
    "scan_shared": Rule(
        allowed="images that one patient alone has",
        fix="copy the right file; where both names are one patient, give both its hospital number",
        excludes="nothing",
    ),
    # with a study
    "outside_crop": Rule(
        allowed="a tumour no larger than the crop of the study",
        fix="nothing is broken: what lies outside the crop is not forecast for this visit",
        excludes="nothing",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault: ``found`` says what is wrong, ``fix`` how to mend it."""

    code: str
    file: FileKind
    excludes: Excludes
    found: str
    allowed: str
    fix: str
    participant: str | None = None
    session: str | None = None
    path: str | None = None
    """The table, relative to the cohort; it may name the patient."""

    @property
    def subject(self) -> str:
        """What the finding is about; a path only where it names no patient."""
        return f"{self.file} {self.path}" if self.path and not self.participant else self.file

    def as_dict(self) -> dict[str, str | None]:
        """The fields, as ``findings.json`` and ``--json`` show them."""
        return asdict(self)


class Notes:
    """The findings about one patient (or, without a name, about the cohort), as they are made.

    Args:
        waived: codes of findings that exclude nothing this time.
    """

    def __init__(
        self, participant: str | None = None, *, waived: frozenset[str] = frozenset()
    ) -> None:
        self.participant = participant
        self.waived = waived
        self.findings: list[Finding] = []

    def add(
        self,
        code: str,
        file: FileKind,
        *,
        found: str,
        session: str | None = None,
        participant: str | None = None,
        excludes: Excludes | None = None,
        path: str | None = None,
    ) -> None:
        """Note a finding; its fix and, unless stated, its consequence follow from code and file."""
        rule = RULES[code]
        made = Finding(
            code=code,
            file=file,
            excludes=excludes or rule.excludes or EXCLUDED_BY_FILE[file],
            found=found,
            allowed=rule.allowed,
            fix=rule.fix,
            participant=participant or self.participant,
            session=session,
            path=path,
        )
        if made not in self.findings:
            self.findings.append(made)

    def attempt(
        self,
        file: FileKind,
        read: Callable[[], T],
        *,
        session: str | None = None,
        name: str | None = None,
        path: str | None = None,
    ) -> T | None:
        """What ``read`` returns; or None, with its refusal noted as a finding about ``file``."""
        try:
            return read()
        except CohortRefusal as error:
            found = f"{name}: {error.found}" if name else error.found
            self.add(error.code, file, found=found, session=session, path=path)
            return None

    def excluded_visits(self) -> set[str | None]:
        """The sessions that some finding excludes."""
        return {made.session for made in self._standing() if made.excludes == "visit"}

    def any_excludes(self, what: Excludes) -> bool:
        """Does some finding exclude a ``what``?"""
        return any(made.excludes == what for made in self._standing())

    def _standing(self) -> list[Finding]:
        return [made for made in self.findings if made.code not in self.waived]


def refusal(code: str, found: str) -> CohortRefusal:
    """The refusal of one file; whoever knows the patient turns it into a finding."""
    rule = RULES[code]
    return CohortRefusal(found, allowed=rule.allowed, next=rule.fix, code=code)
