"""One site whose trainer has a study, and the coordinator whose tasks it answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from site_builder import Coordinator, Site, a_site


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator()


@pytest.fixture
def site(tmp_path: Path, coordinator: Coordinator) -> Iterator[Site]:
    made = a_site(tmp_path, coordinator)
    with made.open:
        yield made
