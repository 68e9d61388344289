"""A passphrase comes from a file or is typed unseen; one that locks a new key is not short."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from oncofed_common.errors import PolicyRefusal, SystemRefusal
from oncofed_common.passphrase import read_passphrase


def test_a_passphrase_is_read_without_white_space_around_it(tmp_path):
    (tmp_path / "word").write_text("  correct horse \n")
    assert read_passphrase(tmp_path / "word", new=True) == b"correct horse"


def test_a_short_passphrase_opens_an_old_key_and_locks_no_new_one(tmp_path):
    (tmp_path / "word").write_text("seven77")
    assert read_passphrase(tmp_path / "word", new=False) == b"seven77"
    with pytest.raises(PolicyRefusal) as refused:
        read_passphrase(tmp_path / "word", new=True)
    assert refused.value.code == "weak_passphrase"


def test_an_empty_or_missing_file_is_no_passphrase(tmp_path):
    (tmp_path / "word").write_text(" \n")
    for name in ("word", "nowhere"):
        with pytest.raises(SystemRefusal) as refused:
            read_passphrase(tmp_path / name, new=False)
        assert refused.value.code == "no_passphrase"


@pytest.mark.parametrize(
    ("typed", "new", "came"),
    [
        ("correct horse\n", False, "correct horse"),
        ("correct horse\ncorrect horse\n", True, "correct horse"),
        ("correct horse\ncorrect house\n", True, "passphrases_differ"),
    ],
)
def test_at_a_terminal_it_is_typed_and_not_shown(tmp_path, typed, new, came):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from oncofed_common.errors import Refusal\n"
        "from oncofed_common.passphrase import read_passphrase\n"
        "try:\n"
        f"    found = read_passphrase(Path('/dev/stdin'), new={new}, whose='the approver').decode()\n"
        "except Refusal as refusal:\n"
        "    found = refusal.code\n"
        "Path(sys.argv[1]).write_text(found)\n"
    )
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-c", code, str(tmp_path / "found")]
    with subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as child:
        shown = ""
        for line in typed.splitlines(keepends=True):
            while not shown.endswith(": "):
                shown += os.read(ours, 100).decode()
            os.write(ours, line.encode())
            shown = f"{shown}\n"
        assert child.wait(timeout=30) == 0
    os.close(theirs)
    shown += os.read(ours, 1000).decode()
    os.close(ours)
    assert (tmp_path / "found").read_text() == came
    assert "horse" not in shown
    assert shown.lstrip().startswith("Passphrase of the approver: ")


@pytest.mark.timeout(20)
def test_a_passphrase_in_a_named_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "word")
    with pytest.raises(SystemRefusal) as refused:
        read_passphrase(tmp_path / "word", new=False)
    assert refused.value.code == "no_passphrase"
