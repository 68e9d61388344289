"""A file of hospitals: what is stated holds, what is not is drawn, and nothing is misread."""

from __future__ import annotations

import pytest

from oncofed_common.errors import UsageRefusal
from oncofed_simulation.patients import hospital
from oncofed_simulation.patients.settings import read_wards

FILE = """
[[hospitals]]
name = "north"
patients = 40
idh_mutant = 0.5

[hospitals.habits]
surgery = 1.0
gap_day = [30, 60]

[hospitals.prior]
strain = [0.1, 0.2]
fibre_ratio = 4.0

[hospitals.scanner]
voxel_mm = [1.0, 1.0, 3.0]

[hospitals.scanner.contrast]
FLAIR = {contrast}

[[hospitals]]
"""
FLAIR = list(hospital(7, 1).scanner.contrast["FLAIR"])


def read(tmp_path, text, *, patients=24):
    path = tmp_path / "hospitals.toml"
    path.write_text(text)
    return read_wards(path, seed=7, patients=patients)


def test_what_is_stated_holds_and_the_rest_is_drawn_from_the_seed(tmp_path):
    north, other = read(tmp_path, FILE.format(contrast=FLAIR))
    drawn = hospital(7, 1)
    assert (north.hospital.name, north.patients, north.hospital.idh_mutant) == ("north", 40, 0.5)
    assert north.hospital.habits.surgery == 1.0
    assert north.hospital.habits.gap_day == (30, 60)
    assert north.hospital.habits.chemotherapy == drawn.habits.chemotherapy
    assert north.hospital.prior.strain == (0.1, 0.2)
    assert north.hospital.prior.front_width_mm == drawn.prior.front_width_mm
    assert north.hospital.scanner.voxel_mm == (1.0, 1.0, 3.0)
    assert north.hospital.scanner.contrast == drawn.scanner.contrast
    assert other.hospital == hospital(7, 2)
    assert other.patients == 24


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ("idh_mutant = 0.5", "idh_mutnt = 0.5", "did you mean idh_mutant"),
        ("idh_mutant = 0.5", "idh_mutant = 1.5", "less than or equal to 1"),
        ("idh_mutant = 0.5", "idh_mutant = nan", "idh_mutant"),
        ("idh_mutant = 0.5", "number = 3", "unknown key number"),
        ("surgery = 1.0", "surgary = 1.0", "did you mean surgery"),
        ("gap_day = [30, 60]", "gap_day = [60, 30]", "two rising numbers"),
        ("gap_day = [30, 60]", "gap_day = [30]", "gap_day"),
        ("strain = [0.1, 0.2]", "strain = [0.1, 0.9]", "from 0 to 0.3"),
        ("strain = [0.1, 0.2]", "front_width_mm = [0.5, 2.0]", "from 1.5 to 10"),
        ("voxel_mm = [1.0, 1.0, 3.0]", "voxel_mm = [0.0, 1.0, 3.0]", "voxel_mm"),
        ("voxel_mm = [1.0, 1.0, 3.0]", "missing_channel = 1.5", "missing_channel"),
        ("voxel_mm = [1.0, 1.0, 3.0]", "axis_signs = [1, 2, 1]", "axis_signs"),
        ("patients = 40", "patients = 0", "1 to 10000"),
        ("patients = 40", "patients = true", "1 to 10000"),
        ('name = "north"', 'name = "../north"', "name"),
        ('name = "north"', 'name = "hospital-2"', "two hospitals of one name"),
        ("[hospitals.habits]", "[hospitals.habits", "cannot be read"),
        ("[hospitals.habits]", "[hospitals.habit]", "did you mean habits"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_with_its_key(tmp_path, good, bad, said):
    text = FILE.format(contrast=FLAIR)
    assert good in text
    with pytest.raises(UsageRefusal, match=said) as caught:
        read(tmp_path, text.replace(good, bad, 1))
    assert caught.value.code == "hospitals"


def test_a_file_that_is_not_there_or_no_number_is_refused(tmp_path):
    with pytest.raises(UsageRefusal, match="cannot be read"):
        read_wards(tmp_path / "nowhere.toml", seed=7, patients=3)
    with pytest.raises(UsageRefusal, match=r"without \[\[hospitals\]\]"):
        read(tmp_path, "[[hospital]]\nname = 'north'\n")
    with pytest.raises(UsageRefusal):
        read(tmp_path, FILE.format(contrast=FLAIR), patients=0)
