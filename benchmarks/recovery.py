"""How long is it from a kill to training again?

A federation of two virtual hospitals by its own commands, kept up as a service manager keeps it up
(``kept_federation`` of the tests): what ended is started again a second later. Each process gets ``kill -9``
in a round of its own: what runs at the site while it trains, what runs at the coordinator when a first reply
has come.
Measured is the time until the site trains on the next round, so it has the rest of the round of the kill in
it. In the end the run must come to the bytes of one in which nothing is killed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from _figures import Figure, report

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / folder) for folder in (".", "simulation")]
from kept_federation import AT_THE_SITE, VICTIMS, Kept, kept_up  # noqa: E402

BAR_S = 30.0


def training_s(kept: Kept, victim: str, number: int) -> float:
    """Kill it in round ``number``; the seconds until the site trains on the next one."""
    moment = "training" if victim in AT_THE_SITE else "counted"
    kept.until(lambda: kept.reached(moment, number), what=f"round {number}, {moment}")
    killed_s = time.monotonic()
    kept.kill(victim)
    kept.until(lambda: kept.reached("training", number + 1), what=f"after {victim}")
    return time.monotonic() - killed_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rounds = len(VICTIMS) + 1  # behind the last kill there is something to train
    with (
        tempfile.TemporaryDirectory(prefix="kill-") as folder,
        kept_up(Path(folder), rounds=rounds) as kept,
    ):
        found = {}
        for number, victim in enumerate(VICTIMS, start=1):
            found[victim] = training_s(kept, victim, number)
            print(f"{victim}: {found[victim]:.1f} s", file=sys.stderr)
        kept.until(kept.ended, what="the release")
        kept.stop()
        kept.check(rounds=rounds)
    figures = [Figure(name=f"{name} killed", value=s, unit="s") for name, s in found.items()]
    longest = Figure(name="longest", value=max(found.values()), unit="s", bar=BAR_S)
    return report([*figures, longest], title="From a kill to training again", path=asked.json)


if __name__ == "__main__":
    sys.exit(main())
