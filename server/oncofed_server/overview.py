"""What the operator sees: the whole home, or one run site by site; as data, and as tables of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from oncofed_common.errors import OncofedError
from oncofed_common.identity import PublicKey
from oncofed_common.screen import grid, pairs, read_aloud
from oncofed_server.operate import connected_sites
from oncofed_server.roster import read_roster
from oncofed_server.runs import describe_all
from oncofed_server.studies import load_published

_RUN_KEYS = ("run", "study_hash", "title", "status", "rounds_closed", "rounds")
_UNREADABLE = {
    "study_hash": "",
    "title": "",
    "status": "unreadable",
    "rounds_closed": 0,
    "rounds": 0,
}
_ABOUT_KEYS = ("coordinator", "address", "fingerprint", "superlink_up", "runs_going_on")
_SITE_KEYS = ("name", "declared_patients", "virtual", "revoked", "connected", "fingerprint")


def overview(home: Path) -> dict[str, Any]:
    """Who the coordinator is, who is enrolled, which studies are published, how every run stands."""
    roster = read_roster(home)
    published = sorted(path.name for path in (home / "studies").glob("?" * 64))
    runs = _runs(home)
    have_run = {run["study_hash"] for run in runs}
    connected = connected_sites(home)
    return {
        "coordinator": roster.coordinator.name,
        "address": roster.coordinator.address,
        "fingerprint": PublicKey(roster.coordinator.study_key).fingerprint,
        "superlink_up": connected is not None,
        "runs_going_on": sum(run["status"] == "running" for run in runs),
        "revocation_epoch": roster.revocation_epoch,
        "sites": [
            {
                "name": member.site,
                "declared_patients": member.declared_patients,
                "virtual": bool(member.virtual),
                "revoked": bool(member.revoked),
                "connected": None if connected is None else member.site in connected,
                "fingerprint": member.fingerprint,
            }
            for member in roster.sites
        ],
        "studies": published,
        "not_run": [
            {"study_hash": name, "title": _title(home, name)}
            for name in published
            if name not in have_run
        ],
        "runs": runs,
    }


def _runs(home: Path) -> list[dict[str, Any]]:
    """Every run; at the end those whose files cannot be read: asked for by name, they say why."""
    found, unreadable = describe_all(home)
    runs = [*found, *(_UNREADABLE | {"run": run} for run in unreadable)]
    return [{key: run[key] for key in _RUN_KEYS} for run in runs]


def _title(home: Path, study_hash: str) -> str:
    try:
        return load_published(home, study_hash).study.study.title
    except (OncofedError, OSError):
        return "(unreadable)"


def overview_tables(found: Mapping[str, Any]) -> list[Table]:
    """``overview`` for people."""
    columns = ("site", "patients (declared)", "virtual", "revoked", "connected", "fingerprint")
    return [
        pairs({key: found[key] for key in _ABOUT_KEYS}),
        grid(
            columns,
            (
                [*(site[key] for key in _SITE_KEYS[:-1]), read_aloud(site["fingerprint"])]
                for site in found["sites"]
            ),
            title="Sites",
        ),
        grid(
            ("study", "title"),
            ([study["study_hash"], study["title"]] for study in found["not_run"]),
            title="Published, not run yet",
        ),
        grid(
            ("run", "study", "title", "status", "rounds"),
            (
                [run["run"], run["study_hash"], run["title"], run["status"], _rounds(run)]
                for run in found["runs"]
            ),
            title="Runs",
        ),
    ]


def run_tables(found: Mapping[str, Any]) -> list[Table]:
    """``runs.describe`` for people."""
    about = {key: found[key] for key in ("run", "study_hash", "title", "status", "last_event")}
    sites = (
        [
            site["name"],
            site["rounds_counted"],
            [f"{count} × {why}" for why, count in site["left_out"].items()],
            site["last_code"],
        ]
        for site in found["sites"]
    )
    columns = ("site", "rounds counted", "left out", "last code")
    tables = [pairs(about | {"rounds": _rounds(found)}), grid(columns, sites, title="Sites")]
    if any(found["metrics"]):
        groups = list(found["metrics"][0])
        rows = (
            [number, *(f"{of[group]:.4f}" if group in of else "-" for group in groups)]
            for number, of in enumerate(found["metrics"], start=1)
        )
        title = "Noised mean loss of those held out, before each round"
        tables.append(grid(("round", *groups), rows, title=title))
    return tables


def _rounds(run: Mapping[str, Any]) -> str:
    return f"{run['rounds_closed']} of {run['rounds']}"
