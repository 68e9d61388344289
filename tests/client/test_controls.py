"""Controls that stand alone: each of these goes red when its control is taken out, and nothing else does."""

from __future__ import annotations

import errno
import json
import logging
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_builder import (
    PASSPHRASE,
    Coordinator,
    a_home,
    a_site,
    code_of,
    joined,
    published,
    study_for,
)
from study_builder import a_study

from oncofed_client import consent
from oncofed_client.ledger import Ledger
from oncofed_client.trainer.log import FIELDS, AllowListed, open_log, where
from oncofed_client.trainer.session import stream_for
from oncofed_client.trainer.training import mechanism_of
from oncofed_common.errors import PrivacyRefusal
from oncofed_common.identity import SigningKey
from oncofed_common.privacy import prv


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator()


def test_a_study_that_costs_more_than_it_states_is_not_approved(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    """Whatever its signature says."""
    home = joined(a_home(tmp_path), coordinator)
    study = study_for(home, privacy={"epsilon": 0.5})
    folder = published(tmp_path, study, coordinator)
    with Ledger.open(home) as ledger:
        before = ledger.head()
        with pytest.raises(PrivacyRefusal) as refused:
            consent.propose(home, ledger, folder, base=tmp_path / "base.safetensors")
        assert refused.value.code == "understated"
        assert ledger.head() == before


def test_the_page_states_the_lifetime_that_the_budget_shows_after_a_yes(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    """Of two studies that are open at once, so that the second one's page counts the first one too."""
    home = joined(a_home(tmp_path), coordinator)
    for name, rounds in (("one", 1), ("two", 2)):
        folder = published(
            tmp_path / name, study_for(home, training={"rounds": rounds}), coordinator
        )
        with Ledger.open(home) as ledger:
            proposal = consent.propose(
                home, ledger, folder, base=folder.parent / "base.safetensors"
            )
            stated = dict(consent.page(proposal, home=home))["a lifetime, after a yes"]
            assert consent.agree(home, ledger, proposal, passphrase=PASSPHRASE) is not None
            budget = ledger.budget()
        assert stated.startswith(f"epsilon {budget['reserved_epsilon']} of ")


def test_accountants_that_disagree_stop_an_approval_and_a_round(
    tmp_path: Path, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the libraries is wrong, and nobody knows which."""
    site = a_site(tmp_path, coordinator)
    monkeypatch.setattr(prv, "prv_epsilon", lambda event, delta: 9.0)
    with site.open:
        assert code_of(site.desk().answer(coordinator.task(site))[0]) == "unavailable"
        assert site.trained == []
        (row,) = site.ledger.budget()["studies"]
        assert str(row["rounds"]).startswith("0/")
        folder = published(
            tmp_path / "next", study_for(site.home, training={"rounds": 2}), coordinator
        )
        with pytest.raises(PrivacyRefusal) as refused:
            consent.propose(
                site.home, site.ledger, folder, base=tmp_path / "next" / "base.safetensors"
            )
        assert refused.value.code == "accountants"


@given(
    clip=st.floats(1e-6, 1e6),
    noise=st.floats(0.1, 100),
    rate=st.floats(0.01, 1),
    declared=st.integers(1, 10_000),
)
def test_a_round_clips_and_noises_as_its_study_says(
    clip: float, noise: float, rate: float, declared: int
) -> None:
    """No factor comes in between."""
    study = a_study(
        privacy={"clip_norm": clip, "noise_multiplier": noise}, training={"sampling_rate": rate}
    )
    found = mechanism_of(study, declared_patients=declared)
    assert (found.clip_norm, found.noise_multiplier) == (clip, noise)
    assert (found.sampling_rate, found.declared_patients) == (rate, declared)


def test_a_repeated_round_of_an_unseeded_study_draws_other_noise(
    tmp_path: Path, coordinator: Coordinator
) -> None:
    """The same noise under another sum would cancel."""
    site = a_site(tmp_path, coordinator)
    with site.open:
        from oncofed_client.approval import read_approved

        approved = read_approved(site.home, site.study.hash, now_s=int(site.now_s))
        streams = [stream_for(approved, home=site.home, round_number=1) for _ in range(2)]
    assert all(stream.protected for stream in streams)
    first, second = (stream.uint64(8).tolist() for stream in streams)
    assert first != second


HARDENED = """
import ctypes, os, resource
from oncofed_client.isolation import harden_process
prctl = ctypes.CDLL(None).prctl
prctl(4, 1, 0, 0, 0)
before = prctl(3, 0, 0, 0, 0)
harden_process()
print(before, prctl(3, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE), oct(os.umask(0)))
"""


def test_a_hardened_process_leaves_no_core_and_hides_its_memory() -> None:
    """Read back from the kernel, in a process of its own that may leave cores before."""

    def may_leave_cores() -> None:
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))

    done = subprocess.run(
        [sys.executable, "-c", HARDENED],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=may_leave_cores,
    )
    assert done.stdout.split() == ["1", "0", "0", "0", "0o77"]


def test_a_field_that_is_not_on_the_list_is_not_logged(tmp_path: Path) -> None:
    """Nor is a message, its arguments or an exception."""
    with open_log(
        tmp_path / "log.jsonl", head=tmp_path / "head.json", key=SigningKey.generate()
    ) as log:
        try:
            raise ValueError("canary: Jane Doe")
        except ValueError:
            log.exception("canary %s", "canary", extra={"event": "failed", "patient": "canary"})
    written = (tmp_path / "log.jsonl").read_text()
    assert "canary" not in written
    assert json.loads(written).keys() == {"time_s", "level", "event"}


def test_a_line_for_which_the_log_has_no_room_is_said_elsewhere_and_no_more_than_the_line(
    tmp_path: Path,
) -> None:
    """A device that is always full; logging's own words would be a traceback for each line."""
    said: list[str] = []
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with open_log(
        tmp_path / "log.jsonl",
        head=tmp_path / "head.json",
        key=SigningKey.generate(),
        spare=said.append,
    ) as log:
        log.warning("canary", extra={"event": "refused", "patient": "canary"} | where(full_disk()))
    (line,) = said
    assert json.loads(line).keys() == {"time_s", "level", "event", "error_class", "where", "code"}
    assert json.loads(line)["code"] == "disk_full"
    assert "canary" not in line


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, "canary", "/data/canary")


def test_every_field_on_the_list_is_logged() -> None:
    """And those alone."""
    record = logging.LogRecord("x", logging.INFO, "x", 1, "message", None, None)
    for name in FIELDS:
        setattr(record, name, name)
    found = json.loads(AllowListed().format(record))
    assert found.keys() == {"time_s", "level", *FIELDS}
