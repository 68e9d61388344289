"""``oncofed-simulate run``: a study on cohorts that lie on disk, in one process.

Homes are made under OUT and are virtual for ever; the release and the audit folder lie beside them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oncofed_client.readers.cohort import read_cohort
from oncofed_client.trainer.session import best_device
from oncofed_common.durable import make_folder
from oncofed_common.errors import CohortRefusal
from oncofed_server.roster import read_roster
from oncofed_server.settings import complete, read_settings, seed_of
from oncofed_server.verify import verify
from oncofed_simulation.founding import (
    agree,
    found_coordinator,
    found_sites,
    introduce,
    last_day,
    lifetime_for,
)
from oncofed_simulation.in_process import run_in_process
from oncofed_simulation.patients.unfinished import refuse_used

FILTER_ORDER = "3"
OnProgress = Callable[[str, int, int], None]


def local_run(
    settings_path: Path, *, cohorts: Path, out: Path, on_progress: OnProgress
) -> dict[str, Any]:
    """Run the study of ``settings_path`` on every cohort under ``cohorts``; its summary.

    The stated size of a site is its number of patients rounded up to the next ten.

    Raises:
        SystemRefusal: ``out`` exists. CohortRefusal: no cohort. StudyRefusal: the settings. A run that
            does not reach its end leaves nothing in ``out``.
    """
    refuse_used(out)
    out = out.resolve()
    settings = read_settings(settings_path)
    folders = sorted(path.parent for path in cohorts.glob("*/dataset_description.json"))
    if not folders:
        raise CohortRefusal(
            "a folder without cohorts",
            allowed="the folder that oncofed-simulate cohort wrote",
            next="check --cohorts",
            code="no_cohort",
        )
    make_folder(out)
    try:
        return _run(settings, [folder.resolve() for folder in folders], out, on_progress)
    except BaseException:
        shutil.rmtree(out)
        raise


def _run(
    settings: dict[str, Any], folders: list[Path], out: Path, on_progress: OnProgress
) -> dict[str, Any]:
    largest = max(len(read_cohort(folder).participants) for folder in folders)
    coordinator = found_coordinator(out / "coordinator", address="127.0.0.1:8100")
    sites = found_sites(
        out / "sites",
        folders,
        declared_patients=-(-largest // 10) * 10,
        lifetime_epsilon=lifetime_for(float(settings["privacy"].get("epsilon", 8.0))),
        lifetime_delta=repr(settings["privacy"].get("delta")),
        bytes_per_round=int(settings["outbound"].get("bytes_per_round", 0)),
        filter_order=FILTER_ORDER,
        seed=seed_of(settings),
    )
    introduce(coordinator, sites, address="127.0.0.1:8100")
    study = complete(
        settings,
        read_roster(coordinator),
        sites=[site.name for site in sites],
        base=None,
        expires=last_day(),
    )
    federation = agree(coordinator, sites, study=study)
    outcome = run_in_process(
        federation,
        device=best_device(),
        on_progress=lambda name: (
            lambda what, done, total: on_progress(f"{name}: {what}", done, total)
        ),
        watch=None,
    )
    shutil.copytree(outcome.release, out / "release")
    if outcome.audit is not None:
        shutil.copytree(outcome.audit, out / "audit")
    checked = verify(out / "release", audit=outcome.audit, trust=None, base=None)
    summary = {
        "status": outcome.status,
        "study": study.hash,
        "rounds": outcome.rounds,
        "epsilon": study.privacy.epsilon,
        "delta": study.privacy.delta,
        "protected": study.virtual is None,
        "verified": checked.ok,
        "release": "release",
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary
