"""The wheel holds the four packages with their weights, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from oncofed_client.codehash import code_hash

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "oncofed_common": "common",
    "oncofed_client": "client",
    "oncofed_server": "server",
    "oncofed_simulation": "simulation",
}
KINDS = {".py", ".safetensors", ".json", ".toml", ".typed", ".md", ".j2", ".css"}
WEIGHTS_CAP_BYTES = 16 * 1024 * 1024


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the house as it stands, built without a network."""
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    for room in PACKAGES.values():
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        capture_output=True,
        timeout=120,
        check=True,
    )
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def held(wheel):
    """Names of the files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_holds_the_four_packages_as_they_lie_here_and_no_other(held):
    info = {name for name in held if name.startswith("oncofed-0.1.0.dist-info/")}
    here = {
        f"{package}/{path.relative_to(ROOT / room / package).as_posix()}"
        for package, room in PACKAGES.items()
        for path in (ROOT / room / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".tmp"
    }
    assert set(held) - info == here
    assert {name for name in here if Path(name).suffix not in KINDS} == set()


def test_nothing_called_server_common_or_tests_reaches_site_packages(held):
    top = {name.partition("/")[0] for name in held}
    assert top == {*PACKAGES, "oncofed-0.1.0.dist-info"}
    assert not any("test" in Path(name).name for name in held)


def test_the_wheel_carries_its_licence_and_says_that_it_is_typed(held):
    assert "oncofed-0.1.0.dist-info/licenses/LICENSE" in held
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(held)


def test_the_wheel_carries_base_weights_of_sixteen_megabytes_at_most(wheel):
    with zipfile.ZipFile(wheel) as archive:
        weights = [one for one in archive.infolist() if one.filename.endswith(".safetensors")]
    assert weights
    assert sum(one.file_size for one in weights) <= WEIGHTS_CAP_BYTES


def test_the_wheel_has_the_same_code_hash_as_an_editable_install(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = "import oncofed_client.codehash as c; print(c.__file__, c.code_hash())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    file, found = done.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert found == code_hash.__wrapped__()
