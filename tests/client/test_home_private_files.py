"""Files of a home are their owner's alone, but for a folder that is shared with the courier's group."""

import stat

import pytest

from oncofed_common.durable import write_private
from oncofed_common.errors import SystemRefusal


def _mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_of_a_home_is_readable_by_its_owner_alone(tmp_path):
    tmp_path.chmod(0o700)
    write_private(tmp_path / "key.pem", b"secret")
    assert _mode(tmp_path / "key.pem") == 0o600


def test_a_folder_that_passes_on_its_group_lets_the_group_read_and_not_write(tmp_path):
    tmp_path.chmod(0o3770)
    write_private(tmp_path / "ca.pem", b"public")
    assert _mode(tmp_path / "ca.pem") == 0o640


def test_a_write_that_fails_leaves_no_draft_behind(tmp_path):
    (tmp_path / "list" / "held").mkdir(parents=True)
    with pytest.raises(SystemRefusal, match="a folder in the place of a file"):
        write_private(tmp_path / "list", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["list"]
