"""The table of identities says the same to whoever reads it as it was told, and forgets nobody."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from oncofed_client.identities import is_number, read_identities, spelling, write_identities
from oncofed_client.intake.assemble import assemble
from oncofed_client.intake.found import FoundTreatment, left_out
from oncofed_client.intake.intake import _add_identities
from oncofed_client.intake.people import known_people
from oncofed_client.intake.report import Report, write_report
from oncofed_client.intake.tables import Tables, Told

NUMBERS = st.text(min_size=1, max_size=12).filter(is_number)
AWKWARD = ('"47-1', '47"2', "'47", 'a "b" c', '""', '"')


@given(numbers=st.lists(NUMBERS | st.sampled_from(AWKWARD), min_size=1, max_size=6))
def test_a_number_is_read_as_it_was_written(numbers: list[str]) -> None:
    """Quotation marks too: otherwise a patient would be another one at the next intake."""
    told = {f"sub-{place:03d}": number for place, number in enumerate(numbers)}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "identities.tsv"
        write_identities(path, told)
        assert read_identities(path) == {name: spelling(told[name]) for name in told}
        assert known_people(path) == {name: told[name].strip() for name in told}


def test_what_holds_a_control_character_is_no_number() -> None:
    """A line break in a cell would part one row into two."""
    assert [is_number(text) for text in ("4711", " 47 11 ", "", " ", "47\n11", "47\t11", "0")] == [
        *(True, True, False, False, False, False, True),
    ]


def test_two_intakes_that_write_one_table_forget_nobody(tmp_path: Path) -> None:
    """Each adds to what the table holds by then."""
    path = tmp_path / "identities.tsv"
    write_identities(path, {"sub-a": "1"})
    several = [
        threading.Thread(target=_add_identities, args=(path, {f"sub-{n:02d}": f"1{n}"}))
        for n in range(8)
    ]
    for one in several:
        one.start()
    for one in several:
        one.join()
    assert read_identities(path) == {"sub-a": "1"} | {f"sub-{n:02d}": f"1{n}" for n in range(8)}


def test_a_name_of_a_table_that_the_source_does_not_have_is_a_row() -> None:
    """Else one wrong letter would make a treated patient an untreated one."""
    course = FoundTreatment(kind="surgery", start=1, end=1)
    tables = Tables(
        people={"mispelt": {}},
        sessions={"other": {"1": Told(when=0)}},
        treatments={"4711-001": (course,)},
        bad=frozenset({"nobody"}),
    )
    found = assemble([], [], tables=tables, numbers={})
    assert [(row.code, row.patient, row.what) for row in found.rows] == [
        ("not_in_source", "mispelt", "participants"),
        ("not_in_source", "other", "sessions"),
        ("not_in_source", "4711-001", "treatments"),
        ("row_invalid", "nobody", ""),
    ]


def test_a_file_whose_name_is_no_utf8_can_be_reported(tmp_path: Path) -> None:
    row = left_out("not_dicom", patient="", what=os.fsdecode(b"d\xff/junk.txt"))
    report = Report(rows=(row,), names={}, found=0, visits=0)
    write_report(report, tmp_path / "report.json")
    assert "junk.txt" in (tmp_path / "report.json").read_text(encoding="utf-8")
