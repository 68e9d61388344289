"""A cohort that is being made, and what a process that was killed at its very end has left."""

import os

import pytest

from oncofed_client.intake.begun import begun, refuse_finished
from oncofed_common.durable import locked_folder
from oncofed_common.errors import SystemRefusal


def make(out, *, then=lambda: None):
    """One participant, kept; ``then`` before the cohort is whole."""
    with begun(out) as draft:
        folder = draft.doing("k") / "sub-1"
        folder.mkdir(parents=True)
        (folder / "scan").write_text("voxels")
        draft.keep("k", "sub-1", {"name": "the hospital's own"})
        then()


def test_a_cohort_appears_whole_and_nothing_stays_beside_it(tmp_path):
    (tmp_path / ".out.intake").mkdir()  # of a call that died before it had begun
    make(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "sub-1" / "scan").read_text() == "voxels"


def test_the_notes_of_a_call_that_died_after_its_cohort_was_whole_go_with_the_next(
    tmp_path, monkeypatch
):
    """They have the hospital's names: whoever repeats the command is told that the cohort is there, and they
    are gone."""
    out = tmp_path / "out"
    child = os.fork()
    if child == 0:
        monkeypatch.setattr("shutil.rmtree", _die_if_whole(out))
        make(out)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    notes = tmp_path / ".out.intake" / "notes"
    assert list(notes.glob("*.json"))
    with pytest.raises(SystemRefusal) as found:
        refuse_finished(out)
    assert found.value.code == "out_exists"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_another_call_is_still_making_is_left_alone(tmp_path):
    """Its notes stay where its cohort is not whole."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make(out, then=_interrupt)
    out.mkdir()
    (out / "mine").write_text("kept")
    with pytest.raises(SystemRefusal):
        refuse_finished(out)
    assert list((tmp_path / ".out.intake" / "notes").glob("*.json"))


def test_a_folder_that_intake_did_not_make_is_left_alone(tmp_path):
    """Also where a cohort is there, and where none is: it may be somebody's thesis."""
    out, other = tmp_path / "out", tmp_path / ".out.intake"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(SystemRefusal) as found:
        make(out)
    assert found.value.code == "out_exists"
    out.mkdir()
    (out / "x").write_text("kept")
    with pytest.raises(SystemRefusal):
        refuse_finished(out)
    assert (other / "thesis.txt").read_text() == "mine"


def test_a_link_in_the_place_of_the_folder_is_refused(tmp_path):
    """It would lead the hospital's names elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.intake").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SystemRefusal):
        make(tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_what_a_living_process_is_ending_is_left_to_it(tmp_path):
    """Its cohort is whole already, its notes are not away yet."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make(out, then=_interrupt)
    left = tmp_path / ".out.intake"
    (left / "cohort").rename(out)
    with locked_folder(left, busy="a test"), pytest.raises(SystemRefusal):
        refuse_finished(out)
    assert list((left / "notes").glob("*.json"))


def _interrupt():
    raise KeyboardInterrupt


def _die_if_whole(out):
    import shutil

    real = shutil.rmtree

    def rmtree(path, **how):
        if out.exists():
            os._exit(7)
        real(path, **how)

    return rmtree
