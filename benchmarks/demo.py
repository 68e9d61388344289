"""The whole demo against what it promises: time, bytes, overhead of a round, a forecast worth having.

The overhead of a round is what it takes beyond training: the time from opening the round to closing it,
less the declared slots until the last site's reply left; a site's log tells nothing of training itself.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from _figures import Figure, report

from oncofed_simulation.demo import PLAN, Screen, demo

SECONDS_BAR, BYTES_BAR, OVERHEAD_BAR_S = 360.0, 200_000, 12.0


def main() -> int:
    """Run the demo once, print the table, and fail where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    out = Path(tempfile.mkdtemp(prefix="demo-"))
    try:
        screen = Screen(say=lambda what: print("  ", what), bar=lambda what, done, total: None)
        summary = demo(out, plan=PLAN, screen=screen)
        overheads = overheads_s(out)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return report(figures(summary, overheads), title="The demo", path=asked.json)


def figures(summary: dict[str, Any], overheads: list[float]) -> list[Figure]:
    """Each figure with its bar."""
    crps = summary["forecast"]["crps_log_volume"]
    least = crps["no_change"]
    return [
        Figure(name="whole demo", value=summary["seconds"], unit="s", bar=SECONDS_BAR),
        Figure(
            name="largest reply", value=summary["largest_reply_bytes"], unit="bytes", bar=BYTES_BAR
        ),
        Figure(
            name="overhead of a round, slowest", value=max(overheads), unit="s", bar=OVERHEAD_BAR_S
        ),
        Figure(name="CRPS of log volume, model", value=crps["model"], unit="", bar=least),
        Figure(name="CRPS of log volume, base", value=crps["base"], unit="", bar=least),
        Figure(name="on a GPU", value=None, unit=""),
    ]


def overheads_s(out: Path) -> list[float]:
    """For each round, seconds beyond training and slot, from the logs (whole seconds)."""
    slot = tomllib.loads(PLAN.settings.read_text())["outbound"]["reply_after_s"]
    (log,) = (out / "coordinator" / "runs").glob("*/log.jsonl")
    rows = _rows(log)
    opened = {row["round"]: row["at_s"] for row in rows if row["event"] == "round_opened"}
    closed = {row["round"]: row["at_s"] for row in rows if row["event"] == "round_closed"}
    trained = dict.fromkeys(closed, 0.0)
    for path in sorted((out / "sites").glob("*/trainer/log.jsonl")):
        found = _rows(path)
        began = {row["round"]: row["time_s"] for row in found if row["event"] == "accepted"}
        for row in found:
            if row["event"] == "answered":
                taken = float(row["time_s"] - began[row["round"]])
                trained[row["round"]] = max(trained[row["round"]], taken)
    return [
        float(closed[number] - opened[number] - slot * max(1, math.ceil(trained[number] / slot)))
        for number in sorted(closed)
    ]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main())
