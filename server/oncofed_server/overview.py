"""What the operator sees: the whole home, or one run site by site; as data, and as tables of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from oncofed_common.identity import PublicKey
from oncofed_server.home import is_running
from oncofed_server.operate import connected_sites
from oncofed_server.roster import read_roster
from oncofed_server.runs import describe, list_runs

_RUN_KEYS = ("run", "study_hash", "title", "status", "rounds_closed", "rounds")
_ABOUT_KEYS = ("coordinator", "address", "fingerprint", "superlink_up", "round_loop_running")
_SITE_KEYS = ("name", "declared_patients", "virtual", "revoked", "connected", "fingerprint")


def overview(home: Path) -> dict[str, Any]:
    """Who the coordinator is, who is enrolled, which studies are published, how every run stands."""
    roster = read_roster(home)
    connected = connected_sites(home)
    return {
        "coordinator": roster.coordinator.name,
        "address": roster.coordinator.address,
        "fingerprint": PublicKey(roster.coordinator.study_key).fingerprint,
        "superlink_up": connected is not None,
        "round_loop_running": is_running(home),
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
        "studies": sorted(path.name for path in (home / "studies").glob("?" * 64)),
        "runs": [
            {key: found[key] for key in _RUN_KEYS}
            for found in (describe(home, card.run) for card in list_runs(home))
        ],
    }


def overview_tables(found: Mapping[str, Any]) -> list[Table]:
    """``overview`` for people."""
    about = _pairs(found, _ABOUT_KEYS)
    columns = ("site", "patients (declared)", "virtual", "revoked", "connected", "fingerprint")
    sites = Table(*columns, title="Sites")
    for site in found["sites"]:
        sites.add_row(*(str(site[key]) for key in _SITE_KEYS))
    runs = Table("run", "study", "title", "status", "rounds", title="Runs")
    for run in found["runs"]:
        study = run["study_hash"][:16]
        runs.add_row(run["run"], study, run["title"], run["status"], _rounds(run))
    return [about, sites, runs]


def run_tables(found: Mapping[str, Any]) -> list[Table]:
    """``runs.describe`` for people."""
    about = _pairs(found, ("run", "study_hash", "title", "status", "last_event"))
    about.add_row("rounds", _rounds(found))
    sites = Table("site", "rounds counted", "left out", "last code", title="Sites")
    for site in found["sites"]:
        reasons = ", ".join(f"{count} × {why}" for why, count in site["left_out"].items())
        sites.add_row(site["name"], str(site["rounds_counted"]), reasons or "-", site["last_code"])
    return [about, sites]


def _pairs(found: Mapping[str, Any], keys: tuple[str, ...]) -> Table:
    table = Table(show_header=False)
    for key in keys:
        table.add_row(key.replace("_", " "), str(found[key]))
    return table


def _rounds(run: Mapping[str, Any]) -> str:
    return f"{run['rounds_closed']} of {run['rounds']}"
