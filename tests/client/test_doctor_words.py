"""The doctor's page names every code that the doctor has, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from doctor_line_faults import LINE_FAULTS, LINE_WARNINGS
from doctor_network_faults import NETWORK_FAULTS, NETWORK_WARNINGS
from doctor_place_faults import GROUP_FAULTS, MOUNT_FAULTS, MOUNT_WARNINGS, PLACE_FAULTS

import oncofed_client.doctor
from oncofed_client.doctor import line_words
from oncofed_client.doctor.finding import CHECKS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/doctor.md").read_text(encoding="utf-8")
SOURCES = "\n".join(
    path.read_text(encoding="utf-8")
    for path in Path(oncofed_client.doctor.__path__[0]).glob("*.py")
)
ROWS = re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE)


def on_the_page() -> dict[str, str]:
    """Every code of the page, with the check that it belongs to."""
    return {code: check for check, codes in ROWS for code in re.findall(r"`(\w+)`", codes)}


def test_the_page_has_every_check_in_the_doctors_order():
    """As the doctor prints them."""
    assert [check for check, _ in ROWS] == list(CHECKS)


def test_the_page_names_every_code_that_is_planted_and_every_one_of_the_line():
    """Under the check that it belongs to."""
    tables = (LINE_FAULTS, LINE_WARNINGS, NETWORK_FAULTS, NETWORK_WARNINGS, PLACE_FAULTS)
    planted = {code for table in tables for code, _ in table.values()}
    planted |= {code for code, _ in (GROUP_FAULTS | MOUNT_FAULTS | MOUNT_WARNINGS).values()}
    assert planted <= set(on_the_page())
    rows = [*line_words.DIRECT.values(), *line_words.BY_PROXY.values(), line_words.OTHERWISE]
    rows += line_words.REFUSED_BY_PROXY.values()
    assert {code: check for code, check, *_ in rows}.items() <= on_the_page().items()


def test_the_page_names_no_code_that_there_is_not():
    """Each stands in the doctor's source as it is."""
    assert {code for code in on_the_page() if f'"{code}"' not in SOURCES} == set()
