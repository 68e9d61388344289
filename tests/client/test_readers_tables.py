"""The tables of a cohort: what is read, what is unknown, what is refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_client.readers.tables import (
    ParticipantRow,
    SessionRow,
    TreatmentRow,
    read_description,
    read_table,
)
from oncofed_common.errors import CohortRefusal

SESSIONS = "session_id\tdays_from_baseline\tsteroid_mg\tkps\n"
TREATMENTS = "kind\tstart_day\tend_day\tdose_gy\tfractions\tagent\tdose_mg_m2\n"
PEOPLE = "participant_id\tage_years\tsex\tdiagnosis\tgrade\tidh\tmgmt\n"


@pytest.fixture
def table(tmp_path):
    def write(text, kind):
        path = tmp_path / "table.tsv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_table(path, kind)

    return write


def refused(read):
    with pytest.raises(CohortRefusal) as caught:
        read()
    return caught.value.code


def test_a_value_that_is_unknown_is_none(table):
    (row,) = table(SESSIONS + "ses-01\t0\tn/a\tn/a\n", SessionRow).rows
    assert (row.session_id, row.days_from_baseline, row.steroid_mg, row.kps) == (
        "ses-01",
        0,
        None,
        None,
    )


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_spreadsheets_add_to_a_table_does_no_harm(table, newline, mark):
    text = (SESSIONS + "ses-01\t0\t 2.5 \t90\n\n").replace("\n", newline)
    (row,) = table(mark + text.encode(), SessionRow).rows
    assert row.steroid_mg == 2.5


def test_columns_beyond_the_contract_are_tolerated_in_any_order(table):
    text = "scanner\tkps\tsession_id\tsteroid_mg\tdays_from_baseline\nX\t80\tses-9\tn/a\t31\n"
    (row,) = table(text, SessionRow).rows
    assert (row.session_id, row.kps, row.days_from_baseline) == ("ses-9", 80, 31)


@pytest.mark.parametrize("column", TREATMENTS.split())
def test_a_column_that_is_misspelt_is_missing_not_unknown(table, column):
    with pytest.raises(CohortRefusal) as caught:
        table(TREATMENTS.replace(column, column + "_x", 1), TreatmentRow)
    assert caught.value.code == "column_missing"
    assert column in caught.value.found


@pytest.mark.parametrize(
    "text",
    [
        SESSIONS + "ses-01\t0\tn/a\n",
        SESSIONS + "ses-01\t0\tn/a\t90\t1\n",
        SESSIONS.replace("kps", "kps\tkps") + "ses-01\t0\tn/a\t90\t90\n",
        SESSIONS.encode("utf-16"),
        SESSIONS.encode() + b"ses-01\t0\t\xff\t90\n",
    ],
)
def test_a_table_that_is_not_one_is_refused(table, text):
    assert refused(lambda: table(text, SessionRow)) == "table_malformed"


@pytest.mark.parametrize("text", ["", "\n\n", SESSIONS.replace("\t", ",")])
def test_a_table_without_its_columns_is_refused(table, text):
    assert refused(lambda: table(text, SessionRow)) == "column_missing"


def test_a_table_that_is_not_there_is_missing(tmp_path):
    assert refused(lambda: read_table(tmp_path / "none.tsv", SessionRow)) == "table_missing"


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("ses_01\t0\tn/a\tn/a", "session_id"),
        ("../../x\t0\tn/a\tn/a", "session_id"),
        ("ses-01\tn/a\tn/a\tn/a", "days_from_baseline"),
        ("ses-01\t3.5\tn/a\tn/a", "days_from_baseline"),
        ("ses-01\t2024-05-03\tn/a\tn/a", "days_from_baseline"),
        ("ses-01\t0\t-1\tn/a", "steroid_mg"),
        ("ses-01\t0\tnan\tn/a", "steroid_mg"),
        ("ses-01\t0\tn/a\t101", "kps"),
        ("ses-01\t0\t\tn/a", "steroid_mg"),
    ],
)
def test_a_visit_with_a_value_of_the_wrong_kind_is_a_bad_row(table, row, what):
    read = table(SESSIONS + row + "\n", SessionRow)
    assert [bad.what for bad in read.bad] == [what]
    assert read.rows == ()


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("radiation\t0\t1\t60\t30\tn/a\tn/a", "kind"),
        ("radiotherapy\t0\t1\t6000\t30\tn/a\tn/a", "dose_gy"),
        ("radiotherapy\t0\t1\t0\t30\tn/a\tn/a", "dose_gy"),
        ("radiotherapy\t0\t1\t60\t0\tn/a\tn/a", "fractions"),
        ("chemotherapy\t0\t1\tn/a\tn/a\ttemozolomide\t-75", "dose_mg_m2"),
        ("surgery\tn/a\tn/a\tn/a\tn/a\tn/a\tn/a", "start_day, end_day"),
    ],
)
def test_a_treatment_with_a_value_of_the_wrong_kind_is_a_bad_row(table, row, what):
    assert [bad.what for bad in table(TREATMENTS + row + "\n", TreatmentRow).bad] == [what]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("001\t50\tF\tglioma\t4\tn/a\tn/a", "participant_id"),
        ("sub-a/b\t50\tF\tglioma\t4\tn/a\tn/a", "participant_id"),
        ("sub-1\t-1\tF\tglioma\t4\tn/a\tn/a", "age_years"),
        ("sub-1\t50\tfemale\tglioma\t4\tn/a\tn/a", "sex"),
        ("sub-1\t50\tF\tglioma\tIV\tn/a\tn/a", "grade"),
        ("sub-1\t50\tF\tglioma\t4\twild type\tn/a", "idh"),
        ("sub-1\t50\tF\tglioma\t4\tn/a\tyes", "mgmt"),
    ],
)
def test_a_patient_with_a_value_of_the_wrong_kind_is_a_bad_row(table, row, what):
    assert [bad.what for bad in table(PEOPLE + row + "\n", ParticipantRow).bad] == [what]


def test_one_bad_row_leaves_the_others(table):
    rows = "sub-1\t50\tF\tn/a\t4\tn/a\tn/a\nsub-2\told\tF\tn/a\t4\tn/a\tn/a\n"
    read = table(PEOPLE + rows, ParticipantRow)
    assert [row.participant_id for row in read.rows] == ["sub-1"]
    assert [bad.key for bad in read.bad] == ["sub-2"]


@given(st.binary(max_size=200))
def test_whatever_bytes_a_table_holds_it_is_read_or_refused(tmp_path_factory, noise):
    path = tmp_path_factory.mktemp("noise") / "table.tsv"
    path.write_bytes(SESSIONS.encode() + noise)
    with contextlib.suppress(CohortRefusal):
        assert all(row.days_from_baseline is not None for row in read_table(path, SessionRow).rows)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"Name": "a", "BIDSVersion": "1.10.0"}',
        '{"Name": 3, "BIDSVersion": "1", "DatasetType": "raw"}',
    ],
)
def test_a_description_without_its_keys_is_refused(tmp_path, text):
    path = tmp_path / "dataset_description.json"
    path.write_text(text)
    assert refused(lambda: read_description(path)) == "description_malformed"


@pytest.mark.parametrize(
    ("generated_by", "virtual"),
    [("[]", False), ('[{"Name": "dcm2niix"}]', False), ('[{"Name": "oncofed-simulate"}]', True)],
)
def test_a_cohort_is_virtual_if_a_virtual_hospital_wrote_it(tmp_path, generated_by, virtual):
    path = tmp_path / "dataset_description.json"
    path.write_text(
        '{"Name": "a", "BIDSVersion": "1.10.0", "DatasetType": "raw", '
        f'"GeneratedBy": {generated_by}}}'
    )
    assert read_description(path).virtual is virtual
