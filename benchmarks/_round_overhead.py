"""What a round costs the coordinator beside the sites' own work: CPU milliseconds a site.

The whole round loop in this process, its files in memory, with the tests' honest sites, whose time is not
counted.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from oncofed_common.tensors import TensorTerm

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import honest_sites

ROUNDS = 10
MEMORY = Path("/dev/shm")  # noqa: S108  a folder of its own in it


class Timed(honest_sites.HonestSites):
    """Sites that say how long they worked."""

    seconds = 0.0

    def send(self, tasks: Mapping[str, bytes], *, expires_s: int) -> None:
        before = time.process_time()
        super().send(tasks, expires_s=expires_s)
        self.seconds += time.process_time() - before


def overhead_ms(*, sites: int, values: int) -> float:
    """Of a run of ``ROUNDS`` rounds, release and all, for each site and round."""
    honest_sites.SCHEMA = (TensorTerm(name="norm.weight", shape=(values,)),)
    honest_sites.FIRST = {"norm.weight": np.zeros(values, np.float32)}
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        federation = honest_sites.federation(
            Path(folder),
            {f"site-{number}": 1 for number in range(sites)},
            training={"rounds": ROUNDS},
            outbound={"bytes_per_round": 8 * values},
        )
        timed = Timed(federation.sites)
        before = time.process_time()
        assert federation.conduct(timed).status == "complete"
        spent = time.process_time() - before - timed.seconds
    return 1000 * spent / (sites * ROUNDS)
