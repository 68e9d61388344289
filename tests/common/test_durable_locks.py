"""A folder is written by one process at a time: whoever comes second is refused, until the first lets go."""

from __future__ import annotations

import pytest

from oncofed_common.durable import locked_folder
from oncofed_common.errors import SystemRefusal


def hold(folder):
    with locked_folder(folder, busy="another writer"):
        return folder


def test_a_folder_that_is_held_is_refused_until_it_is_let_go_of(tmp_path):
    folder = tmp_path / "new" / "out"
    with locked_folder(folder, busy="another writer"):
        assert folder.is_dir()
        with pytest.raises(SystemRefusal, match="another writer") as refused:
            hold(folder)
        assert refused.value.code == "output_in_use"
    assert hold(folder) == folder


def test_a_file_is_no_folder_to_hold(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemRefusal) as refused:
        hold(tmp_path / "file")
    assert refused.value.code == "disk"
    assert (tmp_path / "file").is_file()
