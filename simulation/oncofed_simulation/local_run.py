"""``oncofed-simulate run``: a study on cohorts that lie on disk, in one process.

Homes are made under OUT and are virtual for ever; the release and the audit folder lie beside them.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oncofed_client.readers.cohort import read_cohort
from oncofed_client.trainer.session import best_device
from oncofed_common.durable import refuse_used
from oncofed_common.errors import CohortRefusal, OncofedError, StudyRefusal, SystemRefusal
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
from oncofed_simulation.patients.unfinished import unfinished

FILTER_ORDER = "3"
UNSTATED_EPSILON = 8.0
"""Half of the virtual homes' lifetime budget where the settings state a noise multiplier instead."""
NUMBERS = {
    "privacy": {"epsilon": "a number", "delta": "a number"},
    "training": {
        "sampling_rate": "a number",
        "rounds": "a whole number",
        "steps_per_round": "a whole number",
    },
    "outbound": {"bytes_per_round": "a whole number"},
}
"""What is reckoned with before the study as a whole is checked."""
MOST = 2**53
OnProgress = Callable[[str, int, int], None]


def local_run(
    settings_path: Path, *, cohorts: Path, out: Path, on_progress: OnProgress
) -> dict[str, Any]:
    """Run the study of ``settings_path`` on every cohort under ``cohorts``; its summary.

    The stated size of a site is its number of patients rounded up to the next ten.

    It is filled beside ``out``, locked, and renamed at its end: a refusal or an interrupt leaves nothing,
    and what a killed run left is thrown away by the next.

    Raises:
        SystemRefusal: ``out`` is used, or written by another run. CohortRefusal: no cohort.
        StudyRefusal: the settings.
        OncofedError: the run ended ``failed`` (``run_failed``); all of it lies in ``out`` nevertheless.
    """
    refuse_used(out)
    _refuse_unmovable(out)
    out = out.absolute()
    settings = read_settings(settings_path)
    _refuse_no_numbers(settings)
    folders = sorted(path.parent for path in cohorts.glob("[!.]*/dataset_description.json"))
    if not folders:
        raise CohortRefusal(
            "a folder without cohorts",
            allowed="the folder that oncofed-simulate cohort wrote",
            next="check --cohorts",
            code="no_cohort",
        )
    with unfinished(out, plan=secrets.token_hex(16)) as begun:  # never gone on with: keys are new
        try:
            summary = _run(
                settings, [folder.resolve() for folder in folders], begun.folder, on_progress
            )
        except BaseException:
            shutil.rmtree(begun.folder, ignore_errors=True)
            raise
    if summary["status"] == "failed":
        raise OncofedError(
            "a federation that failed before its last round",
            allowed="a run that every round brings further",
            next="read the run's log.jsonl in the coordinator's home under --out",
            code="run_failed",
        )
    return summary


def _refuse_no_numbers(settings: dict[str, Any]) -> None:
    for room, kinds in NUMBERS.items():
        for key, kind in kinds.items():
            value = settings[room].get(key, 1)  # what is missing is refused with the study
            allowed = int if kind == "a whole number" else (int, float)
            number = isinstance(value, allowed) and not isinstance(value, bool)
            if not number or not abs(value) < MOST:  # NaN too
                raise StudyRefusal(
                    f"{room}.{key} that is not {kind}, or one out of all bounds",
                    allowed=f"{kind} below 2^53",
                    next=f"correct {key} in [{room}]",
                    code="settings",
                )


def _refuse_unmovable(out: Path) -> None:
    """A finished run is renamed to ``out``: no mount point, and no link, can be replaced so."""
    if out.is_symlink() or out.is_mount():
        raise SystemRefusal(
            "an output that is a link or a mount point",
            allowed="a new or empty folder",
            next="name a new folder inside it",
            code="out_exists",
        )


def _run(
    settings: dict[str, Any], folders: list[Path], out: Path, on_progress: OnProgress
) -> dict[str, Any]:
    largest = max(len(read_cohort(folder).participants) for folder in folders)
    coordinator = found_coordinator(out / "coordinator", address="127.0.0.1:8100")
    sites = found_sites(
        out / "sites",
        folders,
        declared_patients=-(-largest // 10) * 10,
        lifetime_epsilon=lifetime_for(float(settings["privacy"].get("epsilon", UNSTATED_EPSILON))),
        lifetime_delta=repr(settings["privacy"].get("delta")),
        bytes_per_round=settings["outbound"].get("bytes_per_round", 0),
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
