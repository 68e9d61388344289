"""Two studies at the same two hospitals at one time, in real processes: each as if it were alone."""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_federation import seeded_settings

from oncofed_client.home import Home
from oncofed_client.ledger import Ledger
from oncofed_server.roster import read_roster
from oncofed_server.settings import complete, read_settings
from oncofed_server.verify import verify
from oncofed_simulation.demo import Plan, Screen, conduct, found, start_sites
from oncofed_simulation.founding import Federation, agree, last_day
from oncofed_simulation.in_process import run_in_process
from oncofed_simulation.patients.writer import wards_of, write_cohorts
from oncofed_simulation.processes import Supervisor

pytestmark = pytest.mark.hours

SILENT = Screen(say=lambda what: None, bar=lambda what, done, total: None)
ROUNDS = 2


def second_study(first: Federation, root: Path) -> Federation:
    """A smaller one, for which the lifetime budget still has room."""
    settings = read_settings(root / "settings.toml")
    settings["privacy"]["epsilon"] = 2.0
    study = complete(
        settings,
        read_roster(first.coordinator),
        sites=[site.name for site in first.sites],
        base=None,
        expires=last_day(),
    )
    return agree(first.coordinator, first.sites, study=study)


def alone(federation: Federation, root: Path) -> bytes:
    """The weights of a study in one process, at copies of the homes."""
    sites = []
    for site in federation.sites:
        home = shutil.copytree(site.home.root, root / site.name, symlinks=True)
        sites.append(replace(site, home=Home.open(home)))
    coordinator = shutil.copytree(federation.coordinator, root / "coordinator", symlinks=True)
    outcome = run_in_process(
        replace(federation, coordinator=coordinator, sites=tuple(sites)),
        device=torch.device("cpu"),
        on_progress=lambda _name: lambda *_told: None,
        watch=None,
    )
    return (outcome.release / "weights.safetensors").read_bytes()


def test_two_studies_side_by_side_give_the_bytes_that_each_gives_alone() -> None:
    # a short path: a socket's name has room for a hundred characters
    with tempfile.TemporaryDirectory(prefix="two-") as folder:
        root = Path(folder)
        cohorts = write_cohorts(
            wards_of(sites=2, patients=3, seed=11),
            seed=11,
            out=root / "cohorts",
            workers=2,
            progress=lambda *_told: None,
        )
        settings = seeded_settings(root, rounds=ROUNDS)
        plan = Plan(sites=2, patients=3, seed=11, settings=settings)
        with Supervisor(root / "processes.json", grace_s=2.0) as children:
            first, link = found(root, list(cohorts), children, plan=plan)
            both = (first, second_study(first, root))
            wanted = [alone(study, root / f"twins-{n}") for n, study in enumerate(both)]
            start_sites(first, children)
            with ThreadPoolExecutor(2) as pool:
                runs = list(pool.map(lambda study: conduct(study, link, screen=SILENT), both))
        for run, weights in zip(runs, wanted, strict=True):
            run_folder = first.coordinator / "runs" / run
            release = run_folder / "release"
            assert (release / "weights.safetensors").read_bytes() == weights
            verdict = verify(release, audit=run_folder / "audit", trust=None, base=None)
            assert (verdict.first_fault, verdict.sums) == (None, ROUNDS)
        for site in first.sites:
            with Ledger.open(site.home) as ledger:
                spent = ledger.budget()["studies"]
            assert [study["rounds"] for study in spent] == [f"{ROUNDS}/{ROUNDS}"] * 2
