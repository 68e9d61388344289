"""The check and the virtual hospitals agree: nothing is found where nothing is wrong."""

import cohort_builder as build
import numpy as np
import pytest

from oncofed_client.check import check
from oncofed_client.readers.cohort import read_cohort
from oncofed_client.readers.patient import examine
from oncofed_simulation.patients.writer import wards_of, write_cohorts


@pytest.fixture(scope="module")
def virtual(tmp_path_factory):
    (path,) = write_cohorts(
        wards_of(sites=1, patients=1, seed=11),
        seed=11,
        out=tmp_path_factory.mktemp("virtual") / "out",
        workers=1,
        progress=lambda *_: None,
    )
    return path


def test_nothing_is_found_in_a_virtual_cohort(virtual):
    report = check(virtual)
    assert report.findings == ()
    assert len(report.takes_part) == 1
    assert read_cohort(virtual).virtual


@pytest.mark.parametrize(
    ("axes", "about"), [((0,), "array"), ((1,), "array"), ((1,), "world"), ((0, 1), "world")]
)
def test_a_mirrored_outline_is_seen_in_a_symmetric_brain(virtual, axes, about):
    name = read_cohort(virtual).participants[0]
    path = build.outline_path(virtual, name, "ses-01")
    whole = path.read_bytes()
    signs = np.diag([-1.0 if axis in axes else 1.0 for axis in range(4)])

    def turn(data, affine):
        return (np.flip(data, axes), affine) if about == "array" else (data, signs @ affine)

    try:
        build.rewrite(path, turn)
        findings = examine(read_cohort(virtual), name, terms=None).findings
    finally:
        path.write_bytes(whole)
    assert [(f.file, f.participant, f.session) for f in findings] == [("outline", name, "ses-01")]
    assert findings[0].code in {"mirrored", "off_brain", "elsewhere"}
