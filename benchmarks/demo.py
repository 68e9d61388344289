"""The whole demo against what it promises: time, bytes, overhead of a round, a forecast worth having.

The overhead of a round is what it takes beyond training: the time from opening the round to closing it,
less the longest training of any site or the declared slot, whichever is longer.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from oncofed_simulation.demo import PLAN, Screen, demo

SECONDS_BAR, BYTES_BAR, OVERHEAD_BAR_S = 360.0, 200_000, 12.0


def main() -> int:
    """Run the demo once, print the table, and fail where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args()
    out = Path(tempfile.mkdtemp(prefix="demo-"))
    try:
        screen = Screen(say=lambda what: print("  ", what), bar=lambda what, done, total: None)
        summary = demo(out, plan=PLAN, screen=screen)
        overheads = overheads_s(out)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    rows = figures(summary, overheads)
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps({"machine": platform.processor(), "figures": rows}, indent=2))
    for row in rows:
        print(f"{row['name']:<48} {row['value']:>12.3f}   bar {row['bar']:g}")
    missed = [row["name"] for row in rows if not row["value"] <= row["bar"]]
    print("; ".join(f"{r['name']} {r['value']:.3g} (bar {r['bar']:g})" for r in rows), end="; ")
    print("GPU: not measured;", f"missed: {', '.join(missed)}" if missed else "all bars met")
    return 1 if missed else 0


def figures(summary: dict[str, Any], overheads: list[float]) -> list[dict[str, Any]]:
    """Each figure with its bar; smaller is better in every row."""
    crps = summary["forecast"]["crps_log_volume"]
    return [
        {"name": "whole demo, s", "value": summary["seconds"], "bar": SECONDS_BAR},
        {"name": "largest reply, bytes", "value": summary["largest_reply_bytes"], "bar": BYTES_BAR},
        {"name": "overhead of a round, slowest, s", "value": max(overheads), "bar": OVERHEAD_BAR_S},
        {"name": "CRPS of log volume, model", "value": crps["model"], "bar": crps["no_change"]},
        {"name": "CRPS of log volume, base", "value": crps["base"], "bar": crps["no_change"]},
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
        began = {row["round"]: row["time_s"] for row in found if row["event"] == "training"}
        for row in found:
            if row["event"] == "answered":
                taken = float(row["time_s"] - began[row["round"]])
                trained[row["round"]] = max(trained[row["round"]], taken)
    return [
        float(closed[number] - opened[number] - max(trained[number], slot))
        for number in sorted(closed)
    ]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main())
