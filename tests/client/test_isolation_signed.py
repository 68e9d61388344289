"""Who may compute on real scans with a network in reach: nobody, or whom the approver's signature lets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_builder import (
    PASSPHRASE,
    Coordinator,
    Site,
    a_home,
    approved,
    code_of,
    joined,
    published,
    study_for,
)

from oncofed_client import consent
from oncofed_client.__main__ import app
from oncofed_client.approval import sign
from oncofed_client.isolation import (
    NETWORKED,
    Isolation,
    may_serve,
    require_isolation,
    signed_isolation,
)
from oncofed_client.ledger import Ledger
from oncofed_common.errors import PolicyRefusal
from oncofed_common.terminal import run_app

STATES = st.sampled_from(get_args(Isolation))
SIGNED = st.sampled_from(
    ["no_network+landlock", "trainer_may_reach_network+landlock", "", "virtual"]
)


@given(found=STATES, signed=st.lists(SIGNED))
def test_a_real_home_with_a_network_is_served_under_a_signature_for_that_alone(
    found: Isolation, signed: list[str]
) -> None:
    """Whatever else was approved."""
    serves = found == "no_network" or any(one.startswith("trainer_may") for one in signed)
    if serves:
        require_isolation(found, virtual=False, signed=signed)
    else:
        with pytest.raises(PolicyRefusal) as refused:
            require_isolation(found, virtual=False, signed=signed)
        assert refused.value.code == "not_isolated"
    require_isolation(found, virtual=True, signed=signed)


def test_what_is_signed_without_being_asked_for_is_no_network() -> None:
    assert signed_isolation(virtual=False, networked=False) == "no_network"
    assert not may_serve(
        "none", virtual=False, signed=signed_isolation(virtual=False, networked=False)
    )


def a_real_site(root: Path, coordinator: Coordinator, *, networked: bool) -> Site:
    """A home that is not virtual, with one study that its approver signed."""
    home = joined(a_home(root, virtual=False), coordinator)
    return approved(root, home, study_for(home), coordinator, networked=networked)


@pytest.mark.parametrize(
    ("isolation", "networked", "code"),
    [
        ("no_network", False, "ok"),
        ("no_network", True, "ok"),
        ("none", True, "ok"),
        ("none", False, "not_approved"),
    ],
)
def test_a_task_is_answered_as_its_own_study_was_signed(
    tmp_path: Path, isolation: Isolation, networked: bool, code: str
) -> None:
    """Another study's signature does not count for it, and a refusal charges nobody."""
    coordinator = Coordinator()
    site = a_real_site(tmp_path, coordinator, networked=networked)
    site.isolation = isolation
    with site.open:
        assert code_of(site.desk().answer(coordinator.task(site))[0]) == code
        (row,) = site.ledger.budget()["studies"]
    assert site.trained == ([1] if code == "ok" else [])
    assert str(row["rounds"]).startswith("1/" if code == "ok" else "0/")


def test_an_interface_that_comes_up_later_ends_what_was_signed_without_one(tmp_path: Path) -> None:
    """The process is asked for each task, not once."""
    coordinator = Coordinator()
    site = a_real_site(tmp_path, coordinator, networked=False)
    with site.open:
        desk = site.desk()
        site.isolation = "none"
        assert code_of(desk.answer(coordinator.task(site))[0]) == "not_approved"


def test_a_signed_approval_that_the_ledger_did_not_reserve_counts_for_nothing(
    tmp_path: Path,
) -> None:
    """Somebody who may write the trainer's folder has a signature over other terms of the same study."""
    coordinator = Coordinator()
    site = a_real_site(tmp_path, coordinator, networked=False)
    place = site.home.study_folder(site.study.hash) / "approval.json"
    kept = json.loads(place.read_text())
    other = dict(kept["approval"]) | {"isolation": f"{NETWORKED}+none"}
    place.write_text(json.dumps(sign(other, site.home.approver_key(PASSPHRASE)).as_dict()))
    with site.open:
        for isolation in get_args(Isolation):
            site.isolation = isolation
            assert code_of(site.desk().answer(coordinator.task(site))[0]) == "not_approved"
    assert site.trained == []


REACHING = """
import fcntl, socket, struct, sys
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(probe, 0x89A0, b"br0".ljust(16, bytes(1)))  # SIOCBRADDBR: an interface,
fcntl.ioctl(probe, 0x8914, struct.pack("16sh14x", b"br0", 1))  # SIOCSIFFLAGS: that is up
from oncofed_client.trainer.__main__ import main
main()
"""


@pytest.mark.parametrize("networked", [False, True])
def test_a_trainer_with_an_interface_starts_for_a_real_home_where_that_was_signed(
    tmp_path: Path, networked: bool
) -> None:
    """The process itself; the cohort that is not there is only missed by one that goes on."""
    site = a_real_site(tmp_path, Coordinator(), networked=networked)
    site.open.close()
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", REACHING]
    command += ["--home", str(site.home.root), "--cohort", str(tmp_path / "none")]
    command += ["--identities", str(tmp_path / "no")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert ("a trainer that can reach a network" in done.stderr) is not networked


def test_the_page_says_aloud_that_no_isolation_is_asked_for(tmp_path: Path) -> None:
    """And audit shows it of the approval."""
    coordinator = Coordinator()
    home = joined(a_home(tmp_path, virtual=False), coordinator)
    folder = published(tmp_path, study_for(home), coordinator)
    with Ledger.open(home) as ledger:
        pages = [
            dict(
                consent.page(
                    consent.propose(
                        home, ledger, folder, base=tmp_path / "base.safetensors", networked=yes
                    ),
                    home=home,
                )
            )["isolation"]
            for yes in (False, True)
        ]
    assert pages[0].startswith("no_network")
    assert "may reach a network" in pages[1]


def test_a_virtual_home_has_nothing_to_sign_away(tmp_path: Path) -> None:
    words = ["approve", str(tmp_path), "--home", str(a_home(tmp_path).root), "--networked-trainer"]
    assert run_app(app, [*words, "--passphrase-file", "/dev/null", "--yes"]) == 2
