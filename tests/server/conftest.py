"""A federation of three sites; folders in memory where there are any, for hundreds of files are synced."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from honest_sites import federation
from round_checks import WEIGHTS

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
