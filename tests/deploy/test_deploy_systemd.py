"""Units for parties without containers: systemd takes them, and a sandbox that goes is noticed."""

import shutil
import subprocess
from pathlib import Path

import pytest
from deploy_manifests import DEPLOY

from oncofed_client.courier.node import node_environment

UNITS = DEPLOY / "systemd"
ROLES = {"trainer": 0.8, "courier": 1.6, "coordinator": 1.4}
"""Most exposure, of 10, by the count of systemd-analyze security (version 252)."""
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="not installed: systemd-analyze")
PROGRAMS = ("venv/bin/python", "venv/bin/oncofed-coordinator")
KEY_FILE = "/etc/oncofed/trainer.key"
SANDBOX = [
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    "RestrictNamespaces=yes",
    "PrivateDevices=yes",
    "LimitCORE=0",
    "MemorySwapMax=0",
]
OF_THE_TRAINER = ["PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX AF_NETLINK"]


def _unit(role):
    return (UNITS / f"oncofed-{role}.service").read_text(encoding="utf-8")


def _values(role, name):
    rows = [line.partition("=") for line in _unit(role).splitlines()]
    return [value for key, _, value in rows if key == name]


def _environment(role):
    words = " ".join(_values(role, "Environment")).split()
    return dict(word.split("=", 1) for word in words)


def _verified(tmp_path, role, text):
    """What systemd says about a unit, with its programs where it looks for them."""
    for name in PROGRAMS:
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    path = tmp_path / f"oncofed-{role}.service"
    path.write_text(text.replace("/opt/oncofed/", f"{tmp_path}/"))
    done = subprocess.run(
        [ANALYZE, "verify", "--man=no", "--recursive-errors=no", path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stderr.splitlines()
    return [line for line in said if path.name in line or str(path) in line]


def _exposure(tmp_path, role, text):
    """How much of the machine a unit may touch, of 10, as systemd counts it."""
    path = tmp_path / f"oncofed-{role}.service"
    path.write_text(text)
    done = subprocess.run(
        [ANALYZE, "security", "--offline=true", "--no-pager", path],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (line,) = [row for row in done.stdout.splitlines() if "Overall exposure level" in row]
    return float(line.rpartition(":")[2].split()[0])


@needs_systemd
@pytest.mark.parametrize("role", ROLES)
def test_systemd_takes_a_unit_as_it_is(role, tmp_path):
    assert _verified(tmp_path, role, _unit(role)) == []


@needs_systemd
def test_a_misspelt_word_in_a_unit_is_found(tmp_path):
    faulty = _unit("trainer").replace("PrivateNetwork=yes", "PrivateNetwork=perhaps")
    assert _verified(tmp_path, "trainer", faulty) != []


@needs_systemd
@pytest.mark.parametrize("role", ROLES)
def test_a_unit_may_touch_next_to_nothing(role, tmp_path):
    assert _exposure(tmp_path, role, _unit(role)) <= ROLES[role]


@needs_systemd
@pytest.mark.parametrize("line", ["PrivateNetwork=yes", "CapabilityBoundingSet="])
def test_a_trainer_s_unit_without_its_sandbox_is_found(line, tmp_path):
    faulty = _unit("trainer").replace(f"\n{line}\n", "\n")
    assert _exposure(tmp_path, "trainer", faulty) > ROLES["trainer"]


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_says_its_whole_sandbox(role):
    rows = _unit(role).splitlines()
    wanted = [*SANDBOX, *(OF_THE_TRAINER if role == "trainer" else [])]
    assert [line for line in wanted if line not in rows] == []
    assert _values(role, "User")[0] not in {"root", ""}


def test_trainer_and_courier_are_two_users_who_share_one_group_and_one_folder():
    assert _values("trainer", "User") != _values("courier", "User")
    assert _values("trainer", "SupplementaryGroups") == _values("courier", "Group")
    given = {role: " ".join(_values(role, "ReadWritePaths")).split() for role in ROLES}
    assert given["courier"] == ["/srv/oncofed/courier"]
    assert not set(given["courier"]) & set(given["trainer"])


def test_no_scan_no_key_and_no_ledger_exists_for_the_courier():
    hidden = {
        path.lstrip("-") for path in " ".join(_values("courier", "InaccessiblePaths")).split()
    }
    words = _values("trainer", "ExecStart")[0].split()
    shown = {words[words.index(option) + 1] for option in ("--cohort", "--identities")}
    parts = {f"/srv/oncofed/{part}" for part in ("trainer", "head", "approver")}
    assert shown | parts | {KEY_FILE} == hidden


def test_the_trainer_reads_its_key_file_where_there_is_one_and_nobody_writes_it():
    read = " ".join(_values("trainer", "ReadOnlyPaths")).split()
    assert f"-{KEY_FILE}" in read
    for role in ROLES:
        written = " ".join(_values(role, "ReadWritePaths")).split()
        assert not any(Path(KEY_FILE).is_relative_to(path) for path in written)


def test_the_courier_s_unit_sets_the_environment_that_the_courier_wants():
    wanted = node_environment(
        home=Path("/srv/oncofed/courier"),
        socket_path=Path("/srv/oncofed/run/trainer.sock"),
        https_proxy=None,
        no_proxy=[],
    )
    found = _environment("courier")
    assert {name: found.get(name) for name in wanted} == wanted
