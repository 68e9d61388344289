"""The Flower ServerApp of the coordinator: it translates, and decides nothing.

Flower's ``Strategy.start`` is not used: it can neither resume, nor bound the wait for nodes, nor add up
as replies arrive. The round loop does all that, over ``grid.GridSites``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from oncofed_server import rounds
from oncofed_server.grid import GridSites
from oncofed_server.incoming import PatientGrid
from oncofed_server.superlink import HOME_VARIABLE, Link, read_nodes, stop_others

_PR_SET_PDEATHSIG = 1

app = ServerApp()


def main(grid: Grid, context: Context) -> None:
    """Conduct the run that was submitted with this bundle."""
    _die_with_superexec()
    home, run = Path(os.environ[HOME_VARIABLE]), str(context.run_config["run"])
    carrier = PatientGrid(grid)
    link = Link(home=home, port=carrier.port)
    sites = GridSites(carrier, nodes=read_nodes(home), now_s=time.time, sleep=time.sleep)
    rounds.conduct(home, run, sites, alone=lambda: stop_others(link, run, but=context.run_id))


def _die_with_superexec() -> None:
    """The kernel ends the round loop with the process that started it; a resumed run is another."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


app.main()(main)
