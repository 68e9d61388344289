"""How long does the check of 200 patients take, and does its memory grow with their number?

Eight virtual patients (3 to 5 visits, whole heads) are made once and linked under new names: the check
reads every file of all 200, and says of each copy whose scans it has too.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from _figures import Figure, report

from oncofed_client.check import check

MADE, FEW, MANY = 8, 20, 200
WORKERS = 2
BAR_S = 120.0
BAR_GROWTH = 1.2


def enlarge(cohort: Path, *, patients: int) -> int:
    """Link the cohort's patients under new names until there are ``patients``; the visits of all."""
    table = cohort / "participants.tsv"
    header, *rows = table.read_text().splitlines()
    for number in range(len(rows), patients):
        row = rows[number % MADE]
        old, new = row.split("\t")[0], f"sub-copy{number:04d}"
        for part in (Path(), Path("derivatives/tumor"), Path("derivatives/tissue")):
            for file in (cohort / part / old).rglob("*.*"):
                inner = str(file.relative_to(cohort / part / old)).replace(old, new)
                place = cohort / part / new / inner
                place.parent.mkdir(parents=True, exist_ok=True)
                place.hardlink_to(file)
        rows.append(row.replace(old, new))
    table.write_text("\n".join([header, *rows]) + "\n")
    return sum(1 for _ in cohort.glob("sub-*/ses-*"))


def measure(cohort: Path) -> dict[str, float]:
    """Seconds of one check in a process of its own, and MiB of the largest process it needed."""
    argv = [sys.executable, __file__, "--measure", str(cohort)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def measured_here(cohort: Path) -> dict[str, float]:
    began = time.perf_counter()
    report = check(cohort, workers=WORKERS)
    seconds = time.perf_counter() - began
    found = {made.code for made in report.findings} - {"scan_shared"}
    if found or not report.takes_part:
        raise SystemExit("findings in a clean virtual cohort")
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return {"s": seconds, "mib": max(resource.getrusage(one).ru_maxrss for one in who) / 1024}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.measure is not None:
        print(json.dumps(measured_here(asked.measure)))
        return 0
    with tempfile.TemporaryDirectory(prefix="check-") as root:
        made = Path(root) / "made"
        simulate = [
            sys.executable,
            "-m",
            "oncofed_simulation",
            "cohort",
            "--sites",
            "1",
            "--seed",
            "7",
        ]
        size = ["--patients", str(MADE), "--workers", str(WORKERS), "--out", str(made), "--json"]
        subprocess.run([*simulate, *size], stdout=subprocess.DEVNULL, check=True)
        many = made / "hospital-1"
        few = Path(shutil.copytree(many, Path(root) / "few"))
        enlarge(few, patients=FEW)
        visits = enlarge(many, patients=MANY)
        small, large = measure(few), measure(many)
    figures = [
        Figure(
            name=f"check of {MANY} patients, {visits} visits, {WORKERS} processes",
            value=large["s"],
            unit="s",
            bar=BAR_S,
        ),
        Figure(
            name=f"memory at {MANY} patients over memory at {FEW}",
            value=large["mib"] / small["mib"],
            unit="x",
            bar=BAR_GROWTH,
        ),
        Figure(name="a visit", value=1000 * large["s"] / visits, unit="ms"),
        Figure(name="largest process", value=large["mib"], unit="MiB"),
    ]
    return report(figures, title="Check of a cohort", path=asked.json)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
