"""Folders in memory where there are any: these tests sync hundreds of files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path(tmp_path):
    if not MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="oncofed-") as folder:
        yield Path(folder)
