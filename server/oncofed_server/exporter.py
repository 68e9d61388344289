"""What may a monitoring system read of the runs, while they go on?

Prometheus' text format at ``/metrics`` on this machine's loopback, made from the files of the home whenever
it is asked: no process of a run knows of it. It names runs, sites and reasons, as the records do, and
nothing of any site's data.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from oncofed_common.errors import SystemRefusal
from oncofed_server.runs import describe_all

LOOPBACK = "127.0.0.1"
STATUSES = ("ready", "running", "interrupted", "complete", "partial", "failed")

Connected = Callable[[], Collection[str] | None]
"""The sites that SuperLink has heard of lately; None where it does not answer."""


class Runs(Collector):
    """Every run of a home, and who is connected, as gauges."""

    def __init__(
        self, home: Path, *, enrolled: Callable[[], Collection[str]], connected: Connected
    ):
        self._home, self._enrolled, self._connected = home, enrolled, connected

    def describe(self) -> Iterator[Metric]:
        """Nothing is collected when the registry begins."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """What stands in the files now."""
        found, unreadable = describe_all(self._home)
        yield GaugeMetricFamily(
            "oncofed_runs_unreadable", "runs whose files cannot be read", value=len(unreadable)
        )
        yield from _of_runs(found)
        yield from _of_sites(found)
        online = self._connected()
        link = GaugeMetricFamily("oncofed_superlink_up", "whether SuperLink answers")
        link.add_metric([], online is not None)
        yield link
        here = GaugeMetricFamily("oncofed_site_connected", "heard of lately", labels=["site"])
        for site in sorted(self._enrolled()):
            here.add_metric([site], site in (online or ()))
        yield here


def _of_runs(found: list[dict[str, Any]]) -> Iterator[Metric]:
    status = GaugeMetricFamily(
        "oncofed_run_status", "1 for how it stands", labels=["run", "status"]
    )
    for run in found:
        for word in STATUSES:
            status.add_metric([run["run"], word], run["status"] == word)
    yield status
    for name, key, words in (
        ("oncofed_run_rounds_planned", "rounds", "rounds that the study has"),
        ("oncofed_run_rounds_closed", "rounds_closed", "rounds with a signed record"),
        ("oncofed_run_last_event_timestamp_seconds", "last_event_s", "of the run's log"),
    ):
        gauge = GaugeMetricFamily(name, words, labels=["run"])
        for run in found:
            gauge.add_metric([run["run"]], run[key])
        yield gauge


def _of_sites(found: list[dict[str, Any]]) -> Iterator[Metric]:
    counted = GaugeMetricFamily(
        "oncofed_site_rounds_counted", "rounds that count a site", labels=["run", "site"]
    )
    left_out = GaugeMetricFamily(
        "oncofed_site_rounds_left_out", "rounds without a site", labels=["run", "site", "reason"]
    )
    for run in found:
        for site in run["sites"]:
            counted.add_metric([run["run"], site["name"]], site["rounds_counted"])
            for reason, times in site["left_out"].items():
                left_out.add_metric([run["run"], site["name"], reason], times)
    yield counted
    yield left_out


@contextmanager
def exporting(runs: Runs, *, port: int | None) -> Iterator[None]:
    """Answer at ``http://127.0.0.1:port/metrics`` within the block; without a port, nowhere.

    Raises:
        SystemRefusal: code ``port_in_use``.
    """
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(runs)
    try:
        server, thread = start_http_server(port, addr=LOOPBACK, registry=registry)
    except OSError:
        raise SystemRefusal(
            f"port {port} of this machine, which is taken",
            allowed="a free port",
            next="choose another --metrics-port",
            code="port_in_use",
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
