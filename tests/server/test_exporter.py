"""What Prometheus reads: how runs stand, from their files, on this machine alone."""

from __future__ import annotations

import socket
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from honest_sites import HonestSites, refusing
from prometheus_client.parser import text_string_to_metric_families

from oncofed_common.errors import SystemRefusal
from oncofed_server.exporter import Runs, exporting


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def asked(port: int) -> dict[tuple[str, ...], float]:
    """Every value by its name and the values of its labels, in order of their names."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(fed, connected=lambda: {"north"}) -> Runs:
    return Runs(fed.home, enrolled=lambda: list(fed.sites), connected=connected)


def test_a_run_and_its_sites_are_told_as_they_stand(fed):
    """Before, and after: who was counted, who was left out and why, who is connected."""
    port = free_port()
    with exporting(of(fed), port=port):
        before = asked(port)
        fed.conduct(HonestSites(fed.sites, script={("west", 2): refusing("budget")}))
        after = asked(port)
    assert before["oncofed_run_status", fed.run, "ready"] == 1
    assert before["oncofed_run_rounds_closed", fed.run] == 0
    assert after["oncofed_run_status", fed.run, "partial"] == 1
    assert after["oncofed_run_status", fed.run, "ready"] == 0
    assert after["oncofed_run_rounds_closed", fed.run] == 3
    assert after["oncofed_run_rounds_planned", fed.run] == 3
    assert after["oncofed_site_rounds_counted", fed.run, "west"] == 2
    assert after["oncofed_site_rounds_left_out", "refused", fed.run, "west"] == 1
    assert after["oncofed_site_connected", "north"] == 1
    assert after["oncofed_site_connected", "south"] == 0
    assert after["oncofed_superlink_up",] == 1


def test_a_run_that_cannot_be_read_is_counted_and_hides_nothing(fed):
    """A monitoring system that gets no answer at all would not know why."""
    port = free_port()
    (fed.folder / "rounds/0001").mkdir(parents=True)
    (fed.folder / "rounds/0001/participation.json").write_text("nothing")
    with exporting(of(fed, connected=lambda: None), port=port):
        found = asked(port)
    assert found["oncofed_runs_unreadable",] == 1
    assert found["oncofed_superlink_up",] == 0
    assert found["oncofed_site_connected", "north"] == 0


def test_a_port_that_is_taken_is_refused_and_none_is_opened_unasked(fed):
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with (
            pytest.raises(SystemRefusal) as refused,
            exporting(of(fed), port=other.getsockname()[1]),
        ):
            pass
    assert refused.value.code == "port_in_use"
    with exporting(of(fed), port=None):
        pass


def test_only_this_machine_may_ask(fed):
    port = free_port()
    with exporting(of(fed), port=port):
        rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    names = {row.split()[1] for row in rows}
    assert f"0100007F:{port:04X}" in names
    assert f"00000000:{port:04X}" not in names
