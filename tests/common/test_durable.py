"""What is read as a secret: a file, or what the caller's shell has opened; never a pipe that may wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from oncofed_common.durable import read_secret

READ = (
    "import sys; from pathlib import Path; from oncofed_common.durable import read_secret;"
    "sys.stdout.write(read_secret(Path(sys.argv[1])).decode())"
)


@pytest.mark.timeout(20)
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "word")
    with pytest.raises(FileNotFoundError):
        read_secret(tmp_path / "word")


@pytest.mark.parametrize("path", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_what_comes_in_by_the_shell_is_read(path):
    done = subprocess.run(
        [sys.executable, "-c", READ, path], input=b"word", capture_output=True, check=True
    )
    assert done.stdout == b"word"
