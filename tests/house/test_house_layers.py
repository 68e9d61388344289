"""Imports go one way, and processes load only what their room may hold.

``make lint`` runs the import contracts on the house; here each is seen to break, and two processes say
what they have loaded.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "oncofed_common": "common",
    "oncofed_client": "client",
    "oncofed_server": "server",
    "oncofed_simulation": "simulation",
}
CONFIG = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CONTRACTS = [one["name"] for one in tomllib.loads(CONFIG)["tool"]["importlinter"]["contracts"]]

PLANTED = {
    "simulation -> client | server -> common": (
        "oncofed_client/approval.py",
        "oncofed_server.home",
    ),
    "within common, model, physics and privacy are strangers": (
        "oncofed_common/physics/growth.py",
        "oncofed_common.privacy.noise",
    ),
    "Flower is known to the courier and the coordinator's seam alone": (
        "oncofed_common/wire.py",
        "flwr",
    ),
    "the coordinator loads neither the model nor a scan": (
        "oncofed_server/participation.py",
        "torch",
    ),
    "the courier knows no scan, no model and no trainer": (
        "oncofed_client/courier/carry.py",
        "oncofed_client.readers.nifti",
    ),
    "in a hospital nothing but the courier speaks to a network": (
        "oncofed_client/trainer/door.py",
        "urllib.request",
    ),
    "where the scans are, the courier is unknown": (
        "oncofed_client/trainer/spool.py",
        "oncofed_client.courier.kernel",
    ),
    "file formats are known to the readers, and to who writes virtual cohorts": (
        "oncofed_common/cohort.py",
        "nibabel",
    ),
}


def test_every_import_contract_breaks_where_its_fault_is_planted(tmp_path):
    for package, room in PACKAGES.items():
        shutil.copytree(
            ROOT / room / package,
            tmp_path / package,
            ignore=lambda folder, names: [
                name for name in names if Path(name).suffix not in {"", ".py"}
            ],
        )
    for file, module in PLANTED.values():
        with (tmp_path / file).open("a", encoding="utf-8") as planted:
            planted.write(f"\nimport {module}\n")
    (tmp_path / "pyproject.toml").write_text(CONFIG, encoding="utf-8")
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    broken = set(re.findall(r"^(.*) BROKEN(?: \(|$)", done.stdout, re.MULTILINE))
    assert (done.returncode, broken) == (1, set(CONTRACTS)), done.stdout


def test_every_import_contract_has_a_planted_fault():
    assert list(PLANTED) == CONTRACTS


@pytest.mark.parametrize(
    ("module", "never"),
    [
        pytest.param(
            "oncofed_client.courier.app",
            {"torch", "monai", "opacus", "nibabel", "scipy", "matplotlib"}
            | {"oncofed_client.readers", "oncofed_client.trainer", "oncofed_common.model"},
            id="the courier's app holds no model and no reader",
        ),
        pytest.param(
            "oncofed_client.courier.supernode",
            {"torch", "monai", "opacus", "nibabel", "scipy", "oncofed_client.trainer"},
            id="nor does its process",
        ),
        pytest.param(
            "oncofed_server.app",
            {"torch", "monai", "opacus", "nibabel", "oncofed_client", "oncofed_common.model"},
            id="the coordinator's app holds no model and no reader",
        ),
        pytest.param(
            "oncofed_client.trainer.__main__",
            {"flwr", "httpx", "aiohttp", "grpc", "oncofed_client.courier", "oncofed_server"},
            id="the trainer holds no Flower and no client of any network",
        ),
    ],
)
def test_what_a_process_has_loaded(module, never):
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert module in loaded
    assert loaded & never == set()
