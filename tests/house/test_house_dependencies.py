"""Every dependency has a reason, an exact version and a licence that a hospital can accept."""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(TEXT)["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = {
    canonicalize_name(name): version
    for name, _, version in (
        line.partition("==")
        for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
}
COPYLEFT = re.compile(
    r"\b[AL]?GPL|GNU (Affero|Lesser|Library|General)|\bSSPL|\bBUSL", re.IGNORECASE
)


def _asked():
    """Every requirement that pyproject.toml names, as written."""
    return [*PROJECT["dependencies"], *(row for rows in EXTRAS.values() for row in rows)]


def _needed(name, extras):
    """Canonical names of everything that ``name[extras]`` brings onto this machine."""
    found, waiting = {}, [(name, frozenset(extras))]
    while waiting:
        name, extras = waiting.pop()
        key = canonicalize_name(name)
        if key in found and extras <= found[key]:
            continue
        found[key] = found.get(key, frozenset()) | extras
        for row in distribution(name).requires or []:
            wanted = Requirement(row)
            environments = [{"extra": extra} for extra in (*found[key], "")]
            if wanted.marker is None or any(map(wanted.marker.evaluate, environments)):
                waiting.append((wanted.name, frozenset(wanted.extras)))
    return set(found)


def _licence(name):
    metadata = distribution(name).metadata
    classified = [c for c in metadata.get_all("Classifier") or [] if c.startswith("License ::")]
    first_line = (metadata.get("License") or "").strip().split("\n")[0]
    return " ".join([metadata.get("License-Expression") or "", first_line, *classified]).strip()


def test_every_dependency_has_a_reason_beside_it():
    rows = [line.strip() for line in TEXT.splitlines()]
    without = [
        asked
        for asked in _asked()
        if not asked.startswith("oncofed[")
        and not any(re.fullmatch(rf'"{re.escape(asked)}",\s+# \w.+', row) for row in rows)
    ]
    assert without == []


@pytest.mark.parametrize("extra", [extra for extra in EXTRAS if extra != "dev"])
def test_nothing_that_a_party_installs_is_under_a_copyleft_licence(extra):
    licences = {name: _licence(name) for name in _needed("oncofed", [extra])}
    assert len(licences) > 10
    assert {name: text for name, text in licences.items() if COPYLEFT.search(text)} == {}
    assert {name for name, text in licences.items() if not text} == set()


@pytest.mark.parametrize(
    "text",
    [
        "GPL-3.0-or-later",
        "AGPL-3.0-only",
        "LGPLv3+",
        "License :: OSI Approved :: GNU General Public License v3 (GPLv3)",
        "License :: OSI Approved :: GNU Lesser General Public License v2 (LGPLv2)",
    ],
)
def test_a_copyleft_licence_is_recognised(text):
    assert COPYLEFT.search(text)


def test_the_lock_file_names_an_exact_version_for_everything_that_is_needed():
    needed = _needed("oncofed", ["simulation", "dev"]) - {"oncofed", "setuptools"}
    assert {name for name in needed if not LOCK.get(name)} == set()


def test_what_is_installed_is_what_the_lock_file_says():
    differing = {}
    for name, version in LOCK.items():
        try:
            installed = distribution(name).version.split("+")[0]
        except PackageNotFoundError:
            installed = "nothing"
        if installed != version:
            differing[name] = (installed, version)
    assert differing == {}


def test_exact_pins_of_the_project_agree_with_the_lock_file():
    pinned = [Requirement(row) for row in _asked() if "==" in row]
    assert {str(one): LOCK[canonicalize_name(one.name)] for one in pinned} == {
        str(one): next(iter(one.specifier)).version for one in pinned
    }


def test_the_house_runs_on_the_python_that_it_asks_for():
    assert sys.version_info[:2] == (3, 11)
    assert PROJECT["requires-python"] == ">=3.11,<3.12"
