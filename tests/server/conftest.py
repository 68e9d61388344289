"""A federation of three sites; folders in memory where there are any, for hundreds of files are synced."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from honest_sites import federation
from round_checks import WEIGHTS

from oncofed_common.terminal import run_app
from oncofed_server.__main__ import app

MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path(tmp_path):
    if not MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="oncofed-") as folder:
        yield Path(folder)


@pytest.fixture
def fed(tmp_path):
    return federation(tmp_path, WEIGHTS)


@pytest.fixture
def cli(capsys):
    """Run a command line: exit code, the JSON object or text on stdout, the text on stderr."""

    def run(*words):
        code = run_app(app, [str(word) for word in words])
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in words else out, err

    return run


@pytest.fixture
def passphrase(tmp_path):
    (tmp_path / "passphrase").write_text("a long passphrase\n")
    return tmp_path / "passphrase"
