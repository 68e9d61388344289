"""Every fault that the doctor knows, planted for real, is named right and alone; a clean site has none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import doctor_servers as servers
import pytest
from doctor_lab import HOST, Lab, a_lab, apart, codes, has_iproute
from doctor_line_faults import LINE_FAULTS, LINE_WARNINGS, Plant
from doctor_network_faults import NETWORK_FAULTS, NETWORK_WARNINGS, PORT, THERE, at
from doctor_place_faults import (
    CGROUPS,
    GROUP_FAULTS,
    GROUP_WARNINGS,
    MOUNT_FAULTS,
    MOUNT_WARNINGS,
    PLACE_FAULTS,
    PLACE_WARNINGS,
)

from oncofed_client.doctor.line import LINE_CHECKS

FAULTS = LINE_FAULTS | PLACE_FAULTS | GROUP_FAULTS | MOUNT_FAULTS | NETWORK_FAULTS
WARNINGS = LINE_WARNINGS | PLACE_WARNINGS | GROUP_WARNINGS | MOUNT_WARNINGS | NETWORK_WARNINGS
QUICK = ("TLS inspection in the proxy",)
BAR = 0.95
WITHIN_S = 30.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A site without a fault, to be copied."""
    with a_lab(tmp_path_factory.mktemp("doctor")) as lab:
        yield lab


@pytest.fixture(scope="module")
def says(
    model: Lab, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, list[str]]]:
    """What the doctor says of a planted fault; each is planted once."""
    said: dict[str, dict[str, list[str]]] = {}

    def ask(name: str) -> dict[str, list[str]]:
        if name not in said:
            found = _examined(model, tmp_path_factory.mktemp("fault"), name)
            said[name] = {one: codes(found, one) for one in ("fault", "warning")}
        return said[name]

    return ask


def _examined(model: Lab, root: Path, name: str) -> dict[str, Any]:
    plant = (FAULTS | WARNINGS)[name][1]
    needs = _needs(name)
    if needs:
        pytest.skip(needs)
    with a_lab(root, model) as lab:
        if name in MOUNT_FAULTS | MOUNT_WARNINGS | NETWORK_FAULTS | NETWORK_WARNINGS:
            cable = name in NETWORK_FAULTS | NETWORK_WARNINGS
            return apart(lambda: _planted(lab, plant), network=cable)
        return _planted(lab, plant)


def _planted(lab: Lab, plant: Plant) -> dict[str, Any]:
    with lab.open:
        plant(lab)
        return lab.doctor()


def _needs(name: str) -> str:
    """Why this machine cannot have the fault; empty where it can."""
    if name in LINE_FAULTS | LINE_WARNINGS:
        return ""
    if os.geteuid() != 0:
        return "needs root: owners, limits, mounts, networks"
    if name in NETWORK_FAULTS | NETWORK_WARNINGS and not has_iproute():
        return "needs iproute2"
    groups = name in GROUP_FAULTS | GROUP_WARNINGS
    if groups and not os.access(CGROUPS / "memory" / "cgroup.procs", os.W_OK):
        return "needs control groups of version 1 that can be made"
    return ""


def test_a_site_without_a_fault_gets_no_fault_and_no_warning(model, tmp_path):
    """Directly and through a proxy with a login, within half a minute."""
    with a_lab(tmp_path, model) as lab:
        lab.coordinator()
        plain = lab.doctor()
        port = lab.serve(servers.proxy(login="north:pass word"))
        lab.words += ["--https-proxy", f"http://north:pass%20word@{HOST}:{port}"]
        proxied = lab.doctor()
    for found in (plain, proxied):
        assert (codes(found), codes(found, "warning")) == ([], [])
        assert found["ok"]
        assert found["seconds"] < WITHIN_S
        assert found["predicted"]["up_bytes_per_s"] > 0
    skipped = [one["check"] for one in plain["findings"] if one["verdict"] == "skipped"]
    assert skipped == ["proxy"]
    assert codes(proxied, "skipped") == []


@pytest.mark.slow
@pytest.mark.skipif(not has_iproute(), reason="needs root and iproute2")
def test_a_clean_site_on_a_network_of_its_own_gets_no_fault_and_no_warning(model, tmp_path):
    """The network in which faults are planted has none itself."""
    with a_lab(tmp_path, model) as lab:
        found = apart(lambda: _planted(lab, at(f"{THERE}:{PORT}")), network=True)
    assert (codes(found), codes(found, "warning")) == ([], [])


@pytest.mark.parametrize("name", QUICK)
def test_the_commonest_fault_is_named_right_and_alone(name, says):
    """One of the table below, in every run of the tests."""
    assert says(name) == {"fault": [FAULTS[name][0]], "warning": []}


def test_before_a_site_has_joined_everything_but_the_line_is_looked_at(model, tmp_path):
    """Who waits for the coordinator's answer may mend the rest until it comes."""
    with a_lab(tmp_path, model) as lab:
        found = _planted(lab, FAULTS["a site that has not joined"][1])
    skipped = [one["check"] for one in found["findings"] if one["verdict"] == "skipped"]
    assert (codes(found), skipped) == (["not_joined"], list(LINE_CHECKS))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named_right_and_alone(name, says):
    """One code, the right one, and nothing else is called wrong."""
    assert says(name) == {"fault": [FAULTS[name][0]], "warning": []}


@pytest.mark.slow
@pytest.mark.parametrize("name", WARNINGS)
def test_what_works_today_and_may_not_tomorrow_is_a_warning(name, says):
    """No fault, and the one warning."""
    assert says(name) == {"fault": [], "warning": [WARNINGS[name][0]]}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_of_all_planted_faults_nearly_every_one_is_named_right(says):
    """Thirty different ones at least are planted; 95 % are named right, each as the one fault there is."""
    planted = [name for name in FAULTS if not _needs(name)]
    wrong = {name: says(name) for name in planted if says(name)["fault"] != [FAULTS[name][0]]}
    assert len({FAULTS[name][0] for name in planted}) >= 30
    assert 1 - len(wrong) / len(planted) >= BAR, wrong


def test_thirty_faults_are_known_by_names_of_their_own():
    """Names of faults are said once, whatever table they stand in."""
    tables = (LINE_FAULTS, PLACE_FAULTS, GROUP_FAULTS, MOUNT_FAULTS, NETWORK_FAULTS)
    assert len(FAULTS) == sum(map(len, tables))
    assert len({code for code, _ in FAULTS.values()}) >= 60


def test_the_login_of_a_proxy_is_shown_nowhere(model, tmp_path):
    """Whatever the proxy does with it."""
    with a_lab(tmp_path, model) as lab:
        lab.coordinator()
        port = lab.serve(servers.proxy(says=403))
        lab.words += ["--https-proxy", f"http://north:hunter2@{HOST}:{port}"]
        found = lab.doctor()
    assert codes(found) == ["proxy_forbids"]
    assert "hunter2" not in str(found)
    assert str(lab.home.root) not in str(found)


def test_the_table_for_people_says_what_whose_and_what_to_do(model, tmp_path, capsys):
    """The same findings, in words; the command ends with 2 and one line."""
    from oncofed_client.__main__ import app
    from oncofed_common.terminal import run_app

    with a_lab(tmp_path, model) as lab:
        lab.joined(f"{HOST}:{lab.serve(servers.closing)}")
        assert run_app(app, ["doctor", "--home", str(lab.home.root)]) == 2
    out, err = capsys.readouterr()
    said = " ".join(out.replace("│", " ").split())
    assert "Likely the network" in said
    assert "SNI" in said
    assert err.startswith("oncofed: tls: ")
    assert err.count("\n") == 1
